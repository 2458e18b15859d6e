use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

use crate::{Family, Name, ObjectName, Protocol};

/// One Service (`v1.Service`), reduced to what carries traffic and names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `spec.type`.
    pub kind: ServiceType,
    /// `spec.clusterIPs`, at most one of each family; empty for headless and ExternalName Services.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.clusterIP: None`.
    pub headless: bool,
    /// `spec.ports`, in the order of the object.
    pub ports: Vec<ServicePort>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress` entries that have an address.
    pub load_balancer: Vec<LoadBalancerIngress>,
    /// `spec.loadBalancerSourceRanges`; empty allows every source.
    pub source_ranges: Vec<IpNet>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `spec.sessionAffinity: ClientIP` with its timeout; `None` for no affinity.
    pub client_ip_affinity: Option<Duration>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `spec.healthCheckNodePort`.
    pub health_check_node_port: Option<u16>,
    /// The label `service.kubernetes.io/service-proxy-name` is set: another proxy serves it.
    pub other_proxy: bool,
}

impl Service {
    /// The cluster IP of `family`, if the Service has one.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|ip| Family::of(ip) == family)
    }
}

/// `spec.type` of a Service. Each of the first three includes the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceType {
    /// An address inside the cluster.
    ClusterIp,
    /// A port on every node as well.
    NodePort,
    /// An address from outside as well.
    LoadBalancer,
    /// A DNS alias for the given name; no address, no proxying.
    ExternalName(Name),
}

/// One entry of `spec.ports`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// The port's name; empty when the only port has none.
    pub name: Name,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The port of the Service address, 1 to 65535.
    pub port: u16,
    /// The port on every node, where one is allocated.
    pub node_port: Option<u16>,
}

/// One entry of `status.loadBalancer.ingress` with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LoadBalancerIngress {
    /// The address.
    pub ip: IpAddr,
    /// `ipMode: Proxy`: traffic must pass the load balancer itself, nodes install nothing (KEP-1860).
    pub proxied: bool,
}

/// `internalTrafficPolicy` / `externalTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TrafficPolicy {
    /// Every usable endpoint of the cluster.
    #[default]
    Cluster,
    /// Endpoints of the same node only.
    Local,
}
