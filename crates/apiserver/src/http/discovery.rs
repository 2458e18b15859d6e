//! What is served: `/api`, `/apis`, `/version` and the OpenAPI documents. All of it follows from the table of kinds.

use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::{
    body::{Body, json as respond, whole},
    openapi,
};
use crate::{
    kinds::{KINDS, Kind, group_versions},
    status::Status,
};

/// `/version`.
pub(super) fn version() -> Response<Body> {
    let version = json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.0+podwire", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    });
    respond(StatusCode::OK, version.to_string())
}

/// Answers what is discovery; `None` for everything else.
pub(super) fn answer(method: &Method, path: &str, accept: &str) -> Option<Response<Body>> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let aggregated = accept.split(',').map(str::trim).any(|range| {
        let has = |part| range.split(';').any(|p| p.trim() == part);
        has("as=APIGroupDiscoveryList") && has("g=apidiscovery.k8s.io") && has("v=v2")
    });
    let document = match parts.as_slice() {
        ["api" | "apis"] if aggregated => return Some(list_aggregated(parts == ["api"])),
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        ["apis"] => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups()}),
        ["api", version] => resources("", version)?,
        ["apis", group] => group_versions().into_iter().find(|(g, _)| g == group && !g.is_empty()).map(group_of)?,
        ["apis", group, version] => resources(group, version)?,
        ["openapi", "v2"] => return Some(openapi::v2(accept)),
        ["openapi", "v3"] => openapi::index(),
        ["openapi", "v3", "api", version] => openapi::v3("", version)?,
        ["openapi", "v3", "apis", group, version] => openapi::v3(group, version)?,
        _ => return None,
    };
    if method != Method::GET {
        return Some(super::error(&Status::method_not_allowed()));
    }
    Some(respond(StatusCode::OK, document.to_string()))
}

fn groups() -> Vec<Value> {
    group_versions().into_iter().filter(|(group, _)| !group.is_empty()).map(group_of).collect()
}

fn group_of((group, version): (&str, &str)) -> Value {
    let entry = json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": [entry], "preferredVersion": entry})
}

fn kinds_of<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Kind> + 'a {
    KINDS.iter().filter(move |k| k.group == group && k.version == version)
}

/// The kind that a subresource speaks in, and its verbs.
fn subresource(kind: &Kind, name: &str) -> ((&'static str, &'static str, &'static str), &'static [&'static str]) {
    match name {
        "scale" => (("autoscaling", "v1", "Scale"), &["get", "patch", "update"]),
        "binding" => (("", "v1", "Binding"), &["create"]),
        "eviction" => (("policy", "v1", "Eviction"), &["create"]),
        "token" => (("authentication.k8s.io", "v1", "TokenRequest"), &["create"]),
        "exec" => (("", "v1", "PodExecOptions"), &["create", "get"]),
        "finalize" => ((kind.group, kind.version, kind.kind), &["update"]),
        "log" => ((kind.group, kind.version, kind.kind), &["get"]),
        _ => ((kind.group, kind.version, kind.kind), &["get", "patch", "update"]),
    }
}

/// `metav1.APIResourceList`.
fn resources(group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for kind in kinds_of(group, version) {
        list.push(json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": kind.verbs(), "shortNames": kind.short_names, "categories": kind.categories,
        }));
        for name in kind.subresources {
            let ((group, version, speaks), verbs) = subresource(kind, name);
            let mut entry = json!({
                "name": format!("{}/{name}", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": speaks, "verbs": verbs,
            });
            if group != kind.group {
                entry["group"] = group.into();
                entry["version"] = version.into();
            }
            list.push(entry);
        }
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!list.is_empty()).then(
        || json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}),
    )
}

/// Everything of `/api` or `/apis` in one document: `apidiscovery.k8s.io/v2`.
fn list_aggregated(core: bool) -> Response<Body> {
    let items: Vec<Value> = group_versions()
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, version)| {
            let resources: Vec<Value> = kinds_of(group, version).map(aggregated).collect();
            let versions = json!([{"version": version, "resources": resources, "freshness": "Current"}]);
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    let document = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items});
    let kind = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    whole(StatusCode::OK, kind, document.to_string())
}

fn aggregated(kind: &'static Kind) -> Value {
    let told = |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|name| {
            let (speaks, verbs) = subresource(kind, name);
            json!({"subresource": name, "responseKind": told(speaks), "verbs": verbs})
        })
        .collect();
    json!({
        "resource": kind.plural, "responseKind": told((kind.group, kind.version, kind.kind)),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" }, "singularResource": kind.singular,
        "verbs": kind.verbs(), "shortNames": kind.short_names, "categories": kind.categories,
        "subresources": subresources,
    })
}
