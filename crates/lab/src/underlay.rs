//! The network between the machines of a lab: one namespace with a bridge, one namespace a machine, veth pairs between.
//!
//! The host's own network namespace gets nothing. Namespaces are held open as files by the supervisor only.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

use podwire_kernel::{
    ns::Namespace,
    route::{Address, LinkChange, Mac, NewLink, NewLinkKind, Peer, Route, RouteEntry, RouteSocket},
    sysctl::{ProcSys, Sysctl},
};
use podwire_model::Ipv4Net;

use crate::{
    error::{Context, Error, Result},
    topology::{GATEWAY, Machine, UNDERLAY},
};

const BRIDGE: &str = "br0";
/// A bridge without an address of its own takes its ports' lowest, so a machine that has asked for it could send to one
/// that is the bridge's no more when others are connected. In form as CNI's: 0a:58 and the IPv4 address.
const BRIDGE_MAC: Mac = {
    let [a, b, c, d] = GATEWAY.octets();
    Mac([0x0a, 0x58, a, b, c, d])
};
/// What a machine calls its interface.
const UPLINK: &str = "eth0";
/// As on a plain Ethernet; overlays subtract from it.
const MTU: u32 = 1500;

/// The underlay's namespace.
pub struct Underlay {
    namespace: Namespace,
    route: RouteSocket,
    bridge: u32,
}

impl Underlay {
    /// Makes the namespace with its bridge, up and with [`GATEWAY`] on it.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn new() -> Result<Self> {
        let namespace = Namespace::new_net()?;
        let mut route = RouteSocket::open_in(namespace.as_fd())?;
        bring_up(&mut route, "lo")?;
        let link =
            NewLink { mac: Some(BRIDGE_MAC), mtu: Some(MTU), up: true, ..NewLink::new(BRIDGE, NewLinkKind::Bridge) };
        let bridge = route.create_link(&link)?.index;
        route.add_address(&Address::new(bridge, on_underlay(GATEWAY)?))?;
        // The gateway leads nowhere, but a router says so (ICMP unreachable) where a host would be silent. A pod that asks for a
        // Service before the proxy knows it then fails at once and asks again, instead of waiting for its connection.
        namespace.run(|| ProcSys.write("net/ipv4/ip_forward", "1"))?;
        Ok(Self { namespace, route, bridge })
    }

    /// Makes a machine's namespace and connects it: `lo` and `eth0` up, its address, a default route to [`GATEWAY`].
    ///
    /// # Errors
    /// The kernel refused; a machine of this name is connected already.
    pub fn attach(&mut self, machine: &Machine) -> Result<Namespace> {
        let namespace = Namespace::new_net()?;
        let peer = Peer { name: UPLINK, mac: None, mtu: Some(MTU), netns: Some(namespace.as_fd()) };
        let port = NewLink {
            mtu: Some(MTU),
            master: Some(self.bridge),
            up: true,
            ..NewLink::new(&machine.name, NewLinkKind::Veth(peer))
        };
        self.route.create_link(&port)?;
        let mut route = RouteSocket::open_in(namespace.as_fd())?;
        bring_up(&mut route, "lo")?;
        let uplink = bring_up(&mut route, UPLINK)?;
        route.add_address(&Address::new(uplink, on_underlay(machine.address)?))?;
        let anywhere = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
        route.add_route(&RouteEntry::via(anywhere, GATEWAY.into(), uplink))?;
        Ok(namespace)
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

fn bring_up(route: &mut RouteSocket, name: &str) -> Result<u32> {
    let link = route.link(name)?.ok_or_else(|| Error::Failed(format!("a new namespace has no link {name}")))?;
    route.change_link(link.index, &[LinkChange::Up(true)])?;
    Ok(link.index)
}

fn on_underlay(address: Ipv4Addr) -> Result<Ipv4Net> {
    Ipv4Net::new(address, UNDERLAY.prefix_len()).map_err(|error| Error::Failed(error.to_string()))
}
