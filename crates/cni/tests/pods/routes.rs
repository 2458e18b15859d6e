//! Routes that are there before ADD comes to them.

use serde_json::{Value, json};

use crate::support::{Pod, cabled, on_a_node, run, veths};

/// The plugins that make routes, each with addresses of 10.1.0.0/24 and fd01::/64 and with routes that a container may have.
fn plugins() -> [Value; 3] {
    let addresses =
        json!([{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd01::5/64", "gateway": "fd01::1"}]);
    let routes = json!([{"dst": "10.9.0.0/16"}, {"dst": "fd09::/64"}, {"dst": "10.9.0.0/16"}]);
    let ipam = json!({"type": "static", "addresses": addresses, "routes": routes});
    [
        json!({"type": "bridge", "bridge": "br0", "isGateway": true, "ipam": ipam}),
        json!({"type": "ptp", "ipam": ipam}),
        json!({"type": "host-device", "device": "eth0", "ipam": ipam}),
    ]
}

#[test]
fn a_route_that_another_device_has_is_an_error() {
    on_a_node(|node| {
        let _outside = cabled();
        for (plugin, route) in
            plugins().into_iter().flat_map(|it| ["10.9.0.0/16", "fd09::/64"].map(|to| (it.clone(), to)))
        {
            let pod = Pod::new("pod-a");
            pod.run("ip link add net1 type veth peer name net2");
            pod.run("ip link set net1 up");
            pod.run(&format!("ip route add {route} dev net1"));
            let error = node.runtime.add(&node.network(plugin.clone()), &pod.attachment).unwrap_err();
            assert_eq!(error.code(), 101, "{plugin}: {error}");
            let why = format!("the route to {route} by eth0: there is one by net1");
            assert!(error.to_string().contains(&why), "{plugin}: {error}");
            assert_eq!((pod.has_eth0(), veths()), (false, vec![]), "{plugin}");
            // Alone in its table it is, or has another rank, and is nobody's rival.
            pod.run(&format!("ip route del {route} dev net1"));
            pod.run(&format!("ip route add {route} dev net1 metric 7"));
            node.runtime.add(&node.network(plugin.clone()), &pod.attachment).unwrap();
            node.runtime.check(&node.network(plugin.clone()), &pod.attachment).unwrap();
            node.runtime.del(&node.network(plugin), &pod.attachment).unwrap();
            run("ip link set eth0 up");
        }
    });
}

#[test]
fn a_route_to_the_container_that_another_device_has_is_an_error() {
    on_a_node(|node| {
        let _outside = cabled();
        run("ip link set eth0 up");
        run("ip route add 10.1.0.5 dev eth0");
        let pod = Pod::new("pod-a");
        let [_, ptp, _] = plugins();
        let error = node.runtime.add(&node.network(ptp), &pod.attachment).unwrap_err();
        assert_eq!(error.code(), 101, "{error}");
        let (veth, rival) = ("the route to 10.1.0.5/32 by veth", ": there is one by eth0");
        assert!(error.to_string().contains(veth) && error.to_string().contains(rival), "{error}");
        assert_eq!((pod.has_eth0(), veths()), (false, vec![]));
        assert!(run("ip route").contains("10.1.0.5 dev eth0"));
    });
}
