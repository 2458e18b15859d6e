//! Noticing that a watch has gone quiet: it is open, but what changes does not arrive (a proxy or firewall on the way
//! that forgot the connection, an API server's cache that is stuck).

use std::{
    collections::HashMap,
    fmt::Debug,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, Stream, StreamExt, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Resource, api::ListParams, runtime::watcher::Config};
use serde::de::DeserializeOwned;

use crate::{Event, watch_as};

/// How often a watch is compared with the API, on average.
const INTERVAL: Duration = Duration::from_secs(60);
/// How long what differs may be on its way.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the API may take over a page.
const PAGE_TIME: Duration = Duration::from_secs(10);
/// Objects of a page; of each only the metadata.
const PAGE: u32 = 500;

/// How a watch is compared with the API from time to time, and who is told that it had to be started anew.
#[derive(Clone)]
pub struct Checks {
    interval: Duration,
    patience: Duration,
    restarted: Arc<dyn Fn() + Send + Sync>,
}

impl Checks {
    /// About once a minute; calls `restarted` each time that a watch is started anew.
    pub fn new(restarted: impl Fn() + Send + Sync + 'static) -> Self {
        Self { interval: INTERVAL, patience: PATIENCE, restarted: Arc::new(restarted) }
    }

    /// With another time between checks, and for what differs to arrive.
    #[must_use]
    pub fn every(self, interval: Duration, patience: Duration) -> Self {
        Self { interval, patience, ..self }
    }
}

/// Like [`watch_as`], and compared with the API from time to time: a watch that has gone quiet is started anew, which
/// begins with an [`Event::Snapshot`]. Takes 16 bytes an object, and during a check the metadata of a page of them.
pub fn watch_checked<K, V>(
    api: Api<K>,
    config: Config,
    checks: Checks,
    read: impl Fn(K) -> V + Send + Sync + 'static,
) -> impl Stream<Item = Event<V>> + Send
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
    V: Send + 'static,
{
    let (held, read) = (Arc::new(Held::default()), Arc::new(read));
    let delivered = held.clone();
    let begin = move || {
        let (held, read) = (held.clone(), read.clone());
        let check = Check { api: api.clone(), config: config.clone(), checks: checks.clone(), held: held.clone() };
        let source = watch_as(api.clone(), config.clone(), move |object: K| (held.entry(object.meta()), read(object)));
        (source.boxed(), check.quiet().boxed())
    };
    let (source, quiet) = begin();
    stream::unfold((source, quiet, begin), move |(mut source, mut quiet, begin)| {
        let delivered = delivered.clone();
        async move {
            loop {
                // What has arrived counts before what a check says.
                tokio::select! {
                    biased;
                    event = source.next() => {
                        let event = delivered.take(event?);
                        return Some((event, (source, quiet, begin)));
                    }
                    () = &mut quiet => (source, quiet) = begin(),
                }
            }
        }
    })
}

/// A hash of an object's name, and one of its resourceVersion.
type Entry = (u64, u64);

/// What a watch has delivered: an [`Entry`] an object is enough to tell what is missing. That two names have one hash is
/// not to be expected, and would cost a needless list.
#[derive(Debug, Default)]
struct Held {
    hasher: RandomState,
    /// `None` before the first complete list.
    versions: Mutex<Option<HashMap<u64, u64>>>,
}

impl Held {
    fn entry(&self, metadata: &ObjectMeta) -> Entry {
        let name = (metadata.namespace.as_deref(), metadata.name.as_deref());
        (self.hasher.hash_one(name), self.hasher.hash_one(metadata.resource_version.as_deref()))
    }

    /// Takes note of an event.
    fn take<V>(&self, event: Event<(Entry, V)>) -> Event<V> {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Snapshot(objects) => {
                let (entries, values): (HashMap<_, _>, Vec<_>) = objects.into_iter().unzip();
                *versions = Some(entries);
                Event::Snapshot(values)
            }
            Event::Applied(((name, version), value)) => {
                versions.as_mut().map(|versions| versions.insert(name, version));
                Event::Applied(value)
            }
            Event::Deleted(((name, _), value)) => {
                versions.as_mut().map(|versions| versions.remove(&name));
                Event::Deleted(value)
            }
        }
    }

    fn copy(&self) -> Option<HashMap<u64, u64>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Compares one watch with the API.
struct Check<K> {
    api: Api<K>,
    config: Config,
    checks: Checks,
    held: Arc<Held>,
}

impl<K> Check<K>
where
    K: Resource + Clone + Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    /// Resolves when the watch has gone quiet: an object differs from what was delivered, and still does so later
    /// although nothing came about it meanwhile.
    async fn quiet(self) {
        let Checks { interval, patience, restarted } = &self.checks;
        let resource = K::plural(&K::DynamicType::default()).into_owned();
        let mut pause = jittered(*interval);
        loop {
            tokio::time::sleep(pause).await;
            match self.missed().await {
                Ok(0) => pause = jittered(*interval),
                Ok(missed) => {
                    tracing::warn!(resource, missed, "the watch has gone quiet, starting it anew");
                    return restarted();
                }
                // Perhaps over a connection that is dead too: the next look takes another one.
                Err(error) => {
                    tracing::debug!(resource, error, "the watch could not be compared with the API");
                    pause = *patience;
                }
            }
        }
    }

    /// How many objects the watch does not tell of.
    async fn missed(&self) -> Result<usize, String> {
        let first = self.differing().await?;
        if first.is_empty() {
            return Ok(0);
        }
        tokio::time::sleep(self.checks.patience).await;
        let second = self.differing().await?;
        Ok(first.iter().filter(|(name, held)| second.get(*name) == Some(*held)).count())
    }

    /// The objects that are not as the watch delivered them, each with the version that it delivered.
    async fn differing(&self) -> Result<HashMap<u64, Option<u64>>, String> {
        let Some(mut held) = self.held.copy() else { return Ok(HashMap::new()) };
        let mut differing = HashMap::new();
        let mut page = ListParams::default().limit(PAGE);
        page.label_selector.clone_from(&self.config.label_selector);
        page.field_selector.clone_from(&self.config.field_selector);
        loop {
            let list = tokio::time::timeout(PAGE_TIME, self.api.list_metadata(&page)).await;
            let list = list.map_err(|_| format!("no answer in {PAGE_TIME:?}"))?.map_err(|error| error.to_string())?;
            for object in &list.items {
                let (name, version) = self.held.entry(object.meta());
                let delivered = held.remove(&name);
                if delivered != Some(version) {
                    differing.insert(name, delivered);
                }
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page.continue_token = Some(token),
                None => break,
            }
        }
        differing.extend(held.into_iter().map(|(name, version)| (name, Some(version))));
        Ok(differing)
    }
}

/// Between three and five quarters of a time, so that the nodes of a cluster do not all ask at once.
fn jittered(time: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 1000;
    time.mul_f64(0.75 + random as f64 / 2000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_vary_by_a_quarter() {
        let times: Vec<_> = (0..100).map(|_| jittered(Duration::from_secs(60))).collect();
        assert!(times.iter().all(|time| (45..=75).contains(&time.as_secs())), "{times:?}");
        assert!(times.iter().any(|time| *time != times[0]));
    }
}
