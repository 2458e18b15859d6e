//! `prometheus`: counts queries and answers.

use std::{net::IpAddr, sync::Arc};

use domain::base::iana::{Rcode, Rtype};

use super::Plugin;
use crate::{
    corefile::{CorefileError, Directive},
    message::{DnsName, Query, Reply},
    metrics::{Metrics, RequestLabels, ResponseLabels, ServerLabels},
    program::{Page, SiteBuilder, nearest},
};

/// CoreDNS's default port.
const PORT: u16 = 9153;

/// `prometheus [ADDRESS]`
struct Prometheus {
    metrics: Arc<Metrics>,
    server: Arc<str>,
    zones: Vec<DnsName>,
    /// The zones as text.
    labels: Vec<Arc<str>>,
}

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let address = directive.plain(0, 1)?.first();
    site.page(Page::Metrics, address, PORT)?;
    let zones = site.zones();
    let labels = zones.iter().map(|zone| zone.fmt_with_dot().to_string().into()).collect();
    let (metrics, server) = (site.environment.metrics.clone(), site.server_label());
    site.add(Prometheus { metrics, server, zones, labels });
    Ok(())
}

impl Plugin for Prometheus {
    fn name(&self) -> &'static str {
        "prometheus"
    }

    fn answered(&self, query: &Query, reply: &mut Reply) {
        if !query.is_from_client() {
            return;
        }
        let zone = nearest(&self.zones, &query.name);
        let index = self.zones.iter().position(|candidate| Some(candidate) == zone);
        let Some(zone) = index.and_then(|index| self.labels.get(index)) else { return };
        let server = ServerLabels { server: self.server.clone(), zone: zone.clone() };
        self.metrics.observe(server, query.arrival.now.elapsed());
        let request = RequestLabels {
            server: self.server.clone(),
            zone: zone.clone(),
            proto: query.arrival.transport.as_str(),
            family: family(query.arrival.client.ip()),
            r#type: type_name(query.qtype),
        };
        self.metrics.requests.get_or_create(&request).inc();
        let response = ResponseLabels {
            server: self.server.clone(),
            zone: zone.clone(),
            rcode: code_name(reply.rcode),
            plugin: reply.plugin,
        };
        self.metrics.responses.get_or_create(&response).inc();
    }
}

/// The family's number as CoreDNS spells it; an IPv4 client of an IPv6 socket counts as IPv4.
fn family(client: IpAddr) -> &'static str {
    if client.to_canonical().is_ipv4() { "1" } else { "2" }
}

/// The type's name; `other` for the many that nobody asks for, so that clients cannot invent labels.
fn type_name(rtype: Rtype) -> &'static str {
    rtype.to_mnemonic_str().unwrap_or("other")
}

pub(super) fn code_name(rcode: Rcode) -> &'static str {
    rcode.to_mnemonic_str().unwrap_or("other")
}
