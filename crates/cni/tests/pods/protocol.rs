//! The protocol itself: every verb in every version, and leases shared with the reference `host-local`.

use std::{
    collections::BTreeSet,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use podwire_cni::{PLUGINS, runtime::NetworkConfig};
use podwire_kernel::ns::{Kind, Namespace};
use serde_json::{Value, json};

use crate::support::{Node, Pod, call, on_a_node, run, veths};

/// Where Debian has the reference plugins (package containernetworking-plugins).
const REFERENCE: &str = "/usr/lib/cni/host-local";

const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn every_version_is_answered_in_its_own_shape() {
    on_a_node(|node| {
        for version in VERSIONS {
            let list = json!({"name": "net", "cniVersion": version, "plugins": [
                {"type": "bridge", "isGateway": true, "ipam": {"type": "host-local", "subnet": "10.1.0.0/24",
                 "dataDir": node.folder.join("networks"), "routes": [{"dst": "0.0.0.0/0", "priority": 7}]}},
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ]});
            let network = NetworkConfig::from_json(list.to_string().as_bytes(), "test").unwrap();
            let mut pod = Pod::new("pod-a");
            let mapping = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
            pod.attachment.capabilities.insert("portMappings".to_owned(), mapping);
            let result = node.runtime.add(&network, &pod.attachment).unwrap();
            assert_eq!(result.cni_version.as_str(), version);
            let cached = std::fs::read(node.folder.join("cache/results/net-pod-a-eth0")).unwrap();
            let written = &serde_json::from_slice::<Value>(&cached).unwrap()["result"];
            let old = version < "1.0.0";
            assert_eq!(written["ips"][0]["version"], if old { json!("4") } else { Value::Null }, "{version}");
            let new = version == "1.1.0";
            assert_eq!(written["routes"][0]["priority"], if new { json!(7) } else { Value::Null }, "{version}");
            assert_eq!(written["interfaces"][0]["mtu"].is_null(), !new, "{version}");
            node.runtime.status(&network).unwrap();
            node.runtime.check(&network, &pod.attachment).unwrap();
            node.runtime.gc(&network, std::slice::from_ref(&pod.attachment)).unwrap();
            node.runtime.del(&network, &pod.attachment).unwrap();
            assert_eq!((veths().len(), node.leases("net").len()), (0, 0), "{version}");
        }
    });
}

#[test]
fn a_verb_that_the_version_does_not_have_is_refused() {
    on_a_node(|node| {
        let pod = Pod::new("pod-a");
        for plugin in PLUGINS {
            for (version, verb) in [("0.3.1", "CHECK"), ("1.0.0", "GC"), ("0.4.0", "STATUS"), ("0.2.0", "ADD")] {
                let config = json!({"cniVersion": version, "name": "net", "type": plugin});
                let (answer, success) = call(node, plugin, verb, &pod.attachment, &config);
                assert_eq!((success, &answer["code"]), (false, &json!(1)), "{plugin} {verb}: {answer}");
                assert_eq!(answer["cniVersion"], version);
            }
            let (answer, success) = call(node, plugin, "VERSION", &pod.attachment, &json!({"cniVersion": "0.4.0"}));
            assert!(success, "{answer}");
            assert_eq!(answer, json!({"cniVersion": "0.4.0", "supportedVersions": VERSIONS}));
            let (answer, success) = call(node, plugin, "FROB", &pod.attachment, &json!({"cniVersion": "1.0.0"}));
            assert_eq!((success, &answer["code"]), (false, &json!(4)), "{plugin}: {answer}");
        }
    });
}

#[test]
fn an_add_that_is_killed_at_any_moment_is_undone_by_del_or_gc() {
    on_a_node(|node| {
        let config = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "bridge", "isGateway": true,
            "ipam": {"type": "host-local", "subnet": "10.1.0.0/28", "dataDir": node.folder.join("networks")},
        });
        let plugin = node.runtime.bin_dirs[0].join("bridge");
        let killed_after = |id: &str, microseconds: u64| {
            let pod = Pod::new(id);
            let mut child = Command::new(&plugin)
                .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", id), ("CNI_IFNAME", "eth0")])
                .env("CNI_NETNS", pod.attachment.netns.as_deref().unwrap())
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
            std::thread::sleep(std::time::Duration::from_micros(microseconds));
            child.kill().unwrap();
            child.wait().unwrap();
            pod
        };
        for round in 0..40 {
            let pod = killed_after("killed", round * 150);
            let (answer, success) = call(node, "bridge", "DEL", &pod.attachment, &config);
            assert!(success, "{round}: {answer}");
            assert_eq!((veths(), node.leases("net"), pod.has_eth0()), (vec![], vec![], false), "{round}");
        }
        // Nobody calls DEL: more pods than there are addresses.
        let pods: Vec<Pod> = (0..30).map(|round| killed_after(&format!("lost-{round}"), round * 200)).collect();
        let mut gc = config.clone();
        gc["cni.dev/valid-attachments"] = json!([]);
        let (answer, success) = call(node, "bridge", "GC", &pods[0].attachment, &gc);
        assert!(success, "{answer}");
        // A veth that had no mark yet goes with its container's namespace.
        assert!(!run("ip link show type veth").contains("podwire-cni:net/"));
        assert!(node.leases("net").is_empty());
        let files = std::fs::read_dir(node.folder.join("networks/net")).unwrap().flatten();
        let mut files: Vec<_> = files.map(|entry| entry.file_name().into_string().unwrap()).collect();
        files.sort();
        assert_eq!(files, ["last_reserved_ip.0", "lock"], "no half a file is left");
    });
}

/// Executes the reference `host-local`; `None` where it is not installed, outside CI.
fn reference(verb: &str, container: &str, config: &Value) -> Option<(Value, bool)> {
    if !Path::new(REFERENCE).exists() {
        assert!(std::env::var_os("CI").is_none(), "this test needs {REFERENCE}: cargo xtask setup");
        eprintln!("skipped: no {REFERENCE}");
        return None;
    }
    let mut child = Command::new(REFERENCE)
        .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", container), ("CNI_NETNS", "/none")])
        .envs([("CNI_IFNAME", "eth0"), ("CNI_PATH", "/usr/lib/cni")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Some((serde_json::from_slice(&output.stdout).unwrap_or(Value::Null), output.status.success()))
}

fn shared(node: &Node) -> Value {
    let ranges = json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]]);
    let ipam = json!({"type": "host-local", "ranges": ranges, "dataDir": node.folder.join("networks")});
    json!({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": ipam})
}

/// What of a result both plugins must agree on.
fn addresses(result: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ips = result["ips"].as_array().unwrap_or_else(|| panic!("{result}"));
    ips.iter().map(|ip| (text(&ip["address"]), text(&ip["gateway"]))).collect()
}

fn pair(last: u8) -> Vec<(String, String)> {
    let of = |net: &str, gateway: &str| (net.to_owned(), gateway.to_owned());
    vec![of(&format!("10.1.0.{last}/24"), "10.1.0.1"), of(&format!("fd01::{last:x}/64"), "fd01::1")]
}

#[test]
fn leases_go_to_the_reference_plugin_and_back() {
    on_a_node(|node| {
        let config = shared(node);
        let ours = |verb: &str, container: &str| {
            let (answer, success) = call(node, "host-local", verb, &Pod::new(container).attachment, &config);
            assert!(success, "{verb} {container}: {answer}");
            answer
        };
        let theirs = |verb: &str, container: &str| {
            let (answer, success) = reference(verb, container, &config)?;
            assert!(success, "{verb} {container}: {answer}");
            Some(answer)
        };
        let Some(first) = theirs("ADD", "a") else { return };
        assert_eq!(addresses(&first), pair(2));
        assert_eq!(addresses(&ours("ADD", "b")), pair(3), "we go on where it was");
        ours("CHECK", "a");
        theirs("CHECK", "b");
        ours("DEL", "a");
        theirs("DEL", "b");
        assert!(node.leases("net").is_empty());
        assert_eq!(addresses(&theirs("ADD", "c").unwrap()), pair(4), "and it where we were");
        assert_eq!(addresses(&ours("ADD", "d")), pair(5));
        // A lease file is the same to the byte, whoever wrote it.
        let read = |ip: &str| std::fs::read_to_string(node.folder.join("networks/net").join(ip)).unwrap();
        assert_eq!((read("10.1.0.4"), read("10.1.0.5")), ("c\r\neth0".to_owned(), "d\r\neth0".to_owned()));
        assert_eq!((read("fd01::4"), read("fd01::5")), (read("10.1.0.4"), read("10.1.0.5")));
    });
}

#[test]
fn both_plugins_at_once_never_give_an_address_twice() {
    on_a_node(|node| {
        let config = shared(node);
        if reference("ADD", "first", &config).is_none() {
            return;
        }
        let here = Namespace::current(Kind::Net).unwrap();
        let add = &|n: usize| {
            here.enter().unwrap();
            let id = format!("pod-{n}");
            let (answer, success) = match n % 2 {
                0 => call(node, "host-local", "ADD", &Pod::new(&id).attachment, &config),
                _ => reference("ADD", &id, &config).unwrap(),
            };
            assert!(success, "{answer}");
            addresses(&answer).into_iter().map(|(address, _)| address).collect::<Vec<_>>()
        };
        let given: Vec<String> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..24).map(|n| scope.spawn(move || add(n))).collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 48, "{given:?}");
        assert_eq!(node.leases("net").len(), 50);
    });
}
