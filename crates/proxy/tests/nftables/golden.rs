//! What the real `nft` prints of the real kernel.

use std::process::Command;

use podwire_kernel::nftables::{Family, Kernel, Nftables as _, Table};
use podwire_proxy::mode::{Mode, nftables::Nftables};
use podwire_testkit::{
    build::{service, slice},
    namespace::in_namespace,
    packet_table,
};

use super::table::{settings, tracker};

pub fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().expect("nft is installed");
    assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Without the layout number, which changes with every rule.
fn listed() -> String {
    let text = nft(&["list", "ruleset"]);
    let mut lines: Vec<_> = text.lines().collect();
    lines.retain(|line| !line.contains("podwire layout"));
    lines.join("\n") + "\n"
}

#[test]
fn nft_prints_the_ruleset_as_it_is_meant() {
    in_namespace(|| {
        let world = packet_table::empty();
        let mut tracker = tracker();
        let mut web = podwire_testkit::build::node_port_service("web", "10.96.0.10", 30080);
        web.external_policy = podwire_model::TrafficPolicy::Local;
        tracker.set_services([web, service("none", "10.96.0.11")]);
        tracker.set_slices([slice("web", 8080, &["10.244.0.2@node1", "10.244.1.2@node2"])]);
        let mut mode = Nftables::new(Kernel::open().unwrap(), settings(&world));
        mode.apply(tracker.take_changes().unwrap()).unwrap();
        if std::env::var_os("GOLDEN").is_some() {
            std::fs::write("/tmp/ruleset.nft", listed()).unwrap();
        }
        assert_eq!(listed(), include_str!("ruleset.nft"));
    });
}

#[test]
fn a_restart_on_the_real_kernel_writes_nothing() {
    in_namespace(|| {
        let world = packet_table::world();
        let start = || {
            let mut tracker = tracker();
            tracker.set_services(world.services.clone());
            tracker.set_slices(world.slices.clone());
            let mut mode = Nftables::new(Kernel::open().unwrap(), settings(&world));
            mode.apply(tracker.take_changes().unwrap()).unwrap()
        };
        assert!(start().written > 50);
        let before = nft(&["-a", "list", "ruleset"]);
        assert_eq!(start().written, 0);
        assert_eq!(nft(&["-a", "list", "ruleset"]), before);
        podwire_proxy::mode::nftables::cleanup().unwrap();
        assert_eq!(nft(&["list", "ruleset"]), "");
        podwire_proxy::mode::nftables::cleanup().unwrap();
    });
}

/// Linux before 6.5 keeps a set's first size: there the table is replaced.
#[test]
fn sets_grow_on_the_real_kernel() {
    in_namespace(|| {
        let mut tracker = tracker();
        let mut mode = Nftables::new(Kernel::open().unwrap(), settings(&packet_table::empty()));
        tracker.set_services([]);
        tracker.set_slices([]);
        mode.apply(tracker.take_changes().unwrap()).unwrap();
        let named = |n: u16| (format!("web-{n}"), format!("10.96.{}.{}", n / 256, n % 256));
        let many = || (0..9000).map(named);
        tracker.set_services(many().map(|(name, address)| service(&name, &address)));
        tracker.set_slices(many().map(|(name, _)| slice(&name, 8080, &["10.244.0.2"])));
        mode.apply(tracker.take_changes().unwrap()).unwrap();
        // Not with nft, which is slow at listing so many.
        let held = || Kernel::open().unwrap().elements(&Table::new(Family::Ip, "podwire"), "services").unwrap().len();
        assert_eq!(held(), 9000);
        tracker.set_services([service("last", "10.96.255.1")]);
        tracker.set_slices([slice("last", 8080, &["10.244.0.2"])]);
        mode.apply(tracker.take_changes().unwrap()).unwrap();
        assert_eq!(held(), 1);
    });
}

#[test]
fn ipv6_services_have_a_table_of_their_own() {
    in_namespace(|| {
        let world = packet_table::empty();
        let mut tracker = tracker();
        tracker.set_services([service("six", "fd00:10:96::a")]);
        tracker.set_slices([slice("six", 8080, &["fd00:10:244::2", "fd00:10:244::3"])]);
        let mut mode = Nftables::new(Kernel::open().unwrap(), settings(&world));
        mode.apply(tracker.take_changes().unwrap()).unwrap();
        let text = nft(&["list", "table", "ip6", "podwire"]);
        assert!(text.contains("fd00:10:96::a . tcp . 80 comment \"default/six\" : 0x00000002"), "{text}");
        assert!(text.contains("fd00:10:96::a . tcp . 80 . 0x00000001 : fd00:10:244::3 . 8080"), "{text}");
        tracker.set_services([]);
        mode.apply(tracker.take_changes().unwrap()).unwrap();
        assert!(mode.tidy().unwrap());
        assert!(!mode.tidy().unwrap());
        assert!(!nft(&["list", "table", "ip6", "podwire"]).contains("fd00:10:"));
        nft(&["add", "table", "ip", "of-someone-else"]);
        podwire_proxy::mode::nftables::cleanup().unwrap();
        assert_eq!(nft(&["list", "tables"]), "table ip of-someone-else\n");
    });
}
