//! Watch events about API objects, turned into changes of the model's values.

use podwire_k8s::{Event, convert::Read, kube::ResourceExt};
use podwire_model::{ObjectName, Problem};
use tracing::warn;

/// A watch event in values of the model.
#[derive(Debug, PartialEq)]
pub enum Update<V> {
    /// The complete list.
    All(Vec<V>),
    /// Made or changed.
    One(V),
    /// Deleted, or no longer anything that can be used.
    Gone(ObjectName),
}

impl<V> Update<V> {
    /// Reads what an event is about, with what is wrong with it. An object that nothing can be used of counts as gone.
    pub fn read<K: ResourceExt>(event: Event<K>, read: impl Fn(&K) -> Read<V>) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut value = |object: &K| {
            let read = read(object);
            problems.extend(read.problems);
            read.value
        };
        let name = |object: &K| ObjectName::new(object.namespace().unwrap_or_default(), object.name_any());
        let update = match event {
            Event::Snapshot(objects) => Self::All(objects.iter().filter_map(value).collect()),
            Event::Applied(object) => value(&object).map_or_else(|| Self::Gone(name(&object)), Self::One),
            Event::Deleted(object) => Self::Gone(name(&object)),
        };
        (update, problems)
    }

    /// Like [`Update::read`]; logs what is wrong.
    pub fn new<K: ResourceExt>(event: Event<K>, read: impl Fn(&K) -> Read<V>) -> Self {
        let (update, problems) = Self::read(event, read);
        problems.iter().for_each(|problem| warn!("{problem}"));
        update
    }
}

#[cfg(test)]
mod tests {
    use podwire_k8s::{convert, k8s_openapi::api::core::v1::Service};
    use serde_json::json;

    use super::*;

    fn service(name: &str, cluster_ip: &str) -> Service {
        let object = json!({
            "metadata": { "namespace": "default", "name": name },
            "spec": { "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ports": [] },
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn what_cannot_be_read_counts_as_gone() {
        let update = |event| Update::read(event, convert::service);
        let (good, mut bad) = (service("good", "10.96.0.7"), service("bad", "10.96.0.8"));
        bad.spec.as_mut().unwrap().type_ = Some("Odd".to_owned());
        let (Update::All(all), problems) = update(Event::Snapshot(vec![good.clone(), bad.clone()])) else {
            panic!("not all")
        };
        assert_eq!(
            problems[0].to_string(),
            "Service default/bad: spec.type: \"Odd\" is not a type; the Service is not served"
        );
        assert_eq!(all.iter().map(|service| &*service.name.name).collect::<Vec<_>>(), ["good"]);
        assert!(matches!(update(Event::Applied(good.clone())).0, Update::One(_)));
        assert_eq!(update(Event::Applied(bad)).0, Update::Gone(ObjectName::new("default", "bad")));
        assert_eq!(update(Event::Deleted(good)).0, Update::Gone(ObjectName::new("default", "good")));
    }
}
