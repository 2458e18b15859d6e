//! A watch whose connection is open and passes nothing on any more, and one that is only slow to tell.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

#[path = "kube_proxy/relay.rs"]
mod relay;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use podwire_apiserver::Server;
use podwire_k8s::{
    Checks, Client, Event,
    k8s_openapi::api::core::v1::Service,
    kube::{
        Api, ResourceExt,
        api::{DeleteParams, Patch, PatchParams, PostParams},
        runtime::watcher::Config,
    },
    watch_checked,
};
use relay::Relay;
use serde_json::json;

/// A connection to an API server, and one past the relay.
struct World {
    relay: Relay,
    through: Api<Service>,
    past: Api<Service>,
    _server: Server,
}

impl World {
    async fn new(name: &str) -> Self {
        let server = Server::builder().build().unwrap();
        let api: SocketAddr = server.serve(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap();
        // A port that was free a moment ago.
        let front = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let relay = Relay::new(front, api);
        let file = std::env::temp_dir().join(format!("podwire-quiet-{name}-{}", std::process::id()));
        std::fs::write(&file, server.kubeconfig(api)).unwrap();
        let client = async |server: &str| Client::connect(Some(&file), Some(server)).await.unwrap().kube();
        let through = Api::namespaced(client(&format!("https://{front}")).await, "default");
        let past = Api::namespaced(client(&format!("https://{api}")).await, "default");
        std::fs::remove_file(&file).unwrap();
        Self { relay, through, past, _server: server }
    }

    /// The names that a watch tells of, and how often it was started anew.
    fn watch(&self, interval: Duration) -> (impl Stream<Item = Event<String>> + use<>, Arc<AtomicUsize>) {
        let restarts = Arc::new(AtomicUsize::new(0));
        let counted = restarts.clone();
        let checks = Checks::new(move || _ = counted.fetch_add(1, Ordering::SeqCst));
        let checks = checks.every(interval, Duration::from_millis(300));
        let read = |service: Service| service.name_any();
        (watch_checked(self.through.clone(), Config::default(), checks, read), restarts)
    }

    async fn create(&self, name: &str) {
        let service = json!({ "metadata": { "name": name }, "spec": { "ports": [{ "port": 80 }] } });
        self.past.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap();
    }
}

async fn next(events: &mut (impl Stream<Item = Event<String>> + Unpin)) -> Event<String> {
    let event = tokio::time::timeout(Duration::from_secs(30), events.next()).await;
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    match event.expect("the watch says nothing").unwrap() {
        Event::Snapshot(names) => Event::Snapshot(sorted(names)),
        event => event,
    }
}

fn names(names: &[&str]) -> Event<String> {
    Event::Snapshot(names.iter().map(|name| (*name).to_owned()).collect())
}

#[tokio::test]
async fn a_watch_that_has_gone_quiet_is_started_anew() {
    let world = World::new("silent").await;
    world.create("gone").await;
    let (events, restarts) = world.watch(Duration::from_millis(500));
    let mut events = pin!(events);
    assert_eq!(next(&mut events).await, names(&["gone", "kubernetes"]));
    world.create("new").await;
    assert_eq!(next(&mut events).await, Event::Applied("new".to_owned()));
    // One is new, one is gone, one is changed.
    world.relay.silence();
    world.create("newer").await;
    world.past.delete("gone", &DeleteParams::default()).await.unwrap();
    let patch = Patch::Merge(json!({ "metadata": { "labels": { "a": "b" } } }));
    world.past.patch("new", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(next(&mut events).await, names(&["kubernetes", "new", "newer"]));
    assert_eq!(restarts.load(Ordering::SeqCst), 1);
    world.create("newest").await;
    assert_eq!(next(&mut events).await, Event::Applied("newest".to_owned()), "and it goes on");
}

#[tokio::test]
async fn a_watch_that_tells_everything_is_left_alone() {
    let world = World::new("busy").await;
    let (events, restarts) = world.watch(Duration::from_millis(20));
    let mut events = pin!(events);
    assert_eq!(next(&mut events).await, names(&["kubernetes"]));
    // Checks fall between changes and their events.
    for number in 0..100 {
        let name = format!("a{number}");
        world.create(&name).await;
        assert_eq!(next(&mut events).await, Event::Applied(name.clone()));
        world.past.delete(&name, &DeleteParams::default()).await.unwrap();
        assert_eq!(next(&mut events).await, Event::Deleted(name));
    }
    assert_eq!(restarts.load(Ordering::SeqCst), 0);
}
