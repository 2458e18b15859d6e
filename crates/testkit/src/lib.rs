//! What tests of several crates share: builders of model values, packet tables and their oracle, replay of event
//! sequences; seeded randomness; what benchmarks print. A dev-dependency only.

pub mod bench;
pub mod build;
pub mod namespace;
pub mod packet_table;
pub mod random;
pub mod replay;
