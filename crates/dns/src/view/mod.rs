//! The cluster as DNS sees it: Services, EndpointSlices, Namespaces and Pods, indexed for lookups.
//!
//! A [`View`] is a value: it depends on the objects that were last applied and not deleted, never on the order in which
//! they came, and two views of the same objects are equal. Applying an object costs time in proportion to that object.

mod lookup;
mod question;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use podwire_model::{Endpoint, EndpointSlice, Name, ObjectName, Service};

pub use lookup::{Host, PointerTarget, Target};
pub use question::{Asked, Labels, Selector, ServiceName, dashed_address, reverse_address};

/// Everything in the cluster that has a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Namespace → Service name → the Service and its slices. Nested so that a lookup needs no owned key.
    namespaces: HashMap<Name, HashMap<Name, Entry>>,
    /// Which Service each slice was filed under, to find it again when its label changes or it is deleted.
    slice_service: HashMap<ObjectName, Name>,
    /// Who uses each address: the answers to reverse lookups.
    addresses: HashMap<IpAddr, BTreeSet<Claim>>,
    /// The Namespaces that exist.
    existing_namespaces: HashSet<Name>,
    pods: HashMap<ObjectName, Vec<IpAddr>>,
    pod_addresses: HashMap<IpAddr, BTreeSet<ObjectName>>,
}

/// A Service and the slices that name it; either may come first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    service: Option<Service>,
    slices: BTreeMap<Name, EndpointSlice>,
}

/// One reason why an address has a name. Ordered so that a cluster IP comes before endpoints.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    ClusterIp(ObjectName),
    Endpoint { service: ObjectName, slice: Name, hostname: Option<Name>, ready: bool },
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
            self.claim(*ip, Claim::ClusterIp(service.name.clone()));
        }
        let name = service.name.clone();
        self.entry(&name).service = Some(service);
    }

    /// Forgets a Service; its slices stay until they are deleted themselves.
    pub fn delete_service(&mut self, name: &ObjectName) {
        let Some(service) = self.entry(name).service.take() else { return self.drop_empty(name) };
        for ip in &service.cluster_ips {
            self.disclaim(*ip, &Claim::ClusterIp(service.name.clone()));
        }
        self.drop_empty(name);
    }

    /// Adds an EndpointSlice or replaces the one of the same name, also when it moved to another Service.
    pub fn apply_slice(&mut self, slice: EndpointSlice) {
        self.delete_slice(&slice.name);
        let service = slice.service_name();
        for endpoint in &slice.endpoints {
            self.claim(endpoint.address, endpoint_claim(&slice, endpoint));
        }
        self.slice_service.insert(slice.name.clone(), slice.service.clone());
        self.entry(&service).slices.insert(slice.name.name.clone(), slice);
    }

    /// Forgets an EndpointSlice.
    pub fn delete_slice(&mut self, name: &ObjectName) {
        let Some(service) = self.slice_service.remove(name) else { return };
        let service = ObjectName { namespace: name.namespace.clone(), name: service };
        if let Some(slice) = self.entry(&service).slices.remove(&name.name) {
            for endpoint in &slice.endpoints {
                self.disclaim(endpoint.address, &endpoint_claim(&slice, endpoint));
            }
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

    /// Adds a Pod with its addresses, or replaces the one of the same name. Only `pods verified` reads them.
    pub fn apply_pod(&mut self, name: ObjectName, addresses: Vec<IpAddr>) {
        self.delete_pod(&name);
        for address in &addresses {
            self.pod_addresses.entry(*address).or_default().insert(name.clone());
        }
        self.pods.insert(name, addresses);
    }

    /// Forgets a Pod.
    pub fn delete_pod(&mut self, name: &ObjectName) {
        for address in self.pods.remove(name).unwrap_or_default() {
            if let Some(pods) = self.pod_addresses.get_mut(&address) {
                pods.remove(name);
                if pods.is_empty() {
                    self.pod_addresses.remove(&address);
                }
            }
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

    /// Replaces all EndpointSlices, as a complete list of them says.
    pub fn replace_slices(&mut self, slices: impl IntoIterator<Item = EndpointSlice>) {
        for name in self.slice_service.keys().cloned().collect::<Vec<_>>() {
            self.delete_slice(&name);
        }
        slices.into_iter().for_each(|slice| self.apply_slice(slice));
    }

    /// Replaces the set of Namespaces.
    pub fn replace_namespaces(&mut self, names: impl IntoIterator<Item = Name>) {
        self.existing_namespaces = names.into_iter().collect();
    }

    /// Replaces all Pods.
    pub fn replace_pods(&mut self, pods: impl IntoIterator<Item = (ObjectName, Vec<IpAddr>)>) {
        self.pods.clear();
        self.pod_addresses.clear();
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

    fn claim(&mut self, address: IpAddr, claim: Claim) {
        self.addresses.entry(address).or_default().insert(claim);
    }

    fn disclaim(&mut self, address: IpAddr, claim: &Claim) {
        if let Some(claims) = self.addresses.get_mut(&address) {
            claims.remove(claim);
            if claims.is_empty() {
                self.addresses.remove(&address);
            }
        }
    }
}

fn endpoint_claim(slice: &EndpointSlice, endpoint: &Endpoint) -> Claim {
    Claim::Endpoint {
        service: slice.service_name(),
        slice: slice.name.name.clone(),
        hostname: endpoint.hostname.clone(),
        ready: endpoint.ready,
    }
}
