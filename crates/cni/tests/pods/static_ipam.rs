//! Addresses that the configuration says: `static`.

use serde_json::{Value, json};

use crate::support::{Pod, cabled, call, on_a_node};

#[test]
fn a_container_gets_the_addresses_that_are_written() {
    on_a_node(|node| {
        let outside = cabled();
        let ipam = json!({
            "type": "static",
            "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd01::5/64"}],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.254"}],
            "dns": {"nameservers": ["10.1.0.53"], "search": ["example.org"]},
        });
        let network = node.network(json!({"type": "macvlan", "master": "eth0", "ipam": ipam}));
        let pod = Pod::new("pod-a");
        let result = node.runtime.add(&network, &pod.attachment).unwrap();
        assert_eq!(result.ips.len(), 2);
        let routes = pod.run("ip route");
        assert!(routes.contains("default via 10.1.0.1 dev eth0"), "{routes}");
        assert!(routes.contains("10.9.0.0/16 via 10.1.0.254 dev eth0"), "{routes}");
        outside.run("ping -c 3 -i 0.2 -W 20 10.1.0.5");
        outside.run("ping -c 3 -i 0.2 -W 20 fd01::5");
        node.runtime.check(&network, &pod.attachment).unwrap();
        node.runtime.status(&network).unwrap();
        node.runtime.gc(&network, std::slice::from_ref(&pod.attachment)).unwrap();
        node.runtime.del(&network, &pod.attachment).unwrap();
        assert!(!pod.has_eth0());
    });
}

#[test]
fn requests_take_the_place_of_the_configuration() {
    on_a_node(|node| {
        let config = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "static",
            "ipam": {"type": "static", "addresses": [{"address": "10.1.0.5/24"}]},
        });
        let mut pod = Pod::new("pod-a");
        let add = |pod: &Pod, more: Value| {
            let mut config = config.clone();
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            call(node, "static", "ADD", &pod.attachment, &config).0
        };
        let ips = |result: &Value| {
            let ips = result["ips"].as_array().unwrap_or_else(|| panic!("{result}")).iter();
            ips.map(|ip| ip["address"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let runtime = json!({"ips": ["10.3.0.1/24", "fd03::1/64"]});
        let args = json!({"cni": {"ips": ["10.2.0.1/24"]}});
        assert_eq!(ips(&add(&pod, json!({}))), ["10.1.0.5/24"]);
        assert_eq!(ips(&add(&pod, json!({"args": args}))), ["10.2.0.1/24"]);
        assert_eq!(ips(&add(&pod, json!({"args": args, "runtimeConfig": runtime}))), ["10.3.0.1/24", "fd03::1/64"]);
        pod.attachment.args.push(("IP".to_owned(), "10.4.0.1/24, 10.5.0.1/24".to_owned()));
        pod.attachment.args.push(("GATEWAY".to_owned(), "10.5.0.254".to_owned()));
        let result = add(&pod, json!({}));
        assert_eq!(ips(&result), ["10.1.0.5/24", "10.4.0.1/24", "10.5.0.1/24"]);
        assert_eq!(result["ips"][2]["gateway"], "10.5.0.254");
        let error = add(&pod, json!({"runtimeConfig": {"ips": ["10.3.0.1"]}}));
        assert_eq!(error["code"], 7);
        let why = error["msg"].as_str().unwrap();
        assert!(why.contains("\"10.3.0.1\" is no address with the prefix length"), "{error}");
        assert_eq!(add(&pod, json!({"ipam": {"addresses": [{"address": 7}]}}))["code"], 6);
    });
}

#[test]
fn check_compares_with_what_was_assigned() {
    on_a_node(|node| {
        let pod = Pod::new("pod-a");
        let check = |address: &str, gateway: &str| {
            let config = json!({
                "cniVersion": "1.0.0", "name": "net", "type": "static",
                "ipam": {"addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]},
                "prevResult": {"ips": [{"address": address, "gateway": gateway}]},
            });
            call(node, "static", "CHECK", &pod.attachment, &config)
        };
        assert_eq!(check("10.1.0.5/24", "10.1.0.1"), (Value::Null, true));
        assert_eq!(check("10.1.0.5/24", "10.1.0.2").0["code"], 103);
        assert_eq!(check("10.1.0.6/24", "10.1.0.1").0["code"], 103);
    });
}
