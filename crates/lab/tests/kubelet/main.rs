//! A real node in namespaces of its own, under an API server in this process: pods from creation to nothing.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::time::{Duration, Instant};

use fixture::{Fixture, MYAPP, until};
use podwire_apiserver::remote::{ExecOutput, ExecRequest, LogRequest};
use serde_json::json;

macro_rules! fixture {
    ($name:expr) => {
        match Fixture::start($name).await {
            Some(fixture) => fixture,
            None => return,
        }
    };
}

#[tokio::test]
async fn a_web_pod_from_creation_to_nothing() {
    let fixture = fixture!("web");
    let before = fixture.leftovers();
    let pod = fixture
        .create("web", json!({"containers": [{"name": "c", "image": MYAPP, "ports": [{"containerPort": 8080}]}]}))
        .await;
    let created = tokio::time::Instant::now();
    let pod = fixture.ready(&pod).await;
    eprintln!("created to Ready: {:?}", created.elapsed());
    let status = pod.status.unwrap();
    let ip = status.pod_ip.unwrap();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.host_ip.as_deref(), Some(fixture::NODE_ADDRESS));

    let answer = fixture.get(&format!("{ip}:8080"), "/").await;
    assert!(answer.ends_with("Hello MyApp | Version: v2 | <a href=\"hostname.html\">Pod Name</a>\n"), "{answer}");
    assert!(fixture.get(&format!("{ip}:8080"), "/hostname.html").await.ends_with("\r\n\r\nweb\n"));
    assert!(fixture.get(&format!("{ip}:8080"), "/none").await.starts_with("HTTP/1.1 404"));
    let log = fixture.logs(LogRequest { tail_lines: Some(1), ..fixture.log_of("web", "c") }).await;
    assert!(log.contains("\"GET /none HTTP/1.1\" 404"), "{log}");

    fixture.delete("web", None).await;
    until("the pod is gone", || async { fixture.pod("web").await.is_none().then_some(()) }).await;
    assert_eq!(fixture.leftovers(), before);
    let events = fixture.events("web").await;
    for reason in ["Pulled", "Created", "Started", "Killing"] {
        assert!(events.iter().any(|e| e == reason), "{reason} in {events:?}");
    }
}

#[tokio::test]
async fn commands_run_in_the_container() {
    let fixture = fixture!("exec");
    let pod = json!({
        "hostAliases": [{"ip": "10.9.9.9", "hostnames": ["alias.test"]}],
        "volumes": [{"name": "data", "emptyDir": {}}],
        "containers": [{
            "name": "c", "image": "tools", "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done"],
            "env": [{"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, {"name": "HI", "value": "hi $(WHO)"}],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}], "workingDir": "/tmp",
        }],
    });
    let pod = fixture.create("tools", pod).await;
    fixture.ready(&pod).await;

    let run = async |script: &str| fixture.exec("tools", "c", &["sh", "-c", script], b"").await;
    assert_eq!(run("echo $HI; echo err >&2; exit 7").await, ("hi tools\n".into(), "err\n".into(), 7));
    assert_eq!(run("hostname; pwd").await.0, "tools\n/tmp\n");
    assert_eq!(run("cat /proc/1/comm").await.0, "sh\n", "the command is process 1");
    let resolv = run("cat /etc/resolv.conf").await.0;
    assert_eq!(
        resolv,
        "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
    );
    let hosts = run("cat /etc/hosts").await.0;
    assert!(
        hosts.starts_with("# Kubernetes-managed hosts file.\n") && hosts.ends_with("10.9.9.9\talias.test\n"),
        "{hosts}"
    );
    let account =
        run("cd /var/run/secrets/kubernetes.io/serviceaccount; cat namespace; wc -c < token; head -1 ca.crt").await.0;
    assert!(account.starts_with("default") && account.ends_with("-----BEGIN CERTIFICATE-----\n"), "{account}");
    assert_eq!(run("touch /data/x && touch /usr/x").await.2, 1, "volumes can be written, the host's files cannot");
    assert_eq!(run("kill -9 $$").await.2, 137);
    let (_, stderr, code) = fixture.exec("tools", "c", &["no-such-command"], b"").await;
    assert_eq!(code, 127);
    assert!(stderr.contains("executable file not found in $PATH"), "{stderr}");
    let (stdout, _, code) = fixture.exec("tools", "c", &["sh", "-c", "tr a-z A-Z"], b"from stdin").await;
    assert_eq!((stdout.as_str(), code), ("FROM STDIN", 0));
    let long = vec![b'x'; 3 << 20];
    assert_eq!(fixture.exec("tools", "c", &["wc", "-c"], &long).await.0, "3145728\n");

    let request =
        ExecRequest { tty: true, ..fixture.exec_of("tools", "c", &["sh", "-c", "tty >/dev/null && stty size"]) };
    let mut session = fixture.session(request).await;
    session.resize.send((91, 37)).await.unwrap();
    let mut text = String::new();
    while let Some(output) = session.output.recv().await {
        match output {
            ExecOutput::Stdout(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
            other => assert_eq!(other, ExecOutput::Exit(0), "{text}"),
        }
    }
    assert!(text == "37 91\r\n" || text == "0 0\r\n", "a terminal, of the size given if that came in time: {text:?}");
    fixture.delete("tools", None).await;
    until("the pod is gone", || async { fixture.pod("tools").await.is_none().then_some(()) }).await;
}

#[tokio::test]
async fn probes_decide_on_ready_and_on_restarts() {
    let fixture = fixture!("probes");
    let script = "trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let pod = json!({
        "volumes": [{"name": "data", "emptyDir": {}}],
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "c", "image": "x", "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            "readinessProbe": {"exec": {"command": ["test", "-e", "/data/ready"]}, "periodSeconds": 1, "failureThreshold": 1},
            "livenessProbe": {"exec": {"command": ["test", "!", "-e", "/data/dead"]}, "periodSeconds": 1, "failureThreshold": 1},
        }],
    });
    fixture.create("probed", pod).await;
    let pod = until("it runs", || async {
        let pod = fixture.pod("probed").await?;
        fixture::container(&pod)?.state?.running.map(|_| pod.clone())
    })
    .await;
    assert!(!fixture::is_ready(&pod));
    fixture.exec("probed", "c", &["touch", "/data/ready"], b"").await;
    let touched = tokio::time::Instant::now();
    fixture.ready(&pod).await;
    assert!(touched.elapsed() < Duration::from_millis(1500), "an unready container is asked often");
    fixture.exec("probed", "c", &["rm", "/data/ready"], b"").await;
    until("it is unready", || async { (!fixture::is_ready(&fixture.pod("probed").await?)).then_some(()) }).await;
    fixture.exec("probed", "c", &["touch", "/data/dead"], b"").await;
    let status = until("it is restarted", || async {
        let status = fixture::container(&fixture.pod("probed").await?)?;
        (status.restart_count >= 1).then_some(status)
    })
    .await;
    assert_eq!(status.last_state.unwrap().terminated.unwrap().exit_code, 0);
    assert!(fixture.events("probed").await.iter().any(|reason| reason == "Unhealthy"));
}

#[tokio::test]
async fn what_crashes_is_restarted_with_back_off_and_what_ends_is_done() {
    let fixture = fixture!("restart");
    let crash = json!({
        "containers": [{"name": "c", "image": "x", "command": ["sh", "-c", "echo >> /data/x; wc -l < /data/x; exit 3"],
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "volumes": [{"name": "data", "emptyDir": {}}],
    });
    fixture.create("crash", crash).await;
    let done = json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "i", "image": "x", "command": ["sh", "-c", "echo first > /data/x"],
                            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "containers": [{"name": "c", "image": "x", "command": ["cat", "/data/x"],
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "volumes": [{"name": "data", "emptyDir": {}}],
    });
    fixture.create("done", done).await;
    fixture.create("bad", json!({"containers": [{"name": "c", "image": "nginx"}]})).await;

    let status = until("the back-off", || async {
        let status = fixture::container(&fixture.pod("crash").await?)?;
        let reason = status.state.as_ref()?.waiting.as_ref()?.reason.clone()?;
        (reason == "CrashLoopBackOff").then_some(status)
    })
    .await;
    assert_eq!(status.restart_count, 1, "the first restart comes at once");
    let last = status.last_state.unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (3, Some("Error")));
    assert!(status.state.unwrap().waiting.unwrap().message.unwrap().starts_with("back-off 10s restarting"));
    assert_eq!(fixture.logs(fixture.log_of("crash", "c")).await, "2\n");
    let previous = LogRequest { previous: true, ..fixture.log_of("crash", "c") };
    assert_eq!(fixture.logs(previous).await, "2\n", "the run that lastState tells of");

    until("the other has succeeded", || async {
        (fixture.pod("done").await?.status?.phase? == "Succeeded").then_some(())
    })
    .await;
    assert_eq!(fixture.logs(fixture.log_of("done", "c")).await, "first\n");

    let message = until("no image", || async {
        let status = fixture::container(&fixture.pod("bad").await?)?;
        let waiting = status.state?.waiting?;
        (waiting.reason? == "ErrImagePull").then_some(waiting.message?)
    })
    .await;
    assert!(message.contains("no registry"), "{message}");
    for name in ["crash", "done", "bad"] {
        fixture.delete(name, Some(1)).await;
        until("the pod is gone", || async { fixture.pod(name).await.is_none().then_some(()) }).await;
    }
}

#[tokio::test]
async fn a_pod_that_ignores_sigterm_is_killed_after_its_grace_period() {
    let fixture = fixture!("grace");
    let before = fixture.leftovers();
    let deaf = json!({"containers": [{"name": "c", "image": "x", "command": ["sleep", "1000"]}], "hostNetwork": true});
    let pod = fixture.create("deaf", deaf).await;
    let pod = fixture.ready(&pod).await;
    assert_eq!(pod.status.unwrap().pod_ip.as_deref(), Some(fixture::NODE_ADDRESS));
    let asked = tokio::time::Instant::now();
    fixture.delete("deaf", Some(1)).await;
    until("the pod is gone", || async { fixture.pod("deaf").await.is_none().then_some(()) }).await;
    assert!((900..3000).contains(&asked.elapsed().as_millis()), "{:?}", asked.elapsed());
    assert_eq!(fixture.leftovers(), before);
}

#[tokio::test]
async fn hooks_run_and_force_cuts_a_long_goodbye_short() {
    let fixture = fixture!("hooks");
    let before = fixture.leftovers();
    let say = |word: &str| json!({"exec": {"command": ["sh", "-c", format!("echo {word} > /proc/1/fd/1")]}});
    let polite = json!({"containers": [{
        "name": "c", "image": "x", "command": ["sh", "-c", "trap 'echo bye; exit 0' TERM; while :; do sleep 0.05; done"],
        "lifecycle": {"postStart": say("hello"), "preStop": say("leaving")},
    }]});
    let polite = fixture.create("polite", polite).await;
    fixture.ready(&polite).await;
    let follow = LogRequest { follow: true, ..fixture.log_of("polite", "c") };
    let (log, ()) = tokio::join!(fixture.logs(follow), fixture.delete("polite", None));
    assert_eq!(log, "hello\nleaving\nbye\n");

    let deaf = json!({"containers": [{"name": "c", "image": "x", "command": ["sleep", "1000"]}]});
    let deaf = fixture.create("deaf", deaf).await;
    fixture.ready(&deaf).await;
    fixture.delete("deaf", Some(600)).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(fixture.pod("deaf").await.is_some());
    fixture.delete("deaf", Some(0)).await;
    until("nothing is left", || async { (fixture.leftovers() == before).then_some(()) }).await;
}

#[tokio::test]
async fn a_missing_config_map_holds_a_container_up_and_an_edited_one_is_seen_soon() {
    let fixture = fixture!("config");
    fixture.put_config_map("live", "x", "one").await;
    let pod = json!({"volumes": [{"name": "live", "configMap": {"name": "live"}}], "containers": [{
        "name": "c", "image": MYAPP,
        "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "x"}}}],
        "volumeMounts": [{"name": "live", "mountPath": "/data"}],
        "readinessProbe": {"httpGet": {"port": 80, "path": "/hostname.html"}, "periodSeconds": 1},
    }]});
    let pod = fixture.create("waits", pod).await;
    let message = until("it waits", || async {
        let waiting = fixture::container(&fixture.pod("waits").await?)?.state?.waiting?;
        (waiting.reason? == "CreateContainerConfigError").then_some(waiting.message?)
    })
    .await;
    assert_eq!(message, "configmap \"late\" not found");
    fixture.put_config_map("late", "x", "here").await;
    fixture.ready(&pod).await;
    assert_eq!(fixture.exec("waits", "c", &["sh", "-c", "echo $X"], b"").await.0, "here\n");
    assert_eq!(fixture.exec("waits", "c", &["cat", "/data/x"], b"").await.0, "one");
    fixture.put_config_map("live", "x", "two").await;
    let edited = Instant::now();
    until("the mounted file has changed", || async {
        (fixture.exec("waits", "c", &["cat", "/data/x"], b"").await.0 == "two").then_some(())
    })
    .await;
    assert!(edited.elapsed() < Duration::from_secs(2), "{:?}", edited.elapsed());
}

#[tokio::test]
async fn a_node_that_goes_down_takes_its_pods_with_it() {
    let mut fixture = fixture!("down");
    let pod = json!({"containers": [{"name": "c", "image": "x", "command": ["sh", "-c", "sleep 1000 & sleep 1000"]}]});
    let pod = fixture.create("pod", pod).await;
    fixture.ready(&pod).await;
    let processes = fixture.processes();
    assert_eq!(processes.len(), 1, "{processes:?}");
    assert!(fixture.stop_node().success());
    for pid in processes {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
    let pod = fixture.pod("pod").await.unwrap();
    assert!(pod.metadata.deletion_timestamp.is_none(), "the pod is the node's no more, but it is not deleted");
}
