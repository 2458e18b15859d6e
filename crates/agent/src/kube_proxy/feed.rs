//! What the Kubernetes API says, handed to the worker.

use std::{pin::pin, sync::mpsc};

use anyhow::bail;
use futures_util::StreamExt;
use podwire_k8s::{
    Checks, Client, Event,
    convert::{self, Read},
    k8s_openapi::{
        api::{core::v1 as core, discovery::v1 as discovery, networking::v1::ServiceCIDR},
        jiff::Timestamp,
    },
    kube::{self, Api, api::ListParams, runtime::watcher},
};
use podwire_model::{EndpointSlice, IpNet};
use tracing::{debug, info, warn};

use super::{State, worker::Input};
use crate::update::updates;

/// Set by the cluster autoscaler before it deletes a node.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// When the control plane saw what led to an EndpointSlice's last change (`EndpointsLastChangeTriggerTime`).
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Hands watch events on until the worker is gone.
///
/// # Errors
/// The worker's thread ended.
pub async fn feed(client: &Client, node: &str, inputs: &mpsc::Sender<Input>, state: &State) -> anyhow::Result<()> {
    let kube = client.kube();
    let all = watcher::Config::default;
    // What other proxies or nobody serves need not be sent here.
    let ours = all().labels("!service.kubernetes.io/service-proxy-name");
    let with_rules = all().labels("!service.kubernetes.io/headless");
    let mine = all().fields(&format!("metadata.name={node}"));
    let restarts = state.metrics.watch_restarts.clone();
    let checks = Checks::new(move || _ = restarts.inc());
    let mut services = pin!(updates(Api::all(kube.clone()), ours, checks.clone(), convert::service));
    let mut slices = pin!(updates(Api::all(kube.clone()), with_rules, checks, slice));
    let mut nodes = pin!(podwire_k8s::watch::<core::Node>(Api::all(kube.clone()), mine));
    let mut ranges = pin!(service_ranges(kube));
    loop {
        let input = tokio::select! {
            Some((update, problems)) = services.next() => Input::Services(update, problems),
            Some((update, problems)) = slices.next() => Input::Slices(update, problems),
            Some(event) = nodes.next() => match this_node(event, node, state) {
                Some(input) => input,
                None => continue,
            },
            Some(ranges) = ranges.next() => Input::ServiceRanges(ranges),
            else => bail!("the watches of the Kubernetes API ended"),
        };
        if inputs.send(input).is_err() {
            bail!("the proxy's thread ended; see its last message");
        }
    }
}

/// A slice, and when the control plane saw the reason for its last change.
fn slice(object: &discovery::EndpointSlice) -> Read<(EndpointSlice, Option<Timestamp>)> {
    let trigger = object.metadata.annotations.as_ref().and_then(|annotations| annotations.get(TRIGGER_TIME));
    let trigger = trigger.and_then(|time| time.parse().ok());
    let Read { value, problems } = convert::endpoint_slice(object);
    Read { value: value.map(|value| (value, trigger)), problems }
}

/// What an event says about this node, if anything.
fn this_node(event: Event<core::Node>, name: &str, state: &State) -> Option<Input> {
    let (objects, complete) = match event {
        Event::Snapshot(objects) => (objects, true),
        Event::Applied(object) => (vec![object], false),
        Event::Deleted(_) => {
            state.node_is_deleting(true);
            return None;
        }
    };
    let object = objects.iter().find(|object| object.metadata.name.as_deref() == Some(name));
    let Some(object) = object else { return complete.then(|| Input::Node(None, Vec::new())) };
    let taints = object.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let marked = taints.into_iter().any(|taint| taint.key == TO_BE_DELETED);
    state.node_is_deleting(marked || object.metadata.deletion_timestamp.is_some());
    let read = convert::node(object);
    Some(Input::Node(read.value.map(Box::new), read.problems))
}

/// The ranges of cluster IPs, at once and whenever they change. None where the API has no ServiceCIDRs (before 1.33).
fn service_ranges(kube: kube::Client) -> impl futures_util::Stream<Item = Vec<IpNet>> {
    let first = async move {
        let api = Api::<ServiceCIDR>::all(kube);
        match api.list(&ListParams::default()).await {
            Err(kube::Error::Api(refused)) => {
                info!("the ranges of cluster IPs are not known, so strays there are not dropped: {refused}");
                futures_util::stream::iter([Vec::new()]).boxed()
            }
            // The watch tries again where the API is away.
            _ => watched_ranges(api).boxed(),
        }
    };
    futures_util::stream::once(first).flatten()
}

fn watched_ranges(api: Api<ServiceCIDR>) -> impl futures_util::Stream<Item = Vec<IpNet>> {
    let mut known: Vec<ServiceCIDR> = Vec::new();
    podwire_k8s::watch(api, watcher::Config::default()).map(move |event| {
        match event {
            Event::Snapshot(objects) => known = objects,
            Event::Applied(object) => {
                known.retain(|other| other.metadata.name != object.metadata.name);
                known.push(object);
            }
            Event::Deleted(object) => known.retain(|other| other.metadata.name != object.metadata.name),
        }
        let texts = known.iter().flat_map(|object| object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten()));
        let parsed =
            texts.filter_map(|text| text.parse().inspect_err(|error| warn!("ServiceCIDR {text}: {error}")).ok());
        let mut ranges: Vec<IpNet> = parsed.collect();
        ranges.sort();
        ranges.dedup();
        debug!(?ranges, "ranges of cluster IPs");
        ranges
    })
}
