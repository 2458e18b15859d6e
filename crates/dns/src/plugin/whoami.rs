//! `whoami`: tells clients their own address, port and transport.

use std::net::IpAddr;

use domain::rdata::{A, Aaaa, Srv};

use super::{Plugin, Step};
use crate::{
    corefile::{CorefileError, Directive},
    message::{Data, DnsName, Query, Reply, name_below, record},
    program::SiteBuilder,
    router::Rest,
};

const NAME: &str = "whoami";

/// `whoami`
struct Whoami;

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    directive.plain(0, 0)?;
    site.add(Whoami);
    Ok(())
}

impl Plugin for Whoami {
    fn name(&self) -> &'static str {
        NAME
    }

    fn ask(&self, query: &Query, _rest: &Rest<'_>) -> Step {
        let client = query.arrival.client;
        let address = match client.ip() {
            IpAddr::V4(ip) => Data::A(A::new(ip)),
            IpAddr::V6(ip) => Data::Aaaa(Aaaa::new(ip)),
        };
        let mut additional = vec![record(query.name.clone(), 0, address)];
        // A name that is too long for one more label goes without.
        let transport = format!("_{}", query.arrival.transport.as_str());
        if let Ok(name) = name_below(&[transport.as_bytes()], &query.name) {
            additional.push(record(name, 0, Data::Srv(Srv::new(0, 0, client.port(), DnsName::root_bytes()))));
        }
        Step::Reply(Reply { authoritative: true, plugin: NAME, additional, ..Reply::default() })
    }
}
