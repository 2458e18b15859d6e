//! One suite for both implementations: the kernel is the judge of the fake.

mod bridge;

use std::{net::IpAddr, os::fd::AsFd, process::Command};

use proptest::prelude::*;

use super::*;
use crate::{
    ns::{Kind, Namespace},
    test_support::in_new_netns,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> podwire_model::IpNet {
    text.parse().unwrap()
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> i32 {
    result.expect_err("the operation should be refused").errno().unwrap_or(-1)
}

/// Runs `suite` on the kernel, in a namespace of its own, and on the fake.
fn on_both(suite: fn(&mut dyn Route)) {
    suite(&mut FakeRoute::new());
    in_new_netns(|| {
        let mut kernel = RouteSocket::open().unwrap();
        let lo = kernel.link("lo").unwrap().unwrap();
        kernel.change_link(lo.index, &[LinkChange::Up(true)]).unwrap();
        suite(&mut kernel);
    });
}

fn veth<'a>(name: &'a str, peer: &'a str) -> NewLink<'a> {
    NewLink::new(name, NewLinkKind::Veth(Peer { name: peer, mac: None, mtu: None, netns: None }))
}

/// A veth pair `a`–`b`, both up, `a` with 10.1.0.1/24 and fd01::1/64.
fn pair(route: &mut dyn Route) -> (u32, u32) {
    let a = route.create_link(&veth("a", "b")).unwrap().index;
    let b = route.link("b").unwrap().unwrap().index;
    for index in [a, b] {
        route.change_link(index, &[LinkChange::Up(true)]).unwrap();
    }
    route.add_address(&Address::new(a, net("10.1.0.1/24"))).unwrap();
    route.add_address(&Address::new(a, net("fd01::1/64"))).unwrap();
    (a, b)
}

#[test]
fn links_are_created_changed_and_deleted() {
    on_both(|route| {
        assert_eq!(route.link("cni0").unwrap(), None);
        let mac = Mac([0x0a, 0x58, 10, 244, 0, 1]);
        let bridge = NewLink { mac: Some(mac), mtu: Some(1450), up: true, ..NewLink::new("cni0", NewLinkKind::Bridge) };
        let bridge = route.create_link(&bridge).unwrap();
        assert_eq!((bridge.kind, bridge.mac, bridge.mtu, bridge.up), (LinkKind::Bridge, Some(mac), 1450, true));

        let near = NewLink { master: Some(bridge.index), ..veth("near", "far") };
        let near = route.create_link(&near).unwrap();
        let far = route.link("far").unwrap().unwrap();
        assert_eq!((near.kind, near.master, near.peer_index), (LinkKind::Veth, Some(bridge.index), Some(far.index)));
        assert_eq!((far.peer_index, far.peer_netns_id, far.port), (Some(near.index), None, None));
        let port = near.port.unwrap();
        assert_eq!(port, BridgePort { hairpin: false, learning: true, flood: true, isolated: false, locked: false });

        assert_eq!((near.all_multicast, near.tx_queue_length), (false, 1000));
        route.change_link(near.index, &[LinkChange::AllMulticast(true), LinkChange::TxQueueLength(77)]).unwrap();
        let changed = route.link_by_index(near.index).unwrap().unwrap();
        assert_eq!((changed.all_multicast, changed.tx_queue_length), (true, 77));

        let changes = [
            LinkChange::Hairpin(true),
            LinkChange::Locked(true),
            LinkChange::Mtu(1400),
            LinkChange::Alias("mine"),
            LinkChange::Up(true),
        ];
        route.change_link(near.index, &changes).unwrap();
        let near = route.link_by_index(near.index).unwrap().unwrap();
        assert_eq!(
            (near.port.unwrap().hairpin, near.mtu, near.alias.as_deref(), near.up),
            (true, 1400, Some("mine"), true)
        );
        assert!(near.port.unwrap().learning && near.port.unwrap().locked);
        route.change_link(near.index, &[LinkChange::Master(None), LinkChange::Up(false)]).unwrap();
        route.change_link(near.index, &[LinkChange::Name("renamed")]).unwrap();
        let near = route.link("renamed").unwrap().unwrap();
        assert_eq!((near.master, near.port, near.up), (None, None, false));

        route.delete_link(near.index).unwrap();
        assert_eq!(route.link("far").unwrap(), None);
        let names: Vec<_> = route.links().unwrap().into_iter().map(|link| link.name).collect();
        assert_eq!(names, ["lo", "cni0"]);
    });
}

#[test]
fn links_that_cannot_be_are_refused() {
    on_both(|route| {
        let (a, _) = pair(route);
        assert!(route.create_link(&veth("a", "c")).unwrap_err().already_exists());
        assert!(route.create_link(&veth("c", "b")).unwrap_err().already_exists());
        assert!(matches!(route.create_link(&veth("a-name-too-long-to-be", "c")), Err(crate::Error::Invalid { .. })));
        assert_eq!(errno(route.create_link(&NewLink { mtu: Some(1), ..veth("c", "d") })), libc::EINVAL);
        assert_eq!(errno(route.create_link(&NewLink { master: Some(999), ..veth("c", "d") })), libc::EINVAL);
        assert_eq!(errno(route.create_link(&NewLink { master: Some(a), ..veth("c", "d") })), libc::EOPNOTSUPP);
        assert_eq!(route.link("d").unwrap(), None, "a refused link leaves nothing");
        assert_eq!(errno(route.change_link(999, &[LinkChange::Up(true)])), libc::ENODEV);
        route.change_link(a, &[LinkChange::Up(false)]).unwrap();
        assert_eq!(errno(route.change_link(a, &[LinkChange::Name("b")])), libc::EEXIST);
        assert_eq!(errno(route.change_link(a, &[LinkChange::Hairpin(true)])), libc::EOPNOTSUPP);
        assert_eq!(errno(route.delete_link(999)), libc::ENODEV);
        assert_eq!(errno(route.delete_link(1)), libc::EOPNOTSUPP);
    });
}

#[test]
fn a_vxlan_comes_back_as_it_was_asked_for() {
    on_both(|route| {
        let (a, _) = pair(route);
        let vxlan =
            Vxlan { id: 1, port: 8472, local: Some(ip("10.1.0.1")), device: Some(a), learning: false, gbp: false };
        let new = NewLink { up: true, ..NewLink::new("flannel.1", NewLinkKind::Vxlan(vxlan.clone())) };
        let link = route.create_link(&new).unwrap();
        assert_eq!((link.kind, link.mtu, link.up), (LinkKind::Vxlan(vxlan.clone()), 1450, true));
        let twin = NewLink::new("flannel.2", NewLinkKind::Vxlan(vxlan.clone()));
        assert!(route.create_link(&twin).unwrap_err().already_exists());
        let lost = Vxlan { id: 2, device: Some(999), ..vxlan };
        assert_eq!(errno(route.create_link(&NewLink::new("flannel.2", NewLinkKind::Vxlan(lost)))), libc::ENODEV);

        let mac = Mac([0xd2, 0, 0, 0, 0, 2]);
        let mut entry = FdbEntry::remote(link.index, mac, ip("10.1.0.2"));
        route.replace_fdb(&entry).unwrap();
        entry.remote = Some(ip("10.1.0.3"));
        route.replace_fdb(&entry).unwrap();
        assert_eq!(route.fdb(Some(link.index)).unwrap(), [entry.clone()]);
        route.delete_fdb(&entry).unwrap();
        assert_eq!(errno(route.delete_fdb(&entry)), libc::ENOENT);
        assert_eq!(errno(route.replace_fdb(&FdbEntry { device: 999, ..entry })), libc::ENODEV);
    });
}

#[test]
fn addresses_bring_their_network_and_take_it_along() {
    on_both(|route| {
        let (a, b) = pair(route);
        let v4 = Address::new(a, net("10.1.0.1/24"));
        let v6 = Address::new(a, net("fd01::1/64"));
        let mut addresses = route.addresses(Some(a)).unwrap();
        addresses.retain(|address| address.scope == Scope::Global);
        assert_eq!(addresses, [v4.clone(), v6.clone()]);
        assert!(route.add_address(&v4).unwrap_err().already_exists());
        assert_eq!(errno(route.add_address(&Address::new(999, net("10.1.0.9/24")))), libc::ENODEV);
        assert_eq!(errno(route.delete_address(&Address::new(b, net("10.1.0.1/24")))), libc::EADDRNOTAVAIL);

        let connected = RouteEntry {
            protocol: RouteProtocol::KERNEL,
            source: Some(ip("10.1.0.1")),
            ..RouteEntry::on_link(net("10.1.0.0/24"), a)
        };
        let filter = RouteFilter { family: Some(podwire_model::Family::V4), ..RouteFilter::MAIN };
        assert_eq!(route.routes(&filter).unwrap(), [connected]);
        let by_device = RouteFilter { device: Some(a), ..RouteFilter::MAIN };
        let connected =
            RouteEntry { protocol: RouteProtocol::KERNEL, metric: 256, ..RouteEntry::on_link(net("fd01::/64"), a) };
        assert!(route.routes(&by_device).unwrap().contains(&connected));
        route.delete_address(&v4).unwrap();
        route.delete_address(&v6).unwrap();
        assert_eq!(route.routes(&filter).unwrap(), []);
        assert!(!route.routes(&by_device).unwrap().contains(&connected));
    });
}

fn macvlan(lower: u32, mode: MacvlanMode) -> NewLinkKind<'static> {
    NewLinkKind::Macvlan { lower, mode, broadcast_queue: Some(50) }
}

/// Kinds that stand on another device, or are tunnels without a fixed end. The kernel of the netns tier has only macvlan;
/// the vm tier's has all.
#[test]
fn links_upon_links_are_made_and_read_back() {
    on_both(|route| {
        let (a, _) = pair(route);
        let ipip = Ipip { local: "10.1.0.1".parse().unwrap(), device: Some(a) };
        let rows = [
            (macvlan(a, MacvlanMode::Bridge), LinkKind::Macvlan(MacvlanMode::Bridge)),
            (macvlan(a, MacvlanMode::Private), LinkKind::Macvlan(MacvlanMode::Private)),
            (NewLinkKind::Ipvlan { lower: a, mode: IpvlanMode::L3s }, LinkKind::Ipvlan(IpvlanMode::L3s)),
            (NewLinkKind::Vlan { lower: a, id: 42 }, LinkKind::Vlan(42)),
            (NewLinkKind::Ipip(ipip), LinkKind::Ipip(ipip)),
            (NewLinkKind::Wireguard, LinkKind::Wireguard),
            (NewLinkKind::Tun, LinkKind::Tun),
            (NewLinkKind::Ifb, LinkKind::Ifb),
        ];
        for (new, expected) in rows {
            let everywhere = matches!(new, NewLinkKind::Macvlan { .. } | NewLinkKind::Tun);
            let lower = new.lower();
            let link = match route.create_link(&NewLink::new("over", new)) {
                Err(error) if !everywhere && is_missing(&error) => continue,
                created => created.unwrap(),
            };
            assert_eq!(link.kind, expected);
            assert!(lower.is_none() || link.peer_index == lower, "{link:?}");
            route.delete_link(link.index).unwrap();
        }
        let lost = macvlan(4711, MacvlanMode::Bridge);
        assert_eq!(errno(route.create_link(&NewLink::new("over", lost))), libc::ENODEV);
    });
}

#[test]
fn a_tun_is_made_where_the_socket_is_and_has_no_mac() {
    on_both(|route| {
        let new = NewLink { mtu: Some(1472), up: true, ..NewLink::new("flannel0", NewLinkKind::Tun) };
        let link = route.create_link(&new).unwrap();
        assert_eq!((&link.kind, link.mac, link.mtu, link.up), (&LinkKind::Tun, None, 1472, true));
        assert!(route.create_link(&new).unwrap_err().already_exists());
        let with_mac = NewLink { mac: Some(Mac([2, 0, 0, 0, 0, 1])), ..NewLink::new("flannel1", NewLinkKind::Tun) };
        assert_eq!(errno(route.create_link(&with_mac)), libc::EOPNOTSUPP);
        assert_eq!(
            errno(route.create_link(&NewLink { mtu: Some(1), ..NewLink::new("flannel1", NewLinkKind::Tun) })),
            libc::EINVAL
        );
        assert_eq!(route.link("flannel1").unwrap(), None, "a refused link leaves nothing");
        route.add_address(&Address::new(link.index, net("10.244.0.0/32"))).unwrap();
        route.add_route(&RouteEntry::on_link(net("10.244.0.0/16"), link.index)).unwrap();
        route.delete_link(link.index).unwrap();
        assert_eq!(route.link("flannel0").unwrap(), None);
    });
    in_new_netns(|| {
        let elsewhere = Namespace::new_net().unwrap();
        let mut route = RouteSocket::open_in(elsewhere.as_fd()).unwrap();
        route.create_link(&NewLink::new("flannel0", NewLinkKind::Tun)).unwrap();
        assert!(route.link("flannel0").unwrap().is_some());
    });
}

/// The netns tier's kernel does not know this kind of link. The vm tier's knows all.
fn is_missing(error: &crate::Error) -> bool {
    error.errno() == Some(libc::EOPNOTSUPP) && std::env::var("PODWIRE_TIER").is_err()
}

/// What kube-proxy's `kube-ipvs0` is. The kernel of the netns tier has no such device; the vm tier's has.
#[test]
fn a_dummy_that_is_down_holds_addresses() {
    on_both(|route| {
        let dummy = match route.create_link(&NewLink::new("kube-ipvs0", NewLinkKind::Dummy)) {
            Err(error) if is_missing(&error) => return,
            created => created.unwrap(),
        };
        assert_eq!((&dummy.kind, dummy.up), (&LinkKind::Dummy, false));
        let vips = ["10.96.0.10/32", "fd00:10:96::a/128"].map(|vip| Address::new(dummy.index, net(vip)));
        for vip in &vips {
            route.add_address(vip).unwrap();
            assert!(route.add_address(vip).unwrap_err().already_exists());
        }
        assert_eq!(route.addresses(Some(dummy.index)).unwrap(), vips);
        route.delete_address(&vips[0]).unwrap();
        assert_eq!(errno(route.delete_address(&vips[0])), libc::EADDRNOTAVAIL);
        route.delete_link(dummy.index).unwrap();
        assert_eq!(route.link("kube-ipvs0").unwrap(), None);
    });
}

#[test]
fn routes_are_added_replaced_listed_and_deleted() {
    on_both(|route| {
        let (a, _) = pair(route);
        let mine = RouteProtocol(42);
        let filter = RouteFilter { protocol: Some(mine), ..RouteFilter::ALL };
        let mut wanted = vec![
            RouteEntry::via(net("10.9.0.0/16"), ip("10.1.0.254"), a),
            RouteEntry { onlink: true, ..RouteEntry::via(net("10.244.1.0/24"), ip("10.244.1.0"), a) },
            RouteEntry {
                table: 1000,
                metric: 7,
                source: Some(ip("10.1.0.1")),
                ..RouteEntry::on_link(net("0.0.0.0/0"), a)
            },
            RouteEntry {
                kind: RouteKind::Blackhole,
                device: None,
                scope: Scope::Global,
                ..RouteEntry::on_link(net("10.8.0.0/16"), a)
            },
            RouteEntry::via(net("fd09::/48"), ip("fd01::fe"), a),
            RouteEntry { metric: 5, ..RouteEntry::on_link(net("::/0"), a) },
        ];
        for entry in &mut wanted {
            entry.protocol = mine;
            route.add_route(entry).unwrap();
            assert!(route.add_route(entry).unwrap_err().already_exists());
        }
        wanted[0].gateway = Some(ip("10.1.0.253"));
        route.replace_route(&wanted[0]).unwrap();
        let by_destination = |entry: &RouteEntry| entry.destination;
        wanted.sort_by_key(by_destination);
        let mut found = route.routes(&filter).unwrap();
        found.sort_by_key(by_destination);
        assert_eq!(found, wanted);
        let table = RouteFilter { table: Some(1000), ..RouteFilter::ALL };
        assert_eq!(route.routes(&table).unwrap().len(), 1);
        assert_eq!(route.routes(&RouteFilter { table: Some(77), ..RouteFilter::ALL }).unwrap(), []);
        for entry in &wanted {
            route.delete_route(entry).unwrap();
            assert_eq!(errno(route.delete_route(entry)), libc::ESRCH);
        }
        assert_eq!(route.routes(&filter).unwrap(), []);
    });
}

#[test]
fn routes_that_lead_nowhere_are_refused() {
    on_both(|route| {
        let (a, b) = pair(route);
        let far = RouteEntry::via(net("10.9.0.0/16"), ip("10.2.0.1"), a);
        assert_eq!(errno(route.add_route(&far)), libc::ENETUNREACH);
        let wrong_device = RouteEntry::via(net("10.9.0.0/16"), ip("10.1.0.2"), b);
        assert_eq!(errno(route.add_route(&wrong_device)), libc::ENETUNREACH);
        let far6 = RouteEntry::via(net("fd09::/48"), ip("fd02::1"), a);
        assert_eq!(errno(route.add_route(&far6)), libc::EHOSTUNREACH);
        assert_eq!(errno(route.add_route(&RouteEntry::on_link(net("10.9.0.0/16"), 999))), libc::ENODEV);
        assert_eq!(errno(route.add_route(&RouteEntry::on_link(net("10.9.0.1/16"), a))), libc::EINVAL);
        let not_ours = RouteEntry { source: Some(ip("10.1.0.77")), ..RouteEntry::on_link(net("10.9.0.0/16"), a) };
        assert_eq!(errno(route.add_route(&not_ours)), libc::EINVAL);
        let scoped = RouteEntry { scope: Scope::Link, ..RouteEntry::via(net("10.9.0.0/16"), ip("10.1.0.2"), a) };
        assert_eq!(errno(route.add_route(&scoped)), libc::ENETUNREACH);

        let found = RouteEntry { device: None, ..RouteEntry::via(net("10.9.0.0/16"), ip("10.1.0.2"), a) };
        route.add_route(&found).unwrap();
        assert!(route.routes(&RouteFilter::MAIN).unwrap().contains(&RouteEntry { device: Some(a), ..found }));
        route.change_link(a, &[LinkChange::Up(false)]).unwrap();
        let v4 = RouteFilter { family: Some(podwire_model::Family::V4), ..RouteFilter::MAIN };
        assert_eq!(route.routes(&v4).unwrap(), []);
        assert_eq!(errno(route.add_route(&RouteEntry::on_link(net("10.9.0.0/16"), a))), libc::ENETDOWN);
    });
}

#[test]
fn the_next_hop_is_that_of_the_longest_prefix() {
    on_both(|route| {
        let (a, b) = pair(route);
        route.add_address(&Address::new(b, net("10.2.0.1/24"))).unwrap();
        route.add_route(&RouteEntry::via(net("10.9.0.0/16"), ip("10.1.0.254"), a)).unwrap();
        route.add_route(&RouteEntry::via(net("10.9.9.0/24"), ip("10.2.0.254"), b)).unwrap();
        let dropped = RouteEntry { kind: RouteKind::Unreachable, ..RouteEntry::on_link(net("10.9.8.0/24"), a) };
        route.add_route(&RouteEntry { device: None, scope: Scope::Global, ..dropped }).unwrap();
        let hop = |device, gateway: Option<&str>| {
            Some(NextHop { kind: RouteKind::Unicast, device, gateway: gateway.map(ip) })
        };
        let rows = [
            ("10.1.0.77", hop(a, None)),
            ("10.9.0.1", hop(a, Some("10.1.0.254"))),
            ("10.9.9.1", hop(b, Some("10.2.0.254"))),
            ("10.9.8.1", None),
            ("192.0.2.1", None),
            ("fd01::77", hop(a, None)),
            ("10.2.0.7", hop(b, None)),
        ];
        let addresses: Vec<_> = rows.iter().map(|(address, _)| ip(address)).collect();
        let found = route.next_hops(&addresses).unwrap();
        for ((address, expected), found) in rows.iter().zip(found) {
            assert_eq!(found, *expected, "{address}");
        }
        let own = route.next_hops(&[ip("10.1.0.1")]).unwrap();
        assert_eq!(own[0].unwrap().kind, RouteKind::Local);
        assert_eq!(route.next_hops(&[]).unwrap(), []);
    });
}

#[test]
fn many_edits_are_made_at_once_and_the_refused_ones_named() {
    on_both(|route| {
        let (a, _) = pair(route);
        let near = |n: u16| {
            let [high, low] = n.to_be_bytes();
            RouteEntry::via(net(&format!("10.{}.{low}.0/24", 100 + high)), ip("10.1.0.9"), a)
        };
        let mut edits: Vec<_> = (0..2500).map(|n| Edit::ReplaceRoute(near(n))).collect();
        edits[7] = Edit::ReplaceRoute(RouteEntry::via(net("10.99.0.0/24"), ip("10.2.0.1"), a));
        edits[2000] = Edit::DeleteNeighbour(Neighbour::permanent(a, ip("10.1.0.77"), Mac([2, 0, 0, 0, 0, 9])));
        edits.push(Edit::AddAddress(Address::new(a, net("10.1.0.1/24"))));
        let refused = route.edit(&edits).unwrap();
        let refused: Vec<_> = refused.iter().map(|(at, error)| (*at, error.errno().unwrap())).collect();
        assert_eq!(refused, [(7, libc::ENETUNREACH), (2000, libc::ENOENT), (2500, libc::EEXIST)]);
        let made = |route: &mut dyn Route| {
            let filter = RouteFilter { protocol: Some(RouteProtocol::BOOT), ..RouteFilter::MAIN };
            route.routes(&filter).unwrap().len()
        };
        assert_eq!(made(route), 2498);
        let neighbour = Neighbour::permanent(a, ip("10.1.0.9"), Mac([2, 0, 0, 0, 0, 9]));
        let edits = [
            Edit::ReplaceNeighbour(neighbour.clone()),
            Edit::DeleteRoute(near(0)),
            Edit::DeleteAddress(Address::new(a, net("fd01::1/64"))),
        ];
        assert!(route.edit(&edits).unwrap().is_empty());
        assert!(route.neighbours(Some(a)).unwrap().contains(&neighbour));
        assert_eq!(made(route), 2497);
        let message = route.edit(&edits[1..2]).unwrap().pop().unwrap().1.to_string();
        assert!(message.starts_with(&format!("cannot delete route {}", near(0))), "{message}");
    });
}

#[test]
fn neighbours_are_set_listed_and_deleted() {
    on_both(|route| {
        let (a, b) = pair(route);
        let mut v4 = Neighbour::permanent(a, ip("10.1.0.9"), Mac([2, 0, 0, 0, 0, 9]));
        let v6 = Neighbour::permanent(a, ip("fd01::9"), Mac([2, 0, 0, 0, 0, 9]));
        route.replace_neighbour(&v4).unwrap();
        v4.mac = Some(Mac([2, 0, 0, 0, 0, 10]));
        route.replace_neighbour(&v4).unwrap();
        route.replace_neighbour(&v6).unwrap();
        let mut found = route.neighbours(Some(a)).unwrap();
        found.retain(|entry| entry.state == NeighbourState::Permanent);
        assert_eq!(found, [v4.clone(), v6]);
        assert!(route.neighbours(Some(b)).unwrap().iter().all(|entry| entry.device == b));
        assert_eq!(
            errno(route.replace_neighbour(&Neighbour { mac: None, address: ip("10.1.0.8"), ..v4.clone() })),
            libc::EINVAL
        );
        assert_eq!(errno(route.replace_neighbour(&Neighbour { device: 999, ..v4.clone() })), libc::ENODEV);
        route.delete_neighbour(&v4).unwrap();
        assert_eq!(errno(route.delete_neighbour(&v4)), libc::ENOENT);
    });
}

#[test]
fn a_veth_reaches_into_another_namespace() {
    in_new_netns(|| {
        let other = Namespace::new_net().unwrap();
        let here = Namespace::current(Kind::Net).unwrap();
        let mut outside = RouteSocket::open().unwrap();
        let mut inside = RouteSocket::open_in(other.as_fd()).unwrap();
        let mac = Mac([0x0a, 0x58, 10, 244, 0, 2]);
        let peer = Peer { name: "eth0", mac: Some(mac), mtu: Some(1450), netns: Some(other.as_fd()) };
        let near = outside.create_link(&NewLink::new("vethpod", NewLinkKind::Veth(peer))).unwrap();
        let far = inside.link("eth0").unwrap().unwrap();
        assert_eq!((far.mac, far.mtu, far.up), (Some(mac), 1450, false));
        assert_eq!((near.peer_index, far.peer_index), (Some(far.index), Some(near.index)));
        assert!(near.peer_netns_id.is_some());

        inside.change_link(far.index, &[LinkChange::Netns(here.as_fd()), LinkChange::Name("back")]).unwrap();
        assert!(inside.link("eth0").unwrap().is_none());
        assert_eq!(outside.link("back").unwrap().unwrap().mac, Some(mac));
    });
}

#[test]
fn a_stock_tool_sees_what_was_made() {
    in_new_netns(|| {
        let mut route = RouteSocket::open().unwrap();
        let (a, _) = pair(&mut route);
        let vxlan =
            Vxlan { id: 1, port: 8472, local: Some(ip("10.1.0.1")), device: Some(a), learning: false, gbp: false };
        let new = NewLink { up: true, ..NewLink::new("flannel.1", NewLinkKind::Vxlan(vxlan)) };
        let index = route.create_link(&new).unwrap().index;
        route.change_link(index, &[LinkChange::Alias("podwire")]).unwrap();
        let seen = run("ip", &["-d", "link", "show", "flannel.1"]);
        assert!(seen.contains("vxlan id 1 local 10.1.0.1 dev a srcport 0 0 dstport 8472 nolearning"), "{seen}");
        assert!(seen.contains("alias podwire"), "{seen}");
        route
            .add_route(&RouteEntry { onlink: true, ..RouteEntry::via(net("10.244.1.0/24"), ip("10.244.1.0"), index) })
            .unwrap();
        assert_eq!(
            run("ip", &["route", "show", "10.244.1.0/24"]).trim(),
            "10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink"
        );
    });
}

#[test]
fn removals_are_told_one_by_one() {
    in_new_netns(|| {
        let mut watch = ChangeWatch::open().unwrap();
        let mut route = RouteSocket::open().unwrap();
        let (a, b) = pair(&mut route);
        let vxlan = Vxlan { id: 1, port: 8472, local: None, device: Some(a), learning: false, gbp: false };
        let new = NewLink { up: true, ..NewLink::new("flannel.1", NewLinkKind::Vxlan(vxlan)) };
        let tunnel = route.create_link(&new).unwrap().index;
        let entry = RouteEntry::via(net("10.9.0.0/16"), ip("10.1.0.254"), a);
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let neighbour = Neighbour::permanent(a, ip("10.1.0.9"), mac);
        let fdb = FdbEntry::remote(tunnel, mac, ip("10.1.0.2"));
        let address = Address::new(b, net("10.2.0.1/32"));
        route.add_route(&entry).unwrap();
        route.replace_neighbour(&neighbour).unwrap();
        route.replace_fdb(&fdb).unwrap();
        route.add_address(&address).unwrap();
        while !watch.next(Some(std::time::Duration::ZERO)).unwrap().is_empty() {}

        route.delete_route(&entry).unwrap();
        route.delete_neighbour(&neighbour).unwrap();
        route.delete_fdb(&fdb).unwrap();
        route.delete_address(&address).unwrap();
        route.change_link(b, &[LinkChange::Up(false)]).unwrap();
        route.delete_link(tunnel).unwrap();
        let mut seen = Vec::new();
        while !seen.contains(&Removed::Link(tunnel)) {
            let changes = watch.next(Some(std::time::Duration::from_secs(5))).unwrap();
            assert!(!changes.is_empty(), "{seen:?}");
            seen.extend(changes.into_iter().filter_map(|change| match change {
                Change::Removed(removed) => Some(removed),
                _ => None,
            }));
        }
        assert!(seen.contains(&Removed::Route(entry)), "{seen:?}");
        let named = |removed: &Removed| matches!(removed, Removed::Neighbour(n) if (n.device, n.address) == (a, neighbour.address));
        assert!(seen.iter().any(named), "{seen:?}");
        assert!(seen.contains(&Removed::Fdb(fdb)), "{seen:?}");
        let named = |removed: &Removed| matches!(removed, Removed::Address(gone) if (gone.device, gone.net) == (b, address.net));
        assert!(seen.iter().any(named), "{seen:?}");
        assert!(seen.contains(&Removed::LinkDown(b)), "{seen:?}");
    });
}

#[test]
fn changes_are_told_with_what_is_there_now() {
    in_new_netns(|| {
        let mut watch = ChangeWatch::open().unwrap();
        let mut route = RouteSocket::open().unwrap();
        let (a, _) = pair(&mut route);
        let entry = RouteEntry::via(net("10.9.0.0/16"), ip("10.1.0.254"), a);
        let neighbour = Neighbour::permanent(a, ip("10.1.0.9"), Mac([2, 0, 0, 0, 0, 9]));
        let vxlan = Vxlan { id: 1, port: 8472, local: None, device: Some(a), learning: false, gbp: false };
        let new = NewLink { up: true, ..NewLink::new("flannel.1", NewLinkKind::Vxlan(vxlan)) };
        let tunnel = route.create_link(&new).unwrap().index;
        let fdb = FdbEntry::remote(tunnel, Mac([2, 0, 0, 0, 0, 9]), ip("10.1.0.2"));
        route.add_route(&entry).unwrap();
        route.replace_neighbour(&neighbour).unwrap();
        route.replace_fdb(&fdb).unwrap();
        route.change_link(a, &[LinkChange::Mtu(1300)]).unwrap();
        route.add_address(&Address::new(a, net("10.3.0.1/32"))).unwrap();
        let last = Removed::Route(entry.clone());
        route.delete_route(&entry).unwrap();
        let mut seen = Vec::new();
        while !seen.contains(&Change::Removed(last.clone())) {
            seen.extend(watch.next(Some(std::time::Duration::from_secs(5))).unwrap());
        }
        for expected in [Change::Route(entry), Change::Neighbour(neighbour), Change::Fdb(fdb)] {
            assert!(seen.contains(&expected), "{expected:?} is not in {seen:?}");
        }
        assert!(seen.iter().any(|change| matches!(change, Change::Link(link) if link.name == "a" && link.mtu == 1300)));
        let added = |change: &Change| matches!(change, Change::Address(found) if found.net == net("10.3.0.1/32"));
        assert!(seen.iter().any(added), "{seen:?}");
    });
}

#[test]
fn addresses_that_come_and_go_are_noticed() {
    in_new_netns(|| {
        let mut route = RouteSocket::open().unwrap();
        let mut watch = AddressWatch::open().unwrap();
        assert!(!watch.touched().unwrap());
        let (a, b) = pair(&mut route);
        assert!(watch.touched().unwrap());
        // Duplicate address detection of link-local addresses ends in its own time.
        let quiet = |watch: &mut AddressWatch| {
            std::thread::sleep(std::time::Duration::from_secs(2));
            watch.touched().unwrap();
        };
        quiet(&mut watch);
        route.add_route(&RouteEntry::on_link(net("10.9.0.0/16"), a)).unwrap();
        assert!(!watch.touched().unwrap());
        let address = Address::new(b, net("10.2.0.1/32"));
        route.add_address(&address).unwrap();
        assert!(watch.touched().unwrap());
        assert!(!watch.touched().unwrap());
        route.delete_address(&address).unwrap();
        assert!(watch.touched().unwrap());
        route.delete_link(a).unwrap();
        assert!(watch.touched().unwrap());
    });
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_fake_fails_when_told_to_and_changes_nothing_then() {
    let mut fake = FakeRoute::new();
    fake.fail_every(2);
    assert_eq!(fake.links().unwrap().len(), 1);
    let error = fake.create_link(&NewLink::new("br0", NewLinkKind::Bridge)).unwrap_err();
    assert!(error.is_transient());
    assert_eq!(fake.link("br0").unwrap(), None);
    assert_eq!(fake.operations(), 3);
}

#[test]
fn the_kernel_explains_its_refusals() {
    in_new_netns(|| {
        let mut route = RouteSocket::open().unwrap();
        let (a, _) = pair(&mut route);
        let error = route.add_route(&RouteEntry::via(net("10.9.0.0/16"), ip("10.2.0.1"), a)).unwrap_err();
        let text = error.to_string();
        let expected = format!(
            "cannot add route 10.9.0.0/16 via 10.2.0.1 dev #{a}: Network is unreachable (os error 101): Nexthop has invalid gateway"
        );
        assert_eq!(text, expected);
    });
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        _ = wire::read_link(&bytes);
        _ = wire::read_address(&bytes);
        _ = wire::read_route(&bytes);
        _ = wire::read_neighbour(&bytes);
        _ = wire::read_fdb(&bytes);
        _ = wire::read_next_hop(&bytes);
        for kind in libc::RTM_NEWLINK..=libc::RTM_GETNEIGH {
            _ = watch::changed(&crate::netlink::Message { kind, flags: 0, sequence: 0, port: 0, payload: &bytes }).count();
        }
    }

    #[test]
    fn a_route_is_read_as_it_is_written(bits in any::<u32>(), length in 0_u8..=32, gateway in any::<Option<u32>>(),
        device in 1_u32..100, table in 1_u32..100_000, metric in any::<u32>(), onlink in any::<bool>()) {
        let destination = ipnet_of(bits, length);
        let gateway = gateway.map(|bits| IpAddr::V4(bits.into()));
        let route = RouteEntry { gateway, table, metric, onlink, ..RouteEntry::on_link(destination, device) };
        prop_assert_eq!(wire::read_route(&wire::route(&route).0), Some(route));
    }
}

fn ipnet_of(bits: u32, length: u8) -> podwire_model::IpNet {
    podwire_model::IpNet::new(IpAddr::V4(bits.into()), length).unwrap().trunc()
}
