//! Search lists gone through on the server, and what upstream servers are asked meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::sync::{Arc, Mutex};

use common::{LOCALHOST, Upstream, cluster, dig, digest, environment, name, start};
use domain::{base::iana::Rcode, rdata::A};
use podwire_dns::{
    message::{Data, Query, Reply, record},
    program::Program,
    view::View,
};

/// What upstream servers were asked, in order.
type Asked = Arc<Mutex<Vec<String>>>;

/// Knows `www.example.org`, and fails for `broken.example.org`.
async fn upstream() -> (Upstream, Asked) {
    let asked = Asked::default();
    let log = asked.clone();
    let upstream = Upstream::start(move |query: &Query| {
        log.lock().unwrap().push(format!("{} {}", query.name, query.qtype));
        let mut reply = Reply::default();
        match query.name.to_string().to_lowercase().as_str() {
            "www.example.org" if query.qtype.to_string() == "A" => {
                reply.answer.push(record(query.name.clone(), 300, Data::A(A::new([192, 0, 2, 1].into()))));
            }
            "www.example.org" => {}
            "broken.example.org" => reply.rcode = Rcode::SERVFAIL,
            _ => reply.rcode = Rcode::NXDOMAIN,
        }
        Some(reply)
    });
    (upstream.await, asked)
}

/// The cluster, where whoever asks from this machine is a Pod of Namespace default.
fn with_pods(pods: &[&str]) -> View {
    let mut view = cluster();
    view.replace_pods(pods.iter().map(|pod| (name(pod), vec![LOCALHOST])));
    view
}

fn corefile(autopath: &str, upstream: &Upstream) -> String {
    let upstream = upstream.address;
    format!(
        ".:0 {{\n errors\n autopath {autopath}\n cache 30\n kubernetes cluster.local {{\n  ttl 30\n }}\n forward . {upstream}\n}}\n"
    )
}

#[tokio::test]
async fn an_outside_name_costs_one_query_upstream() {
    let (upstream, asked) = upstream().await;
    let environment = environment(with_pods(&["default/web-0", "default/web-1"]));
    let (_server, address) = start(&corefile("@kubernetes", &upstream), &environment).await;
    // As a resolver with `ndots:5` begins: four questions without autopath.
    let search = ["+search", "+ndots=5", "+domain=default.svc.cluster.local"];
    let output = dig(address, &[&search[..], &["WWW.example.org", "A"]].concat()).await;
    let lines =
        "WWW.example.org.default.svc.cluster.local. 30 IN CNAME WWW.example.org.\nWWW.example.org. 30 IN A 192.0.2.1\n";
    assert_eq!(digest(&output), format!("NOERROR\n{}", sorted(lines)), "{output}");
    // The machine that the test runs on may have a search list, which pods get too.
    let outside =
        |log: &Asked| log.lock().unwrap().iter().filter(|asked| asked.as_str() == "WWW.example.org A").count();
    assert_eq!(outside(&asked), 1);
    assert!(!asked.lock().unwrap().iter().any(|asked| asked.contains("cluster.local")), "{asked:?}");
    let before = asked.lock().unwrap().len();
    dig(address, &[&search[..], &["www.example.org", "A"]].concat()).await;
    assert_eq!(asked.lock().unwrap().len(), before, "the second time the cache knows");
    let output = dig(address, &["www.example.org.default.svc.cluster.local", "AAAA"]).await;
    assert_eq!(digest(&output), "NOERROR\n", "a name without records of the type needs no alias");
    assert!(environment.metrics.encode().contains("coredns_autopath_success_total 3"));
}

#[tokio::test]
async fn names_of_the_cluster_are_found_on_the_way() {
    let (upstream, asked) = upstream().await;
    let (_server, address) =
        start(&corefile("@kubernetes", &upstream), &environment(with_pods(&["default/web-0"]))).await;
    let own = digest(&dig(address, &["web.default.svc.cluster.local", "A"]).await);
    assert_eq!(own, "NOERROR aa\nweb.default.svc.cluster.local. 30 IN A 10.96.0.20\n", "no alias");
    let other = digest(&dig(address, &["kube-dns.kube-system.default.svc.cluster.local", "A"]).await);
    let lines = "kube-dns.kube-system.default.svc.cluster.local. 30 IN CNAME kube-dns.kube-system.svc.cluster.local.\n\
                 kube-dns.kube-system.svc.cluster.local. 30 IN A 10.96.0.10\n";
    assert_eq!(other, format!("NOERROR aa\n{}", sorted(lines)));
    assert_eq!(asked.lock().unwrap().as_slice(), [] as [&str; 0]);
}

#[tokio::test]
async fn what_is_not_found_or_fails_leaves_the_search_to_the_client() {
    let (upstream, _) = upstream().await;
    let (_server, address) =
        start(&corefile("@kubernetes", &upstream), &environment(with_pods(&["default/web-0"]))).await;
    for name in ["nothing.example.org", "broken.example.org"] {
        let output = digest(&dig(address, &[&format!("{name}.default.svc.cluster.local")]).await);
        assert!(output.starts_with("NXDOMAIN aa\nauthority cluster.local. 30 IN SOA"), "{output}");
    }
    // The name itself, not from the list's beginning: as it is.
    let output = digest(&dig(address, &["www.example.org.svc.cluster.local"]).await);
    assert!(output.starts_with("NXDOMAIN"), "{output}");
    // The first of the list alone has nothing before it.
    assert_eq!(digest(&dig(address, &["default.svc.cluster.local"]).await).lines().next(), Some("NOERROR aa"));
}

#[tokio::test]
async fn whoever_is_no_pod_or_cannot_be_told_apart_gets_what_is_there() {
    let (upstream, asked) = upstream().await;
    for pods in [&[][..], &["default/web-0", "kube-system/agent"]] {
        let (_server, address) = start(&corefile("@kubernetes", &upstream), &environment(with_pods(pods))).await;
        let output = digest(&dig(address, &["www.example.org.default.svc.cluster.local"]).await);
        assert!(output.starts_with("NXDOMAIN"), "{pods:?}: {output}");
    }
    assert_eq!(asked.lock().unwrap().as_slice(), [] as [&str; 0]);
}

#[tokio::test]
async fn a_file_may_hold_the_list() {
    let (upstream, _) = upstream().await;
    let file = std::env::temp_dir().join(format!("podwire-autopath-{}", std::process::id()));
    std::fs::write(&file, "nameserver 192.0.2.9\nsearch first.test second.test.\n").unwrap();
    let text = corefile(&file.display().to_string(), &upstream);
    let program = start(&text, &environment(with_pods(&[]))).await;
    std::fs::remove_file(&file).unwrap();
    let output = digest(&dig(program.1, &["www.example.org.first.test", "A"]).await);
    assert!(output.contains("www.example.org.first.test. 30 IN CNAME www.example.org."), "{output}");
    let gone = Program::new(&text, &environment(cluster())).err().unwrap().to_string();
    assert!(gone.starts_with("3:11: autopath: ") && gone.contains("No such file"), "{gone}");
}

#[test]
fn mistakes_are_named() {
    let error = |text: &str| Program::new(text, &environment(cluster())).err().unwrap().to_string();
    assert_eq!(
        error(". {\n autopath @kubernetes\n}\n"),
        "2:11: autopath @kubernetes: there is no directive kubernetes in this server block"
    );
    let other = error(". {\n autopath @hosts\n}\n");
    assert_eq!(other, "2:11: autopath: @hosts has no search list; only @kubernetes has");
    let needs = |text: &str| Program::new(text, &environment(cluster())).unwrap().cluster.unwrap();
    let found = needs(". {\n kubernetes cluster.local\n autopath @kubernetes\n}\n");
    assert_eq!((found.pods, found.clients), (false, true));
}

fn sorted(lines: &str) -> String {
    let mut lines: Vec<_> = lines.lines().map(|line| format!("{line}\n")).collect();
    lines.sort();
    lines.concat()
}
