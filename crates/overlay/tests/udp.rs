//! The udp backend on the real kernel: what it makes, and real packets between pods, also with a peer that knows no
//! offloads.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::{
    io::{IoSlice, Read, Write},
    net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use common::{Cluster, Node, able};
use podwire_kernel::{
    route::{Change, Removed},
    socket::{Departure, Interest, Poller, TunnelSocket},
    tun::{Offload, Queue},
};
use podwire_overlay::{
    Overlay,
    backend::udp::forward::{Counters, Forwarder, Settings, Table},
};

const NET_CONF: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "udp"}}"#;
/// How much a stream carries.
const SIZE: usize = 2 << 20;
/// Enough for an emulated machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two nodes, what the kernel holds for them, and what carries their packets.
struct Pair {
    cluster: Cluster,
    overlays: Vec<Overlay>,
    forwarders: Vec<Forwarder>,
}

impl Pair {
    fn new() -> Self {
        let cluster = Cluster::new(2);
        let overlays = cluster.join_with(NET_CONF);
        let forwarders = cluster.nodes.iter().zip(&overlays).map(|(node, overlay)| start(node, overlay)).collect();
        let pair = Self { cluster, overlays, forwarders };
        pair.wait();
        pair
    }

    /// A device needs a moment to notice that it has a carrier.
    fn wait(&self) {
        self.pod(0).run(&format!("ping -c 1 -w 30 {}", self.nodes()[1].pod_address()));
    }

    fn nodes(&self) -> &[Node] {
        &self.cluster.nodes
    }

    fn pod(&self, n: usize) -> &common::Net {
        &self.nodes()[n].pod
    }

    fn counters(&self, n: usize) -> Counters {
        self.forwarders[n].counters()
    }
}

fn start(node: &Node, overlay: &Overlay) -> Forwarder {
    let settings = Settings { threads: 2, ..Settings::of(overlay).unwrap() };
    node.net.inside(|| Forwarder::start(settings, overlay.forwards().collect())).unwrap()
}

/// Bytes that a shift or a repetition would change.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Sends `data` from one pod to another by TCP, and expects it there.
fn transfer(from: &Node, to: &Node, data: &[u8]) {
    let listener = to.pod.inside(|| TcpListener::bind((to.pod_address(), 0))).unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut stream = from.pod.inside(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(data).unwrap();
        });
        let mut stream = listener.accept().unwrap().0;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut found = Vec::new();
        stream.read_to_end(&mut found).unwrap();
        sender.join().unwrap();
        assert!(found == data, "{} bytes came of {}, or others", found.len(), data.len());
    });
}

/// Streams in both directions at once.
fn transfer_both_ways(nodes: &[Node]) {
    let [first, second] = nodes else { panic!("two nodes") };
    thread::scope(|scope| {
        scope.spawn(|| transfer(first, second, &pattern(1, SIZE)));
        scope.spawn(|| transfer(second, first, &pattern(2, SIZE)));
    });
}

#[test]
fn it_looks_as_flannels_does() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    let overlays = cluster.join_with(NET_CONF);
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    let _running = [start(first, &overlays[0]), start(second, &overlays[1])];
    let link = first.net.run("ip -d link show flannel0");
    for expected in ["mtu 1472", "tun type tun pi off vnet_hdr on", "numqueues 2", ",UP"] {
        assert!(link.contains(expected), "{expected} is not in {link}");
    }
    assert!(first.net.run("ip -4 addr show dev flannel0").contains("inet 10.244.0.0/32 scope global flannel0"));
    assert_eq!(first.net.run("ip route show dev flannel0").trim(), "10.244.0.0/16 scope link");

    let packet = cluster.underlay.captured("br2", "udp port 8285", || {
        first.pod.run(&format!("ping -c 1 -w 30 {}", second.pod_address()));
    });
    assert!(packet.contains("172.25.2.1.8285 > 172.25.2.2.8285:"), "{packet}");
    assert!(packet.contains("UDP, length 84"), "{packet}");
    for (from, to) in [(first, second), (second, first)] {
        assert_eq!(from.pod.source_seen_by(&to.pod, to.pod_address()), from.pod_address());
    }
    assert_eq!(first.net.source_seen_by(&second.pod, second.pod_address()).to_string(), "10.244.0.0");

    let mut again = first.overlay(NET_CONF);
    assert!(again.set_peers(cluster.leases_with(NET_CONF)).is_empty());
    let outcome = again.apply(&mut first.net.routes()).unwrap();
    assert_eq!((outcome.done, outcome.forwards.len()), (1, 1), "a restart learns its table and writes nothing else");
}

#[test]
fn streams_arrive_whole_and_cross_in_large_packets() {
    if !able() {
        return;
    }
    let pair = Pair::new();
    transfer_both_ways(pair.nodes());
    for n in [0, 1] {
        let counters = pair.counters(n);
        assert!(counters.sent_bytes > SIZE as u64 && counters.received_bytes > SIZE as u64, "{counters:?}");
        assert!(counters.sent_messages * 5 < counters.sent_packets * 4, "packets go out together: {counters:?}");
        assert!(counters.received_merged * 5 < counters.received_packets * 4, "packets become one: {counters:?}");
        let dropped = [counters.dropped_malformed, counters.dropped_expired, counters.dropped_refused];
        assert_eq!((dropped, counters.sent_in_pieces), ([0; 3], 0), "{counters:?}");
    }
}

#[test]
fn a_peer_that_knows_no_offloads_is_served() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    let overlays = cluster.join_with(NET_CONF);
    let forwarder = start(&cluster.nodes[0], &overlays[0]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let plain = scope.spawn(|| cluster.nodes[1].net.inside(|| plain_peer(&stop)));
        cluster.nodes.iter().for_each(|node| _ = node.pod.run("ip link set eth0 mtu 1472"));
        cluster.nodes[0].pod.run(&format!("ping -c 1 -w 30 {}", cluster.nodes[1].pod_address()));
        transfer_both_ways(&cluster.nodes);
        stop.store(true, Relaxed);
        let (longest, malformed) = plain.join().unwrap();
        assert_eq!((longest, malformed), (1472, 0), "every datagram is one whole packet that fits");
    });
    let counters = forwarder.counters();
    assert!(counters.sent_messages * 5 < counters.sent_packets * 4, "{counters:?}");
}

/// What flannel's proxy does on the second node: a packet, a datagram. Returns the longest that came, and how many were
/// no packet or had a wrong checksum.
fn plain_peer(stop: &AtomicBool) -> (usize, usize) {
    let queue = Queue::attach("flannel0").unwrap();
    queue.decline_offloads().unwrap();
    let socket = UdpSocket::bind("172.25.2.2:8285").unwrap();
    socket.set_nonblocking(true).unwrap();
    let poller = Poller::new().unwrap();
    poller.add(&queue, 1, Interest::Reading).unwrap();
    poller.add(&socket, 2, Interest::Reading).unwrap();
    let (mut packet, mut ready) = ([0; 65_536], Vec::new());
    let (mut longest, mut malformed) = (0, 0);
    while !stop.load(Relaxed) {
        let out = queue.receive(&mut packet);
        if let Ok((length, offload)) = out {
            assert_eq!(offload, Offload::default());
            socket.send_to(&packet[..length], "172.25.2.1:8285").unwrap();
        }
        let come = socket.recv(&mut packet);
        if let Ok(length) = come {
            longest = longest.max(length);
            malformed += usize::from(!is_intact(&packet[..length]));
            queue.send(Offload::default(), &[IoSlice::new(&packet[..length])]).unwrap();
        }
        if out.is_err() && come.is_err() {
            poller.wait(&mut ready, Some(Duration::from_millis(20))).unwrap();
        }
    }
    (longest, malformed)
}

/// Whether an IPv4 packet without options has the right length and checksums, also those of TCP.
fn is_intact(packet: &[u8]) -> bool {
    let sum = |bytes: &[u8]| {
        let sum: u32 =
            bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b))).sum();
        (sum & 0xffff) + (sum >> 16)
    };
    let right = |sum: u32| matches!(sum, 0xffff | 0x1_fffe);
    let [0x45, _, high, low, ..] = packet else { return false };
    let length = u16::from_be_bytes([*high, *low]) as usize == packet.len();
    let transport = sum(&packet[12..20]) + u32::from(packet[9]) + (packet.len() - 20) as u32 + sum(&packet[20..]);
    length && right(sum(&packet[..20])) && (packet[9] != 6 || right((transport & 0xffff) + (transport >> 16)))
}

#[test]
fn datagrams_fragments_and_the_largest_packets_pass() {
    if !able() {
        return;
    }
    let pair = Pair::new();
    let [first, second] = pair.nodes() else { panic!("two nodes") };
    pair.nodes().iter().for_each(|node| _ = node.pod.run("ip link set eth0 mtu 1500"));
    let far = second.pod_address();
    first.pod.run(&format!("ping -c 1 -W 30 -M do -s {} {far}", 1472 - 28));
    first.pod.run(&format!("ping -c 1 -W 30 -s 8000 {far}"));
    let refused = first.pod.inside(|| {
        std::process::Command::new("ping")
            .args(["-c", "1", "-W", "5", "-M", "do", "-s", "1450", &far.to_string()])
            .output()
    });
    let printed = String::from_utf8(refused.unwrap().stdout).unwrap();
    assert!(printed.contains("From 10.244.0.1") && printed.contains("mtu = 1472"), "{printed}");

    let receiver = second.pod.inside(|| UdpSocket::bind((far, 0))).unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = receiver.local_addr().unwrap().port();
    let (IpAddr::V4(from), IpAddr::V4(to)) = (first.pod_address(), far) else { panic!("IPv4") };
    let sender = first.pod.inside(|| TunnelSocket::bind(SocketAddrV4::new(from, 0))).unwrap();
    // Segments cross as one; a datagram beyond the MTU in IP fragments.
    let mut room = [0; 20_000];
    for (length, segment) in [(5000, 1200), (1, 0), (9000, 0)] {
        let data = pattern(3, length);
        let parts = [IoSlice::new(&data)];
        sender.send(&[Departure { to: SocketAddrV4::new(to, port), segment, parts: &parts }]).unwrap();
        for expected in data.chunks(if segment == 0 { length } else { usize::from(segment) }) {
            let (length, source) = receiver.recv_from(&mut room).unwrap();
            assert_eq!(source.ip(), first.pod_address());
            assert!(&room[..length] == expected, "{length} bytes");
        }
    }
}

#[test]
fn senders_are_told_about_packets_that_go_no_further() {
    if !able() {
        return;
    }
    let pair = Pair::new();
    let ping = |options: &str, to: &str| {
        let arguments: Vec<_> = options.split(' ').chain([to]).collect();
        let output = pair.pod(0).inside(|| std::process::Command::new("ping").args(arguments).output()).unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let printed = ping("-c 1 -W 30", "10.244.77.1");
    assert!(printed.contains("From 10.244.0.1 icmp_seq=1 Destination Net Unreachable"), "{printed}");
    let far = pair.nodes()[1].pod_address().to_string();
    let printed = ping("-c 1 -W 30 -t 2", &far);
    assert!(printed.contains("From 10.244.0.1 icmp_seq=1 Time to live exceeded"), "{printed}");
    let printed = ping("-c 1 -W 30 -t 3", &far);
    assert!(printed.contains("From 10.244.1.0 icmp_seq=1 Time to live exceeded"), "{printed}");
    assert_eq!((pair.counters(0).dropped_no_node, pair.counters(0).dropped_expired), (1, 1));

    let stranger = pair.cluster.client.inside(|| UdpSocket::bind("172.25.2.250:0")).unwrap();
    for length in [0, 1, 19, 20, 60, 1400] {
        for first in [0x45, 0x4f, 0x60, 0xff] {
            let mut bytes = pattern(length as u64, length);
            bytes.first_mut().into_iter().for_each(|byte| *byte = first);
            stranger.send_to(&bytes, "172.25.2.1:8285").unwrap();
        }
    }
    transfer_both_ways(pair.nodes());
    assert!(pair.counters(0).dropped_malformed >= 10, "{:?}", pair.counters(0));
}

#[test]
fn a_path_that_takes_less_gets_fragments() {
    if !able() {
        return;
    }
    let pair = Pair::new();
    pair.nodes()[0].net.run("ip route add 172.25.2.2 dev eth0 mtu 1400");
    transfer(&pair.nodes()[0], &pair.nodes()[1], &pattern(4, 1 << 20));
    assert!(pair.counters(0).sent_in_pieces > 0, "{:?}", pair.counters(0));
    assert_eq!(pair.counters(0).dropped_refused, 0);
}

#[test]
fn the_table_changes_under_traffic() {
    if !able() {
        return;
    }
    let pair = Pair::new();
    let far = pair.nodes()[1].pod_address();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let more = |to: fn(u8) -> Option<SocketAddr>| {
                    let net = |n| ipnet::IpNet::new([172, 30, n, 0].into(), 24).unwrap();
                    (0..50).map(|n| (net(n), to(n))).collect::<Vec<_>>()
                };
                pair.forwarders[0].change_table(&more(|n| Some(SocketAddr::from(([172, 25, 2, n], 8285)))));
                pair.forwarders[0].change_table(&more(|_| None));
            }
        });
        let printed = pair.pod(0).run(&format!("ping -c 300 -i 0.002 -W 30 -q {far}"));
        stop.store(true, Relaxed);
        assert!(printed.contains(" 0% packet loss"), "{printed}");
    });
    let gone: Vec<_> = pair.overlays[0].forwards().map(|(range, _)| (range, None)).collect();
    pair.forwarders[0].change_table(&gone);
    let unreachable = pair.pod(0).inside(|| TcpStream::connect_timeout(&(far, 9).into(), PATIENCE)).unwrap_err();
    assert_eq!(unreachable.raw_os_error(), Some(libc::ENETUNREACH));
}

#[test]
fn a_device_that_was_deleted_is_made_and_found_again() {
    if !able() {
        return;
    }
    let mut pair = Pair::new();
    pair.nodes()[0].net.run("ip link del flannel0");
    let mut kernel = pair.nodes()[0].net.routes();
    assert!(pair.overlays[0].changed(&Change::Removed(Removed::Anything)).work);
    let outcome = pair.overlays[0].apply(&mut kernel).unwrap();
    assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
    let start = Instant::now();
    while pair.counters(0).reopened < 2 {
        assert!(start.elapsed() < PATIENCE, "not found again");
        thread::sleep(Duration::from_millis(10));
    }
    pair.wait();
    transfer_both_ways(pair.nodes());
}

#[test]
fn it_starts_where_it_can_and_ends_without_a_trace() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    let node = &cluster.nodes[0];
    let overlay = &cluster.join_with(NET_CONF)[0];
    let settings = Settings::of(overlay).unwrap();
    let start = |settings: Settings| node.net.inside(|| Forwarder::start(settings, Table::default()));
    for (wrong, expected) in [
        (Settings { device: "flannel7".into(), ..settings.clone() }, "cannot attach to tun flannel7: No such device"),
        (Settings { listen: "192.0.2.1:8285".parse().unwrap(), ..settings.clone() }, "listen on UDP 192.0.2.1:8285"),
        (Settings { threads: 0, ..settings.clone() }, "0 threads, expected 1 to 256"),
    ] {
        let message = start(wrong).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let bind = || node.net.inside(|| UdpSocket::bind(settings.listen));
    let other = bind().unwrap();
    let message = start(settings.clone()).unwrap_err().to_string();
    assert!(message.contains("listen on UDP 172.25.2.1:8285: Address already in use"), "{message}");
    drop(other);
    // A program that another test starts holds copies of this one's files until it runs.
    let begin = Instant::now();
    let forwarder = loop {
        match start(settings.clone()) {
            Err(error) if error.errno() == Some(libc::EADDRINUSE) && begin.elapsed() < PATIENCE => {}
            started => break started.unwrap(),
        }
    };
    assert!(bind().is_err());
    drop(forwarder);
    while bind().is_err() || !node.net.run("ip link show flannel0").contains("NO-CARRIER") {
        assert!(begin.elapsed() < PATIENCE, "the port is free, and the device stays without a carrier");
        thread::sleep(Duration::from_millis(20));
    }
}
