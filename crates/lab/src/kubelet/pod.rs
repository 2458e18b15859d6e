//! One pod's life: volumes and sandbox, containers, status, removal.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::join_all;
use k8s_openapi::{
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        core::v1::{ConfigMap, Pod, PodSpec, Secret, ServiceAccount},
    },
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{DeleteParams, PostParams, Preconditions},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    Node,
    cni::NetworkState,
    env::{Facts, Objects, Sources},
    events::Severity,
    registry::Key,
    report::Reporter,
    resolv::{self, ClusterDns, PodNames, Resolver},
    sandbox::Sandbox,
    status::Known,
    supervise::{Prepared, Supervisor},
    volumes::{self, Credentials},
};

/// The first pause after a failure to prepare a pod; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often volumes are looked at where nothing tells of a change (the kubelet's `syncFrequency`).
const REFRESH: Duration = Duration::from_secs(60);
/// How long after a change of a ConfigMap or Secret volumes are brought up to date: several changes are taken as one.
const SETTLE: Duration = Duration::from_millis(200);
/// How often the removal of a sandbox is tried before the node gives it up.
const REMOVE_ATTEMPTS: u32 = 5;

/// What the API server says of a pod.
#[derive(Debug, Clone)]
pub struct Desired {
    /// Its latest state.
    pub pod: Arc<Pod>,
    /// The object is no more.
    pub gone: bool,
}

/// What the parts of a pod share.
#[derive(Debug)]
pub struct Context {
    /// The node.
    pub node: Arc<Node>,
    /// The pod as it was when the node took it over.
    pub pod: Arc<Pod>,
    /// Its spec.
    pub spec: PodSpec,
    /// What has become of it.
    pub known: watch::Sender<Known>,
    /// When its containers have to be gone; `None` as long as it is to run.
    pub stop: watch::Receiver<Option<Instant>>,
}

/// Runs a pod until it is removed from the node and, unless its object is gone already, from the API.
pub async fn run(node: Arc<Node>, mut desired: watch::Receiver<Desired>) {
    let pod = desired.borrow_and_update().pod.clone();
    let Some(spec) = pod.spec.clone() else { return };
    let (stopper, stop) = watch::channel(None);
    let known = watch::Sender::new(Known::new(&pod, node.config.ips(), Timestamp::now()));
    let changes = known.subscribe();
    let is_over = matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
    let context = Context { node, pod: pod.clone(), spec, known, stop };
    let mut reporter = Reporter::new(&context, desired.clone(), changes);
    {
        let order = keep_order(&context, desired.clone(), &stopper);
        let life = context.live(is_over);
        if is_over {
            // An earlier run of the node has said all there is to say.
            tokio::select! { () = life => {}, () = order => {} }
        } else {
            tokio::select! { () = life => {}, () = order => {}, () = reporter.report() => {} }
        }
    }
    if !desired.borrow().gone && !*context.node.shutdown.borrow() {
        if !is_over {
            reporter.finish().await;
        }
        context.forget();
        context.delete(&desired).await;
    } else {
        context.forget();
    }
}

/// Turns what the API server says into the time by which containers have to be gone. Never ends.
async fn keep_order(
    context: &Context,
    mut desired: watch::Receiver<Desired>,
    stopper: &watch::Sender<Option<Instant>>,
) {
    let mut shutdown = context.node.shutdown.clone();
    loop {
        let now = Instant::now();
        let at = {
            let desired = desired.borrow_and_update();
            let metadata = &desired.pod.metadata;
            if desired.gone || *shutdown.borrow_and_update() {
                Some(now)
            } else if metadata.deletion_timestamp.is_some() {
                let grace = u64::try_from(metadata.deletion_grace_period_seconds.unwrap_or(30)).unwrap_or(0);
                Some(now + Duration::from_secs(grace))
            } else {
                None
            }
        };
        stopper.send_if_modified(|stop| match (at, *stop) {
            (Some(at), None) => stop.replace(at).is_none(),
            (Some(at), Some(old)) if at < old => stop.replace(at).is_some(),
            _ => false,
        });
        tokio::select! {
            changed = desired.changed() => if changed.is_err() { std::future::pending::<()>().await },
            _ = shutdown.changed() => {}
        }
    }
}

/// What a lab's pods cannot have; a pod that asks for it fails rather than run as something else.
fn unsupported(spec: &PodSpec) -> Option<String> {
    let sidecar = spec.init_containers.iter().flatten().find(|c| c.restart_policy.as_deref() == Some("Always"));
    if let Some(sidecar) = sidecar {
        return Some(format!("init container {:?}: restartPolicy Always is not supported", sidecar.name));
    }
    [(spec.host_pid, "hostPID"), (spec.share_process_namespace, "shareProcessNamespace")]
        .into_iter()
        .find(|(set, _)| *set == Some(true))
        .map(|(_, field)| format!("{field} is not supported"))
}

impl Context {
    /// When containers have to be gone, if the pod is to stop.
    pub fn stop_deadline(&self) -> Option<Instant> {
        *self.stop.borrow()
    }

    /// Waits until the pod is to stop.
    pub async fn stop_requested(&self) {
        if self.stop.clone().wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits for `pause`; `true` when the pod is to stop before that.
    pub async fn stopped_within(&self, pause: Duration) -> bool {
        timeout(pause, self.stop_requested()).await.is_ok() || self.stop_deadline().is_some()
    }

    /// Reports about the pod, or about one of its containers.
    pub fn event(&self, container: Option<&str>, severity: Severity, what: (&'static str, String)) {
        self.node.events.pod(&self.pod, container, severity, what);
    }

    /// `name_namespace(uid)`, as the kubelet calls pods.
    pub fn long_name(&self) -> String {
        let (namespace, name, uid) = self.names();
        format!("{name}_{namespace}({uid})")
    }

    /// Where the logs of its containers are.
    pub fn log_dir(&self) -> PathBuf {
        let (namespace, name, uid) = self.names();
        self.node.dirs.logs.join(format!("{namespace}_{name}_{uid}"))
    }

    /// How the node's registry calls one of its containers.
    pub fn key(&self, container: &str) -> Key {
        let (namespace, pod, uid) = self.names();
        let [namespace, pod, uid, container] = [namespace, pod, uid, container].map(str::to_owned);
        Key { namespace, pod, uid, container }
    }

    fn names(&self) -> (&str, &str, &str) {
        let metadata = &self.pod.metadata;
        (
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default(),
            metadata.uid.as_deref().unwrap_or_default(),
        )
    }

    fn dir(&self) -> PathBuf {
        self.node.dirs.pods.join(self.names().2)
    }

    /// The API of a kind of object, in the pod's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.node.client.clone(), self.names().0)
    }

    /// From nothing to nothing: prepares the pod, runs its containers, takes it down, and waits for its deletion.
    async fn live(&self, is_over: bool) {
        let rejected = unsupported(&self.spec);
        if let Some(message) = rejected {
            self.event(None, Severity::Warning, ("UnsupportedPodSpec", message.clone()));
            self.known.send_modify(|known| known.rejected = Some(("UnsupportedPodSpec", message)));
        } else if !is_over && self.stop_deadline().is_none() {
            let mut sandbox = None;
            if let Some(prepared) = self.prepare(&mut sandbox).await {
                tokio::select! {
                    () = self.run_containers(&prepared) => {}
                    () = self.refresh(&prepared) => {}
                }
            }
            self.take_down(sandbox).await;
        }
        self.stop_requested().await;
    }

    /// Makes volumes and sandbox, trying until it succeeds; `None` when the pod is to stop before.
    async fn prepare(&self, sandbox: &mut Option<Sandbox>) -> Option<Prepared> {
        let mut pause = FIRST_PAUSE;
        loop {
            let volumes = self.volumes();
            let network = async {
                match sandbox {
                    Some(sandbox) => Ok(sandbox.clone()),
                    None => self.sandbox().await.map(|made| sandbox.insert(made).clone()),
                }
            };
            let (volumes, network) = tokio::join!(volumes, network);
            if let Err(message) = &network {
                let message = format!("Failed to create pod sandbox: {message}");
                self.event(None, Severity::Warning, ("FailedCreatePodSandBox", message));
            }
            if let Err(message) = &volumes {
                self.event(None, Severity::Warning, ("FailedMount", message.clone()));
            }
            if let (Ok((objects, volumes)), Ok(sandbox)) = (volumes, network) {
                self.known.send_modify(|known| {
                    known.sandbox_ready = true;
                    known.pod_ips.clone_from(&sandbox.ips);
                });
                return Some(self.prepared(sandbox, volumes, objects).await);
            }
            if self.stopped_within(pause).await {
                return None;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn sandbox(&self) -> Result<Sandbox, String> {
        if self.spec.host_network == Some(true) {
            return Ok(Sandbox::on_host(self.node.config.ips()));
        }
        let mut network = self.node.network.clone();
        tokio::select! {
            ready = network.wait_for(|state| *state == NetworkState::Ready) => drop(ready),
            () = self.stop_requested() => return Err("the pod is being deleted".to_owned()),
        }
        Sandbox::create(&self.node.cni, &self.pod, &self.node.dirs.netns).await
    }

    /// The ConfigMaps and Secrets that the pod refers to, as they are now.
    ///
    /// # Errors
    /// The API server did not answer. What does not exist is no error.
    pub async fn objects(&self) -> Result<Objects, String> {
        let (maps, secrets) = volumes::referenced(&self.spec);
        let mut objects = Objects::default();
        let (map_api, secret_api) = (self.api::<ConfigMap>(), self.api::<Secret>());
        let maps = join_all(maps.iter().map(|name| map_api.get_opt(name)));
        let secrets = join_all(secrets.iter().map(|name| secret_api.get_opt(name)));
        let (maps, secrets) = tokio::join!(maps, secrets);
        for map in maps {
            let map = map.map_err(|e| format!("cannot read a ConfigMap: {e}"))?;
            objects.config_maps.extend(map.and_then(|m| Some((m.metadata.name.clone()?, m))));
        }
        for secret in secrets {
            let secret = secret.map_err(|e| format!("cannot read a Secret: {e}"))?;
            objects.secrets.extend(secret.and_then(|s| Some((s.metadata.name.clone()?, s))));
        }
        Ok(objects)
    }

    async fn credentials(&self) -> Result<Credentials, String> {
        let account = self.spec.service_account_name.as_deref().unwrap_or("default");
        let api = self.api::<ServiceAccount>();
        let kinds = volumes::tokens(&self.spec);
        let requests = kinds.into_iter().map(|kind| {
            let audiences: Vec<_> = Some(kind.audience.clone()).filter(|a| !a.is_empty()).into_iter().collect();
            let spec = TokenRequestSpec {
                audiences: audiences.into(),
                expiration_seconds: Some(kind.seconds),
                ..Default::default()
            };
            let request = TokenRequest { spec: Some(spec), ..Default::default() };
            let api = &api;
            async move {
                let answer = api.create_token_request(account, &PostParams::default(), &request).await;
                let answer = answer.map_err(|e| format!("failed to fetch a token for {account:?}: {e}"))?;
                Ok::<_, String>((kind, answer.status.and_then(|s| s.token).unwrap_or_default()))
            }
        });
        let tokens = join_all(requests).await.into_iter().collect::<Result<_, _>>()?;
        Ok(Credentials { ca: self.node.ca.clone(), tokens })
    }

    async fn volumes(&self) -> Result<(Objects, BTreeMap<String, PathBuf>), String> {
        let (objects, credentials) = tokio::join!(self.objects(), self.credentials());
        let (objects, credentials) = (objects?, credentials?);
        let facts = Facts::default();
        let sources = Sources { pod: &self.pod, objects: &objects, facts: &facts };
        let paths = volumes::set_up(&self.pod, &self.dir().join("volumes"), sources, &credentials)?;
        Ok((objects, paths))
    }

    async fn prepared(&self, sandbox: Sandbox, volumes: BTreeMap<String, PathBuf>, objects: Objects) -> Prepared {
        let config = &self.node.config;
        let (namespace, name, _) = self.names();
        let cluster = ClusterDns { server: config.cluster_dns.to_string(), domain: config.cluster_domain.clone() };
        let names = PodNames::of_pod(&self.spec, name, namespace, &config.cluster_domain);
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let resolver = Resolver::of_pod(&self.spec, namespace, &cluster, &Resolver::parse(&read("/etc/resolv.conf")));
        let aliases = self.spec.host_aliases.as_deref().unwrap_or_default();
        let on_host = self.spec.host_network == Some(true);
        let hosts = match on_host {
            true => resolv::host_network_hosts(&read("/etc/hosts"), aliases),
            false => resolv::pod_hosts(&names, &sandbox.ips, aliases),
        };
        let hostname = if on_host { config.name.clone() } else { names.hostname };
        let (api_host, api_port) = self.node.api_service().await;
        Prepared {
            facts: Facts { host_ips: config.ips(), pod_ips: sandbox.ips.clone(), api_host, api_port },
            files: vec![
                ("/etc/resolv.conf".into(), resolver.render()),
                ("/etc/hosts".into(), hosts),
                ("/etc/hostname".into(), format!("{hostname}\n")),
            ],
            hostname: (!on_host).then_some(hostname),
            sandbox,
            volumes,
            objects,
        }
    }

    async fn run_containers(&self, prepared: &Prepared) {
        for container in self.spec.init_containers.iter().flatten() {
            Supervisor::new(self, prepared, container, true).run().await;
            let succeeded = self.known.borrow().containers.get(&container.name).is_some_and(|r| r.ready);
            if !succeeded {
                return;
            }
        }
        join_all(self.spec.containers.iter().map(|container| async move {
            Supervisor::new(self, prepared, container, false).run().await;
        }))
        .await;
    }

    /// Brings the files of volumes up to date, for ever.
    async fn refresh(&self, prepared: &Prepared) {
        let kinds = volumes::tokens(&self.spec);
        let renew_after = volumes::token_refresh(&kinds);
        let (mut credentials, mut renewed) = (None, Instant::now());
        let mut objects = prepared.objects.clone();
        let (maps, secrets) = volumes::referenced(&self.spec);
        let has_objects = !(maps.is_empty() && secrets.is_empty());
        let mut changes = self.node.object_changes.clone();
        loop {
            tokio::select! {
                Ok(()) = changes.changed(), if has_objects => sleep(SETTLE).await,
                () = sleep(REFRESH) => {}
            }
            changes.mark_unchanged();
            let due = renew_after.is_some_and(|after| renewed.elapsed() >= after);
            if !has_objects && !due {
                continue;
            }
            let fresh = match self.objects().await {
                Ok(fresh) if fresh != objects || due => fresh,
                _ => continue,
            };
            if due || credentials.is_none() {
                let Ok(tokens) = self.credentials().await else { continue };
                (credentials, renewed) = (Some(tokens), Instant::now());
            }
            let Some(credentials) = &credentials else { continue };
            let sources = Sources { pod: &self.pod, objects: &fresh, facts: &prepared.facts };
            match volumes::set_up(&self.pod, &self.dir().join("volumes"), sources, credentials) {
                Ok(_) => objects = fresh,
                Err(message) => self.event(None, Severity::Warning, ("FailedMount", message)),
            }
        }
    }

    async fn take_down(&self, sandbox: Option<Sandbox>) {
        if let Some(sandbox) = sandbox {
            let mut pause = FIRST_PAUSE;
            for attempt in 1..=REMOVE_ATTEMPTS {
                let Err(message) = sandbox.remove(&self.node.cni).await else { break };
                let message = format!("error killing pod: failed to remove its sandbox: {message}");
                self.event(None, Severity::Warning, ("FailedKillPod", message));
                if attempt == REMOVE_ATTEMPTS || *self.node.shutdown.borrow() {
                    sandbox.abandon();
                    break;
                }
                sleep(pause).await;
                pause *= 2;
            }
            self.known.send_modify(|known| known.sandbox_ready = false);
        }
        match fs::remove_dir_all(self.dir()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(pod = self.long_name(), %error, "cannot remove a pod's directory");
            }
            _ => {}
        }
    }

    /// Deletes the object, now that nothing of it is left on the node.
    async fn delete(&self, desired: &watch::Receiver<Desired>) {
        let preconditions = Preconditions { uid: self.pod.metadata.uid.clone(), resource_version: None };
        let params =
            DeleteParams { grace_period_seconds: Some(0), preconditions: Some(preconditions), ..Default::default() };
        let mut pause = FIRST_PAUSE;
        while !desired.borrow().gone && !*self.node.shutdown.borrow() {
            match self.api::<Pod>().delete(self.names().1, &params).await {
                Ok(_) => return,
                Err(kube::Error::Api(error)) if matches!(error.code, 404 | 409) => return,
                Err(error) => tracing::warn!(pod = self.long_name(), %error, "cannot delete a pod"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn forget(&self) {
        self.node.registry.forget(self.names().2);
        let _ = fs::remove_dir_all(self.log_dir());
    }
}
