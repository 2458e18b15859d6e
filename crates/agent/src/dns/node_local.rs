//! Answering on a node itself, in place of NodeLocal DNSCache (`node-cache` of github.com/kubernetes/dns): at addresses
//! that exist on every node alike, past connection tracking and so past kube-proxy.
//!
//! Addresses are there from the start; packets are taken over only once there are answers, and given back before they
//! end, so that until then and from then on kube-proxy leads to the cluster's other servers.

mod keeper;
mod network;

use std::{
    future,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use clap::ArgAction::Set;
use hyper::StatusCode;
use podwire_dns::program::Program;
use podwire_kernel::{nftables, route::RouteSocket};
use prometheus_client::metrics::counter::Counter;
use tokio::{net::TcpListener, task::AbortHandle};
use tracing::{info, warn};

use self::{
    keeper::{Keeper, Stage},
    network::Network,
};
use crate::{
    flags::go_bool,
    http,
    metrics::{Counters, Make},
};

/// How often to look whether there are answers.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Flags of `node-cache`. Switches are read as Go reads them: `-name`, `-name=true`, `-name=false`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "On a node, as NodeLocal DNSCache")]
pub struct Flags {
    /// Answer at these addresses, on this node for this node; usually 169.254.20.10 and the cluster DNS Service's
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    pub localip: Vec<IpAddr>,
    /// The dummy interface that holds them; on lo where the kernel has none
    #[arg(long, value_name = "NAME", default_value = "nodelocaldns")]
    pub interfacename: String,
    /// Make the interface
    #[arg(long, value_name = "BOOL", action = Set, value_parser = go_bool, default_value = "true")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub setupinterface: bool,
    /// Make the rules (nftables, whatever the name) that keep queries out of connection tracking
    #[arg(long, value_name = "BOOL", action = Set, value_parser = go_bool, default_value = "true")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub setupiptables: bool,
    /// Leave both where they are at the end
    #[arg(long, value_name = "BOOL", action = Set, value_parser = go_bool, default_value = "false")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub skipteardown: bool,
    /// Remove what an earlier run left in the kernel, and exit
    #[arg(long, value_name = "BOOL", action = Set, value_parser = go_bool, default_value = "false")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub cleanup: bool,
    /// The Corefile with placeholders; goes before -conf where it exists
    #[arg(long, value_name = "FILE", default_value = "/etc/coredns/Corefile.base")]
    pub basecorefile: PathBuf,
    /// The Service whose address stands for __PILLAR__CLUSTER__DNS__
    #[arg(long, value_name = "NAME", default_value = "kube-dns")]
    pub upstreamsvc: String,
    /// Port of the Corefile's directive health, whose probes are not tracked either
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub health_port: u16,
    /// Where to answer /metrics about interface and rules; port 0 for nowhere
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:9353")]
    pub metrics_listen_address: SocketAddr,
    /// Name of this node's Node object, to watch only its Pods for autopath
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub hostname_override: Option<String>,
    #[command(flatten)]
    unused: Unused,
}

/// Flags of `node-cache` that say nothing here: changes are told by the kernel, and the Corefile is looked at as its
/// directive `reload` says.
#[derive(Debug, Clone, Default, clap::Args)]
struct Unused {
    #[arg(long, hide = true)]
    syncinterval: Option<String>,
    #[arg(long, hide = true)]
    kubednscm: Option<String>,
    #[arg(long, hide = true, action = Set, value_parser = go_bool, default_value = "false")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    reloadwithsignal: bool,
}

impl Flags {
    fn network(&self) -> Network {
        Network {
            addresses: self.localip.clone(),
            interface: self.setupinterface.then(|| self.interfacename.clone()),
            rules: self.setupiptables,
            health_port: self.health_port,
        }
    }
}

/// What is counted, under the names of `node-cache` where it has one.
#[derive(Debug, Clone)]
struct Metrics {
    errors: Counters,
    repairs: Counter,
}

/// The node-local part of the server; nothing at all without `-localip`.
pub struct NodeLocal {
    flags: Flags,
    keeper: Option<Keeper>,
    has_taken_over: bool,
    page: Option<AbortHandle>,
}

impl NodeLocal {
    /// Makes the addresses, and keeps them.
    ///
    /// # Errors
    /// The kernel refuses them.
    pub fn start(flags: Flags) -> anyhow::Result<Self> {
        let mut node_local = Self { flags, keeper: None, has_taken_over: false, page: None };
        let flags = &node_local.flags;
        if flags.localip.is_empty() {
            return Ok(node_local);
        }
        if flags.unused.kubednscm.is_some() {
            warn!("-kubednscm has no effect: stub domains and upstream servers are the Corefile's");
        }
        let mut make = Make::default();
        let errors = make.put("coredns_nodecache_setup_errors", "Failures to set the network up", Counters::default());
        let repairs =
            make.counter("podwire_dns_network_repairs", "Times that somebody else removed the network set up");
        let metrics = Metrics { errors, repairs };
        let (address, registered) = (flags.metrics_listen_address, make.done());
        let page = async move {
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    let answer = move |path: &str| match path {
                        "/metrics" => registered.page(),
                        _ => http::text(StatusCode::NOT_FOUND, "not found"),
                    };
                    http::serve(listener, answer).await;
                }
                Err(error) => warn!("no metrics of the network at {address}: {error}"),
            }
        };
        node_local.keeper = Some(Keeper::start(flags.network(), metrics)?);
        node_local.page = (address.port() != 0).then(|| tokio::spawn(page).abort_handle());
        Ok(node_local)
    }

    /// This node's name, where only its own Pods ask.
    pub fn node(&self) -> Option<&str> {
        self.keeper.as_ref()?;
        self.flags.hostname_override.as_deref().filter(|name| !name.is_empty())
    }

    /// Serves what is to be served on all addresses only on the node-local ones: other programs of the node may have the
    /// same port on theirs.
    pub fn at_its_addresses(&self, mut program: Program) -> Program {
        let everywhere: Vec<_> = program.routers.keys().copied().filter(|at| at.ip().is_unspecified()).collect();
        for named in everywhere.into_iter().filter(|_| self.keeper.is_some()) {
            let Some(router) = program.routers.remove(&named) else { continue };
            for address in &self.flags.localip {
                let here = SocketAddr::new(*address, named.port());
                program.routers.entry(here).or_insert_with(|| router.clone());
            }
        }
        program
    }

    /// Resolves when queries can be taken over and have not been; never without the node-local part.
    pub async fn waits_for(&self, is_ready: impl Fn() -> bool) {
        if self.keeper.is_none() || self.has_taken_over {
            return future::pending().await;
        }
        while !is_ready() {
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Takes this node's queries over from kube-proxy, or gives them back.
    pub fn take_over(&mut self, take: bool) {
        let Some(keeper) = &self.keeper else { return };
        self.has_taken_over = take;
        // At the end they are given back only where nothing is to stay as it is.
        if take || !self.flags.skipteardown {
            keeper.want(if take { Stage::TakenOver } else { Stage::Addresses });
        }
    }

    /// Removes everything, unless it is to stay.
    pub async fn end(self) {
        if let Some(page) = self.page {
            page.abort();
        }
        let Some(keeper) = self.keeper else { return };
        if !self.flags.skipteardown {
            keeper.want(Stage::Nothing);
        }
        // Netlink is synchronous; nothing else is left to do here.
        let _ = tokio::task::spawn_blocking(move || keeper.end()).await;
    }
}

/// Removes what any earlier run left.
///
/// # Errors
/// The kernel refuses it.
pub fn clean_up(flags: &Flags) -> anyhow::Result<()> {
    let (mut route, mut nftables) = open()?;
    flags.network().remove(&mut route, &mut nftables).context("removing what an earlier run left")?;
    info!("nothing of it is left in the kernel");
    Ok(())
}

/// The kernel, in the network namespace that the calling thread is in.
fn open() -> anyhow::Result<(RouteSocket, nftables::Kernel)> {
    Ok((RouteSocket::open()?, nftables::Kernel::open()?))
}

#[cfg(test)]
impl Flags {
    /// As on a command line.
    pub fn of(line: &str) -> Self {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            flags: Flags,
        }
        <Cli as clap::Parser>::parse_from(["dns"].into_iter().chain(line.split_whitespace())).flags
    }
}
