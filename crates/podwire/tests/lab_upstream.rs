//! Names outside the cluster: through the relay to an upstream on the host, or a quick and clear failure.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod lab;

use std::{
    net::{Ipv4Addr, UdpSocket},
    thread,
};

use lab::Lab;

/// A loopback address of this test's own; port 53 of it is free.
const UPSTREAM: Ipv4Addr = Ipv4Addr::new(127, 53, 25, 2);

/// Answers every question with 192.0.2.7, until the test process ends.
fn serve_upstream() {
    let socket = UdpSocket::bind((UPSTREAM, 53)).unwrap();
    thread::spawn(move || {
        let mut message = [0; 512];
        while let Ok((length, asker)) = socket.recv_from(&mut message) {
            let name_length = message[12..length].iter().position(|byte| *byte == 0).unwrap();
            let question = &message[12..12 + name_length + 5];
            let mut answer = message[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            answer.extend(question);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
            socket.send_to(&answer, asker).unwrap();
        }
    });
}

#[test]
fn with_an_upstream_names_outside_the_cluster_resolve_from_nodes_and_pods() {
    let Some(lab) = Lab::new("upstream") else { return };
    serve_upstream();
    lab.up(&["--nodes", "1", "--upstream-dns", &UPSTREAM.to_string()]);
    for server in ["@172.25.2.254", "@10.96.0.10"] {
        let (answered, text) = lab.exec("node1", &["dig", "+short", "+time=3", server, "www.example.org"]);
        assert!(answered && text.trim() == "192.0.2.7", "{server}: {text}");
    }
}

#[test]
fn without_an_upstream_they_fail_before_the_asker_gives_up() {
    let Some(lab) = Lab::new("noupstream") else { return };
    lab.up(&["--nodes", "1"]);
    let (_, text) = lab.exec("node1", &["dig", "+time=5", "+tries=1", "@10.96.0.10", "www.example.org"]);
    assert!(text.contains("status: SERVFAIL"), "{text}");
}
