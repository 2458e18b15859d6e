//! What somebody else changes by hand is noticed and put back.

use podwire_kernel::nftables::Kernel;
use podwire_proxy::{
    Changes,
    mode::{Mode, nftables::Nftables},
};
use podwire_testkit::{namespace::in_namespace, packet_table};

use super::{
    golden::nft,
    table::{settings, tracker},
};

#[test]
fn what_is_changed_by_hand_is_noticed_and_put_back() {
    in_namespace(|| {
        let world = packet_table::world();
        let mut tracker = tracker();
        tracker.set_services(world.services.clone());
        tracker.set_slices(world.slices.clone());
        let mut mode = Nftables::new(Kernel::open().unwrap(), settings(&world));
        mode.apply(tracker.take_changes().unwrap()).unwrap();
        while mode.tidy().unwrap() {}
        assert!(!mode.disturbed().unwrap(), "what the mode does itself is not news");
        let right = nft(&["list", "ruleset"]);
        for (change, elements) in [
            ("flush ruleset", None),
            ("delete table ip podwire", None),
            ("delete element ip podwire services { 10.96.0.10 . tcp . 80 }", Some(1)),
            ("delete element ip podwire endpoints { 10.96.0.10 . tcp . 80 . 0x00000001 }", Some(1)),
            ("add element ip podwire endpoints { 10.96.0.10 . tcp . 80 . 0x00000003 : 10.244.9.9 . 80 }", Some(0)),
            ("add element ip podwire cluster-ips { 10.96.77.77 }", Some(1)),
            ("delete element ip podwire kinds { 0x00000003 }", None),
            ("flush chain ip podwire nat-prerouting", None),
            ("add chain ip podwire nobodys", None),
            ("add rule ip podwire services drop", None),
            ("flush set ip podwire hairpin", Some(3)),
        ] {
            nft(&[change]);
            assert!(mode.disturbed().unwrap(), "{change}");
            let applied = mode.apply(Changes::default()).unwrap();
            assert!(applied.full, "{change}");
            if let Some(elements) = elements {
                assert_eq!(applied.written, elements, "{change}: no more than what is wrong");
            }
            while mode.tidy().unwrap() {}
            assert_eq!(sorted(&nft(&["list", "ruleset"])), sorted(&right), "{change}");
            assert!(!mode.disturbed().unwrap(), "{change}: the repair is not news");
        }
        nft(&["add", "table", "ip", "of-someone-else"]);
        nft(&["add", "chain", "ip", "of-someone-else", "podwire"]);
        assert!(!mode.disturbed().unwrap(), "others' tables are not our business");
    });
}

/// A change of a rule that leaves its kinds of expressions is seen by a restart as well.
#[test]
fn a_restart_puts_rules_right_that_do_something_else() {
    in_namespace(|| {
        let world = packet_table::world();
        let start = || {
            let mut tracker = tracker();
            tracker.set_services(world.services.clone());
            tracker.set_slices(world.slices.clone());
            let mut mode = Nftables::new(Kernel::open().unwrap(), settings(&world));
            let written = mode.apply(tracker.take_changes().unwrap()).unwrap().written;
            while mode.tidy().unwrap() {}
            written
        };
        start();
        let right = nft(&["list", "ruleset"]);
        nft(&["flush", "chain", "ip", "podwire", "mark-for-masquerade"]);
        nft(&["add rule ip podwire mark-for-masquerade meta mark set meta mark | 0x00008000"]);
        assert!(start() > 0);
        assert_eq!(sorted(&nft(&["list", "ruleset"])), sorted(&right));
        assert_eq!(start(), 0);
    });
}

/// The kernel lists chains and elements in the order in which they came.
fn sorted(ruleset: &str) -> Vec<String> {
    let words = ruleset.replace("elements = {", "").replace(['}', '{'], "");
    let mut lines: Vec<String> = words.split(['\n', ',']).map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines.retain(|line| !line.is_empty());
    lines
}
