//! Defaults of a pod's specification, wherever one occurs.

use serde_json::{Value, json};

use crate::object::{child, default, entries, items, items_mut, text};

/// Fills in what a PodSpec leaves out.
pub(super) fn spec(spec: &mut Value) {
    default(spec, "restartPolicy", "Always");
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "schedulerName", "default-scheduler");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "securityContext", json!({}));
    // The two names of the service account are one field.
    if text(spec, "/serviceAccountName").is_empty() && !text(spec, "/serviceAccount").is_empty() {
        spec["serviceAccountName"] = spec["serviceAccount"].clone();
    }
    if !text(spec, "/serviceAccountName").is_empty() {
        spec["serviceAccount"] = spec["serviceAccountName"].clone();
    }
    let host_network = spec["hostNetwork"] == true;
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        items_mut(spec, list).iter_mut().for_each(|c| container(c, host_network));
    }
    items_mut(spec, "volumes").iter_mut().for_each(volume);
}

fn container(container: &mut Value, host_network: bool) {
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    default(container, "resources", json!({}));
    let latest = is_latest(text(container, "/image"));
    default(container, "imagePullPolicy", if latest { "Always" } else { "IfNotPresent" });
    for port in items_mut(container, "ports") {
        default(port, "protocol", "TCP");
        if host_network {
            let number = port["containerPort"].clone();
            default(port, "hostPort", number);
        }
    }
    for variable in items_mut(container, "env") {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
            default(field, "apiVersion", "v1");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(name).filter(|p| p.is_object()) {
            self::probe(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(get) = container.pointer_mut(&format!("/lifecycle/{hook}/httpGet")) {
            http_get(get);
        }
    }
    // A limit without a request is the request as well.
    if let Some(limits) = entries(container, "/resources/limits").cloned()
        && let Some(requests) = child(&mut container["resources"], "requests")
    {
        limits.into_iter().for_each(|(name, quantity)| default(requests, &name, quantity));
    }
}

fn probe(probe: &mut Value) {
    for (field, preset) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        default(probe, field, preset);
    }
    if let Some(get) = probe.get_mut("httpGet") {
        http_get(get);
    }
    if let Some(grpc) = probe.get_mut("grpc") {
        default(grpc, "service", "");
    }
}

fn http_get(get: &mut Value) {
    default(get, "path", "/");
    default(get, "scheme", "HTTP");
}

fn volume(volume: &mut Value) {
    for kind in ["configMap", "secret", "projected", "downwardAPI"] {
        if let Some(source) = volume.get_mut(kind).filter(|s| s.is_object()) {
            default(source, "defaultMode", 0o644);
        }
    }
    if let Some(path) = volume.get_mut("hostPath") {
        default(path, "type", "");
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in items_mut(projected, "sources") {
            if let Some(token) = source.get_mut("serviceAccountToken") {
                default(token, "expirationSeconds", 3600);
            }
        }
    }
    let sources = volume.as_object().map_or(0, |v| v.keys().filter(|k| *k != "name").count());
    if sources == 0 {
        default(volume, "emptyDir", json!({}));
    }
}

/// Whether an image reference means the newest one: no tag and no digest, or the tag `latest`.
fn is_latest(image: &str) -> bool {
    let last = image.rsplit('/').next().unwrap_or_default();
    !last.contains('@') && last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// What the admission plug-ins of kube-apiserver add to a new Pod: service account, priority, tolerations.
pub(super) fn admit(spec: &mut Value) {
    default(spec, "serviceAccountName", "default");
    spec["serviceAccount"] = spec["serviceAccountName"].clone();
    // The two built-in priority classes; other names are checked by `validate`.
    let priority = match text(spec, "/priorityClassName") {
        "system-node-critical" => 2_000_001_000,
        "system-cluster-critical" => 2_000_000_000,
        _ => 0,
    };
    default(spec, "priority", priority);
    default(spec, "preemptionPolicy", "PreemptLowerPriority");
    for taint in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = items(spec, "/tolerations").iter().any(|t| {
            matches!(text(t, "/key"), key if key == taint || key.is_empty())
                && matches!(text(t, "/effect"), "" | "NoExecute")
        });
        if !tolerated {
            let toleration =
                json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
            default(spec, "tolerations", json!([]));
            spec["tolerations"].as_array_mut().into_iter().for_each(|list| list.push(toleration.clone()));
        }
    }
}

/// The quality-of-service class: by whether containers ask for, and are limited to, cpu and memory.
pub(super) fn quality(spec: &Value) -> &'static str {
    let containers = || items(spec, "/containers").iter().chain(items(spec, "/initContainers"));
    let asks = |c: &Value| {
        ["requests", "limits"].iter().any(|f| entries(c, &format!("/resources/{f}")).is_some_and(|m| !m.is_empty()))
    };
    let fixed = |c: &Value| {
        ["cpu", "memory"].iter().all(|r| {
            let limit = text(c, &format!("/resources/limits/{r}"));
            !limit.is_empty() && limit == text(c, &format!("/resources/requests/{r}"))
        })
    };
    match (containers().any(asks), containers().all(fixed)) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_decide_the_pull_policy() {
        for (image, latest) in [
            ("myapp", true),
            ("myapp:latest", true),
            ("myapp:v1", false),
            ("localhost:5000/myapp", true),
            ("a/b@sha256:00", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn limits_are_requests_too() {
        let mut pod = json!({"containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]});
        spec(&mut pod);
        assert_eq!(pod["containers"][0]["resources"]["requests"]["cpu"], "1");
        assert_eq!(quality(&pod), "Guaranteed");
    }

    #[test]
    fn a_pod_that_tolerates_all_gets_no_tolerations() {
        let mut pod = json!({"tolerations": [{"operator": "Exists"}]});
        admit(&mut pod);
        assert_eq!(pod["tolerations"].as_array().unwrap().len(), 1);
        let mut pod = json!({});
        admit(&mut pod);
        assert_eq!(pod["tolerations"].as_array().unwrap().len(), 2);
    }
}
