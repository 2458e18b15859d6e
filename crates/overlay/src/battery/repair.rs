//! What others remove or change is put right, and counted.

use podwire_kernel::route::{Change, FdbEntry, Link, LinkKind, Neighbour, NewLink, NewLinkKind, RouteEntry};

use super::*;

/// Does to an entry what someone may do by hand, and says what the kernel tells of it. `None` for what is not told.
fn removed_by_hand(kernel: &mut FakeRoute, entry: &Entry) -> Option<Removed> {
    let index = |kernel: &mut FakeRoute, device: &Name| kernel.link(device).unwrap().unwrap().index;
    Some(match entry {
        Entry::Tunnel(tunnel) => {
            let index = index(kernel, &tunnel.device);
            kernel.delete_link(index).unwrap();
            Removed::Link(index)
        }
        Entry::Address { device, address } => {
            let address = Address::new(index(kernel, device), *address);
            kernel.delete_address(&address).unwrap();
            Removed::Address(address)
        }
        Entry::Neighbour { device, address, mac } => {
            let neighbour = Neighbour::permanent(index(kernel, device), *address, *mac);
            kernel.delete_neighbour(&neighbour).unwrap();
            Removed::Neighbour(neighbour)
        }
        Entry::Fdb { device, mac, remote } => {
            let fdb = FdbEntry::remote(index(kernel, device), *mac, *remote);
            kernel.delete_fdb(&fdb).unwrap();
            Removed::Fdb(fdb)
        }
        Entry::Route { destination, .. } => {
            let routes = kernel.routes(&RouteFilter::MAIN).unwrap();
            let route = routes.into_iter().find(|route| route.destination == *destination).unwrap();
            kernel.delete_route(&route).unwrap();
            Removed::Route(route)
        }
        _ => return None,
    })
}

#[test]
fn each_entry_that_is_removed_by_hand_comes_back_and_is_counted() {
    for case in cases() {
        let mut kernel = case.namespace();
        let peers = case.leases(2..5);
        let plan = case.plan(&peers);
        let mut overlay = case.overlay();
        overlay.set_peers(peers);
        settle(&mut overlay, &mut kernel);
        for (key, entry) in &plan {
            let Some(removed) = removed_by_hand(&mut kernel, entry) else { continue };
            assert!(overlay.changed(&Change::Removed(removed)).work, "{key:?}");
            let outcome = overlay.apply(&mut kernel).unwrap();
            assert!(overlay.is_settled() && outcome.repaired.contains(key), "{key:?}: {outcome:?}");
            assert_eq!(case.held(&mut kernel), plan, "{key:?}");
        }
        // Taken down, which takes its routes along in silence.
        for tunnel in case.tunnels() {
            let link = kernel.link(&tunnel.device).unwrap().unwrap();
            kernel.change_link(link.index, &[LinkChange::Up(false)]).unwrap();
            assert!(overlay.changed(&Change::Removed(Removed::LinkDown(link.index))).work);
            assert!(!overlay.apply(&mut kernel).unwrap().repaired.is_empty());
            assert_eq!(case.held(&mut kernel), plan);
        }
        let before = kernel.operations();
        assert_eq!(overlay.apply(&mut kernel).unwrap().repaired, []);
        assert_eq!(kernel.operations(), before);
    }
}

/// A device of the machine's own by which a peer was reached goes and comes back. The peer runs another backend by now, so
/// that what leads to it stays as it is, and nobody asks which way it is reached.
#[test]
fn an_entry_whose_device_was_missing_is_made_when_the_device_is_there() {
    for case in cases().filter(|case| case.backend.name() == "host-gw") {
        let mut kernel = case.namespace();
        let (near, far): (IpNet, IpAddr) = match case.family {
            Family::V4 => ("198.51.100.1/24".parse().unwrap(), [198, 51, 100, 2].into()),
            Family::V6 => ("2001:db8:ffff::1/64".parse().unwrap(), [0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 2].into()),
        };
        let plug_in = |kernel: &mut FakeRoute| {
            let new = NewLink { up: true, ..NewLink::new("eth1", NewLinkKind::Dummy) };
            let index = kernel.create_link(&new).unwrap().index;
            kernel.add_address(&Address::new(index, near)).unwrap();
            index
        };
        let first = plug_in(&mut kernel);
        let peer = Lease { public_ip: far, ..case.lease(2) };
        let mut overlay = case.overlay();
        overlay.set_peer(&peer).unwrap();
        settle(&mut overlay, &mut kernel);
        let held = case.held(&mut kernel);
        assert!(held.values().any(|entry| entry.device().is_some_and(|device| &**device == "eth1")), "{held:?}");
        overlay.set_peer(&Lease { backend: "vxlan".into(), ..peer }).unwrap_err();
        settle(&mut overlay, &mut kernel);

        kernel.delete_link(first).unwrap();
        assert!(overlay.changed(&Change::Removed(Removed::LinkDown(first))).work);
        assert!(overlay.apply(&mut kernel).unwrap().errors.is_empty() && !overlay.is_settled());
        let again = plug_in(&mut kernel);
        assert_ne!(again, first);
        let operations = kernel.operations();
        overlay.apply(&mut kernel).unwrap();
        assert_eq!(kernel.operations(), operations, "nobody has said that it is there");
        assert!(overlay.changed(&Change::Link(kernel.link("eth1").unwrap().unwrap())).work);
        settle(&mut overlay, &mut kernel);
        assert_eq!(case.held(&mut kernel), held);
    }
}

/// Makes an entry wrong, and says what the kernel tells of it.
fn changed_by_hand(kernel: &mut FakeRoute, case: &Case, entry: &Entry) -> Option<Change> {
    let index = |kernel: &mut FakeRoute, device: &Name| kernel.link(device).unwrap().unwrap().index;
    let wrong = podwire_kernel::route::Mac([2, 0, 0, 0, 0, 0x77]);
    Some(match entry {
        Entry::Tunnel(tunnel) => {
            let index = index(kernel, &tunnel.device);
            kernel.change_link(index, &[LinkChange::Mtu(1300)]).unwrap();
            Change::Link(kernel.link(&tunnel.device).unwrap().unwrap())
        }
        Entry::Neighbour { device, address, .. } => {
            let neighbour = Neighbour::permanent(index(kernel, device), *address, wrong);
            kernel.replace_neighbour(&neighbour).unwrap();
            Change::Neighbour(neighbour)
        }
        Entry::Fdb { device, mac, .. } => {
            let fdb = FdbEntry::remote(index(kernel, device), *mac, case.address(2, 99));
            kernel.replace_fdb(&fdb).unwrap();
            Change::Fdb(fdb)
        }
        Entry::Route { destination, .. } => {
            let route = RouteEntry::via(*destination, case.address(2, 99), 2);
            kernel.replace_route(&route).unwrap();
            Change::Route(route)
        }
        _ => return None,
    })
}

#[test]
fn each_entry_that_is_changed_by_hand_is_put_right_and_counted() {
    for case in cases() {
        let mut kernel = case.namespace();
        let peers = case.leases(2..5);
        let plan = case.plan(&peers);
        let mut overlay = case.overlay();
        overlay.set_peers(peers);
        settle(&mut overlay, &mut kernel);
        for (key, entry) in &plan {
            let Some(change) = changed_by_hand(&mut kernel, &case, entry) else { continue };
            assert!(overlay.changed(&change).work, "{key:?}");
            assert_eq!(overlay.apply(&mut kernel).unwrap().repaired, std::slice::from_ref(key));
            assert_eq!(case.held(&mut kernel), plan, "{key:?}");
        }
        // Told of what is as it should be, it does nothing.
        for tunnel in case.tunnels() {
            let link = kernel.link(&tunnel.device).unwrap().unwrap();
            assert_eq!(overlay.changed(&Change::Link(link)), Effect::default());
        }
        assert!(overlay.is_settled());
    }
}

#[test]
fn another_address_or_mtu_of_the_uplink_is_noticed_and_followed() {
    for case in cases() {
        let mut kernel = case.namespace();
        let peers = case.leases(2..5);
        let mut overlay = case.overlay();
        overlay.set_peers(peers.clone());
        settle(&mut overlay, &mut kernel);
        let site = case.site(1);
        let seen = |mtu: u32| {
            let kind = LinkKind::Other(String::new());
            let link = Link { kind, mtu, ..kernel_link() };
            Change::Link(link)
        };
        assert_eq!(overlay.changed(&seen(1500)), Effect::default());
        assert!(overlay.changed(&seen(1400)).uplink);
        let lost = Address::new(2, IpNet::from(site.uplink.address));
        assert!(overlay.changed(&Change::Removed(Removed::Address(lost))).uplink);

        let address = case.address(3, 1);
        kernel.add_address(&Address::new(2, IpNet::from(address))).unwrap();
        let moved = Site { uplink: Uplink { mtu: 1400, address, ..site.uplink.clone() }, public_ip: address, ..site };
        assert!(overlay.relocate(moved.clone()).unwrap().is_empty());
        settle(&mut overlay, &mut kernel);
        let path = case.backend.needs_path().then(|| Path { device: "eth0".into(), gateway: None });
        let peers = peers.iter().map(|lease| Peer { lease, path: path.as_ref() });
        let plan = in_kernel(plan::whole(case.backend.as_ref(), &moved, peers));
        let (_, found) = Devices::dump(&mut kernel, &moved, &case.tunnels_at(&moved)).unwrap();
        assert_eq!(found.into_iter().map(|entry| (entry.key(), entry)).collect::<BTreeMap<_, _>>(), plan);
        assert_eq!(overlay.lease().public_ip, address);
    }
}

fn kernel_link() -> Link {
    Link {
        mtu: 1500,
        ..FakeRoute::new().link("lo").unwrap().map(|lo| Link { index: 2, name: "eth0".into(), ..lo }).unwrap()
    }
}
