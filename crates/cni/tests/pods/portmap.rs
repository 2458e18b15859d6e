//! Ports of the node that lead to pods: real packets from everywhere, and what is left afterwards.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use podwire_cni::runtime::NetworkConfig;
use podwire_kernel::ns::{Kind, Namespace};
use serde_json::{Value, json};

use crate::support::{Node, Pod, code, on_a_node, run, veths};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait where there should be none.
const SILENCE: Duration = Duration::from_millis(400);

/// A chain of bridge and portmap, dual stack, with `fields` for portmap.
fn network(node: &Node, name: &str, fields: &Value) -> NetworkConfig {
    let mut portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    portmap.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let ranges = json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]]);
    let bridge = json!({
        "type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
        "ipam": {"type": "host-local", "dataDir": node.folder.join("networks"), "ranges": ranges},
    });
    let list = json!({"name": name, "cniVersion": "1.1.0", "plugins": [bridge, portmap]});
    NetworkConfig::from_json(list.to_string().as_bytes(), "test").unwrap()
}

fn pod(id: &str, mappings: Value) -> Pod {
    let mut pod = Pod::new(id);
    pod.attachment.capabilities.insert("portMappings".to_owned(), mappings);
    pod.run("ip link set lo up");
    pod
}

fn tcp(host_port: u16, container_port: u16) -> Value {
    json!({"hostPort": host_port, "containerPort": container_port, "protocol": "tcp"})
}

/// A machine outside, joined to the node: 192.0.2.1 and 2001:db8::1 are the node's addresses.
fn outside() -> Pod {
    let outside = Pod::new("outside");
    let pid_fd = outside.attachment.netns.as_ref().unwrap().display().to_string();
    run("ip link set lo up");
    run(&format!("ip link add up0 type veth peer name eth0 netns {pid_fd}"));
    run("ip address add 192.0.2.1/24 dev up0");
    run("ip address add 192.0.2.2/24 dev up0");
    run("ip -6 address add 2001:db8::1/64 dev up0 nodad");
    run("ip link set up0 up");
    outside.run("ip address add 192.0.2.9/24 dev eth0");
    outside.run("ip -6 address add 2001:db8::9/64 dev eth0 nodad");
    outside.run("ip link set eth0 up");
    // Until both ends have settled.
    outside.run("ping -6 -c 1 -w 30 2001:db8::1");
    outside
}

/// In the pod, answers every connection and every datagram with the address that it came from.
fn serve(pod: &Pod, port: u16) {
    let bind = || {
        let any = SocketAddr::from(([0_u16; 8], port));
        Ok::<_, podwire_kernel::Error>((TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap()))
    };
    let (tcp, udp) = pod.namespace.run(bind).unwrap();
    // They end with the test's process.
    thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let from = stream.peer_addr().unwrap().ip().to_canonical();
            _ = stream.write_all(from.to_string().as_bytes());
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            _ = udp.send_to(from.ip().to_canonical().to_string().as_bytes(), from);
        }
    });
}

/// From whom the server saw a connection to come; `None` where nobody answered.
fn ask_for(patience: Duration, to: &str) -> Option<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&to.parse().unwrap(), patience).ok()?;
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.parse().ok()
}

/// The same from the node itself.
fn ask(to: &str) -> Option<IpAddr> {
    ask_for(PATIENCE, to)
}

fn ask_udp(patience: Duration, socket: &UdpSocket, to: &str) -> Option<IpAddr> {
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.send_to(b"who", to).unwrap();
    let mut buffer = [0; 64];
    let (length, _) = socket.recv_from(&mut buffer).ok()?;
    std::str::from_utf8(&buffer[..length]).ok()?.parse().ok()
}

fn from(namespace: &Pod, to: &str) -> Option<IpAddr> {
    namespace.namespace.run(|| Ok::<_, podwire_kernel::Error>(ask(to))).unwrap()
}

/// Whether nobody answers.
fn is_silent(namespace: &Pod, to: &str) -> bool {
    namespace.namespace.run(|| Ok::<_, podwire_kernel::Error>(ask_for(SILENCE, to).is_none())).unwrap()
}

fn ip(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

fn table(family: &str) -> String {
    run(&format!("nft list table {family} podwire-portmap"))
}

#[test]
fn a_host_port_is_reached_from_everywhere() {
    on_a_node(|node| {
        let outside = outside();
        let network = network(node, "net", &json!({}));
        // As containerd writes it.
        let capitals = json!({"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""});
        let one_address = json!({"hostPort": 9090, "containerPort": 80, "protocol": "TCP", "hostIP": "192.0.2.2"});
        let a = pod("pod-a", json!([capitals, one_address, {"hostPort": 0, "containerPort": 7}]));
        let b = pod("pod-b", json!([]));
        node.runtime.add(&network, &a.attachment).unwrap();
        node.runtime.add(&network, &b.attachment).unwrap();
        serve(&a, 80);
        run("ping -6 -c 1 -w 30 fd01::2");

        assert_eq!(from(&outside, "192.0.2.1:8080"), ip("192.0.2.9"), "the pod sees who asks");
        assert_eq!(from(&outside, "[2001:db8::1]:8080"), ip("2001:db8::9"));
        assert_eq!(ask("192.0.2.1:8080"), ip("192.0.2.1"), "the node");
        assert_eq!(ask("127.0.0.1:8080"), ip("10.1.0.1"), "the node, by its loopback address");
        assert_eq!(from(&b, "10.1.0.1:8080"), ip("10.1.0.3"), "another pod");
        assert_eq!(from(&b, "192.0.2.1:8080"), ip("10.1.0.3"));
        assert_eq!(from(&a, "192.0.2.1:8080"), ip("10.1.0.1"), "the pod itself");
        assert_eq!(from(&a, "[2001:db8::1]:8080"), ip("fd01::1"));
        assert_eq!(from(&outside, "192.0.2.2:9090"), ip("192.0.2.9"));
        assert!(is_silent(&outside, "192.0.2.1:9090"), "only one address of the node is mapped");
        assert!(is_silent(&outside, "192.0.2.1:7"));
        node.runtime.check(&network, &a.attachment).unwrap();

        // What the node has on its own loopback stays its own.
        let own = TcpListener::bind("127.0.0.1:5555").unwrap();
        b.run("ip route add 127.0.0.1/32 via 10.1.0.1");
        b.run("sysctl -qw net.ipv4.conf.all.route_localnet=1");
        b.run("ip address del 127.0.0.1/8 dev lo");
        assert!(is_silent(&b, "127.0.0.1:5555"));
        own.set_nonblocking(true).unwrap();
        assert!(own.accept().is_err(), "a pod reached the node's loopback");

        for _ in 0..2 {
            node.runtime.del(&network, &a.attachment).unwrap();
        }
        assert!(is_silent(&outside, "192.0.2.1:8080"));
        assert!(!table("ip").contains("elements") && !table("ip6").contains("elements"), "{}", table("ip"));
    });
}

#[test]
fn datagrams_of_a_running_conversation_follow_the_mapping() {
    on_a_node(|node| {
        let outside = outside();
        let network = network(node, "net", &json!({}));
        let udp = json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]);
        let (a, b) = (pod("pod-a", udp.clone()), pod("pod-b", udp));
        let bind = || Ok::<_, podwire_kernel::Error>(UdpSocket::bind("192.0.2.9:0").unwrap());
        let client = outside.namespace.run(bind).unwrap();
        // Connections are tracked from now on; that nobody answers is remembered.
        run("nft add table ip watch");
        run("nft add chain ip watch input { type filter hook prerouting priority 0 ; }");
        run("nft add rule ip watch input ct state new counter");
        assert_eq!(ask_udp(SILENCE, &client, "192.0.2.1:5353"), None);
        for (pod, address) in [(&a, "10.1.0.2"), (&b, "10.1.0.3")] {
            let result = node.runtime.add(&network, &pod.attachment).unwrap();
            assert_eq!(result.ips[0].address.addr().to_string(), address);
            serve(pod, 53);
            assert_eq!(ask_udp(PATIENCE, &client, "192.0.2.1:5353"), ip("192.0.2.9"));
            assert!(run("conntrack -L -p udp").contains(&format!("src={address}")), "{address}");
            node.runtime.del(&network, &pod.attachment).unwrap();
            assert_eq!(ask_udp(SILENCE, &client, "192.0.2.1:5353"), None);
        }
    });
}

/// The first packet of an SCTP association (RFC 9260, 3.3.2), with its checksum.
fn sctp_init(source: u16, destination: u16) -> Vec<u8> {
    let mut packet = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    for word in [42_u32, 65_535, 0x0001_0001, 1] {
        packet.extend(word.to_be_bytes());
    }
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    };
    let checksum = !packet.iter().fold(!0, step);
    packet[8..12].copy_from_slice(&checksum.to_le_bytes());
    packet
}

/// Kernels for tests need not have SCTP: raw sockets at both ends.
#[test]
fn an_sctp_association_is_mapped() {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, sockopt};
    on_a_node(|node| {
        let outside = outside();
        let network = network(node, "net", &json!({}));
        let a = pod("pod-a", json!([{"hostPort": 8080, "containerPort": 80, "protocol": "sctp"}]));
        node.runtime.add(&network, &a.attachment).unwrap();
        let raw = || {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::SCTP)).unwrap();
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
            Ok::<_, podwire_kernel::Error>(socket)
        };
        let (client, server) = (outside.namespace.run(raw).unwrap(), a.namespace.run(raw).unwrap());
        let to: SocketAddr = "192.0.2.1:0".parse().unwrap();
        rustix::net::sendto(&client, &sctp_init(2000, 8080), SendFlags::empty(), &to).unwrap();
        let mut received = [0; 100];
        let (length, _, _) = rustix::net::recvfrom(&server, &mut received[..], RecvFlags::empty()).unwrap();
        let (header, packet) = received[..length].split_at(20);
        assert_eq!((&header[12..16], &header[16..20]), (&[192, 0, 2, 9][..], &[10, 1, 0, 2][..]));
        assert_eq!(packet[..4], [2000_u16.to_be_bytes(), 80_u16.to_be_bytes()].concat());
    });
}

#[test]
fn without_snat_and_with_all_of_it() {
    on_a_node(|node| {
        let outside = outside();
        let plain = network(node, "net", &json!({"snat": false, "markMasqBit": 5, "backend": "nftables"}));
        let a = pod("pod-a", json!([tcp(8080, 80)]));
        node.runtime.add(&plain, &a.attachment).unwrap();
        serve(&a, 80);
        assert_eq!(from(&outside, "192.0.2.1:8080"), ip("192.0.2.9"));
        assert_eq!(ask_for(SILENCE, "127.0.0.1:8080"), None);
        assert_eq!(run("sysctl -n net.ipv4.conf.cni0.route_localnet").trim(), "0");
        node.runtime.del(&plain, &a.attachment).unwrap();

        let all = network(node, "net", &json!({"masqAll": true}));
        let b = pod("pod-b", json!([tcp(8080, 80)]));
        node.runtime.add(&all, &b.attachment).unwrap();
        serve(&b, 80);
        assert_eq!(from(&outside, "192.0.2.1:8080"), ip("10.1.0.1"));
        assert_eq!(ask("127.0.0.1:8080"), ip("10.1.0.1"));
        node.runtime.check(&all, &b.attachment).unwrap();
        node.runtime.del(&all, &b.attachment).unwrap();
        assert!(!table("ip").contains("elements"), "{}", table("ip"));
    });
}

#[test]
fn a_port_has_one_owner() {
    on_a_node(|node| {
        let network = network(node, "net", &json!({}));
        let (a, b) = (pod("pod-a", json!([tcp(8080, 80)])), pod("pod-b", json!([tcp(8081, 80), tcp(8080, 80)])));
        node.runtime.add(&network, &a.attachment).unwrap();
        let before = table("ip");
        let error = node.runtime.add(&network, &b.attachment).unwrap_err();
        assert_eq!(error.code(), 11);
        assert!(error.to_string().contains("host port 8080/tcp belongs to net/pod-a/eth0"), "{error}");
        assert_eq!(
            (table("ip"), veths().len(), node.leases("net").len()),
            (before, 1, 2),
            "a failed ADD leaves nothing"
        );
        // Its DEL does not touch what is the other's.
        node.runtime.del(&network, &b.attachment).unwrap();
        node.runtime.check(&network, &a.attachment).unwrap();
        node.runtime.del(&network, &a.attachment).unwrap();
        node.runtime.add(&network, &b.attachment).unwrap();
    });
}

#[test]
fn what_was_left_behind_goes() {
    on_a_node(|node| {
        let network = network(node, "net", &json!({}));
        let lost = pod("lost", json!([tcp(8080, 80)]));
        let kept = pod("kept", json!([tcp(8081, 80)]));
        for pod in [&lost, &kept] {
            node.runtime.add(&network, &pod.attachment).unwrap();
        }
        // The caller has forgotten which ports there were.
        let mut forgetful = pod("forgetful", json!([tcp(8082, 80)]));
        node.runtime.add(&network, &forgetful.attachment).unwrap();
        forgetful.attachment.capabilities.clear();
        node.runtime.del(&network, &forgetful.attachment).unwrap();
        assert!(!table("ip").contains("8082"), "{}", table("ip"));
        // And once more, nor has it the result.
        let mut forgetful = pod("forgetful", json!([tcp(8082, 80)]));
        node.runtime.add(&network, &forgetful.attachment).unwrap();
        forgetful.attachment.capabilities.clear();
        std::fs::remove_file(node.folder.join("cache/results/net-forgetful-eth0")).unwrap();
        node.runtime.del(&network, &forgetful.attachment).unwrap();
        assert!(!table("ip").contains("8082"), "{}", table("ip"));

        let other = NetworkConfig { name: "net2".to_owned(), ..network.clone() };
        node.runtime.gc(&other, &[]).unwrap();
        assert!(table("ip").contains("8080"));
        run("nft flush chain ip podwire-portmap hostports");
        assert_eq!(code(node.runtime.check(&network, &kept.attachment)), 103);
        node.runtime.gc(&network, std::slice::from_ref(&kept.attachment)).unwrap();
        let left = table("ip");
        assert!(left.contains("8081") && !left.contains("8080"), "{left}");
        node.runtime.check(&network, &kept.attachment).unwrap();
        run("nft flush map ip podwire-portmap ports");
        assert_eq!(code(node.runtime.check(&network, &kept.attachment)), 103);
        run("nft delete table ip podwire-portmap");
        node.runtime.del(&network, &kept.attachment).unwrap();
    });
}

#[test]
fn many_ports_are_mapped_at_once() {
    on_a_node(|node| {
        let network = network(node, "net", &json!({}));
        let here = Namespace::current(Kind::Net).unwrap();
        let pods: Vec<Pod> = (0..8).map(|n| pod(&format!("pod-{n}"), json!([tcp(8000 + n, 80)]))).collect();
        let all = |act: &(dyn Fn(&Pod) + Sync)| {
            thread::scope(|scope| {
                for pod in &pods {
                    scope.spawn(|| {
                        here.enter().unwrap();
                        act(pod);
                    });
                }
            });
        };
        all(&|pod| drop(node.runtime.add(&network, &pod.attachment).unwrap()));
        assert_eq!(table("ip").matches("jump hostports").count(), 2, "{}", table("ip"));
        pods.iter().for_each(|pod| node.runtime.check(&network, &pod.attachment).unwrap());
        all(&|pod| node.runtime.del(&network, &pod.attachment).unwrap());
        assert!(!table("ip").contains("elements"), "{}", table("ip"));
    });
}

#[test]
fn what_cannot_be_mapped_is_refused_and_leaves_nothing() {
    on_a_node(|node| {
        for (fields, mappings, expected, why) in [
            (json!({"conditionsV4": ["-d", "10.0.0.1"]}), json!([tcp(1, 1)]), 2, "\"conditionsV4\" is not supported"),
            (json!({"externalSetMarkChain": "X"}), json!([tcp(1, 1)]), 2, "\"externalSetMarkChain\" is not supported"),
            (json!({"externalSetMarkChain": "X", "markMasqBit": 1}), json!([]), 7, "exclude each other"),
            (json!({"markMasqBit": 32}), json!([]), 7, "expected 0 to 31"),
            (json!({"backend": "iptables"}), json!([]), 2, "\"backend\" is not supported"),
            (json!({}), json!([tcp(80, 0)]), 7, "containerPort 0 is none"),
            (json!({}), json!([{"hostPort": 70000, "containerPort": 1}]), 7, "hostPort 70000 is none"),
            (json!({}), json!([{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]), 7, "protocol \"icmp\""),
            (json!({}), json!([{"hostPort": 1, "containerPort": 1, "hostIP": "here"}]), 7, "hostIP \"here\""),
            (json!({}), json!([tcp(80, 1), tcp(80, 2)]), 7, "80/tcp leads to both 1 and 2"),
        ] {
            let network = network(node, "net", &fields);
            let pod = pod("pod-a", mappings);
            let error = node.runtime.add(&network, &pod.attachment).unwrap_err();
            assert_eq!(error.code(), expected, "{error}");
            assert!(error.to_string().contains(why), "{error}");
            assert_eq!((veths().len(), node.leases("net").len(), pod.has_eth0()), (0, 0, false));
        }
    });
}
