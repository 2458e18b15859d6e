//! What is wrong with objects: told once each, until it is gone and comes back.

use std::collections::{BTreeMap, BTreeSet};

use podwire_model::{ObjectName, Problem};

use crate::routes::Routes;

/// The kind of a Service in problems.
pub const SERVICE: &str = "Service";
/// The kind of an EndpointSlice in problems.
pub const SLICE: &str = "EndpointSlice";

/// What was wrong with objects as they were read, and what was told of all that is wrong.
#[derive(Debug, Default)]
pub struct Problems {
    noted: BTreeSet<Problem>,
    told: BTreeSet<Problem>,
    /// Something may be there that was not told, or be gone.
    stale: bool,
}

impl Problems {
    /// Notes what was wrong with an object as it was read.
    pub fn note(&mut self, problem: Problem) {
        self.stale |= self.noted.insert(problem);
    }

    /// Forgets what was noted about one object: another version of it was read, or it is gone.
    pub fn forget(&mut self, kind: &str, object: &ObjectName) {
        self.forget_if(|problem| problem.kind == kind && problem.object == *object);
    }

    /// Forgets what was noted about all objects of a kind.
    pub fn forget_all(&mut self, kind: &str) {
        self.forget_if(|problem| problem.kind == kind);
    }

    fn forget_if(&mut self, forget: impl Fn(&Problem) -> bool) {
        if !self.noted.is_empty() {
            self.noted.retain(|problem| !forget(problem));
            self.stale = true;
        }
    }

    /// Plans changed: others may collide now.
    pub const fn replanned(&mut self) {
        self.stale = true;
    }

    /// All that is wrong now: what was noted, and what Services want that others have.
    pub fn current(&self, routes: &Routes) -> BTreeSet<Problem> {
        self.noted.iter().cloned().chain(collisions(routes)).chain(shared_health_checks(routes)).collect()
    }

    /// What is wrong now and was not at the last call.
    pub fn take_new(&mut self, routes: &Routes) -> Vec<Problem> {
        if !std::mem::take(&mut self.stale) {
            return Vec::new();
        }
        let current = self.current(routes);
        let new = current.difference(&self.told).cloned().collect();
        self.told = current;
        new
    }
}

fn collisions(routes: &Routes) -> impl Iterator<Item = Problem> {
    routes.collisions().map(|collision| Problem {
        kind: SERVICE,
        object: collision.loser,
        field: "spec",
        what: format!("{} is asked for by Service {} too", collision.frontend, collision.winner),
        done: "that Service, the first by name, gets it",
    })
}

/// A port can answer for one Service only: the first by name, as everywhere.
fn shared_health_checks(routes: &Routes) -> impl Iterator<Item = Problem> {
    let mut owners: BTreeMap<u16, &ObjectName> = BTreeMap::new();
    routes.health_checks().iter().filter_map(move |(name, check)| {
        let owner = owners.entry(check.port).or_insert(name);
        (*owner != name).then(|| Problem {
            kind: SERVICE,
            object: name.clone(),
            field: "spec.healthCheckNodePort",
            what: format!("port {} is asked for by Service {owner} too", check.port),
            done: "that Service, the first by name, gets it",
        })
    })
}
