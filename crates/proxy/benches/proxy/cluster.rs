//! A cluster that exists only as the objects that a proxy is told of.

use std::net::{IpAddr, Ipv4Addr};

use podwire_model::{Endpoint, EndpointSlice, Name, ObjectName, Service};
use podwire_proxy::{mode::DetectLocal, plan::Me};
use podwire_testkit::build;

/// How many nodes the pods are spread over; the proxy is on the first.
const NODES: u32 = 500;

/// Services with as many endpoints each. Its objects are made when they are asked for, as they come from a watch: every
/// text is an allocation of its own.
#[derive(Debug, Clone, Copy)]
pub struct Cluster {
    pub services: u32,
    pub each: u32,
}

impl Cluster {
    /// The node of the proxy.
    pub fn me() -> Me {
        Me { node: "node-0".into(), zone: Some("zone-0".into()), ..Me::default() }
    }

    /// Where pods are.
    pub fn detect_local() -> DetectLocal {
        DetectLocal::Ranges(vec!["10.128.0.0/9".parse().unwrap_or_default()])
    }

    pub fn services(self) -> impl Iterator<Item = Service> {
        (0..self.services).map(|number| build::service(&name(number), &vip(number).to_string()))
    }

    pub fn slices(self) -> impl Iterator<Item = EndpointSlice> {
        (0..self.services).map(move |number| self.slice(number))
    }

    /// The slice of one Service.
    pub fn slice(self, number: u32) -> EndpointSlice {
        let first = number * self.each;
        let endpoints = (first..first + self.each).map(|pod| endpoint(&name(number), pod));
        EndpointSlice { endpoints: endpoints.collect(), ..build::slice(&name(number), 8080, &[]) }
    }
}

/// The address of a Service.
pub fn vip(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a60_0000 + number + 1).into()
}

/// A ready endpoint of a Service, with what the API says of each.
pub fn endpoint(service: &str, pod: u32) -> Endpoint {
    Endpoint {
        node: Some(Name::from(format!("node-{}", pod % NODES))),
        zone: Some(Name::from(format!("zone-{}", pod % 3))),
        pod: Some(ObjectName::new("default", format!("{service}-6d4cf56db6-{pod:05x}"))),
        ..Endpoint::ready(Ipv4Addr::from_bits(0x0a80_0000 + pod).into())
    }
}

/// The name of a Service.
pub fn name(number: u32) -> String {
    format!("service-{number}")
}
