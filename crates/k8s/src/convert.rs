//! API objects into `podwire-model` values.
//!
//! An object that cannot carry traffic as written is an [`Invalid`] that names the object and the field; the caller
//! reports it and goes on with the others. Entries that merely add nothing (an endpoint without an address, a port
//! without a number) are left out.

use std::{net::IpAddr, str::FromStr, time::Duration};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use podwire_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, LoadBalancerIngress, Name, Node, ObjectName, Protocol, Service,
    ServicePort, ServiceType, TrafficPolicy,
};

/// Default of `sessionAffinityConfig.clientIP.timeoutSeconds` (Kubernetes API, `DefaultClientIPServiceAffinitySeconds`).
const DEFAULT_AFFINITY_SECONDS: u64 = 10_800;

/// A field of an object has no meaning that traffic could follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {object}: {field}: {problem}")]
pub struct Invalid {
    /// `Service`, `EndpointSlice` or `Node`.
    pub kind: &'static str,
    /// `namespace/name`, or the name alone.
    pub object: String,
    /// The field's path, for example `spec.clusterIPs`.
    pub field: String,
    /// What is wrong with its value.
    pub problem: String,
}

/// Converts a Service.
pub fn service(object: &core::Service) -> Result<Service, Invalid> {
    let name = object_name(&object.metadata);
    let at = Place { kind: "Service", object: name.to_string() };
    let spec = object.spec.clone().unwrap_or_default();
    let declared = spec.cluster_ips.unwrap_or_else(|| spec.cluster_ip.into_iter().collect());
    let headless = declared.iter().any(|ip| ip == "None");
    let assigned = declared.iter().filter(|ip| *ip != "None" && !ip.is_empty());
    let kind = match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName(spec.external_name.unwrap_or_default().into()),
        Some(other) => return Err(at.invalid("spec.type", format!("unknown type {other:?}"))),
    };
    let timeout = spec.session_affinity_config.and_then(|c| c.client_ip).and_then(|c| c.timeout_seconds);
    let timeout = timeout.and_then(|s| u64::try_from(s).ok()).unwrap_or(DEFAULT_AFFINITY_SECONDS);
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| Duration::from_secs(timeout));
    Ok(Service {
        kind,
        cluster_ips: at.parse_all("spec.clusterIPs", assigned)?,
        headless,
        ports: service_ports(&at, &spec.ports.unwrap_or_default())?,
        external_ips: at.parse_all("spec.externalIPs", spec.external_ips.iter().flatten())?,
        load_balancer: load_balancer(&at, object.status.as_ref())?,
        source_ranges: at.parse_all(
            "spec.loadBalancerSourceRanges",
            spec.load_balancer_source_ranges.iter().flatten().map(|range| range.trim()),
        )?,
        internal_policy: policy(spec.internal_traffic_policy.as_deref()),
        external_policy: policy(spec.external_traffic_policy.as_deref()),
        client_ip_affinity: affinity,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        health_check_node_port: spec.health_check_node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0),
        other_proxy: label(&object.metadata, "service.kubernetes.io/service-proxy-name").is_some(),
        name,
    })
}

/// Converts an EndpointSlice. `Ok(None)` when it belongs to no Service or its addresses are names (`FQDN`).
pub fn endpoint_slice(object: &discovery::EndpointSlice) -> Result<Option<EndpointSlice>, Invalid> {
    let name = object_name(&object.metadata);
    let at = Place { kind: "EndpointSlice", object: name.to_string() };
    let Some(service) = label(&object.metadata, "kubernetes.io/service-name").filter(|s| !s.is_empty()) else {
        return Ok(None);
    };
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return Ok(None),
        other => return Err(at.invalid("addressType", format!("unknown type {other:?}"))),
    };
    let ports = object.ports.iter().flatten().filter_map(|port| {
        let number = port.port?;
        Some(endpoint_port(&at, port, number))
    });
    let endpoints = object.endpoints.iter().flatten();
    let endpoints = endpoints.filter_map(|e| Some((e, e.addresses.first()?))).map(|(e, address)| {
        let address: IpAddr = at.parse("endpoints.addresses", address)?;
        if Family::of(&address) != family {
            return Err(at.invalid("endpoints.addresses", format!("{address} is not {}", object.address_type)));
        }
        Ok(endpoint(e, address, &name.namespace))
    });
    Ok(Some(EndpointSlice {
        service: service.into(),
        family,
        headless: label(&object.metadata, "service.kubernetes.io/headless").is_some(),
        ports: ports.collect::<Result<_, _>>()?,
        endpoints: endpoints.collect::<Result<_, _>>()?,
        name,
    }))
}

/// Converts a Node.
pub fn node(object: &core::Node) -> Result<Node, Invalid> {
    let name: Name = object.metadata.name.as_deref().unwrap_or_default().into();
    let at = Place { kind: "Node", object: name.to_string() };
    let spec = object.spec.clone().unwrap_or_default();
    let cidrs = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    let addresses = object.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let internal = addresses.filter(|a| a.type_ == "InternalIP").map(|a| &a.address);
    Ok(Node {
        internal_ips: at.parse_all("status.addresses", internal)?,
        pod_cidrs: at.parse_all("spec.podCIDRs", cidrs.iter())?,
        zone: label(&object.metadata, "topology.kubernetes.io/zone").map(Name::from),
        annotations: object.metadata.annotations.clone().unwrap_or_default(),
        deleting: object.metadata.deletion_timestamp.is_some(),
        name,
    })
}

/// Namespace and name of any namespaced object.
pub fn object_name(meta: &ObjectMeta) -> ObjectName {
    ObjectName::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

fn service_ports(at: &Place, ports: &[core::ServicePort]) -> Result<Vec<ServicePort>, Invalid> {
    let convert = |port: &core::ServicePort| {
        Ok(ServicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: protocol(at, port.protocol.as_deref())?,
            port: port_number(at, "spec.ports.port", port.port)?,
            node_port: match port.node_port {
                None | Some(0) => None,
                Some(number) => Some(port_number(at, "spec.ports.nodePort", number)?),
            },
        })
    };
    ports.iter().map(convert).collect()
}

fn load_balancer(at: &Place, status: Option<&core::ServiceStatus>) -> Result<Vec<LoadBalancerIngress>, Invalid> {
    let ingress = status.and_then(|s| s.load_balancer.as_ref()).and_then(|l| l.ingress.as_deref()).unwrap_or_default();
    let with_address = ingress.iter().filter_map(|i| Some((i, i.ip.as_deref()?)));
    let convert = |(i, ip): (&core::LoadBalancerIngress, &str)| {
        let ip = at.parse("status.loadBalancer.ingress.ip", ip)?;
        Ok(LoadBalancerIngress { ip, proxied: i.ip_mode.as_deref() == Some("Proxy") })
    };
    with_address.map(convert).collect()
}

fn endpoint_port(at: &Place, port: &discovery::EndpointPort, number: i32) -> Result<EndpointPort, Invalid> {
    Ok(EndpointPort {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: protocol(at, port.protocol.as_deref())?,
        port: port_number(at, "ports.port", number)?,
    })
}

fn endpoint(object: &discovery::Endpoint, address: IpAddr, namespace: &Name) -> Endpoint {
    let conditions = object.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let hints = object.hints.clone().unwrap_or_default();
    let pod = object.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    Endpoint {
        address,
        ready,
        serving: conditions.serving.unwrap_or(ready),
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

fn protocol(at: &Place, text: Option<&str>) -> Result<Protocol, Invalid> {
    at.parse("ports.protocol", text.filter(|p| !p.is_empty()).unwrap_or("TCP"))
}

fn port_number(at: &Place, field: &str, number: i32) -> Result<u16, Invalid> {
    let valid = u16::try_from(number).ok().filter(|n| *n != 0);
    valid.ok_or_else(|| at.invalid(field, format!("{number} is not a port: 1 to 65535")))
}

fn policy(text: Option<&str>) -> TrafficPolicy {
    if text == Some("Local") { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

/// The object under conversion, for errors.
struct Place {
    kind: &'static str,
    object: String,
}

impl Place {
    fn invalid(&self, field: &str, problem: String) -> Invalid {
        Invalid { kind: self.kind, object: self.object.clone(), field: field.to_owned(), problem }
    }

    fn parse<T: FromStr<Err: std::fmt::Display>>(&self, field: &str, text: &str) -> Result<T, Invalid> {
        text.parse().map_err(|error| self.invalid(field, format!("{text:?}: {error}")))
    }

    fn parse_all<T, S>(&self, field: &str, texts: impl Iterator<Item = S>) -> Result<Vec<T>, Invalid>
    where
        T: FromStr<Err: std::fmt::Display>,
        S: AsRef<str>,
    {
        texts.map(|text| self.parse(field, text.as_ref())).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn from<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_node_port_service_keeps_its_addresses_and_ports() {
        let object = from(json!({
            "metadata": {"namespace": "default", "name": "myservice"},
            "spec": {
                "type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
                "externalIPs": ["172.25.2.100"], "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local",
                "loadBalancerSourceRanges": [" 10.0.0.0/8 "],
                "ports": [{"port": 80, "targetPort": "web", "nodePort": 30080, "name": "http"}, {"port": 53, "protocol": "UDP"}]
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "172.25.2.200", "ipMode": "Proxy"}, {"hostname": "lb"}]}}
        }));
        let service = service(&object).unwrap();
        assert_eq!(service.name, ObjectName::new("default", "myservice"));
        assert_eq!(service.kind, ServiceType::NodePort);
        assert_eq!(service.cluster_ip(Family::V4), Some("10.96.0.7".parse().unwrap()));
        assert_eq!(service.external_ips, ["172.25.2.100".parse::<IpAddr>().unwrap()]);
        assert_eq!(service.client_ip_affinity, Some(Duration::from_secs(10_800)));
        assert_eq!(service.external_policy, TrafficPolicy::Local);
        assert_eq!(service.internal_policy, TrafficPolicy::Cluster);
        assert_eq!(service.source_ranges, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(service.load_balancer, [LoadBalancerIngress { ip: "172.25.2.200".parse().unwrap(), proxied: true }]);
        assert_eq!((service.ports[0].port, service.ports[0].node_port), (80, Some(30080)));
        assert_eq!((service.ports[1].protocol, &*service.ports[1].name), (Protocol::Udp, ""));
    }

    #[test]
    fn headless_and_external_name_services_have_no_address() {
        let headless = from(json!({"metadata": {"name": "h"}, "spec": {"clusterIP": "None", "clusterIPs": ["None"]}}));
        let headless = service(&headless).unwrap();
        assert!(headless.headless && headless.cluster_ips.is_empty());
        let alias = from(
            json!({"metadata": {"name": "e"}, "spec": {"type": "ExternalName", "externalName": "www.westos.org"}}),
        );
        let alias = service(&alias).unwrap();
        assert_eq!(alias.kind, ServiceType::ExternalName("www.westos.org".into()));
        assert!(!alias.headless && alias.cluster_ips.is_empty());
    }

    #[test]
    fn what_traffic_cannot_follow_is_named() {
        let bad =
            |spec| service(&from(json!({"metadata": {"namespace": "n", "name": "s"}, "spec": spec}))).unwrap_err();
        assert_eq!(
            bad(json!({"ports": [{"port": 70000}]})).to_string(),
            "Service n/s: spec.ports.port: 70000 is not a port: 1 to 65535"
        );
        assert_eq!(bad(json!({"type": "Odd"})).field, "spec.type");
        assert_eq!(bad(json!({"clusterIPs": ["10.96.0"]})).field, "spec.clusterIPs");
        assert_eq!(bad(json!({"ports": [{"port": 1, "protocol": "ICMP"}]})).field, "ports.protocol");
    }

    #[test]
    fn slice_conditions_default_as_the_api_says() {
        let object = from(json!({
            "metadata": {"namespace": "default", "name": "s-x", "labels": {"kubernetes.io/service-name": "s"}},
            "addressType": "IPv4", "ports": [{"port": 80, "name": ""}, {"name": "any"}],
            "endpoints": [
                {"addresses": ["10.244.0.2", "10.244.0.9"]},
                {"addresses": ["10.244.1.2"], "nodeName": "node2", "conditions": {"ready": false, "serving": true, "terminating": true},
                 "targetRef": {"kind": "Pod", "name": "p"}},
                {"addresses": []}
            ]
        }));
        let slice = endpoint_slice(&object).unwrap().unwrap();
        assert_eq!(slice.service_name(), ObjectName::new("default", "s"));
        assert_eq!(slice.ports.len(), 1, "a port without a number serves nothing");
        assert_eq!(slice.endpoints[0], Endpoint::ready("10.244.0.2".parse().unwrap()));
        let leaving = &slice.endpoints[1];
        assert_eq!((leaving.ready, leaving.serving, leaving.terminating), (false, true, true));
        assert_eq!(leaving.pod, Some(ObjectName::new("default", "p")));
        assert_eq!(slice.endpoints.len(), 2);
    }

    #[test]
    fn slices_of_no_service_are_left_out_and_wrong_families_refused() {
        let orphan = from(json!({"metadata": {"name": "x"}, "addressType": "IPv4", "endpoints": []}));
        assert_eq!(endpoint_slice(&orphan), Ok(None));
        let mixed = from(json!({
            "metadata": {"name": "x", "labels": {"kubernetes.io/service-name": "s"}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["fd00::1"]}]
        }));
        assert_eq!(endpoint_slice(&mixed).unwrap_err().problem, "fd00::1 is not IPv4");
    }

    #[test]
    fn nodes_keep_internal_addresses_and_ranges() {
        let object = from(json!({
            "metadata": {"name": "node1", "annotations": {"a": "b"}},
            "spec": {"podCIDR": "10.244.0.0/24"},
            "status": {"addresses": [{"type": "Hostname", "address": "node1"}, {"type": "InternalIP", "address": "172.25.2.1"}]}
        }));
        let node = node(&object).unwrap();
        assert_eq!(node.internal_ips, ["172.25.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(node.pod_cidrs, ["10.244.0.0/24".parse().unwrap()]);
        assert_eq!(node.annotations["a"], "b");
    }
}
