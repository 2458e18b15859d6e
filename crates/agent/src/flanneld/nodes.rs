//! What the API says of nodes: this one, and what each publishes.

use std::collections::BTreeMap;

use podwire_k8s::{Event, convert, k8s_openapi::api::core::v1 as core};
use podwire_model::{Family, Lease, Name, Node, Problem};
use podwire_overlay::lease::Keys;
use tracing::warn;

/// What of a Node object counts here. The object itself is large.
#[derive(Debug)]
pub(super) struct Seen {
    name: Name,
    node: Option<Node>,
    problems: Vec<Problem>,
    available: bool,
}

impl Seen {
    pub(super) fn read(object: &core::Node) -> Self {
        let read = convert::node(object);
        let conditions = object.status.as_ref().and_then(|status| status.conditions.as_ref());
        let available = |condition: &core::NodeCondition| {
            let is = (&*condition.type_, &*condition.status, condition.reason.as_deref());
            is == ("NetworkUnavailable", "False", Some("FlannelIsUp"))
        };
        Self {
            name: object.metadata.name.as_deref().unwrap_or_default().into(),
            node: read.value,
            problems: read.problems,
            available: conditions.is_some_and(|all| all.iter().any(available)),
        }
    }
}

/// This node's object.
#[derive(Debug)]
pub(super) struct Me {
    pub(super) node: Node,
    /// Its condition NetworkUnavailable is False, as flannel sets it.
    pub(super) available: bool,
}

/// The leases of one family by node, this one's own among them.
pub(super) type Leases = BTreeMap<Name, Lease>;

/// All that is known of nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    keys: Keys,
    name: Name,
    pub(super) me: Option<Me>,
    leases: [Leases; 2],
    /// What is wrong with a node's annotations, told once.
    told: BTreeMap<Name, String>,
}

/// Which nodes an event is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// All of them.
    All,
    /// One.
    One(Name),
}

impl Nodes {
    pub(super) const fn new(keys: Keys, name: Name) -> Self {
        Self { keys, name, me: None, leases: [Leases::new(), Leases::new()], told: BTreeMap::new() }
    }

    /// The leases of `family`.
    pub(super) const fn leases(&self, family: Family) -> &Leases {
        match family {
            Family::V4 => &self.leases[0],
            Family::V6 => &self.leases[1],
        }
    }

    /// Takes in an event.
    pub(super) fn observe(&mut self, event: Event<Seen>) -> News {
        match event {
            Event::Snapshot(all) => {
                self.leases.iter_mut().for_each(Leases::clear);
                self.me = None;
                all.into_iter().for_each(|seen| drop(self.learn(seen)));
                News::All
            }
            Event::Applied(seen) => News::One(self.learn(seen)),
            Event::Deleted(seen) => {
                self.forget(&seen.name);
                News::One(seen.name)
            }
        }
    }

    /// Takes in one node as it is now.
    pub(super) fn learn(&mut self, seen: Seen) -> Name {
        let Seen { name, node, problems, available } = seen;
        let mut wrong: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let Some(node) = node else {
            self.forget(&name);
            self.tell(&name, &wrong);
            return name;
        };
        for (leases, family) in self.leases.iter_mut().zip([Family::V4, Family::V6]) {
            match self.keys.read(&node, family) {
                Ok(Some(lease)) => drop(leases.insert(name.clone(), lease)),
                Ok(None) => drop(leases.remove(&name)),
                Err(error) => {
                    wrong.push(error.to_string());
                    leases.remove(&name);
                }
            }
        }
        self.tell(&name, &wrong);
        if name == self.name {
            self.me = Some(Me { node, available });
        }
        name
    }

    fn forget(&mut self, name: &Name) {
        self.leases.iter_mut().for_each(|leases| drop(leases.remove(name)));
        if *name == self.name {
            self.me = None;
        }
    }

    fn tell(&mut self, name: &Name, wrong: &[String]) {
        let text = wrong.join("; ");
        if text.is_empty() {
            self.told.remove(name);
        } else if self.told.get(name) != Some(&text) {
            warn!("{text}");
            self.told.insert(name.clone(), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seen(name: &str, public_ip: &str, available: &str) -> Seen {
        let object = json!({
            "metadata": { "name": name, "annotations": {
                "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                "flannel.alpha.coreos.com/backend-type": "host-gw",
                "flannel.alpha.coreos.com/backend-data": "null",
                "flannel.alpha.coreos.com/public-ip": public_ip,
            } },
            "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"] },
            "status": { "conditions": [
                { "type": "NetworkUnavailable", "status": available, "reason": "FlannelIsUp" },
            ] },
        });
        Seen::read(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn nodes_come_change_and_go() {
        let mut nodes = Nodes::new(Keys::default(), "node1".into());
        let all = vec![seen("node1", "172.25.2.1", "True"), seen("node2", "172.25.2.2", "False")];
        assert_eq!(nodes.observe(Event::Snapshot(all)), News::All);
        let known = |nodes: &Nodes| nodes.leases(Family::V4).keys().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(known(&nodes), ["node1", "node2"]);
        assert!(nodes.leases(Family::V6).is_empty());
        assert!(!nodes.me.as_ref().unwrap().available);
        nodes.observe(Event::Applied(seen("node1", "172.25.2.1", "False")));
        assert!(nodes.me.as_ref().unwrap().available);
        assert_eq!(nodes.observe(Event::Applied(seen("node2", "broken", "False"))), News::One("node2".into()));
        assert_eq!(known(&nodes), ["node1"]);
        assert!(nodes.told.values().next().unwrap().contains("\"broken\" is no V4 address"));
        nodes.observe(Event::Applied(seen("node2", "172.25.2.2", "False")));
        assert!(nodes.told.is_empty());
        nodes.observe(Event::Deleted(seen("node1", "172.25.2.1", "False")));
        assert_eq!((known(&nodes), nodes.me.is_some()), (vec!["node2".to_owned()], false));
    }
}
