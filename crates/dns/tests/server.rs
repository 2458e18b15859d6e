//! The sockets: sizes, framing, pages, reload, draining.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use common::{LOCALHOST, cluster, dig, digest, environment, get, service, slice, start, stock_corefile};
use podwire_dns::{
    program::{Environment, Program},
    server::Server,
};

const NO_UPSTREAM: &str = "/nonexistent/resolv.conf";

fn page(server: &Server) -> SocketAddr {
    // health, ready and prometheus share the address 127.0.0.1:0 of the Corefile.
    let pages: Vec<_> = server.pages().collect();
    assert_eq!(pages.len(), 1);
    pages[0].1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servfail_and_not_ready_until_the_cluster_is_known() {
    let environment = Environment::new(LOCALHOST);
    let (server, address) = start(&stock_corefile(NO_UPSTREAM), &environment).await;
    assert_eq!(digest(&dig(address, &["web.default.svc.cluster.local"]).await), "SERVFAIL\n");
    assert!(get(page(&server), "/ready").await.starts_with("HTTP/1.1 503"));
    assert!(get(page(&server), "/health").await.starts_with("HTTP/1.1 200"));
    environment.cluster.update(1, |view| *view = cluster());
    assert_eq!(digest(&dig(address, &["web.default.svc.cluster.local"]).await), "SERVFAIL\n", "not all is known");
    environment.cluster.set_synced();
    assert!(digest(&dig(address, &["web.default.svc.cluster.local"]).await).contains("10.96.0.20"));
    assert!(get(page(&server), "/ready").await.starts_with("HTTP/1.1 200"));

    let metrics = get(page(&server), "/metrics").await;
    for wanted in [
        r#"coredns_dns_requests_total{server="dns://:0",zone=".",proto="udp",family="1",type="A"} 3"#,
        r#"coredns_dns_responses_total{server="dns://:0",zone=".",rcode="SERVFAIL",plugin="kubernetes"} 2"#,
        r#"coredns_dns_responses_total{server="dns://:0",zone=".",rcode="NOERROR",plugin="kubernetes"} 1"#,
    ] {
        assert!(metrics.contains(wanted), "{wanted}\n{metrics}");
    }

    server.drain().await;
    assert!(get(page(&server), "/ready").await.starts_with("HTTP/1.1 503"), "a lame duck sends clients elsewhere");
    assert!(
        digest(&dig(address, &["web.default.svc.cluster.local"]).await).contains("10.96.0.20"),
        "and still answers"
    );
}

#[tokio::test]
async fn answers_fit_the_client_and_tcp_has_them_whole() {
    let environment = environment(cluster());
    let endpoints: Vec<String> = (1..=150).map(|n| format!("10.244.3.{n}")).collect();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    environment.cluster.update(42, |view| {
        view.apply_service(service("default/many", &[], &["web/tcp/80"]));
        view.apply_slice(slice("default/many-1", "many", &["web/tcp/80"], &endpoints));
    });
    let (_server, address) = start(&stock_corefile(NO_UPSTREAM), &environment).await;
    let name = "many.default.svc.cluster.local";
    for (options, at_most) in [(&["+noedns"][..], 512), (&["+bufsize=1232"], 1232), (&["+bufsize=100"], 512)] {
        let mut args = vec![name, "+ignore", "+stats"];
        args.extend(options);
        let output = dig(address, &args).await;
        let size: usize = output.split("rcvd: ").nth(1).unwrap().trim().parse().unwrap();
        assert!(size <= at_most && size > at_most - 100, "{options:?}: {size} bytes");
        assert!(digest(&output).starts_with("NOERROR aa tc"), "{output}");
    }
    let whole = |output: String| digest(&output).lines().skip(1).count();
    assert_eq!(whole(dig(address, &[name, "+bufsize=4096", "+ignore"]).await), 150, "2,400 bytes fit");
    assert_eq!(whole(dig(address, &[name, "+tcp"]).await), 150);
    assert_eq!(whole(dig(address, &[name]).await), 150, "dig comes back over TCP by itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_messages_get_the_right_refusal() {
    let (_server, address) = start(&stock_corefile(NO_UPSTREAM), &environment(cluster())).await;
    let web = "web.default.svc.cluster.local";
    assert_eq!(digest(&dig(address, &[web, "+edns=1", "+noednsneg"]).await), "BADVERS\n");
    assert_eq!(digest(&dig(address, &[web, "+opcode=notify"]).await), "NOTIMP\n");
    let transfer = dig(address, &["cluster.local", "AXFR"]).await;
    assert!(transfer.contains("Transfer failed"), "{transfer}");

    let ask = |packet: &[u8]| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket.send_to(packet, address).unwrap();
        let mut answer = [0; 512];
        socket.recv(&mut answer).ok().map(|length| answer[..length].to_vec())
    };
    let mut header = [0x12, 0x34, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(ask(&header).unwrap(), [0x12, 0x34, 0x81, 1, 0, 0, 0, 0, 0, 0, 0, 0], "no question: FORMERR");
    header[5] = 1;
    assert_eq!(ask(&header).unwrap()[3] & 15, 1, "a question that is not there: FORMERR");
    header[2] = 0x81;
    assert_eq!(ask(&header), None, "an answer is not answered");
    assert_eq!(ask(&header[..11]), None, "nor is half a header");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_queries_on_one_connection_and_split_frames() {
    let (_server, address) = start(&stock_corefile(NO_UPSTREAM), &environment(cluster())).await;
    let question = b"\x03web\x07default\x03svc\x07cluster\x05local\0\0\x01\0\x01";
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for id in 0..20_u8 {
        let mut frame = vec![0, 12 + question.len() as u8, 0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        frame.extend(question);
        let (first, second) = frame.split_at(usize::from(id) % frame.len());
        stream.write_all(first).unwrap();
        stream.write_all(second).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..2], [0, id]);
        assert_eq!(answer[answer.len() - 4..], [10, 96, 0, 20]);
    }
}

#[tokio::test]
async fn reload_keeps_ports_opens_new_ones_and_survives_a_port_that_is_taken() {
    let environment = environment(cluster());
    let (mut server, address) = start(".:0 {\n kubernetes cluster.local\n}\n", &environment).await;
    let web = "web.default.svc.cluster.local";
    assert!(digest(&dig(address, &[web]).await).contains(" 5 IN A"));

    let next = Program::new(".:0 {\n kubernetes cluster.local {\n ttl 77\n }\n}\n", &environment).unwrap();
    server.replace(next).await.unwrap();
    assert_eq!(server.addresses().next(), Some(address), "the same port");
    assert!(digest(&dig(address, &[web]).await).contains(" 77 IN A"));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let broken = Program::new(&format!("cluster.local:{port} {{\n kubernetes\n}}\n"), &environment).unwrap();
    let error = server.replace(broken).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot listen on tcp 127.0.0.1:{port}: ")), "{error}");
    assert!(digest(&dig(address, &[web]).await).contains(" 77 IN A"), "the running program goes on");

    drop(taken);
    let moved = Program::new(&format!("cluster.local:{port} {{\n kubernetes\n}}\n"), &environment).unwrap();
    server.replace(moved).await.unwrap();
    let new = server.addresses().next().unwrap();
    assert_eq!(new.port(), port);
    assert!(digest(&dig(new, &[web]).await).contains(" 5 IN A"));
    assert!(digest(&dig(address, &[web]).await).starts_with("no answer"), "the old port is closed");
}

#[tokio::test]
async fn the_nearest_server_block_answers() {
    let corefile = "
        cluster.local:0 { \n kubernetes \n }
        default.svc.cluster.local:0 {\n kubernetes cluster.local {\n ttl 9 \n } \n }
        example.org:0 { \n errors \n }";
    let (_server, address) = start(corefile, &environment(cluster())).await;
    assert!(digest(&dig(address, &["web.default.svc.cluster.local"]).await).contains(" 9 IN A"));
    assert!(digest(&dig(address, &["kube-dns.kube-system.svc.cluster.local"]).await).contains(" 5 IN A"));
    assert_eq!(digest(&dig(address, &["example.org"]).await), "REFUSED\n", "no plugin answers");
    assert_eq!(digest(&dig(address, &["example.com"]).await), "REFUSED\n", "no server block");
}

#[tokio::test]
async fn each_bound_address_has_its_own_blocks() {
    let corefile = "
        .:0 {\n bind 127.0.0.2 127.0.0.3\n kubernetes cluster.local\n }
        .:0 {\n bind 127.0.0.4\n errors\n }";
    let (server, first) = start(corefile, &environment(cluster())).await;
    let addresses: Vec<_> = server.addresses().collect();
    assert_eq!(
        addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>(),
        ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    );
    assert!(digest(&dig(first, &["web.default.svc.cluster.local"]).await).contains("10.96.0.20"));
    assert!(digest(&dig(addresses[1], &["web.default.svc.cluster.local"]).await).contains("10.96.0.20"));
    assert_eq!(digest(&dig(addresses[2], &["web.default.svc.cluster.local"]).await), "REFUSED\n");
}

#[tokio::test]
async fn verified_pods_and_chosen_namespaces() {
    let corefile = ".:0 {\n kubernetes cluster.local {\n pods verified\n namespaces default\n }\n}\n";
    let (_server, address) = start(corefile, &environment(cluster())).await;
    let ask = async |name: &str| digest(&dig(address, &[name]).await);
    assert!(ask("10-244-0-5.default.pod.cluster.local").await.starts_with("NOERROR"));
    assert!(ask("10-244-0-6.default.pod.cluster.local").await.starts_with("NXDOMAIN"));
    assert!(ask("10-244-0-5.kube-system.pod.cluster.local").await.starts_with("NXDOMAIN"));
    assert!(ask("kube-dns.kube-system.svc.cluster.local").await.starts_with("NXDOMAIN"));
}
