//! A kernel without nf_tables: the vm tier's, with its modules taken out. That test runs when no other does.

use std::{fs, process::Command};

use serde_json::{Value, json};

use crate::support::{Node, Pod, call, in_the_machine, on_a_node, run};

const MODPROBE: &str = "/proc/sys/kernel/modprobe";

/// Every module, and whether nothing uses it.
fn modules() -> Vec<(String, bool)> {
    let all = fs::read_to_string("/proc/modules").unwrap();
    let words = all.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    words.map(|words| (words[0].to_owned(), words[2] == "0")).collect()
}

fn has(module: &str) -> bool {
    modules().iter().any(|(name, _)| name == module)
}

/// Takes modules out, users first, until there is no `unwanted`; returns them, the last first.
fn take_out(modprobe: &str, unwanted: &str) -> Vec<String> {
    let mut taken = Vec::new();
    while has(unwanted) {
        let before = modules();
        let prefixes =
            ["nft_", "nf_", "nfnetlink", "xt_", "ipt_", "ip6t_", "iptable_", "ip6table_", "ip_vs", "ip_set", "br_net"];
        for (name, _) in before.iter().filter(|(name, idle)| *idle && prefixes.iter().any(|it| name.starts_with(it))) {
            // It may have gone with one that needed it.
            Command::new(modprobe).args(["-r", name]).output().unwrap();
        }
        let after = modules();
        let gone =
            before.into_iter().map(|(name, _)| name).filter(|name| !after.iter().any(|(other, _)| other == name));
        let gone: Vec<String> = gone.collect();
        assert!(!gone.is_empty(), "{unwanted} is in use: {after:?}");
        taken.extend(gone);
    }
    taken
}

#[test]
fn without_nf_tables_status_says_so_and_del_has_nothing_to_do() {
    if !in_the_machine() {
        return;
    }
    let modprobe = fs::read_to_string(MODPROBE).unwrap().trim().to_owned();
    // Nobody loads them again by asking.
    fs::write(MODPROBE, "/nonexistent").unwrap();
    let mut taken = take_out(&modprobe, "nf_tables");
    // Connection tracking, which has netlink of the same kind, needs that.
    run(&format!("{modprobe} nfnetlink"));
    on_a_node(nothing_is_mapped);
    taken.extend(take_out(&modprobe, "nfnetlink"));
    on_a_node(nothing_is_mapped);
    for module in taken.iter().rev() {
        run(&format!("{modprobe} {module}"));
    }
    fs::write(MODPROBE, modprobe).unwrap();
    assert!(has("nf_tables"));
}

fn nothing_is_mapped(node: &Node) {
    let pod = Pod::new("pod-a");
    let previous = json!({"ips": [{"address": "10.1.0.5/24"}]});
    let mapped = json!({"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]});
    for (plugin, previous) in ["portmap", "firewall"].into_iter().flat_map(|it| [(it, Some(&previous)), (it, None)]) {
        let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": plugin, "runtimeConfig": mapped});
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
            let (report, added) = call(node, plugin, "ADD", &pod.attachment, &config);
            assert!(!added && report["code"] == 100, "{report}");
            assert!(report["msg"].as_str().unwrap().contains("the kernel has no nf_tables"), "{report}");
        }
        assert_eq!(call(node, plugin, "DEL", &pod.attachment, &config), (Value::Null, true), "{config}");
        // A runtime that has forgotten what was mapped.
        config["runtimeConfig"] = json!({});
        assert_eq!(call(node, plugin, "DEL", &pod.attachment, &config), (Value::Null, true), "{config}");
        config["cni.dev/valid-attachments"] = json!([]);
        assert_eq!(call(node, plugin, "GC", &pod.attachment, &config), (Value::Null, true), "{config}");
    }
    let ipam = json!({"type": "static", "addresses": [{"address": "10.1.0.5/24"}]});
    for (plugin, fields) in
        [("portmap", json!({})), ("firewall", json!({})), ("bridge", json!({"ipMasq": true, "ipam": ipam}))]
    {
        let mut config = fields;
        config["cniVersion"] = json!("1.1.0");
        config["name"] = json!("net");
        config["type"] = json!(plugin);
        let (report, ready) = call(node, plugin, "STATUS", &pod.attachment, &config);
        assert!(!ready && report["code"] == 50, "{plugin}: {report}");
        assert!(report["msg"].as_str().unwrap().contains("the kernel has no nf_tables"), "{plugin}: {report}");
        assert_eq!(call(node, plugin, "DEL", &pod.attachment, &config), (Value::Null, true), "{plugin}");
    }
}
