//! Corefiles, good and bad; every complaint has its line and column.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{LOCALHOST, STOCK_COREFILE};
use podwire_dns::{
    corefile::{Corefile, reverse_zones},
    program::{Environment, Page, Program},
};

fn complaint(text: &str) -> String {
    match Program::new(text, &Environment::new(LOCALHOST)) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_stock_corefile_of_kubeadm_is_taken_as_it_is() {
    let program = Program::new(STOCK_COREFILE, &Environment::new(LOCALHOST)).unwrap();
    assert_eq!(program.routers.keys().map(ToString::to_string).collect::<Vec<_>>(), ["127.0.0.1:53"]);
    let pages: Vec<_> = program.pages.iter().map(|(address, pages)| (address.port(), pages.first().copied())).collect();
    assert_eq!(pages, [(8080, Some(Page::Health)), (8181, Some(Page::Ready)), (9153, Some(Page::Metrics))]);
    assert_eq!(program.lameduck, Duration::from_secs(5));
    assert_eq!(program.reload, Some(Duration::from_secs(2)));
    let needs = program.cluster.unwrap();
    assert!(!needs.pods && needs.kubeconfig.is_none());
}

#[test]
fn plugins_run_in_the_order_of_the_table() {
    let program = Program::new(STOCK_COREFILE, &Environment::new(LOCALHOST)).unwrap();
    let chain = program.routers.values().next().unwrap().chains().next().unwrap();
    let names: Vec<_> = chain.iter().map(|plugin| plugin.name()).collect();
    assert_eq!(names, ["prometheus", "errors", "loadbalance", "cache", "kubernetes", "loop", "forward"]);
}

#[test]
fn keys_quotes_comments_and_nesting() {
    let text = "
        # a comment
        cluster.local:54, 10.96.0.0/12:55
        dns://Example.org. fd00::/8 { # another
            errors
            template IN A { answer \"{{ .Name }} \\\"x\\\" #\"
                nested { deeper } }
        }";
    let corefile = Corefile::parse(text).unwrap();
    let keys: Vec<String> = corefile.blocks[0].keys.iter().map(ToString::to_string).collect();
    assert_eq!(keys[0], "cluster.local.:54");
    assert_eq!((keys[1].as_str(), keys[16].as_str()), ("96.10.in-addr.arpa.:55", "111.10.in-addr.arpa.:55"));
    assert_eq!(keys[17..], ["Example.org.:53", "d.f.ip6.arpa.:53"]);
    let template = &corefile.blocks[0].directives[1];
    assert_eq!(template.args.len(), 2);
    assert_eq!(template.body[0].args[0].text, "{{ .Name }} \"x\" #");
    assert_eq!(template.body[1].body[0].name(), "deeper");
}

#[test]
fn ranges_give_reverse_zones() {
    let zones = |range: &str| -> Vec<String> {
        reverse_zones(range.parse().unwrap()).unwrap().iter().map(ToString::to_string).collect()
    };
    assert_eq!(zones("10.0.0.0/8"), ["10.in-addr.arpa"]);
    assert_eq!(zones("10.244.2.0/23"), ["2.244.10.in-addr.arpa", "3.244.10.in-addr.arpa"]);
    assert_eq!(zones("0.0.0.0/0"), ["in-addr.arpa"]);
    assert_eq!(zones("fd00:10:96::/47").len(), 2);
    assert_eq!(zones("fd00::/7").len(), 2);
}

#[test]
fn complaints_name_line_and_column() {
    for (text, wanted) in [
        ("", "1:1: no server block, expected one such as \".:53 { … }\""),
        (".:53", "1:1: expected \"{\" and directives after the zones of a server block"),
        (".:53 {\n errors", "1:6: this brace is never closed"),
        (".:53{\n}", "1:1: put a blank before the opening brace"),
        ("{\n}", "1:1: a server block needs a zone before its brace, such as \".:53\""),
        ("}", "1:1: this brace closes nothing"),
        (". {\n {\n}}", "2:2: expected a directive before this brace"),
        (".:66000 {\n}", "1:1: \"66000\" is not a port from 0 to 65535"),
        (":53 {\n}", "1:1: expected a zone before the port, such as \".\""),
        ("a..b {\n}", "1:1: \"a..b\" is not a domain name: empty label"),
        ("tls://. {\n}", "1:1: transport \"tls\" is not supported yet, only dns"),
        ("a {\n}\nb a {\n}", "3:3: zone a.:53 is already served by the block at 1:1"),
        ("(x) {\n}", "1:1: snippets and import are not supported yet"),
        (". {\n log \"a\nb\n}", "2:6: this quote is never closed"),
        (". {\n errors\n forward . {$UPSTREAM}\n}", "3:12: environment variable {$UPSTREAM} is not supported yet"),
        (". {\n erors\n}", "2:2: unknown directive \"erors\""),
        (". {\n errors\n\thosts /etc/hosts\n}", "3:2: directive \"hosts\" is not supported yet"),
        (". {\n rewrite name a b\n}", "2:2: directive \"rewrite\" is not supported yet"),
        (
            ". {\n kubernetes cluster.local {\n  pods maybe\n }\n}",
            "3:8: pods: \"maybe\" is not one of disabled, insecure, verified",
        ),
        (". {\n kubernetes {\n  ttl 3601\n }\n}", "3:7: \"3601\" is not a number from 0 to 3600"),
        (". {\n kubernetes {\n  ttl\n }\n}", "3:3: ttl needs 1 argument(s), found 0"),
        (". {\n kubernetes {\n  autopath\n }\n}", "3:3: kubernetes: unknown option \"autopath\""),
        (". {\n kubernetes {\n  labels a=b\n }\n}", "3:3: kubernetes: option \"labels\" is not supported yet"),
        (". {\n kubernetes in-addr.arpa\n}", "2:2: kubernetes needs a zone that is not a reverse zone"),
        (". {\n health :80800\n}", "2:9: \":80800\" is not an address such as :8080 or 127.0.0.1:8080"),
        (
            ". {\n health {\n  lameduck soon\n }\n}",
            "3:12: \"soon\" is not a duration such as 5s or 500ms, of at most a day",
        ),
        (". {\n ready a b\n}", "2:10: ready takes at most 1 argument(s)"),
        (". {\n ready {\n  x\n }\n}", "3:3: ready takes no options"),
        (". {\n forward .\n}", "2:2: forward needs 2 argument(s), found 1"),
        (
            ". {\n forward . dns.example\n}",
            "2:12: forward: \"dns.example\" is neither an address nor a file such as /etc/resolv.conf",
        ),
        (
            ". {\n forward . https://9.9.9.9\n}",
            "2:12: forward: transport \"https\" is not supported yet, only dns and tls",
        ),
        (". {\n forward . tls://nine\n}", "2:12: forward: \"nine\" is not an address"),
        (
            ". {\n forward . tls://9.9.9.9 {\n  tls /nonexistent/ca\n }\n}",
            "3:7: tls: cannot read certificates from /nonexistent/ca: I/O error: No such file or directory (os error 2)",
        ),
        (". {\n forward . 1.1.1.1 {\n  health_check 1s twice\n }\n}", "3:19: health_check: unknown option \"twice\""),
        (
            ". {\n forward . 1.1.1.1 {\n  failover MAYBE\n }\n}",
            "3:12: \"MAYBE\" is not a response code such as NXDOMAIN",
        ),
        (". {\n forward . 1.1.1.1 {\n  max_age 1s\n }\n}", "3:11: max_age must not be less than expire"),
        (
            ". {\n forward . 1.1.1.1 {\n  doh_method GET\n }\n}",
            "3:3: forward: option \"doh_method\" is not supported yet",
        ),
        (". {\n cache 0\n}", "2:8: a TTL of 0: use disable instead"),
        (". {\n cache {\n  prefetch 2 1m 5%\n }\n}", "3:17: prefetch: \"5%\" is not a share from 10% to 90%"),
        (". {\n cache {\n  servfail 6m\n }\n}", "3:12: \"6m\" is longer than 300 s"),
        (". {\n cache {\n  serve_stale 1h soon\n }\n}", "3:18: serve_stale: \"soon\" is neither immediate nor verify"),
        (". {\n cache {\n  serve_stale_policy prefer_positive\n }\n}", "3:3: serve_stale_policy needs serve_stale"),
        (". {\n cache 30 {\n  disable all\n }\n}", "3:11: disable: \"all\" is neither success nor denial"),
        (". {\n cache {\n  success 0\n }\n}", "3:11: a capacity of 0: use disable instead"),
        (". {\n bind eth0\n}", "2:7: bind: \"eth0\" is no address; names of interfaces are not supported yet"),
        (". {\n reload 1s\n}", "2:9: reload: the shortest interval is 2s"),
        (". {\n loadbalance weighted f\n}", "2:14: loadbalance: policy \"weighted\" is not supported yet"),
    ] {
        assert_eq!(complaint(text), wanted, "{text:?}");
    }
}

#[test]
fn what_is_not_wrong_is_accepted() {
    for text in [
        ". {\n}",
        ". {\n health\n ready :8182\n prometheus 127.0.0.1:9154\n reload 10s 5s\n log . {\n class denial error\n }\n}",
        ". {\n cache 30 a b {\n success 100 30 1\n denial 100\n servfail 0\n }\n loadbalance round_robin\n reload off\n}",
        ". {\n cache {\n prefetch 10 1m 20%\n serve_stale 24h verify 0 30s 10s\n serve_stale_policy prefer_positive\n keepttl\n }\n}",
        ". {\n forward a. 10.0.0.1 10.0.0.2:54 [::1]:53 {\n policy sequential\n health_check 0.5s no_rec domain a.b\n expire 5s\n max_age 1m\n max_idle_conns 3\n read_timeout 1.5s\n source_address 10.0.0.1\n next NXDOMAIN\n next_on_nodata\n max_connect_attempts 3\n force_tcp\n prefer_udp\n max_fails 0\n except b c\n }\n}",
        "a:1 {\n kubernetes\n}\na:2 {\n kubernetes cluster.local 10.0.0.0/8 {\n fallthrough\n kubeconfig /x\n upstream\n }\n}",
    ] {
        assert_eq!(complaint(text), "accepted", "{text:?}");
    }
}
