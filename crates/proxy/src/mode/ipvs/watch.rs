//! Noticing what others change. IPVS and ipset send no notifications: they are asked, a part at a time, so that a look
//! costs a few milliseconds whatever the number of endpoints.

use podwire_kernel::{Result, ipvs::Service};

use super::{
    apply::{Ipvs, is_ours},
    kernel::Kernel,
    render::Marks,
};

/// How many virtual servers are asked for their destinations in one look. Up to four times as many are all looked at
/// within a second.
const SLICE: usize = 128;

/// Where the last look ended.
#[derive(Debug, Default)]
pub struct Watch {
    next: usize,
    sets: bool,
}

impl<K: Kernel> Ipvs<K> {
    /// Whether the kernel differs from what this mode made. Rules and addresses: by notifications. Virtual servers: every
    /// other time, all of them; the number of entries of each set: the other times; destinations: a slice each time.
    pub(super) fn look(&mut self) -> Result<bool> {
        if self.kernel.iptables().disturbed()? || (self.kernel.addresses_touched()? && self.addresses_differ()?) {
            return Ok(true);
        }
        self.watch.sets = !self.watch.sets;
        if self.watch.sets && self.sets_differ()? {
            return Ok(true);
        }
        self.servers_differ()
    }

    fn addresses_differ(&mut self) -> Result<bool> {
        if self.kernel.route().link_by_index(self.device)?.is_none() {
            return Ok(true);
        }
        let addresses = self.kernel.route().addresses(None)?;
        let node = self.node_addresses(&addresses)?;
        let on_device = addresses.iter().filter(|address| address.device == self.device);
        let ours: Vec<_> = on_device.filter(|address| self.state.vips.actual(&address.net.addr()).is_some()).collect();
        Ok(node != self.state.node || ours.len() != self.state.vips.all_actual().count())
    }

    fn sets_differ(&mut self) -> Result<bool> {
        let found = self.kernel.ipset().sets()?;
        Ok(self.state.members.iter().any(|((name, family), delta)| {
            let set = name.name(*family);
            let found = found.iter().find(|found| *found.set.name == *set);
            found
                .is_none_or(|found| found.entries.is_some_and(|entries| entries as usize != delta.all_actual().count()))
        }))
    }

    fn servers_differ(&mut self) -> Result<bool> {
        let marks = Marks::new(&self.state.settings);
        let mut found: Vec<Service> = self.kernel.ipvs().services()?;
        found.retain(|service| is_ours(&service.key, marks, &self.state.settings.ipvs.exclude));
        let state = &self.state;
        let orphans = state.spare.values().filter(|spare| spare.orphan.is_some()).count();
        let expected = |service: &Service| {
            let orphan = || state.spare.get(&service.key)?.orphan.as_ref();
            let server = state.servers.actual(&service.key).or_else(orphan);
            server.is_some_and(|server| server.service(service.key) == *service)
        };
        if found.len() != state.servers.all_actual().count() + orphans || !found.iter().all(expected) {
            return Ok(true);
        }
        found.sort_unstable_by_key(|service| service.key);
        let count = found.len().min(SLICE);
        for step in 0..count {
            let key = found[(self.watch.next + step) % found.len()].key;
            let destinations = self.kernel.ipvs().destinations(&key)?;
            if !self.state.has(&key, &destinations) {
                return Ok(true);
            }
        }
        self.watch.next = (self.watch.next + count) % found.len().max(1);
        Ok(false)
    }
}
