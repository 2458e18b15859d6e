//! Patterns of the Corefile: regular expressions, and what names they are compared with.

use std::{borrow::Cow, sync::Arc};

use regex::bytes::{Regex, RegexBuilder};

use crate::{
    corefile::{CorefileError, Word},
    message::DnsName,
};

/// The longest regular expression (CoreDNS), bytes.
const MAX_REGEX: usize = 10_000;

/// Compiles a regular expression as Go spells it: classes such as `\d` are ASCII. It takes time linear in the text.
pub(crate) fn regex(word: &Word) -> Result<Regex, CorefileError> {
    if word.text.len() > MAX_REGEX {
        return Err(word.error(format!("a regular expression of more than {MAX_REGEX} bytes")));
    }
    RegexBuilder::new(&word.text).unicode(false).build().map_err(|error| {
        // The last line says what is wrong, those before it point into the pattern.
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
        word.error(format!("{:?} is not a regular expression: {reason}", word.text))
    })
}

/// A name as patterns see it: in lower case, with the dot at its end.
pub(crate) fn name_text(name: &DnsName) -> String {
    name.fmt_with_dot().to_string().to_ascii_lowercase()
}

/// Part of a name as a directive spells it, likewise.
pub(crate) fn text(word: &Word) -> String {
    let mut text = word.text.to_ascii_lowercase();
    if !text.ends_with('.') {
        text.push('.');
    }
    text
}

/// Which names a rule is about.
#[derive(Debug, Clone)]
pub(crate) enum Pattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Substring(String),
    Regex(Regex),
}

impl Pattern {
    /// The words that `kind` may be.
    pub(crate) const KINDS: [&str; 5] = ["exact", "prefix", "suffix", "substring", "regex"];

    /// The pattern that `word` spells; `kind` is one of [`Self::KINDS`].
    pub(crate) fn new(kind: &str, word: &Word) -> Result<Self, CorefileError> {
        Ok(match kind {
            "prefix" => Self::Prefix(text(word)),
            "suffix" => Self::Suffix(text(word)),
            "substring" => Self::Substring(text(word)),
            "regex" => Self::Regex(regex(word)?),
            _ => Self::Exact(text(word)),
        })
    }

    /// What a matching name becomes when `to` replaces what matched; `None` for another name.
    pub(crate) fn replace(&self, name: &str, to: &str) -> Option<String> {
        match self {
            Self::Exact(from) => (name == from).then(|| to.to_owned()),
            Self::Prefix(from) => name.strip_prefix(from.as_str()).map(|rest| format!("{to}{rest}")),
            Self::Suffix(from) => name.strip_suffix(from.as_str()).map(|rest| format!("{rest}{to}")),
            Self::Substring(from) => name.contains(from.as_str()).then(|| name.replace(from.as_str(), to)),
            Self::Regex(regex) => substitute(regex, name, to),
        }
    }

    /// Whether the name matches.
    pub(crate) fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(from) => name == from,
            Self::Prefix(from) => name.starts_with(from.as_str()),
            Self::Suffix(from) => name.ends_with(from.as_str()),
            Self::Substring(from) => name.contains(from.as_str()),
            Self::Regex(regex) => regex.is_match(name.as_bytes()),
        }
    }
}

/// `to` with `{1}` and so on replaced by the groups of a match, `{0}` by all of it; `None` without a match.
fn substitute(regex: &Regex, name: &str, to: &str) -> Option<String> {
    let captures = regex.captures(name.as_bytes())?;
    let mut result = to.to_owned();
    for (index, group) in captures.iter().enumerate() {
        let group = group.map_or(Cow::Borrowed(""), |group| String::from_utf8_lossy(group.as_bytes()));
        result = result.replace(&format!("{{{index}}}"), &group);
    }
    Some(result)
}

/// Refuses a replacement that names a group that the pattern does not have.
pub(crate) fn check_groups(regex: &Regex, to: &Word) -> Result<(), CorefileError> {
    for part in to.text.split('{').skip(1) {
        let Some((number, _)) = part.split_once('}') else { continue };
        if number.parse().is_ok_and(|number: usize| number >= regex.captures_len()) {
            return Err(to.error(format!("{{{number}}}: the pattern has {} group(s)", regex.captures_len() - 1)));
        }
    }
    Ok(())
}

/// How names of an answer are changed.
#[derive(Debug, Clone)]
pub(crate) enum Mapping {
    /// By a regular expression.
    Regex(Regex, Arc<str>),
    /// The end of a name.
    Suffix(Arc<str>, Arc<str>),
    /// A name and all below it.
    Domain(DnsName, DnsName),
}

impl Mapping {
    /// The name in its place; `None` to leave it.
    pub(crate) fn map(&self, name: &DnsName) -> Option<DnsName> {
        let text = match self {
            Self::Regex(regex, to) => substitute(regex, &name_text(name), to)?,
            Self::Suffix(from, to) => name_text(name).strip_suffix(&**from)?.to_owned() + to,
            Self::Domain(from, to) => {
                if !name.ends_with(from) {
                    return None;
                }
                let below = name.label_count() - from.label_count();
                let labels: Vec<&[u8]> = name.iter().take(below).map(|label| label.as_slice()).collect();
                return crate::message::name_below(&labels, to).ok();
            }
        };
        DnsName::bytes_from_str(&text).ok()
    }
}
