//! `autopath`: goes through a client's search list for it. A client that is to complete names asks for
//! `www.example.org.<namespace>.svc.cluster.local` first; it gets the answer for the first name of its list that exists,
//! `www.example.org` itself at the end, behind an alias, instead of NXDOMAIN four times.

use std::{collections::VecDeque, fs, sync::Arc};

use domain::{base::iana::Rcode, rdata::Cname};
use futures_util::FutureExt;

use super::{Plugin, Step};
use crate::{
    cluster::Cluster,
    corefile::{CorefileError, Directive},
    message::{Data, DnsName, Query, Reply, name_below, record},
    metrics::Metrics,
    program::{SiteBuilder, nearest},
    router::{Progress, Rest},
};

const NAME: &str = "autopath";
/// Where the search list of the machine is, which the kubelet gives to pods besides that of the cluster.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Where the search list comes from.
enum Search {
    /// A file: one list for all.
    File(Vec<DnsName>),
    /// `@kubernetes`: that of the Pod which asks.
    Cluster { cluster: Arc<Cluster>, zones: Vec<DnsName>, machine: Vec<DnsName> },
}

struct Autopath {
    /// Only names in these zones are looked at.
    zones: Vec<DnsName>,
    search: Search,
    metrics: Arc<Metrics>,
}

impl Plugin for Autopath {
    fn name(&self) -> &'static str {
        NAME
    }

    fn ask(&self, query: &Query, rest: &Rest<'_>) -> Step {
        let Some(list) = nearest(&self.zones, &query.name).and_then(|_| self.search.list(query)) else {
            return Step::Next;
        };
        let Some(mut walk) = Walk::new(query, list, self.metrics.clone()) else { return Step::Next };
        // All that is known here is asked for at once.
        while let Some(step) = walk.next() {
            match rest.begin(&step) {
                Progress::Done(reply) => {
                    if let Some(reply) = walk.take(&step, reply) {
                        return Step::Reply(reply);
                    }
                }
                Progress::Waiting(reply) => {
                    let rest = rest.owned();
                    let walking = async move {
                        let mut found = walk.take(&step, reply.await);
                        while found.is_none() {
                            let Some(step) = walk.next() else { return walk.end() };
                            found = walk.take(&step, rest.resolve(&step).await);
                        }
                        found.unwrap_or_else(|| walk.end())
                    };
                    return Step::Wait(walking.boxed());
                }
            }
        }
        Step::Reply(walk.end())
    }
}

impl Search {
    /// The search list of whoever asks, if it is known.
    fn list(&self, query: &Query) -> Option<Vec<DnsName>> {
        match self {
            Self::File(list) => Some(list.clone()),
            Self::Cluster { cluster, zones, machine } => {
                let zone = nearest(zones, &query.name)?;
                let view = cluster.view();
                let namespace = view.namespace_of(query.arrival.client.ip())?.as_bytes();
                let own = [name_below(&[namespace, b"svc"], zone), name_below(&[b"svc"], zone)];
                let own = own.into_iter().flatten().chain([zone.clone()]);
                Some(own.chain(machine.iter().cloned()).collect())
            }
        }
    }
}

/// A way along a search list.
struct Walk {
    query: Query,
    /// How many labels the client put before the first of its list.
    labels: usize,
    left: VecDeque<DnsName>,
    /// What the name that was asked for has: the answer if nothing is found.
    first: Option<Reply>,
    metrics: Arc<Metrics>,
}

impl Walk {
    /// The walk, if the name ends with the first of the list: only then is a client at the beginning of its search.
    fn new(query: &Query, list: Vec<DnsName>, metrics: Arc<Metrics>) -> Option<Self> {
        let first = list.first().filter(|first| query.name.ends_with(first))?;
        let labels = query.name.label_count() - first.label_count();
        let left = list.into_iter().chain([DnsName::root_bytes()]).collect();
        (labels > 0).then(|| Self { query: query.clone(), labels, left, first: None, metrics })
    }

    /// The next question: names too long to be are left out, as clients do.
    fn next(&mut self) -> Option<Query> {
        let labels: Vec<&[u8]> = self.query.name.iter().take(self.labels).map(|label| label.as_slice()).collect();
        loop {
            let name = name_below(&labels, &self.left.pop_front()?).ok();
            // The one that was asked for in the client's spelling.
            let name = name.map(|name| if name == self.query.name { self.query.name.clone() } else { name });
            if let Some(name) = name {
                return Some(self.query.follow(name));
            }
        }
    }

    /// Takes what a question was answered. The client's answer, if that is one.
    fn take(&mut self, step: &Query, mut reply: Reply) -> Option<Reply> {
        if reply.rcode != Rcode::NOERROR {
            self.first.get_or_insert(reply);
            return None;
        }
        if step.name != self.query.name {
            if let Some(ttl) = reply.answer.iter().map(|record| record.ttl().as_secs()).min() {
                let alias = Data::Cname(Cname::new(step.name.clone()));
                reply.answer.insert(0, record(self.query.name.clone(), ttl, alias));
            }
            self.metrics.autopath_successes.inc();
        }
        Some(reply)
    }

    /// The answer if nothing was found: the client searches on.
    fn end(&mut self) -> Reply {
        self.first.take().unwrap_or_else(|| Reply::failure(NAME, "no name of the search list can be asked for"))
    }
}

/// `autopath [ZONES…] RESOLV-CONF|@kubernetes`
pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let [names @ .., source] = directive.plain(1, usize::MAX)? else { return Ok(()) };
    let read = |path: &str| fs::read_to_string(path).map(|text| search_list(&text));
    let search = match source.text.strip_prefix('@') {
        None => Search::File(
            read(&source.text).map_err(|error| source.error(format!("autopath: {}: {error}", source.text)))?,
        ),
        Some("kubernetes") => {
            let kubernetes = site.block.directives.iter().find(|directive| directive.name() == "kubernetes");
            let kubernetes = kubernetes.ok_or_else(|| {
                source.error("autopath @kubernetes: there is no directive kubernetes in this server block")
            })?;
            site.program.cluster.get_or_insert_default().clients = true;
            Search::Cluster {
                cluster: site.environment.cluster.clone(),
                zones: site.zones_or_own(&kubernetes.args)?,
                machine: read(RESOLV_CONF).unwrap_or_default(),
            }
        }
        Some(other) => {
            return Err(source.error(format!("autopath: @{other} has no search list; only @kubernetes has")));
        }
    };
    let zones = site.zones_or_own(names)?;
    site.add(Autopath { zones, search, metrics: site.environment.metrics.clone() });
    Ok(())
}

/// The last `search` (or `domain`) of a resolv.conf(5).
fn search_list(file: &str) -> Vec<DnsName> {
    let list = |line: &str| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| matches!(*word, "search" | "domain"))?;
        Some(words.filter(|word| *word != ".").filter_map(|word| DnsName::bytes_from_str(word).ok()).collect())
    };
    file.lines().filter_map(list).next_back().unwrap_or_default()
}
