//! From what the view knows to resource records.

use std::net::IpAddr;

use bytes::Bytes;
use domain::{
    base::{Serial, Ttl, iana::Rtype, name::PushError},
    rdata::{A, Aaaa, Cname, Ptr, Soa, Srv, Txt},
};

use super::{Kubernetes, PodMode};
use crate::{
    message::{Data, DnsName, Query, Record, name_below, record},
    view::{Asked, Host, Labels, PointerTarget, ServiceName, Target, View, dashed_address, reverse_address},
};

/// The version of the DNS specification that is followed.
const SPECIFICATION: &str = "1.1.0";
/// TTL of the version record, seconds (CoreDNS).
const SPECIFICATION_TTL: u32 = 28_800;
/// The longest TTL of a SOA record, seconds (CoreDNS).
const MAX_SOA_TTL: u32 = 300;
/// The weights of a name's SRV records add up to this (CoreDNS).
const TOTAL_WEIGHT: usize = 100;

/// What there is for a query.
pub(super) enum Finding {
    /// No such name.
    Missing,
    /// The name exists; no answer means that it has no records of the type.
    Records { answer: Vec<Record>, additional: Vec<Record> },
    /// The name is an alias for another.
    Alias(Record, DnsName),
}

impl Finding {
    const EMPTY: Self = Self::Records { answer: Vec::new(), additional: Vec::new() };

    fn one(record: Record) -> Self {
        Self::Records { answer: vec![record], additional: Vec::new() }
    }

    /// Missing or existing without records of the type asked for.
    fn existing(exists: bool) -> Self {
        if exists { Self::EMPTY } else { Self::Missing }
    }
}

/// One zone of the directive, for one query.
pub(super) struct Zone<'a> {
    pub(super) apex: DnsName,
    pub(super) serial: u32,
    pub(super) plugin: &'a Kubernetes,
}

impl Zone<'_> {
    pub(super) fn find(&self, view: &View, query: &Query) -> Finding {
        if query.name.len() == self.apex.len() && query.qtype == Rtype::SOA {
            return Finding::one(self.soa());
        }
        if is_reverse(&self.apex) {
            return self.find_pointers(view, query);
        }
        let Some(labels) = Labels::below(query.name.for_slice(), self.apex.for_slice()) else {
            return Finding::Missing;
        };
        match labels.asked() {
            Asked::Branch => Finding::EMPTY,
            Asked::Version if query.qtype == Rtype::TXT => self.version(query),
            Asked::Version => Finding::EMPTY,
            Asked::Namespace(name) => Finding::existing(self.plugin.exposes(name) && view.has_namespace(name)),
            Asked::Service(name) if self.plugin.exposes(name.namespace) => self.find_service(view, query, &name),
            Asked::Pod { namespace, address } if self.plugin.exposes(namespace) => {
                self.find_pod(view, query, namespace, address)
            }
            Asked::Service(_) | Asked::Pod { .. } | Asked::Nothing => Finding::Missing,
        }
    }

    /// The record that says who is responsible for the zone; it goes along with every denial.
    pub(super) fn soa(&self) -> Record {
        let below_apex = |labels: &[&[u8]]| name_below(labels, &self.apex).unwrap_or_else(|_| self.apex.clone());
        let seconds = Ttl::from_secs;
        let soa = Soa::new(
            below_apex(&[b"ns", b"dns"]),
            below_apex(&[b"hostmaster"]),
            Serial(self.serial),
            seconds(7200),
            seconds(1800),
            seconds(86_400),
            seconds(self.plugin.ttl),
        );
        record(self.apex.clone(), self.plugin.ttl.min(MAX_SOA_TTL), Data::Soa(soa))
    }

    fn version(&self, query: &Query) -> Finding {
        match Txt::<Bytes>::build_from_slice(SPECIFICATION.as_bytes()) {
            Ok(text) => Finding::one(record(query.name.clone(), SPECIFICATION_TTL, Data::Txt(text))),
            Err(_) => Finding::EMPTY,
        }
    }

    fn find_service(&self, view: &View, query: &Query, name: &ServiceName<'_>) -> Finding {
        if let Some(alias) = view.alias(name) {
            return self.alias(query, alias);
        }
        match query.qtype {
            Rtype::SRV => view.targets(name).map_or(Finding::Missing, |targets| self.srv(query, name, &targets)),
            _ => view.addresses(name).map_or(Finding::Missing, |addresses| self.addresses(query, addresses)),
        }
    }

    fn alias(&self, query: &Query, target: &str) -> Finding {
        if target.parse::<IpAddr>().is_ok() {
            return Finding::Missing;
        }
        let Ok(target) = DnsName::bytes_from_str(target) else { return Finding::Missing };
        if target == query.name {
            return Finding::EMPTY;
        }
        let alias = self.record(&query.name, Data::Cname(Cname::new(target.clone())));
        match query.qtype {
            Rtype::CNAME | Rtype::ANY => Finding::one(alias),
            _ => Finding::Alias(alias, target),
        }
    }

    /// The A or AAAA records among `addresses`.
    fn addresses(&self, query: &Query, addresses: impl IntoIterator<Item = IpAddr>) -> Finding {
        let records = addresses.into_iter().map(|address| self.address(&query.name, address));
        let answer = records.filter(|record| record.rtype() == query.qtype).collect();
        Finding::Records { answer, additional: Vec::new() }
    }

    /// `targets` are in order and each is there once.
    fn srv(&self, query: &Query, name: &ServiceName<'_>, targets: &[Target<'_>]) -> Finding {
        let weight = u16::try_from(TOTAL_WEIGHT / targets.len().max(1)).unwrap_or(u16::MAX).max(1);
        let mut answer: Vec<Record> = Vec::new();
        let mut hosts: Vec<(Host<'_>, IpAddr)> = Vec::new();
        let mut last = None;
        for target in targets {
            let Some(port) = target.port else { continue };
            hosts.push((target.host, target.address));
            if last.replace((target.host, port)) != Some((target.host, port))
                && let Ok(host) = host_name(target.host, name.service, name.namespace, &self.apex)
            {
                answer.push(self.record(&query.name, Data::Srv(Srv::new(0, weight, port, host))));
            }
        }
        hosts.sort_unstable();
        hosts.dedup();
        let additional = hosts.into_iter().filter_map(|(host, address)| {
            let owner = host_name(host, name.service, name.namespace, &self.apex).ok()?;
            Some(self.address(&owner, address))
        });
        Finding::Records { answer, additional: additional.collect() }
    }

    fn find_pod(&self, view: &View, query: &Query, namespace: &str, label: &str) -> Finding {
        let exists = |address: &IpAddr| match self.plugin.pods {
            PodMode::Disabled => false,
            PodMode::Insecure => view.has_namespace(namespace),
            PodMode::Verified => view.has_pod(namespace, *address),
        };
        match dashed_address(label).filter(exists) {
            Some(address) => self.addresses(query, [address]),
            None => Finding::Missing,
        }
    }

    fn find_pointers(&self, view: &View, query: &Query) -> Finding {
        let Some(address) = reverse_address(query.name.for_slice()) else {
            return Finding::existing(query.name.len() == self.apex.len());
        };
        let mut pointers = view.pointers(address);
        pointers.retain(|pointer| self.plugin.exposes(pointer.namespace));
        if query.qtype != Rtype::PTR || pointers.is_empty() {
            return Finding::existing(!pointers.is_empty());
        }
        let records = pointers.into_iter().filter_map(|PointerTarget { namespace, service, host }| {
            let target = host_name(host, service, namespace, &self.plugin.primary).ok()?;
            Some(self.record(&query.name, Data::Ptr(Ptr::new(target))))
        });
        Finding::Records { answer: records.collect(), additional: Vec::new() }
    }

    fn address(&self, owner: &DnsName, address: IpAddr) -> Record {
        let data = match address {
            IpAddr::V4(address) => Data::A(A::new(address)),
            IpAddr::V6(address) => Data::Aaaa(Aaaa::new(address)),
        };
        self.record(owner, data)
    }

    fn record(&self, owner: &DnsName, data: Data) -> Record {
        record(owner.clone(), self.plugin.ttl, data)
    }
}

/// Whether a zone holds names of addresses.
pub(super) fn is_reverse(zone: &DnsName) -> bool {
    let mut labels = zone.iter().rev().skip(1);
    let is = |label: Option<&domain::base::name::Label>, text: &[u8]| {
        label.is_some_and(|label| label.as_slice().eq_ignore_ascii_case(text))
    };
    is(labels.next(), b"arpa")
        && labels.next().is_some_and(|label| is(Some(label), b"in-addr") || is(Some(label), b"ip6"))
}

/// `[host.]service.namespace.svc.zone`
fn host_name(host: Host<'_>, service: &str, namespace: &str, zone: &DnsName) -> Result<DnsName, PushError> {
    let (service, namespace) = (service.as_bytes(), namespace.as_bytes());
    match host {
        Host::Service => name_below(&[service, namespace, b"svc"], zone),
        Host::Named(host) => name_below(&[host.as_bytes(), service, namespace, b"svc"], zone),
        Host::Dashed(address) => name_below(&[dashed(address).as_bytes(), service, namespace, b"svc"], zone),
    }
}

/// An address as a label: `10-244-0-7`, `fd00--7`. A label does not end with a dash, so an address ending in `::` gets a 0.
fn dashed(address: IpAddr) -> String {
    let mut label = address.to_string().replace(['.', ':'], "-");
    if label.ends_with('-') {
        label.push('0');
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashed_labels_are_read_back() {
        for text in ["10.244.0.7", "fd00::7", "::1", "1234:abcd::", "::"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(dashed_address(&dashed(address)), Some(address), "{}", dashed(address));
        }
    }
}
