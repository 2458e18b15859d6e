//! Directives that answer or change answers themselves, each asked with `dig` over UDP and over TCP.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{fs, net::SocketAddr, time::Duration};

use common::{Folder, cluster, dig, digest, environment, get, start};

/// Asks over UDP and TCP, which must say the same. The record's words, without code and flags where there are records.
async fn ask(address: SocketAddr, question: &str) -> String {
    let args: Vec<&str> = question.split(' ').collect();
    let udp = digest(&dig(address, &args).await);
    let tcp = digest(&dig(address, &[&args[..], &["+tcp"]].concat()).await);
    assert_eq!(udp, tcp, "{question}");
    udp
}

/// Asks until the answer is as wanted; the last one, if it never is.
async fn ask_until(address: SocketAddr, question: &str, wanted: &str) -> String {
    let mut answer = String::new();
    for _ in 0..300 {
        answer = digest(&dig(address, &question.split(' ').collect::<Vec<_>>()).await);
        if answer == wanted {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    answer
}

async fn assert_answers(address: SocketAddr, table: &[(&str, &str)]) {
    for (question, wanted) in table {
        assert_eq!(ask(address, question).await, *wanted, "{question}");
    }
}

#[tokio::test]
async fn hosts_answers_from_file_and_corefile() {
    let folder = Folder::new();
    let file = folder.write("hosts", "10.1.0.1 one.example.org one.test # x\n10.1.0.2 one.example.org\nfd00::1 six.example.org\n10.1.0.3 *.wild.example.org\n");
    let corefile = format!(
        ".:0 {{\n prometheus 127.0.0.1:0\n hosts {file} example.org {{\n 10.1.0.4 Inline.example.org two.wild.example.org\n ttl 77\n fallthrough below.example.org\n }}\n}}"
    );
    let (server, address) = start(&corefile, &environment(cluster())).await;
    assert_answers(
        address,
        &[
            ("ONE.example.org", "NOERROR aa\nONE.example.org. 77 IN A 10.1.0.1\nONE.example.org. 77 IN A 10.1.0.2\n"),
            ("one.example.org AAAA", "NOERROR aa\n"),
            ("one.example.org TXT", "NOERROR aa\n"),
            ("six.example.org AAAA", "NOERROR aa\nsix.example.org. 77 IN AAAA fd00::1\n"),
            ("inline.example.org", "NOERROR aa\ninline.example.org. 77 IN A 10.1.0.4\n"),
            ("a.wild.example.org", "NOERROR aa\na.wild.example.org. 77 IN A 10.1.0.3\n"),
            ("two.wild.example.org", "NOERROR aa\ntwo.wild.example.org. 77 IN A 10.1.0.4\n"),
            ("b.a.wild.example.org", "SERVFAIL\n"),
            ("wild.example.org", "SERVFAIL\n"),
            ("none.example.org", "SERVFAIL\n"),
            ("x.below.example.org", "REFUSED\n"),
            ("one.test", "REFUSED\n"),
            ("-x 10.1.0.1", "NOERROR aa\n1.0.1.10.in-addr.arpa. 77 IN PTR one.example.org.\n"),
            ("-x 10.1.0.3", "REFUSED\n"),
            ("-x fd00::1", "NOERROR aa\n1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa. 77 IN PTR six.example.org.\n"),
        ],
    )
    .await;
    let metrics = get(server.pages().next().unwrap().1, "/metrics").await;
    assert!(metrics.contains("coredns_hosts_entries 11\n"), "{metrics}");
    assert!(metrics.contains("coredns_hosts_reload_timestamp_seconds 1"), "{metrics}");
}

#[tokio::test]
async fn hosts_follows_its_file() {
    let folder = Folder::new();
    let file = folder.path("hosts").display().to_string();
    let corefile = format!(
        ".:0 {{\n hosts {file} {{\n 10.2.0.9 always\n reload 10ms\n no_reverse\n fallthrough\n fallthrough_unsupported\n }}\n}}"
    );
    let (_server, address) = start(&corefile, &environment(cluster())).await;
    assert_eq!(ask(address, "name").await, "REFUSED\n");
    assert_eq!(ask(address, "always TXT").await, "REFUSED\n");
    assert_eq!(ask(address, "always AAAA").await, "NOERROR aa\n");
    for number in [1, 22, 3] {
        folder.write("hosts", &format!("10.2.0.{number} name\n"));
        let wanted = format!("NOERROR aa\nname. 3600 IN A 10.2.0.{number}\n");
        assert_eq!(ask_until(address, "name", &wanted).await, wanted);
        assert_eq!(ask(address, &format!("-x 10.2.0.{number}")).await, "REFUSED\n");
    }
    fs::remove_file(&file).unwrap();
    assert_eq!(ask_until(address, "name", "REFUSED\n").await, "REFUSED\n");
    assert_eq!(ask(address, "always").await, "NOERROR aa\nalways. 3600 IN A 10.2.0.9\n");
}

#[tokio::test]
async fn any_is_answered_briefly_and_bufsize_limits() {
    let folder = Folder::new();
    let many: String = (0..200).map(|n| format!("10.3.0.{n} many\n")).collect();
    let corefile = format!(".:0 {{\n any\n bufsize 700\n hosts {}\n}}", folder.write("hosts", &many));
    let (_server, address) = start(&corefile, &environment(cluster())).await;
    let wanted = "NOERROR aa\nmany. 8482 IN HINFO \"ANY obsoleted\" \"See RFC 8482\"\n";
    assert_eq!(digest(&dig(address, &["many", "ANY", "+notcp"]).await), wanted);
    assert_eq!(digest(&dig(address, &["many", "ANY", "+tcp"]).await), wanted);
    for (options, size) in [("+bufsize=4096", 700), ("+bufsize=600", 600), ("+noedns", 512)] {
        let output = dig(address, &["many", "+ignore", "+stats", options]).await;
        let found: usize = output.split("rcvd: ").nth(1).unwrap().trim().parse().unwrap();
        assert!(found <= size && found + 20 > size, "{options}: {found}");
        assert!(digest(&output).starts_with("NOERROR aa tc\n"), "{output}");
    }
    assert_eq!(digest(&dig(address, &["many", "+tcp"]).await).lines().count(), 201);
}
