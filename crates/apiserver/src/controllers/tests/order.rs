//! What is planned depends on the objects only, not on the order in which they became known.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::{
    fixtures::{daemon_set, deployment, id, service},
    sim::Sim,
};
use crate::controllers::{
    CONTROLLERS, Config, Context,
    action::{Deletion, Plan},
    world::{Change, Id, Kind, Object, World},
};

/// A cluster in the middle of everything.
fn busy(seed: u64, steps: usize) -> Sim {
    let mut sim = Sim::with_nodes(seed, 3);
    let web = sim.create(Kind::Deployment, deployment("web", 4, "myapp:v1"));
    sim.create(Kind::Service, service("web"));
    sim.create(Kind::DaemonSet, daemon_set("agent", "myapp:v1"));
    let old = sim.create(Kind::Deployment, deployment("old", 2, "myapp:v1"));
    sim.settle();
    sim.patch(&web, json!({"spec": {"replicas": 7, "template": {"metadata": {"labels": {"app": "web", "v": "2"}}}}}));
    sim.delete(&old, Deletion::Background);
    sim.delete(&id(Kind::Node, "node2"), Deletion::Background);
    sim.run(steps);
    sim
}

fn plans(world: &World, sim: &Sim) -> Vec<(&'static str, Id, Plan)> {
    let config = Config::new(["10.244.0.0/16".parse().unwrap()]);
    let context = Context { config: &config, now: sim.now };
    let mut plans = Vec::new();
    for controller in CONTROLLERS {
        let changes = Kind::ALL.iter().flat_map(|kind| world.all(*kind)).map(|o| Change { old: None, new: Some(o) });
        let keys: BTreeSet<Id> = changes.flat_map(|change| (controller.concerns)(world, &change)).collect();
        plans.extend(keys.into_iter().map(|key| {
            let plan = (controller.plan)(world, &key, &context);
            (controller.name, key, plan)
        }));
    }
    plans
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn plans_do_not_depend_on_the_order_of_events(
        seed: u64,
        steps in 0..60usize,
        order in prop::collection::vec(any::<u32>(), 200),
    ) {
        let sim = busy(seed, steps);
        let objects: Vec<Object> = Kind::ALL.iter().flat_map(|kind| sim.world.all(*kind)).collect();
        let mut shuffled: Vec<(u32, Object)> = order.iter().copied().cycle().zip(objects.iter().cloned()).collect();
        shuffled.sort_by_key(|(rank, _)| *rank);

        // Shuffled; with everything told twice; emptied in between.
        let mut world = World::default();
        for (_, object) in shuffled.iter().chain(&shuffled) {
            world.apply(object.clone());
        }
        let expected = plans(&sim.world, &sim);
        prop_assert_eq!(&plans(&world, &sim), &expected);
        for kind in Kind::ALL {
            world.replace(*kind, Vec::new());
        }
        prop_assert_eq!(plans(&world, &sim).iter().map(|(_, _, plan)| plan.actions.len()).sum::<usize>(), 0);
        for kind in Kind::ALL {
            let of_kind = shuffled.iter().map(|(_, object)| object.clone()).filter(|object| object.kind() == *kind);
            world.replace(*kind, of_kind.collect());
        }
        prop_assert_eq!(&plans(&world, &sim), &expected);
    }
}
