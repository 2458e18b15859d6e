//! `podwire flanneld`: this node's part of the overlay, in place of flanneld with `--kube-subnet-mgr`.
//!
//! Node events go into [`podwire_overlay::Overlay`], which programs the kernel; this node's own annotations and
//! condition go back to the API. `subnet.env` is written last: once it is there, the CNI plugin may attach pods.

use std::{collections::BTreeMap, fs, pin::pin};

use anyhow::{Context, bail, ensure};
use futures_util::StreamExt;
use podwire_k8s::{
    Client, Event, convert,
    k8s_openapi::api::core::v1 as core,
    kube::{Api, runtime::watcher},
};
use podwire_kernel::{
    nftables,
    route::{Removed, RouteSocket},
    sysctl::{ProcSys, Sysctl},
};
use podwire_model::{Family, Lease, Name, Node};
use podwire_overlay::{
    Overlay, Site, Uplink,
    config::Config,
    lease::{self, Keys},
    masquerade,
    subnet_env::{Range, SubnetEnv},
    uplink,
};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::daemon::{Retry, Stop, sleep};

mod args;
mod healthz;
mod key;
mod links;
mod publish;

pub use args::{Args, ENVIRONMENT};
use links::Removals;

/// Runs until SIGTERM or SIGINT. The data path stays as it is then: pods keep talking, and the next run takes it over.
///
/// # Errors
/// The flags, net-conf.json or the node's facts can never work: no retry would help. What may pass (the API server
/// away, the kernel refusing) is logged and tried again.
pub async fn run(args: Args) -> anyhow::Result<()> {
    ensure!(
        args.kube_subnet_mgr,
        "only --kube-subnet-mgr is supported: pod ranges come from Node objects, not from etcd"
    );
    let path = &args.net_config_path;
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let config = key::parse(&text).with_context(|| format!("reading {}", path.display()))?;
    let client = Client::from_kubeconfig_or_cluster(args.kubeconfig_file.clone()).await?;
    let name = match args.node_name.as_deref() {
        Some(name) => name.into(),
        None => node_name(&client).await?,
    };
    info!(node = %name, networks = ?config.networks, backend = config.backend.name(), "starting");

    let nodes = Api::<core::Node>::all(client.kube());
    let mut events = pin!(podwire_k8s::watch(nodes.clone(), watcher::Config::default()));
    let mut stop = Stop::new()?;
    let mut removals = links::removals()?;
    let mut daemon = Daemon::new(args, config, name, nodes)?;
    if let (ip, port @ 1..) = (daemon.args.healthz_ip, daemon.args.healthz_port) {
        healthz::serve((ip, port).into(), daemon.ready.subscribe()).await?;
    }
    loop {
        tokio::select! {
            () = stop.asked() => break,
            event = events.next() => match event {
                Some(event) => daemon.observe(event),
                None => bail!("the watch of nodes ended"),
            },
            Some(removed) = removals.recv() => if !daemon.lost(removed, &mut removals)? { continue },
            () = sleep(daemon.retry.pause()) => {}
        }
        tokio::select! {
            () = stop.asked() => break,
            done = daemon.work() => done?,
        }
    }
    info!("stopping; the data path stays");
    Ok(())
}

/// This node's name: `NODE_NAME`, or the node of the Pod that `POD_NAME` and `POD_NAMESPACE` name.
async fn node_name(client: &Client) -> anyhow::Result<Name> {
    let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    if let Some(name) = variable("NODE_NAME") {
        return Ok(name.into());
    }
    let (Some(pod), Some(namespace)) = (variable("POD_NAME"), variable("POD_NAMESPACE")) else {
        bail!("set NODE_NAME, or POD_NAME and POD_NAMESPACE, so that this node's Node object can be found");
    };
    let found = Api::<core::Pod>::namespaced(client.kube(), &namespace).get(&pod).await;
    let found = found.with_context(|| format!("reading pod {namespace}/{pod} to learn the node's name"))?;
    let node = found.spec.and_then(|spec| spec.node_name).filter(|name| !name.is_empty());
    node.map(Name::from).with_context(|| format!("pod {namespace}/{pod} has no spec.nodeName"))
}

/// What is known, and what of it is done.
struct Daemon {
    args: Args,
    keys: Keys,
    name: Name,
    nodes: Api<core::Node>,
    routes: RouteSocket,
    /// Until the node's facts are known.
    config: Option<Config>,
    overlay: Option<Overlay>,
    me: Option<Node>,
    leases: BTreeMap<Name, Lease>,
    /// The masquerade and forward rules are in the kernel.
    rules: bool,
    /// The NetworkUnavailable condition is set.
    announced: bool,
    /// subnet.env is written: pods can be attached.
    ready: watch::Sender<bool>,
    /// Something failed: work again after its pause, even if nothing happens.
    retry: Retry,
}

impl Daemon {
    fn new(args: Args, config: Config, name: Name, nodes: Api<core::Node>) -> anyhow::Result<Self> {
        Ok(Self {
            keys: Keys::new(&args.kube_annotation_prefix)?,
            routes: RouteSocket::open()?,
            config: Some(config),
            overlay: None,
            me: None,
            leases: BTreeMap::new(),
            rules: false,
            announced: !args.set_node_network_unavailable,
            ready: watch::Sender::new(false),
            retry: Retry::default(),
            args,
            name,
            nodes,
        })
    }

    /// Takes in what the API says; nothing is done about it yet.
    fn observe(&mut self, event: Event<core::Node>) {
        match event {
            Event::Snapshot(objects) => {
                self.leases.clear();
                self.me = None;
                for object in objects {
                    self.learn(&object);
                }
                if let Some(overlay) = &mut self.overlay {
                    report(overlay.set_peers(self.leases.values().cloned()));
                }
            }
            Event::Applied(object) => {
                let Some(name) = self.learn(&object) else { return };
                let Some(overlay) = &mut self.overlay else { return };
                match self.leases.get(&name) {
                    Some(lease) => report(overlay.set_peer(lease).err()),
                    None => overlay.remove_peer(&name),
                }
            }
            Event::Deleted(object) => {
                let Some(name) = object.metadata.name.map(Name::from) else { return };
                self.leases.remove(&name);
                if name == self.name {
                    self.me = None;
                } else if let Some(overlay) = &mut self.overlay {
                    overlay.remove_peer(&name);
                }
            }
        }
    }

    /// Takes in that something is gone, and what else is by now. Says whether that leaves work to do.
    fn lost(&mut self, first: Removed, more: &mut Removals) -> anyhow::Result<bool> {
        let Some(overlay) = &mut self.overlay else { return Ok(false) };
        let (mut missed, mut surely) = (0, 0);
        let mut next = Some(first);
        while let Some(removed) = next {
            let uplink = &overlay.site().uplink;
            ensure!(removed != Removed::Link(uplink.index), "the uplink {} went away: start again", uplink.name);
            if overlay.removed(&removed) {
                missed += 1;
                // A new device of our own is down before it is up, so that alone says nothing about others.
                surely += usize::from(!matches!(removed, Removed::Anything | Removed::LinkDown(_)));
            }
            next = more.try_recv().ok();
        }
        if surely > 0 {
            warn!(removed = surely, "someone else removed parts of the overlay: putting them back");
        }
        Ok(missed > 0)
    }

    /// Keeps this node's object, and the lease of every node that has one.
    fn learn(&mut self, object: &core::Node) -> Option<Name> {
        let read = convert::node(object);
        read.problems.iter().for_each(|problem| warn!("{problem}"));
        let node = read.value?;
        match self.keys.read(&node, Family::V4) {
            Ok(Some(lease)) => self.leases.insert(node.name.clone(), lease),
            Ok(None) => self.leases.remove(&node.name),
            Err(error) => {
                warn!(%error, "node has no usable lease");
                self.leases.remove(&node.name)
            }
        };
        let name = node.name.clone();
        if name == self.name {
            self.me = Some(node);
        }
        Some(name)
    }

    /// Does what is left to do. Failures that may pass are logged and left to `retry`.
    async fn work(&mut self) -> anyhow::Result<()> {
        if self.overlay.is_none() {
            self.overlay = self.start()?;
        }
        if self.overlay.is_none() {
            return Ok(());
        }
        match self.step().await? {
            true => self.retry.succeeded(),
            false => drop(self.retry.failed()),
        }
        Ok(())
    }

    /// Makes the overlay once the Node object has a pod range.
    fn start(&mut self) -> anyhow::Result<Option<Overlay>> {
        let Some(me) = &self.me else {
            info!(node = %self.name, "waiting for the Node object");
            return Ok(None);
        };
        let Some(subnet) = lease::pod_range(me, Family::V4) else {
            info!(node = %self.name, "waiting for spec.podCIDR");
            return Ok(None);
        };
        let Some(config) = self.config.take() else { return Ok(None) };
        let Some(network) = config.networks.iter().copied().find(|network| network.addr().is_ipv4()) else {
            bail!("only IPv4 is supported, and net-conf.json has no Network");
        };
        let uplink = uplink::choose(&mut self.routes, &self.args.iface, me, Family::V4)?;
        let overwrite = self.keys.public_ip_overwrite(me, Family::V4)?;
        let site = Site {
            node: self.name.clone(),
            network,
            subnet,
            public_ip: overwrite.or(self.args.public_ip.map(Into::into)).unwrap_or(uplink.address),
            published: self.leases.get(&self.name).cloned(),
            prepared: None,
            uplink,
        };
        let Uplink { name, address, .. } = &site.uplink;
        info!(%subnet, uplink = %name, %address, public_ip = %site.public_ip, "joining");
        let mut overlay = Overlay::new(config.backend, site)?;
        report(overlay.set_peers(self.leases.values().cloned()));
        Ok(Some(overlay))
    }

    /// One attempt at everything that is left; true when nothing is.
    async fn step(&mut self) -> anyhow::Result<bool> {
        let Some(overlay) = &mut self.overlay else { return Ok(true) };
        if let Some(me) = &self.me
            && let Some(range) = lease::pod_range(me, Family::V4)
            && range != overlay.site().subnet
        {
            bail!("pod range of node {} changed from {} to {range}: start again", self.name, overlay.site().subnet);
        }
        let mut settled = match overlay.apply(&mut self.routes) {
            Ok(outcome) => {
                if outcome.done > 0 {
                    info!(operations = outcome.done, peers = overlay.peer_count(), "programmed");
                }
                outcome.errors.iter().for_each(|error| error!(%error, "programming the overlay"));
                overlay.is_settled()
            }
            Err(error) => {
                error!(%error, "reading the kernel's state");
                false
            }
        };
        if !self.rules {
            self.rules = attempt("setting up masquerading and forwarding", program_rules(&self.args, overlay.site()));
        }
        settled &= self.rules;
        let lease = overlay.lease();
        let published = self.leases.get(&self.name) == Some(&lease);
        if self.me.is_some() && !(published && self.announced) {
            let annotations = self.keys.write(&lease);
            let publishing = publish::publish(&self.nodes, &self.name, &annotations, !self.announced);
            match publishing.await {
                Ok(object) => {
                    self.announced = true;
                    self.learn(&object);
                }
                Err(error) => {
                    error!(error = format_args!("{error:#}"), "publishing this node's lease");
                    settled = false;
                }
            }
        }
        if settled && !*self.ready.borrow() {
            settled = attempt("telling the CNI plugin", self.write_subnet_env());
            self.ready.send_replace(settled);
        }
        Ok(settled)
    }

    fn write_subnet_env(&self) -> anyhow::Result<()> {
        let Some(overlay) = &self.overlay else { return Ok(()) };
        let Site { network, subnet, .. } = *overlay.site();
        let ranges = vec![Range { network, subnet }];
        let env = SubnetEnv { ranges, mtu: overlay.mtu(), ip_masq: self.args.ip_masq };
        env.write(&self.args.subnet_file)?;
        info!(file = %self.args.subnet_file.display(), mtu = env.mtu, "ready");
        Ok(())
    }
}

/// The masquerade and forward rules, and forwarding itself.
fn program_rules(args: &Args, site: &Site) -> anyhow::Result<()> {
    let options = masquerade::Options {
        masquerade: args.ip_masq,
        fully_random: !args.ip_masq_fully_random_disable,
        forward: args.iptables_forward_rules,
    };
    masquerade::rules(site.network, site.subnet, options).ensure(&mut nftables::Kernel::open()?)?;
    ProcSys.ensure("net/ipv4/ip_forward", "1")?;
    Ok(())
}

/// Logs a failure; true on success.
fn attempt(what: &str, result: anyhow::Result<()>) -> bool {
    result.inspect_err(|error| error!(error = format_args!("{error:#}"), "{what}")).is_ok()
}

fn report(errors: impl IntoIterator<Item = podwire_overlay::Error>) {
    for error in errors {
        warn!(%error, "peer left out");
    }
}
