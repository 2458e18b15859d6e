//! `header`: sets and clears flags of questions and answers.

use super::{Plugin, Step};
use crate::{
    corefile::{CorefileError, Directive},
    message::{Query, Reply},
    program::SiteBuilder,
    router::{Progress, Rest},
};

const NAME: &str = "header";

/// `header { query set|clear rd; response set|clear aa|ra… }`
#[derive(Default)]
struct Header {
    recursion_desired: Option<bool>,
    authoritative: Option<bool>,
    recursion_available: Option<bool>,
}

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    site.only_once(directive)?;
    directive.arguments(0, 0)?;
    let mut header = Header::default();
    for option in &directive.body {
        let selector = option.name().to_ascii_lowercase();
        if !["query", "response"].contains(&selector.as_str()) {
            return Err(option.unknown_option(NAME));
        }
        let (action, flags) = option.plain(2, usize::MAX)?.split_at(1);
        let value = match action[0].text.to_ascii_lowercase().as_str() {
            "set" => true,
            "clear" => false,
            other => return Err(action[0].error(format!("{NAME}: {other:?} is neither set nor clear"))),
        };
        for flag in flags {
            match (selector.as_str(), flag.text.to_ascii_lowercase().as_str()) {
                ("query", "rd") => header.recursion_desired = Some(value),
                ("response", "aa") => header.authoritative = Some(value),
                ("response", "ra") => header.recursion_available = Some(value),
                (selector, other @ ("aa" | "ra" | "rd")) => {
                    return Err(flag.error(format!("{NAME}: {other} of a {selector} is not supported yet")));
                }
                (_, other) => return Err(flag.error(format!("{NAME}: unknown flag {other:?}"))),
            }
        }
    }
    if directive.body.is_empty() {
        return Err(directive.error(format!("{NAME} needs at least one line, such as \"response set ra\"")));
    }
    site.add(header);
    Ok(())
}

impl Header {
    fn change(reply: &mut Reply, authoritative: Option<bool>, recursion_available: Option<bool>) {
        reply.authoritative = authoritative.unwrap_or(reply.authoritative);
        reply.recursion_available = recursion_available.unwrap_or(reply.recursion_available);
    }
}

impl Plugin for Header {
    fn name(&self) -> &'static str {
        NAME
    }

    fn ask(&self, query: &Query, rest: &Rest<'_>) -> Step {
        let Some(recursion_desired) = self.recursion_desired.filter(|wanted| *wanted != query.recursion_desired) else {
            return Step::Next;
        };
        let (authoritative, available) = (self.authoritative, self.recursion_available);
        match rest.begin(&Query { recursion_desired, ..query.clone() }) {
            Progress::Done(mut reply) => {
                Self::change(&mut reply, authoritative, available);
                Step::Reply(reply)
            }
            Progress::Waiting(reply) => Step::Wait(Box::pin(async move {
                let mut reply = reply.await;
                Self::change(&mut reply, authoritative, available);
                reply
            })),
        }
    }

    fn answered(&self, _query: &Query, reply: &mut Reply) {
        Self::change(reply, self.authoritative, self.recursion_available);
    }
}
