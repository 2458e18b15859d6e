//! `template`: answers made of the question, by regular expressions and record templates.

mod setup;
mod text;

use std::{net::IpAddr, sync::Arc};

use domain::base::iana::{Class, Rcode, Rtype};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use regex::bytes::{Captures, Regex};

use self::text::{Source, Text, Value};
use super::{Plugin, Step, fall::Fallthrough, pattern::name_text};
use crate::{
    message::{Data, DnsName, Query, Record, Reply},
    metrics::Metrics,
    program::nearest,
    router::Rest,
    zone_text,
};

pub(super) use setup::setup;

const NAME: &str = "template";

/// One directive: CLASS, TYPE, zones and what the braces hold.
struct Template {
    class: Class,
    rtype: Rtype,
    zones: Vec<DnsName>,
    /// Any of them; none fits every name.
    patterns: Vec<Regex>,
    answer: Vec<RecordText>,
    authority: Vec<RecordText>,
    additional: Vec<RecordText>,
    rcode: Rcode,
    fallthrough: Fallthrough,
    server: Arc<str>,
    metrics: Arc<Metrics>,
}

/// The template of a record, and as it was written.
struct RecordText {
    text: Text,
    written: Arc<str>,
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct TemplateMetrics {
    matches: Family<MatchLabels, Counter>,
    template_failures: Family<FailureLabels, Counter>,
    record_failures: Family<FailureLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MatchLabels {
    server: Arc<str>,
    zone: String,
    view: &'static str,
    class: &'static str,
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    server: Arc<str>,
    zone: String,
    view: &'static str,
    class: &'static str,
    r#type: &'static str,
    section: &'static str,
    template: Arc<str>,
}

impl TemplateMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("template_matches", "Questions that a template fits", self.matches.clone());
        let help = "Templates that a question has no values for";
        registry.register("template_template_failures", help, self.template_failures.clone());
        registry.register("template_rr_failures", "Templates that gave no record", self.record_failures.clone());
    }
}

/// A question that a template fits.
struct Match<'a> {
    query: &'a Query,
    name: &'a str,
    zone: String,
    class: Class,
    rtype: Rtype,
    regex: Option<&'a Regex>,
    captures: Option<Captures<'a>>,
}

impl Plugin for Template {
    fn name(&self) -> &'static str {
        NAME
    }

    fn knows(&self, class: Class) -> bool {
        [class, Class::ANY].contains(&self.class) || class == Class::ANY
    }

    fn ask(&self, query: &Query, _rest: &Rest<'_>) -> Step {
        let Some(zone) = nearest(&self.zones, &query.name) else { return Step::Next };
        if ![query.qtype, Rtype::ANY].contains(&self.rtype) && query.qtype != Rtype::ANY {
            return Step::Next;
        }
        let name = name_text(&query.name);
        let found = self.patterns.iter().find_map(|regex| Some((regex, regex.captures(name.as_bytes())?)));
        if found.is_none() && !self.patterns.is_empty() {
            return match self.fallthrough.takes(&query.name) {
                true => Step::Next,
                false => Step::Reply(Reply::code(Rcode::SERVFAIL, NAME)),
            };
        }
        let (regex, captures) = found.unzip();
        let class = if query.qclass == Class::ANY { self.class } else { query.qclass };
        let rtype = if query.qtype == Rtype::ANY { self.rtype } else { query.qtype };
        let zone = name_text(zone);
        let found = Match { query, name: &name, zone, class, rtype, regex, captures };
        self.metrics.template.matches.get_or_create(&self.labels(&found)).inc();
        self.answer(&found).unwrap_or_else(|error| Step::Reply(Reply::failure(NAME, error)))
    }
}

impl Template {
    fn answer(&self, found: &Match<'_>) -> Result<Step, String> {
        if self.rcode == Rcode::SERVFAIL {
            return Ok(Step::Reply(Reply::code(Rcode::SERVFAIL, NAME)));
        }
        let records = |section, texts: &[RecordText]| -> Result<Vec<Record>, String> {
            texts.iter().map(|text| self.record(section, text, found)).collect()
        };
        let reply = Reply {
            rcode: self.rcode,
            authoritative: true,
            plugin: NAME,
            answer: records("answer", &self.answer)?,
            authority: records("authority", &self.authority)?,
            additional: records("additional", &self.additional)?,
            ..Reply::default()
        };
        let alias = match reply.answer.last().map(Record::data) {
            Some(Data::Cname(alias)) if matches!(found.query.qtype, Rtype::A | Rtype::AAAA) => alias.cname().clone(),
            _ => return Ok(Step::Reply(reply)),
        };
        Ok(Step::Follow(reply, alias))
    }

    fn record(&self, section: &'static str, text: &RecordText, found: &Match<'_>) -> Result<Record, String> {
        let metrics = &self.metrics.template;
        let failed = |failures: &Family<FailureLabels, Counter>, error: String| {
            let MatchLabels { server, zone, view, class, r#type } = self.labels(found);
            let template = text.written.clone();
            failures.get_or_create(&FailureLabels { server, zone, view, class, r#type, section, template }).inc();
            format!("{section} {:?}: {error}", text.written)
        };
        let line = text.text.render(found).map_err(|error| failed(&metrics.template_failures, error))?;
        let record = zone_text::one(&line).map_err(|error| {
            failed(&metrics.record_failures, format!("it made {line:?}, which is no record: {error}"))
        })?;
        // Templates see the name in lower case; the client gets back the spelling that it used.
        let owner = if *record.owner() == found.query.name { &found.query.name } else { record.owner() };
        Ok(Record::new(owner.clone(), record.class(), record.ttl(), record.data().clone()))
    }

    /// The type and class of the directive where the client's have no name, so that it cannot invent labels.
    fn labels(&self, found: &Match<'_>) -> MatchLabels {
        MatchLabels {
            server: self.server.clone(),
            zone: found.zone.clone(),
            view: "",
            class: found.class.to_mnemonic_str().unwrap_or("other"),
            r#type: found.rtype.to_mnemonic_str().unwrap_or("other"),
        }
    }
}

impl Match<'_> {
    fn group(&self, index: usize) -> Option<String> {
        let Some(captures) = &self.captures else { return (index == 0).then(|| self.name.to_owned()) };
        // A group of the pattern that took no part in the match is empty.
        let group = (index < captures.len()).then(|| captures.get(index));
        group.map(|group| group.map_or(String::new(), |group| String::from_utf8_lossy(group.as_bytes()).into_owned()))
    }
}

impl Source for Match<'_> {
    fn text(&self, value: &Value) -> Option<String> {
        Some(match value {
            Value::Name => self.name.to_owned(),
            Value::Zone => self.zone.clone(),
            Value::Type => self.rtype.to_string(),
            Value::Class if self.class == Class::ANY => "ANY".to_owned(),
            Value::Class => self.class.to_string(),
            Value::Remote => IpAddr::to_string(&self.query.arrival.client.ip()),
            Value::Match(index) => return self.group(*index),
            Value::Group(name) => return self.group(name.parse().ok().or_else(|| group_index(self.regex?, name))?),
            Value::Literal(_) | Value::ParseInt(..) => return None,
        })
    }
}

/// The number of a named group.
fn group_index(regex: &Regex, name: &str) -> Option<usize> {
    regex.capture_names().position(|known| known == Some(name))
}
