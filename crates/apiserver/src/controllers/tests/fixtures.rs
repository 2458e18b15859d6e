//! Objects as users write them.

use serde_json::{Value, json};

use crate::controllers::world::{Id, Kind};

pub fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "progressDeadlineSeconds": 600,
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{
                    "name": "web", "image": image, "ports": [{"name": "http", "containerPort": 80}],
                }]},
            },
        },
    })
}

pub fn daemon_set(name: &str, image: &str) -> Value {
    let mut set = deployment(name, 0, image);
    for field in ["replicas", "progressDeadlineSeconds"] {
        set["spec"].as_object_mut().unwrap().remove(field);
    }
    set
}

pub fn service(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"tier": "web"}},
        "spec": {"clusterIP": "10.96.0.20", "selector": {"app": name}, "ports": [{"port": 80, "targetPort": "http"}]},
    })
}

/// A node; `ready` is the status of its `Ready` condition.
pub fn node(name: &str, ready: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}})
}

pub fn id(kind: Kind, name: &str) -> Id {
    Id::new(kind, if kind.namespaced() { "default" } else { "" }, name)
}
