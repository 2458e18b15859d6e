use std::{net::IpAddr, os::fd::AsFd};

use podwire_kernel::{
    ResultExt,
    ns::Namespace,
    route::{Address, Link, LinkChange, LinkKind, NewLink, NewLinkKind, Peer, Route, RouteSocket},
    sysctl::{ProcSys, Sysctl},
};
use podwire_model::{IpNet, Ipv4Net, Ipv6Net};

use super::{config::Config, host_name};
use crate::{
    Call, CniResult, Error, Result, RouteConfig,
    address::{first_host, mac_of},
    mark,
    pod::{self, describe},
};

/// One ADD, after the addresses are assigned.
pub struct Attach<'a> {
    pub call: &'a Call,
    pub config: &'a Config,
    pub namespace: &'a Namespace,
    pub host: RouteSocket,
    pub pod: RouteSocket,
}

impl Attach<'_> {
    /// Makes everything; `assigned` is what the IPAM plugin said.
    pub fn run(&mut self, assigned: CniResult) -> Result<CniResult> {
        let mut result = complete(assigned, self.config);
        let bridge = self.bridge(&result)?;
        if self.config.gateway {
            self.serve_as_gateway(&bridge, &result)?;
        }
        let veth = self.veth(&bridge, &result)?;
        let eth = pod::configure(self.call, self.namespace, &mut self.pod, &result, self.config.dad)?;
        result.interfaces =
            vec![describe(&bridge, None), describe(&veth, None), describe(&eth, pod::sandbox(self.call))];
        for ip in &mut result.ips {
            ip.interface = Some(result.interfaces.len() - 1);
        }
        Ok(result)
    }

    /// The bridge, made when it is not there.
    fn bridge(&mut self, result: &CniResult) -> Result<Link> {
        let name = &self.config.bridge;
        let found = self.host.link(name)?;
        if found.is_none() {
            // A fixed MAC: left to itself, a bridge takes the lowest one of its ports and changes it as they come and go.
            let gateway = result.ips.iter().find_map(|ip| ip.gateway.and_then(mac_of));
            let mac = gateway.filter(|_| self.config.gateway);
            let new = NewLink { mac, mtu: self.config.mtu, up: true, ..NewLink::new(name, NewLinkKind::Bridge) };
            // Another ADD may be making it at this moment.
            self.host.create_link(&new).map(drop).or_exists()?;
        }
        let link = match found {
            Some(link) => Some(link),
            None => self.host.link(name)?,
        };
        let link = link.ok_or_else(|| Error::Config(format!("bridge {name} vanished while it was made")))?;
        if link.kind != LinkKind::Bridge {
            return Err(Error::Config(format!("{name} exists and is no bridge (kind {:?})", link.kind.name())));
        }
        if !link.up {
            self.host.change_link(link.index, &[LinkChange::Up(true)])?;
        }
        Ok(link)
    }

    /// Gives the bridge the gateways' addresses and lets the host forward.
    fn serve_as_gateway(&mut self, bridge: &Link, result: &CniResult) -> Result<()> {
        for ip in &result.ips {
            if let Some(gateway) = ip.gateway {
                let net = IpNet::new(gateway, ip.address.prefix_len());
                let net =
                    net.map_err(|_| Error::Config(format!("{gateway} cannot be the gateway of {}", ip.address)))?;
                self.bridge_address(bridge, net)?;
            }
        }
        let any = |v4: bool| result.ips.iter().any(|ip| ip.address.addr().is_ipv4() == v4);
        if any(true) {
            ProcSys.ensure("net/ipv4/ip_forward", "1")?;
        }
        if any(false) {
            ProcSys.ensure("net/ipv6/conf/all/forwarding", "1")?;
        }
        Ok(())
    }

    fn bridge_address(&mut self, bridge: &Link, net: IpNet) -> Result<()> {
        let addresses = self.host.addresses(Some(bridge.index))?;
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
            if !self.config.force_address {
                return Err(Error::Exists(format!(
                    "bridge {} has address {}, not {net}; set forceAddress to replace it",
                    bridge.name, address.net
                )));
            }
            self.host.delete_address(address).or_gone()?;
        }
        let broadcast = match net {
            IpNet::V4(net) => Some(net.broadcast()),
            IpNet::V6(_) => None,
        };
        Ok(self.host.add_address(&Address { broadcast, ..Address::new(bridge.index, net) }).or_exists()?)
    }

    /// The veth pair: the host's end on the bridge, the other at its place in the container from the first moment.
    fn veth(&mut self, bridge: &Link, result: &CniResult) -> Result<Link> {
        let Self { call, config, .. } = self;
        let name = host_name(call);
        let from_address = result.ips.iter().find_map(|ip| mac_of(ip.address.addr()));
        let peer = Peer {
            name: &call.ifname,
            mac: config.mac.or(from_address),
            mtu: config.mtu,
            netns: Some(self.namespace.as_fd()),
        };
        let new = NewLink {
            mtu: config.mtu,
            master: Some(bridge.index),
            up: true,
            ..NewLink::new(&name, NewLinkKind::Veth(peer))
        };
        let link = self.host.create_link(&new)?;
        let mark = mark::of(call);
        let changes =
            [LinkChange::Alias(&mark), LinkChange::Hairpin(config.hairpin), LinkChange::Isolated(config.isolated)];
        let marked = self.host.change_link(link.index, &changes);
        if let Err(error) = marked {
            // Without its mark nobody will know it for ours.
            _ = self.host.delete_link(link.index);
            return Err(error.into());
        }
        Ok(link)
    }
}

/// Fills in gateways, and the default routes that `isDefaultGateway` asks for.
fn complete(assigned: CniResult, config: &Config) -> CniResult {
    let mut result = CniResult { interfaces: Vec::new(), ..assigned };
    if !config.dns.is_empty() {
        result.dns = config.dns.clone();
    }
    if config.gateway {
        for ip in &mut result.ips {
            ip.gateway.get_or_insert_with(|| first_host(ip.address));
        }
    }
    if config.default_gateway {
        for gateway in result.ips.iter().filter_map(|ip| ip.gateway) {
            let everywhere = everywhere(gateway);
            if !result.routes.iter().any(|route| route.dst == everywhere) {
                result.routes.push(RouteConfig { gw: Some(gateway), ..RouteConfig::to(everywhere) });
            }
        }
    }
    result
}

fn everywhere(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
    }
}
