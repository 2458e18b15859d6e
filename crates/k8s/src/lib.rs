//! Podwire k8s.
