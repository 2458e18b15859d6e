//! One suite for the fake and the kernel.

use std::{collections::BTreeSet, net::IpAddr, process::Command};

use podwire_model::{Family, IpNet, Protocol};

use super::{wire, *};
use crate::test_support::in_new_netns;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// A set of every kind with what it may hold.
fn examples() -> Vec<(Set, Vec<Entry>)> {
    let tcp = Protocol::Tcp;
    let mut all = vec![(
        Set::new("PORTS", Kind::BitmapPort, Family::V4),
        vec![Entry::Port(0), Entry::Port(30080), Entry::Port(65535)],
    )];
    for (family, a, b, wide) in [
        (Family::V4, ip("10.96.0.10"), ip("10.244.0.2"), net("192.0.2.0/24")),
        (Family::V6, ip("fd00::a"), ip("fd00::2"), net("2001:db8::/32")),
    ] {
        let name = |kind: &str| format!("{kind}-{family:?}");
        let ports = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|p| Entry::AddressPort(a, p, 53)).to_vec();
        let pairs = vec![Entry::AddressPortNet(b, tcp, 8080, b.into()), Entry::AddressPortNet(a, tcp, 80, b.into())];
        let nets = vec![Entry::AddressPortNet(a, tcp, 80, wide), Entry::AddressPortNet(a, tcp, 80, b.into())];
        all.push((Set::new(name("IPS"), Kind::HashIp, family), vec![Entry::Address(a), Entry::Address(b)]));
        all.push((Set::new(name("IP-PORT"), Kind::HashIpPort, family), ports));
        all.push((Set::new(name("IP-PORT-IP"), Kind::HashIpPortIp, family), pairs));
        all.push((Set::new(name("IP-PORT-NET"), Kind::HashIpPortNet, family), nets));
    }
    all
}

fn listed(ipset: &mut dyn Ipset, set: &str) -> BTreeSet<Element> {
    ipset.entries(set).unwrap().into_iter().collect()
}

fn suite(ipset: &mut dyn Ipset) {
    assert_eq!(ipset.sets().unwrap(), []);
    for (set, entries) in examples() {
        ipset.create(&set).unwrap();
        ipset.create(&set).unwrap();
        let elements: Vec<_> = entries.iter().copied().map(Element::new).collect();
        ipset.add(&set.name, &elements).unwrap();
        ipset.add(&set.name, &elements).unwrap();
        assert_eq!(listed(ipset, &set.name), elements.iter().copied().collect(), "{}", set.name);
        let found = ipset.sets().unwrap().into_iter().find(|found| found.set == set).unwrap();
        assert_eq!((found.entries, found.references), (Some(entries.len() as u32), 0), "{}", set.name);
        ipset.remove(&set.name, &entries[1..]).unwrap();
        ipset.remove(&set.name, &entries[1..]).unwrap();
        assert_eq!(listed(ipset, &set.name), elements[..1].iter().copied().collect(), "{}", set.name);
    }
    refusals(ipset);
    marks(ipset);
    for (set, _) in examples() {
        ipset.destroy(&set.name).unwrap();
    }
    assert_eq!(ipset.sets().unwrap(), []);
}

fn refusals(ipset: &mut dyn Ipset) {
    let other = Set::new("PORTS", Kind::HashIp, Family::V4);
    assert!(ipset.create(&other).unwrap_err().already_exists());
    assert!(ipset.destroy("NONE").unwrap_err().is_not_found());
    assert!(ipset.entries("NONE").unwrap_err().is_not_found());
    let entry = Entry::AddressPort(ip("10.96.0.10"), Protocol::Tcp, 80);
    assert!(ipset.add("NONE", &[Element::new(entry)]).unwrap_err().is_not_found());
    assert!(ipset.add("IPS-V4", &[Element::new(Entry::Address(ip("fd00::1")))]).is_err());
    assert!(ipset.add("PORTS", &[Element::new(Entry::Address(ip("10.0.0.1")))]).is_err());
    assert_eq!(ipset.swap("IPS-V4", "PORTS").unwrap_err().errno(), Some(errors::TYPE_MISMATCH));
    assert_eq!(ipset.swap("IPS-V4", "NONE").unwrap_err().errno(), Some(errors::EXIST_SETNAME2));
}

fn marks(ipset: &mut dyn Ipset) {
    let set = Set { marks: true, ..Set::new("MARKS", Kind::HashIpPort, Family::V4) };
    let spare = Set { name: "SPARE".into(), ..set.clone() };
    ipset.create(&set).unwrap();
    ipset.create(&spare).unwrap();
    let entry = Entry::AddressPort(ip("192.0.2.1"), Protocol::Tcp, 80);
    for mark in [0x5000_0001, 0x5000_0002] {
        ipset.add("MARKS", &[Element { entry, mark: Some(mark) }]).unwrap();
        assert_eq!(ipset.entries("MARKS").unwrap(), [Element { entry, mark: Some(mark) }]);
    }
    assert!(ipset.add("IP-PORT-V4", &[Element { entry, mark: Some(1) }]).is_err());
    ipset.swap("MARKS", "SPARE").unwrap();
    assert_eq!((ipset.entries("MARKS").unwrap().len(), ipset.entries("SPARE").unwrap().len()), (0, 1));
    ipset.destroy("MARKS").unwrap();
    ipset.destroy("SPARE").unwrap();
}

#[test]
fn the_fake_refuses_what_the_kernel_refuses() {
    suite(&mut Fake::new());
}

#[test]
fn the_kernel_does_the_same() {
    in_new_netns(|| suite(&mut Kernel::open().unwrap()));
}

#[test]
fn ipset_lists_what_was_made() {
    in_new_netns(|| {
        let mut kernel = Kernel::open().unwrap();
        let mut expected = BTreeSet::new();
        for (set, entries) in examples() {
            kernel.create(&set).unwrap();
            let elements: Vec<_> = entries.iter().copied().map(Element::new).collect();
            kernel.add(&set.name, &elements).unwrap();
            expected.extend(entries.iter().map(|entry| format!("add {} {entry}", set.name)));
        }
        let output = Command::new("ipset").arg("save").output().expect("ipset is installed");
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: BTreeSet<_> = text.lines().filter(|line| line.starts_with("add ")).map(str::to_owned).collect();
        assert_eq!(lines, expected);
        assert!(text.contains("create PORTS bitmap:port range 0-65535"), "{text}");
    });
}

#[test]
fn many_entries_go_in_few_messages() {
    in_new_netns(|| {
        let mut kernel = Kernel::open().unwrap();
        let set = Set::new("MANY", Kind::HashIpPort, Family::V4);
        kernel.create(&set).unwrap();
        let entry = |n: u32| Element::new(Entry::AddressPort(IpAddr::from(n.to_be_bytes()), Protocol::Tcp, 80));
        let all: Vec<_> = (1..=70_000).map(entry).collect();
        let messages = wire::elements("MANY", all.iter());
        assert!(messages.len() < 100 && messages.iter().all(|message| message.len() < 65_000), "{}", messages.len());
        kernel.add("MANY", &all).unwrap();
        assert_eq!(kernel.sets().unwrap()[0].entries, Some(70_000));
        assert_eq!(kernel.entries("MANY").unwrap().len(), 70_000);
        let entries: Vec<_> = all.iter().map(|element| element.entry).collect();
        kernel.remove("MANY", &entries).unwrap();
        assert_eq!(kernel.sets().unwrap()[0].entries, Some(0));
    });
}

#[test]
fn refusals_are_explained() {
    in_new_netns(|| {
        let mut kernel = Kernel::open().unwrap();
        kernel.create(&Set::new("IPS", Kind::HashIp, Family::V4)).unwrap();
        kernel.create(&Set::new("PORTS", Kind::BitmapPort, Family::V4)).unwrap();
        let error = kernel.swap("IPS", "PORTS").unwrap_err().to_string();
        assert!(error.starts_with("cannot swap ipsets IPS and PORTS") && error.ends_with("different kinds"), "{error}");
    });
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = (wire::found(&bytes), wire::elements_of(&bytes));
    }
}
