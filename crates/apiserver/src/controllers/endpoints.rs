//! Who serves a Service: which pods, at which ports. And the older of the two forms in which that is published,
//! `v1.Endpoints`; `endpoint_slice` publishes the other.

use std::collections::BTreeMap;

use podwire_k8s::k8s_openapi::{
    api::core::v1::{ContainerPort, EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, PodSpec, Service},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
    jiff::Timestamp,
};

use super::{
    Context,
    action::{self, Deletion, Plan},
    meta::{self, Labels},
    pods,
    world::{Change, Id, Kind, Object, World},
};

/// The label of Endpoints and slices of a Service without a cluster address.
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A port of a Service as one pod serves it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    pub name: String,
    pub protocol: String,
    pub port: i32,
    pub app_protocol: Option<String>,
}

/// A pod behind a Service.
pub(super) struct Backend<'a> {
    pub pod: &'a Pod,
    /// The Service's ports that the pod serves; a named target port may differ from pod to pod.
    pub ports: Vec<Port>,
    /// The pod itself says that it is ready.
    pub serving: bool,
    /// Traffic should go there: serving and not terminating, or the Service does not care.
    pub ready: bool,
}

/// Services with a selector that concern a change: the Service itself, what is published for it, its pods, and when a
/// node's zone changes, those with a pod there.
pub(super) fn concerns(world: &World, change: &Change) -> Vec<Id> {
    let mut ids = Vec::new();
    for object in change.states() {
        let namespace = object.meta().namespace.as_deref().unwrap_or_default();
        match object {
            Object::Service(service) => ids.push(action::id(Kind::Service, &service.metadata)),
            Object::Pod(pod) => ids.extend(services_of(world, pod)),
            Object::Endpoints(endpoints) => {
                ids.extend(endpoints.metadata.name.as_ref().map(|name| Id::new(Kind::Service, namespace, name)));
            }
            Object::EndpointSlice(slice) => {
                let service =
                    slice.metadata.labels.as_ref().and_then(|labels| labels.get(super::endpoint_slice::SERVICE));
                ids.extend(service.map(|name| Id::new(Kind::Service, namespace, name)));
            }
            Object::Node(node) if zone_changed(change) => {
                let pods = world.pods.iter().filter(|pod| pods::node(pod) == node.metadata.name.as_deref());
                ids.extend(pods.flat_map(|pod| services_of(world, pod)));
            }
            _ => {}
        }
    }
    ids
}

fn zone_changed(change: &Change) -> bool {
    let zone = |object: &Option<Object>| object.as_ref().and_then(|o| zone_of(o.meta()).map(str::to_owned));
    zone(&change.old) != zone(&change.new)
}

/// The zone that a node's labels name.
pub(super) fn zone_of(node: &ObjectMeta) -> Option<&str> {
    node.labels.as_ref()?.get("topology.kubernetes.io/zone").map(String::as_str)
}

fn services_of(world: &World, pod: &Pod) -> Vec<Id> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let services = world.services.in_namespace(namespace);
    let selecting = services.filter(|service| {
        selector(service).is_some_and(|selector| meta::contains(pod.metadata.labels.as_ref(), selector))
    });
    selecting.map(|service| action::id(Kind::Service, &service.metadata)).collect()
}

/// The Service's selector; `None` where somebody else says who serves it.
pub(super) fn selector(service: &Service) -> Option<&Labels> {
    let spec = service.spec.as_ref()?;
    let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty())?;
    (spec.type_.as_deref() != Some("ExternalName")).then_some(selector)
}

/// The Service has no cluster address.
pub(super) fn headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// The pods behind a Service, ordered by name: those that its selector matches, that have an address and have not
/// ended.
pub(super) fn backends<'a>(world: &'a World, service: &Service) -> Vec<Backend<'a>> {
    let Some(selector) = selector(service) else { return Vec::new() };
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let spec = service.spec.as_ref();
    let publish_not_ready = spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let matching = world.pods.in_namespace(namespace).filter(|pod| {
        meta::contains(pod.metadata.labels.as_ref(), selector) && !pods::finished(pod) && !addresses(pod).is_empty()
    });
    let backend = |pod: &'a std::sync::Arc<Pod>| {
        let serving = pods::ready(pod);
        let ready = publish_not_ready || (serving && !pods::terminating(pod));
        Backend { pod, ports: ports(service, pod), serving, ready }
    };
    matching.map(backend).collect()
}

/// The pod's addresses, the primary one first.
pub(super) fn addresses(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    if all.is_empty() { status.pod_ip.as_deref().into_iter().filter(|ip| !ip.is_empty()).collect() } else { all }
}

fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let declared = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let mut ports: Vec<Port> = declared
        .filter_map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let number = match &port.target_port {
                None => port.port,
                Some(IntOrString::Int(0)) => port.port,
                Some(IntOrString::Int(number)) => *number,
                Some(IntOrString::String(name)) => container_port(pod.spec.as_ref()?, name, protocol)?,
            };
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: protocol.to_owned(),
                port: number,
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort();
    ports
}

/// The port that a container (or a sidecar) of the pod calls `name`.
fn container_port(pod: &PodSpec, name: &str, protocol: &str) -> Option<i32> {
    let sidecars = pod.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut ports = pod.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let matches = |port: &&ContainerPort| {
        port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol
    };
    ports.find(matches).map(|port| port.container_port)
}

/// When what is published last had a reason to change: the latest of the Service's creation and its pods' changes of
/// readiness. Seconds are as precise as the API states these times.
pub(super) fn trigger(service: &Service, backends: &[Backend<'_>]) -> Option<Timestamp> {
    let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
    backends.iter().filter_map(|backend| pods::ready_since(backend.pod)).chain(created).max()
}

/// Labels of what is published for `service`: the Service's own, whether it is headless, and `more`.
pub(super) fn labels(service: &Service, more: &[(&str, &str)]) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    labels
}

/// The name under which DNS knows the pod: its `hostname`, if its `subdomain` is the Service.
pub(super) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let name = spec.hostname.clone().filter(|name| !name.is_empty())?;
    (spec.subdomain == service.metadata.name).then_some(name)
}

/// Publishes a Service's ready and unready addresses as `v1.Endpoints` of the Service's name.
pub(super) fn plan(world: &World, id: &Id, _: &Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let published = world.endpoints.get(&id.namespace, &id.name);
    let Some(service) = world.services.get(&id.namespace, &id.name) else {
        // Not those of a Service without selector: they are their author's.
        let ours = published.filter(|e| e.metadata.labels.as_ref().is_some_and(|l| l.contains_key(MANAGED_BY.0)));
        plan.actions.extend(ours.map(|e| action::delete(Kind::Endpoints, &e.metadata, Deletion::Background).into()));
        return plan;
    };
    if selector(service).is_none() || service.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let backends = backends(world, service);
    let subsets = Some(subsets(service, &backends)).filter(|subsets| !subsets.is_empty());
    let labels = Some(labels(service, &[MANAGED_BY]));
    let mut wanted = published.map(|endpoints| Endpoints::clone(endpoints)).unwrap_or_default();
    if published.is_some() && wanted.subsets == subsets && wanted.metadata.labels == labels {
        return plan;
    }
    wanted.metadata.name = service.metadata.name.clone();
    wanted.metadata.namespace = service.metadata.namespace.clone();
    wanted.metadata.labels = labels;
    if let Some(trigger) = trigger(service, &backends) {
        wanted.metadata.annotations.get_or_insert_default().insert(TRIGGER.to_owned(), trigger.to_string());
    }
    wanted.subsets = subsets;
    let write = match published {
        None => Some(action::create(Kind::Endpoints, &wanted)),
        Some(published) => action::update(Kind::Endpoints, published.as_ref(), &wanted),
    };
    plan.actions.extend(write.map(Into::into));
    plan
}

/// One subset for each combination of ports. Terminating pods have no place in this older form.
fn subsets(service: &Service, backends: &[Backend<'_>]) -> Vec<EndpointSubset> {
    let mut groups: BTreeMap<&[Port], (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let publish_not_ready = |backend: &Backend<'_>| backend.ready && pods::terminating(backend.pod);
    for backend in backends.iter().filter(|b| !pods::terminating(b.pod) || publish_not_ready(b)) {
        if backend.ports.is_empty() && !headless(service) {
            continue;
        }
        let Some(ip) = addresses(backend.pod).first().copied() else { continue };
        let mut target = meta::reference(Kind::Pod, &backend.pod.metadata);
        (target.api_version, target.resource_version) = (None, None);
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: hostname(service, backend.pod),
            node_name: pods::node(backend.pod).map(str::to_owned),
            target_ref: Some(target),
        };
        let (ready, not_ready) = groups.entry(&backend.ports).or_default();
        if backend.ready { ready.push(address) } else { not_ready.push(address) }
    }
    // In the order of their text, as the controller of Kubernetes has them.
    let filled = |mut addresses: Vec<EndpointAddress>| {
        addresses.sort_by(|a, b| a.ip.cmp(&b.ip));
        Some(addresses).filter(|addresses| !addresses.is_empty())
    };
    let subset = |(ports, (ready, not_ready)): (&[Port], _)| EndpointSubset {
        addresses: filled(ready),
        not_ready_addresses: filled(not_ready),
        ports: (!ports.is_empty()).then(|| ports.iter().map(endpoint_port).collect()),
    };
    groups.into_iter().map(subset).collect()
}

fn endpoint_port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone()).filter(|name| !name.is_empty()),
        port: port.port,
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    }
}
