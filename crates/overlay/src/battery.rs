//! What every backend must do. Each test iterates [`BACKENDS`]: a new line there inherits them all.

use std::collections::BTreeMap;

use podwire_kernel::route::{Address, FakeRoute, LinkChange, Route};
use podwire_model::{Lease, Name};
use proptest::prelude::*;

use crate::{
    Overlay,
    backend::{BACKENDS, Backend, configure},
    kernel::Devices,
    plan::{self, Entry, Key, Site, Uplink},
};

fn backends() -> impl Iterator<Item = Box<dyn Backend>> {
    BACKENDS.iter().map(|kind| backend(kind.name))
}

fn backend(name: &str) -> Box<dyn Backend> {
    configure(serde_json::json!({ "Type": name }).as_object().cloned()).unwrap()
}

/// Node `n` of the cluster 10.244.0.0/16 on the network 172.25.0.0/16.
fn site(n: u8) -> Site {
    let address = [172, 25, 2, n].into();
    Site {
        node: format!("node{n}").into(),
        network: "10.244.0.0/16".parse().unwrap(),
        subnet: format!("10.244.{n}.0/24").parse().unwrap(),
        uplink: Uplink { name: "eth0".into(), index: 2, mtu: 1500, address },
        public_ip: address,
        published: None,
    }
}

fn lease(backend: &dyn Backend, n: u8) -> Lease {
    site(n).lease(backend)
}

/// A namespace with the uplink that [`site`] speaks of.
fn namespace(n: u8) -> FakeRoute {
    let mut kernel = FakeRoute::new();
    let index = kernel.add_device("eth0");
    assert_eq!(index, site(n).uplink.index);
    kernel.change_link(index, &[LinkChange::Up(true)]).unwrap();
    kernel.add_address(&Address::new(index, format!("172.25.2.{n}/16").parse::<ipnet::IpNet>().unwrap())).unwrap();
    kernel
}

fn held(kernel: &mut dyn Route, site: &Site) -> BTreeMap<Key, Entry> {
    let (_, entries) = Devices::dump(kernel, site, |_| true).unwrap();
    let count = entries.len();
    let map: BTreeMap<_, _> = entries.into_iter().map(|entry| (entry.key(), entry)).collect();
    assert_eq!(map.len(), count, "the kernel holds an object twice");
    map
}

/// Applies until the kernel holds what it should; bounded.
fn settle(overlay: &mut Overlay, kernel: &mut dyn Route) -> usize {
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
    for backend in backends() {
        let peers: Vec<_> = (2..40).map(|n| lease(backend.as_ref(), n)).collect();
        let plan = plan::whole(backend.as_ref(), &site(1), &peers);
        let mut overlay = Overlay::new(backend, site(1)).unwrap();
        let mut kernel = namespace(1);
        assert!(overlay.set_peers(peers).is_empty());
        assert_eq!(settle(&mut overlay, &mut kernel), plan.len());
        assert_eq!(held(&mut kernel, &site(1)), plan);
        let before = kernel.operations();
        assert_eq!(overlay.apply(&mut kernel).unwrap().done, 0);
        assert_eq!(kernel.operations(), before, "a settled overlay asks the kernel nothing");
    }
}

#[test]
fn a_restart_changes_nothing_and_a_change_costs_what_it_is() {
    for backend in backends() {
        let mut kernel = namespace(1);
        let peers: Vec<_> = (2..40).map(|n| lease(backend.as_ref(), n)).collect();
        let changed = Lease { public_ip: [172, 25, 9, 9].into(), ..peers[3].clone() };
        let mut first = Overlay::new(backend, site(1)).unwrap();
        first.set_peers(peers.clone());
        settle(&mut first, &mut kernel);

        let backend = self::backend(&changed.backend);
        let mut second = Overlay::new(backend, Site { published: Some(first.lease()), ..site(1) }).unwrap();
        second.set_peers(peers);
        assert_eq!(settle(&mut second, &mut kernel), 0, "a restart");

        second.set_peer(&changed).unwrap();
        let before = kernel.operations();
        settle(&mut second, &mut kernel);
        assert!(kernel.operations() - before <= 6, "one peer's change costs a few operations");
    }
}

#[test]
fn what_an_earlier_run_left_is_removed() {
    for backend in backends() {
        let mut kernel = namespace(1);
        let all: Vec<_> = (2..9).map(|n| lease(backend.as_ref(), n)).collect();
        let left = plan::whole(backend.as_ref(), &site(1), &all[..3]);
        let mut overlay = Overlay::new(backend, site(1)).unwrap();
        overlay.set_peers(all.clone());
        settle(&mut overlay, &mut kernel);

        let backend = self::backend(&all[0].backend);
        let mut later = Overlay::new(backend, site(1)).unwrap();
        later.set_peers(all[..3].to_vec());
        settle(&mut later, &mut kernel);
        assert_eq!(held(&mut kernel, &site(1)), left);
    }
}

#[test]
fn a_kernel_that_fails_a_tenth_of_the_time_ends_up_the_same() {
    for backend in backends() {
        let peers: Vec<_> = (2..60).map(|n| lease(backend.as_ref(), n)).collect();
        let plan = plan::whole(backend.as_ref(), &site(1), &peers);
        let gone = plan::whole(backend.as_ref(), &site(1), &peers[..5]);
        let mut kernel = namespace(1);
        kernel.fail_every(10);
        let mut overlay = Overlay::new(backend, site(1)).unwrap();
        overlay.set_peers(peers.clone());
        settle(&mut overlay, &mut kernel);
        kernel.fail_every(0);
        assert_eq!(held(&mut kernel, &site(1)), plan);
        kernel.fail_every(10);
        overlay.set_peers(peers[..5].to_vec());
        settle(&mut overlay, &mut kernel);
        kernel.fail_every(0);
        assert_eq!(held(&mut kernel, &site(1)), gone);
    }
}

#[test]
fn an_unusable_peer_is_left_out_and_named() {
    for backend in backends() {
        let good = lease(backend.as_ref(), 2);
        let node = |name: &str| Name::from(name);
        let rows = [
            (Lease { node: node("a"), backend: "carrier-pigeon".into(), ..good.clone() }, "carrier-pigeon"),
            (Lease { node: node("b"), subnet: "10.1.0.0/24".parse().unwrap(), ..good.clone() }, "not part of Network"),
            (
                Lease { node: node("c"), subnet: "10.244.1.0/25".parse().unwrap(), ..good.clone() },
                "overlaps this node's",
            ),
            (
                Lease { node: node("d"), subnet: "10.244.0.0/16".parse().unwrap(), ..good.clone() },
                "overlaps this node's",
            ),
        ];
        let plan = plan::whole(backend.as_ref(), &site(1), [&good]);
        let mut overlay = Overlay::new(backend, site(1)).unwrap();
        let errors = overlay.set_peers(rows.iter().map(|(lease, _)| lease.clone()).chain([good]));
        let messages: Vec<_> = errors.iter().map(ToString::to_string).collect();
        for ((lease, expected), message) in rows.iter().zip(&messages) {
            assert!(message.contains(expected) && message.contains(&*lease.node), "{message}\n want: {expected}");
        }
        let mut kernel = namespace(1);
        settle(&mut overlay, &mut kernel);
        assert_eq!(held(&mut kernel, &site(1)), plan);
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

fn taking_the_place_of(backend: &dyn Backend, n: u8, other: u8) -> Lease {
    Lease { node: format!("node{n}").into(), public_ip: [172, 25, 2, n].into(), ..lease(backend, other) }
}

fn replay<'a>(overlay: &mut Overlay, backend: &dyn Backend, changes: impl IntoIterator<Item = &'a Change>) {
    for change in changes {
        match *change {
            Change::Set(n, other) => overlay.set_peer(&taking_the_place_of(backend, n, other)).unwrap(),
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
        for (backend, own) in backends().zip(backends()) {
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
            let leases: Vec<_> = last
                .iter()
                .filter_map(|(n, state)| state.map(|other| taking_the_place_of(backend.as_ref(), *n, other)))
                .collect();
            let plan = plan::whole(backend.as_ref(), &site(1), &leases);

            let mut overlay = Overlay::new(own, site(1)).unwrap();
            let mut kernel = namespace(1);
            // As it came, applied after each change.
            for change in &changes {
                replay(&mut overlay, backend.as_ref(), [change]);
                settle(&mut overlay, &mut kernel);
            }
            settle(&mut overlay, &mut kernel);
            prop_assert_eq!(&held(&mut kernel, &site(1)), &plan);
            // Emptied, then backwards and squashed.
            overlay.set_peers([]);
            settle(&mut overlay, &mut kernel);
            prop_assert_eq!(held(&mut kernel, &site(1)).len(), backend.local(&site(1)).len());
            replay(&mut overlay, backend.as_ref(), finals.iter().rev());
            settle(&mut overlay, &mut kernel);
            prop_assert_eq!(&held(&mut kernel, &site(1)), &plan);
            // After noise, by a snapshot.
            replay(&mut overlay, backend.as_ref(), &noise);
            overlay.set_peers(leases);
            settle(&mut overlay, &mut kernel);
            prop_assert_eq!(&held(&mut kernel, &site(1)), &plan);
        }
    }
}
