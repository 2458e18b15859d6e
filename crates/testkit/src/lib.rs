//! What tests of several crates share: builders of model values, packet tables and their oracle, replay of event
//! sequences. A dev-dependency only.

pub mod build;
pub mod namespace;
pub mod packet_table;
pub mod replay;
