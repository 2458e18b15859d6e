//! Nodes, namespaces, configuration, events.

use serde_json::Value;

use super::{
    Printer,
    cells::{age, or_none, since},
    column, name, wide,
};
use crate::object::{entries, items, number, text};

pub(crate) const NAMESPACE: Printer = Printer {
    columns: &[column("Name"), column("Status"), column("Age")],
    row: |o| vec![name(o), text(o, "/status/phase").into(), age(o)],
};

pub(crate) const NODE: Printer = Printer {
    columns: &[
        column("Name"),
        column("Status"),
        column("Roles"),
        column("Age"),
        column("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ],
    row: |o| {
        let address = |kind: &str| {
            let found = items(o, "/status/addresses").iter().find(|a| a["type"] == kind);
            or_none(found.map_or("", |a| text(a, "/address")))
        };
        let info = |field: &str| match text(o, &format!("/status/nodeInfo/{field}")) {
            "" => "<unknown>".into(),
            text => Value::from(text),
        };
        vec![
            name(o),
            node_status(o).into(),
            or_none(&roles(o)),
            age(o),
            text(o, "/status/nodeInfo/kubeletVersion").into(),
            address("InternalIP"),
            address("ExternalIP"),
            info("osImage"),
            info("kernelVersion"),
            info("containerRuntimeVersion"),
        ]
    },
};

fn node_status(node: &Value) -> String {
    let ready = items(node, "/status/conditions").iter().find(|c| c["type"] == "Ready");
    let word = match ready.map(|c| text(c, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if node["spec"]["unschedulable"] == true { format!("{word},SchedulingDisabled") } else { word.to_owned() }
}

fn roles(node: &Value) -> String {
    let labels = entries(node, "/metadata/labels").into_iter().flatten();
    let role = |(key, value): (&String, &Value)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) if !role.is_empty() => Some(role.to_owned()),
        _ if key == "kubernetes.io/role" => value.as_str().map(str::to_owned),
        _ => None,
    };
    let mut roles: Vec<String> = labels.filter_map(role).collect();
    roles.sort();
    roles.join(",")
}

fn keys(object: &Value, fields: &[&str]) -> Value {
    fields.iter().map(|f| entries(object, &format!("/{f}")).map_or(0, |m| m.len())).sum::<usize>().into()
}

pub(crate) const CONFIG_MAP: Printer = Printer {
    columns: &[column("Name"), column("Data"), column("Age")],
    row: |o| vec![name(o), keys(o, &["data", "binaryData"]), age(o)],
};

pub(crate) const SECRET: Printer = Printer {
    columns: &[column("Name"), column("Type"), column("Data"), column("Age")],
    row: |o| vec![name(o), text(o, "/type").into(), keys(o, &["data"]), age(o)],
};

pub(crate) const SERVICE_ACCOUNT: Printer = Printer {
    columns: &[column("Name"), column("Secrets"), column("Age")],
    row: |o| vec![name(o), items(o, "/secrets").len().into(), age(o)],
};

pub(crate) const LEASE: Printer = Printer {
    columns: &[column("Name"), column("Holder"), column("Age")],
    row: |o| vec![name(o), text(o, "/spec/holderIdentity").into(), age(o)],
};

pub(crate) const EVENT: Printer = Printer {
    columns: &[
        column("Last Seen"),
        column("Type"),
        column("Reason"),
        column("Object"),
        wide("Subobject"),
        wide("Source"),
        column("Message"),
        wide("First Seen"),
        wide("Count"),
        wide("Name"),
    ],
    row: |o| {
        let first = ["/firstTimestamp", "/eventTime"].map(|p| text(o, p)).into_iter().find(|t| !t.is_empty());
        let first = first.map_or_else(|| "<unknown>".to_owned(), since);
        let last =
            ["/series/lastObservedTime", "/lastTimestamp"].map(|p| text(o, p)).into_iter().find(|t| !t.is_empty());
        let last = last.map_or_else(|| first.clone(), since);
        let (component, host) = match text(o, "/source/component") {
            "" => (text(o, "/reportingComponent"), text(o, "/reportingInstance")),
            component => (component, text(o, "/source/host")),
        };
        let source = if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
        let object =
            format!("{}/{}", text(o, "/involvedObject/kind").to_ascii_lowercase(), text(o, "/involvedObject/name"));
        let count = [number(o, "/series/count"), number(o, "/count")].into_iter().flatten().find(|c| *c > 0);
        vec![
            last.into(),
            text(o, "/type").into(),
            text(o, "/reason").into(),
            object.into(),
            text(o, "/involvedObject/fieldPath").into(),
            source.into(),
            text(o, "/message").trim().into(),
            first.into(),
            count.unwrap_or(1).into(),
            name(o),
        ]
    },
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_say_how_they_are() {
        let node = json!({"metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/edge": ""}},
            "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "172.25.2.1"}]}});
        let cells = NODE.cells(&node);
        assert_eq!(cells[1], "Ready,SchedulingDisabled");
        assert_eq!(cells[2], "edge,worker");
        assert_eq!(cells[5], "172.25.2.1");
        assert_eq!(cells[6], "<none>");
        assert_eq!(NODE.cells(&json!({}))[1], "Unknown");
    }
}
