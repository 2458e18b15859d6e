//! Podwire proxy.
