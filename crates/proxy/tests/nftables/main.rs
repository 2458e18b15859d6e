//! The nftables mode over the strict fake and over the kernel.

mod changes;
mod golden;
mod table;
