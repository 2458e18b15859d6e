//! Podwire dns.
