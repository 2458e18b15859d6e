//! The cluster as DNS sees it: Services, EndpointSlices, Namespaces and Pods, indexed for lookups.
//!
//! A [`View`] is a value: it depends on the objects that were last applied and not deleted, never on the order in which
//! they came, and two views of the same objects are equal. Applying an object costs time in proportion to that object.

mod lookup;
mod owners;
mod question;
mod slice;

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use podwire_model::{Name, ObjectName, Service};

pub use lookup::{Host, PointerTarget, Target};
use owners::Owners;
pub use question::{Asked, Labels, Selector, ServiceName, dashed_address, reverse_address};
pub use slice::Slice;

/// Everything in the cluster that has a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Namespace → Service name → the Service and its slices. Nested so that a lookup needs no owned key.
    namespaces: HashMap<Name, HashMap<Name, Entry>>,
    slices: HashMap<ObjectName, Filed>,
    /// The Services that have an address as cluster IP.
    cluster_ips: Owners<ObjectName>,
    /// The slices that have an address as an endpoint's.
    endpoints: Owners<Filed>,
    /// The Namespaces that exist.
    existing_namespaces: HashSet<Name>,
    pods: HashMap<ObjectName, Vec<IpAddr>>,
    pod_addresses: Owners<ObjectName>,
}

/// A Service and the slices that name it, in the order of their names; either may come first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    service: Option<Service>,
    slices: Vec<Filed>,
}

/// A slice, shared by its Service and its addresses; ordered by its name, which only one has.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Filed(Arc<Slice>);

impl Ord for Filed {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.name.cmp(&other.0.name)
    }
}

impl PartialOrd for Filed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl View {
    /// A view of an empty cluster.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a Service or replaces the one of the same name.
    pub fn apply_service(&mut self, service: Service) {
        self.delete_service(&service.name);
        for ip in &service.cluster_ips {
            self.cluster_ips.add(*ip, service.name.clone());
        }
        let name = service.name.clone();
        self.entry(&name).service = Some(service);
    }

    /// Forgets a Service; its slices stay until they are deleted themselves.
    pub fn delete_service(&mut self, name: &ObjectName) {
        let Some(service) = self.entry(name).service.take() else { return self.drop_empty(name) };
        for ip in &service.cluster_ips {
            self.cluster_ips.remove(*ip, &service.name);
        }
        self.drop_empty(name);
    }

    /// Adds an EndpointSlice or replaces the one of the same name, also when it moved to another Service.
    pub fn apply_slice(&mut self, slice: impl Into<Slice>) {
        let slice = slice.into();
        self.delete_slice(&slice.name);
        let filed = Filed(Arc::new(slice));
        for address in filed.0.addresses() {
            self.endpoints.add(address, filed.clone());
        }
        let slices = &mut self.entry(&filed.0.service_name()).slices;
        let place = slices.partition_point(|other| *other < filed);
        slices.insert(place, filed.clone());
        self.slices.insert(filed.0.name.clone(), filed);
    }

    /// Forgets an EndpointSlice.
    pub fn delete_slice(&mut self, name: &ObjectName) {
        let Some(filed) = self.slices.remove(name) else { return };
        let service = filed.0.service_name();
        self.entry(&service).slices.retain(|other| other.0.name != *name);
        for address in filed.0.addresses() {
            self.endpoints.remove(address, &filed);
        }
        self.drop_empty(&service);
    }

    /// Notes that a Namespace exists.
    pub fn apply_namespace(&mut self, name: Name) {
        self.existing_namespaces.insert(name);
    }

    /// Notes that a Namespace is gone.
    pub fn delete_namespace(&mut self, name: &str) {
        self.existing_namespaces.remove(name);
    }

    /// Adds a Pod with its addresses, or replaces the one of the same name. Only `pods verified` and `autopath` read them.
    pub fn apply_pod(&mut self, name: ObjectName, addresses: Vec<IpAddr>) {
        self.delete_pod(&name);
        for address in &addresses {
            self.pod_addresses.add(*address, name.clone());
        }
        self.pods.insert(name, addresses);
    }

    /// Forgets a Pod.
    pub fn delete_pod(&mut self, name: &ObjectName) {
        for address in self.pods.remove(name).unwrap_or_default() {
            self.pod_addresses.remove(address, name);
        }
    }

    /// Replaces all Services, as a complete list of them says.
    pub fn replace_services(&mut self, services: impl IntoIterator<Item = Service>) {
        let known = self.namespaces.values().flat_map(HashMap::values).filter_map(|entry| entry.service.as_ref());
        for name in known.map(|service| service.name.clone()).collect::<Vec<_>>() {
            self.delete_service(&name);
        }
        services.into_iter().for_each(|service| self.apply_service(service));
    }

    /// Replaces all EndpointSlices, as a complete list of them says. What did not change is not touched: readers wait
    /// meanwhile.
    pub fn replace_slices<S: Into<Slice>>(&mut self, slices: impl IntoIterator<Item = S>) {
        let mut gone: HashSet<ObjectName> = self.slices.keys().cloned().collect();
        for slice in slices {
            let slice = slice.into();
            gone.remove(&slice.name);
            if self.slices.get(&slice.name).is_none_or(|known| *known.0 != slice) {
                self.apply_slice(slice);
            }
        }
        gone.iter().for_each(|name| self.delete_slice(name));
    }

    /// Replaces the set of Namespaces.
    pub fn replace_namespaces(&mut self, names: impl IntoIterator<Item = Name>) {
        self.existing_namespaces = names.into_iter().collect();
    }

    /// Replaces all Pods.
    pub fn replace_pods(&mut self, pods: impl IntoIterator<Item = (ObjectName, Vec<IpAddr>)>) {
        self.pods.clear();
        self.pod_addresses = Owners::default();
        pods.into_iter().for_each(|(name, addresses)| self.apply_pod(name, addresses));
    }

    fn entry(&mut self, name: &ObjectName) -> &mut Entry {
        self.namespaces.entry(name.namespace.clone()).or_default().entry(name.name.clone()).or_default()
    }

    /// Removes what holds nothing any more, so that equal clusters are equal views.
    fn drop_empty(&mut self, name: &ObjectName) {
        let Some(namespace) = self.namespaces.get_mut(&name.namespace) else { return };
        if namespace.get(&name.name).is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty()) {
            namespace.remove(&name.name);
        }
        if namespace.is_empty() {
            self.namespaces.remove(&name.namespace);
        }
    }
}
