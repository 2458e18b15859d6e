//! The host's side of a network: the bridge, and the gateway's addresses on it or on one of its VLANs.

use podwire_kernel::{
    ResultExt,
    route::{Address, Link, LinkChange, LinkKind, NewLink, NewLinkKind, Peer, Route, RouteSocket},
    sysctl::{ProcSys, Sysctl},
};
use podwire_model::IpNet;

use super::{
    config::{Config, Vlans},
    port,
};
use crate::{CniResult, Error, IpConfig, Result, address::mac_of, forward, pair};

/// The bridge, made when it is not there.
pub fn bridge(host: &mut RouteSocket, config: &Config, result: &CniResult) -> Result<Link> {
    let name = &config.bridge;
    let link = match host.link(name)? {
        Some(link) => link,
        None => make(host, config, result)?,
    };
    if link.kind != LinkKind::Bridge {
        return Err(Error::Config(format!("{name} exists and is no bridge (kind {:?})", link.kind.name())));
    }
    if config.vlans.is_some() && !link.vlans.is_some_and(|vlans| vlans.filtering) {
        let advice = "delete it, or let it: ip link set dev BRIDGE type bridge vlan_filtering 1";
        return Err(Error::Config(format!("\"vlan\": bridge {name} exists and does not keep VLANs apart; {advice}")));
    }
    let promiscuous = config.promiscuous && !link.promiscuous;
    match (link.up, promiscuous) {
        (true, false) => {}
        (_, true) => host.change_link(link.index, &[LinkChange::Up(true), LinkChange::Promiscuous(true)])?,
        (false, false) => host.change_link(link.index, &[LinkChange::Up(true)])?,
    }
    Ok(link)
}

fn make(host: &mut RouteSocket, config: &Config, result: &CniResult) -> Result<Link> {
    let name = &config.bridge;
    // A fixed MAC: left to itself, a bridge takes the lowest one of its ports and changes it as they come and go.
    let gateway = result.ips.iter().find_map(|ip| ip.gateway.and_then(mac_of));
    let mac = gateway.filter(|_| config.gateway);
    let kind = if config.vlans.is_some() { NewLinkKind::VlanBridge } else { NewLinkKind::Bridge };
    let new = NewLink { mac, mtu: config.mtu, up: true, ..NewLink::new(name, kind) };
    match host.create_link(&new) {
        Ok(link) => {
            // Routes by it are ours to set. There is no such parameter without IPv6.
            ProcSys.ensure(&format!("net/ipv6/conf/{name}/accept_ra"), "0").or_gone()?;
            Ok(link)
        }
        // Another ADD was sooner.
        Err(error) if error.already_exists() => {
            let vanished = || Error::Config(format!("bridge {name} vanished while it was made"));
            host.link(name)?.ok_or_else(vanished)
        }
        Err(error) if config.vlans.is_some() && error.is_unsupported() => {
            let detail = "the kernel's bridges do not keep VLANs apart (CONFIG_BRIDGE_VLAN_FILTERING)".to_owned();
            Err(Error::Unsupported { field: "vlan", detail })
        }
        Err(error) => Err(error.into()),
    }
}

/// Gives the gateways' addresses to the bridge, or to an interface in the containers' VLAN, which is returned; and lets the
/// host forward.
pub fn serve_as_gateway(
    host: &mut RouteSocket,
    config: &Config,
    bridge: &Link,
    ips: &[IpConfig],
) -> Result<Option<Link>> {
    let vlan = match &config.vlans {
        Some(vlans @ Vlans { access: Some(id), .. }) => {
            let name = format!("{}.{id}", config.bridge);
            Some(match host.link(&name)? {
                Some(link) => link,
                None => vlan_interface(host, config, bridge, (&name, vlans))?,
            })
        }
        _ => None,
    };
    let device = vlan.as_ref().unwrap_or(bridge);
    for ip in ips {
        if let Some(gateway) = ip.gateway {
            let net = IpNet::new(gateway, ip.address.prefix_len())
                .map_err(|_| Error::Config(format!("{gateway} cannot be the gateway of {}", ip.address)))?;
            add_address(host, config, device, net)?;
        }
    }
    forward::enable(ips)?;
    Ok(vlan)
}

/// A veth pair on the host, one end of it a port of the bridge: the host's own place in a VLAN.
fn vlan_interface(
    host: &mut RouteSocket,
    config: &Config,
    bridge: &Link,
    (name, vlans): (&str, &Vlans),
) -> Result<Link> {
    let port_name = pair::name(name.bytes());
    let peer = Peer { name: &port_name, mac: None, mtu: config.mtu, netns: None };
    let new = NewLink { mtu: config.mtu, ..NewLink::new(name, NewLinkKind::Veth(peer)) };
    let link = match host.create_link(&new) {
        // Another ADD was sooner.
        Err(error) if error.already_exists() => host.link(name)?.ok_or(error)?,
        link => link?,
    };
    let made = (|| {
        let vanished = || Error::Config(format!("{port_name} vanished while it was made"));
        let port = host.link(&port_name)?.ok_or_else(vanished)?;
        host.change_link(port.index, &[LinkChange::Master(Some(bridge.index)), LinkChange::Up(true)])?;
        let access = Vlans { trunk: Vec::new(), ..vlans.clone() };
        port::enter_vlans(host, port.index, bridge, &access)?;
        host.change_link(link.index, &[LinkChange::Up(true)])?;
        Ok(link.clone())
    })();
    if made.is_err() {
        _ = host.delete_link_early(link.index);
    }
    made
}

fn add_address(host: &mut RouteSocket, config: &Config, device: &Link, net: IpNet) -> Result<()> {
    let addresses = host.addresses(Some(device.index))?;
    if addresses.iter().any(|address| address.net == net) {
        return Ok(());
    }
    // IPv4: one address; IPv6: one in each network.
    let rival = |address: &&Address| match (address.net, net) {
        (IpNet::V4(_), IpNet::V4(_)) => true,
        (IpNet::V6(old), IpNet::V6(new)) => old.contains(&new.network()) || new.contains(&old.network()),
        _ => false,
    };
    for address in addresses.iter().filter(rival) {
        if !config.force_address {
            let (name, old) = (&device.name, address.net);
            let advice = "set forceAddress to replace it";
            return Err(Error::Exists(format!("bridge {name} has address {old}, not {net}; {advice}")));
        }
        host.delete_address(address).or_gone()?;
    }
    let broadcast = match net {
        IpNet::V4(net) => Some(net.broadcast()),
        IpNet::V6(_) => None,
    };
    Ok(host.add_address(&Address { broadcast, ..Address::new(device.index, net) }).or_exists()?)
}
