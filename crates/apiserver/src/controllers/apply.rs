//! Carries actions out through the API.

use http::{Method, Request};
use kube::Client;
use podwire_k8s::kube;
use serde_json::{Value, json};

use super::{
    action::{Action, Deletion, Owner, Write},
    events::Recorder,
    world::{Id, Kind, Object},
};

/// Why a write was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The API refused, or could not be reached.
    #[error("{what}: {source}")]
    Api {
        /// Method and path.
        what: String,
        #[source]
        source: Box<kube::Error>,
    },
    /// The request could not be written down.
    #[error("{what}: not a valid request: {source}")]
    Request {
        /// Method and path.
        what: String,
        #[source]
        source: http::Error,
    },
    /// The answer is not an object of the kind that was asked for.
    #[error("unexpected answer about {kind:?}: {source}")]
    Answer {
        kind: Kind,
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// The API's refusal, if it is one.
    fn refusal(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            _ => None,
        }
    }

    /// The HTTP status of the API's refusal.
    fn code(&self) -> Option<u16> {
        self.refusal().map(|status| status.code)
    }

    /// Somebody else was faster, or the namespace is on its way out: the decision was made from an old state, and the
    /// next one will see the new.
    pub(super) fn is_outrun(&self) -> bool {
        self.refusal().is_some_and(|status| status.code == 409 || status.message.contains("is being terminated"))
    }
}

/// What a write made of the object.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Its new state.
    Written(Object),
    /// It is gone.
    Gone { id: Id, uid: String },
    /// The pod is on its way to a node; the API does not answer with its new state.
    Bound { pod: Id, uid: String, node: String },
    /// Nothing to learn.
    Nothing,
}

/// Carries out one action and records its Event.
pub(super) async fn apply(client: &Client, recorder: &Recorder, action: Action) -> Result<Outcome, Error> {
    let Some(write) = action.write else {
        if let Some(report) = action.report {
            recorder.record(report, "");
        }
        return Ok(Outcome::Nothing);
    };
    let creates = matches!(write, Write::Create { .. });
    let outcome = send(client, write).await;
    match (&outcome, action.report) {
        (Ok(Outcome::Written(object)), Some(report)) => {
            recorder.record(report, object.meta().name.as_deref().unwrap_or_default());
        }
        (Ok(_), Some(report)) => recorder.record(report, ""),
        (Err(error), Some(report)) if creates && !error.is_outrun() => recorder.failed_create(report, error),
        _ => {}
    }
    outcome
}

async fn send(client: &Client, write: Write) -> Result<Outcome, Error> {
    match write {
        Write::Create { kind, namespace, mut body } => {
            body["apiVersion"] = json!(kind.api_version());
            body["kind"] = json!(kind.name());
            written(kind, request(client, Method::POST, &kind.collection(&namespace), Some(&body)).await?)
        }
        Write::Patch { id, status, body } => {
            let path = if status { format!("{}/status", id.path()) } else { id.path() };
            match request(client, Method::PATCH, &path, Some(&body)).await {
                Ok(answer) => written(id.kind, answer),
                Err(error) if error.code() == Some(404) => Ok(Outcome::Nothing),
                Err(error) => Err(error),
            }
        }
        Write::Delete { id, uid, mode, only_without } => delete(client, id, uid, mode, &only_without).await,
        Write::Bind { pod, uid, node } => bind(client, pod, uid, node).await,
        Write::Finalize { namespace } => finalize(client, &Id::new(Kind::Namespace, "", &namespace)).await,
    }
}

async fn delete(client: &Client, id: Id, uid: String, mode: Deletion, without: &[Owner]) -> Result<Outcome, Error> {
    for owner in without {
        let found = get(client, &owner.id).await?;
        let same = |found: &Value| owner.uid.as_deref().is_none_or(|uid| found["metadata"]["uid"] == uid);
        if found.as_ref().is_some_and(same) {
            return Ok(Outcome::Nothing);
        }
    }
    let mut options = json!({
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": { "uid": uid },
        "propagationPolicy": if mode == Deletion::Foreground { "Foreground" } else { "Background" },
    });
    if mode == Deletion::Force {
        options["gracePeriodSeconds"] = json!(0);
    }
    match request(client, Method::DELETE, &id.path(), Some(&options)).await {
        Ok(answer) if remains(&answer) => written(id.kind, answer),
        Ok(_) => Ok(Outcome::Gone { id, uid }),
        // Gone already, or replaced by another of its name.
        Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(Outcome::Nothing),
        Err(error) => Err(error),
    }
}

/// Whether the answer to a deletion is an object that is still there, in its grace period or held by finalizers.
fn remains(answer: &Value) -> bool {
    let meta = &answer["metadata"];
    let held = meta["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty());
    let grace = meta["deletionGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds > 0);
    answer["kind"] != "Status" && meta["deletionTimestamp"].is_string() && (held || grace)
}

async fn bind(client: &Client, pod: Id, uid: String, node: String) -> Result<Outcome, Error> {
    let body = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": { "name": pod.name, "namespace": pod.namespace, "uid": uid },
        "target": { "apiVersion": "v1", "kind": "Node", "name": node },
    });
    match request(client, Method::POST, &format!("{}/binding", pod.path()), Some(&body)).await {
        Ok(_) => Ok(Outcome::Bound { pod, uid, node }),
        Err(error) if error.code() == Some(404) => Ok(Outcome::Nothing),
        Err(error) => Err(error),
    }
}

async fn finalize(client: &Client, id: &Id) -> Result<Outcome, Error> {
    let Some(mut namespace) = get(client, id).await? else { return Ok(Outcome::Nothing) };
    namespace["spec"]["finalizers"] = json!([]);
    match request(client, Method::PUT, &format!("{}/finalize", id.path()), Some(&namespace)).await {
        // Whether it is gone now or held by a finalizer of its metadata, the watch says.
        Ok(_) => Ok(Outcome::Nothing),
        Err(error) if error.code() == Some(404) => Ok(Outcome::Nothing),
        Err(error) => Err(error),
    }
}

async fn get(client: &Client, id: &Id) -> Result<Option<Value>, Error> {
    match request(client, Method::GET, &id.path(), None).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.code() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

fn written(kind: Kind, answer: Value) -> Result<Outcome, Error> {
    Object::from_json(kind, answer).map(Outcome::Written).map_err(|source| Error::Answer { kind, source })
}

/// One request; a PATCH is an RFC 7396 merge patch.
pub(super) async fn request(client: &Client, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Error> {
    let what = format!("{method} {path}");
    let content = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    let request = Request::builder().method(method).uri(path).header("content-type", content).body(bytes);
    let request = request.map_err(|source| Error::Request { what: what.clone(), source })?;
    client.request(request).await.map_err(|source| Error::Api { what, source: Box::new(source) })
}
