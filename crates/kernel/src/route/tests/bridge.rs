//! Bridges, their ports and VLANs; deletions that do not wait.

use super::*;

/// A bridge with the port `a`, whose other end is `b`.
fn bridge_with_a_port(route: &mut dyn Route, kind: NewLinkKind<'_>) -> Result<(u32, u32)> {
    let bridge = route.create_link(&NewLink { up: true, ..NewLink::new("br0", kind) })?.index;
    let (a, _) = pair(route);
    route.change_link(a, &[LinkChange::Master(Some(bridge))])?;
    Ok((bridge, a))
}

#[test]
fn an_early_deletion_ends_with_the_link_gone() {
    in_new_netns(|| {
        let mut route = RouteSocket::open().unwrap();
        let bridge =
            route.create_link(&NewLink { up: true, ..NewLink::new("br0", NewLinkKind::Bridge) }).unwrap().index;
        for round in 0..5 {
            let (a, b) = pair(&mut route);
            route.change_link(a, &[LinkChange::Master(Some(bridge))]).unwrap();
            route.delete_link_early(if round % 2 == 0 { a } else { b }).unwrap();
            assert_eq!((route.link("a").unwrap(), route.link("b").unwrap()), (None, None));
            let left = route.routes(&RouteFilter::ALL).unwrap();
            assert!(left.iter().all(|route| route.device != Some(a) && route.device != Some(b)), "{left:?}");
            assert!(route.addresses(None).unwrap().iter().all(|address| ![a, b].contains(&address.device)));
        }
        assert_eq!(errno(route.delete_link_early(4711)), libc::ENODEV);
        let lo = route.link("lo").unwrap().unwrap();
        assert_eq!(errno(route.delete_link_early(lo.index)), libc::EOPNOTSUPP);
        route.delete_link(bridge).unwrap();
    });
}

#[test]
fn a_link_takes_every_frame_when_told_to() {
    on_both(|route| {
        let (bridge, a) = bridge_with_a_port(route, NewLinkKind::Bridge).unwrap();
        assert!(!route.link("br0").unwrap().unwrap().promiscuous);
        route.change_link(bridge, &[LinkChange::Promiscuous(true), LinkChange::Up(true)]).unwrap();
        let link = route.link("br0").unwrap().unwrap();
        assert!(link.promiscuous && link.up);
        assert!(!route.link_by_index(a).unwrap().unwrap().promiscuous, "a port is, but nobody said so");
        route.change_link(bridge, &[LinkChange::Promiscuous(false)]).unwrap();
        assert!(!route.link("br0").unwrap().unwrap().promiscuous);
    });
}

/// The kernel of the netns tier does not tell VLANs apart; the vm tier's does.
#[test]
fn a_port_is_in_the_vlans_that_it_is_put_into() {
    on_both(|route| {
        let (bridge, a) = match bridge_with_a_port(route, NewLinkKind::VlanBridge) {
            Err(error) if is_missing(&error) => return,
            made => made.unwrap(),
        };
        let seen = route.link("br0").unwrap().unwrap();
        assert_eq!((seen.kind, seen.vlans), (LinkKind::Bridge, Some(BridgeVlans { filtering: true, default: 1 })));
        let of_port = |route: &mut dyn Route| -> Vec<PortVlans> {
            let all = route.port_vlans().unwrap();
            all.into_iter().filter(|vlans| vlans.device == a).collect()
        };
        assert_eq!(of_port(route), [PortVlans::native(a, 1)]);
        route.delete_port_vlans(&PortVlans::native(a, 1)).unwrap();
        route.delete_port_vlans(&PortVlans::tagged(a, 77)).unwrap();
        let trunk = PortVlans { device: a, first: 200, last: 300, native: false };
        for vlans in [PortVlans::native(a, 100), trunk, trunk, PortVlans::tagged(a, 4094)] {
            route.add_port_vlans(&vlans).unwrap();
        }
        assert_eq!(of_port(route), [PortVlans::native(a, 100), trunk, PortVlans::tagged(a, 4094)]);
        route.delete_port_vlans(&PortVlans { first: 201, ..trunk }).unwrap();
        assert_eq!(of_port(route), [PortVlans::native(a, 100), PortVlans::tagged(a, 200), PortVlans::tagged(a, 4094)]);

        assert_eq!(errno(route.add_port_vlans(&PortVlans::tagged(a, 4095))), libc::EINVAL);
        assert_eq!(errno(route.add_port_vlans(&PortVlans::tagged(4711, 2))), libc::ENODEV);
        let b = route.link("b").unwrap().unwrap().index;
        assert_eq!(errno(route.add_port_vlans(&PortVlans::tagged(b, 2))), libc::EOPNOTSUPP);
        route.change_link(a, &[LinkChange::Master(None)]).unwrap();
        assert_eq!(of_port(route), []);
        route.delete_link(bridge).unwrap();
    });
}

proptest! {
    #[test]
    fn vlans_are_read_from_any_bytes_and_as_they_are_written(bytes in proptest::collection::vec(any::<u8>(), 0..100),
        first in 1_u16..4094, more in 0_u16..10) {
        _ = wire::bridge::read_vlans(&bytes);
        _ = wire::bridge::read_bridge(&bytes);
        let vlans = PortVlans { device: 3, first, last: (first + more).min(4094), native: false };
        prop_assert_eq!(wire::bridge::read_vlans(&wire::bridge::vlans(&vlans).0), Some(vec![vlans]));
    }
}
