//! Virtual functions of the machine's SR-IOV card: `sriov`, and `host-device` for the same. In the vm tier only, and there
//! in the machine's own network namespace: new functions appear in no other.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use podwire_cni::runtime::{Attachment, NetworkConfig};
use serde_json::{Value, json};

use crate::support::{Node, Pod, call, in_the_machine, run};

/// The card, with three virtual functions, which is one test's at a time.
struct Card {
    name: String,
    /// What `ip` says of it and its functions before the test.
    before: String,
    _only: MutexGuard<'static, ()>,
}

impl Card {
    fn take() -> Option<Self> {
        static ONLY: Mutex<()> = Mutex::new(());
        if !in_the_machine() {
            return None;
        }
        let only = ONLY.lock().unwrap_or_else(PoisonError::into_inner);
        let modprobe = fs::read_to_string("/proc/sys/kernel/modprobe").unwrap();
        for module in ["igb", "igbvf"] {
            run(&format!("{} {module}", modprobe.trim()));
        }
        let entries = fs::read_dir("/sys/class/net").unwrap().flatten();
        let card = entries.map(|entry| entry.path()).find(|path| path.join("device/sriov_totalvfs").exists()).unwrap();
        let name = card.file_name().unwrap().to_str().unwrap().to_owned();
        run(&format!("ip link set {name} up"));
        let number = card.join("device/sriov_numvfs");
        if fs::read_to_string(&number).unwrap().trim() == "0" {
            fs::write(number, "3").unwrap();
        }
        let mut card = Self { name, before: String::new(), _only: only };
        card.before = card.seen();
        Some(card)
    }

    /// The card, its functions, and their interfaces on the host, as `ip` shows them.
    fn seen(&self) -> String {
        let functions: String = (0..3).map(|id| run(&format!("ip link show dev {}", self.interface(id)))).collect();
        let card = run(&format!("ip link show dev {}", self.name));
        // How long a queue is, and other things that change by themselves, are in the first line of the card.
        card.lines().skip(1).chain(functions.lines()).map(|line| format!("{}\n", plain(line))).collect()
    }

    fn line(&self, id: u32) -> String {
        let seen = run(&format!("ip link show dev {}", self.name));
        seen.lines().find(|line| line.trim().starts_with(&format!("vf {id} "))).unwrap().to_owned()
    }

    fn address(&self, id: u32) -> String {
        let link = fs::read_link(format!("/sys/class/net/{}/device/virtfn{id}", self.name)).unwrap();
        link.file_name().unwrap().to_str().unwrap().to_owned()
    }

    /// The name of the function's interface on the host; empty when it is not there.
    fn interface(&self, id: u32) -> String {
        let net = format!("/sys/bus/pci/devices/{}/net", self.address(id));
        let mut entries = fs::read_dir(net).into_iter().flatten().flatten();
        entries.next().map(|entry| entry.file_name().into_string().unwrap()).unwrap_or_default()
    }

    /// All is as it was, and nothing is written down.
    fn assert_as_before(&self, node: &Node) {
        assert_eq!(self.seen(), self.before);
        let files = fs::read_dir(node.folder.join("sriov")).into_iter().flatten().flatten();
        let pci = fs::read_dir(node.folder.join("sriov/pci")).into_iter().flatten().flatten();
        let left: Vec<_> = files.chain(pci).filter(|entry| entry.path().is_file()).map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(node.leases("net"), Vec::<String>::new());
    }
}

/// Without the number, which an interface gets anew on its way, and the permanent address, which this driver takes from the one
/// that was set last.
fn plain(line: &str) -> &str {
    let line = line.split_once(" permaddr").map_or(line, |(line, _)| line);
    line.split_once(": ").filter(|(number, _)| number.parse::<u32>().is_ok()).map_or(line, |(_, rest)| rest)
}

fn sriov(node: &Node, fields: Value) -> NetworkConfig {
    let mut plugin = json!({
        "type": "sriov", "dataDir": node.folder.join("sriov"), "ipam": node.ipam(),
        "capabilities": {"deviceID": true},
    });
    plugin.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    node.network(plugin)
}

#[test]
fn a_function_is_given_as_asked_and_given_back_clean() {
    let Some(card) = Card::take() else { return };
    let node = Node::new();
    let network = sriov(
        &node,
        json!({
            "deviceID": card.address(1), "mac": "02:00:00:00:00:42", "vlan": 42, "vlanQoS": 3, "max_tx_rate": 100,
            "spoofchk": "off", "trust": "on", "logLevel": "info",
        }),
    );
    let pod = Pod::new("pod-a");
    let result = node.runtime.add(&network, &pod.attachment).unwrap();
    assert_eq!(result.interfaces[0].mac.as_deref(), Some("02:00:00:00:00:42"));
    assert_eq!((result.interfaces.len(), result.ips[0].interface), (1, Some(0)));
    let line = card.line(1);
    for part in ["02:00:00:00:00:42", "vlan 42, qos 3", "max_tx_rate 100Mbps", "spoof checking off", "trust on"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    let seen = pod.run("ip -d address show eth0");
    for part in ["02:00:00:00:00:42", "inet 10.1.0.10/24", ",UP", &card.address(1)] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
    assert_eq!(card.interface(1), "");
    node.runtime.check(&network, &pod.attachment).unwrap();
    node.runtime.status(&network).unwrap();
    run(&format!("ip link set {} vf 1 spoofchk on", card.name));
    let error = node.runtime.check(&network, &pod.attachment).unwrap_err();
    assert!(error.code() == 103 && error.to_string().contains("SpoofCheck(false)"), "{error}");
    for _ in 0..2 {
        node.runtime.del(&network, &pod.attachment).unwrap();
    }
    assert!(!pod.has_eth0());
    card.assert_as_before(&node);
}

#[test]
fn free_functions_of_a_card_are_chosen() {
    let Some(card) = Card::take() else { return };
    let node = Node::new();
    let network = sriov(&node, json!({"master": card.name}));
    node.runtime.status(&network).unwrap();
    let pods: Vec<Pod> = (0..4).map(|n| Pod::new(&format!("pod-{n}"))).collect();
    for pod in &pods[..3] {
        node.runtime.add(&network, &pod.attachment).unwrap();
    }
    let error = node.runtime.add(&network, &pods[3].attachment).unwrap_err();
    assert_eq!((error.code(), node.leases("net").len()), (102, 3));
    assert!(error.to_string().contains("none of the 3 virtual functions"), "{error}");
    // No packets: the emulated card does not pass on what a function says to the driver of the card, so it has no link.
    for (id, pod) in pods[..3].iter().enumerate() {
        assert!(pod.run("ip -d link show eth0").contains(&card.address(id as u32)));
    }
    // One is back, and the next container has it.
    node.runtime.del(&network, &pods[1].attachment).unwrap();
    node.runtime.add(&network, &pods[3].attachment).unwrap();
    node.runtime.gc(&network, std::slice::from_ref(&pods[0].attachment)).unwrap();
    assert_eq!((pods[0].has_eth0(), pods[2].has_eth0(), pods[3].has_eth0()), (true, false, false));
    node.runtime.del(&network, &pods[0].attachment).unwrap();
    card.assert_as_before(&node);
}

#[test]
fn a_function_that_cannot_be_had_does_not_stand_before_others() {
    let Some(card) = Card::take() else { return };
    let node = Node::new();
    // What says who has it cannot be read.
    let owner = |id| node.folder.join("sriov/pci").join(card.address(id));
    fs::create_dir_all(owner(0)).unwrap();
    let network = sriov(&node, json!({"master": card.name}));
    let pod = Pod::new("pod-a");
    node.runtime.add(&network, &pod.attachment).unwrap();
    assert!(pod.run("ip -d link show eth0").contains(&card.address(1)));
    node.runtime.del(&network, &pod.attachment).unwrap();
    for id in [1, 2] {
        fs::create_dir_all(owner(id)).unwrap();
    }
    let error = node.runtime.add(&network, &pod.attachment).unwrap_err();
    assert_eq!(error.code(), 102, "{error}");
    for id in 0..3 {
        let broken = format!("; {}: cannot read {}", card.address(id), owner(id).display());
        assert!(error.to_string().contains(&broken), "{error}");
        fs::remove_dir(owner(id)).unwrap();
    }
    card.assert_as_before(&node);
}

#[test]
fn a_function_comes_back_from_a_container_that_is_gone() {
    let Some(card) = Card::take() else { return };
    let node = Node::new();
    let fields = json!({"deviceID": card.address(0), "mac": "02:00:00:00:00:43", "vlan": 43, "trust": "on"});
    let network = sriov(&node, fields);
    // DEL after the namespace has gone: the kernel has put the interface on the host, under a name of the container.
    let pod = Pod::new("pod-a");
    node.runtime.add(&network, &pod.attachment).unwrap();
    let gone = Attachment { netns: None, ..pod.attachment.clone() };
    drop(pod);
    node.runtime.del(&network, &gone).unwrap();
    card.assert_as_before(&node);
    // DEL of a runtime that does not know the namespace of a container that is there.
    let pod = Pod::new("pod-b");
    node.runtime.add(&network, &pod.attachment).unwrap();
    node.runtime.del(&network, &Attachment { netns: None, ..pod.attachment.clone() }).unwrap();
    card.assert_as_before(&node);
    // No DEL: the next container that gets the function finds it as it was.
    let lost = Pod::new("pod-c");
    node.runtime.add(&network, &lost.attachment).unwrap();
    let other = sriov(&node, json!({"deviceID": card.address(0)}));
    let next = Pod::new("pod-d");
    let error = node.runtime.add(&other, &next.attachment).unwrap_err();
    assert!(error.code() == 101 && error.to_string().contains("another container's"), "{error}");
    drop(lost);
    node.runtime.add(&other, &next.attachment).unwrap();
    let line = card.line(0);
    assert!(!line.contains("vlan") && line.contains("trust off"), "{line}");
    node.runtime.del(&other, &next.attachment).unwrap();
    let late = Attachment { netns: None, ..Pod::new("pod-c").attachment.clone() };
    node.runtime.del(&network, &late).unwrap();
    card.assert_as_before(&node);
}

#[test]
fn a_function_comes_back_after_a_crash() {
    let Some(card) = Card::take() else { return };
    let node = Node::new();
    // An IPAM plugin that kills who calls it: by then the function is in the container.
    let murderer = node.runtime.bin_dirs[0].join("murderer");
    fs::write(&murderer, "#!/bin/sh\n[ $CNI_COMMAND != ADD ] || kill -KILL $PPID\n").unwrap();
    fs::set_permissions(&murderer, fs::Permissions::from_mode(0o755)).unwrap();
    let mut config = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "sriov", "dataDir": node.folder.join("sriov"),
        "deviceID": card.address(2), "vlan": 44, "mac": "02:00:00:00:00:44", "ipam": {"type": "murderer"},
    });
    let pod = Pod::new("pod-a");
    assert_eq!(call(&node, "sriov", "ADD", &pod.attachment, &config), (Value::Null, false));
    assert!(pod.has_eth0() && card.line(2).contains("vlan 44"));
    assert_eq!(call(&node, "sriov", "DEL", &pod.attachment, &config), (Value::Null, true));
    card.assert_as_before(&node);
    // No DEL, but ADD again for the same container.
    assert_eq!(call(&node, "sriov", "ADD", &pod.attachment, &config), (Value::Null, false));
    config["ipam"] = json!({});
    let (result, success) = call(&node, "sriov", "ADD", &pod.attachment, &config);
    assert!(success && result["interfaces"][0]["mac"] == "02:00:00:00:00:44", "{result}");
    // That one is whole: one more ADD is an error, and takes nothing from it.
    let (report, success) = call(&node, "sriov", "ADD", &pod.attachment, &config);
    assert!(!success && report["code"] == 101 && pod.has_eth0(), "{report}");
    assert!(card.line(2).contains("vlan 44"));
    assert_eq!(call(&node, "sriov", "DEL", &pod.attachment, &config), (Value::Null, true));
    card.assert_as_before(&node);
}

#[test]
fn what_cannot_be_leaves_nothing() {
    let Some(card) = Card::take() else { return };
    let node = Node::new();
    let pod = Pod::new("pod-a");
    let physical = fs::read_link(format!("/sys/class/net/{}/device", card.name)).unwrap();
    let physical = physical.file_name().unwrap().to_str().unwrap();
    let function = card.address(0);
    for (fields, expected, why) in [
        (json!({}), 7, "says which virtual function"),
        (json!({"deviceID": "0000:ff:1f.7"}), 7, "there is no PCI device"),
        (json!({"deviceID": physical}), 7, "is no virtual function"),
        (json!({"master": "lo"}), 7, "is no PCI device"),
        (json!({"master": "eth77"}), 7, "is no PCI device"),
        // What this card's driver cannot do.
        (json!({"deviceID": function, "vlan": 42, "link_state": "enable"}), 100, "LinkState(Enable)"),
        (json!({"deviceID": function, "vlan": 42, "vlanProto": "802.1ad"}), 100, "protocol: Ad"),
        (json!({"deviceID": function, "trust": "on", "min_tx_rate": 5, "max_tx_rate": 10}), 100, "min: 5"),
        (json!({"deviceID": function, "vlan": 42, "mac": "01:00:00:00:00:01"}), 100, "Mac(01:00:00:00:00:01)"),
        (json!({"deviceID": function, "vlan": 42, "ipam": {"type": "nobody"}}), 7, "no plugin \"nobody\""),
    ] {
        let mut config = fields;
        config.as_object_mut().unwrap().extend([
            ("cniVersion".to_owned(), json!("1.1.0")),
            ("name".to_owned(), json!("net")),
            ("dataDir".to_owned(), json!(node.folder.join("sriov"))),
        ]);
        let (report, success) = call(&node, "sriov", "ADD", &pod.attachment, &config);
        assert!(!success && report["code"] == expected, "{config}: {report}");
        assert!(report["msg"].as_str().unwrap().contains(why), "{config}: {report}");
        assert!(!pod.has_eth0(), "{config}");
        card.assert_as_before(&node);
    }
}

#[test]
fn host_device_takes_a_device_by_its_place_on_the_bus() {
    let Some(card) = Card::take() else { return };
    let node = Node::new();
    let (address, name) = (card.address(0), card.interface(0));
    let path = fs::canonicalize(format!("/sys/bus/pci/devices/{address}")).unwrap();
    let by_address = json!({"type": "host-device", "pciBusID": address});
    for plugin in [
        json!({"type": "host-device", "kernelpath": path}),
        json!({"type": "host-device", "runtimeConfig": {"deviceID": address}}),
        by_address.clone(),
    ] {
        let network = node.network(plugin);
        let pod = Pod::new("pod-a");
        let result = node.runtime.add(&network, &pod.attachment).unwrap();
        assert_eq!((result.interfaces[0].name.as_str(), card.interface(0).as_str()), ("eth0", ""));
        node.runtime.del(&network, &pod.attachment).unwrap();
        assert_eq!(card.interface(0), name);
    }
    // The container goes, the kernel puts the device back, DEL or GC names it.
    let network = node.network(by_address);
    for verb in ["DEL", "GC"] {
        let pod = Pod::new("pod-a");
        node.runtime.add(&network, &pod.attachment).unwrap();
        let gone = Attachment { netns: None, ..pod.attachment.clone() };
        drop(pod);
        let back = (0..400).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            !card.interface(0).is_empty()
        });
        assert!(back, "the kernel has not put {address} back");
        assert_ne!(card.interface(0), name);
        match verb {
            "DEL" => node.runtime.del(&network, &gone).unwrap(),
            _ => node.runtime.gc(&network, &[]).unwrap(),
        }
        assert_eq!(card.interface(0), name);
    }
    card.assert_as_before(&node);
}
