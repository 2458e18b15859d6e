//! What hangs below an object: status, scale, binding, token, finalize, eviction, log, exec.

use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{
    Context,
    body::{self, Body, json as respond},
    delete, exec, logs,
    path::Target,
    read, write,
};
use crate::{
    auth::User,
    kinds::Kind,
    object::{self, carry, child, items, name, number, text, time_after},
    registry::Part,
    selector::Labels,
    status::{Cause, Status},
};

/// How long a token is good when the client does not say, in seconds.
const TOKEN_LIFETIME: i64 = 3600;

/// Answers a request to a subresource.
pub(super) async fn answer(
    context: Context,
    target: Target,
    subresource: &str,
    request: &mut Request<Incoming>,
) -> Result<Response<Body>, Status> {
    if !target.kind.has(subresource) {
        return Err(Status::no_such_path());
    }
    let method = request.method().clone();
    match (subresource, method) {
        ("status", Method::GET) => read::get(&context, &target),
        ("status", Method::PUT) => {
            let new = body::read_object(request).await?;
            write::update(&context, &target, Part::Status, &mut |_| Ok(new.clone()))
        }
        ("status", Method::PATCH) => {
            let patch = write::read_patch(request).await?;
            write::update(&context, &target, Part::Status, &mut |old| patch.apply(old))
        }
        ("scale", Method::GET) => {
            let object = context.api.get(target.kind, &target.key())?;
            Ok(respond(StatusCode::OK, scale(object.value()).to_string()))
        }
        ("scale", Method::PUT) => {
            let new = body::read_object(request).await?;
            set_scale(&context, &target, &mut |_| Ok(new.clone()))
        }
        ("scale", Method::PATCH) => {
            let patch = write::read_patch(request).await?;
            set_scale(&context, &target, &mut |old| patch.apply(old))
        }
        ("finalize", Method::PUT) => finalize(&context, &target, &body::read_object(request).await?),
        ("binding", Method::POST) => bind(&context, &target, &body::read_object(request).await?),
        ("eviction", Method::POST) => evict(&context, &target, &body::read_object(request).await?),
        ("token", Method::POST) => token(&context, &target, body::read_object(request).await?),
        ("log", Method::GET) => logs::logs(&context, &target).await,
        ("exec", Method::GET | Method::POST) => exec::exec(context, target, request).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// The `autoscaling/v1 Scale` of a workload.
fn scale(object: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        carry(&object["metadata"], &mut metadata, field);
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": number(object, "/spec/replicas").unwrap_or(0)},
        "status": {
            "replicas": number(object, "/status/replicas").unwrap_or(0),
            "selector": Labels::of_object(&object["spec"]["selector"]).unwrap_or_default().to_string(),
        },
    })
}

fn set_scale(
    context: &Context,
    target: &Target,
    edit: &mut dyn FnMut(&Value) -> Result<Value, Status>,
) -> Result<Response<Body>, Status> {
    let options = context.write_options()?;
    let written = context.api.update(target.kind, &target.key(), Part::Main, options, &mut |old| {
        let wanted = edit(&scale(old))?;
        let mut new = old.clone();
        new["spec"]["replicas"] = match number(&wanted, "/spec/replicas").unwrap_or(0) {
            negative if negative < 0 => {
                let cause = Cause::invalid("spec.replicas", negative, "must be greater than or equal to 0");
                return Err(Status::invalid(target.kind, name(old), &[cause]));
            }
            replicas => replicas.into(),
        };
        carry(&wanted["metadata"], &mut new["metadata"], "resourceVersion");
        Ok(new)
    })?;
    Ok(respond(StatusCode::OK, scale(written.object.value()).to_string()))
}

/// Takes finalizers from `spec.finalizers` of a Namespace; without any left it goes.
fn finalize(context: &Context, target: &Target, new: &Value) -> Result<Response<Body>, Status> {
    let object = context.api.modify(target.kind, &target.key(), &mut |old| {
        match items(new, "/spec/finalizers") {
            [] => drop(object::remove(&mut old["spec"], "finalizers")),
            finalizers => old["spec"]["finalizers"] = finalizers.into(),
        }
        Ok(())
    })?;
    Ok(respond(StatusCode::OK, object.json()))
}

/// Gives a Pod its node.
fn bind(context: &Context, target: &Target, binding: &Value) -> Result<Response<Body>, Status> {
    let node = text(binding, "/target/name");
    if node.is_empty() {
        return Err(Status::invalid(target.kind, &target.key().name, &[Cause::required("target.name", "")]));
    }
    context.api.modify(target.kind, &target.key(), &mut |pod| {
        let taken = text(pod, "/spec/nodeName");
        if !taken.is_empty() {
            let why = format!("pod {} is already assigned to node {taken:?}", name(pod));
            return Err(Status::conflict(target.kind, name(pod), &why));
        }
        if object::deleting(pod) {
            let why = format!("pod {} is being deleted, cannot be assigned to a host", name(pod));
            return Err(Status::conflict(target.kind, name(pod), &why));
        }
        pod["spec"]["nodeName"] = node.into();
        let scheduled =
            json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": time_after(object::now(), 0)});
        if let Some(status) = child(pod, "status") {
            let mut conditions = items(status, "/conditions").to_vec();
            conditions.retain(|c| c["type"] != "PodScheduled");
            conditions.push(scheduled);
            status["conditions"] = conditions.into();
        }
        Ok(())
    })?;
    Ok(respond(StatusCode::CREATED, success().to_string()))
}

/// Deletes a Pod as `kubectl drain` asks. There are no disruption budgets here that could refuse.
fn evict(context: &Context, target: &Target, eviction: &Value) -> Result<Response<Body>, Status> {
    let options = delete::of_value(&context.query, &eviction["deleteOptions"])?;
    context.api.delete(target.kind, &target.key(), &options)?;
    Ok(respond(StatusCode::CREATED, success().to_string()))
}

/// Mints a token for a ServiceAccount: `authentication.k8s.io/v1 TokenRequest`.
fn token(context: &Context, target: &Target, mut request: Value) -> Result<Response<Body>, Status> {
    let key = target.key();
    context.api.get(target.kind, &key)?;
    let seconds = number(&request, "/spec/expirationSeconds").unwrap_or(TOKEN_LIFETIME);
    if seconds < 600 {
        let why = "may not specify a duration less than 10 minutes";
        return Err(Status::invalid(target.kind, &key.name, &[Cause::invalid("spec.expirationSeconds", seconds, why)]));
    }
    let user = User { name: format!("system:serviceaccount:{}:{}", key.namespace, key.name) };
    let lifetime = Duration::from_secs(seconds.unsigned_abs());
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    request["kind"] = "TokenRequest".into();
    request["metadata"] = json!({"name": key.name, "namespace": key.namespace});
    if let Some(spec) = child(&mut request, "spec") {
        object::default(spec, "expirationSeconds", seconds);
        object::default(spec, "audiences", json!(["https://kubernetes.default.svc.cluster.local"]));
    }
    request["status"] = json!({
        "token": context.api.tokens.mint(user, lifetime),
        "expirationTimestamp": time_after(object::now(), seconds),
    });
    Ok(respond(StatusCode::CREATED, request.to_string()))
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

/// The container that `log` and `exec` mean when none is named, or the one that is if it exists.
pub(super) fn container(kind: &Kind, pod: &Value, asked: &str) -> Result<String, Status> {
    let all = ["containers", "initContainers", "ephemeralContainers"];
    let names: Vec<&str> =
        all.iter().flat_map(|l| items(pod, &format!("/spec/{l}"))).map(|c| text(c, "/name")).collect();
    let pod_name = name(pod);
    if asked.is_empty() {
        let preset = text(&pod["metadata"]["annotations"], "/kubectl.kubernetes.io~1default-container");
        return match names.as_slice() {
            _ if names.contains(&preset) => Ok(preset.to_owned()),
            [only] => Ok((*only).to_owned()),
            many => Err(Status::bad_request(format!(
                "a container name must be specified for {} {pod_name}, choose one of: [{}]",
                kind.singular,
                many.join(" ")
            ))),
        };
    }
    if names.contains(&asked) {
        return Ok(asked.to_owned());
    }
    Err(Status::bad_request(format!("container {asked} is not valid for pod {pod_name}")))
}

/// The node of a Pod.
pub(super) fn node(pod: &Value) -> Result<String, Status> {
    match text(pod, "/spec/nodeName") {
        "" => Err(Status::bad_request(format!("pod {} does not have a host assigned", name(pod)))),
        node => Ok(node.to_owned()),
    }
}
