//! The rules as `iptables-restore` takes them, checked by the real one.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use podwire_kernel::{
    ipset::{self, Ipset as _},
    iptables::Table,
};
use podwire_model::Family;
use podwire_proxy::mode::{
    DetectLocal, Settings,
    ipvs::{Ipvs, kernel::Fake},
};
use podwire_testkit::{namespace::in_namespace, packet_table};

use super::table::{applied, bring, kernel, settings, tracker};

/// The tables of a family as `iptables-save` would print them.
fn saved(fake: &Fake, family: Family) -> String {
    let mut text = String::new();
    for table in [Table::Mangle, Table::Nat, Table::Filter] {
        let state = fake.iptables.table(family, table);
        text += &format!("*{table}\n");
        for chain in state.chains.keys() {
            let policy = state.chains[chain].policy.as_deref().unwrap_or("-");
            text += &format!(":{chain} {policy} [0:0]\n");
        }
        for (chain, state) in &state.chains {
            state.rules.iter().for_each(|rule| text += &format!("-A {chain} {rule}\n"));
        }
        text += "COMMIT\n";
    }
    text
}

#[test]
fn the_rules_are_these() {
    let world = packet_table::world();
    let settings = Settings { service_ranges: vec!["10.96.0.0/16".parse().unwrap()], ..settings(&world) };
    let mut mode = Ipvs::new(kernel(&world), settings);
    bring(&mut mode, &mut tracker(), &world);
    assert_eq!(saved(mode.kernel(), Family::V4), include_str!("rules.v4"));
}

/// Makes the sets in this kernel and lets the program look at the rules.
fn accepted(fake: &Fake, family: Family, backend: &str) {
    let mut kernel = ipset::Kernel::open().unwrap();
    for (set, entries) in fake.ipset.table().values() {
        kernel.create(set).unwrap();
        let elements: Vec<_> =
            entries.iter().map(|(entry, mark)| ipset::Element { entry: *entry, mark: *mark }).collect();
        kernel.add(&set.name, &elements).unwrap();
        assert_eq!(kernel.entries(&set.name).unwrap().len(), elements.len(), "{}", set.name);
    }
    let program = if family == Family::V4 { "iptables" } else { "ip6tables" };
    let mut restore = Command::new(format!("{program}-{backend}-restore"))
        .arg("--noflush")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("iptables is installed");
    restore.stdin.take().unwrap().write_all(saved(fake, family).as_bytes()).unwrap();
    let output = restore.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {backend}: {}", String::from_utf8_lossy(&output.stderr));
    // What it prints is what the mode compares with: a restart must find its rules unchanged.
    for table in [Table::Mangle, Table::Nat, Table::Filter] {
        let output = Command::new(format!("{program}-{backend}-save")).args(["-t", table.name()]).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        for (chain, state) in fake.iptables.table(family, table).chains {
            let rules: Vec<_> = printed.lines().filter_map(|line| line.strip_prefix(&format!("-A {chain} "))).collect();
            assert_eq!(rules, state.rules, "{program} {backend} {table} {chain}");
        }
    }
}

#[test]
fn both_kinds_of_iptables_take_the_rules_and_print_them_the_same() {
    let world = packet_table::world();
    for detect in [
        DetectLocal::Unknown,
        settings(&world).detect_local,
        DetectLocal::Interface("cni0".to_owned()),
        DetectLocal::InterfacePrefix("veth".to_owned()),
    ] {
        let service_ranges = vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()];
        let settings = Settings { detect_local: detect, service_ranges, ..Settings::default() };
        let mut mode = Ipvs::new(kernel(&world), settings);
        bring(&mut mode, &mut tracker(), &world);
        for (family, backend) in
            [Family::V4, Family::V6].into_iter().flat_map(|family| ["legacy", "nft"].map(|backend| (family, backend)))
        {
            in_namespace(|| accepted(mode.kernel(), family, backend));
        }
    }
}

#[test]
fn both_families_have_rules() {
    let mode = applied(&packet_table::world());
    let [four, six] = [Family::V4, Family::V6].map(|family| saved(mode.kernel(), family));
    assert_eq!(
        four.replace("KUBE-", "KUBE-6-").matches("--match-set").count(),
        six.matches("--match-set KUBE-6-").count()
    );
}
