//! EndpointSlices in the form in which a proxy can keep a quarter of a million endpoints: 20 bytes each.

use std::net::IpAddr;

use podwire_model::{Endpoint, EndpointPort, EndpointSlice, Family, Name};

use crate::plan::Me;

/// What the proxy asks of an EndpointSlice. Equal if and only if a change makes no difference to any plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The slice's own name, in its Service's namespace.
    pub name: Name,
    /// Of all its endpoints.
    pub family: Family,
    /// The ports that each endpoint serves.
    pub ports: Box<[EndpointPort]>,
    /// The endpoints, sorted.
    pub members: Box<[Member]>,
    /// The different values of `hints.forZones`; there are few.
    zones: Box<[Box<[Name]>]>,
}

/// One endpoint of a [`Slice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Where it listens.
    pub address: IpAddr,
    /// What is true of it.
    pub is: Is,
    /// An index into [`Slice::zones`].
    zones: u16,
}

/// What is true of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Is(u8);

impl Is {
    /// It should get traffic.
    pub const READY: Self = Self(1 << 7);
    /// It is able to serve.
    pub const SERVING: Self = Self(1 << 6);
    /// It is not on its way out.
    pub const STAYING: Self = Self(1 << 5);
    /// It is on this node.
    pub const HERE: Self = Self(1 << 4);
    /// It does not say on which node it is.
    pub const UNPLACED: Self = Self(1 << 3);
    /// It is reserved for some nodes.
    pub const FOR_NODES: Self = Self(1 << 2);
    /// This node is one of them.
    pub const FOR_THIS_NODE: Self = Self(1 << 1);

    fn new(endpoint: &Endpoint, node: &Name) -> Self {
        let facts = [
            (endpoint.ready, Self::READY),
            (endpoint.serving, Self::SERVING),
            (!endpoint.terminating, Self::STAYING),
            (endpoint.node.as_ref() == Some(node), Self::HERE),
            (endpoint.node.is_none(), Self::UNPLACED),
            (!endpoint.hint_nodes.is_empty(), Self::FOR_NODES),
            (endpoint.hint_nodes.contains(node), Self::FOR_THIS_NODE),
        ];
        Self(facts.iter().filter(|(holds, _)| *holds).fold(0, |all, (_, fact)| all | fact.0))
    }

    /// Whether `fact` holds.
    pub const fn is(self, fact: Self) -> bool {
        self.0 & fact.0 != 0
    }

    /// Whether it still serves while it terminates: used where no endpoint is ready.
    pub const fn is_last_resort(self) -> bool {
        self.is(Self::SERVING) && !self.is(Self::STAYING) && !self.is(Self::READY)
    }
}

impl Slice {
    /// Keeps what a proxy on the node of `me` asks. Endpoints of another family than the slice's are left out.
    pub fn new(slice: &EndpointSlice, me: &Me) -> Self {
        let mut zones: Vec<&[Name]> = slice.endpoints.iter().map(|endpoint| endpoint.hint_zones.as_slice()).collect();
        zones.sort_unstable();
        zones.dedup();
        let members = slice.endpoints.iter().filter(|endpoint| Family::of(&endpoint.address) == slice.family);
        let mut members: Vec<_> = members
            .map(|endpoint| {
                let zones = zones.binary_search(&endpoint.hint_zones.as_slice()).unwrap_or_default();
                // More than 65,535 different hints would need as many endpoints in one slice: the API allows a thousand.
                let zones = u16::try_from(zones).unwrap_or(u16::MAX);
                Member { address: endpoint.address, is: Is::new(endpoint, &me.node), zones }
            })
            .collect();
        members.sort_unstable();
        Self {
            name: slice.name.name.clone(),
            family: slice.family,
            ports: slice.ports.iter().filter(|port| port.port != 0).cloned().collect(),
            members: members.into(),
            zones: zones.into_iter().map(Box::from).collect(),
        }
    }

    /// The zones that a member is reserved for (`hints.forZones`).
    pub fn zones(&self, member: &Member) -> &[Name] {
        self.zones.get(usize::from(member.zones)).map_or(&[], |zones| zones)
    }
}

#[cfg(test)]
mod tests {
    use podwire_testkit::build::{endpoint, ip, slice};

    use super::*;

    #[test]
    fn an_endpoint_takes_twenty_bytes() {
        assert_eq!(size_of::<Member>(), 20);
    }

    #[test]
    fn the_order_of_endpoints_and_what_no_plan_asks_for_make_no_difference() {
        let me = Me { node: "node1".into(), ..Me::default() };
        let mut one = slice("web", 80, &["10.244.0.2@node1", "10.244.1.2@node2"]);
        let kept = Slice::new(&one, &me);
        one.endpoints.reverse();
        one.endpoints[0].hostname = Some("web-0".into());
        one.endpoints[0].node = Some("node3".into());
        one.endpoints[0].zone = Some("a".into());
        assert_eq!(Slice::new(&one, &me), kept);
        one.endpoints[0].hint_zones.push("a".into());
        assert_ne!(Slice::new(&one, &me), kept);
    }

    #[test]
    fn what_cannot_be_an_endpoint_is_left_out() {
        let mut one = slice("web", 0, &["10.244.0.2"]);
        one.endpoints.push(endpoint("fd00::1"));
        let kept = Slice::new(&one, &Me::default());
        assert!(kept.ports.is_empty());
        assert_eq!(kept.members.iter().map(|member| member.address).collect::<Vec<_>>(), [ip("10.244.0.2")]);
    }
}
