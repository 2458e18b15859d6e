//! Reading and making the parts that all Kubernetes objects share, on plain JSON.

use podwire_k8s::k8s_openapi::jiff::{Timestamp, Unit};
use serde_json::{Map, Value};

/// The text at a JSON pointer; empty when there is none.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The number at a JSON pointer, if there is one.
pub(crate) fn number(value: &Value, pointer: &str) -> Option<i64> {
    value.pointer(pointer).and_then(Value::as_i64)
}

/// The items of the array at a JSON pointer; none when there is no array.
pub(crate) fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The entries of the object at a JSON pointer, if there is one.
pub(crate) fn entries<'a>(value: &'a Value, pointer: &str) -> Option<&'a Map<String, Value>> {
    value.pointer(pointer).and_then(Value::as_object)
}

/// `metadata.name`.
pub(crate) fn name(value: &Value) -> &str {
    text(value, "/metadata/name")
}

/// `metadata.namespace`; empty for kinds without one.
pub(crate) fn namespace(value: &Value) -> &str {
    text(value, "/metadata/namespace")
}

/// Whether deletion has been asked for.
pub(crate) fn deleting(value: &Value) -> bool {
    !text(value, "/metadata/deletionTimestamp").is_empty()
}

/// Sets `field` of an object unless it is there already. Does nothing to what is not an object.
pub(crate) fn default(value: &mut Value, field: &str, preset: impl Into<Value>) {
    if let Value::Object(map) = value {
        let slot = map.entry(field).or_insert(Value::Null);
        if slot.is_null() {
            *slot = preset.into();
        }
    }
}

/// The object in `field` of an object, made if it is not there. `None` if something else is in the way.
pub(crate) fn child<'a>(value: &'a mut Value, field: &str) -> Option<&'a mut Value> {
    let slot = value.as_object_mut()?.entry(field).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Object(Map::new());
    }
    slot.is_object().then_some(slot)
}

/// The items of the array in `field`, to change them.
pub(crate) fn items_mut<'a>(value: &'a mut Value, field: &str) -> &'a mut [Value] {
    value.get_mut(field).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}

/// Removes `field` from an object.
pub(crate) fn remove(value: &mut Value, field: &str) -> Option<Value> {
    value.as_object_mut()?.remove(field)
}

/// Copies `field` from one object to another, or removes it there if the first has none.
pub(crate) fn carry(from: &Value, to: &mut Value, field: &str) {
    match from.get(field) {
        Some(value) => to[field] = value.clone(),
        None => drop(remove(to, field)),
    }
}

/// The present in whole seconds.
pub(crate) fn now() -> Timestamp {
    let now = std::time::SystemTime::now();
    let now = Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH);
    now.round(Unit::Second).unwrap_or(now)
}

/// `seconds` after `from`, as a `metav1.Time`.
pub(crate) fn time_after(from: Timestamp, seconds: i64) -> String {
    let time = Timestamp::from_second(from.as_second().saturating_add(seconds)).unwrap_or(from);
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
