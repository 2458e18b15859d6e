//! Podwire apiserver.
