//! Builders of model values: short, with everything that a test does not name at its default.
//!
//! They panic on a misspelt address: a test is wrong then.

use std::net::IpAddr;

use podwire_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, Name, Node, ObjectName, Protocol, Service, ServicePort, ServiceType,
    TrafficPolicy,
};

/// An address from text.
///
/// # Panics
/// When `text` is no address.
pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

/// `namespace/name` split; `default` if there is no namespace.
pub fn name(text: &str) -> ObjectName {
    match text.split_once('/') {
        Some((namespace, name)) => ObjectName::new(namespace, name),
        None => ObjectName::new("default", text),
    }
}

/// A ClusterIP Service with the port `80/TCP`.
pub fn service(name_: &str, cluster_ip: &str) -> Service {
    Service {
        name: name(name_),
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![ip(cluster_ip)],
        headless: false,
        ports: vec![port("", Protocol::Tcp, 80)],
        external_ips: Vec::new(),
        load_balancer: Vec::new(),
        source_ranges: Vec::new(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        client_ip_affinity: None,
        publish_not_ready: false,
        health_check_node_port: None,
        other_proxy: false,
    }
}

/// A port of a Service without a node port.
pub fn port(name: &str, protocol: Protocol, port: u16) -> ServicePort {
    ServicePort { name: name.into(), protocol, port, node_port: None }
}

/// A NodePort Service with the port `80:NODE_PORT/TCP`.
pub fn node_port_service(name: &str, cluster_ip: &str, node_port: u16) -> Service {
    let mut service = service(name, cluster_ip);
    service.kind = ServiceType::NodePort;
    service.ports[0].node_port = Some(node_port);
    service
}

/// A slice of a Service: its own name is the Service's with `-1`. Each endpoint is `ADDRESS` or `ADDRESS@NODE`, ready.
pub fn slice(service: &str, port: u16, endpoints: &[&str]) -> EndpointSlice {
    let service = name(service);
    let endpoints: Vec<_> = endpoints.iter().map(|text| endpoint(text)).collect();
    EndpointSlice {
        name: ObjectName::new(service.namespace, format!("{}-1", service.name)),
        service: service.name,
        family: endpoints.first().map_or(Family::V4, |endpoint| Family::of(&endpoint.address)),
        headless: false,
        ports: vec![EndpointPort { name: "".into(), protocol: Protocol::Tcp, port }],
        endpoints,
    }
}

/// A ready endpoint from `ADDRESS` or `ADDRESS@NODE`.
pub fn endpoint(text: &str) -> Endpoint {
    let (address, node) = match text.split_once('@') {
        Some((address, node)) => (address, Some(Name::from(node))),
        None => (text, None),
    };
    Endpoint { node, ..Endpoint::ready(ip(address)) }
}

/// A node with one address.
pub fn node(name: &str, address: &str) -> Node {
    Node {
        name: name.into(),
        internal_ips: vec![ip(address)],
        pod_cidrs: Vec::new(),
        zone: None,
        annotations: std::collections::BTreeMap::new(),
        deleting: false,
    }
}
