//! podwire.

fn main() {}
