use serde_json::json;

use super::*;
use crate::test_support::{Folder, call};

/// The seed's conflist: the flannel plugin's part.
fn config(folder: &Folder) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "flannel",
        "subnetFile": folder.path().join("subnet.env"),
        "dataDir": folder.path().join("flannel"),
        "delegate": {"hairpinMode": true, "isDefaultGateway": true},
    })
}

fn write_subnet_env(folder: &Folder, masquerade: bool) {
    let text = format!(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ={masquerade}\n"
    );
    fs::write(folder.path().join("subnet.env"), text).unwrap();
}

fn delegated(folder: &Folder, config: &Value) -> Result<Value> {
    let call = call(Verb::Add, "box", config)?;
    let env = SubnetEnv::read(&folder.path().join("subnet.env"))?.unwrap();
    delegate(&call, &call.config()?, &env).map(Value::Object)
}

#[test]
fn the_delegate_gets_what_the_reference_plugin_gives_it() {
    let folder = Folder::new();
    write_subnet_env(&folder, true);
    let expected = json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "bridge",
        "hairpinMode": true,
        "isDefaultGateway": true,
        "isGateway": true,
        "ipMasq": false,
        "mtu": 1450,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.244.1.0/24"}]],
            "routes": [{"dst": "10.244.0.0/16"}],
        },
    });
    assert_eq!(delegated(&folder, &config(&folder)).unwrap(), expected);
}

#[test]
fn what_the_user_wrote_stays() {
    let folder = Folder::new();
    write_subnet_env(&folder, false);
    let mut config = config(&folder);
    assert_eq!(delegated(&folder, &config).unwrap()["ipMasq"], true);
    config["delegate"] = json!({"type": "ptp", "mtu": 1400, "ipMasq": false});
    config["ipam"] = json!({"type": "other", "routes": [{"dst": "192.168.0.0/16"}]});
    config["runtimeConfig"] = json!({"mac": "0a:58:00:00:00:01"});
    let delegate = delegated(&folder, &config).unwrap();
    assert_eq!(delegate["mtu"], 1400);
    assert_eq!(delegate["ipMasq"], false);
    assert_eq!(delegate.get("isGateway"), None);
    assert_eq!(delegate["runtimeConfig"], config["runtimeConfig"]);
    let ipam = json!({
        "type": "other",
        "ranges": [[{"subnet": "10.244.1.0/24"}]],
        "routes": [{"dst": "192.168.0.0/16"}, {"dst": "10.244.0.0/16"}],
    });
    assert_eq!(delegate["ipam"], ipam);
}

#[test]
fn a_delegate_that_meddles_is_refused() {
    let folder = Folder::new();
    write_subnet_env(&folder, true);
    for (delegate, complaint) in [
        (json!({"name": "x"}), "\"delegate\" must not have \"name\": flannel sets it"),
        (json!({"ipam": {}}), "\"delegate\" must not have \"ipam\": flannel sets it"),
        (json!({"type": 7}), "\"type\" of \"delegate\" must be a string"),
    ] {
        let mut config = config(&folder);
        config["delegate"] = delegate;
        let error = delegated(&folder, &config).unwrap_err();
        assert_eq!((error.code(), error.to_string()), (7, format!("network configuration: {complaint}")));
    }
}

#[test]
fn without_subnet_env_it_says_who_has_not_written_it() {
    let folder = Folder::new();
    let mut config = config(&folder);
    let file = folder.path().join("subnet.env").display().to_string();
    let error = Flannel.add(&call(Verb::Add, "box", &config).unwrap()).unwrap_err();
    assert_eq!(error.code(), 11);
    assert!(error.to_string().starts_with(&format!("flanneld has not written {file} yet")), "{error}");
    config["cniVersion"] = json!("1.1.0");
    let error = Flannel.status(&call(Verb::Status, "", &config).unwrap()).unwrap_err();
    assert_eq!(error.code(), 50);
    write_subnet_env(&folder, true);
    Flannel.status(&call(Verb::Status, "", &config).unwrap()).unwrap();
}

#[test]
fn an_add_that_fails_leaves_no_file_and_del_without_one_succeeds() {
    let folder = Folder::new();
    write_subnet_env(&folder, true);
    let config = config(&folder);
    let error = Flannel.add(&call(Verb::Add, "box", &config).unwrap()).unwrap_err();
    assert_eq!(error.code(), 3, "the namespace is gone: {error}");
    assert!(!folder.path().join("flannel/box").exists());
    Flannel.del(&call(Verb::Del, "box", &config).unwrap()).unwrap();
}

#[test]
fn gc_forgets_the_containers_of_its_own_network_only() {
    let folder = Folder::new();
    let mut config = config(&folder);
    config["cniVersion"] = json!("1.1.0");
    config["cni.dev/valid-attachments"] = json!([{"containerID": "stays", "ifname": "eth0"}]);
    let keep = |id: &str, network: &str| {
        let kept = json!({"name": network, "type": "bridge"}).to_string();
        write_whole(&folder.path().join("flannel").join(id), kept.as_bytes()).unwrap();
    };
    keep("stays", "cbr0");
    keep("gone", "cbr0");
    keep("of-another", "other");
    Flannel.gc(&call(Verb::Gc, "", &config).unwrap()).unwrap();
    let left = |id: &str| folder.path().join("flannel").join(id).exists();
    assert_eq!((left("stays"), left("gone"), left("of-another")), (true, false, true));
}
