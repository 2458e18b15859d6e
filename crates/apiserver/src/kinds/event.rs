//! Events are stored once, as `v1`, and shown as `events.k8s.io/v1` as well.

use serde_json::Value;

use super::View;

/// Names of the same thing: (v1, events.k8s.io/v1).
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// The `events.k8s.io/v1` view of a `v1` Event.
pub(super) const VIEW: View = View {
    show: |event| {
        rename(event, NAMES.iter().copied());
        event["apiVersion"] = "events.k8s.io/v1".into();
    },
    store: |event| {
        rename(event, NAMES.iter().map(|(core, events)| (*events, *core)));
        event["apiVersion"] = "v1".into();
    },
};

fn rename<'a>(value: &mut Value, names: impl Iterator<Item = (&'a str, &'a str)>) {
    let Some(map) = value.as_object_mut() else { return };
    for (from, to) in names {
        if let Some(field) = map.remove(from) {
            map.insert(to.to_owned(), field);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_two_forms_are_one_event() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"name": "a"}, "message": "m",
            "count": 2, "reportingComponent": "kubelet"});
        let mut event = core.clone();
        (VIEW.show)(&mut event);
        assert_eq!(event["regarding"]["name"], "a");
        assert_eq!(event["reportingController"], "kubelet");
        (VIEW.store)(&mut event);
        assert_eq!(event, core);
    }
}
