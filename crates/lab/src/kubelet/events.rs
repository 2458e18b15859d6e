//! Events that the node reports about pods and about itself.

use std::collections::HashMap;

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::mpsc;

/// So many events may wait; more are dropped.
const QUEUE: usize = 256;
/// So many different events are remembered, to count repetitions.
const REMEMBERED: usize = 512;

/// Takes events and sends them in the background; repetitions are counted in one object. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Report>,
}

/// `Normal` or `Warning`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// As it should be.
    Normal,
    /// Something is wrong.
    Warning,
}

#[derive(Debug, Clone)]
struct Report {
    about: ObjectReference,
    severity: Severity,
    reason: &'static str,
    message: String,
}

impl Recorder {
    /// A recorder for `node`, and the future that sends what is recorded until every recorder is dropped.
    pub fn new(client: kube::Client, node: String) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, mut reports) = mpsc::channel(QUEUE);
        let send = async move {
            let mut sender = Sender { client, node, sent: HashMap::new() };
            while let Some(report) = reports.recv().await {
                sender.send(report).await;
            }
        };
        (Self { queue }, send)
    }

    /// Reports about a pod, or about one of its containers.
    pub fn pod(&self, pod: &Pod, container: Option<&str>, severity: Severity, what: (&'static str, String)) {
        let about = ObjectReference {
            field_path: container.map(|name| format!("spec.containers{{{name}}}")),
            ..pod.object_ref(&())
        };
        self.report(Report { about, severity, reason: what.0, message: what.1 });
    }

    /// Reports about the node.
    pub fn node(&self, name: &str, severity: Severity, what: (&'static str, String)) {
        let name = Some(name.to_owned());
        let about = ObjectReference { kind: Some("Node".into()), uid: name.clone(), name, ..Default::default() };
        self.report(Report { about, severity, reason: what.0, message: what.1 });
    }

    fn report(&self, report: Report) {
        tracing::info!(object = report.about.name, reason = report.reason, "{}", report.message);
        let _ = self.queue.try_send(report);
    }
}

struct Sender {
    client: kube::Client,
    node: String,
    /// Object uid, reason and message → name of the Event, and how often it happened.
    sent: HashMap<(Option<String>, &'static str, String), (String, i32)>,
}

impl Sender {
    async fn send(&mut self, report: Report) {
        let namespace = report.about.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let now = Timestamp::now();
        let key = (report.about.uid.clone(), report.reason, report.message.clone());
        if let Some((name, count)) = self.sent.get_mut(&key) {
            *count += 1;
            let patch = json!({"count": *count, "lastTimestamp": Time(now)});
            if api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.is_ok() {
                return;
            }
        }
        let event = self.event(report, &namespace, now);
        let name = event.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                if self.sent.len() >= REMEMBERED {
                    self.sent.clear();
                }
                self.sent.insert(key, (name, 1));
            }
            Err(error) => tracing::debug!(event = name, %error, "cannot send an event"),
        }
    }

    fn event(&self, report: Report, namespace: &str, now: Timestamp) -> Event {
        let about = report.about.name.as_deref().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{about}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace.to_owned()),
                ..Default::default()
            },
            involved_object: report.about,
            reason: Some(report.reason.to_owned()),
            message: Some(report.message),
            type_: Some(format!("{:?}", report.severity)),
            source: Some(EventSource { component: Some("kubelet".into()), host: Some(self.node.clone()) }),
            reporting_component: Some("kubelet".into()),
            reporting_instance: Some(self.node.clone()),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            ..Default::default()
        }
    }
}
