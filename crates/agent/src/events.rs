//! Events: what people should see at `kubectl describe` and `kubectl get events`.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use podwire_k8s::{
    Client,
    k8s_openapi::{
        NamespaceResourceScope,
        api::{
            core::v1::{ObjectReference, Service},
            discovery::v1::EndpointSlice,
        },
    },
    kube::{
        Api, Resource,
        runtime::events::{self, EventType, Reporter},
    },
};
use podwire_model::ObjectName;
use tokio::sync::mpsc;
use tracing::debug;

/// So many may wait; more are dropped (they are in the log as well).
const QUEUE: usize = 256;
/// The same about the same object is told again after this time only.
const QUIET: Duration = Duration::from_secs(300);
/// So many different ones are remembered.
const REMEMBERED: usize = 1024;
/// So many at once, and so many for each second from then on, as client-go has it for one source.
const BURST: f64 = 25.0;
const RATE: f64 = 1.0;

/// What an Event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct About {
    /// `Service`, `EndpointSlice` or `Node`.
    pub kind: &'static str,
    /// Without a namespace for a Node.
    pub object: ObjectName,
}

/// A warning on its way.
#[derive(Debug)]
pub struct Report {
    /// Its object.
    pub about: About,
    /// A word in CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Takes warnings to be sent in the background. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    node: ObjectName,
    queue: mpsc::Sender<Report>,
}

impl Recorder {
    /// A recorder, and what comes out of it: for [`send`].
    pub fn new(node: &str) -> (Self, mpsc::Receiver<Report>) {
        let (queue, reports) = mpsc::channel(QUEUE);
        (Self { node: ObjectName::new("", node), queue }, reports)
    }

    /// Warns about an object.
    pub fn object(&self, about: About, reason: &'static str, message: String) {
        if self.queue.try_send(Report { about, reason, message }).is_err() {
            debug!("an Event was dropped: too many wait");
        }
    }

    /// Warns about this node.
    pub fn node(&self, reason: &'static str, message: String) {
        self.object(About { kind: "Node", object: self.node.clone() }, reason, message);
    }
}

/// Sends what is recorded in the name of `controller`, until every recorder is gone. What cannot be sent is dropped: the
/// log has it.
pub async fn send(client: Client, controller: &'static str, mut reports: mpsc::Receiver<Report>) {
    let mut limit = Limit::new(Instant::now());
    let reporter = Reporter { controller: controller.into(), instance: std::env::var("HOSTNAME").ok() };
    let mut recorder = events::Recorder::new(client.kube(), reporter.clone());
    while let Some(report) = reports.recv().await {
        let again = limit.knows(&report);
        if !limit.admits(&report, Instant::now()) {
            continue;
        }
        if !again {
            // It counts what has the same object and reason, and would keep the first message.
            recorder = events::Recorder::new(client.kube(), reporter.clone());
        }
        let reference = reference(&client, &report.about).await;
        let event = events::Event {
            type_: EventType::Warning,
            reason: report.reason.to_owned(),
            note: Some(report.message),
            action: "Sync".to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &reference).await {
            debug!("an Event was not taken: {error}");
        }
    }
}

/// The object with its uid, by which kubectl finds its Events.
async fn reference(client: &Client, about: &About) -> ObjectReference {
    let (api_version, uid) = match about.kind {
        "Service" => ("v1", uid::<Service>(client, &about.object).await),
        "EndpointSlice" => ("discovery.k8s.io/v1", uid::<EndpointSlice>(client, &about.object).await),
        // As the kubelet and kube-proxy have it.
        _ => ("v1", Some(about.object.name.to_string())),
    };
    let namespace = &about.object.namespace;
    ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(about.kind.to_owned()),
        namespace: (!namespace.is_empty()).then(|| namespace.to_string()),
        name: Some(about.object.name.to_string()),
        uid,
        ..ObjectReference::default()
    }
}

async fn uid<K>(client: &Client, name: &ObjectName) -> Option<String>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api = Api::<K>::namespaced(client.kube(), &name.namespace);
    api.get_metadata(&name.name).await.ok()?.metadata.uid
}

/// Keeps repetitions and floods from the API.
struct Limit {
    sent: HashMap<(About, &'static str), (String, Instant)>,
    tokens: f64,
    at: Instant,
}

impl Limit {
    fn new(now: Instant) -> Self {
        Self { sent: HashMap::new(), tokens: BURST, at: now }
    }

    /// Whether just this was told of the object before.
    fn knows(&self, report: &Report) -> bool {
        let key = (report.about.clone(), report.reason);
        self.sent.get(&key).is_some_and(|(text, _)| *text == report.message)
    }

    fn admits(&mut self, report: &Report, now: Instant) -> bool {
        self.tokens = BURST.min(self.tokens + RATE * now.saturating_duration_since(self.at).as_secs_f64());
        self.at = now;
        let key = (report.about.clone(), report.reason);
        let known = self.sent.get(&key);
        if self.tokens < 1.0 || known.is_some_and(|(text, at)| *text == report.message && now < *at + QUIET) {
            return false;
        }
        if self.sent.len() >= REMEMBERED {
            self.sent.retain(|_, (_, at)| now < *at + QUIET);
        }
        if self.sent.len() < REMEMBERED {
            self.sent.insert(key, (report.message.clone(), now));
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, message: &str) -> Report {
        let about = About { kind: "Service", object: ObjectName::new("default", name) };
        Report { about, reason: "Invalid", message: message.to_owned() }
    }

    #[test]
    fn repetitions_wait_and_floods_are_cut() {
        let begin = Instant::now();
        let mut limit = Limit::new(begin);
        assert!(limit.admits(&report("a", "x"), begin));
        assert!(!limit.admits(&report("a", "x"), begin));
        assert!(limit.knows(&report("a", "x")) && !limit.knows(&report("a", "y")));
        assert!(limit.admits(&report("a", "y"), begin), "something else is told at once");
        assert!(limit.admits(&report("b", "x"), begin));
        assert!(limit.admits(&report("a", "y"), begin + QUIET));
        let later = begin + QUIET;
        let admitted = (0..1000).filter(|n| limit.admits(&report(&n.to_string(), "x"), later)).count();
        assert_eq!(admitted, 24);
        assert!(limit.admits(&report("c", "x"), later + Duration::from_secs(2)));
    }

    #[test]
    fn a_full_queue_does_not_block() {
        let (recorder, mut reports) = Recorder::new("node1");
        for n in 0..=QUEUE {
            recorder.node("Invalid", n.to_string());
        }
        assert_eq!(reports.len(), QUEUE);
        let first = reports.try_recv().unwrap();
        assert_eq!((first.about.kind, &*first.about.object.name, first.message), ("Node", "node1", "0".to_owned()));
    }
}
