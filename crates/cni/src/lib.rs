//! Podwire cni.
