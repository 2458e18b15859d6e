//! What the overlay costs on the running kernel, in a namespace of its own. Prints one JSON object a line, for
//! `cargo xtask bench overlay`.
//!
//! The peer is iproute2 in batch mode, which makes the same objects from a prepared file.

use std::{
    error::Error,
    fmt::Write as _,
    fs,
    process::Command,
    time::{Duration, Instant},
};

use podwire_kernel::{
    ns::Namespace,
    route::{Route, RouteSocket},
};
use podwire_model::Lease;
use podwire_overlay::{
    Overlay, Site, Uplink,
    backend::Backend,
    config,
    plan::{self, Entry, Path, Peer},
};
use podwire_testkit::bench::{Measured, percentile};

mod throughput;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const ROUNDS: usize = 9;

/// What is measured: a backend with a number of peers.
struct Case {
    name: &'static str,
    backend: &'static str,
    peers: u16,
}

const CASES: [Case; 4] = [
    Case { name: "vxlan", backend: r#"{"Type": "vxlan"}"#, peers: 1000 },
    Case { name: "vxlan", backend: r#"{"Type": "vxlan"}"#, peers: 5000 },
    Case { name: "vxlan, DirectRouting", backend: r#"{"Type": "vxlan", "DirectRouting": true}"#, peers: 5000 },
    Case { name: "host-gw", backend: r#"{"Type": "host-gw"}"#, peers: 5000 },
];

fn main() -> Result<()> {
    // `-- streams`: these alone.
    if std::env::args().any(|arg| arg == "streams") {
        return throughput::run();
    }
    CASES.iter().try_for_each(measure)?;
    throughput::run()
}

fn measure(case: &Case) -> Result<()> {
    let (mut by_hand, mut took) = (Vec::new(), <[Vec<Duration>; 3]>::default());
    for _ in 0..ROUNDS {
        by_hand.push(in_namespace(|| case.iproute2())?);
        let times = in_namespace(|| case.podwire())?;
        took.iter_mut().zip(times).for_each(|(all, time)| all.push(time));
    }
    let peer = Some(("ip -batch, bridge -batch", percentile(&by_hand, 50)));
    let name = &format!("{}, {} peers", case.name, case.peers);
    let [cold, restart, change] = took.map(|times| percentile(&times, 50));
    for (metric, value, peer) in [
        ("cold start, median", cold, peer),
        ("restart, all is in place, median", restart, None),
        ("one peer changes, median", change, None),
    ] {
        println!("{}", Measured { bench: "overlay", case: name, metric, value, unit: "ms", peer });
    }
    Ok(())
}

fn in_namespace<T: Send>(measure: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    Namespace::new_net()?.run(|| {
        Ok::<_, podwire_kernel::Error>((|| {
            for line in ["link add eth0 type veth peer name far", "addr add 172.16.0.1/12 dev eth0", "link set eth0 up"]
            {
                tool("ip", line.split(' '))?;
            }
            measure()
        })())
    })?
}

fn tool<'a>(program: &str, args: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let status = Command::new(program).args(args).status()?;
    if status.success() { Ok(()) } else { Err(format!("{program}: {status}").into()) }
}

/// Node `n`; `index` is that of its uplink. Every node is on one network, 172.16.0.0/12.
fn site(n: u16, index: u32) -> Result<Site> {
    let [high, low] = n.to_be_bytes();
    let address = [172, 16 + high / 16, high, low].into();
    Ok(Site {
        node: format!("node{n}").into(),
        network: "10.0.0.0/8".parse()?,
        subnet: format!("10.{}.{low}.0/24", high + 1).parse()?,
        uplink: Uplink { name: "eth0".into(), index, mtu: 1500, address },
        public_ip: address,
        published: None,
        prepared: None,
    })
}

/// The node that is measured.
fn me() -> Result<Site> {
    let uplink = RouteSocket::open()?.link("eth0")?.ok_or("eth0 is missing")?;
    site(1, uplink.index)
}

impl Case {
    fn backend(&self) -> Result<Box<dyn Backend>> {
        Ok(config::parse(&format!(r#"{{"Network": "10.0.0.0/8", "Backend": {}}}"#, self.backend))?.backend)
    }

    fn leases(&self) -> Result<Vec<Lease>> {
        let backend = self.backend()?;
        (2..self.peers + 2).map(|n| Ok(site(n, 0)?.lease(backend.as_ref()))).collect()
    }

    fn overlay(&self, peers: &[Lease]) -> Result<Overlay> {
        let mut overlay = Overlay::new(self.backend()?, me()?)?;
        match overlay.set_peers(peers.to_vec()).into_iter().next() {
            Some(error) => Err(error.into()),
            None => Ok(overlay),
        }
    }

    /// Cold start, restart, change of one peer: from the decision to the kernel's last answer.
    fn podwire(&self) -> Result<[Duration; 3]> {
        let peers = self.leases()?;
        let mut kernel = RouteSocket::open()?;
        let mut times = [Duration::ZERO; 3];
        let mut overlay_now = None;
        for time in &mut times[..2] {
            let start = Instant::now();
            let mut overlay = self.overlay(&peers)?;
            let outcome = overlay.apply(&mut kernel)?;
            *time = start.elapsed();
            if let Some(error) = outcome.errors.into_iter().next() {
                return Err(error.into());
            }
            if overlay.peer_count() != usize::from(self.peers) {
                return Err("some peers are left out".into());
            }
            overlay_now = Some(overlay);
        }
        let mut overlay = overlay_now.ok_or("not started")?;
        let moved = Lease { public_ip: [172, 31, 99, 99].into(), ..peers[7].clone() };
        let start = Instant::now();
        overlay.set_peer(&moved)?;
        let done = overlay.apply(&mut kernel)?.done;
        times[2] = start.elapsed();
        if done == 1 { Ok(times) } else { Err(format!("one peer's change took {done} operations").into()) }
    }

    /// The same objects from prepared files; the files are not part of the time.
    fn iproute2(&self) -> Result<Duration> {
        let backend = self.backend()?;
        let (mut ip, mut bridge) = (String::new(), String::new());
        let leases = self.leases()?;
        let path = Path { device: "eth0".into(), gateway: None };
        let peers = leases.iter().map(|lease| Peer { lease, path: Some(&path) });
        for entry in plan::whole(backend.as_ref(), &me()?, peers).into_values() {
            match entry {
                Entry::Tunnel(tunnel) => {
                    let (device, mac) = (tunnel.device, tunnel.mac.ok_or("a vxlan device has a MAC address")?);
                    writeln!(
                        ip,
                        "link add {device} address {mac} type vxlan id 1 local 172.16.0.1 dev eth0 dstport 8472"
                    )?;
                    writeln!(ip, "link set {device} up")?;
                }
                Entry::Address { device, address } => writeln!(ip, "addr add {address} dev {device}")?,
                Entry::Neighbour { device, address, mac } => {
                    writeln!(ip, "neigh replace {address} lladdr {mac} dev {device} nud permanent")?;
                }
                Entry::Fdb { device, mac, remote } => {
                    writeln!(bridge, "fdb replace {mac} dst {remote} dev {device} self permanent")?;
                }
                Entry::Route { device, destination, gateway, onlink } => {
                    let gateway = gateway.ok_or("a route to a peer has a gateway")?;
                    let onlink = if onlink { "onlink" } else { "" };
                    writeln!(ip, "route replace {destination} via {gateway} dev {device} {onlink}")?;
                }
                _ => return Err("iproute2 does not make this".into()),
            }
        }
        prepared(ip, bridge)
    }
}

/// Runs the prepared lines.
fn prepared(ip: String, bridge: String) -> Result<Duration> {
    let folder = std::env::temp_dir().join(format!("podwire-bench-overlay-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let [ip_file, bridge_file] = [("ip", ip), ("bridge", bridge)].map(|(name, text)| (folder.join(name), text));
    fs::write(&ip_file.0, ip_file.1)?;
    fs::write(&bridge_file.0, bridge_file.1)?;
    let start = Instant::now();
    tool("ip", ["-batch", &ip_file.0.to_string_lossy()])?;
    tool("bridge", ["-batch", &bridge_file.0.to_string_lossy()])?;
    let time = start.elapsed();
    fs::remove_dir_all(&folder)?;
    Ok(time)
}
