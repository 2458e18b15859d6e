mod attach;
mod config;

use podwire_kernel::{
    ResultExt,
    route::{Link, LinkKind, Route, RouteFilter, RouteSocket},
};
use serde_json::Value;

use self::{attach::Attach, config::Config};
use super::Plugin;
use crate::{Call, CniResult, Error, Result, Verb, error::all};

/// See `bridge/README.md`.
pub struct Bridge;

impl Plugin for Bridge {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let config = Config::of(call)?;
        let (namespace, mut pod) = call.open_pod()?;
        if pod.link(&call.ifname)?.is_some() {
            return Err(Error::Exists(format!(
                "container {} has an interface {} already",
                call.container_id, call.ifname
            )));
        }
        let assigned = ipam(call, &config, Verb::Add)?.unwrap_or_default();
        let mut attach = Attach { call, config: &config, namespace: &namespace, host: RouteSocket::open()?, pod };
        let attached = attach.run(assigned);
        if attached.is_err() {
            // What matters to the caller is why ADD failed.
            _ = remove_veth(&mut attach.host, call);
            _ = ipam(call, &config, Verb::Del);
        }
        attached
    }

    fn del(&self, call: &Call) -> Result<()> {
        let config = Config::for_teardown(call)?;
        // The addresses last: nobody may get one that still answers here.
        all([
            call.open_pod_if_there().and_then(|pod| pod.map_or(Ok(()), |mut pod| remove(&mut pod, &call.ifname))),
            RouteSocket::open().map_err(Error::from).and_then(|mut host| remove_veth(&mut host, call)),
            ipam(call, &config, Verb::Del).map(drop),
        ])
    }

    fn check(&self, call: &Call) -> Result<()> {
        let config = Config::of(call)?;
        let previous = call.required_previous()?;
        ipam(call, &config, Verb::Check)?;
        let mut host = RouteSocket::open()?;
        let bridge = host.link(&config.bridge)?.filter(|link| link.kind == LinkKind::Bridge);
        let bridge = bridge.ok_or_else(|| Error::NotAsSetUp(format!("bridge {} is gone", config.bridge)))?;
        let veth = host.link(&host_name(call))?;
        if veth.is_none_or(|veth| veth.master != Some(bridge.index) || !veth.up) {
            let (name, bridge) = (host_name(call), &config.bridge);
            return Err(Error::NotAsSetUp(format!("{name} is gone, down, or no port of {bridge}")));
        }
        check_pod(call, previous)
    }

    fn gc(&self, call: &Call) -> Result<()> {
        let config = Config::for_teardown(call)?;
        let valid = call.valid_attachments()?;
        let valid: Vec<String> = valid.iter().map(|(id, ifname)| alias(&call.network, id, ifname)).collect();
        let mut host = RouteSocket::open()?;
        let ours = alias_prefix(&call.network);
        let links = host.links()?;
        let stale = links
            .iter()
            .filter(|link| link.alias.as_ref().is_some_and(|alias| alias.starts_with(&ours) && !valid.contains(alias)));
        let mut results: Vec<Result<()>> =
            stale.map(|link| host.delete_link(link.index).or_gone().map_err(Error::from)).collect();
        results.push(ipam(call, &config, Verb::Gc).map(drop));
        all(results)
    }

    fn status(&self, call: &Call) -> Result<()> {
        let config = Config::of(call)?;
        ipam(call, &config, Verb::Status).map(drop)
    }
}

/// Calls the IPAM plugin with the whole configuration, as the protocol wants it; nothing without one.
fn ipam(call: &Call, config: &Config, verb: Verb) -> Result<Option<CniResult>> {
    let Some(kind) = &config.ipam else { return Ok(None) };
    let mut delegated = call.config.clone();
    delegated.insert("type".to_owned(), Value::String(kind.clone()));
    call.delegate(verb, delegated)
}

/// The name of the host's end: the same for the same attachment, so that DEL finds it without the namespace.
fn host_name(call: &Call) -> String {
    let bytes =
        call.network.bytes().chain(*b"/").chain(call.container_id.bytes()).chain(*b"/").chain(call.ifname.bytes());
    let hash = podwire_kernel::stable_hash(bytes);
    format!("veth{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff))
}

/// The mark on the host's end, shown by `ip link`: whose it is.
fn alias(network: &str, container_id: &str, ifname: &str) -> String {
    /// IFALIASZ, without the terminator.
    const LONGEST: usize = 255;
    let mut alias = format!("{}{container_id}/{ifname}", alias_prefix(network));
    alias.truncate(LONGEST);
    alias
}

fn alias_prefix(network: &str) -> String {
    format!("podwire-cni:{network}/")
}

/// Deletes the host's end, and with it the other, if it is this attachment's.
fn remove_veth(host: &mut RouteSocket, call: &Call) -> Result<()> {
    let mark = alias(&call.network, &call.container_id, &call.ifname);
    match host.link(&host_name(call))? {
        Some(link) if link.alias.as_ref() == Some(&mark) => Ok(host.delete_link(link.index).or_gone()?),
        _ => Ok(()),
    }
}

fn remove(route: &mut RouteSocket, name: &str) -> Result<()> {
    match route.link(name)? {
        Some(link) => Ok(route.delete_link(link.index).or_gone()?),
        None => Ok(()),
    }
}

/// The container's side: what ADD reported must be there; more may be.
fn check_pod(call: &Call, previous: &CniResult) -> Result<()> {
    let missing = |what: String| Err(Error::NotAsSetUp(what));
    let (_, mut pod) = call.open_pod()?;
    let Some(link) = pod.link(&call.ifname)? else {
        return missing(format!("interface {} is gone", call.ifname));
    };
    if !link.up {
        return missing(format!("interface {} is down", call.ifname));
    }
    let reported = previous.interfaces.iter().position(|interface| is_ours(interface, &link));
    let addresses = pod.addresses(Some(link.index))?;
    for ip in previous.ips.iter().filter(|ip| ip.interface.is_none() || ip.interface == reported) {
        if !addresses.iter().any(|address| address.net == ip.address) {
            return missing(format!("{} has lost address {}", call.ifname, ip.address));
        }
    }
    let routes = pod.routes(&RouteFilter::ALL)?;
    for wanted in &previous.routes {
        if !routes
            .iter()
            .any(|route| route.destination == wanted.dst && (wanted.gw.is_none() || route.gateway == wanted.gw))
        {
            return missing(format!("the route to {} is gone", wanted.dst));
        }
    }
    Ok(())
}

fn is_ours(interface: &crate::Interface, link: &Link) -> bool {
    interface.sandbox.is_some() && interface.name == link.name
}
