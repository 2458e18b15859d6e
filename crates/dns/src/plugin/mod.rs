//! The plugins, and the table that says which directives there are and in which order they run.

mod bind;
mod cache;
mod errors;
mod forward;
mod health;
mod kubernetes;
mod loadbalance;
mod log;
mod r#loop;
mod prometheus;
mod ready;
mod reload;

use std::sync::Arc;

use futures_util::future::BoxFuture;

pub use cache::Cache;
pub(crate) use cache::CacheMetrics;
pub(crate) use forward::ForwardMetrics;
pub use kubernetes::{Kubernetes, PodMode};
pub use loadbalance::LoadBalance;

use crate::{
    corefile::{CorefileError, Directive},
    message::{DnsName, Query, Reply},
    program::SiteBuilder,
    router::{Rest, Router},
};

/// What a plugin does with a query.
pub enum Step {
    /// Leaves it to the plugins after it.
    Next,
    /// Answers it.
    Reply(Reply),
    /// Answers it later.
    Wait(BoxFuture<'static, Reply>),
    /// Answers with an alias; what its target holds is to be added, by asking from the start.
    Follow(Reply, DnsName),
}

/// One plugin of a server block's chain, set up as its directive says.
///
/// A query passes the chain from the first plugin to the one that answers; the answer passes the plugins before that
/// one in the opposite order.
pub trait Plugin: Send + Sync + 'static {
    /// The directive's name.
    fn name(&self) -> &'static str;

    /// Sees a query on its way in; `rest` are the plugins after it. Runs inside the Tokio runtime, but must not block.
    fn ask(&self, _query: &Query, _rest: &Rest<'_>) -> Step {
        Step::Next
    }

    /// Sees an answer on its way out.
    fn answered(&self, _query: &Query, _reply: &mut Reply) {}

    /// Whether it can do its work yet: what `ready` reports.
    fn is_ready(&self) -> bool {
        true
    }

    /// Work of its own while the server runs.
    fn background(&self, _router: &Arc<Router>) -> Option<BoxFuture<'static, ()>> {
        None
    }
}

/// Sets a directive up: adds a plugin to the site, or a setting to the program.
pub(crate) type Setup = fn(&Directive, &mut SiteBuilder<'_>) -> Result<(), CorefileError>;

/// A directive of CoreDNS.
pub(crate) enum Support {
    /// There is one here too.
    Yes(Setup),
    /// There is none here yet.
    NotYet,
}
use Support::{NotYet, Yes};

/// Every directive of CoreDNS, in the order in which its plugins see a query, whatever the order in the Corefile
/// (CoreDNS 1.14, `plugin.cfg`).
pub(crate) const PLUGINS: &[(&str, Support)] = &[
    ("root", NotYet),
    ("metadata", NotYet),
    ("geoip", NotYet),
    ("cancel", NotYet),
    ("proxyproto", NotYet),
    ("quic", NotYet),
    ("grpc_server", NotYet),
    ("https", NotYet),
    ("https3", NotYet),
    ("timeouts", NotYet),
    ("multisocket", NotYet),
    ("reload", Yes(reload::setup)),
    ("nsid", NotYet),
    ("bufsize", NotYet),
    ("bind", Yes(bind::setup)),
    ("debug", NotYet),
    ("trace", NotYet),
    ("ready", Yes(ready::setup)),
    ("health", Yes(health::setup)),
    ("pprof", NotYet),
    ("shed", NotYet),
    ("prometheus", Yes(prometheus::setup)),
    ("errors", Yes(errors::setup)),
    ("log", Yes(log::setup)),
    ("dnstap", NotYet),
    ("local", NotYet),
    ("dns64", NotYet),
    ("any", NotYet),
    ("chaos", NotYet),
    ("loadbalance", Yes(loadbalance::setup)),
    ("tsig", NotYet),
    ("rewrite", NotYet),
    ("autopath", NotYet),
    ("acl", NotYet),
    ("cache", Yes(cache::setup)),
    ("header", NotYet),
    ("dnssec", NotYet),
    ("tls", NotYet),
    ("minimal", NotYet),
    ("template", NotYet),
    ("transfer", NotYet),
    ("hosts", NotYet),
    ("route53", NotYet),
    ("azure", NotYet),
    ("clouddns", NotYet),
    ("k8s_external", NotYet),
    ("kubernetes", Yes(kubernetes::setup)),
    ("file", NotYet),
    ("auto", NotYet),
    ("secondary", NotYet),
    ("etcd", NotYet),
    ("loop", Yes(r#loop::setup)),
    ("forward", Yes(forward::setup)),
    ("grpc", NotYet),
    ("erratic", NotYet),
    ("whoami", NotYet),
    ("on", NotYet),
    ("sign", NotYet),
    ("view", NotYet),
    ("nomad", NotYet),
];
