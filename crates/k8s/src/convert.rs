//! API objects into `podwire-model` values.
//!
//! What carries no traffic as written is left out and named in a [`Problem`]; the rest of the object is used. Only an
//! object that means nothing at all is refused whole. Entries that merely add nothing (an endpoint without an address,
//! a port without a number) are left out silently.

mod reader;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, net::IpAddr, time::Duration};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use podwire_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, IpNet, LoadBalancerIngress, Name, Node, ObjectName, Problem,
    Service, ServicePort, ServiceType, TrafficPolicy,
};

use reader::Reader;

/// Default of `sessionAffinityConfig.clientIP.timeoutSeconds` (Kubernetes API, `DefaultClientIPServiceAffinitySeconds`).
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;
/// Its maximum (`MaxClientIPServiceAffinitySeconds`).
const MAX_AFFINITY_SECONDS: i32 = 86_400;
/// How many endpoints the API allows in one slice.
const MAX_ENDPOINTS: usize = 1000;

/// What an object of the API says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read<T> {
    /// Its value; `None` if it means nothing to us.
    pub value: Option<T>,
    /// What could not be used of it; why there is no value, if that is an error.
    pub problems: Vec<Problem>,
}

impl<T> From<Option<T>> for Read<T> {
    /// Nothing is wrong with it.
    fn from(value: Option<T>) -> Self {
        Self { value, problems: Vec::new() }
    }
}

/// Reads a Service.
pub fn service(object: &core::Service) -> Read<Service> {
    let name = object_name(&object.metadata);
    let mut reader = Reader::new("Service", &name);
    let spec = object.spec.clone().unwrap_or_default();
    let kind = match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName(spec.external_name.clone().unwrap_or_default().into()),
        Some(other) => {
            reader.problem("spec.type", format!("{other:?} is not a type"), "the Service is not served");
            return reader.done(None);
        }
    };
    let declared = spec.cluster_ips.clone().unwrap_or_else(|| spec.cluster_ip.clone().into_iter().collect());
    let (source_ranges, closed) = source_ranges(&mut reader, &spec);
    let service = Service {
        kind,
        cluster_ips: cluster_ips(&mut reader, &declared),
        headless: declared.iter().any(|ip| ip == "None"),
        ports: service_ports(&mut reader, spec.ports.as_deref().unwrap_or_default()),
        external_ips: reader.addresses("spec.externalIPs", spec.external_ips.iter().flatten()),
        load_balancer: if closed { Vec::new() } else { load_balancer(&mut reader, object.status.as_ref()) },
        source_ranges,
        internal_policy: policy(&mut reader, "spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref()),
        external_policy: policy(&mut reader, "spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref()),
        client_ip_affinity: affinity(&mut reader, &spec),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        health_check_node_port: spec
            .health_check_node_port
            .filter(|port| *port != 0)
            .and_then(|port| reader.port("spec.healthCheckNodePort", port, "there is no health check")),
        other_proxy: label(&object.metadata, "service.kubernetes.io/service-proxy-name").is_some(),
        name,
    };
    reader.done(Some(service))
}

/// Reads an EndpointSlice. No value when it belongs to no Service or its addresses are names (`FQDN`).
pub fn endpoint_slice(object: &discovery::EndpointSlice) -> Read<EndpointSlice> {
    let name = object_name(&object.metadata);
    let mut reader = Reader::new("EndpointSlice", &name);
    let Some(service) = label(&object.metadata, "kubernetes.io/service-name").filter(|s| !s.is_empty()) else {
        return reader.done(None);
    };
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return reader.done(None),
        other => {
            reader.problem("addressType", format!("{other:?} is not a type"), "the slice is not used");
            return reader.done(None);
        }
    };
    let ports = object.ports.iter().flatten().filter_map(|port| endpoint_port(&mut reader, port, port.port?));
    let slice = EndpointSlice {
        service: service.into(),
        family,
        headless: label(&object.metadata, "service.kubernetes.io/headless").is_some(),
        ports: ports.collect(),
        endpoints: endpoints(&mut reader, object.endpoints.as_deref().unwrap_or_default(), family, &name.namespace),
        name,
    };
    reader.done(Some(slice))
}

/// Reads a Node.
pub fn node(object: &core::Node) -> Read<Node> {
    let name = object_name(&object.metadata);
    let mut reader = Reader::new("Node", &name);
    let spec = object.spec.clone().unwrap_or_default();
    let cidrs = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    let addresses = object.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let internal = addresses.filter(|a| a.type_ == "InternalIP").map(|a| &a.address);
    let node = Node {
        internal_ips: reader.addresses("status.addresses", internal),
        pod_cidrs: cidrs.iter().filter_map(|cidr| reader.parse("spec.podCIDRs", cidr)).collect(),
        zone: label(&object.metadata, "topology.kubernetes.io/zone").map(Name::from),
        annotations: object.metadata.annotations.clone().unwrap_or_default(),
        deleting: object.metadata.deletion_timestamp.is_some(),
        name: name.name,
    };
    reader.done(Some(node))
}

/// Namespace and name of any object.
pub fn object_name(meta: &ObjectMeta) -> ObjectName {
    ObjectName::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// At most one of each family.
fn cluster_ips(reader: &mut Reader, declared: &[String]) -> Vec<IpAddr> {
    let field = "spec.clusterIPs";
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in declared.iter().filter(|ip| *ip != "None" && !ip.is_empty()) {
        let Some(address) = reader.address(field, text) else { continue };
        match addresses.iter().find(|other| Family::of(other) == Family::of(&address)) {
            None => addresses.push(address),
            Some(first) => {
                reader.problem(field, format!("{address} is of the same family as {first}"), "the first one is used");
            }
        }
    }
    addresses
}

fn service_ports(reader: &mut Reader, ports: &[core::ServicePort]) -> Vec<ServicePort> {
    let mut seen = HashSet::new();
    let mut convert = |port: &core::ServicePort| {
        let protocol = reader.protocol("spec.ports.protocol", port.protocol.as_deref())?;
        let number = reader.port("spec.ports.port", port.port, "the port is not served")?;
        if !seen.insert((protocol, number)) {
            reader.problem("spec.ports", format!("{number}/{protocol} is there twice"), "the first one is served");
            return None;
        }
        let node_port = port.node_port.filter(|node_port| *node_port != 0);
        Some(ServicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol,
            port: number,
            node_port: node_port.and_then(|n| reader.port("spec.ports.nodePort", n, "there is no node port")),
        })
    };
    ports.iter().filter_map(&mut convert).collect()
}

/// The ranges that can be read, and whether nobody may enter: ranges were asked for, and none can be read.
fn source_ranges(reader: &mut Reader, spec: &core::ServiceSpec) -> (Vec<IpNet>, bool) {
    let field = "spec.loadBalancerSourceRanges";
    let written = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    // The API's validation lets white space pass.
    let ranges: Vec<IpNet> = written.iter().filter_map(|range| reader.parse(field, range.trim())).collect();
    let closed = ranges.is_empty() && !written.is_empty();
    if closed {
        let what = "none of the ranges can be read".to_owned();
        reader.problem(field, what, "the load balancer's addresses are not served: they would be open to everyone");
    }
    (ranges, closed)
}

fn affinity(reader: &mut Reader, spec: &core::ServiceSpec) -> Option<Duration> {
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let asked = config.and_then(|client| client.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_SECONDS);
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let seconds = asked.clamp(1, MAX_AFFINITY_SECONDS);
    if seconds != asked {
        let what = format!("{asked} is not between 1 and {MAX_AFFINITY_SECONDS}");
        reader.problem("spec.sessionAffinityConfig.clientIP.timeoutSeconds", what, "the nearest of them is used");
    }
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

fn load_balancer(reader: &mut Reader, status: Option<&core::ServiceStatus>) -> Vec<LoadBalancerIngress> {
    let ingress = status.and_then(|s| s.load_balancer.as_ref()).and_then(|l| l.ingress.as_deref()).unwrap_or_default();
    let with_address = ingress.iter().filter_map(|i| Some((i, i.ip.as_deref().filter(|ip| !ip.is_empty())?)));
    let convert = |(i, ip): (&core::LoadBalancerIngress, &str)| {
        let ip = reader.usable_address("status.loadBalancer.ingress.ip", ip)?;
        Some(LoadBalancerIngress { ip, proxied: i.ip_mode.as_deref() == Some("Proxy") })
    };
    with_address.filter_map(convert).collect()
}

fn endpoint_port(reader: &mut Reader, port: &discovery::EndpointPort, number: i32) -> Option<EndpointPort> {
    Some(EndpointPort {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: reader.protocol("ports.protocol", port.protocol.as_deref())?,
        port: reader.port("ports.port", number, "no endpoint of the slice is used for it")?,
    })
}

fn endpoints(reader: &mut Reader, objects: &[discovery::Endpoint], family: Family, namespace: &Name) -> Vec<Endpoint> {
    let field = "endpoints.addresses";
    if objects.len() > MAX_ENDPOINTS {
        let what = format!("{} endpoints in one slice, {MAX_ENDPOINTS} are allowed", objects.len());
        reader.problem("endpoints", what, "all are used");
    }
    let mut seen = HashSet::new();
    let mut convert = |object: &discovery::Endpoint| {
        let address = reader.usable_address(field, object.addresses.first()?)?;
        if Family::of(&address) != family {
            reader.problem(field, format!("{address} is not of the slice's addressType"), reader::LEFT_OUT);
            return None;
        }
        if !seen.insert(address) {
            reader.problem(field, format!("{address} is there twice"), "it counts once");
        }
        Some(endpoint(object, address, namespace))
    };
    objects.iter().filter_map(&mut convert).collect()
}

fn endpoint(object: &discovery::Endpoint, address: IpAddr, namespace: &Name) -> Endpoint {
    let conditions = object.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let hints = object.hints.clone().unwrap_or_default();
    let pod = object.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    Endpoint {
        address,
        ready,
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        hostname: object.hostname.as_deref().filter(|h| !h.is_empty()).map(Name::from),
        node: object.node_name.as_deref().map(Name::from),
        zone: object.zone.as_deref().map(Name::from),
        hint_zones: hints.for_zones.into_iter().flatten().map(|z| z.name.into()).collect(),
        hint_nodes: hints.for_nodes.into_iter().flatten().map(|n| n.name.into()).collect(),
        pod: pod.map(|target| ObjectName {
            namespace: target.namespace.as_deref().map_or_else(|| namespace.clone(), Name::from),
            name: target.name.as_deref().unwrap_or_default().into(),
        }),
    }
}

fn policy(reader: &mut Reader, field: &'static str, text: Option<&str>) -> TrafficPolicy {
    match text {
        Some("Local") => TrafficPolicy::Local,
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some(other) => {
            reader.problem(field, format!("{other:?} is not a policy"), "it counts as Cluster");
            TrafficPolicy::Cluster
        }
    }
}

fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}
