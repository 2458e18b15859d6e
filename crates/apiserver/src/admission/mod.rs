//! What becomes of an object between a client and the store: defaults, allocation, validation.

mod cluster_ip;
pub(crate) mod defaults;
pub(crate) mod meta;
mod pod;
pub(crate) mod service;
pub(crate) mod validate;

/// What is wrong with an object, so far.
pub(crate) type Causes = Vec<crate::status::Cause>;
