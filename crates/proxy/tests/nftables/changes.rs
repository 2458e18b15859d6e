//! What changes write: as little as possible, to the same end by every road, and whatever fails on the way.

use std::collections::BTreeSet;

use podwire_kernel::nftables::{Action, Batch, Element, Fake, Nftables as _, Value};
use podwire_model::{EndpointSlice, Family, Protocol, Service};
use podwire_proxy::{
    Changes, Tracker,
    mode::{Mode, StaleFlows, nftables::Nftables},
    plan::{Backend, Entry, Frontend},
};
use podwire_testkit::{
    build::{endpoint, ip, node_port_service, service, slice},
    packet_table::{self, World},
    replay,
};

use super::table::{applied, assert_rows, settings, table, tracker};

/// Moves a tracker from whatever it holds to `world` by single events, and calls `after` after each.
fn by_events(tracker: &mut Tracker, from: &World, to: &World, mut after: impl FnMut(&mut Tracker)) {
    let gone = |old: &Service| to.services.iter().all(|new| new.name != old.name);
    for service in from.services.iter().filter(|service| gone(service)) {
        tracker.service_gone(&service.name);
        after(tracker);
    }
    let gone = |old: &EndpointSlice| to.slices.iter().all(|new| new.name != old.name);
    for slice in from.slices.iter().filter(|slice| gone(slice)) {
        tracker.slice_gone(&slice.name);
        after(tracker);
    }
    for slice in &to.slices {
        tracker.slice(slice.clone());
        after(tracker);
    }
    for service in &to.services {
        tracker.service(service.clone());
        after(tracker);
    }
}

/// Applies until it succeeds. After a failure the kernel is read again, a dozen operations of which any may fail too.
fn apply(mode: &mut Nftables<Fake>, mut changes: Changes) {
    for _ in 0..2000 {
        if mode.apply(std::mem::take(&mut changes)).is_ok() {
            return;
        }
    }
    panic!("did not succeed in 2000 attempts");
}

/// Tidies until nothing is left to tidy: two calls, if nothing fails.
fn tidy(mode: &mut Nftables<Fake>) {
    for _ in 0..2000 {
        match mode.tidy() {
            Ok(false) => return,
            Ok(true) => {}
            Err(_) => apply(mode, Changes::default()),
        }
    }
    panic!("is not tidy after 2000 attempts");
}

#[test]
fn every_road_leads_to_the_same_rules() {
    let empty = packet_table::empty();
    let end = packet_table::world();
    for fail in [None, Some(10)] {
        for (road, states) in replay::roads(&packet_table::history(), &empty) {
            for split in [false, true] {
                let fake = fail.map_or_else(Fake::new, |n| Fake::new().failing_one_in(n));
                let mut mode = Nftables::new(fake, settings(&end));
                let mut tracker = tracker();
                tracker.set_services([]);
                tracker.set_slices([]);
                let mut from = empty.clone();
                for to in states.clone() {
                    by_events(&mut tracker, &from, &to, |tracker| {
                        if split {
                            apply(&mut mode, tracker.take_changes().unwrap());
                        }
                    });
                    apply(&mut mode, tracker.take_changes().unwrap());
                    from = to;
                }
                tidy(&mut mode);
                mode.kernel_mut().heal();
                let road = format!("{road}, split: {split}, fail: {fail:?}");
                assert_rows(mode.kernel(), &end, &road);
                let (ours, direct) = (&mode.kernel().ruleset()[&table()], applied(&end));
                let direct = &direct.kernel().ruleset()[&table()];
                assert!(ours.chains.keys().eq(direct.chains.keys()), "{road}");
                assert_eq!(ours.rule_count(), direct.rule_count(), "{road}");
                for (name, set) in &ours.sets {
                    assert!(set.elements.keys().eq(direct.sets[name].elements.keys()), "{road}: {name}");
                }
            }
        }
    }
}

#[test]
fn nothing_is_planned_before_both_lists_are_complete() {
    let mut tracker = tracker();
    assert_eq!(tracker.take_changes(), None);
    tracker.slice(slice("web", 80, &["10.244.0.2"]));
    tracker.set_services([service("web", "10.96.0.10")]);
    assert_eq!(tracker.take_changes(), None);
    tracker.set_slices([slice("web", 80, &["10.244.0.2"])]);
    assert_eq!(tracker.take_changes().unwrap().frontends.len(), 1);
    assert_eq!(tracker.take_changes().unwrap(), Changes::default());
}

#[test]
fn a_restart_writes_nothing_when_all_is_right() {
    let world = packet_table::world();
    let mut mode = applied(&world);
    // Endpoints that moved: their numbers are no longer in the order that a fresh start would give them.
    let mut tracker = tracker();
    tracker.set_services(world.services.clone());
    let mut slices = world.slices.clone();
    slices[0].endpoints.remove(0);
    tracker.set_slices(slices.clone());
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    let mut kernel = mode.kernel().clone();
    kernel.take_commits();

    let mut restarted = Nftables::new(kernel, settings(&world));
    let mut tracker = super::table::tracker();
    tracker.set_services(world.services.clone());
    tracker.set_slices(slices);
    let applied = restarted.apply(tracker.take_changes().unwrap()).unwrap();
    assert!(applied.full);
    assert_eq!(applied.written, 0);
    assert_eq!(restarted.kernel_mut().take_commits(), []);
}

#[test]
fn a_restart_looks_many_endpoints_up_and_lists_them_only_where_there_are_others() {
    // So many that to list them takes longer.
    let (mut services, mut slices) = (Vec::new(), Vec::new());
    for n in 0..66_u8 {
        let pods: Vec<String> = (0..1000).map(|pod| format!("10.{n}.{}.{}", pod / 250, pod % 250)).collect();
        services.push(service(&format!("many-{n}"), &format!("10.96.1.{n}")));
        slices.push(slice(&format!("many-{n}"), 8080, &pods.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    let world = World { services, slices, ..packet_table::empty() };
    let mut mode = applied(&world);
    tidy(&mut mode);
    let right = mode.kernel().clone();
    let held = |fake: &Fake| fake.ruleset()[&table()].sets["endpoints"].elements.clone();
    // As many as there should be: one is missing, and there is one that nothing leads to.
    let mut wrong = right.clone();
    let elements = &mut wrong.ruleset_mut().get_mut(&table()).unwrap().sets.get_mut("endpoints").unwrap().elements;
    let (key, element) = elements.pop_first().unwrap();
    let stray = Value::from_bytes(&[&key.as_bytes()[..12], &4000_u32.to_ne_bytes()].concat());
    elements.insert(stray, Element { key: stray, ..element });
    for (kernel, is_listed, written) in [(right.clone(), false, 0), (right.clone().old(), true, 0), (wrong, true, 1)] {
        let mut restarted = Nftables::new(kernel, settings(&world));
        restarted.kernel_mut().take_listed();
        let mut tracker = tracker();
        tracker.set_services(world.services.clone());
        tracker.set_slices(world.slices.clone());
        let applied = restarted.apply(tracker.take_changes().unwrap()).unwrap();
        let listed = restarted.kernel_mut().take_listed();
        assert_eq!((applied.written, listed.iter().any(|set| set == "endpoints")), (written, is_listed), "{listed:?}");
        tidy(&mut restarted);
        assert_eq!(held(restarted.kernel()), held(&right));
    }
}

#[test]
fn a_restart_removes_what_no_service_asks_for_and_makes_a_strange_table_anew() {
    let world = packet_table::world();
    let kernel = applied(&world).kernel().clone();
    let restart = |kernel: Fake, world: &World| {
        let mut tracker = tracker();
        tracker.set_services(world.services.clone());
        tracker.set_slices(world.slices.clone());
        let mut mode = Nftables::new(kernel, settings(world));
        mode.apply(tracker.take_changes().unwrap()).unwrap();
        mode
    };
    let mut emptied = restart(kernel.clone(), &packet_table::empty());
    tidy(&mut emptied);
    let left = &emptied.kernel().ruleset()[&table()];
    for (name, set) in &left.sets {
        assert_eq!(set.elements.len(), if &**name == "kinds" { 3 } else { 0 }, "{name}");
    }
    assert!(left.chains.keys().all(|chain| !chain.starts_with("vip-") && !chain.starts_with("nodeport-")));

    let mut strange = kernel.clone();
    strange.ruleset_mut().get_mut(&table()).unwrap().comment = Some("of another version".to_owned());
    strange.take_commits();
    let mut replaced = restart(strange, &world);
    assert_rows(replaced.kernel(), &world, "another layout");
    assert_eq!(replaced.kernel_mut().take_commits().len(), 1, "there is no moment without rules");
    let mut flushed = kernel.clone();
    let mut batch = Batch::new();
    batch.flush_chain(&table(), "nat-prerouting");
    flushed.commit(&batch).unwrap();
    assert_rows(restart(flushed, &world).kernel(), &world, "a chain flushed by hand");
}

#[test]
fn a_table_deleted_by_hand_comes_back_with_the_next_change() {
    let world = packet_table::world();
    let mut mode = applied(&world);
    mode.kernel_mut().ruleset_mut().clear();
    let mut tracker = tracker();
    tracker.set_services([service("new", "10.96.9.9")]);
    tracker.set_slices([]);
    let changes = tracker.take_changes().unwrap();
    mode.apply(changes).unwrap_err();
    mode.apply(Changes::default()).unwrap();
    assert_rows(mode.kernel(), &world, "table deleted by hand");
}

/// A Service with `n` endpoints among a hundred others, and what one more change to it writes.
fn elements_written(n: u8, change: impl FnOnce(&mut EndpointSlice)) -> (usize, usize) {
    let mut world = packet_table::empty();
    for other in 0..100 {
        let name = format!("other-{other}");
        world.services.push(service(&name, &format!("10.97.0.{other}")));
        let endpoints: Vec<_> = (1..=20).map(|i| format!("10.244.{other}.{i}")).collect();
        world.slices.push(slice(&name, 80, &endpoints.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    let endpoints: Vec<_> = (1..=n).map(|i| format!("10.245.0.{i}")).collect();
    world.services.push(service("web", "10.96.0.10"));
    let mut web = slice("web", 80, &endpoints.iter().map(String::as_str).collect::<Vec<_>>());
    world.slices.push(web.clone());
    let mut mode = applied(&world);
    mode.kernel_mut().take_commits();
    let mut tracker = tracker();
    tracker.set_services(world.services.clone());
    tracker.set_slices(world.slices.clone());
    tracker.take_changes();
    change(&mut web);
    *world.slices.last_mut().unwrap() = web;
    tracker.set_slices(world.slices.clone());
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    tidy(&mut mode);
    let (mut endpoints, mut others) = (0, 0);
    for (_, action) in mode.kernel_mut().take_commits().iter().flat_map(Batch::steps) {
        match action {
            Action::AddElements { set, elements } | Action::DeleteElements { set, elements } => match &**set {
                "endpoints" => endpoints += elements.len(),
                // One for each chain.
                "kinds" => {}
                _ => others += elements.len(),
            },
            _ => {}
        }
    }
    (endpoints, others)
}

#[test]
fn work_is_in_proportion_to_the_change() {
    // One endpoint more: its element; the Service's number replaced.
    assert_eq!(elements_written(200, |web| web.endpoints.push(endpoint("10.245.1.1"))), (1, 2));
    // The same on this node: its hairpin pair as well.
    assert_eq!(elements_written(200, |web| web.endpoints.push(endpoint("10.245.1.1@node1"))), (1, 3));
    // One endpoint less, the first: the last one takes its number.
    assert_eq!(elements_written(200, |web| drop(web.endpoints.remove(0))), (3, 2));
    // One replaced by another: nothing but its element.
    assert_eq!(elements_written(200, |web| web.endpoints[7].address = ip("10.245.1.1")), (2, 0));
}

#[test]
fn what_a_packet_may_still_be_on_its_way_to_goes_later() {
    let world = |endpoints: &[&str]| World {
        services: vec![service("web", "10.96.0.10")],
        slices: vec![slice("web", 80, endpoints)],
        ..packet_table::empty()
    };
    let mut mode = applied(&world(&["10.244.0.2", "10.244.0.3", "10.244.0.4"]));
    let mut tracker = tracker();
    tracker.set_services(world(&[]).services);
    tracker.set_slices(world(&["10.244.0.2", "10.244.0.3", "10.244.0.4"]).slices);
    tracker.take_changes();
    tracker.set_slices(world(&["10.244.0.3"]).slices);
    mode.kernel_mut().take_commits();
    assert!(mode.apply(tracker.take_changes().unwrap()).unwrap().untidy);
    // The chain and the endpoints of one come before the verdict that leads there …
    let commits = mode.kernel_mut().take_commits();
    let sets = |batch: &Batch| -> Vec<String> { batch.steps().map(|(_, action)| action.to_string()).collect() };
    let first = sets(&commits[0]);
    assert_eq!(commits.len(), 2);
    assert!(first.contains(&"add chain vip-1".to_owned()) && first.iter().all(|step| !step.contains("services")));
    assert_eq!(sets(&commits[1]), ["delete 1 elements of set services", "add 1 elements to set services"]);
    // … and those of three stay for two calls more.
    let state = |mode: &Nftables<Fake>| {
        let table = &mode.kernel().ruleset()[&table()];
        (table.chains.contains_key("vip-3"), table.sets["endpoints"].elements.len())
    };
    assert_eq!(state(&mode), (true, 3));
    assert!(mode.tidy().unwrap());
    assert_eq!(state(&mode), (true, 3));
    assert!(!mode.tidy().unwrap());
    assert_eq!(state(&mode), (false, 1));
}

#[test]
fn rules_and_chains_do_not_grow_with_services() {
    let count = |services: u8, per: u8| {
        let mut world = packet_table::empty();
        for a in 0..services {
            for b in 0..per {
                let name = format!("web-{a}-{b}");
                world.services.push(service(&name, &format!("10.96.{a}.{b}")));
                world.slices.push(slice(&name, 80, &["10.244.0.2", "10.244.0.3"]));
            }
        }
        let mode = applied(&world);
        let state = &mode.kernel().ruleset()[&table()];
        (state.chains.len(), state.rule_count(), state.sets["services"].elements.len())
    };
    let (ten, thousand) = (count(1, 10), count(5, 200));
    assert_eq!((ten.2, thousand.2), (10, 1000));
    assert_eq!((ten.0, ten.1), (thousand.0, thousand.1));
    assert!(ten.0 < 15 && ten.1 < 30, "{ten:?}");
}

#[test]
fn sets_grow_before_they_overflow() {
    let mut world = packet_table::empty();
    let mut mode = applied(&world);
    for a in 0..=40_u8 {
        for b in 0..=250_u8 {
            let name = format!("web-{a}-{b}");
            world.services.push(service(&name, &format!("10.96.{a}.{b}")));
            world.slices.push(slice(&name, 80, &["10.244.0.2", "10.244.0.3"]));
        }
    }
    let mut tracker = tracker();
    tracker.set_services(world.services);
    tracker.set_slices(world.slices);
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    let services = &mode.kernel().ruleset()[&table()].sets["services"];
    assert_eq!(services.elements.len(), 41 * 251);
    assert!(services.set.size.unwrap() as usize > 41 * 251);
}

#[test]
fn flows_to_removed_udp_endpoints_are_reported_also_for_the_last_one() {
    let udp = |endpoints: &[&str]| {
        let mut service = service("dns", "10.96.0.10");
        service.ports[0].protocol = Protocol::Udp;
        let mut slice = slice("dns", 53, endpoints);
        slice.ports[0].protocol = Protocol::Udp;
        World { services: vec![service], slices: vec![slice], ..packet_table::empty() }
    };
    let frontend = Frontend { entry: Entry::Address(ip("10.96.0.10")), protocol: Protocol::Udp, port: 80 };
    let to = |address| StaleFlows::To(frontend, Backend { address: ip(address), port: 53 });
    let mut mode = Nftables::new(Fake::new(), settings(&packet_table::empty()));
    let mut tracker = tracker();
    let mut step = |endpoints: &[&str]| {
        let world = udp(endpoints);
        tracker.set_services(world.services);
        tracker.set_slices(world.slices);
        mode.apply(tracker.take_changes().unwrap()).unwrap().stale
    };
    assert_eq!(step(&["10.244.0.2", "10.244.0.3"]), [StaleFlows::Untranslated(frontend)]);
    assert_eq!(step(&["10.244.0.3"]), [to("10.244.0.2")]);
    assert_eq!(step(&[]), [to("10.244.0.3")]);
    assert_eq!(step(&["10.244.0.4"]), [StaleFlows::Untranslated(frontend)]);
}

#[test]
fn what_went_away_while_no_proxy_ran_is_reported_by_the_next_one() {
    let udp = |name: &str, cluster_ip: &str, endpoints: &[&str]| {
        let mut service = node_port_service(name, cluster_ip, 30053);
        service.ports[0].protocol = Protocol::Udp;
        let mut slice = slice(name, 53, endpoints);
        slice.ports[0].protocol = Protocol::Udp;
        (service, slice)
    };
    let (stays, stays_slice) = udp("stays", "10.96.0.10", &["10.244.0.2", "10.244.0.3"]);
    let (mut goes, goes_slice) = udp("goes", "10.96.0.11", &["10.244.0.4"]);
    goes.ports[0].node_port = Some(30054);
    let before =
        World { services: vec![stays.clone(), goes], slices: vec![stays_slice, goes_slice], ..packet_table::empty() };
    let kernel = applied(&before).kernel().clone();

    let mut tracker = tracker();
    tracker.set_services([stays]);
    tracker.set_slices([udp("stays", "10.96.0.10", &["10.244.0.3"]).1]);
    let mut restarted = Nftables::new(kernel, settings(&before));
    let stale = restarted.apply(tracker.take_changes().unwrap()).unwrap().stale;
    let frontend = |entry, port| Frontend { entry, protocol: Protocol::Udp, port };
    let to = |frontend, address| StaleFlows::To(frontend, Backend { address: ip(address), port: 53 });
    let vip = |address| frontend(Entry::Address(ip(address)), 80);
    let node_port = |port| frontend(Entry::NodePort(Family::V4), port);
    let expected = BTreeSet::from([
        to(vip("10.96.0.10"), "10.244.0.2"),
        to(node_port(30053), "10.244.0.2"),
        to(vip("10.96.0.11"), "10.244.0.4"),
        to(node_port(30054), "10.244.0.4"),
    ]);
    assert_eq!(BTreeSet::from_iter(stale), expected);
    assert_eq!(restarted.apply(Changes::default()).unwrap().stale, []);
}

#[test]
fn what_is_used_again_between_two_calls_of_tidy_stays_as_long_as_before() {
    let world = |endpoints: &[&str]| World {
        services: vec![service("web", "10.96.0.10")],
        slices: vec![slice("web", 80, endpoints)],
        ..packet_table::empty()
    };
    let (few, many) = (world(&["10.244.0.2"]), world(&["10.244.0.2", "10.244.0.3"]));
    let mut mode = applied(&many);
    let mut tracker = tracker();
    tracker.set_services(many.services.clone());
    let mut scale = |mode: &mut Nftables<Fake>, to: &World| {
        tracker.set_slices(to.slices.clone());
        mode.apply(tracker.take_changes().unwrap()).unwrap();
    };
    scale(&mut mode, &few);
    assert!(mode.tidy().unwrap());
    scale(&mut mode, &many);
    scale(&mut mode, &few);
    // Packets may have been led to the second endpoint a moment ago.
    assert!(mode.tidy().unwrap());
    let table = &mode.kernel().ruleset()[&table()];
    assert!(table.chains.contains_key("vip-2"));
    assert_eq!(table.sets["endpoints"].elements.len(), 2);
    assert!(!mode.tidy().unwrap());
}

#[test]
fn of_two_services_that_claim_an_address_the_first_by_name_gets_it() {
    let mut first = service("a", "10.96.0.1");
    first.external_ips = vec![ip("192.0.2.1")];
    let mut second = service("b", "10.96.0.2");
    second.external_ips = vec![ip("192.0.2.1")];
    let slices = [slice("a", 80, &["10.244.0.2"]), slice("b", 80, &["10.244.0.3"])];
    let world = World { services: vec![first, second], slices: slices.to_vec(), ..packet_table::empty() };
    let mut turned = world.clone();
    turned.services.reverse();
    for (road, states) in replay::roads(&[turned, world.clone()], &packet_table::empty()) {
        let mut mode = Nftables::new(Fake::new(), settings(&world));
        let mut tracker = tracker();
        for state in states {
            tracker.set_services(state.services);
            tracker.set_slices(state.slices);
            mode.apply(tracker.take_changes().unwrap()).unwrap();
        }
        let packet = packet_table::Packet {
            from: ip(packet_table::POD_B),
            to: "192.0.2.1:80".parse().unwrap(),
            protocol: Protocol::Tcp,
        };
        let packet_table::Outcome::Sent(to) = super::table::traced(mode.kernel(), &world, &packet) else {
            panic!("{road}")
        };
        assert_eq!(to, [("10.244.0.2:80".parse().unwrap(), true)].into(), "{road}");
    }
}
