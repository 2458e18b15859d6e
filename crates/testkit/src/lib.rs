//! Podwire testkit.
