//! The directive as the Corefile spells it.

use std::str::FromStr;

use domain::base::iana::{Class, Rcode, Rtype};

use super::{NAME, RecordText, Template, Text, Value, group_index};
use crate::{
    corefile::{CorefileError, Directive, Position, Word},
    plugin::{fall::Fallthrough, pattern::regex},
    program::SiteBuilder,
    zone_text,
};

/// `template CLASS TYPE [ZONES…] { match REGEX…; answer|additional|authority RECORD…; rcode CODE; fallthrough [ZONES…] }`
pub(in crate::plugin) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let [class, rtype, names @ ..] = directive.arguments(2, usize::MAX)? else { return Ok(()) };
    let mut template = Template {
        class: any_or(class, Class::ANY, "a class")?,
        rtype: any_or(rtype, Rtype::ANY, "a record type")?,
        zones: site.zones_or_own(names)?,
        patterns: Vec::new(),
        answer: Vec::new(),
        authority: Vec::new(),
        additional: Vec::new(),
        rcode: Rcode::NOERROR,
        fallthrough: Fallthrough::default(),
        server: site.server_label(),
        metrics: site.environment.metrics.clone(),
    };
    for option in directive.body.iter().filter(|option| option.name() == "match") {
        for word in option.plain(1, usize::MAX)? {
            template.patterns.push(regex(word)?);
        }
    }
    for option in &directive.body {
        let records = |template: &Template| -> Result<Vec<_>, CorefileError> {
            option.plain(1, usize::MAX)?.iter().map(|word| record(word, template)).collect()
        };
        match option.name() {
            // CoreDNS: upstream does nothing any more.
            "match" | "upstream" => {}
            "answer" => template.answer.extend(records(&template)?),
            "authority" => template.authority.extend(records(&template)?),
            "additional" => template.additional.extend(records(&template)?),
            "rcode" => {
                let [word] = option.plain(1, 1)? else { continue };
                template.rcode = Rcode::from_str(&word.text.to_uppercase()).map_err(|_| {
                    word.error(format!("{NAME}: {:?} is not a response code such as NXDOMAIN", word.text))
                })?;
            }
            "fallthrough" => template.fallthrough = Fallthrough::new(option)?,
            "ederror" | "var" | "expr" => return Err(option.unsupported_option(NAME)),
            _ => return Err(option.unknown_option(NAME)),
        }
    }
    site.add(template);
    Ok(())
}

fn any_or<T: FromStr>(word: &Word, any: T, what: &str) -> Result<T, CorefileError> {
    match word.text.to_uppercase().as_str() {
        "ANY" => Ok(any),
        text => text.parse().map_err(|_| word.error(format!("{NAME}: {:?} is not {what}", word.text))),
    }
}

/// A record's template; one that names a group that no pattern has is refused, and so is plain text that is no record.
fn record(word: &Word, template: &Template) -> Result<RecordText, CorefileError> {
    let text = Text::parse(&word.text)
        .map_err(|(at, message)| CorefileError { at: within(word, at), message: format!("{NAME}: {message}") })?;
    for value in text.values() {
        let there = match value {
            Value::Group(name) if name.parse::<usize>().is_err() => {
                template.patterns.iter().any(|regex| group_index(regex, name).is_some())
            }
            Value::Match(index) => *index == 0 || template.patterns.iter().any(|regex| *index < regex.captures_len()),
            _ => true,
        };
        if !there {
            return Err(word.error(format!("{NAME}: no match has the group of {value:?}")));
        }
    }
    if text.values().next().is_none() {
        zone_text::one(&word.text).map_err(|error| word.error(format!("{NAME}: this is no record: {error}")))?;
    }
    Ok(RecordText { text, written: word.text.as_str().into() })
}

/// The place of a character within a word. Templates have blanks in them, so the word is in quotes.
fn within(word: &Word, index: usize) -> Position {
    let mut at = Position { column: word.at.column + 1, ..word.at };
    for character in word.text.chars().take(index) {
        match character {
            '\n' => at = Position { line: at.line + 1, column: 1, ..at },
            // In the file there is a backslash before it.
            '"' => at.column += 2,
            _ => at.column += 1,
        }
    }
    at
}
