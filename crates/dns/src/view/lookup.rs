//! Lookups in a [`View`].

use std::net::IpAddr;

use podwire_model::{Name, Service, ServicePort, ServiceType};

use super::{Entry, Filed, Selector, ServiceName, View, dashed_address, slice::Endpoint};

/// Where a Service, or a part of it, is to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target<'a> {
    /// The name below the Service's that holds the address.
    pub host: Host<'a>,
    /// The port to connect to; `None` where the Service declares none.
    pub port: Option<u16>,
    /// The address to connect to.
    pub address: IpAddr,
}

/// The first label of a target's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host<'a> {
    /// None: the target is the Service itself.
    Service,
    /// The endpoint's `hostname`.
    Named(&'a str),
    /// An endpoint without one: its address, dashed.
    Dashed(IpAddr),
}

/// What an address is called: an answer to a reverse lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointerTarget<'a> {
    /// The Service's namespace.
    pub namespace: &'a str,
    /// The Service's name.
    pub service: &'a str,
    /// The label before it.
    pub host: Host<'a>,
}

impl View {
    /// Whether the Namespace exists: it was said to, or a Service lives in it.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.existing_namespaces.contains(name)
            || self.namespaces.get(name).is_some_and(|services| services.values().any(|entry| entry.service.is_some()))
    }

    /// The name that an ExternalName Service stands for.
    pub fn alias(&self, name: &ServiceName<'_>) -> Option<&str> {
        match (&self.service(name)?.0.kind, name.selector) {
            (ServiceType::ExternalName(target), Selector::All) => Some(target),
            _ => None,
        }
    }

    /// The addresses behind a name, in order and each once; `None` if there is no such name.
    pub fn addresses(&self, name: &ServiceName<'_>) -> Option<Vec<IpAddr>> {
        let mut addresses = Vec::new();
        self.each_target(name, |target| addresses.push(target.address));
        addresses.sort_unstable();
        addresses.dedup();
        (!addresses.is_empty()).then_some(addresses)
    }

    /// The targets behind a name, in order and each once; `None` if there is no such name.
    pub fn targets(&self, name: &ServiceName<'_>) -> Option<Vec<Target<'_>>> {
        let mut targets = Vec::new();
        self.each_target(name, |target| targets.push(target));
        targets.sort_unstable();
        targets.dedup();
        (!targets.is_empty()).then_some(targets)
    }

    /// What `address` is called: the Service that has it as cluster IP, otherwise every Service of which it is a
    /// published endpoint.
    pub fn pointers(&self, address: IpAddr) -> Vec<PointerTarget<'_>> {
        if let Some(name) = self.cluster_ips.of(address).first() {
            let (namespace, service) = (&*name.namespace, &*name.name);
            return vec![PointerTarget { namespace, service, host: Host::Service }];
        }
        let mut found = Vec::new();
        for Filed(slice) in self.endpoints.of(address) {
            let (namespace, name) = (&*slice.name.namespace, &*slice.service);
            let Some((service, _)) = self.service(&ServiceName { namespace, service: name, selector: Selector::All })
            else {
                continue;
            };
            for endpoint in slice.endpoints().filter(|endpoint| endpoint.address == address) {
                let target = PointerTarget { namespace, service: name, host: host(&endpoint) };
                if (endpoint.ready || service.publish_not_ready) && !found.contains(&target) {
                    found.push(target);
                }
            }
        }
        found
    }

    /// Whether a Pod of `namespace` has this address.
    pub fn has_pod(&self, namespace: &str, address: IpAddr) -> bool {
        self.pod_addresses.of(address).iter().any(|pod| &*pod.namespace == namespace)
    }

    /// The Namespace of the Pod that has this address; `None` where Pods of several Namespaces have it, as those on the
    /// network of a node do.
    pub fn namespace_of(&self, address: IpAddr) -> Option<&str> {
        let mut pods = self.pod_addresses.of(address).iter();
        let namespace = &pods.next()?.namespace;
        pods.all(|pod| pod.namespace == *namespace).then_some(namespace)
    }

    fn service(&self, name: &ServiceName<'_>) -> Option<(&Service, &Entry)> {
        let entry = self.namespaces.get(name.namespace)?.get(name.service)?;
        Some((entry.service.as_ref()?, entry))
    }

    fn each_target<'a>(&'a self, name: &ServiceName<'_>, mut visit: impl FnMut(Target<'a>)) {
        let Some((service, entry)) = self.service(name) else { return };
        match name.selector {
            _ if matches!(service.kind, ServiceType::ExternalName(_)) => {}
            Selector::Endpoint(host) => each_endpoint(service, entry, &name.selector, |target, endpoint| {
                if answers_to(endpoint, host) {
                    visit(target);
                }
            }),
            _ if service.headless => each_endpoint(service, entry, &name.selector, |target, _| visit(target)),
            _ => each_cluster_ip(service, &name.selector, visit),
        }
    }
}

fn each_cluster_ip<'a>(service: &Service, selector: &Selector<'_>, mut visit: impl FnMut(Target<'a>)) {
    let mut visit_all = |port| {
        for address in &service.cluster_ips {
            visit(Target { host: Host::Service, port, address: *address });
        }
    };
    if service.ports.is_empty() && *selector == Selector::All {
        visit_all(None);
    }
    for ServicePort { name, protocol, port, .. } in &service.ports {
        if matches_port(selector, name, protocol.lower()) {
            visit_all(Some(*port));
        }
    }
}

fn each_endpoint<'a>(
    service: &Service,
    entry: &'a Entry,
    selector: &Selector<'_>,
    mut visit: impl FnMut(Target<'a>, &Endpoint<'a>),
) {
    for Filed(slice) in &entry.slices {
        for endpoint in slice.endpoints().filter(|endpoint| endpoint.ready || service.publish_not_ready) {
            let target = Target { host: host(&endpoint), port: None, address: endpoint.address };
            if slice.ports.is_empty() && !matches!(selector, Selector::Port { .. }) {
                visit(target, &endpoint);
            }
            for port in slice.ports.iter().filter(|port| matches_port(selector, &port.name, port.protocol.lower())) {
                visit(Target { port: Some(port.port), ..target }, &endpoint);
            }
        }
    }
}

fn host<'a>(endpoint: &Endpoint<'a>) -> Host<'a> {
    endpoint.hostname.map_or(Host::Dashed(endpoint.address), |hostname| Host::Named(hostname))
}

fn matches_port(selector: &Selector<'_>, name: &Name, protocol: &str) -> bool {
    match selector {
        Selector::Port { port, protocol: wanted } => **name == **port && protocol == *wanted,
        Selector::All | Selector::Endpoint(_) => true,
    }
}

/// An endpoint answers to its hostname, or to its dashed address if it has none.
fn answers_to(endpoint: &Endpoint<'_>, label: &str) -> bool {
    match endpoint.hostname {
        Some(hostname) => hostname.eq_ignore_ascii_case(label),
        None => dashed_address(label) == Some(endpoint.address),
    }
}
