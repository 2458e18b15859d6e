//! Podwire kernel.
