//! The rules as the Corefile spells them.

use std::{ops::RangeInclusive, str::FromStr};

use domain::base::iana::Rcode;

use super::{Automatic, Change, Fix, NAME, Rewrite, Rule, edns::OptionRule};
use crate::{
    corefile::{CorefileError, Directive, Word},
    plugin::pattern::{Mapping, Pattern, check_groups, regex, text},
    program::SiteBuilder,
};

/// The largest TTL (RFC 2181 8), seconds.
const MAX_TTL: u32 = i32::MAX.unsigned_abs();

/// `rewrite [continue|stop] FIELD …`, or the same with FIELD and what follows on lines in braces. All lines of a server
/// block make one plugin.
pub(in crate::plugin) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    if let Some(all) = site.together(directive) {
        let rules: Result<Vec<_>, _> = all.into_iter().map(rule).collect();
        site.add(Rewrite(rules?));
    }
    Ok(())
}

/// The words of a rule that are still to be read.
pub(super) struct Words<'a> {
    directive: &'a Directive,
    rest: Vec<&'a Word>,
}

impl<'a> Words<'a> {
    /// The words of the line; those of the lines in braces follow where the line has at most the mode (CoreDNS).
    fn new(directive: &'a Directive) -> Result<Self, CorefileError> {
        let mut rest: Vec<_> = directive.args.iter().collect();
        if let Some(line) = directive.body.first().filter(|_| rest.len() > 1) {
            return Err(line.error("rewrite: the rule is complete before the brace"));
        }
        for line in &directive.body {
            rest.push(&line.name);
            rest.extend(line.arguments(0, usize::MAX)?);
            if let Some(inner) = line.body.first() {
                return Err(inner.error("rewrite: unexpected block"));
            }
        }
        rest.reverse();
        Ok(Self { directive, rest })
    }

    pub(super) fn next(&mut self, what: &str) -> Result<&'a Word, CorefileError> {
        self.rest.pop().ok_or_else(|| self.directive.error(format!("{NAME}: expected {what} at the end")))
    }

    /// Takes the next word if it is `text`.
    pub(super) fn take(&mut self, text: &str) -> bool {
        let found = self.rest.last().is_some_and(|word| word.text.eq_ignore_ascii_case(text));
        if found {
            self.rest.pop();
        }
        found
    }

    /// The pattern in front of the last `after` words; its kind may be left out.
    fn pattern(&mut self, after: usize) -> Result<(Pattern, &'a Word), CorefileError> {
        let kind = self.rest.last().map(|word| word.text.to_ascii_lowercase()).unwrap_or_default();
        let kind = Pattern::KINDS.into_iter().find(|known| *known == kind).filter(|_| self.rest.len() > after + 1);
        if kind.is_some() {
            self.rest.pop();
        } else if self.rest.len() > after + 1 {
            let word = self.next("a pattern")?;
            return Err(word.error(format!("{NAME}: {:?} is not one of {}", word.text, Pattern::KINDS.join(", "))));
        }
        let word = self.next("a name")?;
        Ok((Pattern::new(kind.unwrap_or("exact"), word)?, word))
    }

    fn value<T: FromStr>(&mut self, what: &str) -> Result<T, CorefileError> {
        let word = self.next(what)?;
        word.text.to_uppercase().parse().map_err(|_| word.error(format!("{NAME}: {:?} is not {what}", word.text)))
    }

    fn end(&self) -> Result<(), CorefileError> {
        match self.rest.last() {
            Some(word) => Err(word.error(format!("{NAME}: unexpected {:?} after the rule", word.text))),
            None => Ok(()),
        }
    }
}

fn rule(directive: &Directive) -> Result<Rule, CorefileError> {
    let mut words = Words::new(directive)?;
    let stop = !words.take("continue");
    if stop {
        words.take("stop");
    }
    let field = words.next("name, type, class, ttl, rcode or edns0")?;
    let change = match field.text.to_ascii_lowercase().as_str() {
        "name" => name(&mut words)?,
        "type" => Change::Type(words.value("a record type")?, words.value("a record type")?),
        "class" => Change::Class(words.value("a class")?, words.value("a class")?),
        "ttl" => Change::Ttl(words.pattern(1)?.0, ttl(words.next("a TTL or a range such as 30-300")?)?),
        "rcode" => Change::Rcode(words.pattern(2)?.0, rcode(&mut words)?, rcode(&mut words)?),
        "edns0" => Change::Option(OptionRule::new(&mut words)?),
        "answer" => return Err(field.error(format!("{NAME}: answer must follow a rule for a name"))),
        "cname" => return Err(field.error(format!("{NAME}: field \"cname\" is not supported yet"))),
        other => return Err(field.error(format!("{NAME}: unknown field {other:?}"))),
    };
    words.end()?;
    Ok(Rule { stop, change })
}

fn name(words: &mut Words<'_>) -> Result<Change, CorefileError> {
    let (from, _) = words.pattern(1)?;
    let to = words.next("a name")?;
    if let Pattern::Regex(regex) = &from {
        check_groups(regex, to)?;
    }
    let (mut answers, mut automatic, mut named) = (Vec::new(), None, None);
    while let Some(word) = words.rest.last().copied() {
        // Only the first answer rule needs the word.
        if !words.take("answer") && automatic.is_none() && answers.is_empty() {
            return Err(word.error(format!("{NAME}: unexpected {:?} after the rule", word.text)));
        }
        let kind = words.next("auto, name or value")?;
        match kind.text.to_ascii_lowercase().as_str() {
            "auto" => automatic = Some(word),
            "name" => {
                named = Some(kind);
                answers.push(Fix::Owner(mapping(words)?));
            }
            "value" => answers.push(Fix::Value(mapping(words)?)),
            _ => return Err(kind.error(format!("{NAME}: {:?} is not one of auto, name, value", kind.text))),
        }
    }
    if let (Some(_), Some(word)) = (automatic, named) {
        return Err(word.error(format!("{NAME}: answer auto and answer name exclude each other")));
    }
    let automatic = match &from {
        // CoreDNS: an exact rule is always taken back.
        Pattern::Exact(_) => Automatic::Name,
        Pattern::Suffix(_) if automatic.is_some() => Automatic::Suffix,
        _ if automatic.is_some() => Automatic::Name,
        _ => Automatic::No,
    };
    Ok(Change::Name { from, to: text(to), automatic, answers })
}

/// `FROM TO` of an answer rule.
fn mapping(words: &mut Words<'_>) -> Result<Mapping, CorefileError> {
    let from = regex(words.next("a regular expression")?)?;
    let to = words.next("a name")?;
    check_groups(&from, to)?;
    Ok(Mapping::Regex(from, text(to).into()))
}

/// `30`, `30-300`, `30-` or `-300`, seconds.
fn ttl(word: &Word) -> Result<RangeInclusive<u32>, CorefileError> {
    let number = |text: &str, empty: u32| match text {
        "" => Some(empty),
        text => text.parse().ok().filter(|number| *number <= MAX_TTL),
    };
    let range = match word.text.split_once('-') {
        None => word.text.parse().ok().filter(|ttl| *ttl <= MAX_TTL).map(|ttl| ttl..=ttl),
        Some(("", "")) => None,
        Some((low, high)) => number(low, 0).zip(number(high, MAX_TTL)).map(|(low, high)| low..=high),
    };
    range
        .filter(|range| !range.is_empty())
        .ok_or_else(|| word.error(format!("{NAME}: {:?} is not a TTL or a range such as 30-300", word.text)))
}

/// A response code by name or number.
fn rcode(words: &mut Words<'_>) -> Result<Rcode, CorefileError> {
    let word = words.next("a response code")?;
    let number = word.text.parse().ok().and_then(Rcode::checked_from_int);
    let named = || Rcode::from_str(&word.text.to_uppercase()).ok();
    number.or_else(named).ok_or_else(|| {
        word.error(format!("{NAME}: {:?} is not a response code such as NXDOMAIN, or its number up to 15", word.text))
    })
}
