//! IP packets in UDP, carried by this program: where there is no vxlan, or UDP is all that passes. See README.md.

pub mod forward;
pub mod packet;
