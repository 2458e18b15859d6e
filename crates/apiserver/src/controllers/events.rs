//! Records Events. What is reported again counts up on the Event that is there, as in `kubectl describe`'s
//! `(x3 over 5m)`.

use std::{collections::HashMap, fmt::Display};

use http::Method;
use kube::Client;
use podwire_k8s::k8s_openapi::{
    api::core::v1::{Event, EventSource},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use podwire_k8s::kube;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    action::{Report, to_json},
    apply,
    world::Kind,
};

/// How many different Events are remembered, so that a repeated one is recognised.
const MEMORY: usize = 4096;

/// Takes reports; they are written in order, behind the controllers' back.
pub(super) struct Recorder {
    reports: mpsc::UnboundedSender<Report>,
}

impl Recorder {
    /// A recorder, and where its reports come out: for [`write`].
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Report>) {
        let (reports, out) = mpsc::unbounded_channel();
        (Self { reports }, out)
    }

    /// Reports; `name` is that of the object that the reported write created.
    pub(super) fn record(&self, mut report: Report, name: &str) {
        report.message = report.message.replace("{name}", name);
        // Nobody listens any more only when the controllers end.
        let _ = self.reports.send(report);
    }

    /// Reports that the creation that `report` would have told of failed.
    pub(super) fn failed_create(&self, report: Report, error: &impl Display) {
        let message = format!("Error creating: {error}");
        self.record(Report::warning(report.source, report.about, "FailedCreate", message), "");
    }
}

/// Writes reports as they come. An Event that cannot be written is lost: nothing depends on it.
pub(super) async fn write(client: Client, mut reports: mpsc::UnboundedReceiver<Report>) {
    let mut known: HashMap<(Option<String>, &'static str, String), (String, i32)> = HashMap::new();
    while let Some(report) = reports.recv().await {
        let now = Timestamp::now();
        let namespace = report.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let collection = Kind::Event.collection(&namespace);
        let key = (report.about.uid.clone(), report.reason, report.message.clone());
        if let Some((name, count)) = known.get_mut(&key) {
            *count += 1;
            let again = json!({ "count": *count, "lastTimestamp": Time(now) });
            if send(&client, Method::PATCH, &format!("{collection}/{name}"), &again).await.is_some() {
                continue;
            }
        }
        let event = event(report, namespace, now);
        if let Some(created) = send(&client, Method::POST, &collection, &event).await
            && let Some(name) = created["metadata"]["name"].as_str()
        {
            if known.len() >= MEMORY {
                known.clear();
            }
            known.insert(key, (name.to_owned(), 1));
        }
    }
}

async fn send(client: &Client, method: Method, path: &str, body: &Value) -> Option<Value> {
    let answer = apply::request(client, method, path, Some(body)).await;
    answer.inspect_err(|error| tracing::debug!(%error, "an Event was not recorded")).ok()
}

fn event(report: Report, namespace: String, now: Timestamp) -> Value {
    let subject = report.about.name.clone().unwrap_or_default();
    let event = Event {
        metadata: ObjectMeta {
            // Unique as the time is: the recorder is the only one that writes about a moment twice.
            name: Some(format!("{subject}.{:016x}", now.as_nanosecond())),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: report.about,
        reason: Some(report.reason.to_owned()),
        message: Some(report.message),
        type_: Some(if report.warning { "Warning" } else { "Normal" }.to_owned()),
        source: Some(EventSource { component: Some(report.source.to_owned()), host: None }),
        reporting_component: Some(report.source.to_owned()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    };
    to_json(&event)
}
