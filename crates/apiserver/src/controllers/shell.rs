//! The one shell around all controllers: it moves watch events into the world, changes into the queue, and plans into
//! the API.

use std::{
    fmt::Debug,
    future::Future,
    pin::Pin,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt, Stream, StreamExt,
    future::join_all,
    stream::{FuturesUnordered, SelectAll},
};
use podwire_k8s::k8s_openapi::jiff::{SignedDuration, Timestamp};
use podwire_k8s::{Client, Event, kube, watch};
use serde::de::DeserializeOwned;

use super::{
    CONTROLLERS, Config, Context,
    action::Plan,
    apply::{self, Outcome},
    events::{self, Recorder},
    queue::Queue,
    world::{Change, Id, Kind, KindVisitor, Object, World, visit_kinds},
};

/// Every key comes up this often even if nothing changed: a net under the events, not a way of working.
const RESYNC: Duration = Duration::from_secs(60);
/// The most keys that are worked on at once.
const WORKERS: usize = 32;

/// One watch event of any kind.
enum Input {
    Snapshot(Kind, Vec<Object>),
    Applied(Object),
    Deleted(Object),
}

type Inputs = SelectAll<Pin<Box<dyn Stream<Item = Input> + Send>>>;
/// A controller (its index in [`CONTROLLERS`]) and what it looks at.
type Key = (usize, Id);
type Worker<'a> = Pin<Box<dyn Future<Output = (Key, Vec<Result<Outcome, apply::Error>>)> + Send + 'a>>;

/// Runs every controller until the future is dropped. Unreachable APIs and refused requests are retried for ever.
pub async fn run(client: Client, config: Config) {
    let (recorder, reports) = Recorder::new();
    let kube = client.kube();
    let shell = Shell {
        client: &kube,
        recorder: &recorder,
        config: &config,
        world: World::default(),
        unknown: Kind::ALL.to_vec(),
        queue: Queue::default(),
        workers: FuturesUnordered::new(),
    };
    tokio::join!(shell.run(watches(&kube)), events::write(kube.clone(), reports));
}

/// One watch for each kind, whoever needs it.
fn watches(client: &kube::Client) -> Inputs {
    struct Watches<'a>(&'a kube::Client, Inputs);
    impl KindVisitor for Watches<'_> {
        fn visit<K>(&mut self, kind: Kind)
        where
            K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
            Object: From<K>,
        {
            let events = watch(kube::Api::<K>::all(self.0.clone()), kube::runtime::watcher::Config::default());
            self.1.push(Box::pin(events.map(move |event| match event {
                Event::Snapshot(objects) => Input::Snapshot(kind, objects.into_iter().map(Object::from).collect()),
                Event::Applied(object) => Input::Applied(object.into()),
                Event::Deleted(object) => Input::Deleted(object.into()),
            })));
        }
    }
    let mut watches = Watches(client, Inputs::new());
    visit_kinds(&mut watches);
    watches.1
}

struct Shell<'a> {
    client: &'a kube::Client,
    recorder: &'a Recorder,
    config: &'a Config,
    world: World,
    /// Kinds whose state has not arrived yet. Nothing is decided before all are known.
    unknown: Vec<Kind>,
    queue: Queue<Key>,
    workers: FuturesUnordered<Worker<'a>>,
}

impl Shell<'_> {
    async fn run(mut self, mut inputs: Inputs) {
        let mut resync = Instant::now() + RESYNC;
        loop {
            let wake = self.queue.wake(Instant::now()).map_or(resync, |wake| wake.min(resync));
            if self.unknown.is_empty() {
                self.start_workers();
            }
            tokio::select! {
                Some(input) = inputs.next() => {
                    self.take(input);
                    // What has arrived already belongs to the same picture.
                    while let Some(Some(input)) = inputs.next().now_or_never() {
                        self.take(input);
                    }
                }
                Some((key, outcomes)) = self.workers.next() => self.finish(key, outcomes),
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            if resync <= Instant::now() {
                resync = Instant::now() + RESYNC;
                self.resync();
            }
        }
    }

    fn take(&mut self, input: Input) {
        let changes = match input {
            Input::Snapshot(kind, objects) => {
                self.unknown.retain(|unknown| *unknown != kind);
                self.world.replace(kind, objects)
            }
            Input::Applied(object) => self.world.apply(object).into_iter().collect(),
            Input::Deleted(object) => self.world.remove(&object.id(), object.uid()).into_iter().collect(),
        };
        changes.iter().for_each(|change| self.changed(change));
    }

    fn changed(&mut self, change: &Change) {
        for (index, controller) in CONTROLLERS.iter().enumerate() {
            for id in (controller.concerns)(&self.world, change) {
                self.queue.add((index, id));
            }
        }
    }

    fn resync(&mut self) {
        let objects: Vec<Object> = Kind::ALL.iter().flat_map(|kind| self.world.all(*kind)).collect();
        for object in objects {
            self.changed(&Change { old: None, new: Some(object) });
        }
    }

    fn start_workers(&mut self) {
        while self.workers.len() < WORKERS {
            let Some(key) = self.queue.pop() else { return };
            let context = Context { config: self.config, now: Timestamp::now() };
            let controller = &CONTROLLERS[key.0];
            let plan = (controller.plan)(&self.world, &key.1, &context);
            if let Some(at) = plan.again_at {
                self.queue.add_at(key.clone(), later(at, context.now));
            }
            if plan.actions.is_empty() {
                self.queue.done(key, true, Instant::now());
                continue;
            }
            tracing::debug!(controller = controller.name, key = ?key.1, actions = plan.actions.len(), "acting");
            self.workers.push(Box::pin(work(self.client, self.recorder, key, plan)));
        }
    }

    /// Learns from a worker's results: the world has them before the watches say so.
    fn finish(&mut self, key: Key, outcomes: Vec<Result<Outcome, apply::Error>>) {
        let mut succeeded = true;
        for outcome in outcomes {
            match outcome {
                Ok(outcome) => self.learn(outcome),
                Err(error) => {
                    succeeded = false;
                    let controller = CONTROLLERS[key.0].name;
                    if error.is_outrun() {
                        tracing::debug!(controller, key = ?key.1, %error, "was outrun");
                    } else {
                        tracing::warn!(controller, key = ?key.1, %error, "will try again");
                    }
                }
            }
        }
        self.queue.done(key, succeeded, Instant::now());
    }

    fn learn(&mut self, outcome: Outcome) {
        let change = match outcome {
            Outcome::Written(object) => self.world.apply(object),
            Outcome::Gone { id, uid } => self.world.remove(&id, &uid),
            Outcome::Bound { pod, uid, node } => self.world.bind(&pod, &uid, &node),
            Outcome::Nothing => None,
        };
        if let Some(change) = change {
            self.changed(&change);
        }
    }
}

async fn work(
    client: &kube::Client,
    recorder: &Recorder,
    key: Key,
    plan: Plan,
) -> (Key, Vec<Result<Outcome, apply::Error>>) {
    let actions = plan.actions.into_iter().map(|action| apply::apply(client, recorder, action));
    (key, join_all(actions).await)
}

/// A moment of the wall clock as one of the monotonic clock, a little later rather than too early.
fn later(at: Timestamp, now: Timestamp) -> Instant {
    let wait = at.duration_since(now).max(SignedDuration::ZERO).unsigned_abs();
    Instant::now() + wait + Duration::from_millis(1)
}
