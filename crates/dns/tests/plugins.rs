//! Directives that answer or change answers themselves, each asked with `dig` over UDP and over TCP.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::fs;

use common::{Folder, Upstream, ask, ask_until, assert_answers, cluster, dig, digest, environment, get, start};
use domain::{
    base::{
        CharStr,
        iana::{Rcode, Rtype},
    },
    rdata::{A, Cname, Hinfo, Mx, Ptr},
};
use podwire_dns::message::{Data, DnsName, Query, Reply, record};

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

/// What another server was asked, as `NAME TYPE`, and what it says: an address for A, a chain of names for the rest.
fn answers(query: &Query) -> Option<Reply> {
    let name = query.name.to_string();
    let domain = |text: &str| DnsName::bytes_from_str(text).unwrap();
    let mut reply = Reply::default();
    match (name.as_str(), query.qtype) {
        ("www.inside.test" | "a.svc.consul" | "x.new.test", Rtype::A) => {
            reply.answer.push(record(query.name.clone(), 100, Data::A(A::new([192, 0, 2, 1].into()))));
        }
        ("alias.inside.test", _) => {
            reply.answer.push(record(query.name.clone(), 100, Data::Cname(Cname::new(domain("www.inside.test")))));
            reply.answer.push(record(domain("www.inside.test"), 100, Data::A(A::new([192, 0, 2, 1].into()))));
        }
        ("1.2.0.192.in-addr.arpa", Rtype::PTR) => {
            reply.answer.push(record(query.name.clone(), 100, Data::Ptr(Ptr::new(domain("host.svc.consul")))));
        }
        ("broken.test", _) => reply.rcode = Rcode::SERVFAIL,
        ("mail.inside.test", Rtype::MX) => {
            reply.answer.push(record(query.name.clone(), 100, Data::Mx(Mx::new(5, domain("mx.inside.test")))));
        }
        (_, Rtype::HINFO) => {
            let text = |text: &'static str| CharStr::from_octets(text.as_bytes().into()).unwrap();
            reply.answer.push(record(query.name.clone(), 100, Data::Hinfo(Hinfo::new(text("a"), text("b")))));
        }
        _ => reply.rcode = Rcode::NXDOMAIN,
    }
    Some(reply)
}

#[tokio::test]
async fn rewrite_changes_questions_and_makes_answers_fit() {
    let upstream = Upstream::start(answers).await;
    let corefile = format!(
        r".:0 {{
            errors
            rewrite type ANY HINFO
            rewrite class CH IN
            rewrite continue ttl regex .*\.ttl\.test 5
            rewrite continue ttl suffix .low.ttl.test 30-
            rewrite continue rcode exact broken.test SERVFAIL NXDOMAIN
            rewrite name www.outside.test www.inside.test
            rewrite continue name regex ^(.*)\.ttl\.test\.$ {{1}}.test
            rewrite stop name prefix old x.new answer auto
            rewrite stop {{
                name suffix .outside.test .inside.test answer auto
            }}
            rewrite {{
                name regex (.*)-zone\.example {{1}}.svc.consul
                answer name (.*)\.svc\.consul {{1}}-zone.example
            }}
            rewrite stop name regex (.*)\.in-addr\.arpa {{1}}.in-addr.arpa answer value (.*)\.svc\.consul {{1}}.example
            rewrite name substring plain www.inside answer auto value never.* ever
            rewrite name regex long.* {{0}}{{0}}{{0}}{{0}}
            rewrite name exact kube web.default.svc.cluster.local
            rewrite name exact ext ext.default.svc.cluster.local
            kubernetes cluster.local
            forward . {}
        }}",
        upstream.address
    );
    let (_server, address) = start(&corefile, &environment(cluster())).await;
    assert_answers(
        address,
        &[
            ("www.OUTSIDE.test", "NOERROR\nwww.OUTSIDE.test. 100 IN A 192.0.2.1\n"),
            (
                "Alias.outside.test",
                "NOERROR\nAlias.outside.test. 100 IN CNAME www.outside.test.\nwww.outside.test. 100 IN A 192.0.2.1\n",
            ),
            ("mail.outside.test MX", "NOERROR\nmail.outside.test. 100 IN MX 5 mx.outside.test.\n"),
            ("old.test", "NOERROR\nold.test. 100 IN A 192.0.2.1\n"),
            ("old.new.test", "NXDOMAIN\n"),
            ("a-zone.example", "NOERROR\na-zone.example. 100 IN A 192.0.2.1\n"),
            ("-x 192.0.2.1", "NOERROR\n1.2.0.192.in-addr.arpa. 100 IN PTR host.example.\n"),
            ("plain.test", "NOERROR\nplain.test. 100 IN A 192.0.2.1\n"),
            ("some.test ANY", "NOERROR\nsome.test. 100 IN HINFO \"a\" \"b\"\n"),
            ("www.inside.test CH", "NOERROR\nwww.inside.test. 100 IN A 192.0.2.1\n"),
            ("www.inside.test HS", "REFUSED\n"),
            ("broken.test", "NXDOMAIN\n"),
            ("www.inside.ttl.test", "NOERROR\nwww.inside.test. 5 IN A 192.0.2.1\n"),
            ("x.new.low.ttl.test", "NXDOMAIN\n"),
            ("longlonglonglonglonglonglong.test", "SERVFAIL\n"),
            ("kube", "NOERROR aa\nkube. 5 IN A 10.96.0.20\n"),
            ("kube AAAA", "NOERROR aa\nkube. 5 IN AAAA fd00:96::20\n"),
            ("ext CNAME", "NOERROR aa\next. 5 IN CNAME www.westos.org.\n"),
        ],
    )
    .await;
}

#[tokio::test]
async fn rewrite_adds_options_for_other_servers() {
    let (sent, mut received) = tokio::sync::mpsc::unbounded_channel();
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let upstream = socket.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let mut packet = [0; 512];
        loop {
            let (length, client) = socket.recv_from(&mut packet).await.unwrap();
            sent.send(packet[..length].to_vec()).unwrap();
            packet[2] |= 0x80;
            socket.send_to(&packet[..length], client).await.unwrap();
        }
    });
    let corefile = format!(
        ".:0 {{
            rewrite continue edns0 local set 0xffee 0x6162
            rewrite continue edns0 local append 0xffee nothing
            rewrite continue edns0 local replace 65519 nothing
            rewrite continue edns0 local append 65518 nothing
            rewrite continue edns0 local replace 0xffee xyz revert
            rewrite continue edns0 nsid set
            rewrite continue edns0 nsid unset
            rewrite continue edns0 local set 0xfff0 {{client_ip}}
            rewrite edns0 subnet set 20 56
            forward . {upstream}
        }}"
    );
    let (_client_side, address) = start(&corefile, &environment(cluster())).await;
    assert!(dig(address, &["a.test", "+noedns"]).await.contains("status: NOERROR"));
    let packet = received.recv().await.unwrap();
    // After the question (12 + 8 + 4 bytes) the OPT record, with our own size.
    let mut wanted = vec![0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 7 + 8 + 11];
    wanted.extend([0xff, 0xee, 0, 3, b'x', b'y', b'z']);
    wanted.extend([0xff, 0xf0, 0, 4, 127, 0, 0, 1]);
    wanted.extend([0, 8, 0, 7, 0, 1, 20, 0, 127, 0, 0]);
    assert_eq!(packet[24..], wanted);
    server.abort();
}

#[tokio::test]
async fn template_makes_records_of_the_question() {
    let upstream = Upstream::start(answers).await;
    let corefile = format!(
        r#".:0 {{
            prometheus 127.0.0.1:0
            errors
            template IN A example {{
                match "^ip-(?P<a>10)-(?P<b>[0-9]*)-(?P<c>[0-9]*)-(?P<d>[0-9]*)[.]example[.]$"
                match (^|[.])hex(?P<a>0a)(?P<b>[a-f0-9]{{2}})[.]example[.]$
                answer "{{{{ .Name }}}} 60 IN A 10.{{{{ parseInt .Group.b 16 8 }}}}.0.1"
                additional "{{{{ .Zone }}}} 60 {{{{ .Class }}}} TXT \"{{{{ .Type }}}} {{{{ .Remote }}}} {{{{ index .Match 2 }}}}\""
                fallthrough deep.example
            }}
            template IN PTR 10.in-addr.arpa {{
                match ^(?P<d>[0-9]*)[.](?P<c>[0-9]*)[.](?P<b>[0-9]*)[.]10[.]in-addr[.]arpa[.]$
                answer "{{{{ .Name }}}} 60 IN PTR ip-10-{{{{ .Group.b }}}}-{{{{ .Group.c }}}}-{{{{ .Group.d }}}}.example."
            }}
            template IN A deep.example {{
                answer "{{{{ .Name }}}} A 10.9.9.9" "{{{{ .Name }}}} A 10.9.9.8"
            }}
            template ANY ANY invalid {{
                rcode NXDOMAIN
                authority "invalid. 60 {{{{ .Class }}}} SOA ns.invalid. hostmaster.invalid. (1 60 60 60 60)"
            }}
            template IN ANY alias.test kube.test {{
                match ^alias
                answer "alias.test 60 IN CNAME www.inside.test"
                fallthrough
            }}
            template IN ANY kube.test {{
                answer "{{{{ .Name }}}} 60 IN CNAME web.default.svc.cluster.local."
            }}
            template IN A fail.test {{
                rcode SERVFAIL
            }}
            kubernetes cluster.local
            forward test {}
        }}"#,
        upstream.address
    );
    let (server, address) = start(&corefile, &environment(cluster())).await;
    assert_answers(
        address,
        &[
            ("IP-10-16-0-1.example", "NOERROR aa\nIP-10-16-0-1.example. 60 IN A 10.22.0.1\nadditional example. 60 IN TXT \"A 127.0.0.1 16\"\n"),
            ("x.hex0aff.example", "NOERROR aa\nx.hex0aff.example. 60 IN A 10.255.0.1\nadditional example. 60 IN TXT \"A 127.0.0.1 0a\"\n"),
            ("ip-10-999-0-1.example", "SERVFAIL\n"),
            ("other.example", "SERVFAIL\n"),
            ("other.example AAAA", "REFUSED\n"),
            ("x.deep.example", "NOERROR aa\nx.deep.example. 3600 IN A 10.9.9.8\nx.deep.example. 3600 IN A 10.9.9.9\n"),
            ("-x 10.1.2.3", "NOERROR aa\n3.2.1.10.in-addr.arpa. 60 IN PTR ip-10-1-2-3.example.\n"),
            ("a.invalid", "NXDOMAIN aa\nauthority invalid. 60 IN SOA ns.invalid. hostmaster.invalid. 1 60 60 60 60\n"),
            ("a.invalid CH TXT", "NXDOMAIN aa\nauthority invalid. 60 CH SOA ns.invalid. hostmaster.invalid. 1 60 60 60 60\n"),
            ("alias.test", "NOERROR aa\nalias.test. 60 IN CNAME www.inside.test.\nwww.inside.test. 100 IN A 192.0.2.1\n"),
            ("alias.test TXT", "NOERROR aa\nalias.test. 60 IN CNAME www.inside.test.\n"),
            ("kube.test", "NOERROR aa\nkube.test. 60 IN CNAME web.default.svc.cluster.local.\nweb.default.svc.cluster.local. 5 IN A 10.96.0.20\n"),
            ("fail.test", "SERVFAIL\n"),
        ],
    )
    .await;
    let metrics = get(server.pages().next().unwrap().1, "/metrics").await;
    for wanted in [
        r#"coredns_template_matches_total{server="dns://:0",zone="example.",view="",class="IN",type="A"} 6"#,
        r#"coredns_template_template_failures_total{server="dns://:0",zone="example.",view="",class="IN",type="A",section="answer","#,
    ] {
        assert!(metrics.contains(wanted), "{wanted}\n{metrics}");
    }
}

#[tokio::test]
async fn acl_decides_who_may_ask_for_what() {
    let corefile = ".:0 {
            prometheus 127.0.0.1:0
            acl blocked.test {
                allow type TXT net 127.0.0.0/8
                block net 10.0.0.0/8 ::1
                filter type AAAA MX
                block type *
            }
            acl other.test {
                block net 192.0.2.1
            }
            acl {
                filter type HINFO
            }
            template IN ANY test {
                answer \"{{ .Name }} 60 IN CNAME a.blocked.test\"
            }
        }";
    let (server, address) = start(corefile, &environment(cluster())).await;
    let alias = "a.blocked.test. 60 IN CNAME a.blocked.test.\n";
    assert_answers(
        address,
        &[
            ("a.blocked.test A", "REFUSED\n"),
            ("a.blocked.test AAAA", "NOERROR\n"),
            ("a.blocked.test TXT", &format!("NOERROR aa\n{alias}")),
            ("x.other.test TXT", "NOERROR aa\nx.other.test. 60 IN CNAME a.blocked.test.\n"),
            ("x.other.test HINFO", "NOERROR\n"),
        ],
    )
    .await;
    let metrics = get(server.pages().next().unwrap().1, "/metrics").await;
    for wanted in [
        r#"coredns_acl_blocked_requests_total{server="dns://:0",zone="blocked.test.",view=""} 2"#,
        r#"coredns_acl_filtered_requests_total{server="dns://:0",zone="blocked.test.",view=""} 2"#,
        r#"coredns_acl_allowed_requests_total{server="dns://:0",view=""} 4"#,
    ] {
        assert!(metrics.contains(wanted), "{wanted}\n{metrics}");
    }
}

#[tokio::test]
async fn local_chaos_whoami_minimal_and_header() {
    let corefile = "
        .:0 {
            local
            chaos Version-1 one two
            whoami
        }
        plain.test:0 {
            minimal
            header {
                response set ra
                response clear aa
                query clear rd
            }
            template IN ANY {
                answer \"{{ .Name }} 60 IN TXT x\"
                authority \"plain.test 60 IN NS ns.test\"
                additional \"ns.test 60 IN A 10.0.0.1\"
            }
        }
        off.test:0 {
            local {
                localhost_prefix off
            }
            chaos
        }";
    let (_server, address) = start(corefile, &environment(cluster())).await;
    let soa = |name: &str| format!("authority {name} 604800 IN SOA localhost. root.localhost. 1 0 0 0 604800\n");
    assert_answers(
        address,
        &[
            ("localhost", "NOERROR\nlocalhost. 604800 IN A 127.0.0.1\n"),
            ("Localhost.example AAAA", "NOERROR\nLocalhost.example. 604800 IN AAAA ::1\n"),
            ("a.localhost", "NOERROR\na.localhost. 604800 IN A 127.0.0.1\n"),
            ("localhost TXT", &format!("NOERROR\n{}", soa("localhost."))),
            ("localhost NS", "NOERROR\nlocalhost. 604800 IN NS localhost.\n"),
            ("-x 127.0.0.1", "NOERROR\n1.0.0.127.in-addr.arpa. 604800 IN PTR localhost.\n"),
            ("-x 127.0.0.2", &format!("NXDOMAIN\n{}", soa("127.in-addr.arpa."))),
            ("255.in-addr.arpa SOA", &format!("NOERROR\n{}", soa("255.in-addr.arpa.").replace("authority ", ""))),
            ("localhost.off.test", "REFUSED\n"),
            ("version.bind CH TXT", "NOERROR\nversion.bind. 0 CH TXT \"Version-1\"\n"),
            ("authors.bind CH TXT", "NOERROR\nauthors.bind. 0 CH TXT \"one\"\nauthors.bind. 0 CH TXT \"two\"\n"),
            ("version.bind CH A", "REFUSED\n"),
            ("plain.test", "NOERROR ra\nplain.test. 60 IN TXT \"x\"\n"),
        ],
    )
    .await;
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let wanted = format!("NOERROR\nhostname.bind. 0 CH TXT \"{}\"\n", host.trim());
    assert_eq!(ask(address, "hostname.bind CH TXT").await, wanted);
    for (option, label) in [("+notcp", "_udp"), ("+tcp", "_tcp")] {
        let answer = digest(&dig(address, &["me.example", option]).await);
        assert!(answer.starts_with(&format!("NOERROR aa\nadditional {label}.me.example. 0 IN SRV 0 0 ")), "{answer}");
        assert!(answer.ends_with("\nadditional me.example. 0 IN A 127.0.0.1\n"), "{answer}");
    }
}
