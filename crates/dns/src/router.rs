//! From a query to the server block that is responsible for it, and through that block's chain of plugins.

use std::sync::Arc;

use domain::base::iana::{Class, Rcode};
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
        let Some((_, chain)) = site.filter(|_| query.qclass == Class::IN) else {
            return Progress::Done(Reply::code(Rcode::REFUSED, ""));
        };
        for (index, plugin) in chain.iter().enumerate() {
            match plugin.ask(query) {
                Step::Next => {}
                Step::Reply(reply) => return Progress::Done(finish(&chain[..index], query, reply)),
                Step::Wait(reply) => return later(chain, index, query, reply),
                Step::Follow(alias, _) if query.depth >= MAX_ALIASES => {
                    return Progress::Done(finish(&chain[..index], query, alias));
                }
                Step::Follow(alias, target) => match self.begin(&query.follow(target)) {
                    Progress::Done(found) => {
                        return Progress::Done(finish(&chain[..index], query, join(alias, found)));
                    }
                    Progress::Waiting(found) => {
                        return later(chain, index, query, found.map(|found| join(alias, found)).boxed());
                    }
                },
            }
        }
        Progress::Done(finish(chain, query, Reply::code(Rcode::REFUSED, "")))
    }

    /// Answers a query, however long it takes; every plugin bounds its own time.
    pub async fn resolve(self: &Arc<Self>, query: &Query) -> Reply {
        match self.begin(query) {
            Progress::Done(reply) => reply,
            Progress::Waiting(reply) => reply.await,
        }
    }
}

fn later(chain: &Chain, index: usize, query: &Query, reply: BoxFuture<'static, Reply>) -> Progress {
    let (chain, query) = (chain.clone(), query.clone());
    Progress::Waiting(async move { finish(&chain[..index], &query, reply.await) }.boxed())
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
