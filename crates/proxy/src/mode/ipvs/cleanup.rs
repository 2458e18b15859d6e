//! Removing everything that a run of this mode, or of kube-proxy's ipvs mode, left.

use std::time::Duration;

use podwire_kernel::{
    Error as KernelError, ResultExt,
    ipset::{Entry, Ipset, errors},
    iptables::{Edit, Match, Rule},
    ipvs::{Change, ServiceKey},
};
use podwire_model::Family;

use super::{DEVICE, failed, kernel::Kernel, render::Marks, rules, sets};
use crate::{
    Error,
    mode::{FAMILIES, Settings},
};

/// Removes this mode's rules of both families, and all that use its sets. Says how many that were.
///
/// # Errors
/// What iptables refused.
pub fn remove_rules(kernel: &mut impl Kernel) -> Result<usize, KernelError> {
    let mut removed = 0;
    for family in FAMILIES {
        for table in rules::TABLES {
            let found = kernel.iptables().save(family, table)?;
            let is_ours = |chain: &str| rules::CHAINS.contains(&chain) && found.chains.contains_key(chain);
            let mut edits = Vec::new();
            for (chain, state) in found.chains.iter().filter(|(chain, _)| !is_ours(chain)) {
                let rules = state.rules.iter().filter_map(|text| text.parse::<Rule>().ok());
                let ours = rules.filter(|rule| rule.chain().is_some_and(is_ours) || uses_our_sets(rule, family));
                edits.extend(ours.map(|rule| Edit::Delete { chain: chain.clone(), rule }));
            }
            let ours: Vec<_> = found.chains.keys().filter(|chain| is_ours(chain)).cloned().collect();
            edits.extend(ours.iter().map(|chain| Edit::Replace { chain: chain.clone(), rules: Vec::new() }));
            edits.extend(ours.iter().map(|chain| Edit::Remove { chain: chain.clone() }));
            if !edits.is_empty() {
                removed += edits.len();
                kernel.iptables().edit(family, table, &mut edits.into_iter())?;
            }
        }
    }
    Ok(removed)
}

/// Whether a rule looks into one of our sets: kube-proxy's do, in chains that its iptables mode has as well.
fn uses_our_sets(rule: &Rule, family: Family) -> bool {
    let kube_proxys = sets::Name::KUBE_PROXYS.map(|name| sets::in_family(name, family));
    let is_our_set =
        |set: &String| kube_proxys.contains(set) || sets::Name::ALL.iter().any(|name| name.name(family) == *set);
    rule.matches.iter().any(|more| matches!(more, Match::Set(is) if is_our_set(&is.value.0)))
}

/// Removes everything that this mode ever left, or kube-proxy's ipvs mode: virtual servers of addresses on the device, of
/// node ports and of our marks, the device, rules and sets.
///
/// # Errors
/// The first refusal; the rest is removed all the same.
pub fn remove(kernel: &mut impl Kernel, settings: &Settings) -> Result<(), Error> {
    let servers = remove_servers(kernel, settings).map_err(failed);
    let device = remove_device(kernel).map_err(failed);
    let rules = remove_rules(kernel).map(drop).map_err(failed);
    let sets = remove_sets(kernel).map_err(failed);
    servers.and(device).and(rules).and(sets)
}

fn remove_servers(kernel: &mut impl Kernel, settings: &Settings) -> Result<(), KernelError> {
    let device = kernel.route().link(DEVICE)?.map(|link| link.index);
    let mut vips = Vec::new();
    let mut own = Vec::new();
    for address in kernel.route().addresses(None)? {
        if Some(address.device) == device { vips.push(address.net.addr()) } else { own.push(address.net.addr()) }
    }
    let mut ports = Vec::new();
    let names = [sets::Name::NodePortTcp, sets::Name::NodePortUdp, sets::Name::NodePortSctp];
    for (name, family) in names.into_iter().flat_map(|name| FAMILIES.map(|family| (name, family))) {
        let listed = kernel.ipset().entries(&name.name(family));
        ports.extend(listed.or_else(|error| if error.is_not_found() { Ok(Vec::new()) } else { Err(error) })?);
    }
    let is_node_port = |port: u16| {
        ports.iter().any(|element| match element.entry {
            Entry::Port(held) | Entry::AddressPort(_, _, held) => held == port,
            _ => false,
        })
    };
    let marks = Marks::new(settings);
    let services = kernel.ipvs().services()?.into_iter().map(|service| service.key);
    let ours = services.filter(|key| match key {
        ServiceKey::Mark(_, mark) => marks.is_ours(*mark),
        ServiceKey::Address(_, to) => vips.contains(&to.ip()) || own.contains(&to.ip()) && is_node_port(to.port()),
    });
    let steps: Vec<_> = ours.map(Change::DeleteService).collect();
    kernel.ipvs().change(&steps)
}

fn remove_device(kernel: &mut impl Kernel) -> Result<(), KernelError> {
    let route = kernel.route();
    match route.link(DEVICE)? {
        Some(link) => route.delete_link(link.index).or_gone(),
        None => Ok(()),
    }
}

fn remove_sets(kernel: &mut impl Kernel) -> Result<(), KernelError> {
    let ipset = kernel.ipset();
    let held: Vec<_> = ipset.sets()?.into_iter().map(|found| found.set.name).collect();
    let ours = FAMILIES.into_iter().flat_map(|family| {
        let kube_proxys = sets::Name::KUBE_PROXYS.map(|name| sets::in_family(name, family));
        sets::Name::ALL.map(|name| name.name(family)).into_iter().chain(kube_proxys)
    });
    let mut patience = PATIENCE;
    for name in ours.filter(|name| held.iter().any(|held| **held == **name)) {
        destroy(ipset, &name, &mut patience).or_gone()?;
    }
    Ok(())
}

/// How long rules that were removed may go on using a set: nf_tables frees them a little later.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Destroys a set that rules used until now. `patience` is what is left of the time to wait.
pub fn destroy(ipset: &mut dyn Ipset, set: &str, patience: &mut Duration) -> Result<(), KernelError> {
    const PAUSE: Duration = Duration::from_millis(10);
    loop {
        match ipset.destroy(set) {
            Err(error) if error.errno() == Some(errors::BUSY) && !patience.is_zero() => {
                std::thread::sleep(PAUSE);
                *patience = patience.saturating_sub(PAUSE);
            }
            destroyed => return destroyed,
        }
    }
}
