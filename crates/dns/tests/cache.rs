//! The cache, asked in-process at times that the test decides.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use common::{Upstream, arrival, cluster, environment, external, service};
use domain::{
    base::{
        Serial, Ttl,
        iana::{Class, Rcode, Rtype},
    },
    rdata::{A, Soa},
};
use podwire_dns::{
    message::{Data, DnsName, Edns, Query, Reply, Transport, record},
    program::{Environment, Program},
    router::Router,
};

fn denial(query: &Query) -> Reply {
    let (root, seconds) = (DnsName::root_bytes(), Ttl::from_secs);
    let soa = Soa::new(root.clone(), root.clone(), Serial(1), seconds(1), seconds(1), seconds(1), seconds(600));
    let rcode = if query.qtype == Rtype::A { Rcode::NXDOMAIN } else { Rcode::NOERROR };
    Reply { rcode, authority: vec![record(root, 600, Data::Soa(soa))], ..Reply::default() }
}

/// What an upstream says: 0 nothing, 255 SERVFAIL, 254 NXDOMAIN, else an address that ends so, for 100 s.
struct World {
    says: Arc<AtomicU8>,
    upstream: Upstream,
    environment: Environment,
    router: Arc<Router>,
    begin: Instant,
}

impl World {
    async fn new(options: &str) -> Self {
        let says = Arc::new(AtomicU8::new(1));
        let word = says.clone();
        let upstream = Upstream::start(move |query| match word.load(Ordering::SeqCst) {
            0 => None,
            255 => Some(Reply::code(Rcode::SERVFAIL, "")),
            254 => Some(denial(query)),
            last => {
                let data = Data::A(A::new([192, 0, 2, last].into()));
                Some(Reply {
                    answer: vec![record(query.name.clone(), 100, data)],
                    authentic: true,
                    recursion_available: true,
                    ..Reply::default()
                })
            }
        })
        .await;
        let environment = environment(cluster());
        let corefile = format!(
            ".:0 {{\n kubernetes cluster.local {{\n fallthrough\n }}\n cache {options}\n forward . {} {{\n max_fails 0\n }}\n}}\n",
            upstream.address
        );
        let program = Program::new(&corefile, &environment).unwrap();
        let router = program.routers.into_values().next().unwrap();
        Self { says, upstream, environment, router, begin: Instant::now() }
    }

    fn say(&self, word: u8) {
        self.says.store(word, Ordering::SeqCst);
    }

    fn query(&self, name: &str, seconds: u64) -> Query {
        let mut arrival = arrival(Transport::Tcp);
        arrival.now = self.begin + Duration::from_secs(seconds);
        Query {
            id: 1,
            recursion_desired: true,
            checking_disabled: false,
            authentic_data: false,
            name: DnsName::bytes_from_str(name).unwrap(),
            qtype: Rtype::A,
            qclass: Class::IN,
            edns: None,
            options: Vec::new(),
            arrival,
            depth: 0,
        }
    }

    /// The answer to a query that comes so many seconds after the beginning: code, last byte of the address, TTL.
    async fn ask(&self, name: &str, seconds: u64) -> (Rcode, Option<u8>, Option<u32>) {
        let reply = self.router.resolve(&self.query(name, seconds)).await;
        let last = reply.answer.iter().find_map(|record| match record.data() {
            Data::A(address) => Some(address.addr().octets()[3]),
            _ => None,
        });
        (reply.rcode, last, reply.answer.first().map(|record| record.ttl().as_secs()))
    }

    /// Waits until the upstream was asked so often, and what it said has been kept.
    async fn asked(&self, times: usize) {
        let wait = async {
            while self.upstream.count() < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the upstream is not asked again");
    }

    /// Asks until the answer is the wanted address.
    async fn becomes(&self, name: &str, seconds: u64, wanted: u8) {
        let wait = async {
            while self.ask(name, seconds).await.1 != Some(wanted) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it never is");
    }

    fn counter(&self, name: &str) -> String {
        let text = self.environment.metrics.encode();
        let line = text.lines().find(|line| line.starts_with(name) && !line.ends_with(" 0"));
        line.and_then(|line| line.rsplit(' ').next()).unwrap_or("0").to_owned()
    }
}

const OK: Rcode = Rcode::NOERROR;

#[tokio::test]
async fn a_denial_from_upstream_never_hides_a_name_of_the_cluster() {
    let world = World::new("300").await;
    world.say(254);
    for name in ["late.default.svc.cluster.local", "alias.default.svc.cluster.local"] {
        assert_eq!(world.ask(name, 0).await.0, Rcode::NXDOMAIN, "{name}");
        assert_eq!(world.ask(name, 1).await.0, Rcode::NXDOMAIN, "{name}");
    }
    assert_eq!(world.upstream.count(), 2, "both are kept");
    world.say(7);
    world.environment.cluster.update(2, |view| {
        view.apply_service(service("default/late", &["10.96.0.99"], &["http/tcp/80"]));
        view.apply_service(external("default/alias", "outside.test"));
    });
    assert_eq!(world.ask("late.default.svc.cluster.local", 2).await, (OK, Some(99), Some(5)));
    let alias = world.ask("alias.default.svc.cluster.local", 2).await;
    assert_eq!((alias.0, alias.1), (OK, Some(7)), "also when it leads outside to what is not known yet");
}

#[tokio::test]
async fn who_asks_the_same_at_once_shares_one_upstream_query_and_keeps_its_spelling() {
    let world = World::new("").await;
    let spellings = ["www.example", "WWW.example", "www.EXAMPLE"];
    let queries: Vec<Query> = (0..60).map(|n| world.query(spellings[n % 3], 0)).collect();
    let replies = futures_util::future::join_all(queries.iter().map(|query| world.router.resolve(query))).await;
    assert_eq!(world.upstream.count(), 1);
    for (query, reply) in queries.iter().zip(replies) {
        assert_eq!(reply.answer[0].owner().to_string(), query.name.to_string());
    }
    assert_eq!(world.ask("wWw.example", 30).await, (OK, Some(1), Some(70)));
    assert_eq!(world.upstream.count(), 1);
}

#[tokio::test]
async fn do_and_cd_are_questions_of_their_own_and_ad_is_for_who_wants_it() {
    let world = World::new("").await;
    let plain = world.query("www.example", 0);
    let checking_disabled = Query { checking_disabled: true, ..plain.clone() };
    let dnssec = Query { edns: Some(Edns { udp_size: 1232, dnssec_ok: true }), ..plain.clone() };
    let wants_ad = Query { authentic_data: true, ..plain.clone() };
    for round in 0..2 {
        for (query, ad) in [(&plain, 0), (&checking_disabled, 0), (&dnssec, 0x20), (&wants_ad, 0x20)] {
            let answer = world.router.resolve(query).await.encode(query, Vec::new());
            assert_eq!(answer[3] & 0x20, ad, "round {round}, {query:?}");
        }
    }
    assert_eq!(world.upstream.count(), 3);
}

#[tokio::test]
async fn popular_answers_are_fetched_before_they_expire() {
    let world = World::new("{\n prefetch 2 60s 20%\n }").await;
    assert_eq!(world.ask("www.example", 0).await, (OK, Some(1), Some(100)));
    world.say(2);
    assert_eq!(world.ask("www.example", 50).await, (OK, Some(1), Some(50)));
    assert_eq!(world.ask("www.example", 85).await, (OK, Some(1), Some(15)), "and it is fetched in the background");
    world.asked(2).await;
    world.becomes("www.example", 86, 2).await;
    assert_eq!(world.ask("www.example", 120).await, (OK, Some(2), Some(65)));
    assert_eq!((world.upstream.count(), world.counter("coredns_cache_prefetch_total").as_str()), (2, "1"));
    assert_eq!(world.ask("rare.example", 0).await.1, Some(2));
    world.ask("rare.example", 10).await;
    world.ask("rare.example", 95).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(world.upstream.count(), 3, "a gap of more than 60 s: not popular");
}

#[tokio::test]
async fn stale_answers_are_served_while_the_upstream_fails() {
    let world = World::new("{\n serve_stale 1h immediate 30s\n servfail 5s\n }").await;
    world.ask("www.example", 0).await;
    world.say(255);
    assert_eq!(world.ask("www.example", 200).await, (OK, Some(1), Some(30)));
    world.asked(2).await;
    assert_eq!(world.ask("www.example", 201).await, (OK, Some(1), Some(30)), "the failure took nothing away");
    world.say(2);
    world.becomes("www.example", 203, 2).await;
    world.say(255);
    assert_eq!(world.ask("www.example", 4000).await.0, Rcode::SERVFAIL, "too old");
    assert_ne!(world.counter("coredns_cache_served_stale_total"), "0");
}

#[tokio::test]
async fn stale_answers_are_verified_first_where_that_is_wanted() {
    for options in ["verify", "verify 5s 10s 30s"] {
        let world = World::new(&format!("{{\n serve_stale 1h {options}\n }}")).await;
        let ttl = if options == "verify" { 0 } else { 10 };
        world.ask("www.example", 0).await;
        world.say(255);
        assert_eq!(world.ask("www.example", 200).await, (OK, Some(1), Some(ttl)), "{options}");
        world.say(2);
        assert_eq!(world.ask("www.example", 260).await, (OK, Some(2), Some(100)), "{options}");
        world.say(254);
        assert_eq!(world.ask("www.example", 500).await.0, Rcode::NXDOMAIN, "{options}");
    }
    let world = World::new("{\n serve_stale 1h verify 20ms\n }").await;
    world.ask("www.example", 0).await;
    world.say(0);
    assert_eq!(world.ask("www.example", 200).await, (OK, Some(1), Some(0)), "it waits no longer than that");
}

#[tokio::test]
async fn a_denial_does_not_take_an_answers_place_where_answers_are_preferred() {
    let world = World::new("{\n serve_stale 1h immediate 30s\n serve_stale_policy prefer_positive\n }").await;
    world.ask("www.example", 0).await;
    world.say(254);
    assert_eq!(world.ask("www.example", 200).await, (OK, Some(1), Some(30)));
    world.asked(2).await;
    assert_eq!(world.ask("www.example", 201).await, (OK, Some(1), Some(30)));
}

#[tokio::test]
async fn limits_failures_and_counters() {
    let world = World::new("{\n success 32 50 1\n denial 32 20\n servfail 7s\n keepttl\n }").await;
    assert_eq!(world.ask("www.example", 0).await, (OK, Some(1), Some(50)));
    assert_eq!(world.ask("www.example", 49).await, (OK, Some(1), Some(50)), "keepttl");
    world.say(255);
    assert_eq!(world.ask("www.example", 51).await.0, Rcode::SERVFAIL);
    world.say(3);
    assert_eq!(world.ask("www.example", 57).await.0, Rcode::SERVFAIL, "a failure is kept for 7 s");
    assert_eq!(world.ask("www.example", 59).await, (OK, Some(3), Some(50)));
    let text = world.environment.metrics.encode();
    for wanted in [
        r#"coredns_cache_hits_total{server="dns://:0",type="success",zones=".",view=""} 1"#,
        r#"coredns_cache_hits_total{server="dns://:0",type="denial",zones=".",view=""} 1"#,
        r#"coredns_cache_requests_total{server="dns://:0",zones=".",view=""} 5"#,
        r#"coredns_cache_misses_total{server="dns://:0",zones=".",view=""} 3"#,
        r#"coredns_cache_entries{server="dns://:0",type="success",zones=".",view=""} 1"#,
        r#"coredns_cache_drops_total{server="dns://:0",zones=".",view=""} 0"#,
    ] {
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
    for number in 0..100 {
        world.ask(&format!("host-{number}.example"), 60).await;
    }
    let entries: usize = world.counter("coredns_cache_entries{server=\"dns://:0\",type=\"success\"").parse().unwrap();
    let evicted: usize = world.counter("coredns_cache_evictions_total").parse().unwrap();
    assert!(entries <= 32 && entries + evicted == 101, "{entries} kept, {evicted} evicted");
}
