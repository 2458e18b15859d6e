//! Podwire lab.
