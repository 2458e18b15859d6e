//! The plugins, and the table that says which directives there are and in which order they run.

pub(crate) mod acl;
mod any;
mod autopath;
mod bind;
mod bufsize;
mod cache;
mod chaos;
mod errors;
mod fall;
mod file;
mod forward;
mod header;
mod health;
pub(crate) mod hosts;
mod kubernetes;
mod loadbalance;
pub(crate) mod local;
mod log;
mod r#loop;
mod minimal;
pub(crate) mod pattern;
mod prometheus;
mod ready;
mod reload;
mod rewrite;
pub(crate) mod template;
mod watched;
mod whoami;

use std::sync::Arc;

use domain::base::iana::Class;
use futures_util::future::BoxFuture;

pub use cache::Cache;
pub(crate) use cache::CacheMetrics;
pub(crate) use forward::ForwardMetrics;
pub use kubernetes::{Kubernetes, PodMode};

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

    /// Whether it is asked questions of this class. Few plugins know another than IN; the others pass them on.
    fn knows(&self, class: Class) -> bool {
        class == Class::IN
    }

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
    ("bufsize", Yes(bufsize::setup)),
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
    ("local", Yes(local::setup)),
    ("dns64", NotYet),
    ("any", Yes(any::setup)),
    ("chaos", Yes(chaos::setup)),
    ("loadbalance", Yes(loadbalance::setup)),
    ("tsig", NotYet),
    ("rewrite", Yes(rewrite::setup)),
    ("autopath", Yes(autopath::setup)),
    ("acl", Yes(acl::setup)),
    ("cache", Yes(cache::setup)),
    ("header", Yes(header::setup)),
    ("dnssec", NotYet),
    ("tls", NotYet),
    ("minimal", Yes(minimal::setup)),
    ("template", Yes(template::setup)),
    ("transfer", NotYet),
    ("hosts", Yes(hosts::setup)),
    ("route53", NotYet),
    ("azure", NotYet),
    ("clouddns", NotYet),
    ("k8s_external", NotYet),
    ("kubernetes", Yes(kubernetes::setup)),
    ("file", Yes(file::setup)),
    ("auto", NotYet),
    ("secondary", NotYet),
    ("etcd", NotYet),
    ("loop", Yes(r#loop::setup)),
    ("forward", Yes(forward::setup)),
    ("grpc", NotYet),
    ("erratic", NotYet),
    ("whoami", Yes(whoami::setup)),
    ("on", NotYet),
    ("sign", NotYet),
    ("view", NotYet),
    ("nomad", NotYet),
];
