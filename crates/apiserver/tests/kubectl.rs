//! Stock `kubectl` against the server: every command a user of a lab types.

#![allow(clippy::unwrap_used, reason = "a failure in a test's own helpers is a failed test")]

mod common;

use std::time::Duration;

use common::{Lab, columns, have_kubectl, have_kubectl_since};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

const DEMO: &str = "
apiVersion: v1
kind: Service
metadata: {name: myservice}
spec:
  selector: {app: myapp}
  ports: [{protocol: TCP, port: 80, targetPort: 80}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: demo2}
spec:
  replicas: 3
  selector: {matchLabels: {app: myapp}}
  template:
    metadata: {labels: {app: myapp}}
    spec:
      containers: [{name: myapp, image: 'myapp:v2'}]
";

/// What the Deployment controller would say when all replicas are ready.
async fn roll_out(lab: &Lab) {
    let path = "/apis/apps/v1/namespaces/default/deployments/demo2";
    let deployment = lab.get(path).await;
    let n = deployment["spec"]["replicas"].clone();
    let status = json!({"status": {"observedGeneration": deployment["metadata"]["generation"], "replicas": n,
        "updatedReplicas": n, "readyReplicas": n, "availableReplicas": n,
        "conditions": [{"type": "Available", "status": "True"}]}});
    assert_eq!(lab.merge(&format!("{path}/status"), &status).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_is_applied_scaled_edited_patched_and_rolled_out() {
    if !have_kubectl_since(32) {
        return;
    }
    let lab = Lab::start().await;
    assert_eq!(lab.apply(DEMO).await, "service/myservice created\ndeployment.apps/demo2 created\n");
    assert_eq!(lab.apply(DEMO).await, "service/myservice unchanged\ndeployment.apps/demo2 unchanged\n");
    let changed = DEMO.replace("myapp:v2", "myapp:v1");
    assert_eq!(lab.apply(&changed).await, "service/myservice unchanged\ndeployment.apps/demo2 configured\n");
    let diff = lab.run(&["diff", "-f", "-"], DEMO).await;
    assert!(diff.code == Some(1) && diff.out.contains("+      - image: myapp:v2"), "{diff:?}");

    lab.kubectl(&["scale", "deploy/demo2", "--replicas=6"]).await;
    assert_eq!(lab.kubectl(&["get", "deploy", "demo2", "-o", "jsonpath={.spec.replicas}"]).await, "6");
    let refused = lab.run(&["scale", "deploy/demo2", "--replicas=6", "--current-replicas=3"], "").await;
    assert!(refused.err.contains("Expected replicas to be 3, was 6"), "{refused:?}");

    lab.kubectl(&["set", "image", "deploy/demo2", "myapp=myapp:v2"]).await;
    lab.kubectl(&[
        "patch",
        "deploy",
        "demo2",
        "-p",
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"myapp:v1"}]}}}}"#,
    ])
    .await;
    let images = ["get", "deploy", "demo2", "-o", "jsonpath={.spec.template.spec.containers[*].image}"];
    assert_eq!(lab.kubectl(&images).await, "myapp:v1 myapp:v2", "a new container comes first, as in the patch");
    lab.kubectl(&[
        "patch",
        "deploy",
        "demo2",
        "--type=json",
        "-p",
        r#"[{"op":"remove","path":"/spec/template/spec/containers/0"}]"#,
    ])
    .await;
    assert_eq!(lab.kubectl(&images).await, "myapp:v2");
    let editor = [("KUBE_EDITOR", "sed -i s/replicas:\\ 6/replicas:\\ 2/")];
    let edited = lab.run_with(&["edit", "deploy", "demo2"], "", &editor).await;
    assert_eq!(edited.out, "deployment.apps/demo2 edited\n", "{edited:?}");

    let mut rollout = lab.spawn(&["rollout", "status", "deployment/demo2", "--timeout=30s"]);
    let mut lines = BufReader::new(rollout.stdout.take().unwrap()).lines();
    let first = lines.next_line().await.unwrap().unwrap();
    assert!(first.starts_with("Waiting for deployment"), "{first}");
    roll_out(&lab).await;
    let last = lines.next_line().await.unwrap().unwrap();
    assert_eq!(last, "deployment \"demo2\" successfully rolled out");
    assert!(rollout.wait().await.unwrap().success());

    lab.kubectl(&["rollout", "restart", "deploy/demo2"]).await;
    let template =
        lab.kubectl(&["get", "deploy", "demo2", "-o", "jsonpath={.spec.template.metadata.annotations}"]).await;
    assert!(template.contains("kubectl.kubernetes.io/restartedAt"), "{template}");
    roll_out(&lab).await;
    lab.kubectl(&["wait", "--for=condition=Available", "deploy/demo2", "--timeout=10s"]).await;
    let table = lab.kubectl(&["get", "deploy", "-o", "wide"]).await;
    let rows = columns(&table);
    assert_eq!(rows[0].join(" "), "NAME READY UP-TO-DATE AVAILABLE AGE CONTAINERS IMAGES SELECTOR");
    assert_eq!(rows[1][..4].join(" "), "demo2 2/2 2 2");
    assert_eq!(rows[1][5..].join(" "), "myapp myapp:v2 app=myapp");
    let described = lab.kubectl(&["describe", "deploy", "demo2"]).await;
    assert!(described.contains("RollingUpdateStrategy:  25% max unavailable, 25% max surge"), "{described}");

    lab.kubectl(&["label", "deploy", "demo2", "a=b"]).await;
    lab.kubectl(&["annotate", "deploy", "demo2", "c=d"]).await;
    assert_eq!(lab.kubectl(&["get", "deploy", "-l", "a=b", "-o", "name"]).await, "deployment.apps/demo2\n");
    assert_eq!(lab.kubectl(&["delete", "deploy", "demo2"]).await, "deployment.apps \"demo2\" deleted\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn create_makes_one_of_each() {
    if !have_kubectl_since(32) {
        return;
    }
    let lab = Lab::start().await;
    for args in [
        &["create", "namespace", "team"][..],
        &["-n", "team", "create", "configmap", "a", "--from-literal=k=v"],
        &["-n", "team", "create", "secret", "generic", "a", "--from-literal=k=v"],
        &["-n", "team", "create", "serviceaccount", "a"],
        &["-n", "team", "create", "deployment", "web", "--image=myapp:v1", "--replicas=2", "--port=80"],
        &["-n", "team", "create", "service", "nodeport", "web", "--tcp=80:8080", "--node-port=30080"],
        &["-n", "team", "create", "service", "externalname", "out", "--external-name=www.westos.org"],
        &["-n", "team", "create", "service", "loadbalancer", "lb", "--tcp=80"],
        &["-n", "team", "expose", "deployment", "web", "--name=web2", "--port=80"],
        &["-n", "team", "run", "one", "--image=myapp:v1"],
    ] {
        lab.kubectl(args).await;
    }
    let deployment = lab.get("/apis/apps/v1/namespaces/team/deployments/web").await;
    assert_eq!(deployment["spec"]["replicas"], 2);
    let container = json!({"name": "myapp", "image": "myapp:v1", "imagePullPolicy": "IfNotPresent", "resources": {},
        "ports": [{"containerPort": 80, "protocol": "TCP"}],
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"});
    assert_eq!(deployment["spec"]["template"]["spec"]["containers"], json!([container]));
    let secret = lab.get("/api/v1/namespaces/team/secrets/a").await;
    assert_eq!((&secret["data"]["k"], &secret["type"]), (&json!("dg=="), &json!("Opaque")));
    let rows = columns(&lab.kubectl(&["-n", "team", "get", "svc"]).await);
    let row = |name: &str| rows.iter().find(|r| r[0] == name).unwrap().clone();
    assert_eq!(row("web")[1], "NodePort");
    assert_eq!(row("web")[3..5].join(" "), "<none> 80:30080/TCP");
    assert_eq!(row("out")[1..5].join(" "), "ExternalName <none> www.westos.org <none>");
    assert_eq!(row("lb")[3], "<pending>");
    let token = lab.kubectl(&["-n", "team", "create", "token", "a"]).await;
    let as_account = lab.run(&["--token", token.trim(), "get", "ns"], "").await;
    assert!(as_account.ok, "{as_account:?}");
    let stranger = lab.run(&["--token", "x", "get", "ns"], "").await;
    assert!(!stranger.ok && stranger.err.contains("must be logged in"), "{stranger:?}");
    let all = lab.kubectl(&["-n", "team", "get", "all", "-o", "name"]).await;
    assert!(all.contains("pod/one") && all.contains("service/web") && all.contains("deployment.apps/web"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_watched_described_waited_for_and_deleted() {
    if !have_kubectl_since(32) {
        return;
    }
    let lab = Lab::start().await;
    let node = json!({"metadata": {"name": "node1"}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
        "addresses": [{"type": "InternalIP", "address": "172.25.2.1"}], "nodeInfo": {"kubeletVersion": "v1.36.0"}}});
    assert_eq!(lab.post("/api/v1/nodes", &node).await.0, 201);
    lab.kubectl(&["run", "one", "--image=myapp:v1", "--labels=a=b"]).await;
    let mut watch = lab.spawn(&["get", "pods", "-w", "-o", "wide"]);
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut line = async || columns(&lines.next_line().await.unwrap().unwrap()).remove(0).join(" ");
    assert_eq!(line().await, "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES");
    assert!(line().await.starts_with("one 0/1 Pending 0 "));

    let pod = "/api/v1/namespaces/default/pods/one";
    assert_eq!(lab.post(&format!("{pod}/binding"), &json!({"target": {"kind": "Node", "name": "node1"}})).await.0, 201);
    assert!(line().await.ends_with("<none> node1 <none> <none>"));
    let status = json!({"status": {"phase": "Running", "podIP": "10.244.0.5", "podIPs": [{"ip": "10.244.0.5"}],
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "one", "ready": true, "restartCount": 0, "image": "myapp:v1", "imageID": "",
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}});
    assert_eq!(lab.merge(&format!("{pod}/status"), &status).await.0, 200);
    let running = line().await;
    assert!(running.starts_with("one 1/1 Running 0 ") && running.contains(" 10.244.0.5 node1 "), "{running}");
    lab.kubectl(&["wait", "--for=condition=Ready", "pod/one", "--timeout=10s"]).await;
    lab.kubectl(&["wait", "--for=jsonpath={.status.phase}=Running", "pod", "-l", "a=b", "--timeout=10s"]).await;

    let event = json!({"metadata": {"generateName": "one."}, "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": "one",
        "namespace": "default", "uid": lab.get(pod).await["metadata"]["uid"]}, "reason": "Started", "type": "Normal",
        "message": "Started container one", "source": {"component": "kubelet"}, "count": 1,
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z"});
    assert_eq!(lab.post("/api/v1/namespaces/default/events", &event).await.0, 201);
    let described = lab.kubectl(&["describe", "pod", "one"]).await;
    for part in ["Node:             node1", "IP:               10.244.0.5", "Started container one"] {
        assert!(described.contains(part), "{part}: {described}");
    }
    let described = lab.kubectl(&["describe", "node", "node1"]).await;
    assert!(described.contains("InternalIP:  172.25.2.1") && described.contains("one "), "{described}");
    assert!(lab.kubectl(&["get", "events"]).await.contains("pod/one"));
    assert!(lab.kubectl(&["events", "--for", "pod/one"]).await.contains("Started"));
    let rows = columns(&lab.kubectl(&["get", "nodes", "-o", "wide"]).await);
    assert_eq!(rows[1][..2].join(" "), "node1 Ready");
    assert_eq!(rows[1][5], "172.25.2.1");

    let mut deletion = lab.spawn(&["delete", "pod", "one"]);
    assert!(line().await.starts_with("one 1/1 Terminating 0 "));
    assert!(tokio::time::timeout(Duration::from_millis(300), deletion.wait()).await.is_err(), "waits for the kubelet");
    let (code, last) = lab.delete(pod, &json!({"gracePeriodSeconds": 0})).await;
    assert_eq!((code, &last["status"]), (200, &json!("Success")));
    assert!(deletion.wait().await.unwrap().success());
    lab.kubectl(&["cordon", "node1"]).await;
    assert!(lab.kubectl(&["get", "node", "node1"]).await.contains("Ready,SchedulingDisabled"));
    watch.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_is_printed() {
    if !have_kubectl() {
        return;
    }
    let lab = Lab::start().await;
    for (kind, header) in [
        ("namespaces", "NAME STATUS AGE"),
        ("services", "NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE SELECTOR"),
        ("serviceaccounts", "NAME SECRETS AGE"),
    ] {
        let rows = columns(&lab.kubectl(&["get", kind, "-o", "wide"]).await);
        assert_eq!(rows[0].join(" "), header);
        assert!(rows.len() > 1, "{kind}");
        let list: Value = serde_json::from_str(&lab.kubectl(&["get", kind, "-o", "json"]).await).unwrap();
        assert_eq!(list["items"].as_array().unwrap().len(), rows.len() - 1, "{kind}");
        assert!(!lab.kubectl(&["describe", kind]).await.is_empty());
    }
    for kind in [
        "po",
        "no",
        "ep",
        "endpointslices",
        "cm",
        "secrets",
        "ev",
        "deploy",
        "rs",
        "ds",
        "leases",
        "events.events.k8s.io",
    ] {
        assert!(lab.kubectl(&["get", kind, "-A", "-o", "wide"]).await.is_empty(), "{kind}");
        lab.kubectl(&["get", kind, "-A", "-o", "yaml"]).await;
        lab.kubectl(&["get", kind, "-A", "--sort-by=.metadata.name"]).await;
    }
    let resources = lab.kubectl(&["api-resources", "--no-headers", "-o", "name"]).await;
    assert_eq!(resources.lines().count(), 15, "{resources}");
    assert!(lab.kubectl(&["api-versions"]).await.contains("discovery.k8s.io/v1"));
    assert!(lab.kubectl(&["version"]).await.contains("v1.36.0+podwire"));
    assert_eq!(lab.kubectl(&["get", "--raw", "/readyz"]).await, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named() {
    if !have_kubectl() {
        return;
    }
    let lab = Lab::start().await;
    let deployment = DEMO.split("---").nth(1).unwrap();
    let service = DEMO.split("---").next().unwrap();
    for (what, manifest, told) in [
        (
            "unknown field",
            service.replace("selector:", "selektor:"),
            r#"strict decoding error: unknown field "spec.selektor""#,
        ),
        (
            "port too large",
            service.replace("port: 80,", "port: 70000,"),
            "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        ("wrong type", service.replace("port: 80,", "port: web,"), "spec.ports[0].port: invalid type: string"),
        (
            "address outside",
            service.replace("spec:", "spec:\n  clusterIP: 10.1.2.3"),
            "the provided IP (10.1.2.3) is not in the valid range",
        ),
        (
            "address taken",
            service.replace("spec:", "spec:\n  clusterIP: 10.96.0.1"),
            "provided IP is already allocated",
        ),
        (
            "node port outside",
            service.replace("spec:", "spec:\n  type: NodePort").replace("port: 80,", "port: 80, nodePort: 80,"),
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
        ),
        (
            "bad name",
            service.replace("myservice", "My_Service"),
            r#"metadata.name: Invalid value: "My_Service": a DNS-1035 label must consist of"#,
        ),
        (
            "bad type",
            service.replace("spec:", "spec:\n  type: Cluster"),
            r#"spec.type: Unsupported value: "Cluster": supported values: "ClusterIP""#,
        ),
        (
            "labels differ",
            deployment.replace("labels: {app: myapp}", "labels: {app: other}"),
            r#"spec.template.metadata.labels: Invalid value: {"app":"other"}: `selector` does not match template `labels`"#,
        ),
        (
            "no image",
            deployment.replace(", image: 'myapp:v2'", ""),
            "spec.template.spec.containers[0].image: Required value",
        ),
        (
            "no namespace",
            service.replace("name: myservice", "name: myservice, namespace: nowhere"),
            r#"namespaces "nowhere" not found"#,
        ),
    ] {
        let said = lab.run(&["apply", "-f", "-"], &manifest).await;
        assert!(!said.ok && said.err.contains(told), "{what}: {said:?}");
    }
    assert_eq!(
        lab.get("/api/v1/namespaces/default/services").await["items"].as_array().unwrap().len(),
        1,
        "nothing half made"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_said() {
    if !have_kubectl() {
        return;
    }
    let lab = Lab::start().await;
    let deployment = DEMO.split("---").nth(1).unwrap();
    lab.apply(DEMO).await;
    let moved = deployment.replace("app: myapp", "app: other");
    let said = lab.run(&["apply", "-f", "-"], &moved).await;
    assert!(said.err.contains("spec.selector: Invalid value") && said.err.contains("field is immutable"), "{said:?}");
    let said = lab.run(&["apply", "--server-side", "-f", "-"], DEMO).await;
    assert!(said.err.contains("server-side apply is not supported"), "{said:?}");
    let said = lab.run(&["get", "pod", "nothing"], "").await;
    assert_eq!(said.err, "Error from server (NotFound): pods \"nothing\" not found\n");
    let said = lab.run(&["create", "ns", "default"], "").await;
    assert_eq!(said.err, "Error from server (AlreadyExists): namespaces \"default\" already exists\n");
}
