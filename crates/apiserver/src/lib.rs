//! An embedded Kubernetes API: enough of kube-apiserver, in-process and in memory, for `kubectl`, client libraries and
//! the network agents of a lab.
//!
//! A request passes through these modules, in this order:
//!
//! - `http`: TLS connection → parsed path → one generic handler for each verb;
//! - `kinds`: the one table of what is served. A new kind is a new row;
//! - `patch`, `admission`, `strict`: what becomes of a request's body before it is stored;
//! - [`store`]: objects by key with one global revision, and their recent history for watches;
//! - `table`: what `kubectl get` prints.
//!
//! Pods' logs and commands are reached through [`remote::NodeProxy`]. Every authenticated caller may do everything:
//! there is no authorization.

pub mod remote;
