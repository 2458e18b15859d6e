//! EndpointSlices, reduced to what has a name: there may be hundreds of thousands of endpoints.

use std::net::IpAddr;

use podwire_model::{self as model, EndpointPort, Name, ObjectName};

/// An EndpointSlice as DNS needs it: 18 bytes for an endpoint without a hostname.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Namespace and name of the slice itself.
    pub(super) name: ObjectName,
    /// The Service it belongs to, in the slice's namespace.
    pub(super) service: Name,
    /// The ports that each endpoint serves.
    pub(super) ports: Box<[EndpointPort]>,
    endpoints: Box<[(IpAddr, bool)]>,
    /// Of the endpoints that have one, in their order: its number, its name.
    hostnames: Box<[(u32, Name)]>,
}

/// One endpoint of a [`Slice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Endpoint<'a> {
    pub(super) address: IpAddr,
    pub(super) ready: bool,
    pub(super) hostname: Option<&'a Name>,
}

impl Slice {
    /// The same with `hostname` for the endpoints that have none, where it says something.
    pub fn new(slice: model::EndpointSlice, hostname: impl Fn(&model::Endpoint) -> Option<Name>) -> Self {
        let endpoints = slice.endpoints.iter().map(|endpoint| (endpoint.address, endpoint.ready)).collect();
        let named = |(number, endpoint): (u32, &model::Endpoint)| {
            Some((number, endpoint.hostname.clone().or_else(|| hostname(endpoint))?))
        };
        let hostnames = (0..).zip(&slice.endpoints).filter_map(named).collect();
        Self { name: slice.name, service: slice.service, ports: slice.ports.into(), endpoints, hostnames }
    }

    pub(super) fn service_name(&self) -> ObjectName {
        ObjectName { namespace: self.name.namespace.clone(), name: self.service.clone() }
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.endpoints.iter().map(|(address, _)| *address)
    }

    pub(super) fn endpoints(&self) -> impl Iterator<Item = Endpoint<'_>> {
        let mut hostnames = self.hostnames.iter().peekable();
        (0..).zip(&self.endpoints).map(move |(number, (address, ready))| {
            let hostname = hostnames.next_if(|(named, _)| *named == number).map(|(_, hostname)| hostname);
            Endpoint { address: *address, ready: *ready, hostname }
        })
    }
}

impl From<model::EndpointSlice> for Slice {
    fn from(slice: model::EndpointSlice) -> Self {
        Self::new(slice, |_| None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_come_out_as_they_went_in() {
        let endpoint = |last: u8, ready: bool, hostname: Option<&str>| model::Endpoint {
            ready,
            hostname: hostname.map(Name::from),
            ..model::Endpoint::ready([10, 0, 0, last].into())
        };
        let endpoints = vec![
            endpoint(1, true, Some("a")),
            endpoint(2, false, None),
            endpoint(3, true, Some("c")),
            endpoint(4, true, None),
        ];
        let slice = model::EndpointSlice {
            name: ObjectName::new("n", "s-1"),
            service: "s".into(),
            family: model::Family::V4,
            headless: false,
            ports: Vec::new(),
            endpoints: endpoints.clone(),
        };
        let read = |slice: &Slice| {
            slice
                .endpoints()
                .map(|Endpoint { address, ready, hostname }| (address, ready, hostname.cloned()))
                .collect::<Vec<_>>()
        };
        let expected: Vec<_> =
            endpoints.into_iter().map(|endpoint| (endpoint.address, endpoint.ready, endpoint.hostname)).collect();
        assert_eq!(read(&slice.clone().into()), expected);
        let second = Slice::new(slice, |endpoint| (!endpoint.ready).then(|| "b".into()));
        assert_eq!(read(&second)[1].2.as_deref(), Some("b"));
        assert_eq!(read(&second)[0].2.as_deref(), Some("a"), "its own name counts");
        assert_eq!(size_of::<(IpAddr, bool)>(), 18);
    }
}
