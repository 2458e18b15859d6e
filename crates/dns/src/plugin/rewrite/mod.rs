//! `rewrite`: asks another question than the client did, and makes the answer fit the client's.

mod edns;
mod setup;

use std::{borrow::Cow, ops::RangeInclusive};

use domain::{
    base::{
        Ttl,
        iana::{Class, Rcode, Rtype},
    },
    rdata::{Cname, Dname, Mx, Naptr, Ns, Ptr, Soa, Srv},
};
use futures_util::FutureExt;

use self::edns::OptionRule;
use super::{
    Plugin, Step,
    pattern::{Mapping, Pattern, name_text},
};
use crate::{
    message::{Data, DnsName, Query, Record, Reply},
    router::{Progress, Rest},
};

pub(super) use setup::setup;

const NAME: &str = "rewrite";

/// The rules of a server block, in the order of the Corefile.
struct Rewrite(Vec<Rule>);

struct Rule {
    /// No rule after this one is looked at once it fits.
    stop: bool,
    change: Change,
}

enum Change {
    Name {
        from: Pattern,
        to: String,
        automatic: Automatic,
        answers: Vec<Fix>,
    },
    Type(Rtype, Rtype),
    Class(Class, Class),
    /// The answer's TTL, seconds.
    Ttl(Pattern, RangeInclusive<u32>),
    Rcode(Pattern, Rcode, Rcode),
    Option(OptionRule),
}

/// How the names of an answer become the client's again without rules of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Automatic {
    No,
    /// The name that was asked for, and names below it.
    Name,
    /// The suffix of every name.
    Suffix,
}

/// What is done to an answer.
#[derive(Debug, Clone)]
enum Fix {
    Owner(Mapping),
    Value(Mapping),
    Ttl(RangeInclusive<u32>),
    Rcode(Rcode, Rcode),
}

impl Plugin for Rewrite {
    fn name(&self) -> &'static str {
        NAME
    }

    fn knows(&self, _class: Class) -> bool {
        true
    }

    fn ask(&self, query: &Query, rest: &Rest<'_>) -> Step {
        let mut asked = Cow::Borrowed(query);
        let mut fixes = Vec::new();
        let mut fits = false;
        for rule in &self.0 {
            match rule.change.apply(&mut asked, &mut fixes) {
                Ok(false) => continue,
                Ok(true) => fits = true,
                Err(name) => return Step::Reply(Reply::failure(NAME, format!("{name:?} is not a domain name"))),
            }
            if rule.stop {
                break;
            }
        }
        if !fits {
            return Step::Next;
        }
        match rest.begin(&asked) {
            Progress::Done(mut reply) => {
                fix(&mut reply, &fixes, &query.name);
                Step::Reply(reply)
            }
            Progress::Waiting(reply) => {
                let name = query.name.clone();
                let fixed = reply.map(move |mut reply| {
                    fix(&mut reply, &fixes, &name);
                    reply
                });
                Step::Wait(fixed.boxed())
            }
        }
    }
}

impl Change {
    /// Changes the query if the rule fits it, and adds what to do with the answer. `Err` with what is no name.
    fn apply(&self, query: &mut Cow<'_, Query>, fixes: &mut Vec<Fix>) -> Result<bool, String> {
        match self {
            Self::Name { from, to, automatic, answers } => {
                let Some(text) = from.replace(&name_text(&query.name), to) else { return Ok(false) };
                let Ok(name) = DnsName::bytes_from_str(&text) else { return Err(text) };
                let both = |mapping: Mapping| [Fix::Owner(mapping.clone()), Fix::Value(mapping)];
                match (automatic, from) {
                    (Automatic::Name, _) => fixes.extend(both(Mapping::Domain(name.clone(), query.name.clone()))),
                    (Automatic::Suffix, Pattern::Suffix(from)) => {
                        fixes.extend(both(Mapping::Suffix(to.as_str().into(), from.as_str().into())));
                    }
                    _ => {}
                }
                fixes.extend_from_slice(answers);
                query.to_mut().name = name;
            }
            Self::Type(from, to) if query.qtype == *from => query.to_mut().qtype = *to,
            Self::Class(from, to) if query.qclass == *from => query.to_mut().qclass = *to,
            Self::Type(..) | Self::Class(..) => return Ok(false),
            Self::Ttl(names, range) if names.matches(&name_text(&query.name)) => fixes.push(Fix::Ttl(range.clone())),
            Self::Rcode(names, from, to) if names.matches(&name_text(&query.name)) => {
                fixes.push(Fix::Rcode(*from, *to));
            }
            Self::Ttl(..) | Self::Rcode(..) => return Ok(false),
            Self::Option(rule) => return Ok(rule.apply(query)),
        }
        Ok(true)
    }
}

/// Makes an answer fit the client's question: the rule that was applied last goes first.
fn fix(reply: &mut Reply, fixes: &[Fix], asked: &DnsName) {
    for fix in fixes.iter().rev() {
        match fix {
            Fix::Rcode(from, to) if reply.rcode == *from => reply.rcode = *to,
            Fix::Rcode(..) => {}
            Fix::Owner(mapping) => reply.records_mut().for_each(|record| {
                if let Some(owner) = mapping.map(record.owner()) {
                    *record = Record::new(owner, record.class(), record.ttl(), record.data().clone());
                }
            }),
            Fix::Value(mapping) => reply.records_mut().for_each(|record| {
                if let Some(data) = mapped(record.data(), mapping) {
                    *record = Record::new(record.owner().clone(), record.class(), record.ttl(), data);
                }
            }),
            Fix::Ttl(range) => reply.records_mut().for_each(|record| {
                let ttl = record.ttl().as_secs().clamp(*range.start(), *range.end());
                record.set_ttl(Ttl::from_secs(ttl));
            }),
        }
    }
    // Rules see names in lower case; the client gets back the spelling that it used.
    for record in reply.records_mut().filter(|record| record.owner() == asked) {
        *record = Record::new(asked.clone(), record.class(), record.ttl(), record.data().clone());
    }
}

/// Record data with the name in it mapped; `None` where there is none or it stays.
fn mapped(data: &Data, mapping: &Mapping) -> Option<Data> {
    Some(match data {
        Data::Cname(data) => Data::Cname(Cname::new(mapping.map(data.cname())?)),
        Data::Dname(data) => Data::Dname(Dname::new(mapping.map(data.dname())?)),
        Data::Ns(data) => Data::Ns(Ns::new(mapping.map(data.nsdname())?)),
        Data::Ptr(data) => Data::Ptr(Ptr::new(mapping.map(data.ptrdname())?)),
        Data::Mx(data) => Data::Mx(Mx::new(data.preference(), mapping.map(data.exchange())?)),
        Data::Srv(data) => {
            Data::Srv(Srv::new(data.priority(), data.weight(), data.port(), mapping.map(data.target())?))
        }
        Data::Naptr(data) => Data::Naptr(Naptr::new(
            data.order(),
            data.preference(),
            data.flags().clone(),
            data.services().clone(),
            data.regexp().clone(),
            mapping.map(data.replacement())?,
        )),
        Data::Soa(data) => Data::Soa(Soa::new(
            mapping.map(data.mname())?,
            data.rname().clone(),
            data.serial(),
            data.refresh(),
            data.retry(),
            data.expire(),
            data.minimum(),
        )),
        _ => return None,
    })
}
