//! What kube-apiserver fills in when a client leaves it out.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::pod;
use crate::object::{child, default, entries, items, items_mut, number, remove, text};

/// A new object's status is not the client's to set.
pub(crate) fn without_status(object: &mut Value) {
    object["status"] = json!({});
}

/// A new Service has no load balancer yet.
pub(crate) fn new_service(object: &mut Value) {
    object["status"] = json!({"loadBalancer": {}});
}

/// Defaults of a Namespace.
pub(crate) fn namespace(object: &mut Value) {
    let name = text(object, "/metadata/name").to_owned();
    if let Some(labels) = child(&mut object["metadata"], "labels") {
        labels["kubernetes.io/metadata.name"] = name.into();
    }
}

/// A namespace starts active, and is held by the finalizer that empties it.
pub(crate) fn new_namespace(object: &mut Value) {
    object["spec"]["finalizers"] = json!(["kubernetes"]);
    object["status"] = json!({"phase": "Active"});
}

/// Defaults of a Pod.
pub(crate) fn pod(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    pod::spec(spec);
    default(spec, "enableServiceLinks", true);
}

/// What admission adds to a new Pod.
pub(crate) fn new_pod(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    pod::admit(spec);
    object["status"] = json!({"phase": "Pending", "qosClass": pod::quality(&object["spec"])});
}

/// Defaults of a Service, except what is allocated.
pub(crate) fn service(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    default(spec, "type", "ClusterIP");
    default(spec, "sessionAffinity", "None");
    match text(spec, "/sessionAffinity") {
        "ClientIP" => {
            let client = child(spec, "sessionAffinityConfig").and_then(|c| child(c, "clientIP"));
            client.into_iter().for_each(|c| default(c, "timeoutSeconds", 10800));
        }
        _ => drop(remove(spec, "sessionAffinityConfig")),
    }
    for port in items_mut(spec, "ports") {
        default(port, "protocol", "TCP");
        if matches!(&port["targetPort"], Value::Null) || port["targetPort"] == 0 || port["targetPort"] == "" {
            port["targetPort"] = port["port"].clone();
        }
    }
    let kind = text(spec, "/type").to_owned();
    if kind != "ExternalName" {
        default(spec, "internalTrafficPolicy", "Cluster");
    }
    let external = matches!(kind.as_str(), "NodePort" | "LoadBalancer") || !items(spec, "/externalIPs").is_empty();
    if external && kind != "ExternalName" {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    match kind.as_str() {
        "LoadBalancer" => default(spec, "allocateLoadBalancerNodePorts", true),
        _ => drop(remove(spec, "allocateLoadBalancerNodePorts")),
    }
}

/// Defaults of an Endpoints object.
pub(crate) fn endpoints(object: &mut Value) {
    for subset in items_mut(object, "subsets") {
        items_mut(subset, "ports").iter_mut().for_each(|port| default(port, "protocol", "TCP"));
    }
}

/// Defaults of an EndpointSlice.
pub(crate) fn endpoint_slice(object: &mut Value) {
    for port in items_mut(object, "ports") {
        default(port, "protocol", "TCP");
        default(port, "name", "");
    }
}

/// Defaults of a Secret; `stringData` becomes `data`.
pub(crate) fn secret(object: &mut Value) {
    default(object, "type", "Opaque");
    if let Some(Value::Object(plain)) = remove(object, "stringData")
        && let Some(data) = child(object, "data")
    {
        for (key, text) in plain {
            data[key] = STANDARD.encode(text.as_str().unwrap_or_default()).into();
        }
    }
}

/// Defaults of a Deployment.
pub(crate) fn deployment(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = child(spec, "strategy") {
        default(strategy, "type", "RollingUpdate");
        if text(strategy, "/type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            default(rolling, "maxUnavailable", "25%");
            default(rolling, "maxSurge", "25%");
        }
    }
    template(spec);
}

/// Defaults of a ReplicaSet.
pub(crate) fn replica_set(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    default(spec, "replicas", 1);
    template(spec);
}

/// Defaults of a DaemonSet.
pub(crate) fn daemon_set(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    default(spec, "revisionHistoryLimit", 10);
    if let Some(strategy) = child(spec, "updateStrategy") {
        default(strategy, "type", "RollingUpdate");
        if text(strategy, "/type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            default(rolling, "maxUnavailable", 1);
            default(rolling, "maxSurge", 0);
        }
    }
    template(spec);
}

fn template(spec: &mut Value) {
    if let Some(template) = child(spec, "template")
        && let Some(inner) = child(template, "spec")
    {
        pod::spec(inner);
    }
}

/// The `generation` a new state of an object has: one more when anything but metadata and status changed.
pub(crate) fn generation(old: &Value, new: &Value) -> i64 {
    let parts = |v: &Value| {
        entries(v, "").map(|m| {
            m.iter()
                .filter(|(k, _)| !matches!(k.as_str(), "metadata" | "status"))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect::<Vec<_>>()
        })
    };
    let before = number(old, "/metadata/generation").unwrap_or(1);
    if parts(old) == parts(new) { before } else { before + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_gets_what_kubernetes_gives_it() {
        let mut service = json!({"spec": {"ports": [{"port": 80}]}});
        super::service(&mut service);
        assert_eq!(
            service["spec"],
            json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]})
        );
    }

    #[test]
    fn string_data_is_encoded_over_data() {
        let mut secret = json!({"data": {"a": "eA=="}, "stringData": {"a": "y", "b": "z"}});
        super::secret(&mut secret);
        assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "eQ==", "b": "eg=="}}));
    }

    #[test]
    fn only_a_change_of_the_specification_is_a_new_generation() {
        let old = json!({"metadata": {"generation": 3}, "spec": {"a": 1}, "status": {}});
        let mut new = old.clone();
        new["status"] = json!({"x": 1});
        new["metadata"]["labels"] = json!({"x": "y"});
        assert_eq!(generation(&old, &new), 3);
        new["spec"]["a"] = 2.into();
        assert_eq!(generation(&old, &new), 4);
    }
}
