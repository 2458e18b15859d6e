//! Upstream servers that misbehave: the client hears SERVFAIL before it gives up, and an answer as soon as there is one.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{LOCALHOST, Upstream, arrival, cluster, dig, digest, environment, start};
use domain::{
    base::iana::{Rcode, Rtype},
    rdata::A,
};
use podwire_dns::message::{Data, Query, Reply, Transport, record};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

fn forwarding(to: &str, options: &str) -> String {
    format!(".:0 {{\n errors\n kubernetes cluster.local\n forward . {to} {{\n {options}\n }}\n cache 30\n}}\n")
}

fn one_address(query: &Query) -> Reply {
    let data = Data::A(A::new([192, 0, 2, 1].into()));
    Reply { answer: vec![record(query.name.clone(), 300, data)], ..Reply::default() }
}

fn honest(packet: &[u8]) -> Vec<u8> {
    let query = Query::parse(packet, arrival(Transport::Udp)).unwrap();
    one_address(&query).encode(&query, Vec::new())
}

/// The ways to misbehave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Silent,
    Garbage,
    WrongId,
    WrongQuestion,
    WrongSource,
    CompressionLoop,
    AlwaysTruncated,
    ClosesHalfWay,
}

const FAULTS: [Fault; 8] = [
    Fault::Silent,
    Fault::Garbage,
    Fault::WrongId,
    Fault::WrongQuestion,
    Fault::WrongSource,
    Fault::CompressionLoop,
    Fault::AlwaysTruncated,
    Fault::ClosesHalfWay,
];

impl Fault {
    fn answer(self, packet: &[u8]) -> Option<Vec<u8>> {
        let mut answer = honest(packet);
        match self {
            Self::Silent => return None,
            Self::Garbage => answer = vec![0xff; 60],
            Self::WrongId => answer[0] ^= 1,
            Self::WrongQuestion => answer[13] ^= 1,
            Self::CompressionLoop => {
                // The owner of the first record points to itself.
                let question = packet[12..].iter().position(|byte| *byte == 0).unwrap() + 12 + 5;
                answer.truncate(question);
                answer.extend([0xc0, u8::try_from(question).unwrap(), 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 1]);
            }
            Self::AlwaysTruncated | Self::ClosesHalfWay => answer[2] |= 2,
            Self::WrongSource => {}
        }
        Some(answer)
    }
}

struct Liar {
    address: SocketAddr,
    honest: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl Liar {
    async fn start(fault: Fault) -> Self {
        let tcp = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        let other = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
        let is_honest = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        let switch = is_honest.clone();
        tasks.spawn(async move {
            let mut packet = [0; 4096];
            loop {
                let (length, client) = udp.recv_from(&mut packet).await.unwrap();
                let (packet, is_honest) = (&packet[..length], switch.load(Ordering::SeqCst));
                let answer = if is_honest { Some(honest(packet)) } else { fault.answer(packet) };
                let socket = if fault == Fault::WrongSource && !is_honest { &other } else { &udp };
                if let Some(answer) = answer {
                    let _ = socket.send_to(&answer, client).await;
                }
            }
        });
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let mut packet = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut packet).await.unwrap();
                let answer = fault.answer(&packet).unwrap_or_default();
                let sent = if fault == Fault::ClosesHalfWay { answer.len() / 2 } else { answer.len() };
                let _ = stream.write_u16(u16::try_from(answer.len()).unwrap()).await;
                let _ = stream.write_all(&answer[..sent]).await;
            }
        });
        Self { address, honest: is_honest, _tasks: tasks }
    }
}

/// Asks until there is an answer.
async fn recovers(address: SocketAddr, what: &str) {
    let wait = async {
        let mut number = 0;
        while !digest(&dig(address, &[&format!("again-{number}.example")]).await).contains("192.0.2.1") {
            number += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(40), wait).await.unwrap_or_else(|_| panic!("{what}: never again"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn misbehaving_upstreams_give_servfail_before_the_client_gives_up_and_recover() {
    let mut cases = JoinSet::new();
    for fault in FAULTS {
        cases.spawn(async move {
            let liar = Liar::start(fault).await;
            let corefile = forwarding(&liar.address.to_string(), "health_check 50ms");
            let (_server, address) = start(&corefile, &environment(cluster())).await;
            // Five seconds are what resolvers wait; dig reports no answer after that.
            for name in ["one.example", "two.example"] {
                let output = dig(address, &[name, "+time=5"]).await;
                assert_eq!(digest(&output), "SERVFAIL\n", "{fault:?}");
            }
            let own = dig(address, &["web.default.svc.cluster.local"]).await;
            assert!(digest(&own).contains("10.96.0.20"), "{fault:?}");
            liar.honest.store(true, Ordering::SeqCst);
            recovers(address, &format!("{fault:?}")).await;
        });
    }
    cases.join_all().await;
}

#[tokio::test]
async fn a_loop_without_the_loop_plugin_ends_in_servfail() {
    let environment = environment(cluster());
    let (mut server, address) = start(&forwarding("/nonexistent/resolv.conf", ""), &environment).await;
    let looping = forwarding(&address.to_string(), "");
    server.replace(podwire_dns::program::Program::new(&looping, &environment).unwrap()).await.unwrap();
    assert_eq!(digest(&dig(address, &["example.org", "+time=5"]).await), "SERVFAIL\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_that_ends_is_forgotten() {
    let relay = Arc::new(UdpSocket::bind((LOCALHOST, 0)).await.unwrap());
    let (to, looping) = (relay.local_addr().unwrap(), Arc::new(AtomicBool::new(true)));
    let (know, known) = tokio::sync::watch::channel(None::<SocketAddr>);
    let switch = looping.clone();
    let task = tokio::spawn(async move {
        let mut packet = [0; 512];
        loop {
            let (length, client) = relay.recv_from(&mut packet).await.unwrap();
            let packet = packet[..length].to_vec();
            if !switch.load(Ordering::SeqCst) {
                relay.send_to(&honest(&packet), client).await.unwrap();
                continue;
            }
            let (relay, mut known) = (relay.clone(), known.clone());
            tokio::spawn(async move {
                let back = known.wait_for(Option::is_some).await.unwrap().unwrap();
                let socket = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
                socket.send_to(&packet, back).await.unwrap();
                let mut answer = [0; 512];
                let length = socket.recv(&mut answer).await.unwrap();
                relay.send_to(&answer[..length], client).await.unwrap();
            });
        }
    });
    let corefile = forwarding(&to.to_string(), "").replace(" cache 30", " cache 30\n loop");
    let (_server, address) = start(&corefile, &environment(cluster())).await;
    know.send(Some(address)).unwrap();
    assert_eq!(digest(&dig(address, &["example.org", "+time=5"]).await), "SERVFAIL\n");
    looping.store(false, Ordering::SeqCst);
    recovers(address, "loop").await;
    task.abort();
}

#[tokio::test]
async fn a_dead_upstream_is_left_alone_and_asked_again_when_its_checks_succeed() {
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let environment = environment(cluster());
    let options = "health_check 20ms no_rec domain check.example\n failfast_all_unhealthy_upstreams";
    let (_server, address) = start(&forwarding(&closed.to_string(), options), &environment).await;
    let broken = async {
        let mut number = 0;
        while environment.metrics.encode().contains("coredns_forward_healthcheck_broken_total 0") {
            assert_eq!(digest(&dig(address, &[&format!("{number}.example")]).await), "SERVFAIL\n");
            number += 1;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), broken).await.expect("it is never found to be down");
    let checks = Arc::new(AtomicUsize::new(0));
    let socket = UdpSocket::bind(closed).await.unwrap();
    let seen = checks.clone();
    let back = tokio::spawn(async move {
        let mut packet = [0; 512];
        loop {
            let (length, client) = socket.recv_from(&mut packet).await.unwrap();
            let query = Query::parse(&packet[..length], arrival(Transport::Udp)).unwrap();
            if query.qtype == Rtype::NS && query.name.to_string() == "check.example" && !query.recursion_desired {
                seen.fetch_add(1, Ordering::SeqCst);
            }
            socket.send_to(&honest(&packet[..length]), client).await.unwrap();
        }
    });
    recovers(address, "dead").await;
    assert!(checks.load(Ordering::SeqCst) > 0);
    back.abort();
}

#[tokio::test]
async fn failover_asks_the_next_upstream_and_next_the_next_directive() {
    let refusing = Upstream::start(|_| Some(Reply::code(Rcode::REFUSED, ""))).await;
    let denying = Upstream::start(|_| Some(Reply::code(Rcode::NXDOMAIN, ""))).await;
    let answering = Upstream::start(|query| Some(one_address(query))).await;
    let first = format!("{} {}", refusing.address, denying.address);
    let corefile = format!(
        ".:0 {{\n forward . {first} {{\n policy sequential\n failover REFUSED\n next nxdomain\n }}\n forward . {}\n}}\n",
        answering.address
    );
    let (_server, address) = start(&corefile, &environment(cluster())).await;
    assert!(digest(&dig(address, &["www.example"]).await).contains("192.0.2.1"));
    assert_eq!((refusing.count(), denying.count(), answering.count()), (1, 1, 1));
    let corefile = forwarding(&refusing.address.to_string(), "failover REFUSED SERVFAIL");
    let (_server, address) = start(&corefile, &environment(cluster())).await;
    assert_eq!(digest(&dig(address, &["www.example"]).await), "REFUSED\n", "the last answer, where all refuse");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_slow_queries_leaves_room_for_other_clients() {
    let (arrived, mut slow) = tokio::sync::mpsc::unbounded_channel();
    let upstream = Upstream::start(move |query| match query.name.first().to_string().starts_with("slow") {
        true => {
            let _ = arrived.send(());
            None
        }
        false => Some(one_address(query)),
    })
    .await;
    let corefile = forwarding(&upstream.address.to_string(), "max_concurrent 40");
    let environment = environment(cluster());
    let (_server, address) = start(&corefile, &environment).await;
    let flood = UdpSocket::bind("127.0.0.3:0").await.unwrap();
    for number in 0..200_u8 {
        let mut packet = vec![0, number, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 7];
        packet.extend(format!("slow{number:03}").bytes());
        packet.extend(b"\0\0\x01\0\x01");
        flood.send_to(&packet, address).await.unwrap();
    }
    for _ in 0..21 {
        slow.recv().await.unwrap();
    }
    let output = dig(address, &["fast.example", "-b", "127.0.0.2"]).await;
    assert!(digest(&output).contains("192.0.2.1"), "{output}");
    let mut answer = [0; 512];
    flood.recv(&mut answer).await.unwrap();
    assert_eq!(answer[3] & 15, 5, "the flood is refused");
}

/// Answers framed queries on a stream until `count` of them, then closes it.
async fn serve_stream(mut stream: impl AsyncRead + AsyncWrite + Unpin, count: usize) {
    for _ in 0..count {
        let Ok(length) = stream.read_u16().await else { return };
        let mut packet = vec![0; usize::from(length)];
        stream.read_exact(&mut packet).await.unwrap();
        let answer = honest(&packet);
        stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
        stream.write_all(&answer).await.unwrap();
        stream.flush().await.unwrap();
    }
}

#[tokio::test]
async fn connections_are_used_again_and_replaced_when_the_upstream_closed_them() {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let counter = accepted.clone();
    let tasks = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve_stream(stream, 3));
        }
    });
    let environment = environment(cluster());
    let (_server, address) = start(&forwarding(&upstream.to_string(), "force_tcp\n expire 1h"), &environment).await;
    for number in 0..6 {
        let output = dig(address, &[&format!("{number}.example")]).await;
        assert!(digest(&output).contains("192.0.2.1"), "{number}: {output}");
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 2, "three queries on each");
    let hits =
        format!("coredns_proxy_conn_cache_hits_total{{proxy_name=\"forward\",to=\"{upstream}\",proto=\"tcp\"}} 4");
    assert!(environment.metrics.encode().contains(&hits), "{}", environment.metrics.encode());
    tasks.abort();
}

#[tokio::test]
async fn dns_over_tls_trusts_only_the_named_server() {
    let pair = rcgen::generate_simple_self_signed(["dns.test".to_owned()]).unwrap();
    let folder = std::env::temp_dir().join(format!("podwire-dot-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let ca = folder.join("ca.pem");
    std::fs::write(&ca, pair.cert.pem()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.signing_key.serialize_pem().as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![pair.cert.der().clone()], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let tasks = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve_stream(stream, usize::MAX).await;
                }
            });
        }
    });
    let ca = ca.display();
    let port = upstream.port();
    for (to, options, trusted) in [
        (format!("tls://{upstream}"), format!("tls {ca}\n tls_servername dns.test"), true),
        (format!("tls://127.0.0.1%dns.test:{port}"), format!("tls {ca}"), true),
        (format!("tls://{upstream}"), format!("tls {ca}\n tls_servername other.test"), false),
        (format!("tls://{upstream}"), format!("tls {ca}"), false),
    ] {
        let environment = environment(cluster());
        let (_server, address) = start(&forwarding(&to, &options), &environment).await;
        for name in ["one.example", "two.example"] {
            let output = digest(&dig(address, &[name, "+time=5"]).await);
            assert_eq!(output.contains("192.0.2.1"), trusted, "{to} {options}: {output}");
            assert!(trusted || output == "SERVFAIL\n", "{output}");
        }
        let reused = format!("to=\"{upstream}\",proto=\"tcp-tls\"}} {}", u8::from(trusted));
        let metrics = environment.metrics.encode();
        let hits = metrics.lines().find(|line| line.starts_with("coredns_proxy_conn_cache_hits_total")).unwrap();
        assert!(hits.ends_with(&reused), "{hits}");
    }
    tasks.abort();
    std::fs::remove_dir_all(&folder).unwrap();
}
