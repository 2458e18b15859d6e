//! What is known, and what of it is done.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use podwire_k8s::{Event, k8s_openapi::api::core::v1 as core, kube::Api};
use podwire_kernel::route::{Change, RouteSocket};
use podwire_model::{Family, IpNet, Name};
use podwire_overlay::{
    Site, Uplink,
    lease::{self, Keys},
    subnet_env::{Range, SubnetEnv},
};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::{
    Args, NetConf, Seen, healthz,
    links::Changes,
    metrics::Metrics,
    nodes::{News, Nodes},
    publish, ready, rules,
    stack::Stack,
    survey::{self, Survey},
    uplink, user_space,
    user_space::UserSpace,
};
use crate::{daemon::Retry, events::Recorder};

/// How long the tunnels of the backend before stay once this node publishes the new one: by then all nodes know.
const LINGER: Duration = Duration::from_secs(10);

/// Where the worker tells what it does.
pub(super) struct Outputs {
    /// The API's nodes.
    pub(super) nodes: Api<core::Node>,
    /// Events about this node.
    pub(super) recorder: Recorder,
    /// What is counted.
    pub(super) metrics: Metrics,
}

/// What is known, and what of it is done.
pub(super) struct Worker {
    args: Args,
    keys: Keys,
    name: Name,
    conf: NetConf,
    out: Outputs,
    kernel: RouteSocket,
    nodes: Nodes,
    /// One for each family, once the node's pod range of it is known.
    stacks: Vec<Stack>,
    survey: Survey,
    user_space: UserSpace,
    /// What the backend's first command printed, if it has one.
    prepared: Option<Name>,
    /// The masquerade and forward rules were in the kernel once.
    ruled: bool,
    /// It is time to look after what nobody tells of: rules and files.
    look: bool,
    /// The uplink may be another, or have another address or MTU.
    astray: bool,
    /// What the survey was told is no longer so.
    unsurveyed: bool,
    /// The tunnels of the backend before are kept; until then, once that is known.
    holding: bool,
    release: Option<Instant>,
    /// What is waited for, told once.
    waiting: String,
    /// subnet.env is written: pods can be attached.
    ready: watch::Sender<bool>,
    /// Something failed: work again after its pause, even if nothing happens.
    retry: Retry,
}

impl Worker {
    pub(super) fn new(args: Args, conf: NetConf, name: Name, out: Outputs) -> anyhow::Result<Self> {
        let keys = Keys::new(&args.kube_annotation_prefix)?;
        let survey = Survey::start(&args.own, out.metrics.clone(), out.recorder.clone())?;
        Ok(Self {
            kernel: RouteSocket::open()?,
            nodes: Nodes::new(keys.clone(), name.clone()),
            stacks: Vec::new(),
            survey,
            user_space: UserSpace::new(),
            prepared: None,
            ruled: false,
            look: true,
            astray: false,
            unsurveyed: true,
            holding: true,
            release: None,
            waiting: String::new(),
            ready: watch::Sender::new(false),
            retry: Retry::default(),
            args,
            keys,
            name,
            conf,
            out,
        })
    }

    /// Answers probes and Prometheus from now on, if the flags say where.
    pub(super) async fn serve_pages(&self) -> anyhow::Result<()> {
        if let (ip, port @ 1..) = (self.args.healthz_ip, self.args.healthz_port) {
            healthz::serve((ip, port).into(), self.ready.subscribe(), self.out.metrics.clone()).await?;
        }
        Ok(())
    }

    /// How long to wait before [`Worker::work`] has something to do though nothing happens.
    pub(super) fn pause(&self) -> Option<Duration> {
        let release = self.release.map(|at| at.saturating_duration_since(Instant::now()));
        self.retry.pause().into_iter().chain(release).min()
    }

    /// Takes in what the API says; nothing is done about it yet.
    pub(super) fn observe(&mut self, event: Event<Seen>) {
        let news = self.nodes.observe(event);
        self.pass_on(&news);
    }

    fn pass_on(&mut self, news: &News) {
        self.unsurveyed = true;
        for stack in &mut self.stacks {
            let leases = self.nodes.leases(stack.family());
            match news {
                News::All => stack.set_peers(leases),
                News::One(name) => stack.set_peer(name, leases.get(name)),
            }
        }
    }

    /// Takes in a change in the kernel, and what else came by now. Says whether that leaves work to do.
    pub(super) fn changed(&mut self, first: Change, more: &mut Changes) -> bool {
        let mut work = false;
        let mut next = Some(first);
        while let Some(change) = next {
            for stack in &mut self.stacks {
                let effect = stack.changed(&change);
                work |= effect.work;
                self.astray |= effect.uplink;
            }
            next = more.try_recv().ok();
        }
        work || self.astray
    }

    /// Time passed.
    pub(super) fn tick(&mut self) {
        self.look = true;
        if self.unsurveyed && *self.ready.borrow() {
            self.unsurveyed = false;
            let wanted = self.stacks.iter().map(|stack| survey::Wanted::new(stack, &self.nodes)).collect();
            self.survey.want(wanted);
        }
    }

    /// Takes in a change of net-conf.json. One that cannot be used leaves all as it is, and is told.
    pub(super) async fn reconfigure(&mut self, text: io::Result<String>) {
        let path = &self.args.net_config_path;
        let text = text.with_context(|| format!("reading {}", path.display()));
        let changed = match text.and_then(|text| NetConf::new(path, text)) {
            Ok(next) => self.go_over(next).await,
            Err(reason) => Err(reason),
        };
        if let Err(reason) = changed {
            error!("the changed configuration is not used, going on as before: {reason:#}");
            let text = format!("going on with the configuration before: {reason:#}");
            self.out.recorder.node("InvalidConfiguration", text);
            self.out.metrics.config_errors.inc();
        }
    }

    async fn go_over(&mut self, next: NetConf) -> anyhow::Result<()> {
        self.conf.check_change(&next)?;
        if !self.conf.same_backend(&next) {
            let (from, to) = (self.conf.backend()?, next.backend()?);
            // Every family goes over, or none: that each can is known before the first does.
            let backends = self.stacks.iter().map(|stack| {
                let backend = next.backend()?;
                stack.overlay.check(backend.as_ref())?;
                anyhow::Ok(backend)
            });
            let backends: Vec<_> = backends.collect::<Result<_, _>>()?;
            let prepared = prepared(&next).await?;
            for (stack, backend) in self.stacks.iter_mut().zip(backends) {
                stack.switch(backend, prepared.clone())?;
            }
            self.prepared = prepared;
            info!(from = from.name(), to = to.name(), "the configuration changed: going over to another backend");
            self.out.metrics.switches.inc();
            (self.holding, self.release, self.unsurveyed) = (true, None, true);
        } else {
            info!("the configuration changed");
        }
        self.conf = next;
        Ok(())
    }

    /// Does what is left to do. Failures that may pass are logged and left to be tried again.
    ///
    /// # Errors
    /// What can never work: the node's facts and the configuration contradict each other.
    pub(super) async fn work(&mut self) -> anyhow::Result<()> {
        if self.stacks.is_empty() && self.prepared.is_none() {
            self.prepared = prepared(&self.conf).await?;
        }
        let complete = match self.start() {
            // What one family lacks does not end the other.
            Err(reason) if !self.stacks.is_empty() => {
                self.wait(format!("one address family is left out: {reason:#}"));
                false
            }
            started => started?,
        };
        self.check_ranges()?;
        if self.stacks.is_empty() {
            return Ok(());
        }
        self.let_go();
        let done = self.step(complete).await?;
        match done {
            true => self.retry.succeeded(),
            false => drop(self.retry.failed()),
        }
        Ok(())
    }

    /// Makes the overlay of each family once the Node object has a pod range of it. Says whether all are made.
    fn start(&mut self) -> anyhow::Result<bool> {
        for network in self.conf.networks.clone() {
            let family = Family::of(&network.addr());
            if self.stacks.iter().any(|stack| stack.family() == family) {
                continue;
            }
            let Some(site) = self.site(network)? else { return Ok(false) };
            let Uplink { name, address, .. } = &site.uplink;
            info!(subnet = %site.subnet, uplink = %name, %address, public_ip = %site.public_ip, "joining");
            let out = (self.out.recorder.clone(), self.out.metrics.clone());
            let mut stack = Stack::new(self.conf.backend()?, site, out)?;
            stack.set_peers(self.nodes.leases(family));
            self.stacks.push(stack);
            // It may come long after the other: what an earlier run left of this family is held as long.
            (self.holding, self.release) = (true, None);
        }
        Ok(true)
    }

    /// This node's facts as they are now; `None` while the Node object does not say enough.
    fn site(&mut self, network: IpNet) -> anyhow::Result<Option<Site>> {
        let family = Family::of(&network.addr());
        let Some(me) = &self.nodes.me else {
            self.wait(format!("waiting for the Node object {}", self.name));
            return Ok(None);
        };
        let Some(subnet) = lease::pod_range(&me.node, family) else {
            self.wait(format!("waiting for a {family:?} range in spec.podCIDRs of node {}", self.name));
            return Ok(None);
        };
        let uplink = uplink::choose(&mut self.kernel, &self.args, &me.node, family)?;
        let flag = match family {
            Family::V4 => self.args.public_ip.map(IpAddr::from),
            Family::V6 => self.args.public_ipv6.map(IpAddr::from),
        };
        let overwrite = self.keys.public_ip_overwrite(&me.node, family)?;
        Ok(Some(Site {
            node: self.name.clone(),
            network,
            subnet,
            public_ip: overwrite.or(flag).unwrap_or(uplink.address),
            published: self.nodes.leases(family).get(&self.name).cloned(),
            prepared: self.prepared.clone(),
            uplink,
        }))
    }

    fn wait(&mut self, what: String) {
        if self.waiting != what {
            info!("{what}");
            self.waiting = what;
        }
    }

    fn check_ranges(&self) -> anyhow::Result<()> {
        let Some(me) = &self.nodes.me else { return Ok(()) };
        for stack in &self.stacks {
            let before = stack.overlay.site().subnet;
            if let Some(now) = lease::pod_range(&me.node, stack.family())
                && now != before
            {
                bail!("pod range of node {} changed from {before} to {now}: start again", self.name);
            }
        }
        Ok(())
    }

    /// Removes what only the backend before needed, when it is time.
    fn let_go(&mut self) {
        if self.release.is_some_and(|at| at <= Instant::now()) {
            self.stacks.iter_mut().for_each(|stack| stack.overlay.release());
            (self.holding, self.release) = (false, None);
        }
    }

    /// One attempt at everything that is left; true when nothing is. `complete`: every family has its overlay.
    async fn step(&mut self, complete: bool) -> anyhow::Result<bool> {
        let mut settled = true;
        if self.astray {
            let followed = self.follow_uplink();
            self.astray = !attempt("following the uplink", followed);
            settled &= !self.astray;
        }
        let mut forwards = Vec::new();
        for stack in &mut self.stacks {
            let outcome = stack.apply(&mut self.kernel);
            settled &= outcome.is_some() && stack.overlay.is_settled();
            if let Some(outcome) = outcome {
                forwards.extend(outcome.forwards);
                self.user_space.run(outcome.commands);
            }
        }
        settled &= attempt("carrying packets", self.user_space.forward(&self.stacks, &forwards));
        if self.look || !self.ruled {
            settled &= self.look_after_rules();
        }
        settled &= attempt("setting who makes checksums", self.survey.settle_checksums(&self.stacks));
        let published = self.publish(settled, complete).await;
        settled &= published;
        if settled && complete && (self.look || !*self.ready.borrow()) {
            settled = attempt("telling the CNI plugin", self.announce());
        }
        self.look = false;
        // A family that is still missing has nothing to hold.
        if settled && self.holding && self.release.is_none() {
            self.release = Some(Instant::now() + LINGER);
        }
        Ok(settled && complete)
    }

    /// Runs what is to be run when the program ends, which it may as well not be: what is in the kernel works on.
    pub(super) async fn farewell(&self) {
        for command in self.stacks.iter().flat_map(|stack| stack.overlay.farewell()) {
            attempt("saying farewell", user_space::run(command).await.map(drop));
        }
    }

    fn follow_uplink(&mut self) -> anyhow::Result<()> {
        for at in 0..self.stacks.len() {
            let known = self.stacks[at].overlay.site().clone();
            let Some(now) = self.site(known.network)? else { continue };
            if (&now.uplink, now.public_ip) != (&known.uplink, known.public_ip) {
                let Uplink { name, address, mtu, .. } = &now.uplink;
                warn!(uplink = %name, %address, mtu, "the uplink changed: following it");
                self.stacks[at].relocate(Site { published: known.published, ..now })?;
                self.out.metrics.uplink_changes.inc();
                (self.look, self.unsurveyed) = (true, true);
            }
        }
        Ok(())
    }

    fn look_after_rules(&mut self) -> bool {
        let made = self.stacks.iter().try_fold(0, |sum, stack| {
            let made = rules::ensure(&self.args, stack.overlay.site(), &mut self.kernel)?;
            anyhow::Ok(sum + made)
        });
        if let Ok(made @ 1..) = made {
            if self.ruled {
                warn!("someone else removed or changed the rules of masquerading and forwarding: put right");
                self.out.metrics.repaired("rules", made);
            }
            self.out.metrics.operations.inc_by(made);
        }
        let done = attempt("setting up masquerading and forwarding", made.map(drop));
        self.ruled |= done;
        done
    }

    /// Publishes this node's leases and its condition where the Node object does not have them; true when it has.
    /// `settled`: the leases are true; `complete`: there is one of every family.
    async fn publish(&mut self, settled: bool, complete: bool) -> bool {
        let Some(me) = &self.nodes.me else { return false };
        let leases: Vec<_> = self.stacks.iter().map(|stack| stack.overlay.lease()).collect();
        let annotations: BTreeMap<_, _> = leases.iter().flat_map(|lease| self.keys.write(lease)).collect();
        let known = &me.node.annotations;
        let published = annotations.iter().all(|(key, value)| known.get(key) == Some(value));
        let available = settled && complete && self.args.set_node_network_unavailable && !me.available;
        if published && !available {
            return true;
        }
        let before = leases.first().and_then(|lease| self.nodes.leases(Family::of(&lease.public_ip)).get(&self.name));
        if !settled && before.is_some_and(|before| before.backend != leases[0].backend) {
            // Peers would send in a way that this node cannot receive yet.
            return false;
        }
        match publish::publish(&self.out.nodes, &self.name, &annotations, available).await {
            Ok(object) => {
                let name = self.nodes.learn(Seen::read(&object));
                self.pass_on(&News::One(name));
                true
            }
            Err(error) => {
                error!(error = format_args!("{error:#}"), "publishing this node's lease");
                self.out.metrics.errors.inc();
                false
            }
        }
    }

    /// Tells the CNI plugin and the container runtime.
    fn announce(&mut self) -> anyhow::Result<()> {
        let ranges = self.stacks.iter().map(|stack| {
            let Site { network, subnet, .. } = *stack.overlay.site();
            Range { network, subnet }
        });
        let mtu = self.stacks.iter().map(|stack| stack.overlay.mtu()).min().unwrap_or_default();
        let env = SubnetEnv { ranges: ranges.collect(), mtu, ip_masq: self.args.ip_masq };
        let file = &self.args.subnet_file;
        let again = *self.ready.borrow();
        if ready::tell_plugin(&env, file)? {
            info!(file = %file.display(), mtu, "{}", if again { "written again" } else { "written" });
        }
        if ready::tell_runtime(&self.args.own)? {
            info!("the CNI configuration is installed");
        }
        self.out.metrics.mtu.set(mtu.into());
        if let Some(stack) = self.stacks.first() {
            self.out.metrics.set_backend(stack.overlay.backend());
        }
        if !again {
            info!("ready");
            self.ready.send_replace(true);
        }
        Ok(())
    }
}

/// Runs the command that the backend wants run before anything else.
async fn prepared(conf: &NetConf) -> anyhow::Result<Option<Name>> {
    let Some(command) = conf.backend()?.prepare() else { return Ok(None) };
    let printed = user_space::run(&command).await.with_context(|| format!("running {:?}", command.line))?;
    Ok(Some(printed.into()))
}

/// Logs a failure; true on success.
fn attempt(what: &str, result: anyhow::Result<()>) -> bool {
    result.inspect_err(|error| error!(error = format_args!("{error:#}"), "{what}")).is_ok()
}
