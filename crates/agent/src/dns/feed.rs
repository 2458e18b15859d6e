//! What the Kubernetes API says, brought into the view.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use futures_util::{Stream, StreamExt};
use podwire_dns::{
    cluster::Cluster,
    program::{ClusterNeeds, Environment},
    view::{Slice, View},
};
use podwire_k8s::{
    Checks, Client,
    convert::{self, Read},
    k8s_openapi::api::{
        core::v1::{Namespace, Pod},
        discovery::v1::EndpointSlice,
    },
    kube::{Api, runtime::watcher::Config},
};
use podwire_model::{self as model, Name, ObjectName, Problem};
use tokio::task::JoinSet;
use tracing::info;

use crate::update::{Update, logged, updates};

/// The watches that keep the view of the cluster; dropping it ends them.
pub struct Feed {
    /// What they were started for.
    pub needs: Option<ClusterNeeds>,
    _tasks: JoinSet<()>,
}

impl Feed {
    /// Starts what `needs` calls for. `node` is this node's name where only its own Pods will ask.
    ///
    /// # Errors
    /// There is no way to reach the Kubernetes API.
    pub async fn start(
        needs: Option<ClusterNeeds>,
        environment: &Environment,
        node: Option<&str>,
    ) -> anyhow::Result<Self> {
        let mut tasks = JoinSet::new();
        let Some(wanted) = &needs else { return Ok(Self { needs, _tasks: tasks }) };
        let client = Client::from_kubeconfig_or_cluster(wanted.kubeconfig.clone()).await;
        let client = client.context("directive kubernetes (outside a pod it needs its option kubeconfig)")?.kube();
        let pods = which_pods(wanted, node);
        let missing = Arc::new(AtomicUsize::new(if pods.is_some() { 4 } else { 3 }));
        let sink = || Sink { cluster: environment.cluster.clone(), missing: missing.clone() };
        let (all, checks) = (Config::default, || checks(environment));
        tasks.spawn(sink().drain(updates(Api::all(client.clone()), all(), checks(), convert::service), apply_service));
        let slices = updates(Api::all(client.clone()), all(), checks(), slice);
        tasks.spawn(sink().drain(slices, apply_slice));
        tasks.spawn(sink().drain(updates(Api::all(client.clone()), all(), checks(), namespace_name), apply_namespace));
        if let Some(which) = pods {
            tasks.spawn(sink().drain(updates(Api::all(client), which, checks(), pod_addresses), apply_pod));
        }
        Ok(Self { needs, _tasks: tasks })
    }
}

fn checks(environment: &Environment) -> Checks {
    let metrics = environment.metrics.clone();
    Checks::new(move || metrics.count_watch_restart())
}

/// The Pods to know: all, if their names are served; those of the node, if it is only about who asks, and only they do.
fn which_pods(needs: &ClusterNeeds, node: Option<&str>) -> Option<Config> {
    match node {
        _ if !needs.pods && !needs.clients => None,
        Some(node) if !needs.pods => Some(Config::default().fields(&format!("spec.nodeName={node}"))),
        _ => Some(Config::default()),
    }
}

/// Where the events of one watch go.
struct Sink {
    cluster: Arc<Cluster>,
    /// How many watches have not delivered their first complete state.
    missing: Arc<AtomicUsize>,
}

impl Sink {
    async fn drain<V>(self, updates: impl Stream<Item = (Update<V>, Vec<Problem>)>, apply: fn(&mut View, Update<V>)) {
        let mut updates = std::pin::pin!(updates.map(logged));
        let mut first = true;
        while let Some(update) = updates.next().await {
            let complete = matches!(update, Update::All(_));
            self.cluster.update(unix_seconds(), |view| apply(view, update));
            if complete && std::mem::take(&mut first) && self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.cluster.set_synced();
                info!("the cluster's names are known");
            }
        }
    }
}

/// Seconds since 1970, for the SOA serial number; it wraps in 2106 as RFC 1982 foresees.
fn unix_seconds() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as u32)
}

fn apply_service(view: &mut View, update: Update<model::Service>) {
    match update {
        Update::All(services) => view.replace_services(services),
        Update::One(service) => view.apply_service(service),
        Update::Gone(name) => view.delete_service(&name),
    }
}

/// What DNS needs of an EndpointSlice, which of a whole cluster's is a fraction.
fn slice(object: &EndpointSlice) -> Read<Slice> {
    let Read { value, problems } = convert::endpoint_slice(object);
    Read { value: value.map(Slice::from), problems }
}

fn apply_slice(view: &mut View, update: Update<Slice>) {
    match update {
        Update::All(slices) => view.replace_slices(slices),
        Update::One(slice) => view.apply_slice(slice),
        Update::Gone(name) => view.delete_slice(&name),
    }
}

fn apply_namespace(view: &mut View, update: Update<Name>) {
    match update {
        Update::All(names) => view.replace_namespaces(names),
        Update::One(name) => view.apply_namespace(name),
        Update::Gone(name) => view.delete_namespace(&name.name),
    }
}

fn apply_pod(view: &mut View, update: Update<(ObjectName, Vec<IpAddr>)>) {
    match update {
        Update::All(pods) => view.replace_pods(pods),
        Update::One((name, addresses)) => view.apply_pod(name, addresses),
        Update::Gone(name) => view.delete_pod(&name),
    }
}

/// A Pod's addresses; none once it has ended, since they may be another's by then.
fn pod_addresses(object: &Pod) -> Read<(ObjectName, Vec<IpAddr>)> {
    let status =
        object.status.as_ref().filter(|status| !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")));
    let ips = status.into_iter().flat_map(|status| status.pod_ips.iter().flatten());
    let addresses = ips.filter_map(|ip| ip.ip.parse().ok()).collect();
    Some((convert::object_name(&object.metadata), addresses)).into()
}

fn namespace_name(object: &Namespace) -> Read<Name> {
    object.metadata.name.as_deref().map(Name::from).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_knows_its_own_pods_where_nobody_asks_for_the_names_of_others() {
        let selected = |pods, clients, node| {
            which_pods(&ClusterNeeds { pods, clients, kubeconfig: None }, node).map(|config| config.field_selector)
        };
        assert_eq!(selected(false, false, Some("node1")), None);
        assert_eq!(selected(false, true, None), Some(None));
        assert_eq!(selected(false, true, Some("node1")), Some(Some("spec.nodeName=node1".to_owned())));
        assert_eq!(selected(true, true, Some("node1")), Some(None), "pods verified");
    }
}
