//! Names outside the cluster: upstream servers that answer, answer too much, are silent, dead, missing, or ourselves.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{Upstream, cluster, dig, digest, environment, start, stock_corefile};
use domain::{
    base::{Serial, Ttl, iana::Rcode},
    rdata::{A, Soa},
};
use podwire_dns::{
    message::{Data, DnsName, Query, Reply, record},
    program::Program,
};

fn forwarding_to(upstream: &str) -> String {
    format!(".:0 {{\n errors\n kubernetes cluster.local\n forward . {upstream}\n cache 30\n loop\n}}\n")
}

/// As many addresses as the first label says, with a TTL of 300; NXDOMAIN where that is no number.
fn addresses(query: &Query) -> Option<Reply> {
    let count = query.name.first().to_string().parse().unwrap_or(0);
    let data = |last: u8| Data::A(A::new([192, 0, 2, last].into()));
    let mut reply =
        Reply { answer: (0..count).map(|n| record(query.name.clone(), 300, data(n))).collect(), ..Reply::default() };
    if count == 0 {
        reply.rcode = Rcode::NXDOMAIN;
        let (root, seconds) = (DnsName::root_bytes(), Ttl::from_secs);
        let soa = Soa::new(root.clone(), root.clone(), Serial(1), seconds(1), seconds(1), seconds(1), seconds(20));
        reply.authority.push(record(root, 300, Data::Soa(soa)));
    }
    Some(reply)
}

fn answers(output: &str) -> usize {
    digest(output).lines().skip(1).count()
}

#[tokio::test]
async fn a_truncated_answer_is_fetched_over_tcp() {
    let upstream = Upstream::start(addresses).await;
    let (_server, address) = start(&forwarding_to(&upstream.address.to_string()), &environment(cluster())).await;
    // 200 records are more than our own 1232 bytes towards the upstream.
    let output = dig(address, &["200.example", "+tcp"]).await;
    assert_eq!(answers(&output), 200, "{output}");
    let output = dig(address, &["200.example", "+bufsize=4096", "+ignore"]).await;
    assert_eq!(answers(&output), 200, "{output}");
    let output = dig(address, &["200.example", "+noedns", "+ignore"]).await;
    assert!(digest(&output).starts_with("NOERROR tc"), "{output}");
    assert!((20..40).contains(&answers(&output)), "{output}");
}

#[tokio::test]
async fn answers_and_denials_are_cached_for_at_most_the_configured_time() {
    let upstream = Upstream::start(addresses).await;
    let (_server, address) = start(&forwarding_to(&upstream.address.to_string()), &environment(cluster())).await;
    dig(address, &["2.example"]).await;
    dig(address, &["none.example"]).await;
    let before = upstream.count();
    let again = digest(&dig(address, &["2.EXAMPLE"]).await);
    let ttl: u32 = again.lines().nth(1).unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    assert!(again.contains("2.EXAMPLE."), "the case of this query, not of the first: {again}");
    assert!((20..=30).contains(&ttl), "{again}");
    assert!(digest(&dig(address, &["none.example"]).await).starts_with("NXDOMAIN"));
    assert_eq!(upstream.count(), before, "the second time nobody was asked");
    dig(address, &["2.example", "AAAA"]).await;
    assert_eq!(upstream.count(), before + 1, "another type is another question");
}

#[tokio::test]
async fn a_dead_upstream_fails_at_once_and_a_living_one_is_tried_next() {
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let environment = environment(cluster());
    let (mut server, address) = start(&forwarding_to(&closed.to_string()), &environment).await;
    let begin = Instant::now();
    assert_eq!(digest(&dig(address, &["2.example"]).await), "SERVFAIL\n");
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(digest(&dig(address, &["web.default.svc.cluster.local"]).await).contains("10.96.0.20"));

    let upstream = Upstream::start(addresses).await;
    let both = format!("{closed} {} {{\n policy sequential\n }}", upstream.address);
    server.replace(Program::new(&forwarding_to(&both), &environment).unwrap()).await.unwrap();
    for name in ["2.example", "3.example", "4.example"] {
        assert!(digest(&dig(address, &[name]).await).starts_with("NOERROR"), "{name}");
    }
}

#[tokio::test]
async fn a_missing_resolv_conf_fails_at_once_and_hurts_nobody_else() {
    let (_server, address) = start(&stock_corefile("/nonexistent/resolv.conf"), &environment(cluster())).await;
    let begin = Instant::now();
    assert_eq!(digest(&dig(address, &["example.org"]).await), "SERVFAIL\n");
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    let alias = digest(&dig(address, &["ext.default.svc.cluster.local"]).await);
    assert_eq!(alias, "NOERROR aa\next.default.svc.cluster.local. 30 IN CNAME www.westos.org.\n");
}

#[tokio::test]
async fn a_loop_is_found_and_broken() {
    let environment = environment(cluster());
    let (mut server, address) = start(&forwarding_to("/nonexistent/resolv.conf"), &environment).await;
    server.replace(Program::new(&forwarding_to(&address.to_string()), &environment).unwrap()).await.unwrap();
    // The probe goes out at once; had it not been found, the first query would go round until it times out.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begin = Instant::now();
    assert_eq!(digest(&dig(address, &["example.org"]).await), "SERVFAIL\n");
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(digest(&dig(address, &["web.default.svc.cluster.local"]).await).contains("10.96.0.20"));
}

#[tokio::test]
async fn too_many_at_once_are_refused_and_exceptions_are_not_forwarded() {
    let (arrived, mut slow_arrives) = tokio::sync::mpsc::unbounded_channel();
    let upstream = Upstream::start(move |query| {
        if query.name.first() == "slow" {
            arrived.send(()).unwrap();
            return None;
        }
        addresses(query)
    })
    .await;
    let options = format!("{} {{\n max_concurrent 1\n except internal.test\n }}", upstream.address);
    let (_server, address) = start(&forwarding_to(&options), &environment(cluster())).await;
    assert_eq!(digest(&dig(address, &["2.internal.test"]).await), "REFUSED\n");
    let slow = tokio::spawn(async move { dig(address, &["slow.example"]).await });
    slow_arrives.recv().await.unwrap();
    assert_eq!(digest(&dig(address, &["1.example"]).await), "REFUSED\n", "the one place is taken");
    slow.abort();
}
