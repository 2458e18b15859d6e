//! The current Services, EndpointSlices and Node, and which Services' plans they change.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use podwire_model::{EndpointSlice, Node, ObjectName, Service};

use crate::{
    plan::{HealthCheck, Me, ServicePlan, plan},
    routes::{Changes, Collision, Routes},
};

/// Holds the current objects. Its output depends on them only, never on the order in which they came: a sequence of
/// events replayed in another order, or with snapshots in between, leads to the same plans.
#[derive(Debug)]
pub struct Tracker {
    me: Me,
    services: HashMap<ObjectName, Service>,
    /// By Service, then by the slice's own name.
    slices: HashMap<ObjectName, BTreeMap<ObjectName, EndpointSlice>>,
    /// Which Service a slice belongs to.
    owners: HashMap<ObjectName, ObjectName>,
    dirty: BTreeSet<ObjectName>,
    routes: Routes,
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
            dirty: BTreeSet::new(),
            routes: Routes::default(),
            services_known: false,
            slices_known: false,
        }
    }

    /// Replaces all Services: a complete list.
    pub fn set_services(&mut self, services: impl IntoIterator<Item = Service>) {
        let mut gone: BTreeSet<_> = self.services.keys().cloned().collect();
        for service in services {
            gone.remove(&service.name);
            self.service(service);
        }
        gone.iter().for_each(|name| self.service_gone(name));
        self.services_known = true;
    }

    /// A Service was made or changed.
    pub fn service(&mut self, service: Service) {
        if self.services.get(&service.name) != Some(&service) {
            self.dirty.insert(service.name.clone());
            self.services.insert(service.name.clone(), service);
        }
    }

    /// A Service was deleted.
    pub fn service_gone(&mut self, name: &ObjectName) {
        if self.services.remove(name).is_some() {
            self.dirty.insert(name.clone());
        }
    }

    /// Replaces all EndpointSlices: a complete list.
    pub fn set_slices(&mut self, slices: impl IntoIterator<Item = EndpointSlice>) {
        let mut gone: BTreeSet<_> = self.owners.keys().cloned().collect();
        for slice in slices {
            gone.remove(&slice.name);
            self.slice(slice);
        }
        gone.iter().for_each(|name| self.slice_gone(name));
        self.slices_known = true;
    }

    /// An EndpointSlice was made or changed.
    pub fn slice(&mut self, slice: EndpointSlice) {
        let service = slice.service_name();
        if self.owners.get(&slice.name).is_some_and(|owner| *owner != service) {
            self.slice_gone(&slice.name);
        }
        let siblings = self.slices.entry(service.clone()).or_default();
        if siblings.get(&slice.name) != Some(&slice) {
            self.owners.insert(slice.name.clone(), service.clone());
            siblings.insert(slice.name.clone(), slice);
            self.dirty.insert(service);
        }
    }

    /// An EndpointSlice was deleted, or belongs to no Service any more.
    pub fn slice_gone(&mut self, name: &ObjectName) {
        let Some(service) = self.owners.remove(name) else { return };
        if let Some(siblings) = self.slices.get_mut(&service) {
            siblings.remove(name);
            if siblings.is_empty() {
                self.slices.remove(&service);
            }
        }
        self.dirty.insert(service);
    }

    /// What is known about this node; others are ignored.
    pub fn node(&mut self, node: &Node) {
        if node.name == self.me.node && (node.zone != self.me.zone || node.internal_ips != self.me.addresses) {
            self.me.zone.clone_from(&node.zone);
            self.me.addresses.clone_from(&node.internal_ips);
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
        self.routes.collisions()
    }

    /// The health checks that load balancers ask for (`healthCheckNodePort`), as of the last changes that were taken.
    pub fn health_checks(&self) -> BTreeMap<ObjectName, HealthCheck> {
        let check = |name: &ObjectName| Some((name.clone(), self.routes.plan(name)?.health_check?));
        self.services.keys().filter_map(check).collect()
    }

    fn plan_dirty(&mut self) -> bool {
        if self.is_complete() {
            for name in std::mem::take(&mut self.dirty) {
                let plan = self.plan(&name);
                self.routes.set(&name, plan);
            }
        }
        self.is_complete()
    }

    fn plan(&self, name: &ObjectName) -> ServicePlan {
        match self.services.get(name) {
            Some(service) => plan(service, self.slices.get(name).into_iter().flat_map(BTreeMap::values), &self.me),
            None => ServicePlan::default(),
        }
    }
}
