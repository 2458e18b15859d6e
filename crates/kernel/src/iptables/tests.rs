use podwire_model::Family::{self, V4, V6};
use proptest::prelude::*;

use super::*;
use crate::{Error, test_support::in_new_netns};

/// Every form of a rule, as `iptables-save` prints it. `{4|6}` takes one for each family.
const RULES: &[&str] = &[
    "-m comment --comment \"just text\"",
    "-m comment --comment word",
    "-s {10.96.0.1/32|fd00::1/128} -m comment --comment \"ns/x:p\" -j RETURN",
    "! -s {10.0.0.0/8|fd00::/64} -d {10.96.0.1/32|fd00::1/128} -p tcp -m comment --comment \"a \\\"b\\\"\" -m tcp --dport 80 -j KUBE-B",
    "! -i cni+ -m addrtype --src-type LOCAL -j KUBE-B",
    "-m addrtype ! --dst-type LOCAL -j KUBE-B",
    "-o eth0 -p udp -m udp --sport 1:1024 ! --dport 5",
    "-p sctp -m sctp --dport 5 -j ACCEPT",
    "-m recent --rcheck --seconds 10800 --reap --name KUBE-B --mask {255.255.255.255|ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff} --rsource -j KUBE-B",
    "-p tcp -m recent --set --name KUBE-B --mask {255.255.255.255|ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff} --rsource -m tcp -j DNAT --to-destination {10.1.1.1:80|[fd00::9]:80}",
    "-m statistic --mode random --probability 0.33333333349 -j KUBE-B",
    "-m mark ! --mark 0x4000/0x4000 -j RETURN",
    "-m mark --mark 0x7 -j ACCEPT",
    "-j MARK --set-xmark 0x4000/0x4000",
    "-j MARK --set-xmark 0x4000/0x0",
    "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT",
    "-p tcp -j REDIRECT --to-ports 4000",
    "-g KUBE-B",
];

/// Restored with these, the same rules come out.
const OTHER_SPELLINGS: &[(&str, &str)] = &[
    ("-j MARK --or-mark 0x4000", "-j MARK --set-xmark 0x4000/0x4000"),
    ("-j MARK --xor-mark 16384", "-j MARK --set-xmark 0x4000/0x0"),
    ("-m tcp -p tcp --dport 80 -m comment --comment \"x\"", "-p tcp -m tcp --dport 80 -m comment --comment x"),
    (
        "-m statistic --mode random --probability 0.3333333333 -j KUBE-B",
        "-m statistic --mode random --probability 0.33333333349 -j KUBE-B",
    ),
    ("-m conntrack --ctstate DNAT,NEW", "-m conntrack --ctstate NEW,DNAT"),
];

const REFUSED: &[(&str, &str)] = &[
    ("*nat\n-A NOPE -j ACCEPT\nCOMMIT\n", "line 2"),
    ("*nat\n:A - [0:0]\n-A A -j NOPE\nCOMMIT\n", "line"),
    ("*nat\n:A - [0:0]\n:B - [0:0]\n-A A -j B\n-X B\nCOMMIT\n", "line 5"),
    ("*nat\n:A - [0:0]\n-A A -j ACCEPT\n-X A\nCOMMIT\n", "line 4"),
    ("*nat\n:A - [0:0]\n-D A -j ACCEPT\nCOMMIT\n", "line 3"),
    ("*nat\n-N A\n-N A\nCOMMIT\n", "line 3"),
    ("*nope\nCOMMIT\n", "line"),
    ("*nat\n-X A\nCOMMIT\n", "line 2"),
    ("*nat\n:A - [0:0]\n-A A -m banana\nCOMMIT\n", "line"),
    ("*nat\n:A1234567890123456789012345678 - [0:0]\nCOMMIT\n", "line"),
    ("*nat\n:A - [0:0]\n", ""),
    ("*filter\n:A - [0:0]\n-A A -p tcp -j DNAT --to-destination 1.1.1.1:80\nCOMMIT\n", "line"),
    ("*nat\n:A - [0:0]\n-A A -j DNAT --to-destination 1.1.1.1:80\nCOMMIT\n", "line"),
    ("*nat\n:A - [0:0]\n-A A -p tcp -m udp --dport 80\nCOMMIT\n", "line"),
    ("*nat\n:A - [0:0]\n-A A -j DROP\nCOMMIT\n", "line"),
    ("*nat\n:A - [0:0]\n-A A -s fd00::1\nCOMMIT\n", "line"),
];

fn of_family(text: &str, family: Family) -> String {
    let Some((before, rest)) = text.split_once('{') else { return text.to_owned() };
    let (choice, after) = rest.split_once('}').unwrap();
    let (v4, v6) = choice.split_once('|').unwrap();
    format!("{before}{}{}", if family == V4 { v4 } else { v6 }, of_family(after, family))
}

/// Everything that is expected of an iptables.
fn suite(iptables: &mut dyn Iptables) {
    for family in [V4, V6] {
        let rules: Vec<_> = RULES.iter().map(|rule| of_family(rule, family)).collect();
        let mut text = "*nat\n:KUBE-A - [0:0]\n:KUBE-B - [0:0]\n".to_owned();
        rules.iter().for_each(|rule| text += &format!("-A KUBE-A {rule}\n"));
        iptables.restore(family, &(text + "COMMIT\n*filter\n:KUBE-F - [0:0]\n-A KUBE-F -j REJECT\nCOMMIT\n")).unwrap();
        let saved = iptables.save(family, Table::Nat).unwrap();
        assert_eq!(saved.rules("KUBE-A"), rules);
        assert_eq!(saved.chains["PREROUTING"].policy.as_deref(), Some("ACCEPT"));
        for rule in saved.rules("KUBE-A") {
            assert_eq!(rule.parse::<Rule>().unwrap().display(family).to_string(), *rule);
        }
        let icmp = of_family("-j REJECT --reject-with {icmp|icmp6}-port-unreachable", family);
        assert_eq!(iptables.save(family, Table::Filter).unwrap().rules("KUBE-F"), [icmp]);
        for (given, saved) in OTHER_SPELLINGS {
            iptables.restore(family, &format!("*nat\n:KUBE-A - [0:0]\n-A KUBE-A {given}\nCOMMIT\n")).unwrap();
            assert_eq!(iptables.save(family, Table::Nat).unwrap().rules("KUBE-A"), [*saved]);
        }
        steps(iptables, family);
    }
    let before = iptables.save(V4, Table::Nat).unwrap();
    for (text, line) in REFUSED {
        let error = iptables.restore(V4, text).unwrap_err();
        assert!(matches!(error, Error::Program { .. }), "{text}: {error}");
        assert!(error.to_string().contains(line), "{text}: {error}");
        assert_eq!(iptables.save(V4, Table::Nat).unwrap(), before, "{text}");
    }
    iptables.restore(V4, "").unwrap();
}

fn steps(iptables: &mut dyn Iptables, family: Family) {
    let mut rules = |lines: &str| {
        iptables.restore(family, &format!("*nat\n{lines}COMMIT\n")).unwrap();
        iptables.save(family, Table::Nat).unwrap()
    };
    let filled = rules(":KUBE-A - [0:0]\n-A KUBE-A -j ACCEPT\n-I KUBE-A -j KUBE-B\n-I KUBE-A 2 -j RETURN\n");
    assert_eq!(filled.rules("KUBE-A"), ["-j KUBE-B", "-j RETURN", "-j ACCEPT"]);
    assert_eq!(rules("-D KUBE-A -j RETURN\n").rules("KUBE-A"), ["-j KUBE-B", "-j ACCEPT"]);
    assert_eq!(rules("").rules("KUBE-A").len(), 2, "what is not named stays");
    let gone = rules(":KUBE-A - [0:0]\n-X KUBE-A\n-X KUBE-B\n");
    assert!(!gone.chains.contains_key("KUBE-A") && !gone.chains.contains_key("KUBE-B"));
}

#[test]
fn the_fake_is_as_the_real_one() {
    suite(&mut Fake::new());
}

#[test]
fn legacy() {
    in_new_netns(|| suite(&mut Real::open(Some(Backend::Legacy)).unwrap()));
}

#[test]
fn nft() {
    in_new_netns(|| suite(&mut Real::open(Some(Backend::Nft)).unwrap()));
}

#[test]
fn a_change_by_others_is_noticed_and_its_own_is_not() {
    for backend in [Backend::Legacy, Backend::Nft] {
        in_new_netns(|| {
            let mut ours = Real::open(Some(backend)).unwrap();
            ours.restore(V4, "*nat\n:KUBE-A - [0:0]\n-A PREROUTING -j KUBE-A\nCOMMIT\n").unwrap();
            assert!(!ours.disturbed().unwrap(), "{backend:?}");
            let mut others = Real::open(Some(backend)).unwrap();
            if backend == Backend::Nft {
                others.restore(V4, "*nat\n:OTHER - [0:0]\nCOMMIT\n").unwrap();
                assert!(!ours.disturbed().unwrap(), "not ours");
            }
            for change in ["-F PREROUTING\n", "-X KUBE-A\n", ":KUBE-A - [0:0]\n", "-A PREROUTING -j KUBE-A\n"] {
                others.restore(V4, &format!("*nat\n{change}COMMIT\n")).unwrap();
                assert!(ours.disturbed().unwrap(), "{backend:?} {change}");
                assert!(!ours.disturbed().unwrap(), "{backend:?} {change}");
            }
        });
    }
}

#[test]
fn the_backend_in_use_is_found() {
    in_new_netns(|| {
        assert_eq!(Backend::detect(), Backend::Nft, "nothing tells");
        let mut legacy = Real::open(Some(Backend::Legacy)).unwrap();
        assert_eq!(legacy.save(V4, Table::Nat).unwrap(), TableState::default(), "looking makes no table");
        legacy.restore(V4, "*nat\n-A OUTPUT -j RETURN\nCOMMIT\n").unwrap();
        assert_eq!(Backend::detect(), Backend::Legacy, "more rules");
        let mut nft = Real::open(Some(Backend::Nft)).unwrap();
        nft.restore(V6, "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n").unwrap();
        assert_eq!(Backend::detect(), Backend::Nft, "kubelet's chains");
    });
}

#[test]
fn the_fake_fails_as_often_as_it_is_told() {
    let mut fake = Fake::new().failing_one_in(3).without(V6, Table::Nat);
    let failed = (0..300).filter(|_| fake.save(V4, Table::Nat).is_err()).count();
    assert!((60..140).contains(&failed), "{failed}");
    fake.heal();
    assert_eq!(fake.save(V6, Table::Nat).unwrap(), TableState::default());
    assert!(fake.restore(V6, "*nat\nCOMMIT\n").is_err());
    assert!(!fake.disturbed().unwrap());
    fake.table_mut(V4, Table::Nat).chains.clear();
    assert!(fake.disturbed().unwrap());
}

proptest! {
    #[test]
    fn any_text_is_parsed_without_a_panic(text in "(-[A-Za-z]|--[a-z]+|:|\\*|!|[A-Za-z0-9./\"\\\\]+| |\n){0,30}") {
        if let Ok(rule) = text.parse::<Rule>() {
            let printed = rule.display(V4).to_string();
            prop_assert_eq!(printed.parse::<Rule>().map(|again| again.display(V4).to_string()), Ok(printed));
        }
        let _ = TableState::parse(&text);
        let _ = Fake::new().restore(V4, &text);
    }
}
