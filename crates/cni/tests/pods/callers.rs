//! Real callers run real containers through our plugins: containerd and podman, from Debian, each on a machine of its own
//! that is nothing but namespaces. The containers' image is a folder with busybox in it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

use crate::support::{Node, on_a_node};

/// What this runs, besides what comes with every Debian.
fn has(programs: &[&str]) -> bool {
    let path = env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let missing = programs.iter().find(|program| !env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    let Some(missing) = missing else { return true };
    assert!(env::var_os("CI").is_none(), "this test needs {missing}: cargo xtask setup");
    eprintln!("skipped: no {missing}");
    false
}

/// Runs one of the scripts beside this file and returns what it prints.
fn on_a_machine(node: &Node, script: &str, conflist: &str) -> String {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pods/callers");
    fs::create_dir_all(node.folder.join("etc-cni/net.d")).unwrap();
    node.write("etc-cni/net.d/10-test.conflist", conflist);
    node.write_subnet_env("");
    let output = Command::new("timeout")
        .args([
            "--kill-after=5",
            "120",
            "unshare",
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .args(["sh", "-e"])
        .args([scripts.join("machine.sh"), node.folder.clone(), scripts.join(script)])
        .env("CNI_BIN", plugins(node))
        .output()
        .unwrap();
    // Control groups are the one thing that namespaces do not bring; by now nothing is left in them.
    let cgroups = format!("*/podwire-test-{}*", node.folder.file_name().unwrap().display());
    let tidied = ["/sys/fs/cgroup", "-depth", "-type", "d", "-path", &cgroups, "-exec", "rmdir", "{}", "+"];
    _ = Command::new("find").args(tidied).output();
    let (text, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}: {text}\n{complaint}");
    text.into_owned()
}

/// The plugins' folder, as `podwire cni install` makes it: the machine sees it by another path.
fn plugins(node: &Node) -> PathBuf {
    let folder = node.folder.join("installed");
    fs::create_dir(&folder).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_podwire-cni"), folder.join("podwire-cni")).unwrap();
    for plugin in podwire_cni::PLUGINS {
        std::os::unix::fs::symlink("podwire-cni", folder.join(plugin)).unwrap();
    }
    folder
}

#[test]
fn containerd_runs_containers() {
    if !has(&["ctr", "containerd", "runc", "busybox"]) {
        return;
    }
    on_a_node(|node| {
        // The seed's conflist, every path as on a real node.
        let conflist = json!({"name": "cbr0", "cniVersion": "1.0.0", "plugins": [
            {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ]});
        let seen = on_a_machine(node, "containerd.sh", &conflist.to_string());
        let lines: Vec<&str> = seen.lines().collect();
        assert_eq!(lines[0], "one runs: veths 1, leases 1, ports 0", "{seen}");
        assert_eq!(lines[1], "from the container", "the node asks: {seen}");
        assert_eq!(lines[2], "from the container", "a container asks: {seen}");
        assert!(seen.contains("inet 10.244.1.4/24") && seen.contains("mtu 1450"), "{seen}");
        assert_eq!(*lines.last().unwrap(), "others have come and gone: veths 1, leases 1, ports 0", "{seen}");
    });
}

#[test]
fn podman_runs_containers() {
    if !has(&["podman", "conmon", "runc", "busybox"]) {
        return;
    }
    on_a_node(|node| {
        // podman's own network, to the letter.
        let ipam = json!({"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}]]});
        let bridge = json!({"type": "bridge", "bridge": "cni-podman0", "isGateway": true, "ipMasq": true,
            "hairpinMode": true, "ipam": ipam});
        let conflist = json!({"name": "podman", "cniVersion": "0.4.0", "plugins": [
            bridge,
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "firewall"},
            {"type": "tuning"},
        ]});
        let seen = on_a_machine(node, "podman.sh", &conflist.to_string());
        let expected = [
            "one runs: veths 1, leases 1, ports 2",
            "from the container",
            "from the container",
            "another has come and gone: veths 1, leases 1, ports 2",
            "none is left: veths 0, leases 0, ports 0",
        ];
        assert_eq!(seen.lines().collect::<Vec<_>>(), expected, "{seen}");
    });
}
