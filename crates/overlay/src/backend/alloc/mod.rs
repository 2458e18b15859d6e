//! alloc: pod ranges and nothing else. See README.md.

use super::Backend;
use crate::{
    Error,
    config::Fields,
    plan::{Entry, Peer, Site, Uplink},
};

/// The value of `Backend.Type`.
pub const NAME: &str = "alloc";

#[derive(Debug)]
struct Alloc;

pub(super) fn configure(_: &mut Fields) -> Result<Box<dyn Backend>, Error> {
    Ok(Box::new(Alloc))
}

impl Backend for Alloc {
    fn name(&self) -> &'static str {
        NAME
    }

    /// flannel's publishes an empty type, as its udp does, and is taken for that.
    fn answers_to(&self, published: &str) -> bool {
        matches!(published, NAME | super::udp::NAME)
    }

    fn mtu(&self, uplink: &Uplink) -> u32 {
        uplink.mtu
    }

    fn lease_data(&self, _: &Site) -> String {
        "null".to_owned()
    }

    fn local(&self, _: &Site) -> Vec<Entry> {
        Vec::new()
    }

    fn peer(&self, _: &Site, _: Peer<'_>) -> Result<Vec<Entry>, Error> {
        Ok(Vec::new())
    }

    fn leaves_routes_to_others(&self) -> bool {
        true
    }
}
