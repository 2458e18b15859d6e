use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use podwire_model::{Family, Name, Protocol};

use super::{
    Ipvs,
    types::{Change, Connections, Destination, Found, Info, SCHEDULERS, Service, ServiceKey, Timeouts},
};
use crate::{Error, Result};

/// The virtual services of one network namespace in memory: refuses what the kernel refuses.
#[derive(Debug, Clone)]
pub struct Fake {
    services: BTreeMap<ServiceKey, (Service, BTreeMap<SocketAddr, Found>)>,
    schedulers: BTreeSet<Name>,
    timeouts: Timeouts,
    changes: usize,
    batches: usize,
    reads: usize,
    fail_every: Option<usize>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            services: BTreeMap::new(),
            schedulers: SCHEDULERS.map(Name::from).into(),
            timeouts: Timeouts::default(),
            changes: 0,
            batches: 0,
            reads: 0,
            fail_every: None,
        }
    }
}

impl Fake {
    /// IPVS without services, with every scheduler.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on has these schedulers only.
    pub fn only_schedulers(&mut self, names: &[&str]) {
        self.schedulers = names.iter().map(|name| Name::from(*name)).collect();
    }

    /// From now on lets every `n`-th change fail with EAGAIN, before it changes anything. Zero: none.
    pub fn fail_every(&mut self, n: usize) {
        self.fail_every = Some(n).filter(|n| *n > 0);
    }

    /// How many changes were asked for so far, and in how many calls.
    pub fn changes(&self) -> (usize, usize) {
        (self.changes, self.batches)
    }

    /// How many listings were asked for so far.
    pub fn reads(&self) -> usize {
        self.reads
    }

    /// The services with their destinations.
    pub fn table(&self) -> &BTreeMap<ServiceKey, (Service, BTreeMap<SocketAddr, Found>)> {
        &self.services
    }

    /// Gives a destination connections; it must exist.
    pub fn connect(&mut self, service: &ServiceKey, to: &SocketAddr, connections: Connections) {
        if let Some(found) = self.services.get_mut(service).and_then(|(_, found)| found.get_mut(to)) {
            found.connections = connections;
        }
    }

    /// The service that takes a packet: by its mark first, then by its address.
    pub fn find(&self, mark: u32, protocol: Protocol, to: SocketAddr) -> Option<(&Service, Vec<Destination>)> {
        let by_mark = ServiceKey::Mark(Family::of(&to.ip()), mark);
        let found = (mark != 0).then(|| self.services.get(&by_mark)).flatten();
        let (service, destinations) = found.or_else(|| self.services.get(&ServiceKey::Address(protocol, to)))?;
        Some((service, destinations.values().map(|found| found.destination).collect()))
    }

    fn change_one(&mut self, change: &Change) -> std::result::Result<(), i32> {
        self.changes += 1;
        if self.fail_every.is_some_and(|n| self.changes.is_multiple_of(n)) {
            return Err(libc::EAGAIN);
        }
        match change {
            Change::AddService(service) => {
                if self.services.contains_key(&service.key) {
                    return Err(libc::EEXIST);
                }
                self.check(service)?;
                self.services.insert(service.key, (service.clone(), BTreeMap::new()));
            }
            Change::SetService(service) => {
                if !self.services.contains_key(&service.key) {
                    return Err(libc::ESRCH);
                }
                self.check(service)?;
                self.at(&service.key)?.0 = service.clone();
            }
            Change::DeleteService(key) => {
                self.services.remove(key).ok_or(libc::ESRCH)?;
            }
            Change::AddDestination(key, to) => {
                let (_, destinations) = self.at(key)?;
                check_destination(key, to)?;
                if destinations.contains_key(&to.address) {
                    return Err(libc::EEXIST);
                }
                let found = Found { destination: *to, connections: Connections::default() };
                destinations.insert(to.address, found);
            }
            Change::SetDestination(key, to) => {
                let (_, destinations) = self.at(key)?;
                check_destination(key, to)?;
                destinations.get_mut(&to.address).ok_or(libc::ENOENT)?.destination = *to;
            }
            Change::DeleteDestination(key, to) => {
                self.at(key)?.1.remove(to).ok_or(libc::ENOENT)?;
            }
        }
        Ok(())
    }

    fn at(&mut self, key: &ServiceKey) -> std::result::Result<&mut (Service, BTreeMap<SocketAddr, Found>), i32> {
        self.services.get_mut(key).ok_or(libc::ESRCH)
    }

    fn check(&self, service: &Service) -> std::result::Result<(), i32> {
        let ipv6 = service.key.family() == Family::V6;
        if ipv6 && service.persistence.is_some_and(|p| !(1..=128).contains(&p.prefix)) {
            return Err(libc::EINVAL);
        }
        if matches!(service.key, ServiceKey::Mark(_, 0)) {
            return Err(libc::EINVAL);
        }
        let without_port = matches!(service.key, ServiceKey::Address(_, to) if to.port() == 0);
        if without_port && service.persistence.is_none() {
            return Err(libc::EINVAL);
        }
        if self.schedulers.contains(&service.scheduler) { Ok(()) } else { Err(libc::ENOENT) }
    }
}

fn check_destination(key: &ServiceKey, to: &Destination) -> std::result::Result<(), i32> {
    if to.lower_threshold > to.upper_threshold || to.weight > i32::MAX as u32 {
        return Err(libc::ERANGE);
    }
    if Family::of(&to.address.ip()) == key.family() { Ok(()) } else { Err(libc::EINVAL) }
}

impl Ipvs for Fake {
    fn info(&mut self) -> Result<Info> {
        Ok(Info { version: (1, 2, 1), table_size: 4096 })
    }

    fn timeouts(&mut self) -> Result<Timeouts> {
        Ok(self.timeouts)
    }

    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()> {
        let Timeouts { tcp, tcp_fin, udp } = timeouts;
        for (slot, new) in
            [(&mut self.timeouts.tcp, tcp), (&mut self.timeouts.tcp_fin, tcp_fin), (&mut self.timeouts.udp, udp)]
        {
            if !new.is_zero() {
                *slot = *new;
            }
        }
        Ok(())
    }

    fn services(&mut self) -> Result<Vec<Service>> {
        self.reads += 1;
        Ok(self.services.values().map(|(service, _)| service.clone()).collect())
    }

    fn destinations(&mut self, service: &ServiceKey) -> Result<Vec<Found>> {
        self.reads += 1;
        Ok(self.services.get(service).map(|(_, found)| found.values().copied().collect()).unwrap_or_default())
    }

    fn change(&mut self, changes: &[Change]) -> Result<()> {
        self.batches += usize::from(!changes.is_empty());
        let mut failed = None;
        for change in changes {
            if let Err(errno) = self.change_one(change) {
                failed.get_or_insert_with(|| Error::Refused {
                    what: change.to_string(),
                    errno,
                    message: change.explain(errno),
                });
            }
        }
        failed.map_or(Ok(()), Err)
    }
}
