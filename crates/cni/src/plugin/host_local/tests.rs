use std::{
    collections::{BTreeMap, VecDeque},
    fs,
};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    Verb,
    test_support::{Folder, call},
};

fn config(folder: &Folder, ipam: Value) -> Value {
    let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": "x", "ipam": {"dataDir": folder.path()}});
    let fields = ipam.as_object().unwrap().clone();
    config["ipam"].as_object_mut().unwrap().extend(fields);
    config
}

fn add(config: &Value, container: &str) -> Result<Vec<String>> {
    let result = HostLocal.add(&call(Verb::Add, container, config)?)?;
    Ok(result.ips.iter().map(|ip| ip.address.to_string()).collect())
}

fn del(config: &Value, container: &str) -> Result<()> {
    HostLocal.del(&call(Verb::Del, container, config)?)
}

fn files(folder: &Folder) -> Vec<String> {
    let entries = fs::read_dir(folder.path().join("net")).unwrap().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_files_are_those_of_the_reference_plugin() {
    let folder = Folder::new();
    let ranges =
        json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]], "routes": [{"dst": "10.0.0.0/8"}]});
    let config = config(&folder, ranges);
    let result = HostLocal.add(&call(Verb::Add, "box", &config).unwrap()).unwrap();
    let expected = json!({
        "cniVersion": "1.1.0",
        "ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}, {"address": "fd01::2/64", "gateway": "fd01::1"}],
        "routes": [{"dst": "10.0.0.0/8"}],
    });
    assert_eq!(result.to_json(crate::Version::V1_1_0), expected);
    assert_eq!(files(&folder), ["10.1.0.2", "fd01::2", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]);
    let read = |name: &str| fs::read_to_string(folder.path().join("net").join(name)).unwrap();
    assert_eq!((read("10.1.0.2"), read("last_reserved_ip.1")), ("box\r\neth0".to_owned(), "fd01::2".to_owned()));
    HostLocal.check(&call(Verb::Check, "box", &config).unwrap()).unwrap();
    del(&config, "box").unwrap();
    del(&config, "box").unwrap();
    assert_eq!(files(&folder), ["last_reserved_ip.0", "last_reserved_ip.1", "lock"]);
    let error = HostLocal.check(&call(Verb::Check, "box", &config).unwrap()).unwrap_err();
    assert_eq!(error.code(), 103);
}

#[test]
fn an_address_is_asked_for_by_name() {
    let folder = Folder::new();
    let mut config = config(&folder, json!({"subnet": "10.1.0.0/24"}));
    let mut ask = |ips: Value, container: &str| {
        config["runtimeConfig"] = json!({"ips": ips});
        add(&config, container)
    };
    assert_eq!(ask(json!(["10.1.0.9"]), "a").unwrap(), ["10.1.0.9/24"]);
    let refused = |result: Result<Vec<String>>| {
        let error = result.unwrap_err();
        (error.code(), error.to_string())
    };
    assert_eq!(refused(ask(json!(["10.1.0.9/24"]), "b")), (102, "the requested address 10.1.0.9 is taken".into()));
    let gateway = "the requested address 10.1.0.1 is the gateway of its subnet";
    assert_eq!(refused(ask(json!(["10.1.0.1"]), "b")), (102, gateway.into()));
    let outside = "the requested address 10.2.0.9 is in none of the ranges";
    assert_eq!(refused(ask(json!(["10.2.0.9"]), "b")), (102, outside.into()));
    assert_eq!(refused(ask(json!(["nine"]), "b")).0, 7);
    assert_eq!(ask(json!([]), "b").unwrap(), ["10.1.0.11/24"], "what a refused call took is given back, but rests");
}

#[test]
fn what_a_failed_call_took_is_given_back() {
    let folder = Folder::new();
    let small = json!([{"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.5", "rangeEnd": "10.2.0.5"}]);
    let config = config(&folder, json!({"ranges": [[{"subnet": "10.1.0.0/24"}], small]}));
    assert_eq!(add(&config, "a").unwrap(), ["10.1.0.2/24", "10.2.0.5/24"]);
    let error = add(&config, "b").unwrap_err();
    assert_eq!((error.code(), error.to_string()), (102, "every address of 10.2.0.5-10.2.0.5 is taken".to_owned()));
    assert!(!files(&folder).contains(&"10.1.0.3".to_owned()));
    let error = add(&config, "a").unwrap_err();
    assert_eq!((error.code(), error.to_string()), (101, "10.1.0.2 has been allocated to eth0 of a already".to_owned()));
}

#[test]
fn leases_of_the_reference_plugin_are_known_and_released() {
    let folder = Folder::new();
    let config = config(&folder, json!({"subnet": "10.1.0.0/24"}));
    let network = folder.path().join("net");
    fs::create_dir_all(&network).unwrap();
    fs::write(network.join("10.1.0.2"), "theirs\r\neth0").unwrap();
    fs::write(network.join("10.1.0.3"), "ancient").unwrap();
    fs::write(network.join("last_reserved_ip.0"), "10.1.0.254").unwrap();
    assert_eq!(add(&config, "ours").unwrap(), ["10.1.0.4/24"]);
    del(&config, "theirs").unwrap();
    del(&config, "ancient").unwrap();
    assert_eq!(files(&folder), ["10.1.0.4", "last_reserved_ip.0", "lock"]);
}

#[test]
fn gc_keeps_what_is_valid() {
    let folder = Folder::new();
    let mut config = config(&folder, json!({"subnet": "10.1.0.0/24"}));
    for container in ["a", "b", "c"] {
        add(&config, container).unwrap();
    }
    assert_eq!(
        HostLocal.gc(&call(Verb::Gc, "", &config).unwrap()).unwrap_err().code(),
        7,
        "no list is not an empty list"
    );
    config["cni.dev/valid-attachments"] =
        json!([{"containerID": "b", "ifname": "eth0"}, {"containerID": "c", "ifname": "eth1"}]);
    HostLocal.gc(&call(Verb::Gc, "", &config).unwrap()).unwrap();
    assert_eq!(files(&folder), ["10.1.0.3", "last_reserved_ip.0", "lock"]);
}

#[test]
fn addresses_of_containers_that_are_gone_are_taken_when_no_other_is_left() {
    let folder = Folder::new();
    let full = json!({"subnet": "10.1.0.0/29", "dataDir": folder.path().join("networks")});
    let config = config(&folder, full);
    for container in ["lives", "crashed", "unknown", "rebooted", "late"] {
        add(&config, container).unwrap();
    }
    assert_eq!(add(&config, "new").unwrap_err().code(), 102);
    let cache = |container: &str, sandbox: &str| {
        let result = json!({"interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": sandbox}]});
        let path = folder.path().join("results").join(format!("net-{container}-eth0"));
        crate::runtime::write_whole(&path, json!({"result": result}).to_string().as_bytes()).unwrap();
    };
    cache("lives", "/proc/self/ns/net");
    cache("crashed", "/run/netns/podwire-no-such-namespace");
    cache("rebooted", "/proc/0/ns/net");
    fs::write(folder.path().join("results/net-late-eth0"), "{half a file").unwrap();
    assert_eq!(add(&config, "new").unwrap(), ["10.1.0.3/29"]);
    assert_eq!(add(&config, "newer").unwrap(), ["10.1.0.5/29"]);
    assert_eq!(add(&config, "newest").unwrap_err().code(), 102);
    HostLocal.check(&call(Verb::Check, "lives", &config).unwrap()).unwrap();
}

#[test]
fn a_crash_in_between_costs_no_address() {
    let folder = Folder::new();
    let mut config = config(&folder, json!({"subnet": "10.1.0.0/29", "rangeEnd": "10.1.0.3"}));
    let network = folder.path().join("net");
    fs::create_dir_all(&network).unwrap();
    // The reference plugin ended between making the file and writing it; we between writing it and giving it its name.
    fs::write(network.join("10.1.0.2"), "").unwrap();
    fs::write(network.join(".10.1.0.3.77"), "half").unwrap();
    assert_eq!(add(&config, "a").unwrap(), ["10.1.0.3/29"]);
    assert_eq!(add(&config, "b").unwrap(), ["10.1.0.2/29"]);
    assert_eq!(files(&folder), ["10.1.0.2", "10.1.0.3", "last_reserved_ip.0", "lock"]);
    fs::write(network.join(".10.1.0.3.77"), "half").unwrap();
    fs::write(network.join("10.1.0.2"), "").unwrap();
    config["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    HostLocal.gc(&call(Verb::Gc, "", &config).unwrap()).unwrap();
    assert_eq!(files(&folder), ["10.1.0.3", "last_reserved_ip.0", "lock"]);
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    let folder = Folder::new();
    for (ipam, complaint) in [
        (json!({}), "ipam has neither \"ranges\" nor \"subnet\""),
        (json!({"ranges": [[]]}), "ipam has an empty list in \"ranges\""),
        (json!({"subnet": "10.1.0.5/24"}), "ipam: subnet 10.1.0.5/24: it has host bits; did you mean 10.1.0.0/24?"),
        (json!({"subnet": "10.1.0.0/31"}), "ipam: subnet 10.1.0.0/31: it is too small to take addresses from"),
        (
            json!({"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}),
            "ipam: subnet 10.1.0.0/24: rangeStart 10.2.0.1 is outside",
        ),
        (
            json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"}),
            "ipam: subnet 10.1.0.0/24: rangeStart 10.1.0.9 is after rangeEnd 10.1.0.8",
        ),
        (
            json!({"subnet": "10.1.0.0/24", "gateway": "fd01::1"}),
            "ipam: subnet 10.1.0.0/24: gateway fd01::1 is of the other family",
        ),
        (
            json!({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd01::/64"}]]}),
            "10.1.0.1-10.1.0.254 and fd01::1-fd01::ffff:ffff:ffff:ffff of one range set are of different families",
        ),
        (
            json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/25"}]]}),
            "ipam: ranges 10.1.0.1-10.1.0.254 and 10.1.0.1-10.1.0.126 overlap",
        ),
    ] {
        let config = config(&folder, ipam);
        let error = add(&config, "a").unwrap_err();
        assert_eq!((error.code(), error.to_string()), (7, format!("network configuration: {complaint}")));
        del(&config, "a").unwrap();
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was written");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Against a model: a queue of free addresses, in the order in which they were freed.
    #[test]
    fn an_address_has_one_owner_and_rests_longest(steps in proptest::collection::vec((any::<bool>(), 0_u8..12), 1..60)) {
        let folder = Folder::new();
        // Two ranges of one set; the gateway 10.1.0.3 is inside the first.
        let set = json!([
            {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.2", "rangeEnd": "10.1.0.6", "gateway": "10.1.0.3"},
            {"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.8", "rangeEnd": "10.2.0.10"},
        ]);
        let config = config(&folder, json!({"ranges": [set]}));
        let all = ["10.1.0.2", "10.1.0.4", "10.1.0.5", "10.1.0.6", "10.2.0.8", "10.2.0.9", "10.2.0.10"];
        let mut order: VecDeque<String> = all.iter().map(|ip| format!("{ip}/24")).collect();
        let mut owners: BTreeMap<u8, String> = BTreeMap::new();
        for (attach, container) in steps {
            let id = format!("c{container}");
            if !attach {
                del(&config, &id).unwrap();
                owners.remove(&container);
                continue;
            }
            let added = add(&config, &id);
            if owners.contains_key(&container) {
                prop_assert_eq!(added.unwrap_err().code(), 101);
            } else if owners.len() == all.len() {
                prop_assert_eq!(added.unwrap_err().code(), 102);
            } else {
                while owners.values().any(|ip| *ip == order[0]) {
                    order.rotate_left(1);
                }
                prop_assert_eq!(added.unwrap(), [order[0].clone()]);
                owners.insert(container, order[0].clone());
                order.rotate_left(1);
            }
        }
    }
}
