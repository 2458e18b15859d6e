//! Watch events about API objects, turned into changes of the model's values.

use std::fmt::Display;

use podwire_k8s::{Event, kube::ResourceExt};
use podwire_model::ObjectName;
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
    /// Converts what an event is about. An object that is invalid (which is logged), or that `convert` has no use for,
    /// counts as gone.
    pub fn new<K: ResourceExt, E: Display>(event: Event<K>, convert: impl Fn(&K) -> Result<Option<V>, E>) -> Self {
        let convert = |object: &K| {
            convert(object).unwrap_or_else(|error| {
                warn!("ignored: {error}");
                None
            })
        };
        let name = |object: &K| ObjectName::new(object.namespace().unwrap_or_default(), object.name_any());
        match event {
            Event::Snapshot(objects) => Self::All(objects.iter().filter_map(convert).collect()),
            Event::Applied(object) => convert(&object).map_or_else(|| Self::Gone(name(&object)), Self::One),
            Event::Deleted(object) => Self::Gone(name(&object)),
        }
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
        let update = |event| Update::new(event, |object| convert::service(object).map(Some));
        let (good, bad) = (service("good", "10.96.0.7"), service("bad", "10.96.0.700"));
        let Update::All(all) = update(Event::Snapshot(vec![good.clone(), bad.clone()])) else { panic!("not all") };
        assert_eq!(all.iter().map(|service| &*service.name.name).collect::<Vec<_>>(), ["good"]);
        assert!(matches!(update(Event::Applied(good.clone())), Update::One(_)));
        assert_eq!(update(Event::Applied(bad)), Update::Gone(ObjectName::new("default", "bad")));
        assert_eq!(update(Event::Deleted(good)), Update::Gone(ObjectName::new("default", "good")));
    }
}
