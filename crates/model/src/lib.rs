//! The plain values that every part of Podwire plans with: Services, EndpointSlices, Nodes, overlay leases.
//!
//! Nothing here does IO, reads a clock or knows a Kubernetes type. `podwire-k8s` converts API objects into these
//! values; `proxy`, `overlay` and `dns` plan from them. Strings that repeat across many objects (node names, zones,
//! port names) are [`Name`]s, which are cheap to clone and may be shared.

pub mod delta;
mod endpoint;
mod lease;
mod name;
mod node;
mod problem;
mod service;

pub use endpoint::{Endpoint, EndpointPort, EndpointSlice, PodRef};
pub use ipnet::{IpNet, Ipv4Net, Ipv6Net};
pub use lease::Lease;
pub use name::{Family, Name, ObjectName, Protocol, UnknownProtocol};
pub use node::Node;
pub use problem::Problem;
pub use service::{LoadBalancerIngress, Service, ServicePort, ServiceType, TrafficPolicy};
