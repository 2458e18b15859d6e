mod config;
mod function;
mod store;

#[cfg(test)]
mod tests;

use podwire_kernel::{pci::Sysfs, route::Route};

use self::{
    config::Config,
    function::{Function, choose, open_netns, set_mac, take_back},
    store::{Given, Store},
};
use super::Plugin;
use crate::{Call, CniResult, Error, Interface, Result, Verb, error::all, ipam::Ipam, pod};

/// See `sriov/README.md`.
pub struct Sriov;

impl Plugin for Sriov {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let config = Config::of(call)?;
        let store = Store::new(config.data_dir.clone());
        // An interface is brought up last: who has one that is up keeps it, and the function behind it.
        let (_, mut pod) = call.open_pod()?;
        if pod.link(&call.ifname)?.is_some_and(|link| link.up) {
            return Err(pod::exists(call));
        }
        // An ADD that was cut off, for the same attachment.
        take_back_if_given(call, &store)?;
        let added = add(call, &config, &store);
        if added.is_err() {
            // What matters to the caller is why ADD failed.
            _ = take_back_if_given(call, &store);
            _ = config.ipam.call(call, Verb::Del);
        }
        added
    }

    fn del(&self, call: &Call) -> Result<()> {
        // The address last: nobody may get one that still answers here.
        let taken = config::data_dir(call).and_then(|folder| take_back_if_given(call, &Store::new(folder)));
        all([taken, Ipam::of(call)?.call(call, Verb::Del).map(drop)])
    }

    fn check(&self, call: &Call) -> Result<()> {
        let config = Config::of(call)?;
        let previous = call.required_previous()?;
        config.ipam.call(call, Verb::Check)?;
        let given = Store::new(config.data_dir.clone()).of_attachment(&call.container_id, &call.ifname)?;
        let lost = || Error::NotAsSetUp(format!("container {} has no virtual function", call.container_id));
        let given = given.ok_or_else(lost)?;
        let changes = config.settings.changes(&Function::open(&given.device_id)?.state()?);
        if !changes.is_empty() {
            let detail = format!("virtual function {} lacks {changes:?}", given.device_id);
            return Err(Error::NotAsSetUp(detail));
        }
        match given.original.interface.is_empty() {
            true => Ok(()),
            false => pod::check(call, previous).map(drop),
        }
    }

    fn gc(&self, call: &Call) -> Result<()> {
        let store = Store::new(config::data_dir(call)?);
        let valid = call.valid_attachments()?;
        let is_valid = |given: &Given| valid.iter().any(|(id, ifname)| given.belongs_to(id, ifname));
        let stale = store.all().into_iter().filter(|given| given.name == call.network && !is_valid(given));
        let mut results: Vec<Result<()>> = stale.map(|given| take_back_locked(call, &store, &given)).collect();
        results.push(Ipam::of(call)?.call(call, Verb::Gc).map(drop));
        all(results)
    }

    fn status(&self, call: &Call) -> Result<()> {
        let config = Config::of(call)?;
        if let Some(master) = &config.master {
            let sysfs = Sysfs::default();
            let card = sysfs.address_of(master).map_err(|error| Error::NotReady(error.to_string()))?;
            if card.map_or(Ok(true), |card| sysfs.virtual_functions(&card).map(|all| all.is_empty()))? {
                let detail = format!("{master} has no virtual functions: write a number to sriov_numvfs of its device");
                return Err(Error::NotReady(detail));
            }
        }
        config.ipam.call(call, Verb::Status).map(drop)
    }
}

fn add(call: &Call, config: &Config, store: &Store) -> Result<CniResult> {
    let (namespace, mut pod) = pod::open(call)?;
    let (mut function, _lock) = choose(config, store)?;
    let has_interface = function.give(call, &config.settings, store, &namespace)?;
    if has_interface {
        let link = pod::interface(call, &mut pod)?;
        if let Some(mac) = config.settings.mac {
            set_mac(&mut pod, link.index, mac)?;
        }
        pod::announce(&namespace, &call.ifname)?;
    }
    let assigned = config.ipam.call(call, Verb::Add)?;
    if assigned.as_ref().is_some_and(|assigned| assigned.ips.is_empty()) {
        return Err(Error::NoAddress("the IPAM plugin gave no address".to_owned()));
    }
    let mut result = assigned.unwrap_or_default();
    result.interfaces = vec![match has_interface {
        true => {
            let link = pod::configure(call, &namespace, &mut pod, &result, false)?;
            pod::describe(&link, pod::sandbox(call))
        }
        false => {
            let mac = config.settings.mac.map(|mac| mac.to_string());
            Interface { name: call.ifname.clone(), mac, sandbox: pod::sandbox(call), mtu: None }
        }
    }];
    for ip in &mut result.ips {
        ip.interface = Some(0);
    }
    Ok(result)
}

fn take_back_if_given(call: &Call, store: &Store) -> Result<()> {
    match store.of_attachment(&call.container_id, &call.ifname)? {
        Some(given) => take_back_locked(call, store, &given),
        None => Ok(()),
    }
}

/// Takes the function back, unless somebody has done so and it is another's by now.
fn take_back_locked(call: &Call, store: &Store, given: &Given) -> Result<()> {
    let _lock = store.lock(&given.device_id)?;
    if !store.has(given)? {
        return Ok(());
    }
    let pod = match call.open_pod_if_there()? {
        Some(pod) => Some(pod),
        None => store.owner(&given.device_id)?.and_then(|netns| open_netns(&netns)),
    };
    take_back(store, given, pod.map(|pod| (pod, call.ifname.as_str())))
}
