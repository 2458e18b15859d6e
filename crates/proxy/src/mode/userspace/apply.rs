//! Applies changes: endpoints to the pools in memory, ways in to the rules.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use podwire_kernel::iptables::{Iptables, Table};
use podwire_model::{Family, Name, Protocol, TrafficPolicy};
use tracing::warn;

use super::{
    failed,
    relay::{Pool, Ports, Wanted},
    rules::{self, Placed},
    tables::{Owner, Saved, Tables},
};
use crate::{
    Changes, Result,
    mode::{Applied, FAMILIES, Mode, Settings, StaleFlows},
    plan::{Action, Frontend, Treatment},
};

/// What has a local port of its own: the endpoints of a policy, of one Service port in one family.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PoolName {
    family: Family,
    protocol: Protocol,
    label: Name,
    policy: TrafficPolicy,
}

impl PoolName {
    /// As rules name it.
    fn comment(&self) -> String {
        format!("{}{}", self.label, rules::suffix(self.policy))
    }
}

#[derive(Debug, Default)]
struct PoolState {
    pool: Arc<Pool>,
    port: Option<u16>,
    /// How many frontends lead to it.
    users: usize,
    /// Nobody did when [`Mode::tidy`] last looked.
    seen_unused: bool,
}

/// The userspace mode over iptables and local ports, or fakes of them.
pub struct Userspace<I, P> {
    iptables: I,
    ports: P,
    settings: Settings,
    treatments: HashMap<Frontend, Treatment>,
    pools: HashMap<PoolName, PoolState>,
    tables: [Tables; 2],
    /// Frontends whose rules may be other ones now.
    dirty: BTreeSet<Frontend>,
    report: Applied,
    /// What the kernel holds is not known: at start and after an error.
    unknown: bool,
}

/// Which local ports UDP frontends lead to.
type UdpPorts = BTreeMap<Frontend, BTreeSet<u16>>;

impl<I: Iptables, P: Ports> Userspace<I, P> {
    /// Knows nothing yet about what the kernel holds; the first [`Mode::apply`] reads it.
    pub fn new(iptables: I, ports: P, settings: Settings) -> Self {
        let mut tables = FAMILIES.map(Tables::new);
        for (tables, family) in tables.iter_mut().zip(FAMILIES) {
            tables.set(Owner::Ranges, rules::service_ranges(family, &settings.service_ranges));
        }
        Self {
            iptables,
            ports,
            settings,
            treatments: HashMap::new(),
            pools: HashMap::new(),
            tables,
            dirty: BTreeSet::new(),
            report: Applied::default(),
            unknown: true,
        }
    }

    /// The iptables.
    pub const fn iptables(&self) -> &I {
        &self.iptables
    }

    /// The iptables, for tests that interfere.
    pub const fn iptables_mut(&mut self) -> &mut I {
        &mut self.iptables
    }

    /// The local ports.
    pub const fn ports(&self) -> &P {
        &self.ports
    }

    /// The local ports, for tests that interfere.
    pub const fn ports_mut(&mut self) -> &mut P {
        &mut self.ports
    }

    /// Takes changes into memory: new endpoints count from here on.
    fn take(&mut self, changes: Changes) {
        for (frontend, after) in changes.frontends {
            let before = match &after {
                Some(treatment) => self.treatments.insert(frontend, treatment.clone()),
                None => self.treatments.remove(&frontend),
            };
            if before == after {
                continue;
            }
            self.dirty.insert(frontend);
            for (name, action) in after.iter().flat_map(|treatment| pools(&frontend, treatment)) {
                let state = self.pools.entry(name).or_default();
                state.users += 1;
                state.seen_unused = false;
                if let (Action::Balance { backends, .. }, Some(treatment)) = (action, &after) {
                    state.pool.lock().set(backends.clone(), treatment.affinity);
                }
            }
            for (name, _) in before.iter().flat_map(|treatment| pools(&frontend, treatment)) {
                if let Some(state) = self.pools.get_mut(&name) {
                    state.users -= 1;
                }
            }
        }
        for (address, used) in changes.cluster_ips {
            let rules = if used { rules::cluster_ip(address) } else { Vec::new() };
            tables(&mut self.tables, Family::of(&address)).set(Owner::ClusterIp(address), rules);
        }
    }

    /// Gives every pool that is used a local port: the one that an earlier run had for it, if it is free.
    fn open_ports(&mut self, saved: Option<&[Saved]>) -> Result<()> {
        let without = self.pools.iter().filter(|(_, state)| state.port.is_none() && state.users > 0);
        let names: Vec<_> = without.map(|(name, _)| name.clone()).collect();
        if names.is_empty() {
            return Ok(());
        }
        let earlier = earlier_ports(saved.unwrap_or_default());
        let wanted = names.iter().filter_map(|name| {
            let port = earlier.get(&(name.family, name.protocol, name.comment())).copied();
            let pool = self.pools.get(name)?.pool.clone();
            Some(Wanted { protocol: name.protocol, family: name.family, port, pool })
        });
        let wanted = wanted.collect();
        let mut problem = None;
        for (name, opened) in names.iter().zip(self.ports.open(wanted)) {
            match opened {
                Ok(port) => {
                    let door = rules::door(name.family, name.protocol, port, &name.comment());
                    tables(&mut self.tables, name.family).set(Owner::Door(name.protocol, port), door);
                    if let Some(state) = self.pools.get_mut(name) {
                        state.port = Some(port);
                    }
                }
                Err(error) => {
                    warn!("{} is refused for now: {error}", name.comment());
                    problem = Some(error);
                }
            }
        }
        problem.map_or(Ok(()), |error| Err(failed(error)))
    }

    /// The rules of the frontends that changed.
    fn render(&mut self) {
        for frontend in std::mem::take(&mut self.dirty) {
            let rules = self.treatments.get(&frontend).map(|treatment| {
                let port = |policy| self.pools.get(&pool_name(&frontend, treatment, policy))?.port;
                let unserved = pools(&frontend, treatment).any(|(name, _)| port(name.policy).is_none());
                let rules = rules::frontend(&frontend, treatment, port, &self.settings.detect_local);
                (rules, unserved)
            });
            let (rules, unserved) = rules.unwrap_or_default();
            if unserved {
                self.dirty.insert(frontend);
            }
            tables(&mut self.tables, frontend.entry.family()).set(Owner::Frontend(frontend), rules);
        }
    }

    fn read(&mut self) -> Result<Vec<Saved>> {
        let iptables = &mut self.iptables;
        self.tables.iter().map(|tables| tables.read(iptables).map_err(failed)).collect()
    }

    /// Writes the rules that differ from what the kernel holds: from `saved`, or from what was written last.
    fn write(&mut self, saved: Option<&[Saved]>) -> Result<()> {
        let stale = stale_flows(&self.tables, saved);
        for (index, (tables, family)) in self.tables.iter_mut().zip(FAMILIES).enumerate() {
            let (text, count) = match saved.and_then(|saved| saved.get(index)) {
                Some(saved) => tables.repair(saved, &self.settings),
                None => tables.change(&self.settings),
            };
            if let Err(error) = self.iptables.restore(family, &text) {
                self.unknown = true;
                return Err(failed(error));
            }
            tables.written();
            self.report.written += count;
        }
        self.report.stale.extend(stale);
        self.unknown = false;
        Ok(())
    }

    fn has_unused_pools(&self) -> bool {
        self.pools.values().any(|state| state.users == 0)
    }
}

impl<I: Iptables, P: Ports> Mode for Userspace<I, P> {
    fn apply(&mut self, changes: Changes) -> Result<Applied> {
        self.take(changes);
        let saved = if self.unknown { Some(self.read()?) } else { None };
        self.report.full |= saved.is_some();
        let opened = self.open_ports(saved.as_deref());
        self.render();
        self.write(saved.as_deref())?;
        opened?;
        Ok(Applied { untidy: self.has_unused_pools(), ..std::mem::take(&mut self.report) })
    }

    fn tidy(&mut self) -> Result<bool> {
        let Self { pools, ports, tables: both, .. } = self;
        pools.retain(|name, state| {
            let keep = state.users > 0 || !std::mem::replace(&mut state.seen_unused, true);
            if !keep && let Some(port) = state.port {
                ports.close(name.protocol, name.family, port);
                tables(both, name.family).set(Owner::Door(name.protocol, port), Vec::new());
            }
            keep
        });
        if !self.unknown {
            self.write(None)?;
        }
        Ok(self.has_unused_pools())
    }

    fn disturbed(&mut self) -> Result<bool> {
        if self.unknown || !self.iptables.disturbed().map_err(failed)? {
            return Ok(false);
        }
        // Somebody touched something: perhaps nothing that matters.
        let saved = self.read()?;
        let as_left = |(tables, saved): (&Tables, &Saved)| tables.repair(saved, &self.settings).0.is_empty();
        self.unknown = !self.tables.iter().zip(&saved).all(as_left);
        Ok(self.unknown)
    }
}

fn tables(both: &mut [Tables; 2], family: Family) -> &mut Tables {
    let [v4, v6] = both;
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

fn pool_name(frontend: &Frontend, treatment: &Treatment, policy: TrafficPolicy) -> PoolName {
    PoolName { family: frontend.entry.family(), protocol: frontend.protocol, label: treatment.label.clone(), policy }
}

/// The pools that a frontend leads to. None over SCTP: no local port can take that.
fn pools<'a>(frontend: &'a Frontend, treatment: &'a Treatment) -> impl Iterator<Item = (PoolName, &'a Action)> {
    let actions = [Some(&treatment.inside), treatment.outside.as_ref()].into_iter().flatten();
    actions.filter(|_| frontend.protocol != Protocol::Sctp).filter_map(move |action| match action {
        Action::Balance { policy, .. } => Some((pool_name(frontend, treatment, *policy), action)),
        Action::Reject | Action::Drop => None,
    })
}

/// The redirections that the kernel holds in one family.
pub fn redirections(family: Family, saved: &Saved) -> impl Iterator<Item = (Frontend, String, u16)> + '_ {
    let nat = saved.iter().filter(|(table, _)| *table == Table::Nat);
    nat.flat_map(move |(table, state)| {
        rules::chains(*table).iter().flat_map(move |chain| {
            state.rules(chain).iter().filter_map(move |rule| rules::redirection(family, chain, rule))
        })
    })
}

fn all_redirections(saved: &[Saved]) -> impl Iterator<Item = (Frontend, String, u16)> + '_ {
    saved.iter().zip(FAMILIES).flat_map(|(saved, family)| redirections(family, saved))
}

fn earlier_ports(saved: &[Saved]) -> HashMap<(Family, Protocol, String), u16> {
    let named = all_redirections(saved);
    named.map(|(frontend, label, port)| ((frontend.entry.family(), frontend.protocol, label), port)).collect()
}

/// UDP flows that were redirected to another port than now, or not at all.
fn stale_flows(tables: &[Tables; 2], saved: Option<&[Saved]>) -> Vec<StaleFlows> {
    let mut ports: BTreeMap<Frontend, [BTreeSet<u16>; 2]> = BTreeMap::new();
    let mut note = |when: usize, found: UdpPorts| {
        for (frontend, numbers) in found {
            ports.entry(frontend).or_default()[when].extend(numbers);
        }
    };
    match saved {
        Some(saved) => {
            let found = all_redirections(saved).filter(|(frontend, ..)| frontend.protocol == Protocol::Udp);
            found.for_each(|(frontend, _, port)| note(0, [(frontend, [port].into())].into()));
            tables.iter().for_each(|tables| tables.wanted().iter().for_each(|(owner, new)| note(1, udp(owner, new))));
        }
        None => {
            for tables in tables {
                for (owner, old) in tables.outdated() {
                    note(0, udp(owner, old));
                    tables.wanted().get(owner).into_iter().for_each(|new| note(1, udp(owner, new)));
                }
            }
        }
    }
    let stale = ports.into_iter().flat_map(|(frontend, [old, new])| {
        let untranslated = (old.is_empty() && !new.is_empty()).then_some(StaleFlows::Untranslated(frontend));
        let elsewhere: Vec<_> = old.difference(&new).map(|port| StaleFlows::Redirected(frontend, *port)).collect();
        elsewhere.into_iter().chain(untranslated)
    });
    stale.collect()
}

/// Where the rules of a UDP frontend lead.
fn udp(owner: &Owner, rules: &[Placed]) -> UdpPorts {
    let Owner::Frontend(frontend) = owner else { return UdpPorts::new() };
    if frontend.protocol != Protocol::Udp {
        return UdpPorts::new();
    }
    let to = |placed: &Placed| placed.rule.rsplit_once("--to-ports ")?.1.parse().ok();
    [(*frontend, rules.iter().filter_map(to).collect())].into()
}
