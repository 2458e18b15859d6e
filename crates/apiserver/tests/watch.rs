//! list and watch, as client libraries rely on them.

#![allow(clippy::unwrap_used, reason = "a failure in a test's own helpers is a failed test")]

mod common;

use std::time::{Duration, Instant};

use common::Lab;
use futures_util::{AsyncBufReadExt, StreamExt, stream::BoxStream};
use podwire_apiserver::{Server, store::Memory};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Opens a watch; its events.
async fn watch(lab: &Lab, path: &str) -> BoxStream<'static, Value> {
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    let lines = lab.client.kube().request_stream(request).await.unwrap().lines();
    lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).boxed()
}

async fn next(events: &mut BoxStream<'static, Value>) -> (String, String) {
    let event = tokio::time::timeout(common::PATIENCE, events.next()).await.unwrap().unwrap();
    let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    (event["type"].as_str().unwrap().to_owned(), name)
}

fn told(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

fn map(name: &str, labels: Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}})
}

#[tokio::test]
async fn a_watch_goes_on_where_the_list_ended() {
    let lab = Lab::start().await;
    lab.post(MAPS, &map("before", json!({}))).await;
    let list = lab.get(MAPS).await;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap();
    lab.post(MAPS, &map("between", json!({}))).await;
    let mut events = watch(&lab, &format!("{MAPS}?watch=true&resourceVersion={revision}")).await;
    assert_eq!(next(&mut events).await, told("ADDED", "between"));
    lab.merge(&format!("{MAPS}/before"), &json!({"data": {"a": "b"}})).await;
    assert_eq!(next(&mut events).await, told("MODIFIED", "before"));
    lab.merge(&format!("{MAPS}/before"), &json!({"data": {"a": "b"}})).await;
    lab.delete(&format!("{MAPS}/before"), &json!({})).await;
    assert_eq!(next(&mut events).await, told("DELETED", "before"), "a change of nothing is no event");
    let mut from_start = watch(&lab, &format!("{MAPS}?watch=1&timeoutSeconds=1")).await;
    assert_eq!(next(&mut from_start).await, told("ADDED", "between"));
    assert_eq!(from_start.next().await, None, "ends when its time is over");
}

/// The names in a list, and where its next piece is.
fn piece(list: &Value) -> (Vec<String>, Option<String>) {
    let names =
        list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned());
    (names.collect(), list["metadata"]["continue"].as_str().map(str::to_owned))
}

#[tokio::test]
async fn the_pieces_of_a_list_show_one_state() {
    let lab = Lab::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        lab.post(MAPS, &map(name, json!({"is": "first"}))).await;
    }
    let first = lab.get(&format!("{MAPS}?limit=2")).await;
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    let (names, token) = piece(&first);
    assert_eq!(names, ["a", "b"]);
    let token = token.unwrap();
    // What happens now is not in the other pieces; it is in a watch from the list's revision.
    lab.delete(&format!("{MAPS}/c"), &json!({})).await;
    lab.post(MAPS, &map("cc", json!({}))).await;
    lab.merge(&format!("{MAPS}/d"), &json!({"metadata": {"labels": {"is": "changed"}}})).await;
    let second = lab.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let (names, next) = piece(&second);
    assert_eq!(names, ["c", "d"]);
    assert_eq!(second["items"][1]["metadata"]["labels"]["is"], "first");
    let last = lab.get(&format!("{MAPS}?limit=2&continue={}", next.unwrap())).await;
    assert_eq!(piece(&last), (vec!["e".to_owned()], None));
    assert_eq!(
        piece(&lab.get(&format!("{MAPS}?limit=1&labelSelector=is%3Dchanged")).await),
        (vec!["d".to_owned()], None)
    );
}

#[tokio::test]
async fn a_list_whose_beginning_is_forgotten_begins_again() {
    let lab = Lab::start_with(Server::builder().store(std::sync::Arc::new(Memory::with_history(2)))).await;
    for name in ["a", "b", "c"] {
        lab.post(MAPS, &map(name, json!({}))).await;
    }
    let token = piece(&lab.get(&format!("{MAPS}?limit=1")).await).1.unwrap();
    for n in 0..3 {
        lab.merge(&format!("{MAPS}/c"), &json!({"data": {"n": n.to_string()}})).await;
    }
    let refused = lab.send("GET", &format!("{MAPS}?limit=1&continue={token}"), "", "").await.1;
    assert_eq!((refused["code"].as_u64(), refused["reason"].as_str()), (Some(410), Some("Expired")));
    let refused = lab.send("GET", &format!("{MAPS}?limit=1&continue=nonsense"), "", "").await.1;
    assert_eq!(refused["code"], 400, "{refused}");
}

#[tokio::test]
async fn a_selector_sees_objects_come_and_go() {
    let lab = Lab::start().await;
    let mut by_label = watch(&lab, &format!("{MAPS}?watch=true&labelSelector=app%3Dweb")).await;
    let mut by_name = watch(&lab, &format!("{MAPS}?watch=true&fieldSelector=metadata.name%3Da")).await;
    lab.post(MAPS, &map("a", json!({}))).await;
    lab.post(MAPS, &map("b", json!({"app": "web"}))).await;
    lab.merge(&format!("{MAPS}/a"), &json!({"metadata": {"labels": {"app": "web"}}})).await;
    lab.merge(&format!("{MAPS}/b"), &json!({"metadata": {"labels": null}})).await;
    assert_eq!(next(&mut by_label).await, told("ADDED", "b"));
    assert_eq!(next(&mut by_label).await, told("ADDED", "a"));
    let gone = by_label.next().await.unwrap();
    assert_eq!(
        (&gone["type"], &gone["object"]["metadata"]["labels"]["app"]),
        (&json!("DELETED"), &json!("web")),
        "as it was"
    );
    let revision = lab.get(&format!("{MAPS}/b")).await["metadata"]["resourceVersion"].clone();
    assert_eq!(gone["object"]["metadata"]["resourceVersion"], revision);
    assert_eq!(next(&mut by_name).await, told("ADDED", "a"));
    assert_eq!(next(&mut by_name).await, told("MODIFIED", "a"));
}

#[tokio::test]
async fn a_streaming_list_says_when_it_is_complete() {
    let lab = Lab::start().await;
    lab.post(MAPS, &map("a", json!({}))).await;
    let options = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = watch(&lab, &format!("{MAPS}?{options}")).await;
    assert_eq!(next(&mut events).await, told("ADDED", "a"));
    let end = events.next().await.unwrap();
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["kind"], "ConfigMap");
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let revision = lab.get(MAPS).await["metadata"]["resourceVersion"].clone();
    assert_eq!(end["object"]["metadata"]["resourceVersion"], revision);
    lab.post(MAPS, &map("b", json!({}))).await;
    assert_eq!(next(&mut events).await, told("ADDED", "b"));
}

#[tokio::test]
async fn too_old_a_revision_is_gone() {
    let lab = Lab::start_with(Server::builder().store(std::sync::Arc::new(Memory::with_history(4)))).await;
    let revision = lab.get(MAPS).await["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    for name in ["a", "b", "c", "d", "e", "f"] {
        lab.post(MAPS, &map(name, json!({}))).await;
    }
    let mut events = watch(&lab, &format!("{MAPS}?watch=true&resourceVersion={revision}")).await;
    let event = events.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(event["object"]["reason"], "Expired");
    assert_eq!(events.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_arrives_within_milliseconds() {
    let lab = Lab::start().await;
    let mut events = watch(&lab, &format!("{MAPS}?watch=true")).await;
    let mut worst = Duration::ZERO;
    let mut all = Vec::new();
    for n in 0..100 {
        let started = Instant::now();
        lab.post(MAPS, &map(&format!("m{n}"), json!({}))).await;
        next(&mut events).await;
        all.push(started.elapsed());
        worst = worst.max(started.elapsed());
    }
    all.sort();
    println!("create to watch event, both over TLS: median {:?}, worst {worst:?}", all[50]);
    assert!(all[50] < Duration::from_millis(20), "median {:?}", all[50]);
}

#[tokio::test]
async fn writers_that_lost_a_race_are_told() {
    let lab = Lab::start().await;
    let (_, first) = lab.post(MAPS, &map("a", json!({}))).await;
    let mut second = first.clone();
    second["data"] = json!({"k": "1"});
    assert_eq!(lab.put(&format!("{MAPS}/a"), &second).await.0, 200);
    second["data"] = json!({"k": "2"});
    let (code, status) = lab.put(&format!("{MAPS}/a"), &second).await;
    assert_eq!((code, &status["reason"], &status["kind"]), (409, &json!("Conflict"), &json!("Status")));
    second["metadata"]["resourceVersion"] = Value::Null;
    assert_eq!(lab.put(&format!("{MAPS}/a"), &second).await.0, 200, "without a revision the last one wins");
    let (code, _) = lab.delete(&format!("{MAPS}/a"), &json!({"preconditions": {"uid": "other"}})).await;
    assert_eq!(code, 409);
    let many = (0..8).map(|n| {
        let patch = json!({"data": {n.to_string(): "x"}});
        let lab = &lab;
        async move { lab.merge(&format!("{MAPS}/a"), &patch).await.0 }
    });
    let codes = futures_util::future::join_all(many).await;
    assert!(codes.iter().all(|c| *c == 200), "{codes:?}");
    assert_eq!(lab.get(&format!("{MAPS}/a")).await["data"].as_object().unwrap().len(), 9);
}

#[tokio::test]
async fn deletion_waits_for_finalizers_and_a_namespace_for_its_own() {
    let lab = Lab::start().await;
    let mut object = map("a", json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    lab.post(MAPS, &object).await;
    let (_, held) = lab.delete(&format!("{MAPS}/a"), &json!({})).await;
    assert!(held["metadata"]["deletionTimestamp"].is_string(), "{held}");
    lab.merge(&format!("{MAPS}/a"), &json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(lab.send("GET", &format!("{MAPS}/a"), "", "").await.0, 404);

    lab.post("/api/v1/namespaces", &json!({"metadata": {"name": "team"}})).await;
    let team = "/api/v1/namespaces/team";
    assert_eq!(lab.get(&format!("{team}/serviceaccounts/default")).await["metadata"]["namespace"], "team");
    let (_, terminating) = lab.delete(team, &json!({})).await;
    assert_eq!(terminating["status"]["phase"], "Terminating");
    let (code, status) = lab.post(&format!("{team}/configmaps"), &map("late", json!({}))).await;
    assert_eq!(code, 403, "{status}");
    let mut finalized = terminating.clone();
    finalized["spec"]["finalizers"] = json!([]);
    assert_eq!(lab.put(&format!("{team}/finalize"), &finalized).await.0, 200);
    assert_eq!(lab.send("GET", team, "", "").await.0, 404);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let lab = Lab::start().await;
    for (name, app) in [("a", "web"), ("b", "web"), ("c", "db")] {
        lab.post(MAPS, &map(name, json!({"app": app}))).await;
    }
    assert_eq!(lab.delete(&format!("{MAPS}?labelSelector=app%3Dweb"), &json!({})).await.0, 200);
    let left = lab.get(MAPS).await;
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    assert_eq!(left["items"][0]["metadata"]["name"], "c");
}

#[tokio::test]
async fn status_and_specification_are_written_apart() {
    let lab = Lab::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"generateName": "p-"}, "spec": {"containers": [{"name": "a", "image": "x"}]},
        "status": {"phase": "Running"}});
    let (_, created) = lab.post(pods, &pod).await;
    assert_eq!(created["status"]["phase"], "Pending", "a new object's status is not the client's");
    let path = format!("{pods}/{}", created["metadata"]["name"].as_str().unwrap());
    let (_, patched) =
        lab.merge(&format!("{path}/status"), &json!({"status": {"phase": "Running"}, "spec": {"hostname": "x"}})).await;
    assert_eq!((&patched["status"]["phase"], &patched["spec"]["hostname"]), (&json!("Running"), &Value::Null));
    let (_, patched) =
        lab.merge(&path, &json!({"status": {"phase": "Failed"}, "metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!((&patched["status"]["phase"], &patched["metadata"]["labels"]["a"]), (&json!("Running"), &json!("b")));
    assert_eq!(patched["metadata"]["generation"], 1);
    let (code, status) = lab.merge(&path, &json!({"spec": {"hostname": "x"}})).await;
    assert!(code == 422 && status["message"].as_str().unwrap().contains("pod updates may not change"), "{status}");
    let list = lab.get(&format!("{pods}?fieldSelector=status.phase%3DRunning,spec.nodeName%3D")).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let (code, status) = lab.send("GET", &format!("{pods}?fieldSelector=spec.x%3D1"), "", "").await;
    assert_eq!((code, &status["message"]), (400, &json!("field label not supported: spec.x")));
}
