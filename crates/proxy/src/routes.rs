//! From plans of single Services to what each frontend of the node does: who gets what several Services ask for.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use podwire_model::ObjectName;

use crate::plan::{Action, Frontend, HealthCheck, ServicePlan, Treatment};

/// What a [`Mode`](crate::mode::Mode) has to change: for everything listed the state that holds from now on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// What happens at a frontend; `None` when it is no longer served.
    pub frontends: Vec<(Frontend, Option<Treatment>)>,
    /// Whether an address is a cluster IP.
    pub cluster_ips: Vec<(IpAddr, bool)>,
    /// Whether an address may be an endpoint that reaches itself through this node.
    pub hairpin: Vec<(IpAddr, bool)>,
}

impl Changes {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.cluster_ips.is_empty() && self.hairpin.is_empty()
    }
}

/// Two Services that ask for the same frontend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Collision {
    /// What both ask for.
    pub frontend: Frontend,
    /// The first by name: it gets it.
    pub winner: ObjectName,
    /// One that does not.
    pub loser: ObjectName,
}

/// Every plan, merged. Which Service gets a contested frontend depends on the names only, never on who came first.
#[derive(Debug, Default)]
pub struct Routes {
    plans: HashMap<ObjectName, ServicePlan>,
    /// Who asks for a frontend.
    claims: HashMap<Frontend, ObjectName>,
    /// Where several ask: all of them. The first by name is in `claims`.
    contested: BTreeMap<Frontend, BTreeSet<ObjectName>>,
    cluster_ips: HashMap<IpAddr, u32>,
    hairpin: HashMap<IpAddr, u32>,
    health_checks: BTreeMap<ObjectName, HealthCheck>,
    changed: Changed,
}

/// What changed since the last [`Routes::take_changes`].
#[derive(Debug, Default)]
struct Changed {
    frontends: HashSet<Frontend>,
    cluster_ips: HashSet<IpAddr>,
    hairpin: HashSet<IpAddr>,
}

impl Routes {
    /// Replaces the plan of one Service; an empty plan when it is gone. What stays the same keeps its memory, which modes
    /// share.
    pub fn set(&mut self, name: &ObjectName, mut plan: ServicePlan) {
        let mut old = self.plans.remove(name).unwrap_or_default();
        let mut replaced = Vec::new();
        merge(&mut old.frontends, &mut plan.frontends, |frontend, old, new| match (old, new) {
            (Some(old), Some(new)) if old == new => std::mem::swap(old, new),
            (old, new) => replaced.push((*frontend, old.is_some(), new.is_some())),
        });
        for (frontend, had, has) in replaced {
            match (had, has) {
                (false, true) => self.claim(frontend, name),
                (true, false) => self.give_up(frontend, name),
                _ => {}
            }
            self.changed.frontends.insert(frontend);
        }
        count(&mut self.cluster_ips, &mut self.changed.cluster_ips, &old.cluster_ips, &plan.cluster_ips);
        count(&mut self.hairpin, &mut self.changed.hairpin, &old.hairpin, &plan.hairpin);
        match plan.health_check {
            Some(check) => self.health_checks.insert(name.clone(), check),
            None => self.health_checks.remove(name),
        };
        if plan != ServicePlan::default() {
            self.plans.insert(name.clone(), plan);
        }
    }

    /// What is to be done since the last call, in the order of frontends and addresses.
    pub fn take_changes(&mut self) -> Changes {
        let changed = std::mem::take(&mut self.changed);
        let mut frontends: Vec<_> = changed.frontends.into_iter().collect();
        frontends.sort_unstable();
        Changes {
            frontends: frontends.into_iter().map(|frontend| (frontend, self.treatment(&frontend).cloned())).collect(),
            cluster_ips: states(changed.cluster_ips, &self.cluster_ips),
            hairpin: states(changed.hairpin, &self.hairpin),
        }
    }

    /// Everything, as [`Routes::take_changes`] says it to a mode that knows nothing yet; those changes are taken too.
    pub fn take_all(&mut self) -> Changes {
        self.changed.frontends.extend(self.claims.keys());
        self.changed.cluster_ips.extend(self.cluster_ips.keys());
        self.changed.hairpin.extend(self.hairpin.keys());
        self.take_changes()
    }

    /// How many Services drop traffic here because of a Local policy: from inside, and from outside.
    pub fn dropping(&self) -> [usize; 2] {
        let count = |drops: fn(&Treatment) -> bool| {
            self.plans.values().filter(|plan| plan.frontends.iter().any(|(_, treatment)| drops(treatment))).count()
        };
        [
            count(|treatment| treatment.inside == Action::Drop),
            count(|treatment| treatment.outside == Some(Action::Drop)),
        ]
    }

    /// Every frontend that several Services ask for, sorted.
    pub fn collisions(&self) -> impl Iterator<Item = Collision> {
        self.contested.iter().flat_map(|(frontend, names)| {
            let pair = |loser: &ObjectName| {
                Some(Collision { frontend: *frontend, winner: names.first()?.clone(), loser: loser.clone() })
            };
            names.iter().skip(1).filter_map(pair).collect::<Vec<_>>()
        })
    }

    /// What load balancers ask; several Services may name one port.
    pub const fn health_checks(&self) -> &BTreeMap<ObjectName, HealthCheck> {
        &self.health_checks
    }

    fn claim(&mut self, frontend: Frontend, name: &ObjectName) {
        match self.claims.entry(frontend) {
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(name.clone());
            }
            std::collections::hash_map::Entry::Occupied(mut entry) => {
                let names = self.contested.entry(frontend).or_default();
                names.extend([entry.get().clone(), name.clone()]);
                if name < entry.get() {
                    entry.insert(name.clone());
                }
            }
        }
    }

    fn give_up(&mut self, frontend: Frontend, name: &ObjectName) {
        let Some(names) = self.contested.get_mut(&frontend) else {
            self.claims.remove(&frontend);
            return;
        };
        names.remove(name);
        if let Some(first) = names.first() {
            self.claims.insert(frontend, first.clone());
        }
        if names.len() == 1 {
            self.contested.remove(&frontend);
        }
    }

    fn treatment(&self, frontend: &Frontend) -> Option<&Treatment> {
        let frontends = &self.plans.get(self.claims.get(frontend)?)?.frontends;
        let found = frontends.binary_search_by_key(frontend, |(frontend, _)| *frontend).ok()?;
        frontends.get(found).map(|(_, treatment)| treatment)
    }
}

/// Visits every key of two sorted lists, with what each of them has there.
fn merge<K: Ord + Copy, V>(
    old: &mut [(K, V)],
    new: &mut [(K, V)],
    mut visit: impl FnMut(&K, Option<&mut V>, Option<&mut V>),
) {
    let (mut old, mut new) = (old.iter_mut().peekable(), new.iter_mut().peekable());
    while let Some(key) = [old.peek(), new.peek()].into_iter().flatten().map(|(key, _)| *key).min() {
        let of_old = old.next_if(|(at, _)| *at == key).map(|(_, value)| value);
        let of_new = new.next_if(|(at, _)| *at == key).map(|(_, value)| value);
        visit(&key, of_old, of_new);
    }
}

/// Counts who asks for addresses, of which both lists are sorted; notes those that come or go.
fn count(users: &mut HashMap<IpAddr, u32>, changed: &mut HashSet<IpAddr>, old: &[IpAddr], new: &[IpAddr]) {
    for address in new.iter().filter(|address| old.binary_search(address).is_err()) {
        let count = users.entry(*address).or_default();
        *count += 1;
        if *count == 1 {
            changed.insert(*address);
        }
    }
    for address in old.iter().filter(|address| new.binary_search(address).is_err()) {
        if let Some(count) = users.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                users.remove(address);
                changed.insert(*address);
            }
        }
    }
}

fn states(changed: HashSet<IpAddr>, users: &HashMap<IpAddr, u32>) -> Vec<(IpAddr, bool)> {
    let mut states: Vec<_> = changed.into_iter().map(|address| (address, users.contains_key(&address))).collect();
    states.sort_unstable();
    states
}
