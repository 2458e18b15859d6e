//! The current Services, EndpointSlices and Node, and which Services' plans they change.

use std::collections::{BTreeMap, HashMap, HashSet};

use podwire_model::{EndpointSlice, Node, ObjectName, Problem, Service};

use crate::{
    endpoints::Slice,
    plan::{HealthCheck, Me, ServicePlan, plan},
    problems::{Problems, SERVICE, SLICE},
    routes::{Changes, Collision, Routes},
};

/// Holds the current objects. Its output depends on them only, never on the order in which they came: a sequence of
/// events replayed in another order, or with snapshots in between, leads to the same plans.
#[derive(Debug)]
pub struct Tracker {
    me: Me,
    services: HashMap<ObjectName, Service>,
    /// Of each Service, sorted by their own names.
    slices: HashMap<ObjectName, Vec<Slice>>,
    /// Which Service a slice belongs to.
    owners: HashMap<ObjectName, ObjectName>,
    dirty: HashSet<ObjectName>,
    routes: Routes,
    problems: Problems,
    services_known: bool,
    slices_known: bool,
}

impl Tracker {
    /// Plans for the node that `me` describes; nothing else is known yet.
    pub fn new(me: Me) -> Self {
        Self {
            me,
            services: HashMap::new(),
            slices: HashMap::new(),
            owners: HashMap::new(),
            dirty: HashSet::new(),
            routes: Routes::default(),
            problems: Problems::default(),
            services_known: false,
            slices_known: false,
        }
    }

    /// Replaces all Services: a complete list. It is read one by one, and need never be in memory whole.
    pub fn set_services(&mut self, services: impl IntoIterator<Item = Service>) {
        self.problems.forget_all(SERVICE);
        let mut gone: HashSet<_> = self.services.keys().cloned().collect();
        for service in services {
            gone.remove(&service.name);
            self.service(service);
        }
        gone.iter().for_each(|name| self.service_gone(name));
        self.services_known = true;
    }

    /// A Service was made or changed.
    pub fn service(&mut self, service: Service) {
        self.problems.forget(SERVICE, &service.name);
        if self.services.get(&service.name) != Some(&service) {
            self.dirty.insert(service.name.clone());
            self.services.insert(service.name.clone(), service);
        }
    }

    /// A Service was deleted.
    pub fn service_gone(&mut self, name: &ObjectName) {
        self.problems.forget(SERVICE, name);
        if self.services.remove(name).is_some() {
            self.dirty.insert(name.clone());
        }
    }

    /// Replaces all EndpointSlices: a complete list. It is read one by one, and need never be in memory whole.
    pub fn set_slices(&mut self, slices: impl IntoIterator<Item = EndpointSlice>) {
        self.problems.forget_all(SLICE);
        let mut gone: HashSet<_> = self.owners.keys().cloned().collect();
        for slice in slices {
            gone.remove(&slice.name);
            self.slice(slice);
        }
        gone.iter().for_each(|name| self.slice_gone(name));
        self.slices_known = true;
    }

    /// An EndpointSlice was made or changed. One of a headless Service is none of the proxy's business.
    pub fn slice(&mut self, slice: EndpointSlice) {
        self.problems.forget(SLICE, &slice.name);
        let service = slice.service_name();
        if slice.headless || self.owners.get(&slice.name).is_some_and(|owner| *owner != service) {
            self.slice_gone(&slice.name);
        }
        if slice.headless {
            return;
        }
        let kept = Slice::new(&slice, &self.me);
        let siblings = self.slices.entry(service.clone()).or_default();
        match siblings.binary_search_by(|sibling| sibling.name.cmp(&kept.name)) {
            Ok(at) if siblings[at] == kept => return,
            Ok(at) => siblings[at] = kept,
            Err(at) => {
                siblings.reserve_exact(1);
                siblings.insert(at, kept);
                self.owners.insert(slice.name, service.clone());
            }
        }
        self.dirty.insert(service);
    }

    /// An EndpointSlice was deleted, or belongs to no Service any more.
    pub fn slice_gone(&mut self, name: &ObjectName) {
        self.problems.forget(SLICE, name);
        let Some(service) = self.owners.remove(name) else { return };
        if let Some(siblings) = self.slices.get_mut(&service) {
            siblings.retain(|sibling| sibling.name != name.name);
            if siblings.is_empty() {
                self.slices.remove(&service);
            }
        }
        self.dirty.insert(service);
    }

    /// What is known about this node; others are ignored.
    pub fn node(&mut self, node: &Node) {
        if node.name != self.me.node {
            return;
        }
        self.problems.forget("Node", &ObjectName::new("", node.name.clone()));
        let known = (&self.me.zone, &self.me.addresses, &self.me.pod_ranges);
        if known != (&node.zone, &node.internal_ips, &node.pod_cidrs) {
            self.me.zone.clone_from(&node.zone);
            self.me.addresses.clone_from(&node.internal_ips);
            self.me.pod_ranges.clone_from(&node.pod_cidrs);
            self.dirty.extend(self.services.keys().cloned());
        }
    }

    /// Something was wrong with an object as it was read. Call it after the object was handed over (or taken away, if
    /// nothing of it could be used): the next version of the object replaces it.
    pub fn note(&mut self, problem: Problem) {
        self.problems.note(problem);
    }

    /// What is wrong with objects now and was not at the last call: to be told once. As of the last changes that were
    /// taken.
    pub fn take_problems(&mut self) -> Vec<Problem> {
        self.problems.take_new(&self.routes)
    }

    /// All that is wrong with objects now, sorted. As of the last changes that were taken.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        self.problems.current(&self.routes).into_iter()
    }

    /// Whether pods' traffic to cluster IPs is masqueraded as well (`masqueradeAll`).
    pub fn set_masquerade_all(&mut self, all: bool) {
        if self.me.masquerade_all != all {
            self.me.masquerade_all = all;
            self.dirty.extend(self.services.keys().cloned());
        }
    }

    /// Whether both Services and EndpointSlices were listed completely at least once.
    pub const fn is_complete(&self) -> bool {
        self.services_known && self.slices_known
    }

    /// What changed since the last call. `None` before the first complete lists: nothing may be written then.
    pub fn take_changes(&mut self) -> Option<Changes> {
        self.plan_dirty().then(|| self.routes.take_changes())
    }

    /// Everything, for a mode that starts while another one runs. `None` before the first complete lists.
    pub fn take_all(&mut self) -> Option<Changes> {
        self.plan_dirty().then(|| self.routes.take_all())
    }

    /// The frontends that several Services ask for, as of the last changes that were taken.
    pub fn collisions(&self) -> Vec<Collision> {
        self.routes.collisions().collect()
    }

    /// The health checks that load balancers ask for (`healthCheckNodePort`), as of the last changes that were taken. Each
    /// port is there once: for the first Service by name that asks for it.
    pub fn health_checks(&self) -> BTreeMap<ObjectName, HealthCheck> {
        let mut ports = HashSet::new();
        let checks = self.routes.health_checks().iter().filter(|(_, check)| ports.insert(check.port));
        checks.map(|(name, check)| (name.clone(), *check)).collect()
    }

    /// How many Services have no endpoint here for an internal, and for an external, traffic policy Local. As of the last
    /// changes that were taken.
    pub fn without_local_endpoints(&self) -> [usize; 2] {
        self.routes.dropping()
    }

    fn plan_dirty(&mut self) -> bool {
        if self.is_complete() && !self.dirty.is_empty() {
            for name in self.dirty.drain() {
                let plan = match self.services.get(&name) {
                    Some(service) => plan(service, self.slices.get(&name).map_or(&[], Vec::as_slice), &self.me),
                    None => ServicePlan::default(),
                };
                self.routes.set(&name, plan);
            }
            self.problems.replanned();
        }
        self.is_complete()
    }
}
