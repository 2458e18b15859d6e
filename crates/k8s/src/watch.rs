use std::{fmt::Debug, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use kube::{
    Api, Resource,
    runtime::watcher::{self, Config},
};

/// The first pause after a failed list or watch; it doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// One step of a watched collection.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<K> {
    /// The complete state: sent first, and again after every resync. What is not in it no longer exists.
    Snapshot(Vec<K>),
    /// The object was created or changed.
    Applied(K),
    /// The object is gone; its last state.
    Deleted(K),
}

/// Watches a collection for ever. Failures are logged and retried with a growing pause, so the stream never ends and
/// carries no errors; until the first [`Event::Snapshot`], nothing is known.
pub fn watch<K>(api: Api<K>, config: Config) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource + Clone + Debug + serde::de::DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
{
    watch_as(api, config, |object| object)
}

/// Like [`watch`], of what `read` makes of each object as it arrives. Objects of the API are large: of a complete state,
/// only one page of them is in memory at a time.
pub fn watch_as<K, V>(
    api: Api<K>,
    config: Config,
    read: impl FnMut(K) -> V + Send + 'static,
) -> impl Stream<Item = Event<V>> + Send
where
    K: Resource + Clone + Debug + serde::de::DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
    V: Send + 'static,
{
    let plural = K::plural(&K::DynamicType::default()).into_owned();
    let source = watcher::watcher(api, config).boxed();
    let state = State { source, read, listing: Vec::new(), pause: FIRST_PAUSE, plural };
    stream::unfold(state, |mut state| async move {
        let event = state.next().await?;
        Some((event, state))
    })
}

struct State<K, V, R> {
    source: stream::BoxStream<'static, watcher::Result<watcher::Event<K>>>,
    read: R,
    listing: Vec<V>,
    pause: Duration,
    plural: String,
}

impl<K, V, R: FnMut(K) -> V> State<K, V, R> {
    async fn next(&mut self) -> Option<Event<V>> {
        loop {
            let event = match self.source.next().await? {
                Ok(event) => event,
                Err(error) => {
                    tracing::warn!(resource = %self.plural, %error, retry_in = ?self.pause, "watch failed");
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                    continue;
                }
            };
            match event {
                watcher::Event::Init => self.listing.clear(),
                watcher::Event::InitApply(object) => self.listing.push((self.read)(object)),
                watcher::Event::InitDone => {
                    self.pause = FIRST_PAUSE;
                    return Some(Event::Snapshot(std::mem::take(&mut self.listing)));
                }
                watcher::Event::Apply(object) => return Some(Event::Applied((self.read)(object))),
                watcher::Event::Delete(object) => return Some(Event::Deleted((self.read)(object))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(events: Vec<watcher::Result<watcher::Event<u8>>>) -> State<u8, u32, fn(u8) -> u32> {
        let source = stream::iter(events).boxed();
        State { source, read: |n| u32::from(n) * 10, listing: Vec::new(), pause: FIRST_PAUSE, plural: "things".into() }
    }

    #[tokio::test]
    async fn a_listing_arrives_whole_and_a_broken_one_not_at_all() {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        let mut state = state(vec![
            Ok(Init),
            Ok(InitApply(1)),
            Err(watcher::Error::NoResourceVersion),
            Ok(Init),
            Ok(InitApply(2)),
            Ok(InitApply(3)),
            Ok(InitDone),
            Ok(Apply(4)),
            Ok(Delete(2)),
        ]);
        assert_eq!(state.next().await, Some(Event::Snapshot(vec![20, 30])));
        assert_eq!(state.pause, FIRST_PAUSE, "a complete listing resets the back-off");
        assert_eq!(state.next().await, Some(Event::Applied(40)));
        assert_eq!(state.next().await, Some(Event::Deleted(20)));
        assert_eq!(state.next().await, None);
    }
}
