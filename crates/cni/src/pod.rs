//! The container's side of an attachment, the same for every plugin that puts an interface there: addresses and routes,
//! CHECK, DEL.

use podwire_kernel::{
    ResultExt,
    ns::Namespace,
    route::{Address, Link, LinkChange, Route, RouteEntry, RouteFilter, RouteSocket, Scope, TABLE_MAIN},
    sysctl::{ProcSys, Sysctl},
};
use podwire_model::IpNet;

use crate::{Call, CniResult, Error, Interface, Result, RouteConfig};

/// Opens the container for ADD.
///
/// # Errors
/// [`Error::UnknownContainer`]; [`Error::Exists`] when it has an interface of the name asked for.
pub fn open(call: &Call) -> Result<(Namespace, RouteSocket)> {
    let (namespace, mut pod) = call.open_pod()?;
    if pod.link(&call.ifname)?.is_some() {
        return Err(exists(call));
    }
    Ok((namespace, pod))
}

/// The error of an ADD whose interface is there.
pub fn exists(call: &Call) -> Error {
    Error::Exists(format!("container {} has an interface {} already", call.container_id, call.ifname))
}

/// The container's interface.
pub fn interface(call: &Call, pod: &mut RouteSocket) -> Result<Link> {
    let vanished = || Error::TryAgain(format!("there is no {} in the container", call.ifname));
    pod.link(&call.ifname)?.ok_or_else(vanished)
}

/// Gives the container's interface the addresses of `result`, brings it up and adds the routes. Returns it as it is then.
/// `dad`: IPv6 addresses wait for duplicate address detection.
pub fn configure(
    call: &Call,
    namespace: &Namespace,
    pod: &mut RouteSocket,
    result: &CniResult,
    dad: bool,
) -> Result<Link> {
    let name = &call.ifname;
    let eth = interface(call, pod)?;
    if result.ips.iter().any(|ip| ip.address.addr().is_ipv6()) {
        namespace.visit(|| allow_ipv6(name))?;
    }
    for ip in &result.ips {
        let broadcast = match ip.address {
            IpNet::V4(net) => Some(net.broadcast()),
            IpNet::V6(_) => None,
        };
        let address = Address::new(eth.index, ip.address);
        let no_dad = address.no_dad && !dad;
        pod.add_address(&Address { broadcast, no_dad, ..address })?;
    }
    pod.change_link(eth.index, &[LinkChange::Up(true)])?;
    for route in &result.routes {
        add_route(pod, &eth, &entry(route, result, eth.index)?)?;
    }
    Ok(Link { up: true, ..eth })
}

/// Adds a route by `link`. One that is there is as good, if it is by the same device: the kernel makes some by itself, and
/// two ranges may ask for the same.
///
/// # Errors
/// [`Error::Exists`] when another device has it: packets would not leave by `link`, whatever the result says.
pub fn add_route(route: &mut RouteSocket, link: &Link, wanted: &RouteEntry) -> Result<()> {
    match route.add_route(wanted) {
        Err(error) if error.already_exists() => {}
        added => return Ok(added?),
    }
    let mut rivals = route.routes(&RouteFilter { table: Some(wanted.table), ..RouteFilter::ALL })?;
    // IPv6 has no metric 0.
    let metric = if wanted.metric == 0 && wanted.destination.addr().is_ipv6() { 1024 } else { wanted.metric };
    rivals.retain(|rival| rival.destination == wanted.destination && rival.metric == metric);
    if rivals.iter().any(|rival| rival.device == Some(link.index)) {
        return Ok(());
    }
    let device = rivals.first().and_then(|rival| rival.device);
    let other = device.map(|index| route.link_by_index(index)).transpose()?.flatten();
    let other = other.map_or_else(|| "another device".to_owned(), |other| other.name);
    let (to, by) = (wanted.destination, &link.name);
    Err(Error::Exists(format!("cannot add the route to {to} by {by}: there is one by {other}")))
}

/// Lets the container's interface tell its neighbours when it comes up: whoever knew its addresses' last holder learns of
/// the new one. Best effort.
pub fn announce(namespace: &Namespace, name: &str) -> Result<()> {
    namespace.visit(|| {
        for key in [format!("net/ipv4/conf/{name}/arp_notify"), format!("net/ipv6/conf/{name}/ndisc_notify")] {
            _ = ProcSys.ensure(&key, "1");
        }
        Ok(())
    })
}

/// (CHECK) What ADD reported must be there; more may be. Returns the container's interface for further looks.
///
/// # Errors
/// [`Error::NotAsSetUp`].
pub fn check(call: &Call, previous: &CniResult) -> Result<Link> {
    let missing = |what: String| Err(Error::NotAsSetUp(what));
    let (_, mut pod) = call.open_pod()?;
    let Some(link) = pod.link(&call.ifname)? else {
        return missing(format!("interface {} is gone", call.ifname));
    };
    if !link.up {
        return missing(format!("interface {} is down", call.ifname));
    }
    let is_ours = |interface: &Interface| interface.sandbox.is_some() && interface.name == link.name;
    let reported = previous.interfaces.iter().position(is_ours);
    let mac = reported.and_then(|at| previous.interfaces[at].mac.as_ref());
    if let (Some(wanted), Some(actual)) = (mac, link.mac)
        && !wanted.eq_ignore_ascii_case(&actual.to_string())
    {
        return missing(format!("{} has MAC address {actual}, not {wanted}", call.ifname));
    }
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
    Ok(link)
}

/// (DEL) Deletes the interface called `name`, if the container is there and has it.
pub fn remove(call: &Call, name: &str) -> Result<()> {
    let Some(mut pod) = call.open_pod_if_there()? else { return Ok(()) };
    match pod.link(name)? {
        Some(link) => Ok(pod.delete_link_early(link.index).or_gone()?),
        None => Ok(()),
    }
}

/// `link` as it is reported; `sandbox` says in which container, none on the host.
pub fn describe(link: &Link, sandbox: Option<String>) -> Interface {
    Interface { name: link.name.clone(), mac: link.mac.map(|mac| mac.to_string()), mtu: Some(link.mtu), sandbox }
}

/// The container's namespace, as it is reported.
pub fn sandbox(call: &Call) -> Option<String> {
    call.netns.as_ref().map(|path| path.display().to_string())
}

/// A route of the result as the kernel's: through its gateway, or that of the address of its family.
fn entry(route: &RouteConfig, result: &CniResult, device: u32) -> Result<RouteEntry> {
    for (field, set) in [("routes.mtu", route.mtu.is_some()), ("routes.advmss", route.advmss.is_some())] {
        if set {
            return Err(Error::Unsupported { field, detail: format!("route to {}: leave it out", route.dst) });
        }
    }
    let same_family = |ip: &std::net::IpAddr| ip.is_ipv4() == route.dst.addr().is_ipv4();
    let gateway = route.gw.or_else(|| result.ips.iter().filter_map(|ip| ip.gateway).find(same_family));
    let mut entry = match gateway {
        Some(gateway) => RouteEntry::via(route.dst, gateway, device),
        None => RouteEntry::on_link(route.dst, device),
    };
    entry.metric = route.priority.unwrap_or(entry.metric);
    entry.table = route.table.unwrap_or(TABLE_MAIN);
    if let Some(scope) = route.scope {
        entry.scope = match scope {
            0 => Scope::Global,
            253 => Scope::Link,
            254 => Scope::Host,
            other => Scope::Other(other),
        };
    }
    Ok(entry)
}

/// Systems that switch IPv6 off by default switch it off on every new interface.
pub fn allow_ipv6(name: &str) -> podwire_kernel::Result<()> {
    ProcSys.ensure(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0").or_gone()
}
