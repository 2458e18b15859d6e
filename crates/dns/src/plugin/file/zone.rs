//! A zone: its records by name, and what it answers (RFC 1034 4.3.2, RFC 4592 for wildcards, RFC 6672 for DNAME).

use std::collections::HashMap;

use domain::{
    base::{
        Serial, Ttl,
        iana::{Rcode, Rtype},
    },
    rdata::Cname,
};

use super::NAME;
use crate::{
    message::{Data, DnsName, Query, Record, Reply, name_below, record},
    zone_text,
};

/// How many aliases are followed within a zone.
const MAX_ALIASES: usize = 8;

/// A zone as it was read from its file.
#[derive(Debug)]
pub(super) struct Zone {
    apex: DnsName,
    soa: Record,
    /// By owner. A name that only has names below it is there, without records.
    names: HashMap<DnsName, Vec<Record>>,
}

/// What a zone says.
#[derive(Debug)]
pub(super) enum Outcome {
    Reply(Reply),
    /// The name is not there: NXDOMAIN, unless it falls through.
    Missing(Reply),
    /// An alias for a name of another zone.
    Alias(Reply, DnsName),
}

/// What there is for a name.
enum Found<'a> {
    /// The records of the name, or of the wildcard in its place.
    Node(&'a [Record]),
    /// The name belongs to a zone below this one; its NS records are among these.
    Delegation(&'a [Record]),
    /// A name above it is an alias for another tree.
    Tree(&'a Record, DnsName),
    Missing,
}

impl Zone {
    /// Reads a zone file. Records outside the zone are left out, as CoreDNS does.
    ///
    /// # Errors
    /// What is wrong, with its place in the file.
    pub(super) fn parse(text: &[u8], apex: &DnsName) -> Result<Self, String> {
        let records = zone_text::zone(text, apex.clone())?;
        let soa = records.iter().find(|record| record.rtype() == Rtype::SOA && record.owner() == apex).cloned();
        let soa = soa.ok_or_else(|| format!("zone {} has no SOA record", apex.fmt_with_dot()))?;
        let mut names: HashMap<DnsName, Vec<Record>> = HashMap::new();
        for record in records.into_iter().filter(|record| record.owner().ends_with(apex)) {
            for above in record.owner().iter_suffixes().skip(1).take_while(|above| above.ends_with(apex)) {
                names.entry(above).or_default();
            }
            names.entry(record.owner().clone()).or_default().push(record);
        }
        Ok(Self { apex: apex.clone(), soa, names })
    }

    /// The SOA record's serial number.
    pub(super) fn serial(&self) -> Option<Serial> {
        match self.soa.data() {
            Data::Soa(soa) => Some(soa.serial()),
            _ => None,
        }
    }

    /// Answers a question about a name of the zone.
    pub(super) fn answer(&self, query: &Query) -> Outcome {
        let mut reply = Reply { authoritative: true, plugin: NAME, ..Reply::default() };
        let mut name = query.name.clone();
        for _ in 0..MAX_ALIASES {
            let node = match self.find(&name, query.qtype) {
                Found::Node(node) => node,
                Found::Delegation(servers) => {
                    // What was found on the way here is ours, the rest is not.
                    reply.authoritative = !reply.answer.is_empty();
                    reply.authority = servers.iter().filter(|record| record.rtype() == Rtype::NS).cloned().collect();
                    reply.additional = self.addresses(&reply.authority);
                    return Outcome::Reply(reply);
                }
                Found::Tree(dname, target) => {
                    reply.answer.push(dname.clone());
                    reply.answer.push(record(name, dname.ttl().as_secs(), Data::Cname(Cname::new(target.clone()))));
                    if query.qtype == Rtype::CNAME {
                        reply.authority = self.servers(&[]);
                        return Outcome::Reply(reply);
                    }
                    name = target;
                    if !name.ends_with(&self.apex) {
                        return Outcome::Alias(reply, name);
                    }
                    continue;
                }
                Found::Missing => {
                    reply.rcode = Rcode::NXDOMAIN;
                    reply.authority.push(self.denial());
                    // An alias that leads nowhere does not fall through: it is there.
                    return if reply.answer.is_empty() { Outcome::Missing(reply) } else { Outcome::Reply(reply) };
                }
            };
            let wanted = |record: &&Record| record.rtype() == query.qtype || query.qtype == Rtype::ANY;
            let records: Vec<_> = node.iter().filter(wanted).map(|record| owned_by(record, &name)).collect();
            let alias = node.iter().find_map(|record| match record.data() {
                Data::Cname(alias) => Some((record, alias.cname())),
                _ => None,
            });
            if let Some((record, target)) = alias.filter(|_| records.is_empty()) {
                reply.answer.push(owned_by(record, &name));
                name = target.clone();
                if !name.ends_with(&self.apex) {
                    return Outcome::Alias(reply, name);
                }
                continue;
            }
            if records.is_empty() {
                reply.authority.push(self.denial());
            } else {
                reply.additional = self.addresses(&records);
                reply.authority = self.servers(&records);
                reply.answer.extend(records);
            }
            return Outcome::Reply(reply);
        }
        Outcome::Reply(Reply::failure(NAME, format!("more than {MAX_ALIASES} aliases for {}", query.name)))
    }

    /// Goes from the apex down to the name.
    fn find(&self, name: &DnsName, qtype: Rtype) -> Found<'_> {
        let mut path: Vec<DnsName> = name.iter_suffixes().take_while(|above| above.ends_with(&self.apex)).collect();
        path.reverse();
        let mut node: &[Record] = &[];
        for (index, step) in path.iter().enumerate() {
            let Some(found) = self.names.get(step) else {
                let encloser = path.get(index.saturating_sub(1)).unwrap_or(&self.apex);
                let wildcard = name_below(&[b"*"], encloser).ok();
                let node = wildcard.and_then(|wildcard| self.names.get(&wildcard));
                return node.map_or(Found::Missing, |node| Found::Node(node));
            };
            node = found;
            let last = index + 1 == path.len();
            // The parent's side of a zone cut holds its DS records (RFC 4035 3.1.4.1).
            if index > 0 && !(last && qtype == Rtype::DS) {
                let cut = node.iter().any(|record| record.rtype() == Rtype::NS);
                if cut {
                    return Found::Delegation(node);
                }
            }
            let tree = node.iter().find_map(|record| match record.data() {
                Data::Dname(data) if !last => Some((record, data.dname())),
                _ => None,
            });
            if let Some((record, target)) = tree {
                let labels: Vec<&[u8]> =
                    name.iter().take(name.label_count() - step.label_count()).map(|label| label.as_slice()).collect();
                return name_below(&labels, target).map_or(Found::Missing, |target| Found::Tree(record, target));
            }
        }
        Found::Node(node)
    }

    /// The SOA record that says for how long something is not there (RFC 2308 5).
    fn denial(&self) -> Record {
        let mut soa = self.soa.clone();
        if let Data::Soa(data) = self.soa.data() {
            soa.set_ttl(Ttl::from_secs(soa.ttl().as_secs().min(data.minimum().as_secs())));
        }
        soa
    }

    /// The zone's NS records, unless they are the answer (CoreDNS).
    fn servers(&self, answer: &[Record]) -> Vec<Record> {
        let apex = self.names.get(&self.apex).into_iter().flatten();
        apex.filter(|record| record.rtype() == Rtype::NS && !answer.contains(record)).cloned().collect()
    }

    /// The addresses, as far as they are in this file, of the hosts that records name.
    fn addresses(&self, records: &[Record]) -> Vec<Record> {
        let mut hosts: Vec<&DnsName> = Vec::new();
        for record in records {
            let host = match record.data() {
                Data::Ns(data) => data.nsdname(),
                Data::Mx(data) => data.exchange(),
                Data::Srv(data) => data.target(),
                _ => continue,
            };
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        let records = hosts.into_iter().filter_map(|host| self.names.get(host)).flatten();
        records.filter(|record| matches!(record.rtype(), Rtype::A | Rtype::AAAA)).cloned().collect()
    }
}

/// The record under the name that was asked for: in the client's spelling, and where a wildcard stands for it.
fn owned_by(record: &Record, name: &DnsName) -> Record {
    Record::new(name.clone(), record.class(), record.ttl(), record.data().clone())
}
