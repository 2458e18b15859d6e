//! Real packets through every mode: the packet table, and what clients see while Services change.

mod net;
mod rows;
mod updates;
