//! What the scheduler and the DaemonSet controller ask about a node: would it take this pod?

use podwire_k8s::k8s_openapi::api::core::v1::{Affinity, Node, NodeSelectorTerm, PodSpec, Taint, Toleration};

use super::meta;

/// Conditions of a node and the `NoSchedule` taint that each brings: condition, its value, taint.
pub const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", "node.kubernetes.io/not-ready"),
    ("Ready", "Unknown", "node.kubernetes.io/unreachable"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];
/// The taint of a node with `spec.unschedulable`.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// A condition's value on the node: `True`, `False`, `Unknown`; `None` without that condition.
pub fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    let mut conditions = node.status.as_ref()?.conditions.iter().flatten();
    Some(conditions.find(|c| c.type_ == kind)?.status.as_str())
}

/// The keys of the `NoSchedule` taints that follow from the node's state. A node that has not said that it is ready
/// yet counts as not ready.
pub fn implied_taints(node: &Node) -> Vec<&'static str> {
    let holds = |(kind, status, _): &&(&str, &str, &str)| {
        let actual = condition(node, kind).or((*kind == "Ready").then_some("False"));
        actual == Some(*status)
    };
    let mut taints: Vec<_> = CONDITION_TAINTS.iter().filter(holds).map(|(_, _, taint)| *taint).collect();
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        taints.push(UNSCHEDULABLE);
    }
    taints
}

/// The node's taints: those it has, and those that its state implies but nobody has written yet.
pub fn taints(node: &Node) -> Vec<Taint> {
    let mut taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    for key in implied_taints(node) {
        if !taints.iter().any(|t| t.key == key && t.effect == "NoSchedule") {
            taints.push(no_schedule(key));
        }
    }
    taints
}

/// A taint with effect `NoSchedule` and no value.
pub fn no_schedule(key: &str) -> Taint {
    Taint { key: key.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() }
}

/// The first taint that keeps a pod with these tolerations away. `PreferNoSchedule` never does.
pub fn repelling<'a>(taints: &'a [Taint], tolerations: &[Toleration]) -> Option<&'a Taint> {
    let hard = taints.iter().filter(|taint| taint.effect != "PreferNoSchedule");
    hard.into_iter().find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let unset_or = |field: Option<&str>, value: &str| field.is_none_or(|field| field.is_empty() || field == value);
    if !unset_or(toleration.effect.as_deref(), &taint.effect) || !unset_or(toleration.key.as_deref(), &taint.key) {
        return false;
    }
    let exists = toleration.operator.as_deref() == Some("Exists");
    exists || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
}

/// Whether the pod's `nodeSelector` and required node affinity allow the node.
pub fn selects(pod: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let required = pod.affinity.as_ref().and_then(required_terms);
    pod.node_selector.as_ref().is_none_or(|selector| meta::contains(labels, selector))
        && required.is_none_or(|terms| terms.iter().any(|term| term_matches(term, node)))
}

fn required_terms(affinity: &Affinity) -> Option<&[NodeSelectorTerm]> {
    let required = affinity.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()?;
    Some(&required.node_selector_terms)
}

/// All requirements of a term must hold; a term without any matches nothing.
fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
    let field = |key: &str| if key == "metadata.name" { node.metadata.name.as_deref() } else { None };
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|r| meta::node_requirement(r, label(&r.key)))
        && fields.iter().all(|r| meta::node_requirement(r, field(&r.key)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn node(spec: Value, ready: Option<&str>) -> Node {
        let conditions: Vec<Value> = ready.iter().map(|status| json!({"type": "Ready", "status": status})).collect();
        from_value(json!({
            "metadata": {"name": "node1", "labels": {"disk": "ssd"}}, "spec": spec, "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    #[test]
    fn taints_and_tolerations() {
        let own = json!({"taints": [{"key": "team", "value": "a", "effect": "NoExecute"}]});
        let exists = |key: &str| json!([{"operator": "Exists", "key": key}]);
        for (spec, ready, tolerations, repelled_by) in [
            (json!({}), Some("True"), json!([]), None),
            (json!({}), None, json!([]), Some("node.kubernetes.io/not-ready")),
            (json!({}), Some("False"), json!([]), Some("node.kubernetes.io/not-ready")),
            (json!({}), Some("Unknown"), json!([]), Some("node.kubernetes.io/unreachable")),
            (json!({}), Some("False"), json!([{"operator": "Exists"}]), None),
            (json!({}), Some("False"), json!([{"operator": "Exists", "effect": "NoSchedule"}]), None),
            (json!({}), Some("False"), exists("node.kubernetes.io/not-ready"), None),
            (json!({"unschedulable": true}), Some("True"), json!([]), Some(UNSCHEDULABLE)),
            (own.clone(), Some("True"), json!([]), Some("team")),
            (own.clone(), Some("True"), json!([{"key": "team", "value": "a"}]), None),
            (own.clone(), Some("True"), json!([{"key": "team", "value": "b"}]), Some("team")),
            (own.clone(), Some("True"), json!([{"key": "team", "value": "a", "effect": "NoSchedule"}]), Some("team")),
            (json!({"taints": [{"key": "x", "effect": "PreferNoSchedule"}]}), Some("True"), json!([]), None),
        ] {
            let taints = taints(&node(spec.clone(), ready));
            let tolerations: Vec<Toleration> = from_value(tolerations).unwrap();
            let repelling = repelling(&taints, &tolerations).map(|taint| taint.key.as_str());
            assert_eq!(repelling, repelled_by, "{spec} {ready:?} {tolerations:?}");
        }
    }

    #[test]
    fn selectors_and_affinity() {
        let affinity = |term: Value| json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}});
        let by = |list: &str, key: &str, value: &str| {
            affinity(json!({list: [{"key": key, "operator": "In", "values": [value]}]}))
        };
        for (fields, expected) in [
            (json!({}), true),
            (json!({"nodeSelector": {"disk": "ssd"}}), true),
            (json!({"nodeSelector": {"disk": "hdd"}}), false),
            (json!({"affinity": by("matchExpressions", "disk", "ssd")}), true),
            (json!({"affinity": by("matchExpressions", "disk", "hdd")}), false),
            (json!({"affinity": by("matchFields", "metadata.name", "node1")}), true),
            (json!({"affinity": by("matchFields", "metadata.name", "node2")}), false),
            (json!({"affinity": affinity(json!({}))}), false),
        ] {
            let mut spec = fields.clone();
            spec["containers"] = json!([]);
            let spec: PodSpec = from_value(spec).unwrap();
            assert_eq!(selects(&spec, &node(json!({}), Some("True"))), expected, "{fields}");
        }
    }
}
