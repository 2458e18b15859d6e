//! From a query to the server block that is responsible for it, and through that block's chain of plugins.

use std::{ops::Range, sync::Arc};

use domain::base::iana::Rcode;
use futures_util::{FutureExt, future::BoxFuture};

use crate::{
    message::{DnsName, Query, Reply},
    plugin::{Plugin, Step},
};

/// How many aliases are followed for one query.
const MAX_ALIASES: u8 = 8;

/// The plugins of one server block, in the order in which they see a query.
pub type Chain = Arc<[Arc<dyn Plugin>]>;

/// What is served on one port: the server blocks by zone.
pub struct Router {
    /// The zones with the most labels first, so that the first match is the nearest.
    sites: Vec<(DnsName, Chain)>,
}

/// An answer, now or later.
pub enum Progress {
    /// Now.
    Done(Reply),
    /// Later: it depends on someone else.
    Waiting(BoxFuture<'static, Reply>),
}

impl Router {
    /// A router for these zones.
    pub fn new(mut sites: Vec<(DnsName, Chain)>) -> Self {
        sites.sort_by_key(|(zone, _)| std::cmp::Reverse(zone.label_count()));
        Self { sites }
    }

    /// The chains, one a zone.
    pub fn chains(&self) -> impl Iterator<Item = &Chain> {
        self.sites.iter().map(|(_, chain)| chain)
    }

    /// Answers a query at once where nobody else has to be asked.
    pub fn begin(self: &Arc<Self>, query: &Query) -> Progress {
        let site = self.sites.iter().find(|(zone, _)| query.name.ends_with(zone));
        match site {
            Some((_, chain)) => Rest { router: self, chain, next: 0 }.begin(query),
            None => Progress::Done(Reply::code(Rcode::REFUSED, "")),
        }
    }

    /// Answers a query, however long it takes; every plugin bounds its own time.
    pub async fn resolve(self: &Arc<Self>, query: &Query) -> Reply {
        match self.begin(query) {
            Progress::Done(reply) => reply,
            Progress::Waiting(reply) => reply.await,
        }
    }
}

/// The plugins of a chain that have not seen the query yet: how a plugin asks them itself, once or several times, for
/// the same question or another.
pub struct Rest<'a> {
    router: &'a Arc<Router>,
    chain: &'a Chain,
    next: usize,
}

/// A [`Rest`] to keep: for work that goes on after the answer.
#[derive(Clone)]
pub struct OwnedRest {
    router: Arc<Router>,
    chain: Chain,
    next: usize,
}

impl Rest<'_> {
    /// What the plugins after this one answer. Those before it do not see it; they see what this one makes of it.
    pub fn begin(&self, query: &Query) -> Progress {
        self.begin_noting_alias(query).0
    }

    /// The same, and whether it is an alias of ours with what that leads to: then only a part of it comes from elsewhere.
    pub fn begin_noting_alias(&self, query: &Query) -> (Progress, bool) {
        let Self { router, chain, next } = *self;
        for (index, plugin) in chain.iter().enumerate().skip(next).filter(|(_, plugin)| plugin.knows(query.qclass)) {
            let passed = next..index;
            match plugin.ask(query, &Rest { next: index + 1, ..*self }) {
                Step::Next => {}
                Step::Reply(reply) => return (Progress::Done(finish(&chain[passed], query, reply)), false),
                Step::Wait(reply) => return (later(chain, passed, query, reply), false),
                Step::Follow(alias, _) if query.depth >= MAX_ALIASES => {
                    return (Progress::Done(finish(&chain[passed], query, alias)), true);
                }
                Step::Follow(alias, target) => {
                    let progress = match router.begin(&query.follow(target)) {
                        Progress::Done(found) => Progress::Done(finish(&chain[passed], query, join(alias, found))),
                        Progress::Waiting(found) => {
                            later(chain, passed, query, found.map(|found| join(alias, found)).boxed())
                        }
                    };
                    return (progress, true);
                }
            }
        }
        (Progress::Done(finish(&chain[next..], query, Reply::code(Rcode::REFUSED, ""))), false)
    }

    /// The name of the first of them.
    pub fn first(&self) -> Option<&'static str> {
        self.chain.get(self.next).map(|plugin| plugin.name())
    }

    /// All of this, to keep.
    pub fn owned(&self) -> OwnedRest {
        OwnedRest { router: self.router.clone(), chain: self.chain.clone(), next: self.next }
    }
}

impl OwnedRest {
    /// What the plugins after this one answer, however long it takes.
    pub async fn resolve(&self, query: &Query) -> Reply {
        // Not across the await: what is borrowed could not be sent.
        let progress = Rest { router: &self.router, chain: &self.chain, next: self.next }.begin(query);
        match progress {
            Progress::Done(reply) => reply,
            Progress::Waiting(reply) => reply.await,
        }
    }
}

fn later(chain: &Chain, passed: Range<usize>, query: &Query, reply: BoxFuture<'static, Reply>) -> Progress {
    let (chain, query) = (chain.clone(), query.clone());
    Progress::Waiting(async move { finish(&chain[passed], &query, reply.await) }.boxed())
}

/// Shows an answer to the plugins that let the query pass, the last of them first.
fn finish(passed: &[Arc<dyn Plugin>], query: &Query, mut reply: Reply) -> Reply {
    passed.iter().rev().for_each(|plugin| plugin.answered(query, &mut reply));
    reply
}

/// Adds what an alias leads to. If that is nothing, the alias alone is the answer.
fn join(mut alias: Reply, found: Reply) -> Reply {
    if found.rcode == Rcode::NOERROR {
        alias.answer.extend(found.answer);
    }
    alias.error = alias.error.or(found.error);
    alias
}
