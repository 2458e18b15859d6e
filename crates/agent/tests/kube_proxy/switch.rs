//! One mode takes over from another while clients go on.

use std::{
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use podwire_proxy::mode::MODES;
use serde_json::json;

use crate::node::{Site, connect, exchange, on_a_site};

const WEB: &str = "10.96.0.80:80";
const NODE_PORT: &str = "172.25.2.1:30080";

/// The modes that this kernel can do: all but ipvs, which is tested on another kernel.
fn modes() -> Vec<&'static str> {
    let able = MODES.iter().filter(|mode| mode.name != "ipvs" || (mode.probe)().is_ok());
    able.map(|mode| mode.name).collect()
}

/// Each mode after each other, in an order in which every pair comes once: from, to.
fn pairs(modes: &[&'static str]) -> Vec<&'static str> {
    let mut order = vec![modes[0]];
    for (n, first) in modes.iter().enumerate() {
        for second in &modes[n + 1..] {
            order.extend([*first, second, first]);
        }
    }
    order.dedup();
    order
}

fn create_service(site: &Site) {
    site.answer("hello");
    site.create_service("web", "10.96.0.80", &["10.244.0.2"]);
    site.patch(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" },
        "spec": { "type": "NodePort", "ports": [{ "port": 80, "targetPort": 8080, "nodePort": 30080 }] },
    }));
}

/// What the other modes left.
fn leftovers(site: &Site, mode: &str) -> String {
    let mut found = String::new();
    if mode != "nftables" && site.node().run("nft list tables").contains("podwire") {
        found += "nftables ";
    }
    let chains = site.node().run("iptables-save");
    if !["iptables", "ipvs"].contains(&mode) && chains.contains(":KUBE-SVC") {
        found += "iptables ";
    }
    if mode != "userspace" && chains.contains(":KUBE-PORTALS") {
        found += "userspace ";
    }
    found
}

/// Connects to the Service all the time; counts.
fn clients<'scope>(scope: &'scope thread::Scope<'scope, '_>, site: &'scope Site, watch: &'scope Watch) {
    let ways = [(site.node(), WEB), (site.pod(), WEB), (&site.cluster.client, NODE_PORT)];
    for (from, to) in ways {
        let to: SocketAddr = to.parse().unwrap();
        scope.spawn(move || {
            from.inside(|| {
                while !watch.done.load(Ordering::SeqCst) {
                    match connect(to) {
                        Ok(text) if text == "hello" => watch.good.fetch_add(1, Ordering::SeqCst),
                        other => {
                            eprintln!("{to} in {:?}: {other:?}", site.mode());
                            watch.bad.fetch_add(1, Ordering::SeqCst)
                        }
                    };
                }
            });
        });
    }
}

#[derive(Default)]
struct Watch {
    done: AtomicBool,
    good: AtomicUsize,
    bad: AtomicUsize,
}

/// Ends the clients, also when an assertion fails.
struct Done<'a>(&'a Watch);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::SeqCst);
    }
}

#[test]
fn no_client_notices_any_switch() {
    on_a_site("switch", |site| {
        create_service(site);
        let order = pairs(&modes());
        let config = site.write_config(&format!("mode: {}", order[0]));
        let watch = Watch::default();
        site.with_proxy(&config, || {
            site.eventually("web is served", || site.serves(WEB));
            thread::scope(|scope| {
                let _done = Done(&watch);
                clients(scope, site, &watch);
                for (number, mode) in order.iter().enumerate().skip(1) {
                    let mut established = site.node().inside(|| TcpStream::connect(WEB)).unwrap();
                    assert_eq!(exchange(&mut established).unwrap(), "hello");
                    site.write_config(&format!("mode: {mode}"));
                    site.eventually("it took over", || site.mode().as_deref() == Some(mode));
                    site.eventually("the other is gone", || leftovers(site, mode).is_empty());
                    assert_eq!(exchange(&mut established).unwrap(), "hello", "{:?}", &order[number - 1..=number]);
                    thread::sleep(Duration::from_millis(200));
                    assert_eq!(watch.bad.load(Ordering::SeqCst), 0, "{:?}", &order[number - 1..=number]);
                }
            });
            assert_eq!(site.metric("podwire_proxy_mode_switches_total"), (order.len() - 1) as f64);
        });
        let good = watch.good.load(Ordering::SeqCst);
        eprintln!("{good} connections during {} switches", order.len() - 1);
        assert!(good > 100);
        site.run(&["--cleanup"]).unwrap();
        assert!(leftovers(site, "").is_empty());
    });
}

/// The procedure of the seed: the ConfigMap is edited, the pods are deleted.
#[test]
fn a_restart_in_another_mode_cleans_up_after_its_own_first_sync() {
    on_a_site("restart", |site| {
        create_service(site);
        let order = pairs(&modes());
        let watch = Watch::default();
        let mut established: Option<TcpStream> = None;
        thread::scope(|scope| {
            let _done = Done(&watch);
            for (number, mode) in order.iter().enumerate() {
                let config = site.write_config(&format!("mode: {mode}"));
                site.with_proxy(&config, || {
                    site.eventually("in sync", || site.status("/healthz") == Some(200));
                    site.eventually("it is served", || site.serves(WEB));
                    site.eventually("only its own rules are there", || leftovers(site, mode).is_empty());
                    if number == 0 {
                        clients(scope, site, &watch);
                    }
                    let kernel = |mode: &str| mode != "userspace";
                    if let Some(stream) = established.as_mut().filter(|_| kernel(order[number - 1]) && kernel(mode)) {
                        assert_eq!(exchange(stream).unwrap(), "hello", "{:?}", &order[number - 1..=number]);
                    }
                    established = Some(site.node().inside(|| TcpStream::connect(WEB)).unwrap());
                    exchange(established.as_mut().unwrap()).unwrap();
                    if kernel(mode) && order.iter().all(|mode| kernel(mode)) {
                        assert_eq!(watch.bad.load(Ordering::SeqCst), 0, "{mode}");
                    }
                });
            }
        });
        assert!(watch.good.load(Ordering::SeqCst) > 100);
    });
}

/// This kernel has no ip_vs; where there is one, that mode runs.
#[test]
fn without_ip_vs_iptables_serves_and_everyone_is_told() {
    if MODES.iter().any(|mode| mode.name == "ipvs" && (mode.probe)().is_ok()) {
        return;
    }
    on_a_site("fallback", |site| {
        site.answer("hello");
        site.create_service("web", "10.96.0.80", &["10.244.0.2"]);
        let config = site.write_config("mode: ipvs");
        site.with_proxy(&config, || {
            site.eventually("web is served", || site.serves(WEB));
            assert_eq!(site.mode().as_deref(), Some("iptables"));
            assert_eq!(site.metric("podwire_proxy_mode_fallback"), 1.0);
            let told = || site.events().into_iter().find(|(_, reason, _)| reason == "ProxyModeFallback");
            site.eventually("there is an Event", || told().is_some());
            let (about, _, message) = told().unwrap();
            assert_eq!(about, "Node node1");
            assert!(message.contains("falling back to iptables"), "{message}");
            site.write_config("mode: nftables");
            site.eventually("another mode took over", || site.mode().as_deref() == Some("nftables"));
            assert_eq!(site.metric("podwire_proxy_mode_fallback"), 0.0);
        });
    });
}

#[test]
fn what_somebody_else_removes_is_back_within_a_second_and_counted() {
    on_a_site("disturbed", |site| {
        create_service(site);
        let config = site.write_config("mode: nftables");
        site.with_proxy(&config, || {
            for (number, mode) in modes().into_iter().enumerate() {
                site.write_config(&format!("mode: {mode}"));
                site.eventually("it took over", || {
                    site.mode().as_deref() == Some(mode) && leftovers(site, mode).is_empty()
                });
                site.eventually("web is served", || site.serves(WEB));
                thread::sleep(Duration::from_millis(700));
                let count = || site.metric("podwire_proxy_disturbances_total");
                let before = count();
                let begin = Instant::now();
                match mode {
                    "nftables" => site.node().run("nft flush ruleset"),
                    _ => site.node().run("iptables -t nat -F"),
                };
                site.eventually("it is noticed", || count() > before);
                let at_once = || {
                    let connect = || TcpStream::connect_timeout(&WEB.parse().unwrap(), Duration::from_millis(100));
                    site.node().inside(connect).is_ok()
                };
                site.eventually("web is served again", at_once);
                assert!(begin.elapsed() < Duration::from_secs(1), "{mode}: {:?}", begin.elapsed());
                thread::sleep(Duration::from_millis(700));
                assert_eq!(count(), before + 1.0, "{mode} ({number}): its own changes are no disturbance");
            }
        });
    });
}
