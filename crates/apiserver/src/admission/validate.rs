//! What Kubernetes refuses, in its words: the rules a user of a lab is likely to meet, not all of them.

use std::{collections::HashSet, net::IpAddr};

use serde_json::{Value, json};

use super::{Causes, meta};
use crate::{
    object::{deleting, entries, items, items_mut, number, remove, text},
    selector::Labels,
    status::Cause,
};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// A Node.
pub(crate) fn node(object: &Value, causes: &mut Causes) {
    for (index, cidr) in items(object, "/spec/podCIDRs").iter().enumerate() {
        if cidr.as_str().is_none_or(|c| c.parse::<ipnet::IpNet>().is_err()) {
            let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            causes.push(Cause::invalid(format!("spec.podCIDRs[{index}]"), cidr.clone(), why));
        }
    }
}

/// A Node keeps the pod range it was given.
pub(crate) fn node_update(old: &Value, new: &Value, causes: &mut Causes) {
    if !items(old, "/spec/podCIDRs").is_empty() && old["spec"]["podCIDRs"] != new["spec"]["podCIDRs"] {
        causes.push(Cause::forbidden("spec.podCIDRs", "node updates may not change podCIDR except from \"\" to valid"));
    }
}

/// A Pod.
pub(crate) fn pod(object: &Value, causes: &mut Causes) {
    pod_spec(&object["spec"], "spec", causes);
}

/// What of a Pod may change: images, tolerations and the like. (`spec.nodeName` is set by the binding subresource.)
pub(crate) fn pod_update(old: &Value, new: &Value, causes: &mut Causes) {
    let frozen = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        for field in ["activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations", "schedulingGates"] {
            remove(&mut spec, field);
        }
        for list in ["containers", "initContainers"] {
            items_mut(&mut spec, list).iter_mut().for_each(|c| c["image"] = Value::Null);
        }
        spec
    };
    if frozen(old) != frozen(new) {
        let why = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        causes.push(Cause::forbidden("spec", why));
    }
}

fn pod_spec(spec: &Value, path: &str, causes: &mut Causes) {
    let volumes: HashSet<&str> = items(spec, "/volumes").iter().map(|v| text(v, "/name")).collect();
    if items(spec, "/containers").is_empty() {
        causes.push(Cause::required(format!("{path}.containers"), ""));
    }
    let mut names = HashSet::new();
    for list in ["initContainers", "containers"] {
        for (index, container) in items(spec, &format!("/{list}")).iter().enumerate() {
            let path = format!("{path}.{list}[{index}]");
            self::container(container, &path, &volumes, causes);
            let name = text(container, "/name");
            if !name.is_empty() && !names.insert(name) {
                causes.push(Cause::duplicate(format!("{path}.name"), name));
            }
        }
    }
    one_of(spec, path, "restartPolicy", &["Always", "OnFailure", "Never"], causes);
    one_of(spec, path, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], causes);
    for (key, value) in entries(spec, "/nodeSelector").into_iter().flatten() {
        meta::labels(&format!("{path}.nodeSelector"), key, value, causes);
    }
}

fn container(container: &Value, path: &str, volumes: &HashSet<&str>, causes: &mut Causes) {
    match text(container, "/name") {
        "" => causes.push(Cause::required(format!("{path}.name"), "")),
        name => {
            if let Err(why) = meta::label(name) {
                causes.push(Cause::invalid(format!("{path}.name"), name, why));
            }
        }
    }
    if text(container, "/image").trim().is_empty() {
        causes.push(Cause::required(format!("{path}.image"), ""));
    }
    one_of(container, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], causes);
    for (index, port) in items(container, "/ports").iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        port_number(port, &path, "containerPort", causes);
        one_of(port, &path, "protocol", PROTOCOLS, causes);
    }
    for (index, mount) in items(container, "/volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if !volumes.contains(text(mount, "/name")) {
            causes.push(Cause::not_found(format!("{path}.name"), text(mount, "/name")));
        }
        if text(mount, "/mountPath").is_empty() {
            causes.push(Cause::required(format!("{path}.mountPath"), ""));
        }
    }
    for (index, variable) in items(container, "/env").iter().enumerate() {
        if text(variable, "/name").is_empty() {
            causes.push(Cause::required(format!("{path}.env[{index}].name"), ""));
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get(name).filter(|p| p.is_object()) {
            let handlers = ["httpGet", "tcpSocket", "exec", "grpc"].iter().filter(|h| !probe[**h].is_null()).count();
            match handlers {
                0 => causes.push(Cause::required(format!("{path}.{name}"), "must specify a handler type")),
                1 => {}
                _ => {
                    causes.push(Cause::forbidden(format!("{path}.{name}"), "may not specify more than 1 handler type"))
                }
            }
        }
    }
}

/// A Deployment.
pub(crate) fn deployment(object: &Value, causes: &mut Causes) {
    workload(object, causes);
    not_negative(object, "replicas", causes);
    one_of(&object["spec"]["strategy"], "spec.strategy", "type", &["Recreate", "RollingUpdate"], causes);
    let rolling = &object["spec"]["strategy"]["rollingUpdate"];
    if text(object, "/spec/strategy/type") == "Recreate" && !rolling.is_null() {
        let why = "may not be specified when strategy `type` is 'Recreate'";
        causes.push(Cause::forbidden("spec.strategy.rollingUpdate", why));
    }
    if rolling.is_object() {
        let path = "spec.strategy.rollingUpdate";
        if is_zero(&rolling["maxUnavailable"]) && is_zero(&rolling["maxSurge"]) {
            let why = "may not be 0 when `maxSurge` is 0";
            causes.push(Cause::invalid(format!("{path}.maxUnavailable"), rolling["maxUnavailable"].clone(), why));
        }
        for field in ["maxUnavailable", "maxSurge"] {
            count_or_percent(&rolling[field], &format!("{path}.{field}"), causes);
        }
    }
}

/// A ReplicaSet.
pub(crate) fn replica_set(object: &Value, causes: &mut Causes) {
    workload(object, causes);
    not_negative(object, "replicas", causes);
}

/// A DaemonSet.
pub(crate) fn daemon_set(object: &Value, causes: &mut Causes) {
    workload(object, causes);
    one_of(&object["spec"]["updateStrategy"], "spec.updateStrategy", "type", &["RollingUpdate", "OnDelete"], causes);
}

/// `spec.selector` of a workload never changes.
pub(crate) fn selector_is_immutable(old: &Value, new: &Value, causes: &mut Causes) {
    if old["spec"]["selector"] != new["spec"]["selector"] {
        causes.push(Cause::invalid("spec.selector", new["spec"]["selector"].clone(), "field is immutable"));
    }
}

fn workload(object: &Value, causes: &mut Causes) {
    let spec = &object["spec"];
    let selector = &spec["selector"];
    let empty = entries(selector, "/matchLabels").is_none_or(|l| l.is_empty())
        && items(selector, "/matchExpressions").is_empty();
    if empty {
        // The type does not tell a missing selector from an empty one.
        causes.push(Cause::required("spec.selector", "it must not be empty"));
    }
    let labels = &spec["template"]["metadata"]["labels"];
    match Labels::of_object(selector) {
        Err(why) => causes.push(Cause::invalid("spec.selector", selector.clone(), why)),
        Ok(parsed) if !empty && !parsed.matches(labels) => {
            let shown = if labels.is_null() { json!({}) } else { labels.clone() };
            let why = "`selector` does not match template `labels`";
            causes.push(Cause::invalid("spec.template.metadata.labels", shown, why));
        }
        Ok(_) => {}
    }
    for (key, value) in entries(labels, "").into_iter().flatten() {
        meta::labels("spec.template.labels", key, value, causes);
    }
    pod_spec(&spec["template"]["spec"], "spec.template.spec", causes);
    if !matches!(text(spec, "/template/spec/restartPolicy"), "" | "Always") {
        let policy = spec["template"]["spec"]["restartPolicy"].clone();
        causes.push(Cause::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
}

/// A Service, apart from what is allocated.
pub(crate) fn service(object: &Value, causes: &mut Causes) {
    let spec = &object["spec"];
    one_of(spec, "spec", "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], causes);
    one_of(spec, "spec", "sessionAffinity", &["ClientIP", "None"], causes);
    one_of(spec, "spec", "internalTrafficPolicy", &["Cluster", "Local"], causes);
    one_of(spec, "spec", "externalTrafficPolicy", &["Cluster", "Local"], causes);
    let kind = text(spec, "/type");
    if kind == "ExternalName" {
        match text(spec, "/externalName") {
            "" => causes.push(Cause::required("spec.externalName", "")),
            name => {
                if let Err(why) = meta::subdomain(name.trim_end_matches('.')) {
                    causes.push(Cause::invalid("spec.externalName", name, why));
                }
            }
        }
        if !matches!(text(spec, "/clusterIP"), "" | "None") {
            causes.push(Cause::forbidden("spec.clusterIPs[0]", "may not be set when `type` is 'ExternalName'"));
        }
    }
    let headless = text(spec, "/clusterIP") == "None";
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        let why = format!("may not be set to 'None' for {kind} services");
        causes.push(Cause::invalid("spec.clusterIPs[0]", "None", why));
    }
    if items(spec, "/ports").is_empty() && kind != "ExternalName" && !headless {
        causes.push(Cause::required("spec.ports", ""));
    }
    service_ports(spec, kind, causes);
    if let Some(seconds) = number(spec, "/sessionAffinityConfig/clientIP/timeoutSeconds")
        && !(1..=86400).contains(&seconds)
    {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        causes.push(Cause::invalid(field, seconds, "must be greater than 0 and less than 86400"));
    }
    for (index, address) in items(spec, "/externalIPs").iter().enumerate() {
        ip(address, &format!("spec.externalIPs[{index}]"), causes);
    }
    for (key, value) in entries(spec, "/selector").into_iter().flatten() {
        meta::labels("spec.selector", key, value, causes);
    }
}

fn service_ports(spec: &Value, kind: &str, causes: &mut Causes) {
    let ports = items(spec, "/ports");
    let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        match text(port, "/name") {
            "" if ports.len() > 1 => causes.push(Cause::required(format!("{path}.name"), "")),
            "" => {}
            name => {
                if let Err(why) = meta::label(name) {
                    causes.push(Cause::invalid(format!("{path}.name"), name, why));
                } else if !names.insert(name) {
                    causes.push(Cause::duplicate(format!("{path}.name"), name));
                }
            }
        }
        port_number(port, &path, "port", causes);
        one_of(port, &path, "protocol", PROTOCOLS, causes);
        if !numbers.insert((text(port, "/protocol"), number(port, "/port"))) {
            let value = json!({"port": port["port"], "protocol": port["protocol"]});
            causes.push(Cause::duplicate(path.clone(), value));
        }
        match &port["targetPort"] {
            Value::Number(_) => port_number(port, &path, "targetPort", causes),
            Value::String(name) if !is_port_name(name) => {
                let why = "must be a port name: at most 15 characters of a-z, 0-9 and '-', with at least one letter";
                causes.push(Cause::invalid(format!("{path}.targetPort"), name.as_str(), why));
            }
            _ => {}
        }
        if kind == "ClusterIP" && number(port, "/nodePort").is_some_and(|p| p != 0) {
            causes.push(Cause::forbidden(format!("{path}.nodePort"), "may not be used when `type` is 'ClusterIP'"));
        }
    }
}

fn is_port_name(name: &str) -> bool {
    name.len() <= 15 && name.bytes().any(|b| b.is_ascii_lowercase()) && meta::label(name).is_ok()
}

/// The address of a Service never changes while it has one.
pub(crate) fn service_update(old: &Value, new: &Value, causes: &mut Causes) {
    let (was, is) = (text(old, "/spec/clusterIP"), text(new, "/spec/clusterIP"));
    let external = |v: &Value| text(v, "/spec/type") == "ExternalName";
    if !was.is_empty() && was != is && !external(old) && !external(new) {
        causes.push(Cause::invalid("spec.clusterIPs[0]", json!([is]), "may not change once set"));
    }
}

/// An Endpoints object.
pub(crate) fn endpoints(object: &Value, causes: &mut Causes) {
    for (index, subset) in items(object, "/subsets").iter().enumerate() {
        for list in ["addresses", "notReadyAddresses"] {
            for (at, address) in items(subset, &format!("/{list}")).iter().enumerate() {
                ip(&address["ip"], &format!("subsets[{index}].{list}[{at}].ip"), causes);
            }
        }
        for (at, port) in items(subset, "/ports").iter().enumerate() {
            port_number(port, &format!("subsets[{index}].ports[{at}]"), "port", causes);
        }
    }
}

/// An EndpointSlice.
pub(crate) fn endpoint_slice(object: &Value, causes: &mut Causes) {
    match text(object, "/addressType") {
        "" => causes.push(Cause::required("addressType", "")),
        _ => one_of(object, "", "addressType", &["FQDN", "IPv4", "IPv6"], causes),
    }
    for (index, endpoint) in items(object, "/endpoints").iter().enumerate() {
        let path = format!("endpoints[{index}].addresses");
        if items(endpoint, "/addresses").is_empty() {
            causes.push(Cause::required(&path, "must contain at least 1 address"));
        }
        if text(object, "/addressType") != "FQDN" {
            for (at, address) in items(endpoint, "/addresses").iter().enumerate() {
                ip(address, &format!("{path}[{at}]"), causes);
            }
        }
    }
}

/// The address family of an EndpointSlice never changes.
pub(crate) fn endpoint_slice_update(old: &Value, new: &Value, causes: &mut Causes) {
    if old["addressType"] != new["addressType"] {
        causes.push(Cause::invalid("addressType", new["addressType"].clone(), "field is immutable"));
    }
}

/// A ConfigMap or a Secret.
pub(crate) fn config_map(object: &Value, causes: &mut Causes) {
    for list in ["data", "binaryData"] {
        for (key, _) in entries(object, &format!("/{list}")).into_iter().flatten() {
            let fine = key.len() <= 253 && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            if !fine || matches!(key.as_str(), "" | "." | "..") {
                let why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
                causes.push(Cause::invalid(format!("{list}[{key}]"), key.as_str(), why));
            }
        }
    }
}

/// A ConfigMap or Secret marked immutable keeps its data.
pub(crate) fn immutable_data(old: &Value, new: &Value, causes: &mut Causes) {
    let changed = ["immutable", "data", "binaryData"].iter().find(|f| old[**f] != new[**f]);
    if let (true, false, Some(field)) = (old["immutable"] == true, deleting(new), changed) {
        causes.push(Cause::forbidden(*field, "field is immutable when `immutable` is set"));
    }
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn one_of(object: &Value, path: &str, field: &str, allowed: &[&str], causes: &mut Causes) {
    if let Some(value) = object[field].as_str()
        && !allowed.contains(&value)
    {
        causes.push(Cause::not_supported(join(path, field), value, allowed));
    }
}

fn port_number(object: &Value, path: &str, field: &str, causes: &mut Causes) {
    match number(object, &format!("/{field}")) {
        Some(1..=65535) => {}
        port => {
            causes.push(Cause::invalid(join(path, field), port.unwrap_or(0), "must be between 1 and 65535, inclusive"))
        }
    }
}

fn not_negative(object: &Value, field: &str, causes: &mut Causes) {
    if let Some(n) = number(object, &format!("/spec/{field}")).filter(|n| *n < 0) {
        causes.push(Cause::invalid(format!("spec.{field}"), n, "must be greater than or equal to 0"));
    }
}

fn ip(value: &Value, field: &str, causes: &mut Causes) {
    if value.as_str().is_none_or(|a| a.parse::<IpAddr>().is_err()) {
        causes.push(Cause::invalid(
            field,
            value.clone(),
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ));
    }
}

fn is_zero(value: &Value) -> bool {
    value == 0 || value == "0%"
}

fn count_or_percent(value: &Value, field: &str, causes: &mut Causes) {
    let fine = match value {
        Value::Null => true,
        Value::Number(n) => n.as_i64().is_some_and(|n| n >= 0),
        Value::String(s) => s.strip_suffix('%').is_some_and(|n| n.parse::<u32>().is_ok()),
        _ => false,
    };
    if !fine {
        let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
        causes.push(Cause::invalid(field, value.clone(), why));
    }
}
