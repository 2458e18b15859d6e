//! From plans of single Services to what each frontend of the node does: who gets what several Services ask for.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use podwire_model::ObjectName;

use crate::plan::{Frontend, ServicePlan, Treatment};

/// What a [`Mode`](crate::mode::Mode) has to change: for everything listed the state that holds from now on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// What happens at a frontend; `None` when it is no longer served.
    pub frontends: Vec<(Frontend, Option<Treatment>)>,
    /// Whether an address is a cluster IP.
    pub cluster_ips: Vec<(IpAddr, bool)>,
    /// Whether an address may be an endpoint on this node.
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
    /// Who asks for a frontend; the first by name gets it.
    claims: HashMap<Frontend, BTreeSet<ObjectName>>,
    cluster_ips: HashMap<IpAddr, usize>,
    hairpin: HashMap<IpAddr, usize>,
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
    /// Replaces the plan of one Service; an empty plan when it is gone.
    pub fn set(&mut self, name: &ObjectName, plan: ServicePlan) {
        let old = self.plans.remove(name).unwrap_or_default();
        for (frontend, treatment) in &plan.frontends {
            if old.frontends.get(frontend) != Some(treatment) {
                self.claims.entry(*frontend).or_default().insert(name.clone());
                self.changed.frontends.insert(*frontend);
            }
        }
        for frontend in old.frontends.keys().filter(|frontend| !plan.frontends.contains_key(frontend)) {
            if let Some(claims) = self.claims.get_mut(frontend) {
                claims.remove(name);
                if claims.is_empty() {
                    self.claims.remove(frontend);
                }
            }
            self.changed.frontends.insert(*frontend);
        }
        count(&mut self.cluster_ips, &mut self.changed.cluster_ips, &old.cluster_ips, &plan.cluster_ips);
        count(&mut self.hairpin, &mut self.changed.hairpin, &old.hairpin, &plan.hairpin);
        if plan != ServicePlan::default() {
            self.plans.insert(name.clone(), plan);
        }
    }

    /// What is to be done since the last call, in the order of frontends and addresses.
    pub fn take_changes(&mut self) -> Changes {
        let changed = std::mem::take(&mut self.changed);
        let frontends: BTreeMap<_, _> =
            changed.frontends.into_iter().map(|frontend| (frontend, self.treatment(&frontend).cloned())).collect();
        Changes {
            frontends: frontends.into_iter().collect(),
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

    /// The plan of a Service, unless it is empty.
    pub fn plan(&self, name: &ObjectName) -> Option<&ServicePlan> {
        self.plans.get(name)
    }

    /// Every frontend that several Services ask for, sorted.
    pub fn collisions(&self) -> Vec<Collision> {
        let contested = self.claims.iter().filter(|(_, names)| names.len() > 1);
        let mut collisions: Vec<_> = contested
            .flat_map(|(frontend, names)| {
                let winner = names.first().cloned();
                let pair = |loser: &ObjectName| {
                    Some(Collision { frontend: *frontend, winner: winner.clone()?, loser: loser.clone() })
                };
                names.iter().skip(1).filter_map(pair).collect::<Vec<_>>()
            })
            .collect();
        collisions.sort();
        collisions
    }

    fn treatment(&self, frontend: &Frontend) -> Option<&Treatment> {
        let owner = self.claims.get(frontend)?.first()?;
        self.plans.get(owner)?.frontends.get(frontend)
    }
}

/// Counts who asks for addresses; notes those that come or go.
fn count(
    users: &mut HashMap<IpAddr, usize>,
    changed: &mut HashSet<IpAddr>,
    old: &BTreeSet<IpAddr>,
    new: &BTreeSet<IpAddr>,
) {
    for address in new.difference(old) {
        let count = users.entry(*address).or_default();
        *count += 1;
        if *count == 1 {
            changed.insert(*address);
        }
    }
    for address in old.difference(new) {
        if let Some(count) = users.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                users.remove(address);
                changed.insert(*address);
            }
        }
    }
}

fn states(changed: HashSet<IpAddr>, users: &HashMap<IpAddr, usize>) -> Vec<(IpAddr, bool)> {
    let sorted: BTreeSet<_> = changed.into_iter().collect();
    sorted.into_iter().map(|address| (address, users.contains_key(&address))).collect()
}
