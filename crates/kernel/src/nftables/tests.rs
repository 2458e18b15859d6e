use std::{net::IpAddr, process::Command, time::Duration};

use podwire_model::{
    Family::{V4, V6},
    Protocol,
};

use super::*;
use crate::test_support::in_new_netns;

fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().expect("nft is installed");
    assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn addr(text: &str) -> Datum {
    Datum::Addr(text.parse::<IpAddr>().unwrap())
}

fn services(family: podwire_model::Family) -> Set {
    Set {
        name: "services".into(),
        key: vec![Field::address(family), Field::InetProto, Field::InetService],
        data: SetData::Verdict,
        kind: SetKind::Plain,
        size: Some(1024),
        comment: Some("address to chain".into()),
    }
}

fn endpoints(family: podwire_model::Family) -> Set {
    Set {
        name: "endpoints".into(),
        key: vec![Field::address(family), Field::InetProto, Field::InetService, Field::Mark],
        data: SetData::Fields(vec![Field::address(family), Field::InetService]),
        kind: SetKind::Plain,
        size: Some(100_000),
        comment: None,
    }
}

fn plain(name: &str, key: Vec<Field>, data: SetData) -> Set {
    Set { name: name.into(), key, data, kind: SetKind::Plain, size: None, comment: None }
}

fn numbers() -> Set {
    let key = vec![Field::Ipv4Addr, Field::InetProto, Field::InetService];
    plain("numbers", key, SetData::Fields(vec![Field::Mark]))
}

fn verdicts() -> Set {
    plain("verdicts", vec![Field::Mark], SetData::Verdict)
}

fn allowed() -> Set {
    let key = vec![Field::Ipv4Addr, Field::InetProto, Field::InetService, Field::Ipv4Addr];
    Set { kind: SetKind::Intervals, ..plain("allowed", key, SetData::None) }
}

fn clients() -> Set {
    let set = plain("clients", vec![Field::Ipv4Addr, Field::Mark], SetData::Fields(vec![Field::Mark]));
    Set { kind: SetKind::Dynamic, size: Some(1000), ..set }
}

fn service_key(address: &str) -> Value {
    Value::concat(&[addr(address), Datum::Proto(17), Datum::Port(53)])
}

fn number_value(number: u32) -> Mapped {
    Mapped::Value(Value::concat(&[Datum::Mark(number)]))
}

fn allowed_from(first: &str, last: &str) -> Element {
    let key = |source| Value::concat(&[addr("10.96.0.10"), Datum::Proto(17), Datum::Port(53), addr(source)]);
    Element { end: Some(key(last)), ..Element::key(key(first)) }
}

/// One of everything that the builder can say.
fn sample() -> (Table, Batch) {
    let table = Table::new(Family::Ip, "sample");
    let mut batch = Batch::new();
    batch.replace_table(&table, Some("a sample"));
    batch.add_set(&table, services(V4));
    batch.add_set(&table, endpoints(V4));
    let pairs = vec![Field::Ipv4Addr, Field::Ipv4Addr];
    batch.add_set(
        &table,
        Set {
            name: "hairpin".into(),
            key: pairs,
            data: SetData::None,
            kind: SetKind::Plain,
            size: None,
            comment: None,
        },
    );
    for set in [numbers(), verdicts(), allowed(), clients()] {
        batch.add_set(&table, set);
    }
    batch.add_chain(&table, Chain::regular("to-mark"));
    batch.add_chain(&table, Chain::regular("pick-3"));
    batch.add_chain(&table, Chain::base("prerouting", ChainKind::Nat, Hook::Prerouting, priority::DSTNAT));
    batch.add_chain(&table, Chain::base("postrouting", ChainKind::Nat, Hook::Postrouting, priority::SRCNAT));
    batch.add_chain(&table, Chain::base("forward", ChainKind::Filter, Hook::Forward, priority::FILTER));
    batch.add_chain(&table, Chain::base("early", ChainKind::Filter, Hook::Output, priority::RAW));

    let pods = "10.244.0.0/16".parse().unwrap();
    batch.add_rule(&table, "to-mark", Rule::new(V4).set_mark_bits(0x4000));
    let key = [Key::Destination, Key::L4Proto, Key::DestinationPort];
    let with = |last| [key[0], key[1], key[2], last];
    let random = with(Key::Random { modulus: 3, offset: 0 });
    let fixed = with(Key::Random { modulus: 1, offset: 65536 });
    batch.add_rule(&table, "pick-3", Rule::new(V4).source(Is::Not, pods).jump("to-mark"));
    batch.add_rule(&table, "pick-3", Rule::new(V4).dnat_map(&fixed, "endpoints"));
    batch.add_rule(&table, "pick-3", Rule::new(V4).dnat_map(&random, "endpoints"));
    batch.add_rule(&table, "prerouting", Rule::new(V4).verdict_map(&key, "services"));
    batch.add_rule(&table, "prerouting", Rule::new(V4).numbered_verdict(&key, "numbers", "verdicts"));
    batch.add_rule(&table, "pick-3", Rule::new(V4).in_set(Is::Not, &with(Key::Source), "allowed").drop());
    let (client, service, number) = (Reg(0), Reg(1), Reg(2));
    let timeout = Duration::from_secs(3600);
    let known = Rule::new(V4).load(&[Key::Source], client).load(&key, service).number("numbers", service, service);
    let known = known.number("clients", client, number);
    let update = Expr::Update { map: "clients".into(), key: client, value: number, timeout };
    batch.add_rule(&table, "pick-3", known.expr(update).expr(Expr::Counter));
    let remove = Expr::Remove { map: "clients".into(), key: client, value: number };
    let both = Rule::new(V4).load(&[Key::Source, Key::Random { modulus: 9, offset: 0 }], client);
    batch.add_rule(&table, "pick-3", both.load(&[Key::Random { modulus: 1, offset: 7 }], number).expr(remove));
    let loopback = "127.0.0.0/8".parse().unwrap();
    let local = Rule::new(V4).destination(Is::Not, loopback).local(Side::Destination, Is::Equal);
    batch.add_rule(&table, "prerouting", local.reject());
    let hairpin = Rule::new(V4).in_set(Is::Equal, &[Key::Source, Key::Destination], "hairpin");
    batch.add_rule(&table, "postrouting", hairpin.masquerade(0).comment("hairpin"));
    batch.add_rule(&table, "postrouting", Rule::new(V4).mark(Is::Equal, 0x4000, 0).return_());
    batch.add_rule(&table, "postrouting", Rule::new(V4).clear_mark_bits(0x4000));
    batch.add_rule(&table, "postrouting", Rule::new(V4).masquerade(nat_flags::FULLY_RANDOM));
    batch.add_rule(&table, "forward", Rule::new(V4).ct_state(1).drop());
    batch.add_rule(&table, "forward", Rule::new(V4).ct_status(ct_status::DST_NAT).accept());
    batch.add_rule(&table, "forward", Rule::new(V4).input_name(Is::Equal, "eth0").expr(Expr::Counter).accept());
    batch.add_rule(&table, "forward", Rule::new(V4).input_prefix(Is::Not, "veth").accept());
    let local = "169.254.20.10/32".parse().unwrap();
    let to = Rule::new(V4).destination(Is::Equal, local).port(Protocol::Udp, Side::Destination, 53);
    batch.add_rule(&table, "early", to.notrack());
    let from = Rule::new(V4).source(Is::Equal, local).port(Protocol::Tcp, Side::Source, 53);
    batch.add_rule(&table, "early", from.notrack());

    let service = Value::concat(&[addr("10.96.0.10"), Datum::Proto(17), Datum::Port(53)]);
    let goto = Mapped::Verdict(Verdict::Goto("pick-3".into()));
    let element = Element { key: service, end: None, data: goto, comment: Some("kube-system/kube-dns:dns".into()) };
    batch.add_elements(&table, "services", vec![element]);
    let endpoint = |index| Element {
        key: Value::concat(&[addr("10.96.0.10"), Datum::Proto(17), Datum::Port(53), Datum::Mark(index)]),
        end: None,
        data: Mapped::Value(Value::concat(&[addr("10.244.1.2"), Datum::Port(5353)])),
        comment: None,
    };
    batch.add_elements(&table, "endpoints", (0..3).map(endpoint).collect());
    let verdict = Mapped::Verdict(Verdict::Goto("pick-3".into()));
    batch.add_elements(&table, "verdicts", vec![Element::map(Value::concat(&[Datum::Mark(3)]), verdict)]);
    batch.add_elements(&table, "numbers", vec![Element::map(service_key("10.96.0.10"), number_value(3))]);
    batch.add_elements(&table, "allowed", vec![allowed_from("192.0.2.0", "192.0.2.255")]);
    let pair = Value::concat(&[addr("10.244.1.2"), addr("10.244.1.2")]);
    batch.add_elements(&table, "hairpin", vec![Element::key(pair)]);
    (table, batch)
}

/// What `nft list table ip sample` prints: the tool finds nothing strange in what we encode.
const LISTED: &str = r#"table ip sample {
	comment "a sample"
	map services {
		type ipv4_addr . inet_proto . inet_service : verdict
		size 1024
		comment "address to chain"
		elements = { 10.96.0.10 . udp . 53 comment "kube-system/kube-dns:dns" : goto pick-3 }
	}

	map endpoints {
		type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service
		size 100000
		elements = { 10.96.0.10 . udp . 53 . 0x00000000 : 10.244.1.2 . 5353,
			     10.96.0.10 . udp . 53 . 0x00000001 : 10.244.1.2 . 5353,
			     10.96.0.10 . udp . 53 . 0x00000002 : 10.244.1.2 . 5353 }
	}

	set hairpin {
		type ipv4_addr . ipv4_addr
		elements = { 10.244.1.2 . 10.244.1.2 }
	}

	map numbers {
		type ipv4_addr . inet_proto . inet_service : mark
		elements = { 10.96.0.10 . udp . 53 : 0x00000003 }
	}

	map verdicts {
		type mark : verdict
		elements = { 0x00000003 : goto pick-3 }
	}

	set allowed {
		type ipv4_addr . inet_proto . inet_service . ipv4_addr
		flags interval
		elements = { 10.96.0.10 . udp . 53 . 192.0.2.0/24 }
	}

	map clients {
		type ipv4_addr . mark : mark
		size 1000
		flags dynamic,timeout
	}

	chain to-mark {
		meta mark set meta mark | 0x00004000
	}

	chain pick-3 {
		ip saddr != 10.244.0.0/16 jump to-mark
		dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 1 offset 65536 map @endpoints
		dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints
		ip daddr . meta l4proto . th dport . ip saddr != @allowed drop
		meta mark set ip daddr . meta l4proto . th dport map @numbers meta mark set meta mark meta mark set ip saddr . meta mark map @clients meta mark set meta mark update @clients { ip saddr . meta mark timeout 1h : meta mark } counter packets 0 bytes 0
		delete @clients { ip saddr . numgen random mod 9 : numgen random mod 1 offset 7 }
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr . meta l4proto . th dport vmap @services
		meta mark set ip daddr . meta l4proto . th dport map @numbers meta mark set meta mark meta mark vmap @verdicts
		ip daddr != 127.0.0.0/8 fib daddr type local reject
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr . ip daddr @hairpin masquerade comment "hairpin"
		meta mark & 0x00004000 == 0x00000000 return
		meta mark set meta mark & 0xffffbfff
		masquerade fully-random
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state invalid drop
		ct status dnat accept
		iifname "eth0" counter packets 0 bytes 0 accept
		iifname != "veth*" accept
	}

	chain early {
		type filter hook output priority raw; policy accept;
		ip daddr 169.254.20.10 udp dport 53 notrack
		ip saddr 169.254.20.10 tcp sport 53 notrack
	}
}
"#;

#[test]
fn nft_lists_what_was_committed_as_its_own() {
    in_new_netns(|| {
        let (_, batch) = sample();
        Kernel::open().unwrap().commit(&batch).unwrap();
        assert_eq!(nft(&["list", "table", "ip", "sample"]), LISTED);
    });
}

#[test]
fn the_kernel_and_the_fake_list_the_same() {
    in_new_netns(|| {
        let (table, batch) = sample();
        let mut kernel = Kernel::open().unwrap();
        let mut fake = Fake::new();
        kernel.commit(&batch).unwrap();
        fake.commit(&batch).unwrap();
        assert_eq!(kernel.tables().unwrap(), fake.tables().unwrap());
        let sorted = |mut chains: Vec<Chain>| {
            chains.sort_by(|a, b| a.name.cmp(&b.name));
            chains
        };
        assert_eq!(sorted(kernel.chains(&table).unwrap()), sorted(fake.chains(&table).unwrap()));
        let rules = |nftables: &mut dyn Nftables| {
            let mut rules: Vec<_> = nftables.rules(&table).unwrap();
            rules.sort_by(|a, b| (&a.chain, a.handle).cmp(&(&b.chain, b.handle)));
            rules.into_iter().map(|rule| (rule.chain, rule.comment, rule.expressions)).collect::<Vec<_>>()
        };
        assert_eq!(rules(&mut kernel), rules(&mut fake));
        for set in ["services", "endpoints", "hairpin", "numbers", "verdicts", "allowed", "clients"] {
            let elements = |nftables: &mut dyn Nftables| {
                let mut elements = nftables.elements(&table, set).unwrap();
                elements.sort_by_key(|element| element.key);
                elements
            };
            assert_eq!(elements(&mut kernel), elements(&mut fake), "{set}");
        }
        for held in fake.elements(&table, "services").unwrap() {
            assert_eq!(kernel.element(&table, "services", &held.key).unwrap(), Some(held.clone()));
            assert_eq!(fake.element(&table, "services", &held.key).unwrap(), Some(held));
        }
        for nftables in [&mut kernel as &mut dyn Nftables, &mut fake] {
            let held = nftables.elements(&table, "endpoints").unwrap();
            let mut keys: Vec<Value> = held.iter().rev().map(|element| element.key).cycle().take(1000).collect();
            let found = nftables.elements_at(&table, "endpoints", &keys).unwrap().unwrap();
            let expected: Vec<Element> = held.iter().rev().cloned().cycle().take(1000).collect();
            assert!(held.len() > 1 && found == expected, "each, in the order asked for, in more than one answer");
            keys[500] = Value::concat(&[addr("10.96.9.9"), Datum::Proto(17), Datum::Port(53), Datum::Mark(0)]);
            assert_eq!(nftables.elements_at(&table, "endpoints", &keys).unwrap(), None, "one is not there");
            assert_eq!(nftables.elements_at(&table, "endpoints", &[]).unwrap(), Some(vec![]));
            assert_eq!(nftables.element(&table, "services", &service_key("10.96.9.9")).unwrap(), None);
            let nowhere = nftables.element(&table, "nowhere", &service_key("10.96.0.10")).unwrap_err();
            let no_table = Table::new(Family::Ip6, "none");
            let no_table = nftables.element(&no_table, "services", &service_key("10.96.0.10")).unwrap_err();
            assert!(nowhere.is_not_found() && no_table.is_not_found(), "{nowhere}, {no_table}");
        }
        let sizes = |nftables: &mut dyn Nftables| {
            let mut sets = nftables.sets(&table).unwrap();
            sets.sort_by(|a, b| a.name.cmp(&b.name));
            sets
        };
        let told = sizes(&mut kernel);
        let mut fake = if told.iter().all(|set| set.count.is_none()) { fake.old() } else { fake };
        assert_eq!(told, sizes(&mut fake));
    });
}

/// Transactions that must be refused, with the error number; the base is [`sample`].
fn refusals() -> Vec<(&'static str, Batch, i32)> {
    let (table, base) = sample();
    let other = Table::new(Family::Ip, "other");
    let key = |mark| Value::concat(&[addr("10.96.0.10"), Datum::Proto(17), Datum::Port(53), Datum::Mark(mark)]);
    let value = Mapped::Value(Value::concat(&[addr("10.244.1.9"), Datum::Port(1)]));
    let element = |mark| Element::map(key(mark), value.clone());
    let build = |f: &dyn Fn(&mut Batch)| {
        let mut batch = Batch::new();
        f(&mut batch);
        batch
    };
    assert!(!base.is_empty());
    vec![
        ("unknown table", build(&|b| b.delete_table(&other)), libc::ENOENT),
        ("rule in an unknown chain", build(&|b| b.add_rule(&table, "none", Rule::new(V4).accept())), libc::ENOENT),
        ("jump to nowhere", build(&|b| b.add_rule(&table, "to-mark", Rule::new(V4).jump("none"))), libc::ENOENT),
        ("unknown set", build(&|b| b.add_elements(&table, "none", vec![element(9)])), libc::ENOENT),
        ("element twice", build(&|b| b.add_elements(&table, "endpoints", vec![element(1)])), libc::EEXIST),
        ("missing element", build(&|b| b.delete_elements(&table, "endpoints", vec![element(9)])), libc::ENOENT),
        ("chain in use", build(&|b| b.delete_chain(&table, "pick-3")), libc::EBUSY),
        ("flush of an unknown chain", build(&|b| b.flush_chain(&table, "none")), libc::ENOENT),
        ("unknown rule", build(&|b| b.delete_rule(&table, "to-mark", 9999)), libc::ENOENT),
        ("unknown chain", build(&|b| b.delete_chain(&table, "none")), libc::ENOENT),
        ("unknown set deleted", build(&|b| b.delete_set(&table, "none")), libc::ENOENT),
        (
            "set of another type",
            build(&|b| b.add_set(&table, Set { name: "hairpin".into(), ..services(V4) })),
            libc::EEXIST,
        ),
        (
            "jump to a base chain",
            build(&|b| b.add_rule(&table, "to-mark", Rule::new(V4).jump("forward"))),
            libc::EOPNOTSUPP,
        ),
        (
            "overlapping ranges",
            build(&|b| b.add_elements(&table, "allowed", vec![allowed_from("192.0.2.9", "192.0.3.0")])),
            libc::EEXIST,
        ),
        (
            "a range without an end",
            build(&|b| b.add_elements(&table, "verdicts", vec![allowed_from("192.0.2.9", "192.0.3.0")])),
            libc::EINVAL,
        ),
        (
            "an update of a map that rules may not fill",
            build(&|b| {
                let update =
                    Expr::Update { map: "numbers".into(), key: Reg(0), value: Reg(4), timeout: Duration::from_secs(1) };
                let key = [Key::Destination, Key::L4Proto, Key::DestinationPort, Key::Random { modulus: 1, offset: 0 }];
                b.add_rule(&table, "to-mark", Rule::new(V4).load(&key, Reg(0)).load(&key[3..], Reg(4)).expr(update));
            }),
            libc::EOPNOTSUPP,
        ),
        ("set in use", build(&|b| b.delete_set(&table, "endpoints")), libc::EBUSY),
        (
            "key too short",
            build(&|b| {
                let element = Element::map(Value::concat(&[addr("1.2.3.4")]), value.clone());
                b.add_elements(&table, "endpoints", vec![element]);
            }),
            libc::EINVAL,
        ),
    ]
}

#[test]
fn the_kernel_and_the_fake_refuse_the_same_and_change_nothing() {
    in_new_netns(|| {
        let (table, base) = sample();
        let mut kernel = Kernel::open().unwrap();
        let mut fake = Fake::new();
        kernel.commit(&base).unwrap();
        fake.commit(&base).unwrap();
        for (case, refused, errno) in refusals() {
            // A good first step shows that the transaction as a whole is undone.
            let mut batch = Batch::new();
            batch.add_chain(&table, Chain::regular("left-over"));
            for (table, action) in refused.steps() {
                batch.push(table, action.clone());
            }
            for nftables in [&mut kernel as &mut dyn Nftables, &mut fake] {
                let error = nftables.commit(&batch).unwrap_err();
                assert_eq!(error.errno(), Some(errno), "{case}: {error}");
                assert!(error.to_string().contains("in nftables table ip"), "{error}");
                assert!(nftables.chains(&table).unwrap().iter().all(|chain| &*chain.name != "left-over"), "{case}");
            }
        }
        assert_eq!(nft(&["list", "table", "ip", "sample"]), LISTED);
    });
}

#[test]
fn a_rule_is_recognised_in_what_the_kernel_lists() {
    in_new_netns(|| {
        let (table, batch) = sample();
        let mut kernel = Kernel::open().unwrap();
        kernel.commit(&batch).unwrap();
        let made = |chain: &str| -> Vec<Rule> {
            let rules = batch.steps().filter_map(|(_, action)| match action {
                Action::AddRule { chain: found, rule } if &**found == chain => Some(rule.clone()),
                _ => None,
            });
            rules.collect()
        };
        for chain in ["to-mark", "pick-3", "prerouting", "postrouting", "forward", "early"] {
            let listed: Vec<_> =
                kernel.rules(&table).unwrap().into_iter().filter(|rule| &*rule.chain == chain).collect();
            let made = made(chain);
            assert_eq!(listed.len(), made.len());
            for (at, listed) in listed.iter().enumerate() {
                let same: Vec<_> = made.iter().map(|rule| listed.does(rule)).collect();
                let expected: Vec<_> = (0..made.len()).map(|other| other == at).collect();
                assert_eq!(same, expected, "rule {at} of {chain}: {listed:?}");
            }
        }
    });
}

#[test]
fn what_others_change_is_told_and_what_we_change_is_not() {
    in_new_netns(|| {
        let (table, batch) = sample();
        let tables = [table.clone()];
        let mut kernel = Kernel::open().unwrap();
        assert!(!kernel.changed_by_others(&tables).unwrap(), "the first call begins to watch");
        kernel.commit(&batch).unwrap();
        let many = |marks: std::ops::Range<u32>| -> Vec<Element> {
            let element = |mark| {
                Element::map(
                    Value::concat(&[addr("10.96.0.9"), Datum::Proto(6), Datum::Port(1), Datum::Mark(mark)]),
                    Mapped::Value(Value::concat(&[addr("10.244.1.2"), Datum::Port(1)])),
                )
            };
            marks.map(element).collect()
        };
        let mut large = Batch::new();
        large.add_elements(&table, "endpoints", many(0..10_000));
        kernel.commit(&large).unwrap();
        nft(&["add", "table", "ip", "other"]);
        assert!(!kernel.changed_by_others(&tables).unwrap(), "neither our own changes nor other tables are news");
        for change in [
            &["delete", "element", "ip", "sample", "verdicts", "{ 3 }"][..],
            &["add", "chain", "ip", "sample", "new"],
            &["flush", "chain", "ip", "sample", "new"],
            &["add", "rule", "ip", "sample", "new", "drop"],
            &["flush", "ruleset"],
        ] {
            nft(change);
            let news = change[1] != "chain" || change[0] != "flush";
            assert_eq!(kernel.changed_by_others(&tables).unwrap(), news, "{change:?}");
            assert!(!kernel.changed_by_others(&tables).unwrap());
        }
        // Deleted by hand while a large transaction of ours is made and nobody watches: counted.
        kernel.commit(&batch).unwrap();
        let mut refused = Batch::new();
        refused.add_elements(&table, "endpoints", many(0..10_000));
        refused.delete_chain(&table, "none");
        kernel.commit(&refused).unwrap_err();
        assert!(!kernel.changed_by_others(&tables).unwrap(), "a refused transaction changes nothing");
        // More news than the socket holds.
        let mut other = Kernel::open().unwrap();
        for turn in 0..40 {
            let mut batch = Batch::new();
            batch.add_elements(&table, "endpoints", many(turn * 2000..(turn + 1) * 2000));
            other.commit(&batch).unwrap();
        }
        assert!(kernel.changed_by_others(&tables).unwrap());
    });
}

#[test]
fn a_full_set_is_refused_until_its_size_is_raised() {
    in_new_netns(|| {
        let table = Table::new(Family::Ip6, "full");
        let element = |index| Element {
            key: Value::concat(&[addr("fd00::1"), Datum::Proto(6), Datum::Port(80), Datum::Mark(index)]),
            end: None,
            data: Mapped::Value(Value::concat(&[addr("fd00:1::1"), Datum::Port(8080)])),
            comment: None,
        };
        let sized = |size| Set { size: Some(size), ..endpoints(V6) };
        for nftables in [&mut Kernel::open().unwrap() as &mut dyn Nftables, &mut Fake::new()] {
            let mut batch = Batch::new();
            batch.add_table(&table, None);
            batch.add_set(&table, sized(2));
            nftables.commit(&batch).unwrap();
            let mut three = Batch::new();
            three.add_elements(&table, "endpoints", (0..3).map(element).collect());
            assert_eq!(nftables.commit(&three).unwrap_err().errno(), Some(libc::ENFILE));
            let mut batch = Batch::new();
            batch.add_set(&table, sized(8));
            nftables.commit(&batch).unwrap();
            let raised = nftables.sets(&table).unwrap()[0].size == Some(8);
            let is_old = std::env::var("PODWIRE_TIER").is_ok_and(|tier| tier == "vm");
            // Linux before 6.5 takes the new size, and forgets it.
            assert!(raised || is_old);
            let committed = nftables.commit(&three);
            assert_eq!(committed.err().and_then(|error| error.errno()), (!raised).then_some(libc::ENFILE));
            assert_eq!(nftables.elements(&table, "endpoints").unwrap().len(), if raised { 3 } else { 0 });
        }
    });
}

#[test]
fn a_hundred_thousand_elements_fit_one_transaction() {
    in_new_netns(|| {
        let table = Table::new(Family::Ip, "large");
        let mut batch = Batch::new();
        batch.add_table(&table, None);
        batch.add_set(&table, Set { size: Some(200_000), ..endpoints(V4) });
        let element = |index| Element {
            key: Value::concat(&[addr("10.96.0.1"), Datum::Proto(6), Datum::Port(80), Datum::Mark(index)]),
            end: None,
            data: Mapped::Value(Value::concat(&[addr("10.244.0.1"), Datum::Port(8080)])),
            comment: None,
        };
        let elements: Vec<_> = (0..100_000).map(element).collect();
        batch.add_elements(&table, "endpoints", elements.clone());
        let mut kernel = Kernel::open().unwrap();
        kernel.commit(&batch).unwrap();
        let mut listed = kernel.elements(&table, "endpoints").unwrap();
        listed.sort_by_key(|element| element.key.split(&endpoints(V4).key).unwrap()[3]);
        assert_eq!(listed, elements);
        let mut batch = Batch::new();
        batch.delete_elements(&table, "endpoints", elements);
        kernel.commit(&batch).unwrap();
        assert!(kernel.elements(&table, "endpoints").unwrap().is_empty());
    });
}

#[test]
fn a_failing_fake_fails_a_tenth_and_keeps_its_state() {
    let (table, batch) = sample();
    let mut fake = Fake::new();
    fake.commit(&batch).unwrap();
    let before = fake.ruleset().clone();
    let mut fake = fake.failing_one_in(10);
    let mut other = Batch::new();
    other.add_chain(&table, Chain::regular("other"));
    let failed = (0..1000).filter(|_| fake.chains(&table).is_err()).count();
    assert!((50..150).contains(&failed), "{failed} of 1000 failed");
    while fake.commit(&other).is_ok() {
        *fake.ruleset_mut() = before.clone();
    }
    assert_eq!(*fake.ruleset(), before, "a refused transaction changed something");
    fake.heal();
    fake.commit(&other).unwrap();
    assert_eq!(fake.chains(&table).unwrap().len(), 7);
    assert_eq!(fake.take_commits()[0], batch);
}
