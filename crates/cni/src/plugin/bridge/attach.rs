use std::net::IpAddr;

use podwire_kernel::{
    ns::Namespace,
    route::{Link, RouteSocket},
};
use podwire_model::{IpNet, Ipv4Net, Ipv6Net};

use super::{config::Config, port, segment};
use crate::{
    Call, CniResult, Error, Result, RouteConfig,
    address::{first_host, mac_of},
    masquerade, pair,
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
    /// Makes everything; `assigned` is what the IPAM plugin said, if there is one.
    pub fn run(&mut self, assigned: Option<CniResult>) -> Result<CniResult> {
        let (call, config) = (self.call, self.config);
        if assigned.as_ref().is_some_and(|assigned| assigned.ips.is_empty()) {
            return Err(Error::Config("the IPAM plugin gave no address".to_owned()));
        }
        let mut result = complete(assigned.unwrap_or_default(), config);
        let mut bridge = segment::bridge(&mut self.host, config, &result)?;
        let vlan = match config.gateway {
            true => segment::serve_as_gateway(&mut self.host, config, &bridge, &result.ips)?,
            false => None,
        };
        let mac = config.mac.or_else(|| result.ips.iter().find_map(|ip| mac_of(ip.address.addr())));
        let veth = port::make(&mut self.host, call, config, &bridge, (self.namespace, mac))?;
        let eth = self.container(&result)?;
        if config.port.locked {
            port::bind_mac(&mut self.host, veth.index, eth.mac)?;
        }
        if config.masquerade {
            masquerade::add(call, &result.ips)?;
        }
        if !config.disabled {
            pair::wait_until_running(&mut self.host, veth.index)?;
            // A bridge without a MAC address of its own has that of a port. With the spanning tree protocol it has no
            // carrier for longer than anybody waits.
            if (!bridge.running || !config.gateway)
                && let Ok(running) = pair::wait_until_running(&mut self.host, bridge.index)
            {
                bridge = running;
            }
        }
        result.interfaces = vec![describe(&bridge, None), describe(&veth, None), describe(&eth, pod::sandbox(call))];
        for ip in &mut result.ips {
            ip.interface = Some(2);
        }
        result.interfaces.extend(vlan.map(|vlan| describe(&vlan, None)));
        Ok(result)
    }

    /// Sets the container's end up.
    fn container(&mut self, result: &CniResult) -> Result<Link> {
        let Self { call, config, namespace, pod, .. } = self;
        if config.disabled {
            return pod::interface(call, pod);
        }
        // A MAC address that does not follow from the address is not that of the address's last holder.
        if config.mac.is_some() || result.ips.iter().any(|ip| ip.address.addr().is_ipv6()) {
            pod::announce(namespace, &call.ifname)?;
        }
        pod::configure(call, namespace, pod, result, config.dad)
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
