//! One suite for the fake and the kernel. This machine's kernel may have no WireGuard: there the fake alone runs it, and
//! the kernel does in the vm tier (`PODWIRE_TIER=vm`), where its absence is a failure.

use std::{collections::BTreeMap, time::Duration};

use podwire_model::IpNet;
use proptest::prelude::*;

use super::{wire, *};
use crate::{
    netlink::{Messages, push_message},
    route::{FakeRoute, Link, LinkChange, NewLink, NewLinkKind, Route, RouteSocket},
    test_support::in_new_netns,
};

trait Kernel: Route + Wireguard {}
impl<T: Route + Wireguard> Kernel for T {}

fn create(kernel: &mut dyn Kernel, name: &str) -> crate::Result<Link> {
    kernel.create_link(&NewLink::new(name, NewLinkKind::Wireguard))
}

/// Runs `suite` on the kernel, in a namespace of its own, and on the fake.
fn on_both(suite: fn(&mut dyn Kernel)) {
    suite(&mut FakeRoute::new());
    in_new_netns(|| {
        let mut kernel = RouteSocket::open().unwrap();
        match create(&mut kernel, "probe") {
            Err(error) if error.errno() == Some(libc::EOPNOTSUPP) && std::env::var("PODWIRE_TIER").is_err() => {}
            probe => {
                kernel.delete_link(probe.unwrap().index).unwrap();
                suite(&mut kernel);
            }
        }
    });
}

fn key(n: u8) -> PrivateKey {
    PrivateKey::from_bytes([n; 32])
}

fn peer(n: u8) -> Peer {
    Peer { endpoint: Some(format!("172.25.2.{n}:51820").parse().unwrap()), ..Peer::new(key(n).public()) }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn sorted(mut peers: Vec<Peer>) -> Vec<Peer> {
    peers.sort_by_key(|peer| peer.public_key);
    peers
}

fn errno<T: std::fmt::Debug>(result: crate::Result<T>) -> i32 {
    result.expect_err("the operation should be refused").errno().unwrap_or(-1)
}

#[test]
fn a_device_holds_what_it_was_given() {
    on_both(|kernel| {
        let device = create(kernel, "flannel-wg").unwrap().index;
        assert_eq!(kernel.wireguard(device).unwrap(), Device::default());
        let special = Peer {
            preshared_key: Some(key(99).to_secret_text().parse().unwrap()),
            endpoint: Some("[fd00::3]:51821".parse().unwrap()),
            keepalive: Duration::from_secs(25),
            ..peer(3)
        };
        let (second, third) = (key(2).public(), key(3).public());
        let changes = [
            Change::Peer(peer(2)),
            Change::Allow(net("10.244.2.0/24"), second),
            Change::PrivateKey(key(1)),
            Change::ListenPort(51820),
            Change::Peer(special.clone()),
            Change::Allow(net("10.244.3.0/24"), third),
            Change::Allow(net("fd00:10:244:3::/64"), third),
        ];
        kernel.set_wireguard(device, &changes).unwrap();
        kernel.change_link(device, &[LinkChange::Up(true)]).unwrap();
        let expected = Device {
            private_key: Some(key(1)),
            public_key: Some(key(1).public()),
            listen_port: 51820,
            peers: sorted(vec![peer(2), special.clone()]),
            allowed: [("10.244.2.0/24", second), ("10.244.3.0/24", third), ("fd00:10:244:3::/64", third)]
                .map(|(range, key)| (net(range), key))
                .into(),
        };
        assert_eq!(kernel.wireguard(device).unwrap(), expected);

        // A peer that is set again is as it was asked for, but for an endpoint that was not said; what is allowed stays.
        let changed = Peer { endpoint: None, ..peer(3) };
        kernel.set_wireguard(device, &[Change::Peer(changed), Change::RemovePeer(second)]).unwrap();
        let mut expected = Device { peers: vec![Peer { endpoint: special.endpoint, ..peer(3) }], ..expected };
        expected.allowed.retain(|_, key| *key == third);
        assert_eq!(kernel.wireguard(device).unwrap(), expected);
        kernel.set_wireguard(device, &[Change::RemovePeer(second)]).unwrap();
        assert_eq!(kernel.wireguard(device).unwrap(), expected, "removing what is not there is no error");
    });
}

#[test]
fn a_range_belongs_to_one_peer() {
    on_both(|kernel| {
        let device = create(kernel, "flannel-wg").unwrap().index;
        let (range, second, third) = (net("10.244.2.0/24"), key(2).public(), key(3).public());
        let mut set = |changes: &[Change]| {
            kernel.set_wireguard(device, changes).unwrap();
            kernel.wireguard(device).unwrap()
        };
        let found = set(&[Change::Peer(peer(2)), Change::Allow(range, second), Change::Peer(peer(3))]);
        assert_eq!(found.allowed, [(range, second)].into());
        let peers = found.peers;
        assert_eq!(set(&[Change::Allow(range, third)]).allowed, [(range, third)].into());
        assert_eq!(
            set(&[Change::Allow(range, key(4).public())]).allowed,
            [(range, third)].into(),
            "nobody has this key"
        );
        let other = net("fd00:10:244:2::/64");
        assert_eq!(set(&[Change::Allow(other, third), Change::Disallow(range)]).allowed, [(other, third)].into());
        let found = set(&[Change::Disallow(range)]);
        assert_eq!((found.peers, found.allowed), (peers, [(other, third)].into()));
        assert_eq!(set(&[Change::RemovePeer(third)]).allowed, [].into());
    });
}

#[test]
fn a_device_is_no_peer_of_itself() {
    on_both(|kernel| {
        let device = create(kernel, "flannel-wg").unwrap().index;
        let changes = [Change::PrivateKey(key(1)), Change::Peer(peer(1)), Change::Peer(peer(2)), Change::Peer(peer(3))];
        kernel.set_wireguard(device, &changes).unwrap();
        assert_eq!(kernel.wireguard(device).unwrap().peers, sorted(vec![peer(2), peer(3)]));
        // It becomes who a peer was.
        kernel.set_wireguard(device, &[Change::PrivateKey(key(3))]).unwrap();
        assert_eq!(kernel.wireguard(device).unwrap().peers, [peer(2)]);
    });
}

#[test]
fn what_is_no_device_is_refused_and_nothing_outlives_one() {
    on_both(|kernel| {
        let bridge = kernel.create_link(&NewLink::new("br0", NewLinkKind::Bridge)).unwrap().index;
        assert_eq!(errno(kernel.wireguard(bridge)), libc::EOPNOTSUPP);
        assert_eq!(errno(kernel.wireguard(4711)), libc::ENODEV);
        assert_eq!(errno(kernel.set_wireguard(bridge, &[Change::ListenPort(1)])), libc::EOPNOTSUPP);
        assert_eq!(errno(kernel.set_wireguard(4711, &[Change::ListenPort(1)])), libc::ENODEV);
        let first = create(kernel, "flannel-wg").unwrap().index;
        kernel.set_wireguard(first, &[Change::PrivateKey(key(1)), Change::Peer(peer(2))]).unwrap();
        kernel.delete_link(first).unwrap();
        assert_eq!(errno(kernel.wireguard(first)), libc::ENODEV);
        let second = create(kernel, "flannel-wg").unwrap().index;
        assert_eq!(kernel.wireguard(second).unwrap(), Device::default());
    });
}

#[test]
fn more_peers_and_ranges_than_one_message_holds() {
    on_both(|kernel| {
        let device = create(kernel, "flannel-wg").unwrap().index;
        let range = |n: u32| IpNet::new(std::net::Ipv4Addr::from(0x0a00_0000 + (n << 8)).into(), 24).unwrap();
        let peer = |n: u32| {
            let mut bytes = [7; 32];
            bytes[1..5].copy_from_slice(&n.to_be_bytes());
            Peer::new(PublicKey(bytes))
        };
        let peers = sorted((0..1000).map(peer).collect());
        // The last peer's ranges do not fit into one message of the kernel's answer either.
        let owner = |n: u32| peer(n.min(999)).public_key;
        let allowed: BTreeMap<_, _> = (0..6000).map(|n| (range(n), owner(n))).collect();
        let ranges = allowed.iter().map(|(range, key)| Change::Allow(*range, *key));
        let changes: Vec<_> = peers.iter().cloned().map(Change::Peer).chain(ranges).collect();
        kernel.set_wireguard(device, &changes).unwrap();
        let found = kernel.wireguard(device).unwrap();
        assert!(found.peers == peers && found.allowed == allowed);
    });
}

#[test]
fn messages_are_few_and_in_order() {
    let keys =
        [Change::PrivateKey(key(1)), Change::ListenPort(1), Change::Peer(peer(2)), Change::Disallow(net("::/0"))];
    assert_eq!(wire::set_device(7, &keys).len(), 1, "settings and peers go together");
    let turned: Vec<_> = keys.iter().rev().cloned().collect();
    assert_eq!(wire::set_device(7, &turned).len(), 2, "a peer that was asked for before the key is added before it");
    let many: Vec<_> = (2..202).map(|n| Change::Peer(peer(n))).collect();
    assert_eq!(wire::set_device(7, &many).len(), 1);
    assert_eq!(wire::set_device(7, &[]).len(), 0);
}

#[test]
fn nothing_that_is_printed_tells_a_secret() {
    let (secret, shared) = (key(1).to_secret_text(), key(2).to_secret_text());
    let peer = Peer { preshared_key: Some(shared.parse().unwrap()), ..peer(3) };
    let changes = [Change::PrivateKey(key(1)), Change::Peer(peer.clone())];
    let device = Device { private_key: Some(key(1)), peers: vec![peer], ..Device::default() };
    let printed = format!("{changes:?} {} {} {device:?}", changes[0], changes[1]);
    assert!(!printed.contains(&secret) && !printed.contains(&shared), "{printed}");
}

proptest! {
    /// The kernel's answer has the shape of what is sent to it.
    #[test]
    fn peers_are_read_as_they_are_sent(
        rows in prop::collection::btree_map(1..100_u8, (any::<Option<std::net::SocketAddr>>(), 0..=u16::MAX), 0..20),
    ) {
        let peers: Vec<Peer> = rows
            .iter()
            .map(|(n, (endpoint, keepalive))| {
                let endpoint = endpoint.map(|address| std::net::SocketAddr::new(address.ip(), address.port()));
                Peer { endpoint, keepalive: Duration::from_secs((*keepalive).into()), ..peer(*n) }
            })
            .collect();
        let mut changes = vec![Change::PrivateKey(key(200)), Change::ListenPort(51820)];
        changes.extend(peers.iter().cloned().map(Change::Peer));
        let range = |n: u8| [net(&format!("10.244.{n}.0/24")), net(&format!("fd00:{n}::/64"))];
        let allowed = rows.keys().flat_map(|n| range(*n).map(|range| (range, key(*n).public()))).collect::<BTreeMap<_, _>>();
        changes.extend(allowed.iter().map(|(range, key)| Change::Allow(*range, *key)));
        let messages = wire::set_device(7, &changes);
        let device = wire::read_device(messages.iter().map(Vec::as_slice));
        prop_assert_eq!((device.private_key, device.listen_port), (Some(key(200)), 51820));
        prop_assert_eq!(device.peers, sorted(peers));
        prop_assert_eq!(device.allowed, allowed);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        wire::read_device([bytes.as_slice()]);
        let mut framed = Vec::new();
        push_message(&mut framed, 1, 0, 0, &bytes);
        wire::read_device(Messages::from_bytes(framed).iter().map(|message| message.payload));
    }
}
