//! Watch events about API objects, turned into changes of the model's values.

use std::fmt::Debug;

use futures_util::{Stream, StreamExt};
use podwire_k8s::{
    Checks, Event,
    convert::Read,
    kube::{Api, Resource, ResourceExt, runtime::watcher::Config},
    watch_checked,
};
use podwire_model::{ObjectName, Problem};
use serde::de::DeserializeOwned;
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

/// Watches what `read` makes of each object, for ever, with what is wrong with the objects. One that nothing can be used
/// of counts as gone. A watch that goes quiet is started anew.
pub fn updates<K, V>(
    api: Api<K>,
    config: Config,
    checks: Checks,
    read: impl Fn(&K) -> Read<V> + Send + Sync + 'static,
) -> impl Stream<Item = (Update<V>, Vec<Problem>)> + Send
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    V: Send + 'static,
{
    watch_checked(api, config, checks, move |object| Named::read(&object, &read)).map(Update::new)
}

/// Logs what is wrong with the objects of an update, for who has no better place for it.
pub fn logged<V>((update, problems): (Update<V>, Vec<Problem>)) -> Update<V> {
    problems.iter().for_each(|problem| warn!("{problem}"));
    update
}

/// What an object says, and its name.
struct Named<V>(ObjectName, Read<V>);

impl<V> Named<V> {
    fn read<K: ResourceExt>(object: &K, read: impl Fn(&K) -> Read<V>) -> Self {
        Self(ObjectName::new(object.namespace().unwrap_or_default(), object.name_any()), read(object))
    }
}

impl<V> Update<V> {
    fn new(event: Event<Named<V>>) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut value = |read: Read<V>| {
            problems.extend(read.problems);
            read.value
        };
        let update = match event {
            Event::Snapshot(objects) => {
                Self::All(objects.into_iter().filter_map(|Named(_, read)| value(read)).collect())
            }
            Event::Applied(Named(name, read)) => value(read).map_or(Self::Gone(name), Self::One),
            Event::Deleted(Named(name, _)) => Self::Gone(name),
        };
        (update, problems)
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
        let read = |service: &Service| Named::read(service, convert::service);
        let (good, mut bad) = (service("good", "10.96.0.7"), service("bad", "10.96.0.8"));
        bad.spec.as_mut().unwrap().type_ = Some("Odd".to_owned());
        let (Update::All(all), problems) = Update::new(Event::Snapshot(vec![read(&good), read(&bad)])) else {
            panic!("not all")
        };
        assert_eq!(
            problems[0].to_string(),
            "Service default/bad: spec.type: \"Odd\" is not a type; the Service is not served"
        );
        assert_eq!(all.iter().map(|service| &*service.name.name).collect::<Vec<_>>(), ["good"]);
        assert!(matches!(Update::new(Event::Applied(read(&good))).0, Update::One(_)));
        assert_eq!(Update::new(Event::Applied(read(&bad))).0, Update::Gone(ObjectName::new("default", "bad")));
        assert_eq!(Update::new(Event::Deleted(read(&good))).0, Update::Gone(ObjectName::new("default", "good")));
    }
}
