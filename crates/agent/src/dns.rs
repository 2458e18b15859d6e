//! `podwire dns`: the cluster's DNS server, as `coredns -conf Corefile`; on a node, with `-localip`, as NodeLocal
//! DNSCache's `node-cache`.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    sync::Arc,
};

use anyhow::anyhow;
use podwire_dns::{
    corefile::{Corefile, CorefileError, System},
    program::{Environment, Program},
    server::Server,
};
use podwire_kernel::route::{Route, RouteSocket};
use tracing::{error, info};

use crate::daemon::{Stop, sleep};

mod corefile;
mod feed;
mod node_local;

use corefile::Source;
use feed::Feed;
use node_local::NodeLocal;

/// Flags of `podwire dns`, as CoreDNS and `node-cache` spell them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The Corefile to serve.
    #[arg(long, value_name = "FILE", default_value = "Corefile")]
    conf: PathBuf,
    #[command(flatten)]
    node_local: node_local::Flags,
}

/// A Corefile with all that it imports, or what is wrong with it.
type Parsed = Result<Corefile, CorefileError>;

/// Serves DNS until SIGTERM or SIGINT, then for the Corefile's lame duck time.
///
/// # Errors
/// The Corefile is missing or wrong, the Kubernetes API cannot be used, or an address cannot be opened.
pub async fn run(args: Args) -> anyhow::Result<()> {
    if args.node_local.cleanup {
        return node_local::clean_up(&args.node_local);
    }
    let mut stop = Stop::new()?;
    let source = Source::new(args.conf, &args.node_local);
    let mut node_local = NodeLocal::start(args.node_local)?;
    let served = serve(&source, &mut node_local, &mut stop).await;
    // The server answers as long as anything leads to it.
    node_local.end().await;
    served.map(drop)
}

/// Serves until the lame duck time is over.
async fn serve(source: &Source, node_local: &mut NodeLocal, stop: &mut Stop) -> anyhow::Result<Server> {
    let environment = Environment {
        loader: Arc::new(System::beside(source.path())),
        interfaces: Arc::new(interface_addresses),
        ..Environment::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED))
    };
    let mut corefile = Corefile::parse(&source.read()?, &*environment.loader);
    let program = build(source, &corefile, &environment, node_local)?;
    let mut feed = Feed::start(program.cluster.clone(), &environment, node_local.node()).await?;
    let mut server = Server::start(program, environment.clone()).await?;
    loop {
        let interval = server.program().reload;
        tokio::select! {
            () = stop.asked() => break,
            () = node_local.waits_for(|| server.program().is_ready()) => node_local.take_over(true),
            () = sleep(interval) => {
                let running = (&mut server, &mut feed);
                if let Err(error) = reload(source, &mut corefile, &environment, running, node_local).await {
                    environment.metrics.count_failed_reload();
                    error!("the changed Corefile is refused, the running one stays in force: {error:#}");
                }
            }
        }
    }
    info!("stopping, after {:?} as lame duck", server.program().lameduck);
    node_local.take_over(false);
    tokio::select! {
        () = server.drain() => {}
        () = stop.asked() => {}
    }
    Ok(server)
}

fn build(
    source: &Source,
    corefile: &Parsed,
    environment: &Environment,
    node_local: &NodeLocal,
) -> anyhow::Result<Program> {
    let program = corefile.as_ref().map_err(Clone::clone).and_then(|corefile| Program::of(corefile, environment));
    let program = program.map_err(|error| anyhow!("{}:{error}", source.path().display()));
    program.map(|program| node_local.at_its_addresses(program))
}

/// The addresses of a network interface, for directive `bind`.
fn interface_addresses(name: &str) -> io::Result<Option<Vec<IpAddr>>> {
    let mut socket = RouteSocket::open().map_err(io::Error::other)?;
    let Some(link) = socket.link(name).map_err(io::Error::other)? else { return Ok(None) };
    let addresses = socket.addresses(Some(link.index)).map_err(io::Error::other)?;
    Ok(Some(addresses.iter().map(|address| address.net.addr()).collect()))
}

/// Takes the Corefile over if it, or a file that it imports, differs from `known`. A refused one is not tried again.
async fn reload(
    source: &Source,
    known: &mut Parsed,
    environment: &Environment,
    (server, feed): (&mut Server, &mut Feed),
    node_local: &NodeLocal,
) -> anyhow::Result<()> {
    // While the kubelet swaps a ConfigMap the file may be missing for a moment.
    let Ok(text) = source.read() else { return Ok(()) };
    let corefile = Corefile::parse(&text, &*environment.loader);
    if corefile == *known {
        return Ok(());
    }
    *known = corefile;
    let program = build(source, known, environment, node_local)?;
    let needs = program.cluster.clone();
    let new_feed = match needs == feed.needs {
        true => None,
        false => Some(Feed::start(needs, environment, node_local.node()).await?),
    };
    server.replace(program).await?;
    if let Some(new_feed) = new_feed {
        *feed = new_feed;
    }
    info!("took over the changed Corefile {}", source.path().display());
    Ok(())
}
