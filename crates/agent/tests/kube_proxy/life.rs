//! A proxy from its first start to its last traces.

use std::{
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::node::{NODE, exchange, on_a_site};

const WEB: &str = "10.96.0.80:80";

#[test]
fn a_service_is_served_and_outlives_the_proxy_until_cleanup() {
    on_a_site("life", |site| {
        site.answer("hello");
        let config = site.write_config("mode: nftables");
        site.run(&[&format!("--config={}", config.display()), "--init-only"]).unwrap();
        site.with_proxy(&config, || {
            site.eventually("in sync", || site.status("/healthz") == Some(200));
            assert_eq!(site.mode().as_deref(), Some("nftables"));
            site.create_service("web", "10.96.0.80", &["10.244.0.2"]);
            site.eventually("web is served", || site.serves(WEB));
            let answered = site.ask_service(site.pod(), WEB.parse().unwrap()).unwrap();
            assert_eq!(answered, "hello", "a pod that reaches itself");
            assert!(site.metric("kubeproxy_sync_proxy_rules_service_changes_total") >= 2.0);
        });
        assert!(site.serves(WEB), "rules stay");
        site.with_proxy(&config, || {
            site.eventually("in sync again", || site.status("/healthz") == Some(200));
            assert!(site.serves(WEB));
        });
        site.run(&["--cleanup"]).unwrap();
        assert!(!site.serves(WEB));
        assert_eq!(site.node().run("nft list ruleset").trim(), "");
    });
}

#[test]
fn a_configuration_that_cannot_be_used_changes_nothing() {
    on_a_site("config", |site| {
        site.answer("hello");
        site.create_service("web", "10.96.0.80", &["10.244.0.2"]);
        let config = site.write_config("mode: nftables");
        site.with_proxy(&config, || {
            site.eventually("web is served", || site.serves(WEB));
            let mut established = site.node().inside(|| TcpStream::connect(WEB)).unwrap();
            site.write_config("mode: best");
            site.eventually("it is refused", || site.metric("podwire_proxy_config_errors_total") == 1.0);
            assert!(site.serves(WEB));
            let told = || site.events().into_iter().find(|(_, reason, _)| reason == "InvalidConfiguration");
            site.eventually("there is an Event", || told().is_some());
            let (about, _, message) = told().unwrap();
            assert_eq!(about, "Node node1");
            assert!(message.contains("mode: \"best\" is not supported"), "{message}");
            let switches = site.metric("podwire_proxy_mode_switches_total");
            site.write_config("mode: nftables\nnftables: {masqueradeBit: 13}");
            site.eventually("the next one is used", || {
                site.metric("podwire_proxy_mode_switches_total") == switches + 1.0
            });
            assert!(site.node().run("nft list table ip podwire").contains("0x00002000"), "the other bit is in use");
            assert!(site.serves(WEB));
            assert_eq!(exchange(&mut established).unwrap(), "hello", "established connections go on");
        });
    });
}

#[test]
fn load_balancers_ask_and_a_node_that_goes_says_so() {
    on_a_site("health", |site| {
        let config = site.write_config("mode: nftables");
        site.with_proxy(&config, || {
            site.eventually("in sync", || site.status("/healthz") == Some(200));
            let spec = json!({
                "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
                "ports": [{ "port": 80, "targetPort": 8080 }],
            });
            site.create(json!({
                "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" },
                "spec": spec,
            }));
            site.eventually("it is asked, and has nothing", || {
                site.page((NODE, 32000).into(), "/").is_some_and(|(status, _)| status == 503)
            });
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": "web-1", "namespace": "default", "labels": { "kubernetes.io/service-name": "web" },
                },
                "addressType": "IPv4", "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
                "endpoints": [{ "addresses": ["10.244.0.2"], "nodeName": "node1" }],
            });
            site.create(slice);
            site.eventually("it has an endpoint", || {
                site.page((NODE, 32000).into(), "/").is_some_and(|(status, _)| status == 200)
            });
            site.patch(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node1" },
                "spec": { "taints": [{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" }] },
            }));
            site.eventually("the node is going", || site.status("/healthz") == Some(503));
            assert_eq!(site.status("/livez"), Some(200));
            assert_eq!(
                site.page((NODE, 32000).into(), "/").unwrap().0,
                200,
                "load balancers of Services go by endpoints"
            );
            assert!(site.metric("kubeproxy_proxy_healthz_total{code=\"503\"}") >= 1.0);
        });
    });
}

#[test]
fn services_live_on_while_the_api_is_away() {
    on_a_site("away", |site| {
        site.answer("hello");
        site.create_service("web", "10.96.0.80", &["10.244.0.2"]);
        let config = site.write_config("mode: nftables");
        site.with_proxy(&config, || {
            site.eventually("web is served", || site.serves(WEB));
            site.api.set_away(true);
            site.create_service("late", "10.96.0.81", &["10.244.0.2"]);
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(3) {
                assert!(site.serves(WEB));
                thread::sleep(Duration::from_millis(50));
            }
            assert_eq!(site.status("/healthz"), Some(200), "nothing is wrong with this node");
            assert!(!site.serves("10.96.0.81:80"));
            site.api.set_away(false);
            site.eventually("it catches up", || site.serves("10.96.0.81:80"));
        });
    });
}

#[test]
fn what_cannot_be_served_is_told_and_the_rest_is_served() {
    on_a_site("bad", |site| {
        site.answer("hello");
        site.create_service("web", "10.96.0.80", &["10.244.0.2"]);
        site.create_service("good", "10.96.0.81", &["10.244.0.2"]);
        let external = |name: &str| {
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
                "spec": { "externalIPs": ["172.25.2.100"] },
            })
        };
        site.patch(external("web"));
        site.patch(external("good"));
        let config = site.write_config("mode: nftables");
        site.with_proxy(&config, || {
            site.eventually("both are served", || site.serves(WEB) && site.serves("10.96.0.81:80"));
            let told = || site.events().into_iter().find(|(_, reason, _)| reason == "NotServedAsWritten");
            site.eventually("there is an Event", || told().is_some());
            let (about, _, message) = told().unwrap();
            assert_eq!(about, "Service web");
            assert!(message.contains("172.25.2.100:80/tcp"), "{message}");
            site.eventually("it is counted", || site.metric("podwire_proxy_problems") == 1.0);
            site.node().run("ip route add 172.25.2.100 dev lo");
            assert_eq!(site.ask_service(site.node(), "172.25.2.100:80".parse().unwrap()).unwrap(), "hello");
        });
    });
}

#[test]
fn node_ranges_are_waited_for() {
    on_a_site("nodecidr", |site| {
        site.answer("hello");
        site.create_service("web", "10.96.0.80", &["10.244.0.2"]);
        let config = site.write_config("mode: nftables\ndetectLocalMode: NodeCIDR");
        site.with_proxy(&config, || {
            site.eventually("it is alive", || site.status("/livez") == Some(200));
            thread::sleep(Duration::from_millis(700));
            assert_eq!(site.status("/healthz"), Some(503));
            assert!(!site.serves(WEB));
            site.patch(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node1" },
                "spec": { "podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"] },
            }));
            site.eventually("web is served", || site.serves(WEB));
        });
    });
}
