//! The network between the machines of a lab: one namespace with a bridge for each network, one namespace a machine,
//! veth pairs between. The namespace with the bridges is the router between them.
//!
//! The host's own network namespace gets nothing. Namespaces are held open as files by the supervisor only.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

use podwire_kernel::{
    ns::Namespace,
    route::{Address, LinkChange, Mac, NewLink, NewLinkKind, Peer, Route, RouteEntry, RouteSocket},
    sysctl::{ProcSys, Sysctl},
};
use podwire_model::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    backend::Backend,
    error::{Context, Error, Result},
    topology::{GATEWAY, Machine, Options, Segment},
};

/// What a machine calls its interface.
const UPLINK: &str = "eth0";

/// The underlay's namespace.
pub struct Underlay {
    namespace: Namespace,
    route: RouteSocket,
    /// Index of each network's bridge.
    bridges: Vec<(&'static Segment, u32)>,
    mtu: u32,
}

impl Underlay {
    /// Makes the namespace with its bridges, up and with the networks' gateways on them; with backend `alloc` also the
    /// routes to each node's pods.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn new(options: &Options) -> Result<Self> {
        let namespace = new_namespace(options.dual_stack)?;
        let mut route = RouteSocket::open_in(namespace.as_fd())?;
        bring_up(&mut route, "lo")?;
        namespace.run(|| {
            // A router between the networks. Where it knows no way it says so (ICMP unreachable), and a host would be silent: a pod
            // that asks for a Service before the proxy knows it then fails at once and asks again, instead of waiting.
            ProcSys.write("net/ipv4/ip_forward", "1")?;
            // Whoever asks in vain (DNS without an upstream) is told every time: by default the kernel tells each machine once
            // a second, and silence means a timeout.
            ProcSys.write("net/ipv4/icmp_ratelimit", "0")?;
            // A shorter way is not to be learnt: routes of the nodes are what is looked at in a lab.
            ProcSys.write("net/ipv4/conf/all/send_redirects", "0")?;
            ProcSys.write("net/ipv4/conf/default/send_redirects", "0")?;
            if options.dual_stack { ProcSys.write("net/ipv6/conf/all/forwarding", "1") } else { Ok(()) }
        })?;
        let mut bridges = Vec::new();
        for segment in options.segments() {
            bridges.push((segment, bridge(&mut route, segment, options)?));
        }
        let mut underlay = Self { namespace, route, bridges, mtu: options.mtu };
        if options.backend == Backend::Alloc {
            underlay.route_to_pods(options)?;
        }
        Ok(underlay)
    }

    /// Makes a machine's namespace and connects it: `lo` and `eth0` up, its addresses, default routes to its gateway.
    ///
    /// # Errors
    /// The kernel refused; a machine of this name is connected already; there is no such network in this lab.
    pub fn attach(&mut self, machine: &Machine) -> Result<Namespace> {
        let segment = machine.segment();
        let bridge = self.bridge(segment)?;
        let namespace = new_namespace(machine.address_v6.is_some())?;
        let peer = Peer { name: UPLINK, mac: None, mtu: Some(self.mtu), netns: Some(namespace.as_fd()) };
        let port = NewLink {
            mtu: Some(self.mtu),
            master: Some(bridge),
            up: true,
            ..NewLink::new(&machine.name, NewLinkKind::Veth(peer))
        };
        self.route.create_link(&port)?;
        let mut route = RouteSocket::open_in(namespace.as_fd())?;
        bring_up(&mut route, "lo")?;
        let uplink = bring_up(&mut route, UPLINK)?;
        for address in machine.addresses() {
            let (anywhere, gateway): (IpNet, IpAddr) = match address {
                IpAddr::V4(_) => (any_v4(), segment.gateway().into()),
                IpAddr::V6(_) => (any_v6(), segment.gateway_v6().into()),
            };
            route.add_address(&Address::new(uplink, on_segment(segment, address)?))?;
            route.add_route(&RouteEntry::via(anywhere, gateway, uplink))?;
        }
        Ok(namespace)
    }

    fn route_to_pods(&mut self, options: &Options) -> Result<()> {
        for (index, node) in (0..).zip(options.nodes()) {
            let bridge = self.bridge(node.segment())?;
            for (range, address) in options.pod_ranges(index).into_iter().zip(node.addresses()) {
                self.route.add_route(&RouteEntry::via(range, address, bridge))?;
            }
        }
        Ok(())
    }

    fn bridge(&self, segment: &Segment) -> Result<u32> {
        let found = self.bridges.iter().find(|(known, _)| *known == segment);
        found.map(|(_, index)| *index).ok_or_else(|| Error::Failed(format!("this lab has no network {}", segment.net)))
    }

    /// Listens on [`GATEWAY`] for the machines. The socket works from wherever it is used.
    ///
    /// # Errors
    /// The port is taken.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        self.namespace.run(|| TcpListener::bind((GATEWAY, port)).trying(|| format!("listen on {GATEWAY}:{port}")))
    }

    /// A UDP socket on [`GATEWAY`], as [`Underlay::listen`].
    ///
    /// # Errors
    /// The port is taken.
    pub fn bind(&self, port: u16) -> Result<UdpSocket> {
        self.namespace.run(|| UdpSocket::bind((GATEWAY, port)).trying(|| format!("bind {GATEWAY}:{port}")))
    }
}

impl AsFd for Underlay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// A namespace. With IPv6, its links use their link-local addresses at once: nobody else can have them, and who looks whether
/// somebody has (duplicate address detection, a second or two) forwards nothing to neighbours that it does not know yet.
fn new_namespace(dual_stack: bool) -> Result<Namespace> {
    let namespace = Namespace::new_net()?;
    if dual_stack {
        namespace.run(|| ProcSys.write("net/ipv6/conf/default/accept_dad", "0"))?;
    }
    Ok(namespace)
}

/// A network's bridge, up, with the network's gateway on it.
fn bridge(route: &mut RouteSocket, segment: &Segment, options: &Options) -> Result<u32> {
    // A bridge without an address of its own takes its ports' lowest, so a machine that has asked for it could send to one
    // that is the bridge's no more when others are connected. In form as CNI's: 0a:58 and the IPv4 address.
    let [a, b, c, d] = segment.gateway().octets();
    let link = NewLink {
        mac: Some(Mac([0x0a, 0x58, a, b, c, d])),
        mtu: Some(options.mtu),
        up: true,
        ..NewLink::new(segment.bridge, NewLinkKind::Bridge)
    };
    let bridge = route.create_link(&link)?.index;
    route.add_address(&Address::new(bridge, on_segment(segment, segment.gateway().into())?))?;
    if options.dual_stack {
        route.add_address(&Address::new(bridge, on_segment(segment, segment.gateway_v6().into())?))?;
    }
    Ok(bridge)
}

fn bring_up(route: &mut RouteSocket, name: &str) -> Result<u32> {
    let link = route.link(name)?.ok_or_else(|| Error::Failed(format!("a new namespace has no link {name}")))?;
    route.change_link(link.index, &[LinkChange::Up(true)])?;
    Ok(link.index)
}

/// An address with the prefix length of its network.
fn on_segment(segment: &Segment, address: IpAddr) -> Result<IpNet> {
    let length = if address.is_ipv4() { segment.net.prefix_len() } else { segment.net_v6.prefix_len() };
    IpNet::new(address, length).map_err(|error| Error::Failed(error.to_string()))
}

fn any_v4() -> IpNet {
    Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into()
}

fn any_v6() -> IpNet {
    Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into()
}
