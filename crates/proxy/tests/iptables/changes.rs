//! What changes write: as little as possible, to the same end by every road, and whatever fails on the way.

use podwire_kernel::iptables::{Fake, Iptables as _, Table, TableState};
use podwire_model::{Family, Family::V4, Protocol};
use podwire_proxy::{
    Changes,
    mode::{
        Mode, StaleFlows,
        iptables::{IptablesMode, remove},
    },
    plan::{Backend, Entry, Frontend},
};
use podwire_testkit::{
    build::{endpoint, ip, node_port_service, service, slice},
    packet_table::{self, World},
    replay,
};

use super::table::{applied, assert_rows, settings, start, tracker, tracking};

/// Applies until it succeeds. After a failure the kernel is read again, several operations of which any may fail too.
fn apply(mode: &mut IptablesMode<Fake>, mut changes: Changes) {
    for _ in 0..300 {
        if mode.apply(std::mem::take(&mut changes)).is_ok() {
            return;
        }
    }
    panic!("did not succeed in 300 attempts");
}

/// Removes what is unused, as a proxy does after a while.
fn tidy(mode: &mut IptablesMode<Fake>) {
    for _ in 0..300 {
        match mode.tidy() {
            Ok(false) => return,
            Ok(true) => {}
            Err(_) => apply(mode, Changes::default()),
        }
    }
    panic!("not tidy after 300 attempts");
}

/// Every table; rules sorted where their order means nothing.
fn shape(fake: &Fake) -> Vec<(Family, Table, TableState)> {
    let all = [V4, Family::V6].into_iter().flat_map(|family| Table::ALL.map(|table| (family, table)));
    all.map(|(family, table)| {
        let mut state = fake.table(family, table);
        for (_, chain) in state.chains.iter_mut().filter(|(name, _)| name.ends_with('S')) {
            chain.rules.sort();
        }
        (family, table, state)
    })
    .collect()
}

#[test]
fn every_road_leads_to_the_same_rules() {
    let end = packet_table::world();
    let direct = shape(applied(&end).iptables());
    for fail in [None, Some(10)] {
        for (road, states) in replay::roads(&packet_table::history(), &packet_table::empty()) {
            let fake = fail.map_or_else(Fake::new, |n| Fake::new().failing_one_in(n));
            let mut mode = IptablesMode::new(fake, settings(&end));
            let mut tracker = tracker();
            for world in states {
                tracker.set_services(world.services);
                tracker.set_slices(world.slices);
                apply(&mut mode, tracker.take_changes().unwrap());
            }
            tidy(&mut mode);
            mode.iptables_mut().heal();
            let road = format!("{road}, fail: {fail:?}");
            assert_rows(mode.iptables(), &end, &road);
            assert_eq!(shape(mode.iptables()), direct, "{road}");
        }
    }
}

#[test]
fn a_restart_writes_nothing_when_all_is_right() {
    let world = packet_table::world();
    let mut fake = applied(&world).iptables().clone();
    fake.take_restored();
    let mut restarted = IptablesMode::new(fake, settings(&world));
    let applied = restarted.apply(tracking(&world).take_changes().unwrap()).unwrap();
    assert!(applied.full);
    assert_eq!((applied.written, restarted.iptables_mut().take_restored()), (0, Vec::new()));
}

#[test]
fn without_services_nothing_is_made() {
    let mut mode = applied(&packet_table::empty());
    assert_eq!(mode.iptables_mut().take_restored(), []);
}

/// A kernel where others have rules as well.
fn shared_kernel() -> Fake {
    let mut fake = Fake::new();
    let others = "*nat\n:DOCKER - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n-A DOCKER -j RETURN\nCOMMIT\n\
                  *filter\n-A FORWARD -i docker0 -j ACCEPT\nCOMMIT\n";
    fake.restore(V4, others).unwrap();
    fake
}

#[test]
fn a_restart_removes_what_no_service_asks_for_and_leaves_alone_what_is_of_others() {
    let world = packet_table::world();
    let fake = start(shared_kernel(), &world).iptables().clone();
    let mut half = world.clone();
    half.services.truncate(3);
    half.slices.retain(|slice| half.services.iter().any(|service| service.name == slice.service_name()));
    let mut restarted = start(fake, &half);
    tidy(&mut restarted);
    assert_eq!(shape(restarted.iptables()), shape(start(shared_kernel(), &half).iptables()));
}

#[test]
fn cleanup_leaves_what_was_there_before() {
    let mut fake = start(shared_kernel(), &packet_table::world()).iptables().clone();
    remove(&mut fake).unwrap();
    assert_eq!(shape(&fake), shape(&shared_kernel()));
    fake.take_restored();
    remove(&mut fake).unwrap();
    assert_eq!(fake.take_restored(), [], "nothing is left to remove");
}

#[test]
fn what_others_destroy_is_repaired() {
    let world = packet_table::world();
    let mut mode = applied(&world);
    let right = shape(mode.iptables());
    assert!(!mode.disturbed().unwrap());
    let nat = |table: &mut TableState, what: &dyn Fn(&str) -> bool| {
        table.chains.iter_mut().filter(|(name, _)| what(name)).for_each(|(_, chain)| chain.rules.clear());
    };
    type Damage<'a> = &'a dyn Fn(&mut Fake);
    let damages: [Damage; 6] = [
        &|fake| nat(fake.table_mut(V4, Table::Nat), &|_| true),
        &|fake| nat(fake.table_mut(V4, Table::Filter), &|name| name == "FORWARD"),
        &|fake| nat(fake.table_mut(V4, Table::Nat), &|name| name.starts_with("KUBE-SVC-")),
        &|fake| fake.table_mut(V4, Table::Nat).chains.retain(|name, _| !name.starts_with("KUBE-")),
        &|fake| {
            let services = fake.table_mut(V4, Table::Nat).chains.get_mut("KUBE-SERVICES").unwrap();
            services.rules.rotate_left(1);
        },
        &|fake| {
            let chains = &mut fake.table_mut(V4, Table::Filter).chains;
            chains.get_mut("KUBE-EXTERNAL-SERVICES").unwrap().rules.push("-j ACCEPT".to_owned());
        },
    ];
    for (number, damage) in damages.iter().enumerate() {
        damage(mode.iptables_mut());
        // A table without chains of its own is no table of the kernel: those come back by themselves.
        let builtin = Fake::new().table(V4, Table::Nat).chains;
        let chains = &mut mode.iptables_mut().table_mut(V4, Table::Nat).chains;
        for (name, chain) in builtin {
            chains.entry(name).or_insert(chain);
        }
        assert!(mode.disturbed().unwrap(), "{number}");
        assert!(mode.apply(Changes::default()).unwrap().full, "{number}");
        assert_eq!(shape(mode.iptables()), right, "{number}");
        assert!(!mode.disturbed().unwrap(), "{number}");
    }
}

/// So many Services with three endpoints each.
fn many(count: u8) -> World {
    let mut world = packet_table::empty();
    for number in 1..=count {
        let name = format!("web{number}");
        world.services.push(node_port_service(&name, &format!("10.96.1.{number}"), 30000 + u16::from(number)));
        let endpoints: Vec<_> = (1..=3).map(|pod| format!("10.244.{number}.{pod}")).collect();
        world.slices.push(slice(&name, 8080, &endpoints.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    world
}

#[test]
fn work_is_in_proportion_to_the_change() {
    let world = many(100);
    let mut mode = applied(&world);
    mode.iptables_mut().take_restored();
    let mut tracker = tracking(&world);
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    let lines = |mode: &mut IptablesMode<Fake>| -> usize {
        let restored = mode.iptables_mut().take_restored();
        restored.iter().map(|(_, text)| text.lines().filter(|line| !line.starts_with(['*', 'C'])).count()).sum()
    };
    mode.iptables_mut().take_restored();

    let mut grown = world.slices[41].clone();
    grown.endpoints.push(endpoint("10.244.42.4"));
    tracker.slice(grown);
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    assert_eq!(lines(&mut mode), 9, "the endpoint's chain with 2 rules, the Service's with 5");

    tracker.slice(world.slices[41].clone());
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    assert_eq!(lines(&mut mode), 5, "the Service's chain with 4 rules");
    tidy(&mut mode);
    assert_eq!(lines(&mut mode), 2, "the endpoint's chain emptied and removed");

    tracker.service_gone(&world.services[7].name);
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    assert_eq!(lines(&mut mode), 3, "3 rules deleted");
    tracker.service(world.services[7].clone());
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    tidy(&mut mode);
    assert_eq!(lines(&mut mode), 3, "3 rules inserted: the chains were still there");

    tracker.service_gone(&world.services[7].name);
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    assert_eq!(lines(&mut mode), 3, "3 rules deleted");
    tidy(&mut mode);
    assert_eq!(lines(&mut mode), 10, "5 chains emptied and removed");

    tracker.service(world.services[7].clone());
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    assert_eq!(lines(&mut mode), 20, "5 chains, 12 rules in them, 3 rules inserted");
}

/// A packet under way may see some chains of a transaction changed and others not yet.
#[test]
fn chains_are_there_before_anything_leads_to_them_and_stay_a_while_after() {
    let mut world = many(1);
    let mut mode = applied(&world);
    let mut tracker = tracking(&world);
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    mode.iptables_mut().take_restored();
    let steps = |mode: &mut IptablesMode<Fake>| -> Vec<Vec<String>> {
        let restored = mode.iptables_mut().take_restored();
        let made = |text: &str| {
            let chains = text.lines().filter_map(|line| line.strip_prefix(':'));
            chains.map(|chain| chain[..9].to_owned()).collect()
        };
        restored.iter().map(|(_, text)| made(text)).collect()
    };

    let old = world.slices[0].clone();
    world.slices[0].endpoints = vec![endpoint("10.244.1.4"), endpoint("10.244.1.5")];
    tracker.set_slices(world.slices.clone());
    assert!(mode.apply(tracker.take_changes().unwrap()).unwrap().untidy);
    assert_eq!(steps(&mut mode), [vec!["KUBE-SEP-"; 2], vec!["KUBE-SVC-"]]);
    assert!(mode.tidy().unwrap());
    assert_eq!(steps(&mut mode), [] as [Vec<String>; 0], "unused not for long yet");

    world.slices[0].endpoints.push(old.endpoints[0].clone());
    tracker.set_slices(world.slices.clone());
    assert!(mode.apply(tracker.take_changes().unwrap()).unwrap().untidy);
    assert_eq!(steps(&mut mode), [["KUBE-SVC-"]], "an endpoint that is back");
    assert!(!mode.tidy().unwrap());
    assert_eq!(steps(&mut mode), [["KUBE-SEP-"; 2]], "the two that stayed away");
}

#[test]
fn a_service_that_comes_back_otherwise_gives_its_old_chains_another_while() {
    let mut world = many(1);
    let mut mode = applied(&world);
    let mut tracker = tracking(&world);
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    tracker.service_gone(&world.services[0].name);
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    assert!(mode.tidy().unwrap());
    world.slices[0].endpoints = vec![endpoint("10.244.1.4")];
    tracker.service(world.services[0].clone());
    tracker.slice(world.slices[0].clone());
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    mode.iptables_mut().take_restored();
    assert!(mode.tidy().unwrap());
    assert_eq!(mode.iptables_mut().take_restored(), [], "the Service's chain led there until now");
    assert!(!mode.tidy().unwrap());
    assert_eq!(shape(mode.iptables()), shape(applied(&world).iptables()));
}

fn frontend(address: &str) -> Frontend {
    Frontend { entry: Entry::Address(ip(address)), protocol: Protocol::Udp, port: 80 }
}

fn backend(address: &str) -> Backend {
    Backend { address: ip(address), port: 8080 }
}

/// UDP Services, each with its endpoints.
fn udp(services: &[(&str, &str, &[&str])]) -> World {
    let mut world = packet_table::empty();
    for (name, address, endpoints) in services {
        let mut service = service(name, address);
        service.ports[0].protocol = Protocol::Udp;
        world.services.push(service);
        let mut slice = slice(name, 8080, endpoints);
        slice.ports[0].protocol = Protocol::Udp;
        world.slices.push(slice);
    }
    world
}

#[test]
fn flows_to_removed_udp_endpoints_are_reported_also_for_the_last_one() {
    let one = udp(&[("a", "10.96.0.1", &["10.244.0.2"])]);
    let mut mode = applied(&one);
    let mut tracker = tracking(&one);
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    let mut stale = |endpoints: &[&str]| {
        let world = udp(&[("a", "10.96.0.1", endpoints)]);
        tracker.set_slices(world.slices);
        mode.apply(tracker.take_changes().unwrap()).unwrap().stale
    };
    let gone = |address| StaleFlows::To(frontend("10.96.0.1"), backend(address));
    assert_eq!(stale(&["10.244.0.2", "10.244.0.3"]), []);
    assert_eq!(stale(&["10.244.0.3"]), [gone("10.244.0.2")]);
    assert_eq!(stale(&[]), [gone("10.244.0.3")]);
    assert_eq!(stale(&["10.244.0.3"]), [StaleFlows::Untranslated(frontend("10.96.0.1"))]);
}

#[test]
fn what_went_away_while_no_proxy_ran_is_reported_by_the_next_one() {
    let before = udp(&[("a", "10.96.0.1", &["10.244.0.2", "10.244.0.3"]), ("b", "10.96.0.2", &["10.244.0.4"])]);
    let after = udp(&[("a", "10.96.0.1", &["10.244.0.3"]), ("c", "10.96.0.3", &["10.244.0.5"])]);
    let fake = applied(&before).iptables().clone();
    let mut mode = IptablesMode::new(fake, settings(&after));
    let stale = mode.apply(tracking(&after).take_changes().unwrap()).unwrap().stale;
    let gone = |vip, address| StaleFlows::To(frontend(vip), backend(address));
    let untranslated = StaleFlows::Untranslated(frontend("10.96.0.3"));
    assert_eq!(stale, [gone("10.96.0.1", "10.244.0.2"), gone("10.96.0.2", "10.244.0.4"), untranslated]);
}

#[test]
fn an_address_that_becomes_a_cluster_ip_is_treated_as_one() {
    let mut world = packet_table::empty();
    let mut first = service("a", "10.96.0.1");
    first.external_ips = vec![ip("10.96.0.2")];
    world.services.push(first);
    world.slices.push(slice("a", 8080, &["10.244.0.2"]));
    let mut tracker = tracking(&world);
    let mut mode = IptablesMode::new(Fake::new(), settings(&world));
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    let second = service("b", "10.96.0.2");
    tracker.service(second.clone());
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    world.services.push(second);
    tidy(&mut mode);
    assert_eq!(shape(mode.iptables()), shape(applied(&world).iptables()));
}
