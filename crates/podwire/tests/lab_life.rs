//! A whole lab from up to down, with the real executables: what it makes, what it refuses, and that nothing stays.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod lab;

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lab::{Lab, assert_gone, eventually, namespaces, podwire, text};

fn host_links() -> String {
    text(&Command::new("ip").args(["-o", "link"]).output().unwrap().stdout)
}

#[test]
fn up_works_and_down_leaves_nothing() {
    let Some(lab) = Lab::new("life") else { return };
    let (links, mounts) = (host_links(), fs::read_to_string("/proc/self/mountinfo").unwrap());
    let printed = lab.up(&["--nodes", "2"]);
    assert!(printed.contains("cluster DNS answers at 10.96.0.10 from every node"), "{printed}");
    assert!(printed.contains("is up in"), "{printed}");
    assert_eq!(host_links(), links, "the host's own network namespace has changed");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts);

    let kubeconfig = text(&lab.run("kubeconfig", &[]).stdout).trim().to_owned();
    assert_eq!(fs::metadata(&kubeconfig).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(lab.directory()).unwrap().permissions().mode() & 0o777, 0o700);
    let nodes = Command::new("kubectl").args(["--kubeconfig", &kubeconfig, "get", "nodes", "--no-headers"]).output();
    let nodes = text(&nodes.unwrap().stdout);
    assert_eq!(nodes.lines().filter(|line| line.contains(" Ready ")).count(), 2, "{nodes}");

    machines_are_what_they_should_be(&lab);
    commands_keep_their_streams_and_exit_codes(&lab);
    a_second_up_is_refused(&lab);
    let status = text(&lab.run("status", &[]).stdout);
    for expected in ["node1      172.25.2.1     Ready", "client     172.25.2.250", "kube-proxy", "flanneld", "kubelet"]
    {
        assert!(status.contains(expected), "{expected:?} is not in\n{status}");
    }
    status_is_json_for_scripts(&lab);
    let listed = text(&podwire().args(["lab", "list"]).output().unwrap().stdout);
    assert!(listed.contains(&format!("{}\trunning", lab.name)), "{listed}");

    let processes = lab.processes();
    let spaces = namespaces(&processes);
    assert!(processes.len() > 8 && spaces.len() > 6, "{processes:#?} {spaces:?}");
    let started = Instant::now();
    let down = lab.run("down", &[]);
    assert!(down.status.success(), "{}", text(&down.stderr));
    assert!(started.elapsed() < Duration::from_secs(4), "the lab did not end by itself and had to be killed");
    assert!(!lab.directory().exists());
    assert_gone(&lab, &processes, &spaces);
    assert_eq!(host_links(), links);
    let again = lab.run("down", &[]);
    assert!(again.status.success() && text(&again.stdout).contains("nothing to do"));
}

fn machines_are_what_they_should_be(lab: &Lab) {
    for (machine, address) in [("node1", "172.25.2.1"), ("node2", "172.25.2.2"), ("client", "172.25.2.250")] {
        let (_, hostname) = lab.exec(machine, &["hostname"]);
        assert_eq!(hostname.trim(), machine);
        let (_, addresses) = lab.exec(machine, &["ip", "-4", "-o", "address", "show", "eth0"]);
        assert!(addresses.contains(&format!("{address}/24")), "{addresses}");
        let (reached, ping) = lab.exec(machine, &["ping", "-c1", "-W2", "node2"]);
        assert!(reached, "{ping}");
    }
    let (wrote, why) = lab.exec(
        "node1",
        &["sh", "-c", "for d in /etc /var /run /tmp /opt/cni; do touch $d/podwire-mark || exit 1; done"],
    );
    assert!(wrote, "{why}");
    for directory in ["/etc", "/var", "/run", "/tmp", "/opt/cni"] {
        assert!(!fs::exists(format!("{directory}/podwire-mark")).unwrap(), "{directory} is shared with the host");
        let (found, _) = lab.exec("node2", &["test", "-e", &format!("{directory}/podwire-mark")]);
        assert!(!found, "{directory} is shared among nodes");
    }
    let (listed, ports) = lab.exec("underlay", &["bridge", "link"]);
    assert!(listed && ports.contains("node2@") && ports.contains("master br0"), "{ports}");
    let (listed, nodes) = lab.exec("node2", &["kubectl", "get", "nodes", "-o", "name"]);
    assert!(listed && nodes.contains("node/node1"), "a node has a kubeconfig that works there: {nodes}");
}

fn status_is_json_for_scripts(lab: &Lab) {
    // Without --name, the environment says which lab.
    let output = podwire().args(["lab", "status", "--json"]).env("PODWIRE_LAB", &lab.name).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["name"], lab.name.as_str());
    assert!(status["api_url"].as_str().unwrap().starts_with("https://127.0.0.1:"), "{status}");
    let machines: Vec<_> = status["machines"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(machines, ["node1", "node2", "client"]);
    let agents = status["processes"].as_array().unwrap().iter();
    let proxies: Vec<_> = agents.filter(|process| process["name"] == "kube-proxy").collect();
    assert_eq!(proxies.len(), 2, "{status}");
    for proxy in proxies {
        let kilobytes = |key: &str| proxy[key].as_u64().unwrap();
        assert!(kilobytes("rss_kb") >= kilobytes("pss_kb") && kilobytes("pss_kb") > 0, "{proxy}");
        assert!(proxy["machine"].as_str().unwrap().starts_with("node"), "{proxy}");
    }
}

fn commands_keep_their_streams_and_exit_codes(lab: &Lab) {
    assert_eq!(lab.run("exec", &["node1", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(lab.run("exec", &["node1", "--", "sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    assert_eq!(lab.run("exec", &["node1", "--", "no-such-command"]).status.code(), Some(127));
    let mut cat =
        lab.command("exec", &["client", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    cat.stdin.take().unwrap().write_all(b"through and through").unwrap();
    assert_eq!(cat.wait_with_output().unwrap().stdout, b"through and through");
    let unknown = lab.run("exec", &["node9", "--", "true"]);
    assert!(!unknown.status.success());
    assert!(
        text(&unknown.stderr).contains("has no \"node9\"; it has node1, node2, client, underlay"),
        "{}",
        text(&unknown.stderr)
    );
}

fn a_second_up_is_refused(lab: &Lab) {
    let second = lab.run("up", &[]);
    assert!(!second.status.success());
    let expected = format!("lab {0} is running already; stop it with: podwire lab down --name {0}", lab.name);
    assert!(text(&second.stderr).contains(&expected), "{}", text(&second.stderr));
    assert!(lab.exec("node1", &["true"]).0, "the running lab is as it was");
}

#[test]
fn a_killed_supervisor_takes_all_with_it_and_the_next_up_and_down_clean() {
    let Some(lab) = Lab::new("kill") else { return };
    for _ in 0..2 {
        lab.up(&["--nodes", "1"]);
        let processes = lab.processes();
        let spaces = namespaces(&processes);
        let supervisor = processes.iter().find(|(_, line)| line.contains("lab-supervisor")).unwrap().0;
        assert!(Command::new("kill").args(["-9", &supervisor.to_string()]).status().unwrap().success());
        assert_gone(&lab, &processes, &spaces);
        assert!(lab.directory().exists(), "nobody was left to remove it");
        let refused = lab.run("exec", &["node1", "--", "true"]);
        assert!(text(&refused.stderr).contains("is not running"), "{}", text(&refused.stderr));
        // The second round's `up` finds what this one left.
    }
    assert!(lab.run("down", &[]).status.success());
    assert!(!lab.directory().exists());
}

#[test]
fn labs_of_different_names_run_side_by_side() {
    let (Some(one), Some(two)) = (Lab::new("one"), Lab::new("two")) else { return };
    one.up(&["--nodes", "1"]);
    two.up(&["--nodes", "1", "--pod-cidr", "10.10.0.0/16", "--service-cidr", "10.20.0.0/16"]);
    one.exec("node1", &["sh", "-c", "echo one > /etc/which"]);
    two.exec("node1", &["sh", "-c", "echo two > /etc/which"]);
    assert_eq!(one.exec("node1", &["cat", "/etc/which"]).1, "one\n");
    assert_eq!(two.exec("node1", &["cat", "/etc/which"]).1, "two\n");
    assert!(one.run("down", &[]).status.success());
    let (answered, address) =
        two.exec("node1", &["dig", "+short", "+time=2", "@10.20.0.10", "kubernetes.default.svc.cluster.local"]);
    assert!(answered && address.trim() == "10.20.0.1", "the other lab lives on: {address}");
}

#[test]
fn an_interrupted_up_leaves_nothing() {
    let Some(lab) = Lab::new("break") else { return };
    let up = lab.command("up", &["--nodes", "2"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the lab has begun", || lab.directory().join("state.json").exists());
    let processes = lab.processes();
    let spaces = namespaces(&processes);
    assert!(Command::new("kill").args(["-INT", &up.id().to_string()]).status().unwrap().success());
    let output = up.wait_with_output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("interrupted"), "{}", text(&output.stderr));
    assert!(!lab.directory().exists());
    assert_gone(&lab, &processes, &spaces);
}

#[test]
fn what_cannot_be_is_refused_with_the_reason_and_nothing_is_made() {
    let Some(lab) = Lab::new("bad") else { return };
    let rows: [(&[&str], &str); 5] = [
        (&["--pod-cidr", "172.25.0.0/16"], "--pod-cidr 172.25.0.0/16: overlaps the nodes' network, 172.25.2.0/24"),
        (&["--pod-cidr", "10.97.0.0/16"], "--pod-cidr 10.97.0.0/16: overlaps --service-cidr, 10.96.0.0/12"),
        (&["--pod-cidr", "10.244.0.0/33"], "--pod-cidr"),
        (
            &["--service-cidr", "10.96.0.1/12"],
            "--service-cidr 10.96.0.1/12: has host bits set; did you mean 10.96.0.0/12?",
        ),
        (&["--nodes", "0"], "--nodes 0: expected 1 to 249"),
    ];
    for (arguments, expected) in rows {
        let output = lab.run("up", arguments);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(text(&output.stderr).contains(expected), "{arguments:?}: {}", text(&output.stderr));
        assert!(!lab.directory().exists());
    }
    let output = podwire().args(["lab", "up", "--name", "../x"]).output().unwrap();
    assert!(text(&output.stderr).contains("--name \"../x\""), "{}", text(&output.stderr));
    for command in ["kubeconfig", "status"] {
        let output = lab.run(command, &[]);
        let expected = format!("lab {0} is not running; start it with: podwire lab up --name {0}", lab.name);
        assert!(!output.status.success() && text(&output.stderr).contains(&expected), "{}", text(&output.stderr));
    }
}

#[test]
fn without_root_it_says_so_and_makes_nothing() {
    let Some(lab) = Lab::new("user") else { return };
    // Nobody can read the build folder: run a copy.
    let folder = std::env::temp_dir().join(&lab.name);
    let (bin, runtime) = (folder.join("bin"), folder.join("run"));
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir(&runtime).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o777)).unwrap();
    let copy = bin.join("podwire");
    fs::copy(env!("CARGO_BIN_EXE_podwire"), &copy).unwrap();
    fs::write(bin.join("podwire-cni"), "").unwrap();
    let output = Command::new(&copy)
        .args(["lab", "up", "--name", &lab.name])
        .env("XDG_RUNTIME_DIR", &runtime)
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let left: Vec<_> = fs::read_dir(&runtime).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    fs::remove_dir_all(&folder).unwrap();
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("a lab needs root"), "{}", text(&output.stderr));
    assert_eq!(left.len(), 0, "{left:?}");
}
