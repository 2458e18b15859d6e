use serde_json::json;

use podwire_model::Protocol;

use super::*;

fn from<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[test]
fn a_node_port_service_keeps_its_addresses_and_ports() {
    let object = from(json!({
        "metadata": {"namespace": "default", "name": "myservice"},
        "spec": {
            "type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "externalIPs": ["172.25.2.100"], "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": [" 10.0.0.0/8 "],
            "ports": [{"port": 80, "targetPort": "web", "nodePort": 30080, "name": "http"}, {"port": 53, "protocol": "UDP"}]
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "172.25.2.200", "ipMode": "Proxy"}, {"hostname": "lb"}]}}
    }));
    let service = service(&object).value.unwrap();
    assert_eq!(service.name, ObjectName::new("default", "myservice"));
    assert_eq!(service.kind, ServiceType::NodePort);
    assert_eq!(service.cluster_ip(Family::V4), Some("10.96.0.7".parse().unwrap()));
    assert_eq!(service.external_ips, ["172.25.2.100".parse::<IpAddr>().unwrap()]);
    assert_eq!(service.client_ip_affinity, Some(Duration::from_secs(10_800)));
    assert_eq!(service.external_policy, TrafficPolicy::Local);
    assert_eq!(service.internal_policy, TrafficPolicy::Cluster);
    assert_eq!(service.source_ranges, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(service.load_balancer, [LoadBalancerIngress { ip: "172.25.2.200".parse().unwrap(), proxied: true }]);
    assert_eq!((service.ports[0].port, service.ports[0].node_port), (80, Some(30080)));
    assert_eq!((service.ports[1].protocol, &*service.ports[1].name), (Protocol::Udp, ""));
}

#[test]
fn headless_and_external_name_services_have_no_address() {
    let headless = from(json!({"metadata": {"name": "h"}, "spec": {"clusterIP": "None", "clusterIPs": ["None"]}}));
    let headless = service(&headless).value.unwrap();
    assert!(headless.headless && headless.cluster_ips.is_empty());
    let alias =
        from(json!({"metadata": {"name": "e"}, "spec": {"type": "ExternalName", "externalName": "www.westos.org"}}));
    let alias = service(&alias).value.unwrap();
    assert_eq!(alias.kind, ServiceType::ExternalName("www.westos.org".into()));
    assert!(!alias.headless && alias.cluster_ips.is_empty());
}

/// What reading a Service with that specification complains about, as field and text.
fn complaints(spec: serde_json::Value) -> (Option<Service>, Vec<String>) {
    let read = service(&from(json!({"metadata": {"namespace": "n", "name": "s"}, "spec": spec})));
    (read.value, read.problems.iter().map(Problem::to_string).collect())
}

#[test]
fn only_the_bad_part_is_left_out_and_named() {
    let (service, problems) = complaints(json!({
        "type": "LoadBalancer", "clusterIPs": ["10.96.0", "10.96.0.7", "10.96.0.8", "::ffff:10.96.0.9"],
        "externalIPs": ["192.0.2.1", "127.0.0.1", "fe80::1", "224.0.0.1", "0.0.0.0", "x"],
        "ports": [
            {"port": 80}, {"port": 70000}, {"port": 80, "name": "again"}, {"port": 80, "protocol": "UDP", "nodePort": -1},
            {"port": 1, "protocol": "ICMP"},
        ],
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 100_000}},
        "externalTrafficPolicy": "Nearby", "healthCheckNodePort": 65536,
        "loadBalancerSourceRanges": ["10.0.0.0/8", "10.0.0.0/33"],
    }));
    let service = service.unwrap();
    assert_eq!(service.cluster_ips, ["10.96.0.7".parse::<IpAddr>().unwrap()]);
    assert_eq!(service.external_ips, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    let ports: Vec<_> = service.ports.iter().map(|port| (port.port, port.protocol, port.node_port)).collect();
    assert_eq!(ports, [(80, Protocol::Tcp, None), (80, Protocol::Udp, None)]);
    assert_eq!(service.client_ip_affinity, Some(Duration::from_secs(86_400)));
    assert_eq!((service.external_policy, service.health_check_node_port), (TrafficPolicy::Cluster, None));
    assert_eq!(service.source_ranges, ["10.0.0.0/8".parse().unwrap()]);
    let expected = [
        "Service n/s: spec.loadBalancerSourceRanges: \"10.0.0.0/33\": invalid IP address syntax; it is left out",
        "Service n/s: spec.clusterIPs: \"10.96.0\": invalid IP address syntax; it is left out",
        "Service n/s: spec.clusterIPs: 10.96.0.8 is of the same family as 10.96.0.7 (and 1 more like it); the first one is used",
        "Service n/s: spec.ports.port: 70000 is not a port: 1 to 65535; the port is not served",
        "Service n/s: spec.ports: 80/TCP is there twice; the first one is served",
        "Service n/s: spec.ports.nodePort: -1 is not a port: 1 to 65535; there is no node port",
        "Service n/s: spec.ports.protocol: \"ICMP\": unknown protocol \"ICMP\": expected TCP, UDP or SCTP; it is left out",
        "Service n/s: spec.externalIPs: 127.0.0.1 is a loopback address (and 4 more like it); it is left out",
        "Service n/s: spec.externalTrafficPolicy: \"Nearby\" is not a policy; it counts as Cluster",
        "Service n/s: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 100000 is not between 1 and 86400; \
         the nearest of them is used",
        "Service n/s: spec.healthCheckNodePort: 65536 is not a port: 1 to 65535; there is no health check",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn a_service_of_no_known_type_is_refused() {
    let (service, problems) = complaints(json!({"type": "Odd"}));
    assert_eq!(service, None);
    assert_eq!(problems, ["Service n/s: spec.type: \"Odd\" is not a type; the Service is not served"]);
}

#[test]
fn a_load_balancer_whose_source_ranges_cannot_be_read_is_open_to_nobody() {
    let object = json!({
        "metadata": {"name": "s"},
        "spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.7"], "loadBalancerSourceRanges": ["10.0.0.0/8/8"]},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}},
    });
    let read = service(&from(object));
    assert!(read.value.unwrap().load_balancer.is_empty());
    assert_eq!(read.problems.len(), 2);
}

#[test]
fn slice_conditions_default_as_the_api_says() {
    let object = from(json!({
        "metadata": {"namespace": "default", "name": "s-x", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4", "ports": [{"port": 80, "name": ""}, {"name": "any"}],
        "endpoints": [
            {"addresses": ["10.244.0.2", "10.244.0.9"]},
            {"addresses": ["10.244.1.2"], "nodeName": "node2", "conditions": {"ready": false, "serving": true, "terminating": true},
             "targetRef": {"kind": "Pod", "name": "p"}},
            {"addresses": []}
        ]
    }));
    let slice = endpoint_slice(&object).value.unwrap();
    assert_eq!(slice.service_name(), ObjectName::new("default", "s"));
    assert_eq!(slice.ports.len(), 1, "a port without a number serves nothing");
    assert_eq!(slice.endpoints[0], Endpoint::ready("10.244.0.2".parse().unwrap()));
    let leaving = &slice.endpoints[1];
    assert_eq!((leaving.ready, leaving.serving, leaving.terminating), (false, true, true));
    assert_eq!(leaving.pod, Some(ObjectName::new("default", "p")));
    assert_eq!(slice.endpoints.len(), 2);
}

#[test]
fn slices_of_no_service_are_left_out_silently() {
    let orphan = from(json!({"metadata": {"name": "x"}, "addressType": "IPv4", "endpoints": []}));
    assert_eq!(endpoint_slice(&orphan), Read { value: None, problems: Vec::new() });
}

#[test]
fn garbage_in_a_slice_leaves_the_rest_of_it() {
    let endpoints = ["fd00::1", "10.244.0.2", "x", "127.0.0.1", "10.244.0.2", "169.254.0.1", "10.244.0.3"];
    let object = from(json!({
        "metadata": {"namespace": "n", "name": "x", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4", "surprise": {"deep": [1]},
        "ports": [{"port": 0, "name": "zero"}, {"port": 80, "name": "", "protocol": "QUIC"}, {"port": 8080, "name": "web"}],
        "endpoints": endpoints.map(|address| json!({"addresses": [address], "unknown": true})),
    }));
    let read = endpoint_slice(&object);
    let slice = read.value.unwrap();
    assert_eq!(slice.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [8080]);
    let addresses: Vec<_> = slice.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    assert_eq!(addresses, ["10.244.0.2", "10.244.0.2", "10.244.0.3"]);
    let problems: Vec<_> = read.problems.iter().map(Problem::to_string).collect();
    let expected = [
        "EndpointSlice n/x: ports.port: 0 is not a port: 1 to 65535; no endpoint of the slice is used for it",
        "EndpointSlice n/x: ports.protocol: \"QUIC\": unknown protocol \"QUIC\": expected TCP, UDP or SCTP; it is left out",
        "EndpointSlice n/x: endpoints.addresses: fd00::1 is not of the slice's addressType (and 3 more like it); \
         it is left out",
        "EndpointSlice n/x: endpoints.addresses: 10.244.0.2 is there twice; it counts once",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn more_endpoints_than_the_api_allows_are_all_used() {
    let endpoints: Vec<_> =
        (0..1001).map(|n| json!({"addresses": [format!("10.244.{}.{}", n / 250, n % 250)]})).collect();
    let object = from(json!({
        "metadata": {"name": "x", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4", "endpoints": endpoints,
    }));
    let read = endpoint_slice(&object);
    assert_eq!(read.value.unwrap().endpoints.len(), 1001);
    assert_eq!(read.problems[0].what, "1001 endpoints in one slice, 1000 are allowed");
}

#[test]
fn nodes_keep_internal_addresses_and_ranges() {
    let object = from(json!({
        "metadata": {"name": "node1", "annotations": {"a": "b"}},
        "spec": {"podCIDR": "10.244.0.0/24"},
        "status": {"addresses": [{"type": "Hostname", "address": "node1"}, {"type": "InternalIP", "address": "172.25.2.1"}]}
    }));
    let node = node(&object).value.unwrap();
    assert_eq!(node.internal_ips, ["172.25.2.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(node.pod_cidrs, ["10.244.0.0/24".parse().unwrap()]);
    assert_eq!(node.annotations["a"], "b");
}
