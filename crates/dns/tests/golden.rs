//! `golden/records.txt` is the specification as questions and answers; real `dig` asks them over UDP and over TCP.
//! After a wanted change: `UPDATE_GOLDEN=1 cargo test -p podwire-dns --test golden`, and read the difference.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{fs, path::Path};

use common::{Upstream, cluster, dig, digest, environment, start, stock_corefile};
use domain::{
    base::iana::{Rcode, Rtype},
    rdata::{A, Cname},
};
use podwire_dns::message::{Data, DnsName, Query, Reply, record};

/// The world outside: www.westos.org is an alias, nothing else exists.
fn outside(query: &Query) -> Option<Reply> {
    let is = |text: &str| query.name == DnsName::bytes_from_str(text).unwrap();
    let real = DnsName::bytes_from_str("web.westos.org").unwrap();
    let mut reply = Reply { recursion_available: true, ..Reply::default() };
    if !is("www.westos.org") {
        reply.rcode = Rcode::NXDOMAIN;
    } else {
        reply.answer.push(record(query.name.clone(), 25, Data::Cname(Cname::new(real.clone()))));
        if query.qtype == Rtype::A {
            reply.answer.push(record(real, 20, Data::A(A::new([192, 0, 2, 80].into()))));
        }
    }
    Some(reply)
}

#[tokio::test]
async fn every_question_is_answered_as_written() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/records.txt");
    let golden = fs::read_to_string(&path).unwrap();
    let upstream = Upstream::start(outside).await;
    let environment = environment(cluster());
    // Without the cache, whose TTLs go down while the test runs.
    let corefile = stock_corefile(&upstream.address.to_string()).replace("cache 30", "cache 30 nothing.test");
    let (_server, address) = start(&corefile, &environment).await;
    let mut over_udp = String::new();
    let mut over_tcp = String::new();
    for paragraph in golden.split_inclusive("\n\n") {
        let comments: String = paragraph.split_inclusive('\n').filter(|line| line.starts_with('#')).collect();
        let Some(question) = paragraph.lines().find_map(|line| line.strip_prefix("? ")) else {
            [&mut over_udp, &mut over_tcp].into_iter().for_each(|text| text.push_str(paragraph));
            continue;
        };
        for (text, transport) in [(&mut over_udp, "+notcp"), (&mut over_tcp, "+tcp")] {
            let mut args: Vec<&str> = question.split(' ').collect();
            args.push(transport);
            let answer = digest(&dig(address, &args).await);
            text.push_str(&format!("{comments}? {question}\n{answer}\n"));
        }
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, over_udp.trim_end().to_owned() + "\n").unwrap();
    } else {
        assert_same("udp", &golden, &over_udp);
    }
    assert_same("tcp", &over_udp, &over_tcp);
}

/// Compares paragraph by paragraph, so that a failure shows the question.
fn assert_same(transport: &str, wanted: &str, found: &str) {
    for (wanted, found) in wanted.trim_end().split("\n\n").zip(found.trim_end().split("\n\n")) {
        assert_eq!(found, wanted, "over {transport}");
    }
    assert_eq!(found.trim_end(), wanted.trim_end(), "over {transport}");
}
