//! What `cargo xtask bench dns` measures.
