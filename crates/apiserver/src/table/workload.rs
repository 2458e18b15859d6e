//! Pods and what makes them.

use serde_json::Value;

use super::{
    Printer,
    cells::{NONE, age, containers, or_none, selector, since},
    column, name, wide,
};
use crate::object::{deleting, entries, items, number, text};

pub(crate) const POD: Printer = Printer {
    columns: &[
        column("Name"),
        column("Ready"),
        column("Status"),
        column("Restarts"),
        column("Age"),
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ],
    row: |pod| {
        let statuses = items(pod, "/status/containerStatuses");
        let ready = statuses.iter().filter(|c| c["ready"] == true && !c["state"]["running"].is_null()).count();
        let total = items(pod, "/spec/containers").len();
        vec![
            name(pod),
            format!("{ready}/{total}").into(),
            pod_status(pod).into(),
            restarts(pod).into(),
            age(pod),
            or_none(text(pod, "/status/podIP")),
            or_none(text(pod, "/spec/nodeName")),
            or_none(text(pod, "/status/nominatedNodeName")),
            NONE.into(),
        ]
    },
};

/// One word for how a pod is: its phase, or why a container is not running.
fn pod_status(pod: &Value) -> String {
    let own = text(pod, "/status/reason");
    let phase = text(pod, "/status/phase");
    let mut word = if own.is_empty() { phase.to_owned() } else { own.to_owned() };
    let init = items(pod, "/status/initContainerStatuses");
    let total = items(pod, "/spec/initContainers").len();
    let waiting = init.iter().enumerate().find(|(_, c)| {
        let state = &c["state"];
        !(number(state, "/terminated/exitCode") == Some(0) || c["started"] == true && !state["running"].is_null())
    });
    let initializing = waiting.is_some();
    if let Some((done, status)) = waiting {
        word = match stopped(status) {
            Some(reason) if reason != "PodInitializing" => format!("Init:{reason}"),
            _ => format!("Init:{done}/{total}"),
        };
    } else {
        for status in items(pod, "/status/containerStatuses").iter().rev() {
            if let Some(reason) = stopped(status) {
                word = reason;
            }
        }
    }
    let running =
        items(pod, "/status/containerStatuses").iter().any(|c| c["ready"] == true && !c["state"]["running"].is_null());
    if !initializing && word == "Completed" && running {
        let ready = items(pod, "/status/conditions").iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
        word = if ready { "Running" } else { "NotReady" }.to_owned();
    }
    match (deleting(pod), own, phase) {
        (true, "NodeLost", _) => "Unknown".to_owned(),
        (true, _, "Succeeded" | "Failed") | (false, _, _) => word,
        (true, _, _) => "Terminating".to_owned(),
    }
}

/// Why a container waits or how it ended; `None` while it runs.
fn stopped(status: &Value) -> Option<String> {
    let state = &status["state"];
    let waiting = text(state, "/waiting/reason");
    if !waiting.is_empty() {
        return Some(waiting.to_owned());
    }
    let ended = state.get("terminated").filter(|t| !t.is_null())?;
    Some(match (text(ended, "/reason"), number(ended, "/signal").unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", number(ended, "/exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    })
}

/// How often containers were started again, and when last.
fn restarts(pod: &Value) -> String {
    let statuses = items(pod, "/status/containerStatuses");
    let count: i64 = statuses.iter().filter_map(|c| number(c, "/restartCount")).sum();
    let last = statuses.iter().map(|c| text(c, "/lastState/terminated/finishedAt")).max().unwrap_or_default();
    if count > 0 && !last.is_empty() { format!("{count} ({} ago)", since(last)) } else { count.to_string() }
}

fn count(object: &Value, pointer: &str) -> i64 {
    number(object, pointer).unwrap_or(0)
}

pub(crate) const DEPLOYMENT: Printer = Printer {
    columns: &[
        column("Name"),
        column("Ready"),
        column("Up-to-date"),
        column("Available"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    row: |o| {
        let [names, images] = containers(o);
        vec![
            name(o),
            format!("{}/{}", count(o, "/status/readyReplicas"), count(o, "/spec/replicas")).into(),
            count(o, "/status/updatedReplicas").into(),
            count(o, "/status/availableReplicas").into(),
            age(o),
            names,
            images,
            selector(o),
        ]
    },
};

pub(crate) const REPLICA_SET: Printer = Printer {
    columns: &[
        column("Name"),
        column("Desired"),
        column("Current"),
        column("Ready"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    row: |o| {
        let [names, images] = containers(o);
        vec![
            name(o),
            count(o, "/spec/replicas").into(),
            count(o, "/status/replicas").into(),
            count(o, "/status/readyReplicas").into(),
            age(o),
            names,
            images,
            selector(o),
        ]
    },
};

pub(crate) const DAEMON_SET: Printer = Printer {
    columns: &[
        column("Name"),
        column("Desired"),
        column("Current"),
        column("Ready"),
        column("Up-to-date"),
        column("Available"),
        column("Node Selector"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    row: |o| {
        let [names, images] = containers(o);
        let nodes = entries(o, "/spec/template/spec/nodeSelector").into_iter().flatten();
        let nodes: Vec<_> = nodes.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
        vec![
            name(o),
            count(o, "/status/desiredNumberScheduled").into(),
            count(o, "/status/currentNumberScheduled").into(),
            count(o, "/status/numberReady").into(),
            count(o, "/status/updatedNumberScheduled").into(),
            count(o, "/status/numberAvailable").into(),
            or_none(&nodes.join(",")),
            age(o),
            names,
            images,
            selector(o),
        ]
    },
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_told_in_one_word() {
        let status = |status: Value| pod_status(&json!({ "status": status }));
        assert_eq!(status(json!({"phase": "Pending"})), "Pending");
        let waiting =
            |reason| json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": reason}}}]});
        assert_eq!(status(waiting("ContainerCreating")), "ContainerCreating");
        assert_eq!(status(waiting("ErrImagePull")), "ErrImagePull");
        let ended = |state| json!({"phase": "Running", "containerStatuses": [{"state": {"terminated": state}}]});
        assert_eq!(status(ended(json!({"exitCode": 3}))), "ExitCode:3");
        assert_eq!(status(ended(json!({"exitCode": 137, "signal": 9}))), "Signal:9");
        assert_eq!(status(ended(json!({"exitCode": 1, "reason": "Error"}))), "Error");
        let deleted =
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}});
        assert_eq!(pod_status(&deleted), "Terminating");
        let init = json!({"spec": {"initContainers": [{}, {}]}, "status": {"phase": "Pending", "initContainerStatuses": [
            {"state": {"terminated": {"exitCode": 0}}}, {"state": {"running": {}}}]}});
        assert_eq!(pod_status(&init), "Init:1/2");
    }

    #[test]
    fn restarts_say_when() {
        let pod = json!({"status": {"containerStatuses": [{"restartCount": 2, "lastState": {"terminated":
            {"finishedAt": "2020-01-01T00:00:00Z"}}}]}});
        assert!(restarts(&pod).starts_with("2 (") && restarts(&pod).ends_with(" ago)"));
        assert_eq!(restarts(&json!({})), "0");
    }
}
