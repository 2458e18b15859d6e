//! Links as rtnetlink messages and back.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use super::{Body, bridge, read_flag, read_ip, read_text};
use crate::{
    netlink::{attributes, u16_at, u32_at},
    route::types::{
        BridgePort, Ipip, IpvlanMode, Link, LinkChange, LinkKind, Mac, MacvlanMode, NewLink, NewLinkKind, Peer, Vxlan,
    },
};

/// Kinds inside IFLA_LINKINFO / INFO_DATA and friends that `libc` does not have (`linux/if_link.h`, `linux/if_tunnel.h`,
/// `linux/veth.h`).
mod kind {
    pub const VETH_INFO_PEER: u16 = 1;
    pub const VXLAN_ID: u16 = 1;
    pub const VXLAN_LINK: u16 = 3;
    pub const VXLAN_LOCAL: u16 = 4;
    pub const VXLAN_LEARNING: u16 = 7;
    pub const VXLAN_PORT: u16 = 15;
    pub const VXLAN_LOCAL6: u16 = 17;
    pub const VXLAN_GBP: u16 = 23;
    pub const MACVLAN_MODE: u16 = 1;
    pub const MACVLAN_BC_QUEUE_LEN: u16 = 7;
    pub const IPVLAN_MODE: u16 = 1;
    pub const VLAN_ID: u16 = 1;
    pub const TUN_TYPE: u16 = 3;
    pub const TUN_PERSIST: u16 = 6;
    pub const TUN_MULTI_QUEUE: u16 = 7;
    pub const IPTUN_LINK: u16 = 1;
    pub const IPTUN_LOCAL: u16 = 2;
    pub const IPTUN_PMTUDISC: u16 = 10;
    pub const PORT_MODE: u16 = 4;
    pub const PORT_LEARNING: u16 = 8;
    pub const PORT_UNICAST_FLOOD: u16 = 9;
    pub const PORT_ISOLATED: u16 = 33;
    pub const PORT_LOCKED: u16 = 39;
}

const UP: u32 = libc::IFF_UP as u32;
const RUNNING: u32 = libc::IFF_RUNNING as u32;
const ALL_MULTICAST: u32 = libc::IFF_ALLMULTI as u32;
const PROMISCUOUS: u32 = libc::IFF_PROMISC as u32;

/// `struct ifinfomsg`.
pub(super) fn link_header(index: u32, flags: u32, change: u32) -> Body {
    let mut body = Body(vec![0; 4]);
    for word in [index, flags, change] {
        body.0.extend_from_slice(&word.to_ne_bytes());
    }
    body
}

/// RTM_GETLINK for every link, or for one by name or index.
pub fn get_link(name: Option<&str>, index: u32) -> Body {
    const SKIP_STATISTICS: u32 = 1 << 3;
    let mut body = link_header(index, 0, 0);
    body.u32(libc::IFLA_EXT_MASK, SKIP_STATISTICS);
    if let Some(name) = name {
        body.text(libc::IFLA_IFNAME, name);
    }
    body
}

/// RTM_DELLINK.
pub fn delete_link(index: u32) -> Body {
    link_header(index, 0, 0)
}

/// RTM_NEWLINK with CREATE; into another network namespace if `netns` says so.
pub fn new_link(link: &NewLink<'_>, netns: Option<BorrowedFd<'_>>) -> Body {
    let flags = if link.up { UP } else { 0 };
    let mut body = link_header(0, flags, flags);
    body.text(libc::IFLA_IFNAME, link.name);
    link_basics(&mut body, link.mac, link.mtu);
    if let NewLinkKind::Veth(_) = link.kind {
        one_queue(&mut body);
    }
    if let Some(master) = link.master {
        body.u32(libc::IFLA_MASTER, master);
    }
    if let Some(netns) = netns {
        body.u32(libc::IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
    }
    if let Some(lower) = link.kind.lower() {
        body.u32(libc::IFLA_LINK, lower);
    }
    body.nest(libc::IFLA_LINKINFO, |info| {
        info.text(libc::IFLA_INFO_KIND, link.kind.name());
        info.nest(libc::IFLA_INFO_DATA, |data| link_data(data, &link.kind));
    });
    body
}

fn link_data(data: &mut Body, kind: &NewLinkKind<'_>) {
    match kind {
        NewLinkKind::VlanBridge => bridge::filtering(data),
        NewLinkKind::Bridge | NewLinkKind::Dummy | NewLinkKind::Ifb | NewLinkKind::Wireguard | NewLinkKind::Tun => {}
        NewLinkKind::Veth(peer) => _ = data.attribute(kind::VETH_INFO_PEER, &veth_peer(peer).0),
        NewLinkKind::Vxlan(vxlan) => vxlan_data(data, vxlan),
        NewLinkKind::Macvlan { mode, broadcast_queue, .. } => {
            data.u32(kind::MACVLAN_MODE, macvlan_number(*mode));
            if let Some(length) = broadcast_queue {
                data.u32(kind::MACVLAN_BC_QUEUE_LEN, *length);
            }
        }
        NewLinkKind::Ipvlan { mode, .. } => {
            _ = data.attribute(kind::IPVLAN_MODE, &ipvlan_number(*mode).to_ne_bytes());
        }
        NewLinkKind::Vlan { id, .. } => _ = data.attribute(kind::VLAN_ID, &id.to_ne_bytes()),
        NewLinkKind::Ipip(Ipip { local, device }) => {
            data.attribute(kind::IPTUN_LOCAL, &local.octets());
            // Large packets are told to be smaller rather than split.
            data.flag(kind::IPTUN_PMTUDISC, true);
            if let Some(device) = device {
                data.u32(kind::IPTUN_LINK, *device);
            }
        }
    }
}

const fn macvlan_number(mode: MacvlanMode) -> u32 {
    match mode {
        MacvlanMode::Private => 1,
        MacvlanMode::Vepa => 2,
        MacvlanMode::Bridge => 4,
        MacvlanMode::Passthru => 8,
    }
}

const fn ipvlan_number(mode: IpvlanMode) -> u16 {
    match mode {
        IpvlanMode::L2 => 0,
        IpvlanMode::L3 => 1,
        IpvlanMode::L3s => 2,
    }
}

fn link_basics(body: &mut Body, mac: Option<Mac>, mtu: Option<u32>) {
    if let Some(Mac(octets)) = mac {
        body.attribute(libc::IFLA_ADDRESS, &octets);
    }
    if let Some(mtu) = mtu {
        body.u32(libc::IFLA_MTU, mtu);
    }
}

/// A veth uses one queue in each direction unless told otherwise, but is made with as many as there may be processors,
/// each with its entries in sysfs (`drivers/net/veth.c`). Saying so makes it sooner, and much sooner on large machines.
fn one_queue(body: &mut Body) {
    body.u32(libc::IFLA_NUM_TX_QUEUES, 1);
    body.u32(libc::IFLA_NUM_RX_QUEUES, 1);
}

fn veth_peer(peer: &Peer<'_>) -> Body {
    let mut body = link_header(0, 0, 0);
    body.text(libc::IFLA_IFNAME, peer.name);
    link_basics(&mut body, peer.mac, peer.mtu);
    one_queue(&mut body);
    if let Some(netns) = peer.netns {
        body.u32(libc::IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
    }
    body
}

fn vxlan_data(data: &mut Body, vxlan: &Vxlan) {
    data.u32(kind::VXLAN_ID, vxlan.id);
    data.attribute(kind::VXLAN_PORT, &vxlan.port.to_be_bytes());
    data.flag(kind::VXLAN_LEARNING, vxlan.learning);
    match vxlan.local {
        Some(IpAddr::V4(ip)) => data.attribute(kind::VXLAN_LOCAL, &ip.octets()),
        Some(IpAddr::V6(ip)) => data.attribute(kind::VXLAN_LOCAL6, &ip.octets()),
        None => data,
    };
    if let Some(device) = vxlan.device {
        data.u32(kind::VXLAN_LINK, device);
    }
    if vxlan.gbp {
        data.attribute(kind::VXLAN_GBP, &[]);
    }
}

/// RTM_SETLINK with every change that is not one of a bridge port.
pub fn change_link(index: u32, changes: &[LinkChange<'_>]) -> Option<Body> {
    let (mut flags, mut mask) = (0, 0);
    let mut set = |flag: u32, on: bool| {
        mask |= flag;
        flags = if on { flags | flag } else { flags & !flag };
    };
    let mut rest = Body::default();
    for change in changes {
        match *change {
            LinkChange::Up(up) => set(UP, up),
            LinkChange::Promiscuous(on) => set(PROMISCUOUS, on),
            LinkChange::AllMulticast(on) => set(ALL_MULTICAST, on),
            LinkChange::TxQueueLength(length) => _ = rest.u32(libc::IFLA_TXQLEN, length),
            LinkChange::Mtu(mtu) => link_basics(&mut rest, None, Some(mtu)),
            LinkChange::Mac(mac) => link_basics(&mut rest, Some(mac), None),
            LinkChange::Master(master) => _ = rest.u32(libc::IFLA_MASTER, master.unwrap_or(0)),
            LinkChange::Name(name) => _ = rest.text(libc::IFLA_IFNAME, name),
            LinkChange::Alias(alias) => _ = rest.attribute(libc::IFLA_IFALIAS, alias.as_bytes()),
            LinkChange::Netns(netns) => _ = rest.u32(libc::IFLA_NET_NS_FD, netns.as_raw_fd() as u32),
            LinkChange::Hairpin(_)
            | LinkChange::Learning(_)
            | LinkChange::Flood(_)
            | LinkChange::Isolated(_)
            | LinkChange::Locked(_) => {}
        }
    }
    if mask == 0 && rest.0.is_empty() {
        return None;
    }
    let mut body = link_header(index, flags, mask);
    body.0.append(&mut rest.0);
    Some(body)
}

/// RTM_NEWLINK (of an existing link) with the changes of a bridge port: the kernel takes them in no other way that
/// names the port's driver.
pub fn change_port(index: u32, changes: &[LinkChange<'_>]) -> Option<Body> {
    let mut port = Body::default();
    for change in changes {
        match *change {
            LinkChange::Hairpin(on) => _ = port.flag(kind::PORT_MODE, on),
            LinkChange::Learning(on) => _ = port.flag(kind::PORT_LEARNING, on),
            LinkChange::Flood(on) => _ = port.flag(kind::PORT_UNICAST_FLOOD, on),
            LinkChange::Isolated(on) => _ = port.flag(kind::PORT_ISOLATED, on),
            LinkChange::Locked(on) => _ = port.flag(kind::PORT_LOCKED, on),
            _ => {}
        }
    }
    if port.0.is_empty() {
        return None;
    }
    let mut body = link_header(index, 0, 0);
    body.nest(libc::IFLA_LINKINFO, |info| {
        info.text(libc::IFLA_INFO_SLAVE_KIND, "bridge");
        info.attribute(libc::IFLA_INFO_SLAVE_DATA, &port.0);
    });
    Some(body)
}

/// RTM_NEWLINK as the kernel sends it.
pub fn read_link(payload: &[u8]) -> Option<Link> {
    let (index, flags) = (u32_at(payload, 4)?, u32_at(payload, 8)?);
    let mut link = Link {
        index,
        name: String::new(),
        kind: LinkKind::Other(String::new()),
        mac: None,
        mtu: 0,
        up: flags & UP != 0,
        running: flags & UP != 0 && flags & RUNNING != 0,
        master: None,
        alias: None,
        peer_index: None,
        peer_netns_id: None,
        parent: None,
        port: None,
        vlans: None,
        promiscuous: flags & PROMISCUOUS != 0,
        all_multicast: flags & ALL_MULTICAST != 0,
        tx_queue_length: 0,
    };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = read_text(value),
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
            libc::IFLA_TXQLEN => link.tx_queue_length = u32_at(value, 0)?,
            libc::IFLA_MASTER => link.master = u32_at(value, 0).filter(|index| *index != 0),
            libc::IFLA_IFALIAS => link.alias = Some(read_text(value)),
            libc::IFLA_LINK => link.peer_index = u32_at(value, 0).filter(|index| *index != 0),
            libc::IFLA_LINK_NETNSID => link.peer_netns_id = u32_at(value, 0).map(|id| id as i32),
            libc::IFLA_PARENT_DEV_NAME => link.parent = Some(read_text(value)),
            libc::IFLA_LINKINFO => read_link_info(&mut link, value),
            _ => {}
        }
    }
    Some(link)
}

fn read_link_info(link: &mut Link, info: &[u8]) {
    let (mut name, mut data, mut port_kind, mut port) = (String::new(), None, String::new(), None);
    for (kind, value) in attributes(info) {
        match kind {
            libc::IFLA_INFO_KIND => name = read_text(value),
            libc::IFLA_INFO_DATA => data = Some(value),
            libc::IFLA_INFO_SLAVE_KIND => port_kind = read_text(value),
            libc::IFLA_INFO_SLAVE_DATA => port = Some(read_port(value)),
            _ => {}
        }
    }
    link.vlans = data.filter(|_| name == "bridge").map(bridge::read_bridge);
    link.port = port.filter(|_| port_kind == "bridge");
    link.kind = match (name.as_str(), data) {
        ("bridge", _) => LinkKind::Bridge,
        ("veth", _) => LinkKind::Veth,
        ("dummy", _) => LinkKind::Dummy,
        ("ifb", _) => LinkKind::Ifb,
        ("wireguard", _) => LinkKind::Wireguard,
        ("vxlan", Some(data)) => LinkKind::Vxlan(read_vxlan(data)),
        (_, Some(data)) => read_kind(&name, data).unwrap_or(LinkKind::Other(name)),
        (_, None) => LinkKind::Other(name),
    };
}

/// The kinds that have few settings.
fn read_kind(name: &str, data: &[u8]) -> Option<LinkKind> {
    let value = |wanted: u16| attributes(data).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    Some(match name {
        "macvlan" => {
            let number = u32_at(value(kind::MACVLAN_MODE)?, 0)?;
            let modes = [MacvlanMode::Private, MacvlanMode::Vepa, MacvlanMode::Bridge, MacvlanMode::Passthru];
            LinkKind::Macvlan(modes.into_iter().find(|mode| macvlan_number(*mode) == number)?)
        }
        "ipvlan" => {
            let number = u16_at(value(kind::IPVLAN_MODE)?, 0)?;
            let modes = [IpvlanMode::L2, IpvlanMode::L3, IpvlanMode::L3s];
            LinkKind::Ipvlan(modes.into_iter().find(|mode| ipvlan_number(*mode) == number)?)
        }
        "vlan" => LinkKind::Vlan(u16_at(value(kind::VLAN_ID)?, 0)?),
        "ipip" => LinkKind::Ipip(Ipip {
            local: Ipv4Addr::from(<[u8; 4]>::try_from(value(kind::IPTUN_LOCAL)?).ok()?),
            device: value(kind::IPTUN_LINK).and_then(|value| u32_at(value, 0)).filter(|index| *index != 0),
        }),
        "tun" => {
            let kept =
                [kind::TUN_PERSIST, kind::TUN_MULTI_QUEUE].iter().all(|flag| value(*flag).is_some_and(read_flag));
            let carries_ip = value(kind::TUN_TYPE) == Some(&[libc::IFF_TUN as u8]);
            (kept && carries_ip).then_some(LinkKind::Tun)?
        }
        _ => return None,
    })
}

fn read_vxlan(data: &[u8]) -> Vxlan {
    let mut vxlan = Vxlan { id: 0, port: 0, local: None, device: None, learning: false, gbp: false };
    for (kind, value) in attributes(data) {
        match kind {
            kind::VXLAN_ID => vxlan.id = u32_at(value, 0).unwrap_or(0),
            kind::VXLAN_PORT => vxlan.port = u16_at(value, 0).unwrap_or(0).to_be(),
            kind::VXLAN_LOCAL | kind::VXLAN_LOCAL6 => vxlan.local = read_ip(value),
            kind::VXLAN_LINK => vxlan.device = u32_at(value, 0).filter(|index| *index != 0),
            kind::VXLAN_LEARNING => vxlan.learning = read_flag(value),
            kind::VXLAN_GBP => vxlan.gbp = true,
            _ => {}
        }
    }
    vxlan
}

fn read_port(data: &[u8]) -> BridgePort {
    let mut port = BridgePort { hairpin: false, learning: false, flood: false, isolated: false, locked: false };
    for (kind, value) in attributes(data) {
        match kind {
            kind::PORT_MODE => port.hairpin = read_flag(value),
            kind::PORT_LEARNING => port.learning = read_flag(value),
            kind::PORT_UNICAST_FLOOD => port.flood = read_flag(value),
            kind::PORT_ISOLATED => port.isolated = read_flag(value),
            kind::PORT_LOCKED => port.locked = read_flag(value),
            _ => {}
        }
    }
    port
}
