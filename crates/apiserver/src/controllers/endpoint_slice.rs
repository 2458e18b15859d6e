//! EndpointSlices: who serves a Service, in pieces of at most [`CAPACITY`] endpoints.

use std::collections::BTreeMap;

use podwire_k8s::k8s_openapi::{
    api::{
        core::v1::Service,
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    Context,
    action::{self, Deletion, Plan},
    endpoints::{self, Backend, Port},
    meta::{self, Labels},
    pods,
    world::{Id, Kind, World},
};

/// The label that names a slice's Service.
pub(super) const SERVICE: &str = "kubernetes.io/service-name";
const MANAGED_BY: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io");
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// The most endpoints in a slice, as upstream by default.
const CAPACITY: usize = 100;

/// What the endpoints of one slice share: address type and ports.
type Group = (String, Vec<Port>);

/// Publishes a Service's endpoints. An endpoint stays in its slice; free places are filled before a slice is added, so
/// that a change of one pod writes one slice.
pub(super) fn plan(world: &World, id: &Id, _: &Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let ours = |slice: &&std::sync::Arc<EndpointSlice>| {
        let label = |key| slice.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
        label(SERVICE) == Some(&id.name) && label(MANAGED_BY.0) == Some(MANAGED_BY.1)
    };
    let published: Vec<&EndpointSlice> =
        world.endpoint_slices.in_namespace(&id.namespace).filter(ours).map(AsRef::as_ref).collect();
    let service = world.services.get(&id.namespace, &id.name);
    let Some(service) = service.filter(|service| endpoints::selector(service).is_some()) else {
        for slice in published {
            plan.push(action::delete(Kind::EndpointSlice, &slice.metadata, Deletion::Background));
        }
        return plan;
    };
    if service.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let backends = endpoints::backends(world, service);
    let trigger = endpoints::trigger(service, &backends).map(|time| time.to_string());
    let publisher =
        Publisher { service, labels: endpoints::labels(service, &[(SERVICE, &id.name), MANAGED_BY]), trigger };
    publisher.publish(published, groups(world, service, &backends), &mut plan);
    plan
}

/// The wanted endpoints by group, each with its address. Every address family of the Service has a group, be it empty.
fn groups(world: &World, service: &Service, backends: &[Backend<'_>]) -> BTreeMap<Group, BTreeMap<String, Endpoint>> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).filter(|f| !f.is_empty());
    let mut groups: BTreeMap<Group, BTreeMap<String, Endpoint>> = BTreeMap::new();
    for family in families.unwrap_or_else(|| vec!["IPv4".to_owned()]) {
        let mut any = false;
        for backend in backends {
            let of_family = |address: &&&str| address.contains(':') == (family == "IPv6");
            let Some(address) = endpoints::addresses(backend.pod).iter().find(of_family).copied() else { continue };
            any = true;
            let group = groups.entry((family.clone(), backend.ports.clone())).or_default();
            group.insert(address.to_owned(), endpoint(world, service, backend, address));
        }
        if !any {
            groups.insert((family, Vec::new()), BTreeMap::new());
        }
    }
    groups
}

fn endpoint(world: &World, service: &Service, backend: &Backend<'_>, address: &str) -> Endpoint {
    let node = pods::node(backend.pod);
    let mut target = meta::reference(Kind::Pod, &backend.pod.metadata);
    (target.api_version, target.resource_version) = (None, None);
    let zone = node.and_then(|name| endpoints::zone_of(&world.nodes.get("", name)?.metadata));
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(backend.ready),
            serving: Some(backend.serving),
            terminating: Some(pods::terminating(backend.pod)),
        }),
        hostname: endpoints::hostname(service, backend.pod),
        node_name: node.map(str::to_owned),
        target_ref: Some(target),
        zone: zone.map(str::to_owned),
        ..Endpoint::default()
    }
}

/// Brings the slices of one Service to what is wanted.
struct Publisher<'a> {
    service: &'a Service,
    labels: Labels,
    trigger: Option<String>,
}

impl Publisher<'_> {
    fn publish(
        &self,
        published: Vec<&EndpointSlice>,
        groups: BTreeMap<Group, BTreeMap<String, Endpoint>>,
        plan: &mut Plan,
    ) {
        let mut by_group: BTreeMap<Group, Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in published {
            by_group.entry(group_of(slice)).or_default().push(slice);
        }
        for (group, endpoints) in groups {
            let slices = by_group.remove(&group).unwrap_or_default();
            self.fill(&group, slices, endpoints, plan);
        }
        for slice in by_group.into_values().flatten() {
            plan.push(action::delete(Kind::EndpointSlice, &slice.metadata, Deletion::Background));
        }
    }

    /// Distributes the endpoints of one group over its slices.
    fn fill(
        &self,
        group: &Group,
        slices: Vec<&EndpointSlice>,
        mut wanted: BTreeMap<String, Endpoint>,
        plan: &mut Plan,
    ) {
        let keep = |slice: &&EndpointSlice, wanted: &mut BTreeMap<String, Endpoint>| -> Vec<Endpoint> {
            let present = slice.endpoints.iter().flatten().filter_map(|endpoint| endpoint.addresses.first());
            present.filter_map(|address| wanted.remove(address)).collect()
        };
        let mut contents: Vec<Vec<Endpoint>> = slices.iter().map(|slice| keep(slice, &mut wanted)).collect();
        // A Service that nobody serves still has a slice that says so.
        let placeholder = contents.iter().all(Vec::is_empty) && wanted.is_empty();
        let first = slices.is_empty();
        let mut waiting = wanted.into_values();
        for content in &mut contents {
            content.extend(waiting.by_ref().take(CAPACITY.saturating_sub(content.len())));
        }
        for (i, (slice, content)) in slices.into_iter().zip(contents).enumerate() {
            if content.is_empty() && !(placeholder && i == 0) {
                plan.push(action::delete(Kind::EndpointSlice, &slice.metadata, Deletion::Background));
            } else {
                let write = action::update(Kind::EndpointSlice, slice, &self.slice(group, content, Some(slice)));
                plan.actions.extend(write.map(Into::into));
            }
        }
        let rest: Vec<Endpoint> = waiting.collect();
        let chunks = rest.chunks(CAPACITY).map(<[Endpoint]>::to_vec);
        for content in chunks.chain((placeholder && first).then(Vec::new)) {
            plan.push(action::create(Kind::EndpointSlice, &self.slice(group, content, None)));
        }
    }

    fn slice(&self, group: &Group, endpoints: Vec<Endpoint>, before: Option<&EndpointSlice>) -> EndpointSlice {
        let service = &self.service.metadata;
        let mut metadata = before.map(|slice| slice.metadata.clone()).unwrap_or_else(|| ObjectMeta {
            generate_name: Some(format!("{}-", service.name.as_deref().unwrap_or_default())),
            namespace: service.namespace.clone(),
            owner_references: Some(vec![meta::controller_ref(Kind::Service, service)]),
            ..ObjectMeta::default()
        });
        metadata.labels = Some(self.labels.clone());
        if let Some(before) = before.filter(|before| before.endpoints.as_deref().unwrap_or_default() == endpoints) {
            return EndpointSlice { metadata, ..before.clone() };
        }
        if let Some(trigger) = &self.trigger {
            metadata.annotations.get_or_insert_default().insert(TRIGGER.to_owned(), trigger.clone());
        }
        if let Some(before) = before {
            return EndpointSlice { metadata, endpoints: Some(endpoints), ..before.clone() };
        }
        let ports = group.1.iter().map(|port| EndpointPort {
            // An unnamed port has an empty name here.
            name: Some(port.name.clone()),
            port: Some(port.port),
            protocol: Some(port.protocol.clone()),
            app_protocol: port.app_protocol.clone(),
        });
        EndpointSlice {
            address_type: group.0.clone(),
            endpoints: Some(endpoints),
            metadata,
            ports: Some(ports.collect()),
        }
    }
}

/// The address type and ports of a published slice.
fn group_of(slice: &EndpointSlice) -> Group {
    let ports = slice.ports.iter().flatten().map(|port| Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        port: port.port.unwrap_or_default(),
        app_protocol: port.app_protocol.clone(),
    });
    let mut ports: Vec<Port> = ports.collect();
    ports.sort();
    (slice.address_type.clone(), ports)
}
