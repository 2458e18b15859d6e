//! Zone files, asked with `dig` over UDP and over TCP.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{Folder, ask, ask_until, assert_answers, cluster, dig, environment, start};
use podwire_dns::program::Program;

const ZONE: &str = "\
$TTL 1h
@       IN SOA ns1 hostmaster.example.org. ( 7 7200 3600
                2w ; expire
                300 )
        NS ns1
        NS ns.elsewhere.test.
        MX 10 mail
ns1     A 192.0.2.1
mail    60 A 192.0.2.2
        60 AAAA 2001:db8::2
www     CNAME web
web     60 A 192.0.2.3
out     CNAME web.default.svc.cluster.local.
far     CNAME www.elsewhere.test.
dead    CNAME nothing
loop1   CNAME loop2
loop2   CNAME loop1
*.wild  60 A 192.0.2.4
host.wild 60 TXT \"here\"
deep.down.wild 60 A 192.0.2.5
*.alias CNAME web
sub     NS ns.sub
        NS ns.elsewhere.test.
        DS 1 8 2 0000000000000000000000000000000000000000000000000000000000000000
ns.sub  A 192.0.2.6
old     DNAME new
x.new   60 A 192.0.2.7
away    DNAME default.svc.cluster.local.
_http._tcp SRV 0 5 80 web
elsewhere.test. A 192.0.2.99
";

const SOA: &str =
    "authority example.org. 300 IN SOA ns1.example.org. hostmaster.example.org. 7 7200 3600 1209600 300\n";
const NS: &str =
    "authority example.org. 3600 IN NS ns.elsewhere.test.\nauthority example.org. 3600 IN NS ns1.example.org.\n";

#[tokio::test]
async fn a_zone_file_is_served() {
    let folder = Folder::new();
    let file = folder.write("db", ZONE);
    let corefile = format!(
        ".:0 {{\n errors\n file {file} example.org {{\n fallthrough left.example.org\n }}\n kubernetes cluster.local\n}}"
    );
    let (_server, address) = start(&corefile, &environment(cluster())).await;
    let with = |code: &str, records: &[&str], rest: &str| {
        let records: String = records.iter().map(|record| format!("{record}\n")).collect();
        format!("{code}\n{records}{rest}")
    };
    let glue = "additional ns.sub.example.org. 3600 IN A 192.0.2.6\n";
    let referral = format!(
        "authority sub.example.org. 3600 IN NS ns.elsewhere.test.\nauthority sub.example.org. 3600 IN NS ns.sub.example.org.\n{glue}"
    );
    let soa = "example.org. 3600 IN SOA ns1.example.org. hostmaster.example.org. 7 7200 3600 1209600 300";
    let table = [
        ("example.org SOA", with("NOERROR aa", &[soa], NS)),
        (
            "Example.org NS",
            with(
                "NOERROR aa",
                &["Example.org. 3600 IN NS ns.elsewhere.test.", "Example.org. 3600 IN NS ns1.Example.org."],
                "additional ns1.Example.org. 3600 IN A 192.0.2.1\n",
            ),
        ),
        (
            "example.org MX",
            with("NOERROR aa", &["example.org. 3600 IN MX 10 mail.example.org."], NS)
                + "additional mail.example.org. 60 IN A 192.0.2.2\nadditional mail.example.org. 60 IN AAAA 2001:db8::2\n",
        ),
        ("MAIL.example.org", with("NOERROR aa", &["MAIL.example.org. 60 IN A 192.0.2.2"], NS)),
        ("mail.example.org TXT", with("NOERROR aa", &[], SOA)),
        ("none.example.org", with("NXDOMAIN aa", &[], SOA)),
        ("left.example.org", "REFUSED\n".to_owned()),
        ("elsewhere.test", "REFUSED\n".to_owned()),
        (
            "www.example.org",
            with(
                "NOERROR aa",
                &["web.example.org. 60 IN A 192.0.2.3", "www.example.org. 3600 IN CNAME web.example.org."],
                NS,
            ),
        ),
        ("www.example.org CNAME", with("NOERROR aa", &["www.example.org. 3600 IN CNAME web.example.org."], NS)),
        ("www.example.org AAAA", with("NOERROR aa", &["www.example.org. 3600 IN CNAME web.example.org."], SOA)),
        (
            "out.example.org",
            with(
                "NOERROR aa",
                &[
                    "out.example.org. 3600 IN CNAME web.default.svc.cluster.local.",
                    "web.default.svc.cluster.local. 5 IN A 10.96.0.20",
                ],
                "",
            ),
        ),
        ("far.example.org", with("NOERROR aa", &["far.example.org. 3600 IN CNAME www.elsewhere.test."], "")),
        ("dead.example.org", with("NXDOMAIN aa", &["dead.example.org. 3600 IN CNAME nothing.example.org."], SOA)),
        ("loop1.example.org", "SERVFAIL\n".to_owned()),
        ("any.wild.example.org", with("NOERROR aa", &["any.wild.example.org. 60 IN A 192.0.2.4"], NS)),
        ("two.labels.wild.example.org", with("NOERROR aa", &["two.labels.wild.example.org. 60 IN A 192.0.2.4"], NS)),
        ("any.wild.example.org AAAA", with("NOERROR aa", &[], SOA)),
        ("host.wild.example.org", with("NOERROR aa", &[], SOA)),
        ("down.wild.example.org", with("NOERROR aa", &[], SOA)),
        ("x.down.wild.example.org", with("NXDOMAIN aa", &[], SOA)),
        (
            "x.alias.example.org",
            with(
                "NOERROR aa",
                &["web.example.org. 60 IN A 192.0.2.3", "x.alias.example.org. 3600 IN CNAME web.example.org."],
                NS,
            ),
        ),
        ("sub.example.org", with("NOERROR", &[], &referral)),
        ("a.b.sub.example.org", with("NOERROR", &[], &referral)),
        ("ns.sub.example.org", with("NOERROR", &[], &referral)),
        (
            "sub.example.org DS",
            with(
                "NOERROR aa",
                &["sub.example.org. 3600 IN DS 1 8 2 0000000000000000000000000000000000000000000000000000000000000000"],
                NS,
            )
            .replace(
                "0000000000000000000000000000000000000000000000000000000000000000",
                "00000000000000000000000000000000000000000000000000000000 00000000",
            ),
        ),
        (
            "x.old.example.org",
            with(
                "NOERROR aa",
                &[
                    "old.example.org. 3600 IN DNAME new.example.org.",
                    "x.new.example.org. 60 IN A 192.0.2.7",
                    "x.old.example.org. 3600 IN CNAME x.new.example.org.",
                ],
                NS,
            ),
        ),
        (
            "x.old.example.org CNAME",
            with(
                "NOERROR aa",
                &[
                    "old.example.org. 3600 IN DNAME new.example.org.",
                    "x.old.example.org. 3600 IN CNAME x.new.example.org.",
                ],
                NS,
            ),
        ),
        ("old.example.org", with("NOERROR aa", &[], SOA)),
        (
            "single.away.example.org",
            with(
                "NOERROR aa",
                &[
                    "away.example.org. 3600 IN DNAME default.svc.cluster.local.",
                    "single.away.example.org. 3600 IN CNAME single.default.svc.cluster.local.",
                    "single.default.svc.cluster.local. 5 IN A 10.96.0.21",
                ],
                "",
            ),
        ),
        (
            "_http._tcp.example.org SRV",
            with("NOERROR aa", &["_http._tcp.example.org. 3600 IN SRV 0 5 80 web.example.org."], NS)
                + "additional web.example.org. 60 IN A 192.0.2.3\n",
        ),
    ];
    let table: Vec<(&str, &str)> = table.iter().map(|(question, wanted)| (*question, wanted.as_str())).collect();
    assert_answers(address, &table).await;
    assert!(dig(address, &["example.org", "AXFR"]).await.contains("Transfer failed"));
}

#[tokio::test]
async fn a_changed_zone_file_is_taken_over_with_its_serial() {
    let folder = Folder::new();
    let zone = |serial: u32, last: u8| format!("@ 60 SOA ns hm {serial} 1 1 1 30\n@ 60 A 192.0.2.{last}\n");
    let path = folder.path("db").display().to_string();
    let corefile = |options: &str| format!("a.test:0 b.test:0 {{\n file {path} {{\n reload 10ms\n {options}\n }}\n}}");
    let environment = environment(cluster());
    let (mut server, address) = start(&corefile(""), &environment).await;
    assert_eq!(ask(address, "a.test").await, "SERVFAIL\n", "no file yet");
    let wanted = |name: &str, last: u8| format!("NOERROR aa\n{name}. 60 IN A 192.0.2.{last}\n");
    folder.write("db", &zone(1, 1));
    assert_eq!(ask_until(address, "a.test", &wanted("a.test", 1)).await, wanted("a.test", 1));
    assert_eq!(ask(address, "b.test").await, wanted("b.test", 1));
    // The same serial number, then nonsense: neither is taken over. What comes after them is.
    folder.write("db", &zone(1, 22));
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(ask(address, "b.test").await, wanted("b.test", 1));
    folder.write("db", "@ 60 SOA\n");
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(ask(address, "b.test").await, wanted("b.test", 1));
    folder.write("db", &zone(2, 3));
    assert_eq!(ask_until(address, "a.test", &wanted("a.test", 3)).await, wanted("a.test", 3));
    server.replace(Program::new(&corefile("reload_by_mtime"), &environment).unwrap()).await.unwrap();
    folder.write("db", &zone(2, 44));
    assert_eq!(ask_until(address, "b.test", &wanted("b.test", 44)).await, wanted("b.test", 44));
}

#[test]
fn a_broken_zone_file_is_refused_with_both_places() {
    let folder = Folder::new();
    let environment = environment(cluster());
    for (text, wanted) in [
        ("@ SOA a b 1 1 1 1 1\n A 10.0.0", ":2:4: A: expected IPv4 address"),
        ("a A 10.0.0.1\n", ":zone a.test. has no SOA record"),
    ] {
        let path = folder.write("db", text);
        let error = Program::new(&format!("a.test {{\n file {path}\n}}"), &environment).err().unwrap();
        assert_eq!(error.to_string(), format!("2:7: file: {path}{wanted}"));
    }
    let error = Program::new("a.test {\n file /nonexistent/db {\n reload 0\n }\n}", &environment).err().unwrap();
    assert_eq!(error.to_string(), "2:7: file: /nonexistent/db is not there");
}
