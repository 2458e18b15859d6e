//! One TCP stream between pods on two nodes: kernel vxlan, the udp backend, and a plain loop that carries one packet with
//! two system calls, as flannel's proxy does. All in one run, by turns.
//!
//! ```text
//! pod ── node ═══ node ── pod       each a namespace, each line a veth pair
//! ```

use std::{
    io::{self, IoSlice, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use podwire_kernel::{
    ns::Namespace,
    route::{
        Address, FdbEntry, LinkChange, Mac, Neighbour, NewLink, NewLinkKind, Peer, Route, RouteEntry, RouteSocket,
        Vxlan,
    },
    socket::{Interest, Poller},
    sysctl::{ProcSys, Sysctl},
    tun::{Offload, Queue},
};
use podwire_overlay::backend::udp::forward::{Forwarder, Settings};
use podwire_testkit::bench::{Measured, processor_time};

use crate::Result;

/// How long a stream runs.
const TIME: Duration = Duration::from_secs(2);
const ROUNDS: usize = 3;
const PORT: u16 = 8285;

/// What carries the packets between the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    Vxlan,
    Udp,
    Plain,
}

/// What one stream reached.
#[derive(Debug, Clone, Copy, Default)]
struct Reached {
    gigabits_a_second: f64,
    processor_seconds_a_gigabyte: f64,
}

/// Prints the measurements.
pub fn run() -> Result<()> {
    let mut all: [Vec<Reached>; 3] = Default::default();
    for _ in 0..ROUNDS {
        for (reached, carrier) in all.iter_mut().zip([Carrier::Vxlan, Carrier::Udp, Carrier::Plain]) {
            reached.push(stream(carrier)?);
        }
    }
    let median = |carrier: usize, property: fn(&Reached) -> f64| {
        let mut values: Vec<f64> = all[carrier].iter().map(property).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    for (metric, unit, property) in [
        ("throughput", "Gbit/s", (|reached| reached.gigabits_a_second) as fn(&Reached) -> f64),
        ("processor time", "s/GB", |reached| reached.processor_seconds_a_gigabyte),
    ] {
        for (peer, index) in [("kernel vxlan", 0), ("plain loop", 2)] {
            let (case, value) = ("udp, one TCP stream between pods", median(1, property));
            let peer = Some((peer, median(index, property)));
            println!("{}", Measured { bench: "overlay", case, metric, value, unit, peer });
        }
    }
    Ok(())
}

/// A node and its pod.
struct Node {
    n: u8,
    net: Namespace,
    pod: Namespace,
}

impl Node {
    fn new(n: u8) -> Result<Self> {
        Ok(Self { n, net: Namespace::new_net()?, pod: Namespace::new_net()? })
    }

    fn address(&self) -> Ipv4Addr {
        [192, 0, 2, self.n].into()
    }

    fn subnet(&self) -> Result<IpNet> {
        Ok(format!("10.244.{}.0/24", self.n).parse()?)
    }

    fn pod_address(&self) -> Ipv4Addr {
        [10, 244, self.n, 2].into()
    }

    /// Puts the pod behind the node.
    fn connect_pod(&self, mtu: u32) -> Result<()> {
        let (mut node, mut pod) = (RouteSocket::open_in(self.net.as_fd())?, RouteSocket::open_in(self.pod.as_fd())?);
        let peer = Peer { name: "eth0", mac: None, mtu: Some(mtu), netns: Some(self.pod.as_fd()) };
        let near = NewLink { mtu: Some(mtu), up: true, ..NewLink::new("pod", NewLinkKind::Veth(peer)) };
        let near = node.create_link(&near)?.index;
        node.add_address(&Address::new(near, format!("10.244.{}.1/24", self.n).parse::<IpNet>()?))?;
        let far = pod.link("eth0")?.ok_or("the pod has no eth0")?.index;
        pod.change_link(far, &[LinkChange::Up(true)])?;
        pod.add_address(&Address::new(far, IpNet::new(self.pod_address().into(), 24)?))?;
        pod.add_route(&RouteEntry::via("0.0.0.0/0".parse::<IpNet>()?, [10, 244, self.n, 1].into(), far))?;
        inside(&self.net, || Ok(ProcSys.ensure("net/ipv4/ip_forward", "1").map(drop)?))
    }

    /// Makes the device of a program that carries packets, and the route to all pods.
    fn connect_tun(&self) -> Result<()> {
        let mut route = RouteSocket::open_in(self.net.as_fd())?;
        let new = NewLink { mtu: Some(1472), up: true, ..NewLink::new("flannel0", NewLinkKind::Tun) };
        let index = route.create_link(&new)?.index;
        route.add_address(&Address::new(index, IpNet::from(self.subnet()?.network())))?;
        Ok(route.add_route(&RouteEntry::on_link("10.244.0.0/16".parse::<IpNet>()?, index))?)
    }

    /// Makes a vxlan device and what leads to the pod of `peer`.
    fn connect_vxlan(&self, peer: &Self) -> Result<()> {
        let mut route = RouteSocket::open_in(self.net.as_fd())?;
        let mac = |n| Mac([2, 0, 0, 0, 0, n]);
        let uplink = route.link("eth0")?.ok_or("the node has no eth0")?.index;
        let local = Some(self.address().into());
        let vxlan = Vxlan { id: 1, port: 8472, local, device: Some(uplink), learning: false, gbp: false };
        let kind = NewLinkKind::Vxlan(vxlan);
        let new = NewLink { mac: Some(mac(self.n)), mtu: Some(1450), up: true, ..NewLink::new("flannel.1", kind) };
        let index = route.create_link(&new)?.index;
        route.add_address(&Address::new(index, IpNet::from(self.subnet()?.network())))?;
        let gateway = peer.subnet()?.network();
        route.replace_neighbour(&Neighbour::permanent(index, gateway, mac(peer.n)))?;
        route.replace_fdb(&FdbEntry::remote(index, mac(peer.n), peer.address().into()))?;
        let through = RouteEntry { onlink: true, ..RouteEntry::via(peer.subnet()?, gateway, index) };
        Ok(route.add_route(&through)?)
    }
}

/// Runs `f` on a thread inside.
fn inside<T: Send>(net: &Namespace, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    net.run(|| Ok::<_, podwire_kernel::Error>(f()))?
}

/// Connects the two nodes by a network with an MTU of 1500.
fn connect([a, b]: [&Node; 2]) -> Result<()> {
    let peer = Peer { name: "eth0", mac: None, mtu: None, netns: Some(b.net.as_fd()) };
    RouteSocket::open_in(a.net.as_fd())?.create_link(&NewLink::new("eth0", NewLinkKind::Veth(peer)))?;
    for node in [a, b] {
        let mut route = RouteSocket::open_in(node.net.as_fd())?;
        let index = route.link("eth0")?.ok_or("the node has no eth0")?.index;
        route.change_link(index, &[LinkChange::Up(true)])?;
        route.add_address(&Address::new(index, IpNet::new(node.address().into(), 24)?))?;
    }
    Ok(())
}

/// Builds everything anew and runs one stream.
fn stream(carrier: Carrier) -> Result<Reached> {
    let nodes = [Node::new(1)?, Node::new(2)?];
    let [a, b] = &nodes;
    connect([a, b])?;
    let mtu = if carrier == Carrier::Vxlan { 1450 } else { 1472 };
    for (me, peer) in [(a, b), (b, a)] {
        me.connect_pod(mtu)?;
        if carrier == Carrier::Vxlan { me.connect_vxlan(peer)? } else { me.connect_tun()? }
    }
    match carrier {
        Carrier::Vxlan => measure(&nodes),
        Carrier::Udp => {
            let start = |me: &Node, peer: &Node| {
                let settings = Settings {
                    device: "flannel0".into(),
                    listen: SocketAddrV4::new(me.address(), PORT),
                    threads: Settings::processors(),
                };
                let IpNet::V4(subnet) = peer.subnet()? else { return Err("an IPv4 range".into()) };
                let table = [(subnet, SocketAddrV4::new(peer.address(), PORT))].into_iter().collect();
                inside(&me.net, || Ok(Forwarder::start(settings, table)?))
            };
            let running = [start(a, b)?, start(b, a)?];
            let reached = measure(&nodes);
            drop(running);
            reached
        }
        Carrier::Plain => {
            let stop = AtomicBool::new(false);
            let open = |me: &Node| {
                inside(&me.net, || {
                    let queue = Queue::attach("flannel0")?;
                    queue.decline_offloads()?;
                    let socket = UdpSocket::bind((me.address(), PORT))?;
                    socket.set_nonblocking(true)?;
                    Ok((queue, socket))
                })
            };
            let ends = [(open(a)?, b.address()), (open(b)?, a.address())];
            thread::scope(|scope| {
                for ((queue, socket), peer) in &ends {
                    scope.spawn(|| plain_loop(queue, socket, (*peer, PORT).into(), &stop));
                }
                let reached = measure(&nodes);
                stop.store(true, Relaxed);
                reached
            })
        }
    }
}

/// What flannel's proxy does: a packet from one side, to the other, and again.
fn plain_loop(queue: &Queue, socket: &UdpSocket, peer: SocketAddr, stop: &AtomicBool) -> podwire_kernel::Result<()> {
    let poller = Poller::new()?;
    poller.add(queue, 1, Interest::Reading)?;
    poller.add(socket, 2, Interest::Reading)?;
    let (mut packet, mut ready) = ([0; 1500], Vec::new());
    while !stop.load(Relaxed) {
        let sent = queue.receive(&mut packet).and_then(|(length, _)| socket.send_to(&packet[..length], peer));
        let received = socket.recv(&mut packet);
        let received = received.and_then(|length| queue.send(Offload::default(), &[IoSlice::new(&packet[..length])]));
        if sent.is_err() && received.is_err() {
            poller.wait(&mut ready, Some(Duration::from_millis(20)))?;
        }
    }
    Ok(())
}

/// One stream from the first node's pod to the second's.
fn measure([from, to]: &[Node; 2]) -> Result<Reached> {
    let listener = inside(&to.pod, || Ok(TcpListener::bind((to.pod_address(), 0))?))?;
    let address = listener.local_addr()?;
    let mut out = connected(&from.pod, address)?;
    let (mut input, _) = listener.accept()?;
    thread::scope(|scope| {
        let sender = scope.spawn(move || -> io::Result<()> {
            let data = vec![7; 256 << 10];
            let start = Instant::now();
            while start.elapsed() < TIME {
                out.write_all(&data)?;
            }
            Ok(())
        });
        let mut room = vec![0; 256 << 10];
        let (start, before) = (Instant::now(), processor_time());
        let mut bytes = 0;
        loop {
            match input.read(&mut room)? {
                0 => break,
                read => bytes += read,
            }
        }
        let (time, used) = (start.elapsed(), processor_time() - before);
        sender.join().map_err(|_| "the sender panicked")??;
        let gigabytes = bytes as f64 / 1e9;
        Ok(Reached {
            gigabits_a_second: gigabytes * 8.0 / time.as_secs_f64(),
            processor_seconds_a_gigabyte: used.as_secs_f64() / gigabytes,
        })
    })
}

/// A connection to `address`. Devices notice their carriers in their own time, so that it is tried more than once.
fn connected(net: &Namespace, address: SocketAddr) -> Result<TcpStream> {
    inside(net, || {
        let start = Instant::now();
        loop {
            match TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
                Err(_) if start.elapsed() < Duration::from_secs(5) => {}
                connected => return Ok(connected?),
            }
        }
    })
}
