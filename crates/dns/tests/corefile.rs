//! Corefiles, good and bad; every complaint has its line and column.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use common::{Folder, LOCALHOST, STOCK_COREFILE};
use podwire_dns::{
    corefile::{Corefile, Directive, Loader, Nothing, System, reverse_zones},
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
    let corefile = Corefile::parse(text, &Nothing).unwrap();
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
    let mut wrong = Vec::new();
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
        ("(x) {\n}", "1:1: no server block, expected one such as \".:53 { … }\""),
        (". {\n log \"a\nb\n}", "2:6: this quote is never closed"),
        (
            ". {\n errors\n forward . {$PODWIRE_UNSET}\n}",
            "3:12: forward: \"\" is neither an address nor a file such as /etc/resolv.conf",
        ),
        (". {\n erors\n}", "2:2: unknown directive \"erors\""),
        (". {\n errors\n\tetcd /x\n}", "3:2: directive \"etcd\" is not supported yet"),
        (". {\n hosts\n hosts\n}", "3:2: hosts can be used only once in a server block"),
        (". {\n hosts {\n  10.0.0 a\n }\n}", "3:3: hosts: unknown option \"10.0.0\""),
        (". {\n hosts {\n  10.0.0.1 a..b\n }\n}", "3:12: \"a..b\" is not a domain name: empty label"),
        (". {\n hosts {\n  fallthrough_unsupported\n }\n}", "3:3: fallthrough_unsupported needs fallthrough"),
        (". {\n rewrite\n}", "2:2: rewrite: expected name, type, class, ttl, rcode or edns0 at the end"),
        (". {\n rewrite name a\n}", "2:2: rewrite: expected a name at the end"),
        (". {\n rewrite nom a b\n}", "2:10: rewrite: unknown field \"nom\""),
        (". {\n rewrite cname a b\n}", "2:10: rewrite: field \"cname\" is not supported yet"),
        (
            ". {\n rewrite name exakt a b\n}",
            "2:15: rewrite: \"exakt\" is not one of exact, prefix, suffix, substring, regex",
        ),
        (". {\n rewrite name exact a b c\n}", "2:25: rewrite: unexpected \"c\" after the rule"),
        (". {\n rewrite name exact a b answer\n}", "2:2: rewrite: expected auto, name or value at the end"),
        (". {\n rewrite name regex ( b\n}", "2:21: \"(\" is not a regular expression: unclosed group"),
        (". {\n rewrite name regex (a) {2}\n}", "2:25: {2}: the pattern has 1 group(s)"),
        (
            ". {\n rewrite {\n  name regex a b\n  answer auto name c d\n }\n}",
            "4:15: rewrite: answer auto and answer name exclude each other",
        ),
        (". {\n rewrite type A B\n}", "2:17: rewrite: \"B\" is not a record type"),
        (". {\n rewrite ttl a 30-3\n}", "2:16: rewrite: \"30-3\" is not a TTL or a range such as 30-300"),
        (
            ". {\n rewrite rcode a 16 0\n}",
            "2:18: rewrite: \"16\" is not a response code such as NXDOMAIN, or its number up to 15",
        ),
        (
            ". {\n rewrite edns0 local set 0xfffff a\n}",
            "2:26: edns0: \"0xfffff\" is not an option's code such as 0xffee",
        ),
        (
            ". {\n rewrite edns0 local set 1 {server_ip}\n}",
            "2:28: edns0: variable {server_ip} is unknown or not supported yet",
        ),
        (
            ". {\n rewrite edns0 local set 1 0xabc\n}",
            "2:28: edns0: \"0xabc\" is not an even number of hexadecimal digits",
        ),
        (". {\n template IN\n}", "2:2: template needs 2 argument(s), found 1"),
        (". {\n template A IN\n}", "2:11: template: \"A\" is not a class"),
        (". {\n template IN A {\n  ederror 21\n }\n}", "3:3: template: option \"ederror\" is not supported yet"),
        (". {\n template IN A {\n  rcode NO\n }\n}", "3:9: template: \"NO\" is not a response code such as NXDOMAIN"),
        (". {\n template IN A {\n  match (\n }\n}", "3:9: \"(\" is not a regular expression: unclosed group"),
        (
            ". {\n template IN A {\n  answer \"{{ .Name }} TXT \\\"x\\\" {{ with .Name }}\"\n }\n}",
            "3:36: template: \"with\" is not supported in templates",
        ),
        (
            ". {\n template IN A {\n  answer \"{{ .Group.x }} A 10.0.0.1\"\n }\n}",
            "3:10: template: no match has the group of Group(\"x\")",
        ),
        (
            ". {\n template IN A {\n  answer \"a A 10.0.0\"\n }\n}",
            "3:10: template: this is no record: 1:5: A: expected IPv4 address",
        ),
        (". {\n acl {\n  drop\n }\n}", "3:3: acl: option \"drop\" is not supported yet"),
        (". {\n acl {\n  block net\n }\n}", "3:9: acl: nothing after \"net\""),
        (". {\n acl {\n  block 10.0.0.1\n }\n}", "3:9: acl: expected \"type\" or \"net\""),
        (
            ". {\n acl {\n  block type A net 10\n }\n}",
            "3:20: acl: \"10\" is neither a range such as 10.0.0.0/8 nor an address",
        ),
        (". {\n header\n}", "2:2: header needs at least one line, such as \"response set ra\""),
        (". {\n header {\n  response set rd\n }\n}", "3:16: header: rd of a response is not supported yet"),
        (". {\n header {\n  query set x\n }\n}", "3:13: header: unknown flag \"x\""),
        (". {\n local {\n  localhost_prefix maybe\n }\n}", "3:20: localhost_prefix: \"maybe\" is neither on nor off"),
        (". {\n any x\n}", "2:6: any takes at most 0 argument(s)"),
        (". {\n bufsize 511\n}", "2:10: bufsize: \"511\" is not a number from 512 to 4096"),
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
        (". {\n ready {\n  x\n }\n}", "3:3: ready: unknown option \"x\""),
        (". {\n ready {\n  monitor often\n }\n}", "3:11: monitor: \"often\" is neither until-ready nor continuously"),
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
        (". {\n bind eth9\n}", "2:7: bind: \"eth9\" is neither an address nor a network interface of this host"),
        (". {\n bind 10.0.0.1 {\n  except 10.0.0.1\n }\n}", "2:2: bind: no address is left"),
        (". {\n bind 10.0.0.1 {\n  not 10.0.0.1\n }\n}", "3:3: bind: unknown option \"not\""),
        (". {\n log \"{local}\"\n}", "2:6: log: placeholder {local} is not supported yet"),
        (". {\n errors {\n  consolidate 5s\n }\n}", "3:3: consolidate needs 2 argument(s), found 1"),
        (
            ". {\n errors {\n  consolidate 5s x loud\n }\n}",
            "3:20: consolidate: \"loud\" is not one of debug, info, warning, error, show_first",
        ),
        (". {\n errors {\n  consolidate 5s x info info\n }\n}", "3:25: consolidate: unexpected \"info\""),
        (". {\n errors\n errors\n}", "3:2: errors can be used only once in a server block"),
        (". {\n reload 1s\n}", "2:9: reload: the shortest interval is 2s"),
        (". {\n loadbalance weighted\n}", "2:14: loadbalance: weighted needs a file"),
        (". {\n loadbalance {\n  reload 5s\n }\n}", "3:3: loadbalance: unknown option \"reload\""),
        (". {\n loadbalance {\n  prefer 10.0.0\n }\n}", "3:10: prefer: \"10.0.0\" is not a range such as 10.0.0.0/8"),
        (
            ". {\n loadbalance weighted /nonexistent/w {\n  reload 0\n }\n}",
            "2:23: loadbalance: /nonexistent/w is not there",
        ),
    ] {
        if complaint(text) != wanted {
            wrong.push(format!("{text:?}\n wanted {wanted}\n  found {}", complaint(text)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_not_wrong_is_accepted() {
    for text in [
        ". {\n}",
        ". {\n health\n ready :8182\n prometheus 127.0.0.1:9154\n reload 10s 5s\n log . {\n class denial error\n }\n}",
        ". {\n cache 30 a b {\n success 100 30 1\n denial 100\n servfail 0\n }\n loadbalance round_robin\n reload off\n}",
        ". {\n forward a. 10.0.0.1 10.0.0.2:54 [::1]:53 {\n policy sequential\n force_tcp\n prefer_udp\n max_fails 0\n except b c\n }\n}",
        ". {\n errors {\n stacktrace\n consolidate 5m \"^no .*\" warning show_first\n consolidate 1s x\n }\n log a b \"{combined} {/log/class}\" {\n class all\n }\n}",
        ". {\n ready {\n monitor continuously\n }\n loadbalance {\n prefer 10.0.0.0/8 fd00::/8\n }\n}",
        ". {\n cache {\n prefetch 10 1m 20%\n serve_stale 24h verify 0 30s 10s\n serve_stale_policy prefer_positive\n keepttl\n }\n}",
        ". {\n forward a. 10.0.0.1 10.0.0.2:54 [::1]:53 {\n policy sequential\n health_check 0.5s no_rec domain a.b\n expire 5s\n max_age 1m\n max_idle_conns 3\n read_timeout 1.5s\n source_address 10.0.0.1\n next NXDOMAIN\n next_on_nodata\n max_connect_attempts 3\n force_tcp\n prefer_udp\n max_fails 0\n except b c\n }\n}",
        "a:1 {\n kubernetes\n}\na:2 {\n kubernetes cluster.local 10.0.0.0/8 {\n fallthrough\n kubeconfig /x\n upstream\n }\n}",
    ] {
        assert_eq!(complaint(text), "accepted", "{text:?}");
    }
}

/// Files and variables as a table.
struct Table(&'static [(&'static str, &'static str)]);

impl Loader for Table {
    fn variable(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    fn files(&self, pattern: &str) -> io::Result<Vec<(String, String)>> {
        let found = self.0.iter().filter(|(name, _)| name.starts_with(pattern.trim_end_matches('*')));
        let found: Vec<_> = found.map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        if found.is_empty() && !pattern.ends_with('*') {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no such file"));
        }
        Ok(found)
    }
}

/// The directives on one line each: `name args { body }`.
fn flat(directives: &[Directive]) -> String {
    let line = |line: &Directive| {
        let words: Vec<_> = [&line.name].into_iter().chain(&line.args).map(|word| format!("<{}>", word.text)).collect();
        let body = if line.body.is_empty() { String::new() } else { format!("{{{}}}", flat(&line.body)) };
        words.join("") + &body
    };
    directives.iter().map(line).collect::<Vec<_>>().join(" ")
}

#[test]
fn snippets_imports_and_variables() {
    let table = Table(&[
        ("part", "errors\nlog {\n class all\n}"),
        ("conf.d/a", "a {\n import common 5\n}"),
        ("conf.d/b", "b {\n import conf.d/a.none*\n}\n(late) {\n loop\n}"),
        ("UPSTREAM", "10.0.0.1 {"),
        ("ZONES", "x,y"),
        ("TRICK", "}"),
    ]);
    for (text, wanted) in [
        (
            "(s) {\n errors\n cache 30 {\n  success 1\n }\n}\n. {\n import s\n loop\n}",
            "<errors> <cache><30>{<success><1>} <loop>",
        ),
        (
            "(s) {\n cache {args[1]}{args[0]} \"{args[0]} x\"\n}\n. {\n import s 0 3\n import s 1 4 }",
            "<cache><30><0 x> <cache><41><1 x>",
        ),
        ("(in) {\n x {args[0]}\n}\n(out) {\n import in {args[0]}\n}\n. {\n import out a\n}", "<x><a>"),
        (". {\n import part\n loop\n}", "<errors> <log>{<class><all>} <loop>"),
        (". {\n cache {\n import part\n }\n}", "<cache>{<errors> <log>{<class><all>}}"),
        (". {\n forward . {$UPSTREAM} {%UPSTREAM%}x{$NONE}y\n}", "<forward><.><10.0.0.1 {><10.0.0.1 {xy>"),
        (". {\n x {$TRICK} \"{$TRICK}\" {$ {%} {$}\n}", "<x><}><}><{$><{%}><{$}>"),
        (". {\n x \"two\nlines\" end\n y\n}", "<x><two\nlines><end> <y>"),
        (". {\n log import\n x \"import\"\n}", "<log><import> <x><import>"),
        (". {\n import nothing*\n loop\n}", "<loop>"),
    ] {
        let corefile = Corefile::parse(text, &table).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert_eq!(flat(&corefile.blocks[0].directives), wanted, "{text:?}");
    }
    let whole =
        Corefile::parse("(common) {\n cache {args[0]}\n}\nimport conf.d/*\n{$ZONES} {\n import late\n}", &table)
            .unwrap();
    let blocks: Vec<_> = whole.blocks.iter().map(|block| (block.keys.len(), flat(&block.directives))).collect();
    assert_eq!(blocks, [(1, "<cache><5>".to_owned()), (1, String::new()), (2, "<loop>".to_owned())]);
    assert_eq!(whole.imports.iter().map(|import| import.path.as_str()).collect::<Vec<_>>(), ["conf.d/a", "conf.d/b"]);
}

#[test]
fn complaints_about_imports_name_both_places() {
    let table = Table(&[
        ("bad", "errors\nlog {\n class some\n}"),
        ("open", "errors {"),
        ("quote", "\n \"x"),
        ("deep", "import\tbad"),
        ("self", "\nimport self"),
    ]);
    let mut environment = Environment::new(LOCALHOST);
    environment.loader = Arc::new(table);
    for (text, wanted) in [
        (". {\n import bad\n}", "2:9: in bad:3:8: log: \"some\" is not one of all, success, denial, error"),
        (". {\n import deep\n}", "2:9: in bad:3:8: log: \"some\" is not one of all, success, denial, error"),
        (". {\n import quote\n}", "2:9: in quote:2:2: this quote is never closed"),
        (". {\n import open\n", "2:9: in open:1:8: this brace is never closed"),
        (". {\n import none\n}", "2:9: cannot import \"none\": no such file"),
        (". {\n import\n}", "2:2: import needs a snippet, a file or a pattern such as conf.d/*.conf"),
        ("(a) {\n}\n(a) {\n}", "3:1: snippet (a) is defined twice"),
        ("(a)\nerrors", "1:1: expected \"{\" after the name of snippet (a)"),
        ("(a) {\n x {\n}", "1:5: this brace is never closed"),
        ("(a) {\n erors\n}\n. {\n import a\n}", "2:2: unknown directive \"erors\""),
        (
            "(a) {\n cache {args[1]}\n}\n. {\n import a 5\n}",
            "2:8: there is no {args[1]}: the import gives 1 argument(s)",
        ),
        ("(a) {\n import a\n}\n. {\n import a\n}", "2:2: more than 10000 imports: does one import itself?"),
        (
            "(a) {\n import a {args[0]}{args[0]}\n}\n. {\n import a xx\n}",
            "2:2: imports add up to more than 16777216 bytes: does one import itself?",
        ),
    ] {
        let error = Program::new(text, &environment).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some(wanted), "{text:?}");
    }
    let error = Corefile::parse("import self\n", &*environment.loader).unwrap_err();
    assert_eq!((error.at.file, error.at.line), (0, 1));
    assert_eq!(error.message, "in self:2:1: more than 10000 imports: does one import itself?");
}

#[test]
fn files_are_found_beside_the_corefile() {
    let folder = Folder::new();
    for (name, text) in [("b.conf", "b {\n}"), ("a.conf", "a {\n}"), (".c.conf", "}"), ("d.txt", "}")] {
        folder.write(name, text);
    }
    let corefile = Corefile::parse("import *.conf\n", &System::beside(&folder.path("Corefile"))).unwrap();
    let zones: Vec<_> = corefile.blocks.iter().map(|block| block.keys[0].to_string()).collect();
    assert_eq!(zones, ["a.:53", "b.:53"]);
    let error = Corefile::parse("import c.conf\n", &System::beside(&folder.path("Corefile"))).unwrap_err().to_string();
    assert!(error.starts_with("1:8: cannot import \"c.conf\": No such file"), "{error}");
}

#[test]
fn bind_takes_interfaces_and_exceptions() {
    let mut environment = Environment::new(LOCALHOST);
    let known = ["10.0.0.1", "10.0.0.2", "fe80::1", "fd00::1"].map(|text| text.parse::<IpAddr>().unwrap());
    environment.interfaces = Arc::new(move |name| Ok((name == "eth0").then(|| known.to_vec())));
    let addresses = |text: &str| -> Vec<String> {
        let program = Program::new(&format!(". {{\n bind {text}\n}}"), &environment).unwrap();
        program.routers.keys().map(|address| address.ip().to_string()).collect()
    };
    assert_eq!(addresses("eth0 127.0.0.1"), ["10.0.0.1", "10.0.0.2", "127.0.0.1", "fd00::1"]);
    assert_eq!(addresses("eth0 {\n except 10.0.0.2 fd00::1\n }"), ["10.0.0.1"]);
    assert_eq!(addresses("127.0.0.1 10.0.0.1 {\n except eth0\n }\n bind 10.0.0.1"), ["10.0.0.1", "127.0.0.1"]);
}
