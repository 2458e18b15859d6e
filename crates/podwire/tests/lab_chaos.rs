//! A lab under rough treatment: what is killed comes back or goes away whole, and clients notice nothing of changes.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod lab;

use std::{
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use lab::{Lab, asking, assert_gone, eventually, kill, namespaces, text};

/// The pods of the cluster that are ready, as lines of `kubectl get pods`.
fn ready_pods(lab: &Lab) -> usize {
    let pods = lab.kubectl(&["get", "pods", "-A", "--no-headers"]);
    pods.lines().filter(|line| line.contains(" 1/1 ")).count()
}

/// A process of the lab whose command line contains `what`.
fn find(lab: &Lab, what: &str) -> u32 {
    let processes = lab.processes();
    *processes.iter().find(|(_, line)| line.contains(what)).unwrap_or_else(|| panic!("{what}: {processes:#?}")).0
}

#[test]
fn what_is_killed_on_a_node_is_started_again() {
    let Some(lab) = Lab::new("heal") else { return };
    lab.up(&["--nodes", "2"]);
    lab.kubectl(&["apply", "-f", "examples/demo-clusterip.yml"]);
    lab.rolled_out();
    eventually("all pods are ready", || ready_pods(&lab) == 9);
    let before = lab.kubectl(&["get", "pods", "-A", "-o", "name"]);
    for (what, pods) in [
        ("flanneld --", "app=flannel"),
        ("kube-proxy --", "k8s-app=kube-proxy"),
        ("dns -conf", "k8s-app=kube-dns"),
        ("myapp", "app=myapp"),
    ] {
        kill(find(&lab, &format!("podwire {what}")));
        let restarts =
            ["get", "pods", "-A", "-l", pods, "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}"];
        eventually(what, || lab.kubectl(&restarts).contains('1') && ready_pods(&lab) == 9);
    }
    assert_eq!(lab.kubectl(&["get", "pods", "-A", "-o", "name"]), before, "the pods are still the same");
    for node in ["node1", "node2"] {
        let (answered, address) =
            lab.exec(node, &["dig", "+short", "+time=2", "@10.96.0.10", "myservice.default.svc.cluster.local"]);
        assert!(answered, "{address}");
        let (answered, page) = lab.exec(node, &["curl", "-s", "-m", "3", &format!("http://{}/", address.trim())]);
        assert!(answered && page.contains("Hello MyApp"), "{page}");
    }
}

#[test]
fn a_lab_with_a_killed_kubelet_works_on_and_goes_down_whole() {
    let Some(lab) = Lab::new("lost") else { return };
    lab.up(&["--nodes", "2"]);
    let all = lab.processes();
    let spaces = namespaces(&all);
    let machines: Vec<_> = all.iter().filter(|(_, line)| line.contains("lab-node")).map(|(pid, _)| *pid).collect();
    assert_eq!(machines.len(), 3, "{all:#?}");
    kill(machines[1]);
    eventually("node2's process has ended", || {
        let (worked, said) = lab.exec("node2", &["true"]);
        !worked && said.contains("the process of node2 has ended")
    });
    let (reached, said) = lab.exec("node1", &["ping", "-c1", "-W2", "node2"]);
    assert!(reached, "its network stays, as a real node's without kubelet: {said}");
    assert!(lab.run("status", &[]).status.success());
    assert!(lab.run("down", &[]).status.success());
    assert_gone(&lab, &all, &spaces);
}

#[test]
fn a_killed_up_or_init_leaves_nothing_that_down_or_up_does_not_clean() {
    let Some(lab) = Lab::new("cut") else { return };
    for pause in [5, 40, 120, 250, 400] {
        let mut up = lab.command("up", &["--nodes", "1"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(pause));
        kill(up.id());
        up.wait().unwrap();
        let down = lab.run("down", &[]);
        assert!(down.status.success(), "{pause} ms: {}", text(&down.stderr));
        assert!(!lab.directory().exists(), "{pause} ms");
    }
    lab.up(&["--nodes", "1"]);
    let processes = lab.processes();
    let spaces = namespaces(&processes);
    kill(lab.init());
    assert_gone(&lab, &processes, &spaces);
    lab.up(&["--nodes", "1"]);
}

#[test]
fn of_two_labs_of_one_name_one_comes_up() {
    let Some(lab) = Lab::new("race") else { return };
    let ups: Vec<Child> = (0..2)
        .map(|_| lab.command("up", &["--nodes", "1"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    let outputs: Vec<_> = ups.into_iter().map(|up| up.wait_with_output().unwrap()).collect();
    let errors: String = outputs.iter().map(|output| text(&output.stderr)).collect();
    assert_eq!(outputs.iter().filter(|output| output.status.success()).count(), 1, "{errors}");
    assert!(errors.contains("is running already"), "{errors}");
    assert!(lab.exec("node1", &["true"]).0);
}

#[test]
fn clients_notice_nothing_of_updates_scaling_and_new_proxies() {
    let Some(lab) = Lab::new("calm") else { return };
    lab.up(&["--nodes", "2"]);
    lab.kubectl(&["apply", "-f", "examples/demo-nodeport.yml"]);
    lab.kubectl(&["run", "asker", "--image=shell", "--restart=Never", "--command", "--", "sleep", "1000"]);
    lab.kubectl(&["wait", "--for=condition=Ready", "pod/asker", "--timeout=20s"]);
    lab.rolled_out();
    let port = lab.kubectl(&["get", "service", "myservice", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    let url = format!("http://172.25.2.1:{port}/");
    eventually("the node port answers", || lab.exec("client", &["curl", "-sf", "-m", "1", &url]).0);
    let mut from_pod = lab.in_pod("asker", &["sh", "-s", "http://myservice/"]);
    let clients = [lab.ask("client", &url), asking(&mut from_pod)];
    for (image, replicas) in [("myapp:v1", "6"), ("myapp:v2", "3")] {
        lab.kubectl(&["set", "image", "deployment/demo2", &format!("myapp={image}")]);
        lab.rolled_out();
        lab.kubectl(&["scale", "deployment/demo2", &format!("--replicas={replicas}")]);
        lab.rolled_out();
        for proxy in
            lab.kubectl(&["get", "pods", "-n", "kube-system", "-l", "k8s-app=kube-proxy", "-o", "name"]).lines()
        {
            lab.kubectl(&["delete", "-n", "kube-system", proxy]);
            lab.kubectl(&["rollout", "status", "-n", "kube-system", "daemonset/kube-proxy", "--timeout=20s"]);
        }
    }
    assert!(lab.exec("client", &["touch", "/tmp/stop"]).0);
    lab.run_in_pod("asker", &["touch", "/tmp/stop"]);
    for client in clients {
        let said = text(&client.wait_with_output().unwrap().stdout);
        assert!(said.contains(" answered, 0 failed") && !said.starts_with("0 "), "{said}");
        assert!(said.contains("Version: v1") && said.contains("Version: v2"), "{said}");
    }
}
