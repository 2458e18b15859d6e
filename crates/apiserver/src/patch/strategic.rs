//! Strategic merge: objects are merged field by field, some lists item by item. Which lists, and by which field their
//! items are told apart, is declared in Kubernetes' types (`patchStrategy`, `patchMergeKey`); [`LISTS`] is what the
//! served kinds declare. All other lists are replaced whole.
//!
//! Directives in the patch: `$patch: replace | delete`, `$retainKeys`, `$setElementOrder/LIST`,
//! `$deleteFromPrimitiveList/LIST`.

use serde_json::{Map, Value};

/// Lists that are merged: the end of their path (without indices), and the field that names an item. Items of those
/// without a field are plain values.
const LISTS: &[(&str, &str)] = &[
    ("metadata.finalizers", ""),
    ("metadata.ownerReferences", "uid"),
    ("spec.containers", "name"),
    ("spec.initContainers", "name"),
    ("spec.ephemeralContainers", "name"),
    ("spec.volumes", "name"),
    ("spec.imagePullSecrets", "name"),
    ("spec.hostAliases", "ip"),
    ("spec.topologySpreadConstraints", "topologyKey"),
    ("spec.schedulingGates", "name"),
    ("spec.resourceClaims", "name"),
    ("ontainers.ports", "containerPort"),
    ("ontainers.env", "name"),
    ("ontainers.volumeMounts", "mountPath"),
    ("ontainers.volumeDevices", "devicePath"),
    // Of Services.
    ("spec.ports", "port"),
    // Of Nodes.
    ("spec.podCIDRs", ""),
    ("status.addresses", "type"),
    ("status.conditions", "type"),
    ("status.podIPs", "ip"),
    ("status.hostIPs", "ip"),
    // Of ServiceAccounts, at the top.
    (".secrets", "name"),
];

fn merge_key(path: &str) -> Option<&'static str> {
    LISTS.iter().find(|(end, _)| path.ends_with(end)).map(|(_, key)| *key)
}

/// Merges `patch` into `object`.
///
/// # Errors
/// A patch whose list items lack the field that names them, or a directive that does not exist.
pub(super) fn merge(object: &mut Value, patch: &Value) -> Result<(), String> {
    match patch {
        Value::Object(patch) => merge_object(object, patch, ""),
        _ => Err("the patch is not an object".to_owned()),
    }
}

/// `path` begins with a dot, so that ends of paths match whole names.
fn merge_object(target: &mut Value, patch: &Map<String, Value>, path: &str) -> Result<(), String> {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(object) = target else { return Ok(()) };
    match patch.get("$patch").and_then(Value::as_str) {
        None | Some("merge") => {}
        Some("replace") => object.clear(),
        Some("delete") => {
            object.clear();
            return Ok(());
        }
        Some(other) => return Err(format!("unknown $patch directive {other:?} at {path:?}")),
    }
    for (field, value) in patch {
        if field.starts_with('$') {
            continue;
        }
        let path = format!("{path}.{field}");
        match (value, merge_key(&path)) {
            (Value::Null, _) => drop(object.remove(field)),
            (Value::Object(inner), _) => merge_object(object.entry(field).or_insert(Value::Null), inner, &path)?,
            (Value::Array(items), Some(key)) => {
                let list = object.entry(field).or_insert(Value::Null);
                if !list.is_array() {
                    *list = Value::Array(Vec::new());
                }
                if let Value::Array(list) = list {
                    let told = patch.get(&format!("$setElementOrder/{field}")).and_then(Value::as_array);
                    merge_list(list, (items, told.unwrap_or(items)), key, &path)?;
                }
            }
            (other, _) => drop(object.insert(field.clone(), other.clone())),
        }
    }
    directives(object, patch, path);
    Ok(())
}

/// The directives that speak about the fields beside them.
fn directives(object: &mut Map<String, Value>, patch: &Map<String, Value>, path: &str) {
    for (name, value) in patch {
        let Some((directive, field)) = name.split_once('/') else { continue };
        let Some(Value::Array(list)) = object.get_mut(field) else { continue };
        let Value::Array(told) = value else { continue };
        match directive {
            "$deleteFromPrimitiveList" => list.retain(|item| !told.contains(item)),
            "$setElementOrder" if !patch.contains_key(field) => {
                let key = merge_key(&format!("{path}.{field}")).unwrap_or_default();
                let before = names(list, key);
                order(list, told, key, &before);
            }
            _ => {}
        }
    }
    if let Some(Value::Array(kept)) = patch.get("$retainKeys") {
        object.retain(|field, _| kept.iter().any(|k| k == field));
    }
}

/// Merges items into a list and puts the list in the order that is told, or that of the items.
fn merge_list(list: &mut Vec<Value>, (items, told): (&[Value], &[Value]), key: &str, path: &str) -> Result<(), String> {
    if items.iter().any(|i| i["$patch"] == "replace") {
        list.clear();
    }
    let before = names(list, key);
    for item in items {
        if key.is_empty() {
            if !list.contains(item) {
                list.push(item.clone());
            }
            continue;
        }
        let Value::Object(patch) = item else { return Err(format!("an item of {path:?} is not an object")) };
        if patch.get("$patch").is_some_and(|p| p == "replace") {
            continue;
        }
        let Some(name) = patch.get(key) else {
            return Err(format!("an item of {path:?} does not contain declared merge key: {key}"));
        };
        if patch.get("$patch").is_some_and(|p| p == "delete") {
            list.retain(|i| i.get(key) != Some(name));
            continue;
        }
        match list.iter_mut().find(|i| i.get(key) == Some(name)) {
            Some(old) => merge_object(old, patch, path)?,
            None => {
                let mut new = Value::Null;
                merge_object(&mut new, patch, path)?;
                list.push(new);
            }
        }
    }
    order(list, told, key, &before);
    Ok(())
}

/// What names an item of a list.
fn name(item: &Value, key: &str) -> Value {
    if key.is_empty() { item.clone() } else { item[key].clone() }
}

fn names(list: &[Value], key: &str) -> Vec<Value> {
    list.iter().map(|item| name(item, key)).collect()
}

/// Puts the items named in `told` in its order. The others keep theirs, and stay in front of those that they were in
/// front of `before`; an item that is new comes as early as it can.
fn order(list: &mut Vec<Value>, told: &[Value], key: &str, before: &[Value]) {
    let told = names(told, key);
    let rank = |item: &Value| told.iter().position(|t| *t == name(item, key));
    let place = |item: &Value| before.iter().position(|b| *b == name(item, key));
    let (mut named, others): (Vec<_>, Vec<_>) = std::mem::take(list).into_iter().partition(|i| rank(i).is_some());
    named.sort_by_key(rank);
    let mut others = others.into_iter().peekable();
    for item in named {
        let at = place(&item);
        while let Some(other) = others.next_if(|other| at.is_some() && place(other) < at) {
            list.push(other);
        }
        list.push(item);
    }
    list.extend(others);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn merged(old: Value, patch: Value) -> Value {
        let mut object = old;
        merge(&mut object, &patch).unwrap();
        object
    }

    #[test]
    fn lists_merge_by_their_key_or_are_replaced() {
        for (name, old, patch, expected) in [
            (
                "containers by name",
                json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}]}}}}),
                json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}]}]}}}}),
                json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "1",
                    "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]}]}}}}),
            ),
            (
                "service ports by port",
                json!({"spec": {"ports": [{"port": 80, "nodePort": 30001}]}}),
                json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}, {"port": 81}]}}),
                json!({"spec": {"ports": [{"port": 80, "nodePort": 30001, "targetPort": 8080}, {"port": 81}]}}),
            ),
            (
                "conditions by type",
                json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "X"}]}}),
                json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
                json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X"}]}}),
            ),
            (
                "tolerations whole",
                json!({"spec": {"tolerations": [{"key": "a"}, {"key": "b"}]}}),
                json!({"spec": {"tolerations": [{"key": "c"}]}}),
                json!({"spec": {"tolerations": [{"key": "c"}]}}),
            ),
            (
                "an item deleted",
                json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
                json!({"spec": {"containers": [{"$patch": "delete", "name": "a"}]}}),
                json!({"spec": {"containers": [{"name": "b"}]}}),
            ),
            (
                "a list replaced",
                json!({"spec": {"containers": [{"name": "a"}]}}),
                json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "b"}]}}),
                json!({"spec": {"containers": [{"name": "b"}]}}),
            ),
            (
                "an object replaced",
                json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {}}}}),
                json!({"spec": {"strategy": {"$patch": "replace", "type": "Recreate"}}}),
                json!({"spec": {"strategy": {"type": "Recreate"}}}),
            ),
            (
                "keys retained",
                json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
                json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
                json!({"spec": {"strategy": {"type": "Recreate"}}}),
            ),
            (
                "finalizers",
                json!({"metadata": {"finalizers": ["a", "b"]}}),
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["b", "c"]}}),
                json!({"metadata": {"finalizers": ["b", "c"]}}),
            ),
            (
                "order",
                json!({"spec": {"containers": [{"name": "a"}, {"name": "s"}, {"name": "b"}]}}),
                json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}], "containers": [{"name": "c"}]}}),
                json!({"spec": {"containers": [{"name": "s"}, {"name": "b"}, {"name": "c"}, {"name": "a"}]}}),
            ),
        ] {
            assert_eq!(merged(old, patch), expected, "{name}");
        }
    }

    #[test]
    fn an_item_without_its_key_is_refused() {
        let mut object = json!({"spec": {"containers": []}});
        let error = merge(&mut object, &json!({"spec": {"containers": [{"image": "x"}]}})).unwrap_err();
        assert!(error.contains("merge key: name"), "{error}");
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            (0..5i64).prop_map(Value::from),
            "[a-c]".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-d]|spec|metadata|containers|name|finalizers", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    fn object() -> impl Strategy<Value = Value> {
        prop::collection::btree_map("[a-d]|spec|metadata", tree(), 0..4)
            .prop_map(|m| Value::Object(m.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn merging_twice_is_merging_once(old in object(), patch in object()) {
            let mut once = old;
            if merge(&mut once, &patch).is_ok() {
                let mut twice = once.clone();
                merge(&mut twice, &patch).unwrap();
                prop_assert_eq!(once, twice);
            }
        }

        #[test]
        fn an_empty_patch_changes_nothing(old in object()) {
            prop_assert_eq!(merged(old.clone(), json!({})), old);
        }
    }
}
