//! What every backend must do. Each test iterates [`cases`], which begin with [`BACKENDS`]: a new line there inherits
//! them all.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use podwire_kernel::{
    route::{Address, FakeRoute, LinkChange, Removed, Route, RouteFilter},
    wireguard::PrivateKey,
};
use podwire_model::{Family, Lease, Name};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    Effect, Kernel, Overlay,
    backend::{BACKENDS, Backend, configure},
    kernel::Devices,
    plan::{self, Entry, Key, Path, Peer, Site, Tunnel, Uplink},
};

mod paths;
mod repair;
mod switch;

/// A backend as configured, on node 1 of the cluster 10.244.0.0/16 on the network 172.25.0.0/16, or of fd00:10:244::/48 on
/// 2001:db8:25::/48.
struct Case {
    conf: Value,
    family: Family,
    backend: Box<dyn Backend>,
}

/// Every backend with its defaults, and what else makes a difference; for each family that it can carry.
fn cases() -> impl Iterator<Item = Case> {
    let more = [
        json!({ "Type": "vxlan", "DirectRouting": true }),
        json!({ "Type": "vxlan", "VNI": 7, "Port": 4789, "GBP": true, "Learning": true, "MTU": 1400, "MacPrefix": "0E-2A" }),
        json!({ "Type": "ipip", "DirectRouting": true }),
    ];
    let confs = BACKENDS.iter().map(|kind| json!({ "Type": kind.name })).chain(more);
    let all = confs.flat_map(|conf| [Family::V4, Family::V6].map(|family| case(&conf, family)));
    all.filter(|case| case.backend.check(&case.site(1)).is_ok())
}

fn case(conf: &Value, family: Family) -> Case {
    Case { backend: fresh(conf, 1), conf: conf.clone(), family }
}

/// As node `n` configures it.
fn fresh(conf: &Value, n: u8) -> Box<dyn Backend> {
    configure(conf.as_object().cloned(), &|| Ok(PrivateKey::from_bytes([n; 32]))).unwrap()
}

impl Case {
    /// The address of host `host` on the network of number `net`; 2 is that of the nodes.
    fn address(&self, net: u8, host: u8) -> IpAddr {
        match self.family {
            Family::V4 => [172, 25, net, host].into(),
            Family::V6 => [0x2001, 0xdb8, 0x25, u16::from(net), 0, 0, 0, u16::from(host)].into(),
        }
    }

    /// The pod range of node `n`.
    fn subnet(&self, n: u8) -> IpNet {
        let text = match self.family {
            Family::V4 => format!("10.244.{n}.0/24"),
            Family::V6 => format!("fd00:10:244:{n:x}::/64"),
        };
        text.parse().unwrap()
    }

    /// Node `n`.
    fn site(&self, n: u8) -> Site {
        let address = self.address(2, n);
        Site {
            node: format!("node{n}").into(),
            network: self.network(),
            subnet: self.subnet(n),
            uplink: Uplink { name: "eth0".into(), index: 2, mtu: 1500, address },
            public_ip: address,
            published: None,
            prepared: None,
        }
    }

    fn network(&self) -> IpNet {
        match self.family {
            Family::V4 => "10.244.0.0/16".parse().unwrap(),
            Family::V6 => "fd00:10:244::/48".parse().unwrap(),
        }
    }

    fn overlay(&self) -> Overlay {
        Overlay::new(fresh(&self.conf, 1), self.site(1)).unwrap()
    }

    fn lease(&self, n: u8) -> Lease {
        self.site(n).lease(fresh(&self.conf, n).as_ref())
    }

    fn leases(&self, nodes: std::ops::Range<u8>) -> Vec<Lease> {
        nodes.map(|n| self.lease(n)).collect()
    }

    /// All that should be there. All nodes are on one network.
    fn whole<'a>(&self, leases: impl IntoIterator<Item = &'a Lease>) -> BTreeMap<Key, Entry> {
        let path = self.backend.needs_path().then(|| Path { device: "eth0".into(), gateway: None });
        let peers: Vec<_> = leases.into_iter().map(|lease| Peer { lease, path: path.as_ref() }).collect();
        plan::whole(self.backend.as_ref(), &self.site(1), peers)
    }

    /// What of it the kernel should hold.
    fn plan<'a>(&self, leases: impl IntoIterator<Item = &'a Lease>) -> BTreeMap<Key, Entry> {
        in_kernel(self.whole(leases))
    }

    fn tunnels(&self) -> Vec<Tunnel> {
        self.tunnels_at(&self.site(1))
    }

    fn tunnels_at(&self, site: &Site) -> Vec<Tunnel> {
        let local = self.backend.local(site).into_iter();
        local.filter_map(|entry| if let Entry::Tunnel(tunnel) = entry { Some(tunnel) } else { None }).collect()
    }

    /// A namespace with the uplink that [`Case::site`] speaks of.
    fn namespace(&self) -> FakeRoute {
        let mut kernel = FakeRoute::new();
        let index = kernel.add_device("eth0");
        let uplink = self.site(1).uplink;
        assert_eq!(index, uplink.index);
        kernel.change_link(index, &[LinkChange::Up(true)]).unwrap();
        let length = if uplink.address.is_ipv4() { 16 } else { 48 };
        kernel.add_address(&Address::new(index, IpNet::new(uplink.address, length).unwrap())).unwrap();
        kernel
    }

    fn held(&self, kernel: &mut dyn Kernel) -> BTreeMap<Key, Entry> {
        let (_, entries) = Devices::dump(kernel, &self.site(1), &self.tunnels()).unwrap();
        let count = entries.len();
        let map: BTreeMap<_, _> = entries.into_iter().map(|entry| (entry.key(), entry)).collect();
        assert_eq!(map.len(), count, "the kernel holds an object twice");
        map
    }
}

fn in_kernel(mut plan: BTreeMap<Key, Entry>) -> BTreeMap<Key, Entry> {
    plan.retain(|key, _| !key.is_user_space());
    plan
}

/// Applies until all is as it should be; bounded.
fn settle(overlay: &mut Overlay, kernel: &mut FakeRoute) -> usize {
    let mut done = 0;
    for _ in 0..100 {
        done += overlay.apply(kernel).map_or(0, |outcome| outcome.done);
        if overlay.is_settled() {
            return done;
        }
    }
    panic!("not settled after 100 attempts");
}

#[test]
fn the_kernel_ends_up_with_the_plan_and_is_then_left_alone() {
    for case in cases() {
        let peers = case.leases(2..40);
        let mut overlay = case.overlay();
        let mut kernel = case.namespace();
        assert!(overlay.set_peers(peers.clone()).is_empty());
        assert_eq!(settle(&mut overlay, &mut kernel), case.whole(&peers).len());
        assert_eq!(case.held(&mut kernel), case.plan(&peers));
        let before = kernel.operations();
        assert_eq!(overlay.apply(&mut kernel).unwrap().done, 0);
        assert_eq!(kernel.operations(), before, "a settled overlay asks the kernel nothing");
    }
}

#[test]
fn a_restart_changes_nothing_and_a_change_costs_what_it_is() {
    for case in cases() {
        let mut kernel = case.namespace();
        let peers = case.leases(2..40);
        let mut first = case.overlay();
        first.set_peers(peers.clone());
        settle(&mut first, &mut kernel);
        let held = case.held(&mut kernel);

        let published = Site { published: Some(first.lease()), ..case.site(1) };
        let mut second = Overlay::new(fresh(&case.conf, 1), published).unwrap();
        second.set_peers(peers.clone());
        let in_user_space = case.whole(&peers).len() - case.plan(&peers).len();
        assert_eq!(settle(&mut second, &mut kernel), in_user_space, "a restart");
        assert_eq!(case.held(&mut kernel), held);

        second.set_peer(&Lease { public_ip: case.address(9, 9), ..peers[3].clone() }).unwrap();
        let before = kernel.operations();
        settle(&mut second, &mut kernel);
        assert!(kernel.operations() - before <= 6, "one peer's change costs a few operations");
    }
}

#[test]
fn what_an_earlier_run_left_is_removed() {
    for case in cases() {
        let mut kernel = case.namespace();
        let all = case.leases(2..9);
        let mut overlay = case.overlay();
        overlay.set_peers(all.clone());
        settle(&mut overlay, &mut kernel);

        let mut later = case.overlay();
        later.set_peers(all[..3].to_vec());
        settle(&mut later, &mut kernel);
        assert_eq!(case.held(&mut kernel), case.plan(&all[..3]));
    }
}

#[test]
fn a_kernel_that_fails_a_tenth_of_the_time_ends_up_the_same() {
    for case in cases() {
        let peers = case.leases(2..60);
        let mut kernel = case.namespace();
        let mut overlay = case.overlay();
        for wanted in [&peers[..], &peers[..5]] {
            kernel.fail_every(10);
            overlay.set_peers(wanted.to_vec());
            settle(&mut overlay, &mut kernel);
            kernel.fail_every(0);
            assert_eq!(case.held(&mut kernel), case.plan(wanted));
        }
    }
}

#[test]
fn an_unusable_peer_is_left_out_and_named() {
    for case in cases() {
        let good = case.lease(2);
        let node = |name: &str| Name::from(name);
        let outside = if case.family == Family::V4 { "10.1.0.0/24" } else { "fd01::/64" };
        let half = IpNet::new(case.subnet(1).addr(), case.subnet(1).prefix_len() + 1).unwrap();
        let rows = [
            (Lease { node: node("a"), backend: "carrier-pigeon".into(), ..good.clone() }, "carrier-pigeon"),
            (Lease { node: node("b"), subnet: outside.parse().unwrap(), ..good.clone() }, "not part of Network"),
            (Lease { node: node("c"), subnet: half, ..good.clone() }, "overlaps this node's"),
            (Lease { node: node("d"), subnet: case.network(), ..good.clone() }, "overlaps this node's"),
            (Lease { node: node("e"), public_ip: case.subnet(7).addr(), ..good.clone() }, "is part of Network"),
            (Lease { node: node("f"), public_ip: case.address(2, 1), ..good.clone() }, "this node's own"),
        ];
        let mut overlay = case.overlay();
        let errors = overlay.set_peers(rows.iter().map(|(lease, _)| lease.clone()).chain([good.clone()]));
        let messages: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(messages.len(), rows.len(), "{messages:?}");
        for ((lease, expected), message) in rows.iter().zip(&messages) {
            assert!(message.contains(expected) && message.contains(&*lease.node), "{message}\n want: {expected}");
        }
        let mut kernel = case.namespace();
        settle(&mut overlay, &mut kernel);
        assert_eq!((case.held(&mut kernel), overlay.peer_count()), (case.plan([&good]), 1));
    }
}

/// One change of the cluster. Few nodes and few ranges, so that they collide.
#[derive(Debug, Clone)]
enum Change {
    /// This node has the range and the identity of that one.
    Set(u8, u8),
    Remove(u8),
}

fn change() -> impl Strategy<Value = Change> {
    let set = (2..7_u8, 2..7_u8).prop_map(|(n, other)| Change::Set(n, other));
    prop_oneof![3 => set, 1 => (2..7_u8).prop_map(Change::Remove)]
}

fn taking_the_place_of(case: &Case, n: u8, other: u8) -> Lease {
    Lease { node: format!("node{n}").into(), public_ip: case.address(2, n), ..case.lease(other) }
}

fn replay<'a>(overlay: &mut Overlay, case: &Case, changes: impl IntoIterator<Item = &'a Change>) {
    for change in changes {
        match *change {
            Change::Set(n, other) => overlay.set_peer(&taking_the_place_of(case, n, other)).unwrap(),
            Change::Remove(n) => overlay.remove_peer(&format!("node{n}").into()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The end state is that of the last word on each node: whatever came before, in whatever order, applied or not.
    #[test]
    fn the_road_does_not_matter(
        changes in prop::collection::vec(change(), 0..30),
        noise in prop::collection::vec(change(), 0..10),
    ) {
        for case in cases() {
            let mut last = BTreeMap::new();
            for change in &changes {
                match *change {
                    Change::Set(n, other) => last.insert(n, Some(other)),
                    Change::Remove(n) => last.insert(n, None),
                };
            }
            let finals: Vec<_> = last
                .iter()
                .map(|(n, state)| state.map_or(Change::Remove(*n), |other| Change::Set(*n, other)))
                .collect();
            let leases: Vec<_> =
                last.iter().filter_map(|(n, state)| Some(taking_the_place_of(&case, *n, (*state)?))).collect();
            let plan = case.plan(&leases);

            let mut overlay = case.overlay();
            let mut kernel = case.namespace();
            // As it came, applied after each change.
            for change in &changes {
                replay(&mut overlay, &case, [change]);
                settle(&mut overlay, &mut kernel);
            }
            settle(&mut overlay, &mut kernel);
            prop_assert_eq!(&case.held(&mut kernel), &plan);
            prop_assert_eq!(overlay.peer_count(), leases.len());
            // Emptied, then backwards and squashed.
            overlay.set_peers([]);
            settle(&mut overlay, &mut kernel);
            prop_assert_eq!((case.held(&mut kernel), overlay.peer_count()), (case.plan([]), 0));
            replay(&mut overlay, &case, finals.iter().rev());
            settle(&mut overlay, &mut kernel);
            prop_assert_eq!(&case.held(&mut kernel), &plan);
            // After noise, by a snapshot.
            replay(&mut overlay, &case, &noise);
            overlay.set_peers(leases);
            settle(&mut overlay, &mut kernel);
            prop_assert_eq!(&case.held(&mut kernel), &plan);
        }
    }
}
