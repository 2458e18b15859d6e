//! What depends on the underlay's routes follows them.

use podwire_kernel::route::{Change, RouteEntry};

use super::*;

/// What should be there when node 2 is on the link and node 3 behind `router`, if any way leads to it at all.
fn expected(case: &Case, leases: &[Lease], far: Option<Path>) -> BTreeMap<Key, Entry> {
    let near = Path { device: "eth0".into(), gateway: None };
    let paths = [Some(near), far];
    let peers = leases.iter().zip(&paths).map(|(lease, path)| Peer { lease, path: path.as_ref() });
    in_kernel(plan::whole(case.backend.as_ref(), &case.site(1), peers))
}

#[test]
fn a_peer_is_decided_again_when_the_way_to_it_changes() {
    for case in cases().filter(|case| case.backend.needs_path()) {
        let mut kernel = case.namespace();
        let mut overlay = case.overlay();
        let elsewhere: IpAddr =
            if case.family == Family::V4 { [192, 0, 2, 3].into() } else { [0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 3].into() };
        let leases = [case.lease(2), Lease { public_ip: elsewhere, ..case.lease(3) }];
        assert!(overlay.set_peers(leases.clone()).is_empty());
        let net = IpNet::new(elsewhere, if elsewhere.is_ipv4() { 24 } else { 64 }).unwrap().trunc();
        let router = case.address(2, 254);
        let by_router = RouteEntry::via(net, router, 2);
        let on_link = RouteEntry::on_link(net, 2);
        let path = |gateway| Some(Path { device: "eth0".into(), gateway });
        let mut step = |far: Option<Path>, change: Option<Change>, overlay: &mut Overlay| {
            match &change {
                Some(Change::Route(route)) => kernel.replace_route(route).unwrap(),
                Some(Change::Removed(Removed::Route(route))) => kernel.delete_route(route).unwrap(),
                _ => {}
            }
            assert!(change.is_none_or(|change| overlay.changed(&change).work));
            let told = overlay.apply(&mut kernel).unwrap().refused.len();
            assert!(overlay.is_settled());
            assert_eq!(case.held(&mut kernel), expected(&case, &leases, far));
            told
        };
        let refuses_far = usize::from(case.backend.name() == "host-gw");
        assert_eq!(step(None, None, &mut overlay), refuses_far);
        assert_eq!(step(path(Some(router)), Some(Change::Route(by_router)), &mut overlay), refuses_far);
        assert_eq!(step(path(None), Some(Change::Route(on_link.clone())), &mut overlay), 0);
        assert_eq!(step(None, Some(Change::Removed(Removed::Route(on_link))), &mut overlay), refuses_far);
    }
}

/// A range that is this node's own, for example, would take its pods' packets to the other node.
#[test]
fn a_peer_that_cannot_be_used_stays_out_when_paths_change() {
    for case in cases().filter(|case| case.backend.needs_path()) {
        let mut kernel = case.namespace();
        let mut overlay = case.overlay();
        let thief = Lease { subnet: case.site(1).subnet, ..case.lease(3) };
        assert_eq!(overlay.set_peers([case.lease(2), thief]).len(), 1);
        settle(&mut overlay, &mut kernel);
        let before = case.held(&mut kernel);
        overlay.changed(&Change::Removed(Removed::Anything));
        settle(&mut overlay, &mut kernel);
        assert_eq!(case.held(&mut kernel), before);
        assert!(!before.contains_key(&Key::Route(case.site(1).subnet)), "{before:?}");
    }
}

#[test]
fn routes_that_do_not_matter_are_not_looked_at() {
    for case in cases() {
        let mut kernel = case.namespace();
        let mut overlay = case.overlay();
        overlay.set_peers(case.leases(2..9));
        settle(&mut overlay, &mut kernel);
        let pod = case.subnet(1);
        let elsewhere: IpNet =
            if case.family == Family::V4 { "198.51.100.0/24" } else { "2001:db8:ffff::/64" }.parse().unwrap();
        for net in [pod, elsewhere] {
            let route = RouteEntry::on_link(net, 77);
            assert_eq!(overlay.changed(&Change::Route(route.clone())), Effect::default(), "{net}");
            assert_eq!(overlay.changed(&Change::Removed(Removed::Route(route))), Effect::default(), "{net}");
        }
        assert_eq!(overlay.changed(&Change::Removed(Removed::LinkDown(77))), Effect::default());
    }
}
