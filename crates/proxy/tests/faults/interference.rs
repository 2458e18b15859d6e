//! Other programs that change what a mode made.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use podwire_proxy::{Changes, mode::Description};
use podwire_testkit::{packet_table, random::Random};

use super::{
    driver::{Driver, check_rows, on_node},
    random_worlds::{Objects, events},
};

/// What an administrator's program may do to a mode's work, as shell commands.
fn vandalism(description: &Description) -> &'static [&'static str] {
    match description.name {
        "nftables" => &[
            "nft flush ruleset",
            "nft delete table ip podwire",
            "nft flush map ip podwire services",
            "nft flush chain ip podwire nat-prerouting",
            // One element of a map, whichever is the first that is listed.
            "nft delete element ip podwire services \"{ $(nft list map ip podwire services | grep -oE '[0-9.]+ \\. (tcp|udp) \\. [0-9]+' | head -1) }\"",
        ],
        "iptables" | "userspace" => &[
            "for i in iptables-nft iptables-legacy; do $i -w -t nat -F; done",
            "for i in iptables-nft iptables-legacy; do $i -w -t nat -F && $i -w -t nat -X; done",
            "for i in iptables-nft iptables-legacy; do \
               $i-save -t nat | grep -- '-A KUBE-.*10.96.0.10/32' | head -1 | sed 's/^-A/-D/' | xargs -r $i -w -t nat; done",
        ],
        "ipvs" => &["ipvsadm -C", "ipset flush KUBE-CLUSTER-IP", "ip link delete kube-ipvs0"],
        other => panic!("say what others may do to {other} mode"),
    }
}

fn shell(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_others_destroy_is_noticed_and_repaired_within_a_second() {
    on_node(|net, description| {
        for command in vandalism(description) {
            let mut driver = Driver::start(description);
            driver.set(&packet_table::brief().world).unwrap();
            driver.calm_down();
            shell(command);
            let when = format!("{} mode, after {command}", description.name);
            assert!(driver.repairs_soon(), "{when}: nothing was noticed");
            check_rows(net, &packet_table::brief().rows, description.keeps_sources, &when);
            driver.calm_down();
            assert!(!driver.mode.disturbed().unwrap(), "{when}: own repairs");
        }
    });
}

#[test]
fn own_writes_are_nobody_elses() {
    on_node(|_, description| {
        let mut driver = Driver::start(description);
        let (mut random, mut objects) = (Random::new(3), Objects::default());
        for round in 0..20 {
            events(&mut random, 20).iter().for_each(|event| objects.take(event));
            driver.set(&objects.world()).unwrap();
            assert!(!driver.mode.disturbed().unwrap(), "{} mode, round {round}: a change", description.name);
            driver.mode.tidy().unwrap();
            assert!(!driver.mode.disturbed().unwrap(), "{} mode, round {round}: tidying", description.name);
        }
    });
}

/// So many notifications that a socket cannot hold them; among them one that matters.
#[test]
fn lost_notifications_count_as_interference() {
    let mut flood = String::from("add table ip flood\nadd set ip flood s { type ipv4_addr; }\n");
    for number in 0..60_000 {
        flood += &format!("add element ip flood s {{ 10.0.{}.{} }}\n", number >> 8, number & 255);
    }
    let load = || {
        let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        nft.stdin.take().unwrap().write_all(flood.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success());
    };
    on_node(|net, description| {
        if description.name != "nftables" {
            return;
        }
        let mut driver = Driver::start(description);
        driver.set(&packet_table::brief().world).unwrap();
        assert!(!driver.mode.disturbed().unwrap());
        load();
        shell("nft flush map ip podwire services");
        load();
        assert!(driver.repairs_soon());
        check_rows(net, &packet_table::brief().rows, description.keeps_sources, "after a flood of notifications");
    });
}

#[test]
fn two_proxies_at_once_settle_when_one_ends() {
    on_node(|net, description| {
        let (mut first, mut second) = (Driver::start(description), Driver::start(description));
        let states = packet_table::history();
        for (one, other) in states.iter().zip(states.iter().rev()) {
            // Either may be refused what the other has changed under it; it comes back to that later.
            let _ = first.set(one);
            let _ = second.set(other);
            for driver in [&mut first, &mut second] {
                if driver.mode.disturbed().unwrap() {
                    let _ = driver.mode.apply(Changes::default());
                }
            }
        }
        drop(second);
        let _ = first.set(&packet_table::brief().world);
        first.calm_down();
        let when = format!("{} mode, after two proxies", description.name);
        check_rows(net, &packet_table::brief().rows, description.keeps_sources, &when);
    });
}
