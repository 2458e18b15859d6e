//! Other programs that change what a mode made.

use std::{io::Write as _, process::Command};

use podwire_proxy::mode::Description;
use podwire_testkit::{
    build::ip,
    packet_table::{self, NODE},
    random::Random,
};

use super::{
    driver::{Driver, SOON, check_rows},
    net::{Net, modes},
    random_worlds::{Objects, events},
};

/// Modes that do not listen to what others do.
const DEAF: &[&str] = &["nftables"];

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

fn shell(net: &Net, command: &str) {
    let output = net.at(&ip(NODE), || Command::new("sh").args(["-c", command]).output().unwrap());
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_others_destroy_is_noticed_and_repaired_within_a_second() {
    for description in modes().filter(|mode| !DEAF.contains(&mode.name)) {
        for command in vandalism(description) {
            let Some(net) = Net::build() else { return };
            let mut driver = Driver::start_at(&net, description);
            driver.set(&packet_table::world()).unwrap();
            assert!(!driver.mode.disturbed().unwrap(), "{}: own writes", description.name);
            shell(&net, command);
            let when = format!("{} mode, after {command}", description.name);
            let time = driver.repaired_after().unwrap_or_else(|| panic!("{when}: nothing was noticed"));
            assert!(time < SOON, "{when}: repaired after {time:?}");
            check_rows(&net, &packet_table::rows(), description.keeps_sources, &when);
            driver.calm_down();
            assert!(!driver.mode.disturbed().unwrap(), "{when}: own repairs");
        }
    }
}

#[test]
fn own_writes_are_nobody_elses() {
    for description in modes() {
        let Some(net) = Net::build() else { return };
        let mut driver = Driver::start_at(&net, description);
        let (mut random, mut objects) = (Random::new(3), Objects::default());
        for round in 0..20 {
            events(&mut random, 20).iter().for_each(|event| objects.take(event));
            driver.set(&objects.world()).unwrap();
            assert!(!driver.mode.disturbed().unwrap(), "{} mode, round {round}: a change", description.name);
            driver.mode.tidy().unwrap();
            assert!(!driver.mode.disturbed().unwrap(), "{} mode, round {round}: tidying", description.name);
        }
    }
}

/// So many notifications that a socket cannot hold them; among them one that matters.
#[test]
fn lost_notifications_count_as_interference() {
    for description in modes().filter(|mode| mode.name == "nftables" && !DEAF.contains(&mode.name)) {
        let Some(net) = Net::build() else { return };
        let mut driver = Driver::start_at(&net, description);
        driver.set(&packet_table::world()).unwrap();
        assert!(!driver.mode.disturbed().unwrap());
        let mut flood = String::from("add table ip flood\nadd set ip flood s { type ipv4_addr; }\n");
        for number in 0..60_000 {
            flood += &format!("add element ip flood s {{ 10.0.{}.{} }}\n", number >> 8, number & 255);
        }
        let load = || {
            let mut nft = Command::new("nft").args(["-f", "-"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
            nft.stdin.take().unwrap().write_all(flood.as_bytes()).unwrap();
            assert!(nft.wait().unwrap().success());
        };
        net.at(&ip(NODE), load);
        shell(&net, "nft flush map ip podwire services");
        net.at(&ip(NODE), load);
        assert!(driver.repaired_after().is_some_and(|time| time < SOON));
        check_rows(&net, &packet_table::rows(), description.keeps_sources, "after a flood of notifications");
    }
}

#[test]
fn two_proxies_at_once_settle_when_one_ends() {
    for description in modes() {
        let Some(net) = Net::build() else { return };
        let (mut first, mut second) = (Driver::start_at(&net, description), Driver::start_at(&net, description));
        let states = packet_table::history();
        for (one, other) in states.iter().zip(states.iter().rev()) {
            // Either may be refused what the other has changed under it; it comes back to that later.
            let _ = first.set(one);
            let _ = second.set(other);
            for driver in [&mut first, &mut second] {
                if driver.mode.disturbed().unwrap() {
                    let _ = driver.mode.apply(podwire_proxy::Changes::default());
                }
            }
        }
        drop(second);
        let _ = first.set(&packet_table::world());
        first.calm_down();
        let when = format!("{} mode, after two proxies", description.name);
        check_rows(&net, &packet_table::rows(), description.keeps_sources, &when);
    }
}
