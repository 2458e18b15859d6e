//! The way of a pod's status into the API.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{Pod, PodStatus},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    pod::{Context, Desired},
    status::Known,
};

/// The first pause after the API server did not take a status; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between attempts, and the longest that the last report may take.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Keeps the pod's status in the API in step with what is known.
pub struct Reporter {
    api: Api<Pod>,
    /// The latest state of the object that was seen, by watching or by writing.
    seen: Pod,
    desired: watch::Receiver<Desired>,
    known: watch::Receiver<Known>,
    sent: Option<PodStatus>,
}

impl Reporter {
    /// A reporter of what `known` says about the pod of `context`.
    pub fn new(context: &Context, desired: watch::Receiver<Desired>, known: watch::Receiver<Known>) -> Self {
        Self { api: context.api(), seen: (*context.pod).clone(), desired, known, sent: None }
    }

    /// Reports every change, for ever; several at once as one.
    pub async fn report(&mut self) {
        loop {
            self.catch_up().await;
            tokio::select! {
                _ = self.known.changed() => {}
                _ = self.desired.changed() => {}
            }
        }
    }

    /// Reports what changed last.
    pub async fn finish(&mut self) {
        let _ = timeout(LONGEST_PAUSE, self.catch_up()).await;
    }

    async fn catch_up(&mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            self.look();
            let status = self.known.borrow_and_update().status(&self.seen, Timestamp::now());
            if self.sent.as_ref() == Some(&status) || self.desired.borrow().gone {
                return;
            }
            let name = self.seen.metadata.name.as_deref().unwrap_or_default();
            let patch = Patch::Merge(patch(&self.seen, &status));
            match self.api.patch_status(name, &PatchParams::default(), &patch).await {
                Ok(pod) => {
                    self.seen = pod;
                    self.sent = Some(status);
                    return;
                }
                // Gone, or another pod of the same name: whoever watches will say so.
                Err(kube::Error::Api(error)) if matches!(error.code, 404 | 409) => return,
                Err(error) => tracing::warn!(pod = name, %error, "cannot report a pod's status"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Takes over what was watched, unless it is older than what was written.
    fn look(&mut self) {
        let watched = self.desired.borrow_and_update().pod.clone();
        let version = |pod: &Pod| pod.metadata.resource_version.as_ref().and_then(|v| v.parse::<u64>().ok());
        if version(&watched) > version(&self.seen) {
            self.seen = (*watched).clone();
        }
    }
}

/// A merge patch: absent fields that the kubelet owns are taken away.
fn patch(pod: &Pod, status: &PodStatus) -> Value {
    let mut status = serde_json::to_value(status).unwrap_or_default();
    if let Some(fields) = status.as_object_mut() {
        for field in ["reason", "message"] {
            fields.entry(field).or_insert(Value::Null);
        }
    }
    json!({"metadata": {"uid": pod.metadata.uid}, "status": status})
}
