//! From a parsed Corefile to what the server runs. Nothing is opened or contacted here, so a Corefile can be checked
//! by building it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use crate::{
    cluster::Cluster,
    corefile::{Block, Corefile, CorefileError, Directive, Word, ZoneKey},
    message::DnsName,
    metrics::Metrics,
    plugin::{PLUGINS, Plugin, Support},
    random::Random,
    router::{Chain, Router},
};

/// What outlives a reload and is shared by all plugins.
#[derive(Clone)]
pub struct Environment {
    /// The address that ports without one are opened on.
    pub listen: IpAddr,
    /// The state of the cluster.
    pub cluster: Arc<Cluster>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The source of unpredictable numbers.
    pub random: Arc<Random>,
}

impl Environment {
    /// An environment with an empty cluster that listens on `listen`.
    pub fn new(listen: IpAddr) -> Self {
        Self { listen, cluster: Arc::default(), metrics: Arc::default(), random: Arc::default() }
    }
}

/// A page that is served over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Page {
    /// `/health`: the process is alive.
    Health,
    /// `/ready`: every plugin can do its work.
    Ready,
    /// `/metrics`: the counters in Prometheus' text format.
    Metrics,
}

impl Page {
    /// The path.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Health => "/health",
            Self::Ready => "/ready",
            Self::Metrics => "/metrics",
        }
    }
}

/// What a `kubernetes` directive needs to be fed with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterNeeds {
    /// Pods too: `pods verified`.
    pub pods: bool,
    /// Option `kubeconfig`; otherwise the pod's service account.
    pub kubeconfig: Option<PathBuf>,
}

/// A Corefile made ready to run.
#[derive(Default)]
pub struct Program {
    /// What to serve on each DNS address; port 0 lets the system pick one.
    pub routers: BTreeMap<SocketAddr, Arc<Router>>,
    /// What to serve over HTTP on each address.
    pub pages: BTreeMap<SocketAddr, BTreeSet<Page>>,
    /// How long to go on serving after the order to stop.
    pub lameduck: Duration,
    /// How often to look for a changed Corefile; `None` for never.
    pub reload: Option<Duration>,
    /// Whether the cluster must be watched, and what of it.
    pub cluster: Option<ClusterNeeds>,
}

impl Program {
    /// Parses and builds a Corefile.
    ///
    /// # Errors
    /// The first thing that is wrong or not supported, with line and column.
    pub fn new(corefile: &str, environment: &Environment) -> Result<Self, CorefileError> {
        let mut program = Self::default();
        let mut sites: BTreeMap<SocketAddr, Vec<(ZoneKey, Chain)>> = BTreeMap::new();
        for block in Corefile::parse(corefile)?.blocks {
            let (chain, addresses) = program.build(&block, environment)?;
            for (key, address) in block.keys.iter().flat_map(|key| addresses.iter().map(move |address| (key, *address)))
            {
                let sites = sites.entry(SocketAddr::new(address, key.port)).or_default();
                if let Some((other, _)) = sites.iter().find(|(other, _)| other.zone == key.zone) {
                    let message = format!("zone {key} is already served by the block at {}", other.at);
                    return Err(CorefileError { at: key.at, message });
                }
                sites.push((key.clone(), chain.clone()));
            }
        }
        let router = |sites: Vec<(ZoneKey, Chain)>| {
            Router::new(sites.into_iter().map(|(key, chain)| (key.zone, chain)).collect())
        };
        program.routers = sites.into_iter().map(|(address, sites)| (address, Arc::new(router(sites)))).collect();
        Ok(program)
    }

    /// Whether every plugin can do its work.
    pub fn is_ready(&self) -> bool {
        let mut chains = self.routers.values().flat_map(|router| router.chains());
        chains.all(|chain| chain.iter().all(|plugin| plugin.is_ready()))
    }

    /// The plugins of a server block, and the addresses it is served on.
    fn build(&mut self, block: &Block, environment: &Environment) -> Result<(Chain, Vec<IpAddr>), CorefileError> {
        let mut found: Vec<(usize, &Directive, &Support)> = Vec::new();
        for directive in &block.directives {
            let row = PLUGINS.iter().enumerate().find(|(_, (name, _))| *name == directive.name());
            match row {
                Some((order, (_, support @ Support::Yes(_)))) => found.push((order, directive, support)),
                Some((_, (name, Support::NotYet))) => {
                    return Err(directive.error(format!("directive {name:?} is not supported yet")));
                }
                None => return Err(directive.error(format!("unknown directive {:?}", directive.name()))),
            }
        }
        found.sort_by_key(|(order, ..)| *order);
        let mut site = SiteBuilder { environment, block, program: self, plugins: Vec::new(), addresses: Vec::new() };
        for (_, directive, support) in found {
            if let Support::Yes(setup) = support {
                setup(directive, &mut site)?;
            }
        }
        let addresses = if site.addresses.is_empty() { vec![environment.listen] } else { site.addresses };
        Ok((site.plugins.into(), addresses))
    }
}

/// A server block in the making: what the set-up functions of plugins work on.
pub(crate) struct SiteBuilder<'a> {
    pub(crate) environment: &'a Environment,
    pub(crate) block: &'a Block,
    pub(crate) program: &'a mut Program,
    plugins: Vec<Arc<dyn Plugin>>,
    /// The addresses to serve the block on; none for the environment's.
    pub(crate) addresses: Vec<IpAddr>,
}

impl SiteBuilder<'_> {
    /// Puts a plugin at the end of the chain.
    pub(crate) fn add(&mut self, plugin: impl Plugin) {
        self.plugins.push(Arc::new(plugin));
    }

    /// The zones of the server block.
    pub(crate) fn zones(&self) -> Vec<DnsName> {
        self.block.keys.iter().map(|key| key.zone.clone()).collect()
    }

    /// The server block as CoreDNS's metrics name it.
    pub(crate) fn server_label(&self) -> Arc<str> {
        let port = self.block.keys.first().map_or(0, |key| key.port);
        format!("dns://:{port}").into()
    }

    /// The zones that `words` name; none means those of the server block.
    pub(crate) fn zones_or_own(&self, words: &[Word]) -> Result<Vec<DnsName>, CorefileError> {
        match words {
            [] => Ok(self.zones()),
            words => zones(words),
        }
    }

    /// Serves a page on the address that `word` spells (`:8080`, `127.0.0.1:8080`), or on `default_port`.
    pub(crate) fn page(&mut self, page: Page, word: Option<&Word>, default_port: u16) -> Result<(), CorefileError> {
        let listen = self.environment.listen;
        let address = match word {
            None => SocketAddr::new(listen, default_port),
            Some(word) => match word.text.strip_prefix(':') {
                Some(port) => port.parse().map(|port| SocketAddr::new(listen, port)).ok(),
                None => word.text.parse().ok(),
            }
            .ok_or_else(|| word.error(format!("{:?} is not an address such as :8080 or 127.0.0.1:8080", word.text)))?,
        };
        self.program.pages.entry(address).or_default().insert(page);
        Ok(())
    }
}

/// The zones that `words` name.
pub(crate) fn zones(words: &[Word]) -> Result<Vec<DnsName>, CorefileError> {
    let zones: Result<Vec<_>, _> = words.iter().map(crate::corefile::zone_names).collect();
    Ok(zones?.concat())
}

/// The first of `zones` with the most labels that `name` is in.
pub(crate) fn nearest<'a>(zones: &'a [DnsName], name: &DnsName) -> Option<&'a DnsName> {
    zones.iter().filter(|zone| name.ends_with(*zone)).max_by_key(|zone| zone.label_count())
}
