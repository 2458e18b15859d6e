//! Going over from one backend to another while the cluster is at it.

use super::*;

/// Every pair of different cases of one family.
fn pairs() -> Vec<(Case, Case)> {
    let with = |from: &Case| cases().filter(|to| to.family == from.family && to.conf != from.conf).collect::<Vec<_>>();
    cases().flat_map(|from| with(&from).into_iter().map(move |to| (case(&from.conf, from.family), to))).collect()
}

/// Whether packets for the range of `lease` leave this node by some route of the overlay.
fn is_reached(held: &BTreeMap<Key, Entry>, lease: &Lease, case: &Case) -> bool {
    held.contains_key(&Key::Route(lease.subnet)) || held.contains_key(&Key::Route(case.network()))
}

fn carries(case: &Case) -> bool {
    !case.whole(&case.leases(2..3)).is_empty()
}

#[test]
fn every_peer_stays_reachable_at_every_step_and_nothing_of_the_old_remains() {
    for (from, to) in pairs() {
        let shown = format!("{} -> {}, {:?}", from.conf, to.conf, from.family);
        let mut kernel = from.namespace();
        let mut overlay = from.overlay();
        let mut leases = from.leases(2..6);
        overlay.set_peers(leases.clone());
        settle(&mut overlay, &mut kernel);
        let old = from.held(&mut kernel);

        // This node first; then the others, one by one.
        let told = overlay.switch(fresh(&to.conf, 1)).unwrap();
        assert!(told.iter().all(|error| matches!(error, crate::Error::OtherBackend { .. })), "{shown}: {told:?}");
        for n in 1..6 {
            if n > 1 {
                leases[usize::from(n) - 2] = to.lease(n);
                overlay.set_peer(&to.lease(n)).unwrap();
            }
            settle(&mut overlay, &mut kernel);
            let held = to.held(&mut kernel);
            for lease in leases.iter().filter(|_| carries(&from) && carries(&to)) {
                assert!(
                    is_reached(&held, lease, &to),
                    "{shown}: {} is not reached when {n} have gone over",
                    lease.node
                );
            }
            for tunnel in from.tunnels() {
                let there = kernel.link(&tunnel.device).unwrap();
                assert!(there.is_some(), "{shown}: {} went while peers may send by it", tunnel.device);
            }
        }
        overlay.release();
        settle(&mut overlay, &mut kernel);
        assert_eq!((to.held(&mut kernel), overlay.peer_count()), (to.plan(&leases), 4), "{shown}");
        // And back at once, all together.
        overlay.set_peers(from.leases(2..6));
        overlay.switch(fresh(&from.conf, 1)).unwrap();
        overlay.release();
        settle(&mut overlay, &mut kernel);
        assert_eq!(from.held(&mut kernel), old, "{shown}");
    }
}

#[test]
fn a_restart_between_two_backends_keeps_what_leads_to_the_others() {
    for (from, to) in pairs().into_iter().filter(|(from, to)| carries(from) && carries(to)) {
        let shown = format!("{} -> {}, {:?}", from.conf, to.conf, from.family);
        if carried_in_user_space(&from) {
            continue;
        }
        let mut kernel = from.namespace();
        let mut before = from.overlay();
        let leases = from.leases(2..6);
        before.set_peers(leases.clone());
        settle(&mut before, &mut kernel);

        let mut overlay = to.overlay();
        overlay.hold();
        overlay.set_peers(leases.clone());
        settle(&mut overlay, &mut kernel);
        // Two go over, one is deleted, this one's agent is sure that all have heard.
        overlay.set_peers([to.lease(2), to.lease(3), leases[2].clone()]);
        overlay.release();
        settle(&mut overlay, &mut kernel);
        let held = to.held(&mut kernel);
        // Where the entries of one kind replace those of the other there is nothing to keep.
        if from.backend.name() != to.backend.name() {
            assert!(is_reached(&held, &leases[2], &to), "{shown}");
        }
        assert!(!held.contains_key(&Key::Route(leases[3].subnet)), "{shown}: the deleted one is still there");
        overlay.set_peers(to.leases(2..5));
        settle(&mut overlay, &mut kernel);
        assert_eq!(to.held(&mut kernel), to.plan(&to.leases(2..5)), "{shown}");
    }
}

fn carried_in_user_space(case: &Case) -> bool {
    case.whole(&case.leases(2..3)).keys().any(Key::is_user_space)
}

#[test]
fn a_node_that_has_not_gone_over_keeps_those_that_have() {
    for (from, to) in pairs() {
        if from.backend.name() == to.backend.name() || !carries(&from) {
            continue;
        }
        let mut kernel = from.namespace();
        let mut overlay = from.overlay();
        overlay.set_peers(from.leases(2..6));
        settle(&mut overlay, &mut kernel);
        let before = from.held(&mut kernel);
        for n in 2..6 {
            let error = overlay.set_peer(&to.lease(n)).unwrap_err();
            assert!(matches!(error, crate::Error::OtherBackend { .. }), "{error}");
            settle(&mut overlay, &mut kernel);
            assert_eq!(from.held(&mut kernel), before);
        }
        overlay.remove_peer(&"node5".into());
        settle(&mut overlay, &mut kernel);
        assert_eq!(from.held(&mut kernel), from.plan(&from.leases(2..5)));
    }
}

#[test]
fn a_kernel_that_fails_a_tenth_of_the_time_goes_over_as_well() {
    for (from, to) in pairs() {
        let mut kernel = from.namespace();
        let mut overlay = from.overlay();
        overlay.set_peers(from.leases(2..9));
        settle(&mut overlay, &mut kernel);
        kernel.fail_every(10);
        overlay.switch(fresh(&to.conf, 1)).unwrap();
        settle(&mut overlay, &mut kernel);
        overlay.set_peers(to.leases(2..9));
        overlay.release();
        settle(&mut overlay, &mut kernel);
        kernel.fail_every(0);
        assert_eq!(to.held(&mut kernel), to.plan(&to.leases(2..9)), "{} -> {}", from.conf, to.conf);
    }
}
