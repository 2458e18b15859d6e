use std::net::IpAddr;

use crate::{Family, Name, ObjectName, Protocol};

/// One EndpointSlice (`discovery.k8s.io/v1`). A Service may have many; their union counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name of the slice itself.
    pub name: ObjectName,
    /// The Service it belongs to (label `kubernetes.io/service-name`), in the slice's namespace.
    pub service: Name,
    /// `addressType`.
    pub family: Family,
    /// Label `service.kubernetes.io/headless` is set: of interest to DNS, not to the proxy.
    pub headless: bool,
    /// The ports that each endpoint serves.
    pub ports: Vec<EndpointPort>,
    /// The endpoints, each with exactly one address (KEP-0752 uses the first address only).
    pub endpoints: Vec<Endpoint>,
}

impl EndpointSlice {
    /// Namespace and name of the Service that the slice belongs to.
    pub fn service_name(&self) -> ObjectName {
        ObjectName { namespace: self.name.namespace.clone(), name: self.service.clone() }
    }
}

/// One port of an EndpointSlice; joined to a Service port by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndpointPort {
    /// The port's name; empty when unnamed.
    pub name: Name,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The port that the endpoint listens on.
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Where it listens.
    pub address: IpAddr,
    /// `conditions.ready`; absent counts as true.
    pub ready: bool,
    /// `conditions.serving`; absent counts as true.
    pub serving: bool,
    /// `conditions.terminating`; absent counts as false.
    pub terminating: bool,
    /// `hostname`: a DNS label of its own under the Service's name.
    pub hostname: Option<Name>,
    /// `nodeName`.
    pub node: Option<Name>,
    /// `zone`.
    pub zone: Option<Name>,
    /// `hints.forZones`.
    pub hint_zones: Vec<Name>,
    /// `hints.forNodes`.
    pub hint_nodes: Vec<Name>,
    /// The Pod behind it (`targetRef` of kind Pod).
    pub pod: Option<PodRef>,
}

impl Endpoint {
    /// A ready endpoint at `address` with every optional field empty.
    pub fn ready(address: IpAddr) -> Self {
        Self {
            address,
            ready: true,
            serving: true,
            terminating: false,
            hostname: None,
            node: None,
            zone: None,
            hint_zones: Vec::new(),
            hint_nodes: Vec::new(),
            pod: None,
        }
    }
}

/// Namespace and name of a Pod.
pub type PodRef = ObjectName;
