use podwire_kernel::{
    ResultExt,
    ns::Namespace,
    route::{
        Address, Link, Mac, Neighbour, NeighbourState, Route, RouteEntry, RouteFilter, RouteProtocol, RouteSocket,
    },
};
use podwire_model::IpNet;
use serde::Deserialize;

use super::Plugin;
use crate::{
    Call, CniResult, Dns, Error, IpConfig, Result, Verb,
    address::{first_host, mac_of},
    forward,
    ipam::Ipam,
    masquerade, pair,
    pod::{self, describe},
};

/// See `ptp/README.md`.
pub struct Ptp;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(rename = "ipMasq", default)]
    masquerade: bool,
    ip_masq_backend: Option<String>,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    ipam: Ipam,
    #[serde(default)]
    dns: Dns,
}

impl Config {
    fn of(call: &Call) -> Result<Self> {
        let config: Self = call.config()?;
        masquerade::check_backend(config.ip_masq_backend.as_deref())?;
        if !config.ipam.is_set() {
            return Err(Error::Config("\"ipam\" has no \"type\": routes are all that joins the two ends".to_owned()));
        }
        Ok(config)
    }
}

impl Plugin for Ptp {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let config = Config::of(call)?;
        let host = RouteSocket::open()?;
        let (namespace, pod) = pod::open(call)?;
        let assigned = config.ipam.call(call, Verb::Add)?.unwrap_or_default();
        let attached = Attach { call, config: &config, namespace: &namespace, host, pod }.run(assigned);
        if attached.is_err() {
            // What matters to the caller is why ADD failed.
            _ = self.del(call);
        }
        attached
    }

    fn del(&self, call: &Call) -> Result<()> {
        call.config::<pair::Teardown>()?.del(call)
    }

    fn check(&self, call: &Call) -> Result<()> {
        let config = Config::of(call)?;
        let previous = call.required_previous()?;
        config.ipam.call(call, Verb::Check)?;
        let (mut host, name) = (RouteSocket::open()?, pair::host_name(call));
        let wrong = |what: String| Err(Error::NotAsSetUp(what));
        let Some(veth) = host.link(&name)?.filter(|link| link.up) else {
            return wrong(format!("{name} is gone or down"));
        };
        let routes = host.routes(&RouteFilter { device: Some(veth.index), ..RouteFilter::MAIN })?;
        for ip in &previous.ips {
            if !routes.iter().any(|route| route.destination == IpNet::from(ip.address.addr())) {
                return wrong(format!("the host has no route to {}", ip.address.addr()));
            }
        }
        if config.masquerade {
            masquerade::check(call, &previous.ips)?;
        }
        pod::check(call, previous).map(drop)
    }

    fn gc(&self, call: &Call) -> Result<()> {
        call.config::<pair::Teardown>()?.gc(call)
    }

    fn status(&self, call: &Call) -> Result<()> {
        let config = Config::of(call)?;
        if config.masquerade {
            masquerade::status()?;
        }
        config.ipam.call(call, Verb::Status).map(drop)
    }
}

/// One ADD.
struct Attach<'a> {
    call: &'a Call,
    config: &'a Config,
    namespace: &'a Namespace,
    host: RouteSocket,
    pod: RouteSocket,
}

impl Attach<'_> {
    fn run(&mut self, assigned: CniResult) -> Result<CniResult> {
        let Self { call, config, namespace, host, pod } = self;
        if assigned.ips.is_empty() {
            return Err(Error::Config("the IPAM plugin gave no address".to_owned()));
        }
        let mut result = CniResult { interfaces: Vec::new(), ..assigned };
        if !config.dns.is_empty() {
            result.dns = config.dns.clone();
        }
        for ip in &mut result.ips {
            ip.gateway.get_or_insert_with(|| first_host(ip.address));
        }
        forward::enable(&result.ips)?;
        let mac = result.ips.iter().find_map(|ip| mac_of(ip.address.addr()));
        let mtu = Some(config.mtu).filter(|mtu| *mtu > 0);
        let veth = pair::make(host, call, (namespace, mac), mtu, None)?;
        let eth = pod::configure(call, namespace, pod, &result, false)?;
        for ip in &result.ips {
            by_gateway_only(pod, &eth, ip)?;
            lead_to(host, &veth, ip, eth.mac)?;
        }
        pair::wait_until_running(host, veth.index)?;
        if config.masquerade {
            masquerade::add(call, &result.ips)?;
        }
        result.interfaces = vec![describe(&veth, None), describe(&eth, pod::sandbox(call))];
        for ip in &mut result.ips {
            ip.interface = Some(1);
        }
        Ok(result)
    }
}

/// In the container: whatever is in its network is behind the gateway, not on the link.
fn by_gateway_only(pod: &mut RouteSocket, eth: &Link, ip: &IpConfig) -> Result<()> {
    let (address, network) = (ip.address.addr(), ip.address.trunc());
    let Some(gateway) = ip.gateway else { return Ok(()) };
    let mut on_link = RouteEntry { protocol: RouteProtocol::KERNEL, ..RouteEntry::on_link(network, eth.index) };
    match address.is_ipv4() {
        true => on_link.source = Some(address),
        // As the kernel makes it (`addrconf_prefix_route`).
        false => on_link.metric = 256,
    }
    pod.delete_route(&on_link).or_gone()?;
    let to_gateway = RouteEntry::on_link(IpNet::from(gateway), eth.index);
    let via_gateway = RouteEntry::via(network, gateway, eth.index);
    for route in [to_gateway, via_gateway] {
        pod::add_route(pod, eth, &RouteEntry { source: Some(address), ..route })?;
    }
    Ok(())
}

/// On the host: the gateway's address is on each pair, and the container's behind it.
fn lead_to(host: &mut RouteSocket, veth: &Link, ip: &IpConfig, mac: Option<Mac>) -> Result<()> {
    let address = ip.address.addr();
    if address.is_ipv6() {
        pod::allow_ipv6(&veth.name)?;
        // Not before its own link-local address is known to be unique, after a second or two, could the host ask for it.
        host.replace_neighbour(&Neighbour { device: veth.index, address, mac, state: NeighbourState::Stale })?;
    }
    if let Some(gateway) = ip.gateway {
        host.add_address(&Address::new(veth.index, IpNet::from(gateway))).or_exists()?;
    }
    pod::add_route(host, veth, &RouteEntry::on_link(IpNet::from(address), veth.index))
}
