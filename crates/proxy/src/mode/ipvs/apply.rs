//! The mode at work: reads the kernel, writes the steps, waits for connections to end.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use podwire_kernel::{
    Error as KernelError, ResultExt,
    ipset::{Element, Entry},
    iptables::{Edit, Rule},
    ipvs::{ServiceKey, Timeouts},
    route::{Address, Link, LinkKind, NewLink, NewLinkKind},
};
use podwire_model::{Family, delta::Step};

use super::{
    DEVICE,
    cleanup::{PATIENCE, destroy, remove_rules},
    failed,
    kernel::Kernel,
    render::Marks,
    rules, sets,
    state::{NodeAddresses, State, within},
    watch::Watch,
};
use crate::{
    Changes, Result,
    mode::{Applied, FAMILIES, Mode, NodePortAddresses, Settings},
};

/// The ipvs mode over a kernel or a fake of it.
#[derive(Debug)]
pub struct Ipvs<K> {
    pub(super) kernel: K,
    pub(super) state: State,
    pub(super) watch: Watch,
    /// Changes that were handed over and not looked at yet.
    waiting: Vec<Changes>,
    /// What applied changes left to report.
    report: Applied,
    /// What the kernel holds is not known: at start, after an error, and when others changed it.
    pub(super) unknown: bool,
    /// Our device's index.
    pub(super) device: u32,
}

impl<K: Kernel> Ipvs<K> {
    /// Knows nothing yet about what `kernel` holds; the first [`Mode::apply`] reads it.
    pub fn new(kernel: K, settings: Settings) -> Self {
        Self {
            kernel,
            state: State::new(settings),
            watch: Watch::default(),
            waiting: Vec::new(),
            report: Applied::default(),
            unknown: true,
            device: 0,
        }
    }

    /// The kernel.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// The kernel, for tests that interfere.
    pub fn kernel_mut(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// Reads everything but virtual servers, and makes what does not depend on Services. Says how much that was.
    fn read_kernel(&mut self) -> Result<usize, KernelError> {
        let mut written = self.set_parameters()?;
        written += self.make_device()?;
        written += self.make_sets()?;
        written += self.make_rules()?;
        let addresses = self.kernel.route().addresses(None)?;
        let ours = addresses.iter().filter(|address| address.device == self.device);
        self.state.vips.found(ours.filter(|address| !is_link_local(address)).map(|address| (address.net.addr(), ())));
        let node = self.node_addresses(&addresses)?;
        self.state.set_node(node);
        Ok(written)
    }

    fn read_servers(&mut self) -> Result<(), KernelError> {
        let marks = Marks::new(&self.state.settings);
        let mut found = Vec::new();
        let exclude = &self.state.settings.ipvs.exclude;
        let ipvs = self.kernel.ipvs();
        for service in ipvs.services()?.into_iter().filter(|service| is_ours(&service.key, marks, exclude)) {
            let destinations = ipvs.destinations(&service.key)?;
            found.push((service, destinations));
        }
        self.state.found_servers(found);
        Ok(())
    }

    /// The parameters that kube-proxy sets.
    fn set_parameters(&mut self) -> Result<usize, KernelError> {
        let sysctl = self.kernel.sysctl();
        let mut wanted = vec![
            ("net/ipv4/vs/conntrack", "1"),
            ("net/ipv4/vs/expire_nodest_conn", "1"),
            ("net/ipv4/vs/expire_quiescent_template", "1"),
            ("net/ipv4/ip_forward", "1"),
        ];
        if reuses_connections_badly(&sysctl.read("kernel/osrelease")?) {
            wanted.push(("net/ipv4/vs/conn_reuse_mode", "0"));
        }
        if self.state.settings.ipvs.strict_arp {
            wanted.extend([("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/arp_announce", "2")]);
        }
        let mut written = 0;
        for (key, value) in wanted {
            if sysctl.read(key)? != value {
                sysctl.write(key, value)?;
                written += 1;
            }
        }
        let [tcp, tcp_fin, udp] = self.state.settings.ipvs.timeouts;
        let wanted = Timeouts { tcp, tcp_fin, udp };
        if wanted != Timeouts::default() {
            let now = self.kernel.ipvs().timeouts()?;
            let same = |wanted: Duration, now| wanted.is_zero() || wanted == now;
            if !(same(tcp, now.tcp) && same(tcp_fin, now.tcp_fin) && same(udp, now.udp)) {
                self.kernel.ipvs().set_timeouts(&wanted)?;
                written += 1;
            }
        }
        Ok(written)
    }

    fn make_device(&mut self) -> Result<usize, KernelError> {
        let route = self.kernel.route();
        let (link, written) = match route.link(DEVICE)? {
            Some(Link { kind: LinkKind::Dummy, index, .. }) => (index, 0),
            other => {
                if let Some(other) = other {
                    route.delete_link(other.index)?;
                }
                (route.create_link(&NewLink::new(DEVICE, NewLinkKind::Dummy))?.index, 1)
            }
        };
        self.device = link;
        Ok(written)
    }

    fn make_sets(&mut self) -> Result<usize, KernelError> {
        let mut written = 0;
        let held: BTreeMap<_, _> =
            self.kernel.ipset().sets()?.into_iter().map(|found| (found.set.name.clone(), found.set)).collect();
        for (name, family) in self.state.members.keys().copied().collect::<Vec<_>>() {
            let set = name.set(family);
            let entries = match held.get(&set.name) {
                Some(same) if *same == set => self.kernel.ipset().entries(&set.name)?,
                other => {
                    if other.is_some() {
                        // Rules may use it; those are made anew later.
                        written += remove_rules(&mut self.kernel)?;
                        destroy(self.kernel.ipset(), &set.name, &mut { PATIENCE })?;
                    }
                    self.kernel.ipset().create(&set)?;
                    written += 1;
                    Vec::new()
                }
            };
            if let Some(delta) = self.state.members.get_mut(&(name, family)) {
                delta.found(entries.into_iter().map(|element| (element.entry, element.mark)));
            }
        }
        Ok(written)
    }

    fn make_rules(&mut self) -> Result<usize, KernelError> {
        let mut written = 0;
        for family in FAMILIES {
            for table in rules::TABLES {
                let wanted = rules::rules(table, family, &self.state.settings);
                let found = self.kernel.iptables().save(family, table)?;
                let print = |rule: &Rule| rule.display(family).to_string();
                let is_made = |chain: &str, rules: &[_]| {
                    found
                        .chains
                        .get(chain)
                        .is_some_and(|state| state.rules.iter().eq(&rules.iter().map(print).collect::<Vec<_>>()))
                };
                let chains = wanted.chains.into_iter().filter(|(chain, rules)| !is_made(chain, rules));
                let chains = chains.map(|(chain, rules)| Edit::Replace { chain: chain.to_owned(), rules });
                let jumps = wanted.jumps.into_iter().filter(|(chain, jump)| !found.rules(chain).contains(&print(jump)));
                let jumps = jumps.map(|(chain, rule)| Edit::Insert { chain: chain.to_owned(), rule });
                let edits: Vec<_> = chains.chain(jumps).collect();
                if !edits.is_empty() {
                    written += edits.len();
                    self.kernel.iptables().edit(family, table, &mut edits.into_iter())?;
                }
            }
        }
        Ok(written)
    }

    /// This node's addresses among all there are.
    pub(super) fn node_addresses(&mut self, addresses: &[Address]) -> Result<NodeAddresses, KernelError> {
        let settings = &self.state.settings;
        let own = addresses.iter().filter(|address| address.device != self.device).map(|address| address.net.addr());
        let mut node = NodeAddresses { own: own.collect(), ..NodeAddresses::default() };
        for address in &node.own {
            let primary = || settings.node_ips.iter().find(|ip| Family::of(ip) == Family::of(address));
            let answers = !address.is_loopback()
                && !is_unicast_link_local(address)
                && match &settings.node_port_addresses {
                    NodePortAddresses::All => true,
                    NodePortAddresses::Primary => primary() == Some(address),
                    NodePortAddresses::Ranges(ranges) => within(address, ranges),
                };
            if answers {
                node.node_ports[usize::from(address.is_ipv6())].push(*address);
            }
        }
        Ok(node)
    }

    /// Brings everything pending into the kernel. What leads somewhere is made after that and goes before it.
    fn write(&mut self, read: bool) -> Result<usize, KernelError> {
        let steps = self.state.take_server_steps(read.then_some(&mut self.report));
        let mut written = self.add_members(|set| !matches!(set, sets::Name::Inside | sets::Name::DropOutside))?;
        written += steps.first.len() + steps.last.len();
        self.kernel.ipvs().change(&steps.first)?;
        written += self.add_members(|_| true)?;
        written += self.bind_addresses()?;
        written += self.remove_members(|set| set != sets::Name::Addresses)?;
        self.kernel.ipvs().change(&steps.last)?;
        written += self.release_addresses()?;
        written += self.remove_members(|_| true)?;
        Ok(written)
    }

    fn add_members(&mut self, which: impl Fn(sets::Name) -> bool) -> Result<usize, KernelError> {
        let mut written = 0;
        for ((name, family), delta) in self.state.members.iter_mut().filter(|((name, _), _)| which(*name)) {
            let added: Vec<_> = delta
                .pending()
                .filter_map(|step| match step {
                    Step::Create(entry, mark) | Step::Replace(entry, _, mark) => {
                        Some(Element { entry: *entry, mark: *mark })
                    }
                    Step::Delete(..) => None,
                })
                .collect();
            if !added.is_empty() {
                self.kernel.ipset().add(&name.name(*family), &added)?;
                written += added.len();
                added.into_iter().for_each(|element| delta.is(element.entry, element.mark));
            }
        }
        Ok(written)
    }

    fn remove_members(&mut self, which: impl Fn(sets::Name) -> bool) -> Result<usize, KernelError> {
        let mut written = 0;
        for ((name, family), delta) in self.state.members.iter_mut().rev().filter(|((name, _), _)| which(*name)) {
            let removed: Vec<Entry> = delta
                .pending()
                .filter_map(|step| if let Step::Delete(entry, _) = step { Some(*entry) } else { None })
                .collect();
            if !removed.is_empty() {
                self.kernel.ipset().remove(&name.name(*family), &removed)?;
                written += removed.len();
                removed.iter().for_each(|entry| delta.is_gone(entry));
            }
        }
        Ok(written)
    }

    fn bind_addresses(&mut self) -> Result<usize, KernelError> {
        let new: Vec<IpAddr> = self
            .state
            .vips
            .pending()
            .filter_map(|step| if let Step::Create(address, ()) = step { Some(*address) } else { None })
            .collect();
        for address in &new {
            self.kernel.route().add_address(&Address::new(self.device, *address)).or_exists()?;
            self.state.vips.is(*address, ());
        }
        Ok(new.len())
    }

    fn release_addresses(&mut self) -> Result<usize, KernelError> {
        let old: Vec<IpAddr> = self
            .state
            .vips
            .pending()
            .filter_map(|step| if let Step::Delete(address, ()) = step { Some(*address) } else { None })
            .collect();
        for address in &old {
            self.kernel.route().delete_address(&Address::new(self.device, *address)).or_gone()?;
            self.state.vips.is_gone(address);
        }
        Ok(old.len())
    }

    fn try_apply(&mut self) -> Result<usize, KernelError> {
        let read = self.unknown;
        // Until everything went well.
        self.unknown = true;
        let mut written = 0;
        if read {
            written += self.read_kernel()?;
            self.report.full = true;
        }
        for changes in std::mem::take(&mut self.waiting) {
            self.state.change(changes, &mut self.report);
        }
        if read {
            // Now that it is known what they should be.
            self.read_servers()?;
        }
        written += self.write(read)?;
        self.unknown = false;
        Ok(written)
    }

    fn try_tidy(&mut self) -> Result<(), KernelError> {
        let mut steps = Vec::new();
        for key in self.state.spare.keys().copied().collect::<Vec<_>>() {
            let found = self.kernel.ipvs().destinations(&key)?;
            steps.extend(self.state.drained(&key, &found));
        }
        self.kernel.ipvs().change(&steps)?;
        self.release_addresses()?;
        self.remove_members(|_| true)?;
        Ok(())
    }
}

impl<K: Kernel> Mode for Ipvs<K> {
    fn apply(&mut self, changes: Changes) -> Result<Applied> {
        self.waiting.push(changes);
        let written = self.try_apply().map_err(failed)?;
        let mut report = std::mem::take(&mut self.report);
        report.stale.sort_unstable();
        report.stale.dedup();
        Ok(Applied { written, untidy: !self.state.spare.is_empty(), ..report })
    }

    fn tidy(&mut self) -> Result<bool> {
        if !self.unknown
            && let Err(error) = self.try_tidy()
        {
            self.unknown = true;
            return Err(failed(error));
        }
        Ok(!self.state.spare.is_empty())
    }

    fn disturbed(&mut self) -> Result<bool> {
        if !self.unknown {
            self.unknown = self.look().map_err(failed)?;
            return Ok(self.unknown);
        }
        Ok(false)
    }
}

/// Whether a virtual service is this mode's: of any address that is not excluded, as in kube-proxy, or of one of our marks.
pub fn is_ours(key: &ServiceKey, marks: Marks, exclude: &[podwire_model::IpNet]) -> bool {
    match key {
        ServiceKey::Address(_, to) => !within(&to.ip(), exclude),
        ServiceKey::Mark(_, mark) => marks.is_ours(*mark),
    }
}

fn is_link_local(address: &Address) -> bool {
    is_unicast_link_local(&address.net.addr())
}

fn is_unicast_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Before Linux 5.9 a new connection from a port that was used lately waits a second (kubernetes issue 81775).
fn reuses_connections_badly(release: &str) -> bool {
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next().unwrap_or(u32::MAX), numbers.next().unwrap_or(0)) < (5, 9)
}
