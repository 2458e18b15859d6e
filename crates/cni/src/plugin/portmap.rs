mod config;
mod publish;
mod table;

#[cfg(test)]
mod tests;

use std::{net::IpAddr, path::Path};

use podwire_kernel::{
    conntrack::{self, Conntrack, Filter},
    nftables::{Kernel, Nftables},
    route::{Route, RouteSocket},
    sysctl::{ProcSys, Sysctl},
};
use podwire_model::Family;

use self::{
    config::{Config, Mapping, Protocol, targets},
    publish::Publisher,
};
use super::Plugin;
use crate::{Call, CniResult, Error, Result, error::all, owner};

/// See `portmap/README.md`.
pub struct Portmap;

/// Where libcni and its callers keep results.
const RESULTS: &str = "/var/lib/cni/results";

impl Plugin for Portmap {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let config = Config::of(call)?;
        let alone = || Error::Config("portmap needs \"prevResult\": it is chained after another plugin".to_owned());
        let previous = call.previous.clone().ok_or_else(alone)?;
        let targets = targets(&previous, &call.ifname);
        if config.mappings.is_empty() {
            disown(&targets, &owner::of(call));
            return Ok(previous);
        }
        let nowhere = |mapping: &&Mapping| {
            !targets.iter().any(|ip| mapping.host_ip.is_none_or(|host| host.is_ipv4() == ip.is_ipv4()))
        };
        if let Some(mapping) = config.mappings.iter().find(nowhere) {
            let name = mapping.name();
            return Err(Error::Config(format!("host port {name}: the container has no address of that family")));
        }
        let mut kernel = Kernel::open()?;
        let added = targets.iter().try_for_each(|target| map(&mut kernel, &config, *target, &owner::of(call)));
        if added.is_err() {
            // What matters to the caller is why ADD failed.
            _ = release(&mut kernel, &config, &owner::of(call));
        }
        added.map(|()| previous)
    }

    fn del(&self, call: &Call) -> Result<()> {
        let config = Config::for_teardown(call);
        let Some(mut kernel) = Kernel::open_if_there()? else { return Ok(()) };
        let owner = owner::of(call);
        let targets = call.previous.as_ref().map(|previous| targets(previous, &call.ifname));
        if !config.mappings.is_empty() {
            release(&mut kernel, &config, &owner)?;
            forget_flows(&config, targets.as_deref().unwrap_or_default(), true);
            return Ok(());
        }
        // Runtimes that were restarted may not know what was mapped.
        all([Family::V4, Family::V6].map(|family| {
            let mut publisher = publisher(&mut kernel, family);
            let of_family = |target: &&IpAddr| Family::of(target) == family;
            match &targets {
                Some(targets) => {
                    targets.iter().filter(of_family).try_for_each(|it| publisher.release_if_has(*it, &owner))
                }
                None => publisher.elements.release_all(&|other| other == owner),
            }
        }))
    }

    fn check(&self, call: &Call) -> Result<()> {
        let config = Config::of(call)?;
        let previous = call.required_previous()?;
        if config.mappings.is_empty() {
            return Ok(());
        }
        let mut kernel = Kernel::open()?;
        for target in targets(previous, &call.ifname) {
            let family = Family::of(&target);
            let wanted = table::elements(&config, target, &owner::of(call));
            let missing = publisher(&mut kernel, family).elements.missing(&wanted)?.len();
            if missing > 0 {
                let (all, table) = (wanted.len(), table::table(family));
                return Err(Error::NotAsSetUp(format!("{missing} of {all} elements in table {table} are gone")));
            }
            if !wanted.is_empty() && !table::has_rules(&mut kernel, family)? {
                let table = table::table(family);
                return Err(Error::NotAsSetUp(format!("the rules of table {table} are not what they were")));
            }
        }
        Ok(())
    }

    fn gc(&self, call: &Call) -> Result<()> {
        let stale = owner::stale(call)?;
        let Some(mut kernel) = Kernel::open_if_there()? else { return Ok(()) };
        all([Family::V4, Family::V6].map(|family| {
            publisher(&mut kernel, family).elements.release_all(&stale)?;
            // What else changed the rules is put right as well.
            match table::has_rules(&mut kernel, family) {
                Ok(false) if kernel.tables()?.iter().any(|info| info.table == table::table(family)) => {
                    Ok(kernel.commit(&table::layout(family))?)
                }
                Err(error) if !error.is_not_found() => Err(error.into()),
                _ => Ok(()),
            }
        }))
    }

    fn status(&self, call: &Call) -> Result<()> {
        Config::of(call)?;
        let unavailable = |error| Error::NotReady(format!("ports cannot be mapped: {error}"));
        Kernel::open().map(drop).map_err(unavailable)
    }
}

fn publisher(nftables: &mut dyn Nftables, family: Family) -> Publisher<'_> {
    Publisher::new(nftables, family, Path::new(RESULTS))
}

/// Maps the ports of one family.
fn map(nftables: &mut dyn Nftables, config: &Config, target: IpAddr, owner: &str) -> Result<()> {
    let family = Family::of(&target);
    if config.mappings_of(family).next().is_none() {
        return Ok(());
    }
    publisher(nftables, family).publish(config, target, owner)?;
    if target.is_ipv4() && config.snat {
        route_from_loopback(target)?;
    }
    forget_flows(config, &[target], false);
    Ok(())
}

fn release(nftables: &mut dyn Nftables, config: &Config, owner: &str) -> Result<()> {
    all([Family::V4, Family::V6].map(|family| {
        let mappings: Vec<&Mapping> = config.mappings_of(family).collect();
        if mappings.is_empty() { Ok(()) } else { publisher(nftables, family).release(&mappings, owner) }
    }))
}

/// A container without mappings must not inherit those of an earlier one with its address, whose DEL was missed. It
/// does not need netfilter for anything else, so that failures do not matter to it.
fn disown(targets: &[IpAddr], owner: &str) {
    let Ok(mut kernel) = Kernel::open() else { return };
    for target in targets {
        _ = publisher(&mut kernel, Family::of(target)).disown(*target, owner);
    }
}

/// Lets packets from 127.0.0.1 leave by the interface that leads to the container.
fn route_from_loopback(target: IpAddr) -> Result<()> {
    let mut route = RouteSocket::open()?;
    let Some(name) = device_towards(&mut route, target)? else { return Ok(()) };
    Ok(ProcSys.ensure(&format!("net/ipv4/conf/{name}/route_localnet"), "1")?)
}

/// UDP flows of mapped ports: the kernel would send their packets where it sent those before. Before ADD they went to
/// the node itself, or to an earlier container; after DEL to the container that is gone. Only the first packets of a flow are
/// seen by the rules, so that this is done after the rules were changed; that it cannot be done is no reason to fail.
fn forget_flows(config: &Config, targets: &[IpAddr], only_to_targets: bool) {
    let udp = |mapping: &&Mapping| mapping.protocol == Protocol::Udp;
    if !config.mappings.iter().any(|mapping| udp(&mapping)) {
        return;
    }
    let Ok(mut conntrack) = conntrack::Kernel::open() else { return };
    for target in targets {
        let family = Family::of(target);
        for mapping in config.mappings_of(family).filter(udp) {
            let (reply_source, reply_port) = match only_to_targets {
                true => (Some(*target), Some(mapping.container_port)),
                false => (None, None),
            };
            _ = conntrack.delete(&Filter {
                family,
                protocol: mapping.protocol.number(),
                original_destination: mapping.one_address(),
                original_port: Some(mapping.host_port),
                reply_source,
                reply_port,
            });
        }
    }
}

/// Name of the interface that packets to `target` leave by.
fn device_towards(route: &mut RouteSocket, target: IpAddr) -> Result<Option<String>> {
    let Some(hop) = route.next_hops(&[target])?.into_iter().next().flatten() else { return Ok(None) };
    Ok(route.link_by_index(hop.device)?.map(|link| link.name))
}
