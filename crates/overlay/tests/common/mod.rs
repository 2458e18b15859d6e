//! A small network of namespaces: an underlay bridge, nodes on it, a pod behind each node, an outside client.
//!
//! Built and looked at with the standard tools; what is tested is Podwire's own. Nothing touches the host's namespace.

#![allow(dead_code, reason = "not every test file uses all of it")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    process::{Command, Stdio},
    time::Duration,
};

use podwire_kernel::{
    ns::Namespace,
    route::RouteSocket,
    sysctl::{ProcSys, Sysctl},
    wireguard::PrivateKey,
};
use podwire_model::{Family, Lease};
use podwire_overlay::{Overlay, Site, backend::Backend, config, uplink};

pub const NET_CONF: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;

/// Whether namespaces can be made. In CI it is a failure if not.
pub fn able() -> bool {
    match Namespace::new_net() {
        Ok(_) => true,
        Err(error) if std::env::var_os("CI").is_some() => panic!("this test needs network namespaces: {error}"),
        Err(error) => {
            eprintln!("skipped: {error}");
            false
        }
    }
}

/// Whether the kernel can make this kind of link, besides. That of the vm tier can, or it is a failure.
pub fn able_to_make(kind: &str) -> bool {
    if !able() {
        return false;
    }
    let made = Net::new().inside(|| command(&format!("ip link add probe type {kind}")).output().unwrap());
    let why = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.status.success() || std::env::var_os("PODWIRE_TIER").is_none(), "{why}");
    if !made.status.success() {
        eprintln!("skipped here, runs in the vm tier: no {kind} links: {why}");
    }
    made.status.success()
}

/// A network namespace.
pub struct Net(pub Namespace);

impl Net {
    pub fn new() -> Self {
        let net = Self(Namespace::new_net().unwrap());
        net.run("ip link set lo up");
        net
    }

    /// Runs a command line inside; it must succeed. Returns what it printed.
    pub fn run(&self, line: &str) -> String {
        let output = self.inside(|| command(line).output().unwrap());
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{line}\n{stdout}{}", String::from_utf8_lossy(&output.stderr));
        stdout
    }

    /// Runs `f` on a thread inside.
    pub fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.0.run(|| Ok::<_, podwire_kernel::Error>(f())).unwrap()
    }

    pub fn routes(&self) -> RouteSocket {
        RouteSocket::open_in(self.0.as_fd()).unwrap()
    }

    fn forward(&self) {
        for switch in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            self.inside(|| ProcSys.ensure(switch, "1")).unwrap();
        }
    }

    /// Connects to `to` from here, where a listener waits in `server`; returns the source that the server sees. The bound
    /// is wide: WireGuard begins a handshake 5 s after one without an answer, not before (`REKEY_TIMEOUT`).
    pub fn source_seen_by(&self, server: &Self, to: IpAddr) -> IpAddr {
        let listener = server.inside(|| TcpListener::bind(SocketAddr::new(to, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let client = self.inside(|| TcpStream::connect_timeout(&address, Duration::from_secs(20)));
        let _client = client.unwrap_or_else(|error| panic!("connecting to {address}: {error}"));
        listener.accept().unwrap().1.ip()
    }

    /// What tcpdump prints about the first packet that `filter` admits on `device` while `action` runs.
    pub fn captured(&self, device: &str, filter: &str, action: impl FnOnce()) -> String {
        let line = format!("timeout 60 tcpdump -i {device} -nn -vv -c 1 -l {filter}");
        let mut child = self.inside(|| command(&line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut heard = String::new();
        while !heard.contains("listening on") {
            assert_ne!(errors.read_line(&mut heard).unwrap(), 0, "tcpdump: {heard}");
        }
        action();
        let mut printed = String::new();
        child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        child.wait().unwrap();
        printed
    }
}

pub fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}

/// A node and a pod on it.
pub struct Node {
    pub n: u8,
    /// Number of the underlay network that it is on: 2, or 3 behind the router.
    pub on: u8,
    pub net: Net,
    pub pod: Net,
}

impl Node {
    pub fn address(&self) -> IpAddr {
        self.address_in(Family::V4)
    }

    pub fn address_in(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => [172, 25, self.on, self.n].into(),
            Family::V6 => format!("fd00:{}::{}", 23 + self.on, self.n).parse().unwrap(),
        }
    }

    pub fn pod_address(&self) -> IpAddr {
        self.pod_address_in(Family::V4)
    }

    pub fn pod_address_in(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => [10, 244, self.n - 1, 2].into(),
            Family::V6 => format!("fd00:10:244:{}::2", self.n - 1).parse().unwrap(),
        }
    }

    /// As the daemon finds out: the uplink is the interface of the default route.
    pub fn site(&self) -> Site {
        self.site_in(Family::V4)
    }

    pub fn site_in(&self, family: Family) -> Site {
        let (network, range) = match family {
            Family::V4 => ("10.244.0.0/16", format!("10.244.{}.0/24", self.n - 1)),
            Family::V6 => ("fd00:10:244::/56", format!("fd00:10:244:{}::/64", self.n - 1)),
        };
        let object = podwire_model::Node {
            name: format!("node{}", self.n).into(),
            internal_ips: vec![self.address_in(family)],
            pod_cidrs: vec![range.parse().unwrap()],
            zone: None,
            annotations: BTreeMap::new(),
            deleting: false,
        };
        let uplink = uplink::choose(&mut self.net.routes(), &[], &object, family).unwrap();
        Site {
            node: object.name,
            network: network.parse().unwrap(),
            subnet: object.pod_cidrs[0],
            public_ip: uplink.address,
            published: None,
            prepared: None,
            uplink,
        }
    }

    pub fn overlay(&self, net_conf: &str) -> Overlay {
        self.overlay_with_key(net_conf, self.wireguard_key())
    }

    pub fn overlay_with_key(&self, net_conf: &str, key: PrivateKey) -> Overlay {
        let config = config::parse_with_key(net_conf, &|| Ok(key.clone())).unwrap();
        Overlay::new(config.backend, self.site()).unwrap()
    }

    pub fn overlay_in(&self, net_conf: &str, family: Family) -> Overlay {
        Overlay::new(self.backend(net_conf), self.site_in(family)).unwrap()
    }

    pub fn backend(&self, net_conf: &str) -> Box<dyn Backend> {
        config::parse_with_key(net_conf, &|| Ok(self.wireguard_key())).unwrap().backend
    }

    /// Who it is, for the backend that asks.
    pub fn wireguard_key(&self) -> PrivateKey {
        PrivateKey::from_bytes([self.n; 32])
    }
}

/// The underlay with its nodes and the client.
pub struct Cluster {
    pub underlay: Net,
    pub nodes: Vec<Node>,
    /// 172.25.2.250, without any route to pods.
    pub client: Net,
}

impl Cluster {
    pub fn new(count: u8) -> Self {
        Self::routed(count, 0)
    }

    /// `near` nodes on one network and `far` ones on another, with a router between them.
    pub fn routed(near: u8, far: u8) -> Self {
        let underlay = Net::new();
        for on in [2, 3] {
            underlay.run(&format!("ip link add br{on} type bridge"));
            underlay.run(&format!("ip link set br{on} up"));
            underlay.run(&format!("ip addr add 172.25.{on}.254/24 dev br{on}"));
            underlay.run(&format!("ip addr add fd00:{}::254/64 dev br{on} nodad", 23 + on));
        }
        underlay.forward();
        let nodes = (1..=near + far).map(|n| node(&underlay, n, if n > near { 3 } else { 2 })).collect();
        let client = Net::new();
        plug(&underlay, &client, "client", (2, 250));
        Self { underlay, nodes, client }
    }

    pub fn leases(&self) -> Vec<Lease> {
        self.leases_with(NET_CONF)
    }

    pub fn leases_with(&self, net_conf: &str) -> Vec<Lease> {
        self.leases_in(net_conf, Family::V4)
    }

    pub fn leases_in(&self, net_conf: &str, family: Family) -> Vec<Lease> {
        self.nodes.iter().map(|node| node.overlay_in(net_conf, family).lease()).collect()
    }

    /// Checks that every pod reaches every pod, and is seen as itself.
    pub fn pods_talk(&self) {
        for from in &self.nodes {
            for to in &self.nodes {
                assert_eq!(from.pod.source_seen_by(&to.pod, to.pod_address()), from.pod_address());
            }
        }
    }

    /// Runs the overlay on every node.
    pub fn join(&self) -> Vec<Overlay> {
        self.join_with(NET_CONF)
    }

    pub fn join_with(&self, net_conf: &str) -> Vec<Overlay> {
        self.join_in(net_conf, Family::V4)
    }

    /// Runs the overlay of `family` on every node.
    pub fn join_in(&self, net_conf: &str, family: Family) -> Vec<Overlay> {
        let join = |node: &Node| {
            let mut overlay = node.overlay_in(net_conf, family);
            assert!(overlay.set_peers(self.leases_in(net_conf, family)).is_empty());
            let outcome = overlay.apply(&mut node.net.routes()).unwrap();
            assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
            assert!(overlay.is_settled());
            overlay
        };
        self.nodes.iter().map(join).collect()
    }
}

fn node(underlay: &Net, n: u8, on: u8) -> Node {
    let (net, pod) = (Net::new(), Net::new());
    plug(underlay, &net, &format!("node{n}"), (on, n));
    net.forward();
    // A stand-in for what the CNI plugin makes.
    let pid_of_pod = place(&pod);
    net.run(&format!("ip link add cni0 type veth peer name eth0 netns {pid_of_pod}"));
    let range = n - 1;
    net.run(&format!("ip addr add 10.244.{range}.1/24 dev cni0"));
    net.run(&format!("ip addr add fd00:10:244:{range}::1/64 dev cni0 nodad"));
    net.run("ip link set cni0 up");
    pod.run(&format!("ip addr add 10.244.{range}.2/24 dev eth0"));
    pod.run(&format!("ip addr add fd00:10:244:{range}::2/64 dev eth0 nodad"));
    pod.run("ip link set eth0 up mtu 1450");
    pod.run(&format!("ip route add default via 10.244.{range}.1"));
    pod.run(&format!("ip route add default via fd00:10:244:{range}::1"));
    Node { n, on, net, pod }
}

fn plug(underlay: &Net, net: &Net, name: &str, (on, host): (u8, u8)) {
    underlay.run(&format!("ip link add {name} type veth peer name eth0 netns {}", place(net)));
    underlay.run(&format!("ip link set {name} master br{on} up"));
    net.run(&format!("ip addr add 172.25.{on}.{host}/24 dev eth0"));
    net.run(&format!("ip addr add fd00:{}::{host}/64 dev eth0 nodad", 23 + on));
    net.run("ip link set eth0 up");
    net.run(&format!("ip route add default via 172.25.{on}.254"));
    net.run(&format!("ip route add default via fd00:{}::254", 23 + on));
}

/// A path by which `ip` finds the namespace while we hold it open.
fn place(net: &Net) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/{}/fd/{}", std::process::id(), net.0.as_fd().as_raw_fd())
}
