mod config;
mod reclaim;
mod store;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use self::{
    config::{Ipam, Range, RangeSet},
    reclaim::reclaim,
    store::Store,
};
use super::Plugin;
use crate::{Call, CniResult, Error, IpConfig, Result, error::all};

/// See `host_local/README.md`.
pub struct HostLocal;

impl Plugin for HostLocal {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let ipam = Ipam::of(call)?;
        let dns = ipam.dns()?;
        let store = Store::open(&ipam.data_dir, &call.network)?;
        let mut taken = Vec::new();
        let allocated = allocate(call, &ipam, &store, &mut taken);
        if allocated.is_err() {
            for ip in taken {
                _ = store.release(ip);
            }
        }
        Ok(CniResult { ips: allocated?, routes: ipam.routes, dns, ..CniResult::default() })
    }

    fn del(&self, call: &Call) -> Result<()> {
        let data_dir = Ipam::data_dir_of(call)?;
        let Some(store) = Store::open_existing(&data_dir, &call.network)? else { return Ok(()) };
        let ours = store.leases()?.into_iter().filter(|lease| lease.belongs_to(&call.container_id, &call.ifname));
        all(ours.map(|lease| store.release(lease.ip)))
    }

    fn check(&self, call: &Call) -> Result<()> {
        let (id, ifname) = (&call.container_id, &call.ifname);
        let store = Store::open_existing(&Ipam::data_dir_of(call)?, &call.network)?;
        let leases = store.map_or(Ok(Vec::new()), |store| store.leases())?;
        if leases.iter().any(|lease| lease.belongs_to(id, ifname)) {
            return Ok(());
        }
        Err(Error::NotAsSetUp(format!("no address of network {} is reserved for {ifname} of {id}", call.network)))
    }

    fn gc(&self, call: &Call) -> Result<()> {
        let valid = call.valid_attachments()?;
        let Some(store) = Store::open_existing(&Ipam::data_dir_of(call)?, &call.network)? else { return Ok(()) };
        let stale = store.leases()?;
        let stale = stale.iter().filter(|lease| !valid.iter().any(|(id, ifname)| lease.belongs_to(id, ifname)));
        all(stale.map(|lease| store.release(lease.ip)).chain([store.remove_debris()]))
    }

    fn status(&self, call: &Call) -> Result<()> {
        Ipam::of(call).map(drop)
    }
}

/// One address of every range set. Those already `taken` when it fails are for the caller to give back.
fn allocate(call: &Call, ipam: &Ipam, store: &Store, taken: &mut Vec<IpAddr>) -> Result<Vec<IpConfig>> {
    let (id, ifname) = (&call.container_id, &call.ifname);
    let leases = store.leases()?;
    if let Some(lease) = leases.iter().find(|lease| lease.belongs_to(id, ifname) && ipam.has(lease.ip)) {
        return Err(Error::Exists(format!("{} has been allocated to {ifname} of {id} already", lease.ip)));
    }
    let mut requested = ipam.requested.clone();
    let mut ips = Vec::new();
    for (number, set) in ipam.ranges.iter().enumerate() {
        let wanted = requested.iter().position(|ip| set.range_of(*ip).is_some()).map(|at| requested.remove(at));
        let (ip, range) = match wanted {
            Some(ip) => (ip, reserve_requested(store, set, ip, (id, ifname))?),
            None => match reserve_next(store, set, number, (id, ifname)) {
                Err(Error::NoAddress(_)) if reclaim(store, &ipam.data_dir, &call.network)? > 0 => {
                    reserve_next(store, set, number, (id, ifname))?
                }
                reserved => reserved?,
            },
        };
        taken.push(ip);
        store.set_last(number, ip)?;
        ips.push(IpConfig { interface: None, address: range.net_of(ip), gateway: Some(range.gateway) });
    }
    match requested.first() {
        Some(ip) => Err(Error::NoAddress(format!("the requested address {ip} is in none of the ranges"))),
        None => Ok(ips),
    }
}

type Owner<'a> = (&'a str, &'a str);

fn reserve_requested<'a>(store: &Store, set: &'a RangeSet, ip: IpAddr, owner: Owner<'_>) -> Result<&'a Range> {
    let outside = || Error::NoAddress(format!("the requested address {ip} is not in {set}"));
    let range = set.range_of(ip).ok_or_else(outside)?;
    if ip == range.gateway {
        return Err(Error::NoAddress(format!("the requested address {ip} is the gateway of its subnet")));
    }
    match store.reserve(ip, owner)? {
        true => Ok(range),
        false => Err(Error::NoAddress(format!("the requested address {ip} is taken"))),
    }
}

/// The next free address after the last one given out, round and round: an address rests as long as possible before it
/// is given out again.
fn reserve_next<'a>(store: &Store, set: &'a RangeSet, number: usize, owner: Owner<'_>) -> Result<(IpAddr, &'a Range)> {
    for (ip, range) in set.from(store.last(number)) {
        if ip != range.gateway && store.reserve(ip, owner)? {
            return Ok((ip, range));
        }
    }
    Err(Error::NoAddress(format!("every address of {set} is taken")))
}
