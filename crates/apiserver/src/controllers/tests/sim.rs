//! A cluster in memory: an API server that behaves as the real one in what controllers rely on, a kubelet, a clock, and
//! all controllers. A seed decides in which order their keys come up and how far each kind's watch lags behind.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use podwire_k8s::k8s_openapi::{
    api::core::v1::Pod,
    jiff::{SignedDuration, Timestamp},
};
use serde_json::{Value, json};

use crate::controllers::{
    CONTROLLERS, Config, Context,
    action::{Action, Deletion, Owner, Report, Write},
    pods,
    world::{Change, Id, Kind, Object, World},
};

/// More passes than any test needs: what has not settled by then never will.
const PATIENCE: usize = 20_000;

/// Why the simulated server refused.
#[derive(Debug, PartialEq)]
pub struct Refused(pub &'static str);

/// What a watch says: the new state, or which object is gone.
enum Told {
    Applied(Object),
    Deleted(Id, String),
}

pub struct Sim {
    /// What is. What the controllers know of it lags behind.
    pub world: World,
    pub now: Timestamp,
    pub reports: Vec<Report>,
    /// One of this many writes fails; 0: none.
    pub fail_one_in: u64,
    /// Whether a running pod becomes ready by itself.
    pub becomes_ready: fn(&Pod) -> bool,
    /// Checked after every single write.
    pub invariant: fn(&World),
    objects: BTreeMap<Id, Value>,
    known: World,
    watches: BTreeMap<Kind, VecDeque<Told>>,
    keys: BTreeSet<(usize, Id)>,
    wakes: BTreeMap<(usize, Id), Timestamp>,
    config: Config,
    counter: u64,
    random: u64,
}

impl Sim {
    /// An empty cluster with namespace `default`. Equal seeds give equal runs.
    pub fn new(seed: u64) -> Self {
        let mut sim = Self {
            world: World::default(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            reports: Vec::new(),
            fail_one_in: 0,
            becomes_ready: |_| true,
            invariant: |_| {},
            objects: BTreeMap::new(),
            known: World::default(),
            watches: BTreeMap::new(),
            keys: BTreeSet::new(),
            wakes: BTreeMap::new(),
            config: Config::new(["10.244.0.0/16".parse().unwrap()]),
            counter: 0,
            random: seed | 1,
        };
        sim.create(Kind::Namespace, json!({"metadata": {"name": "default"}}));
        sim
    }

    /// One with ready nodes `node1`, `node2`, … that the controllers know.
    pub fn with_nodes(seed: u64, nodes: usize) -> Self {
        let mut sim = Self::new(seed);
        for number in 1..=nodes {
            sim.create(Kind::Node, super::fixtures::node(&format!("node{number}"), "True"));
        }
        sim.settle();
        sim
    }

    fn next_random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random % u64::try_from(below).unwrap()).unwrap()
    }

    fn next_number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    // What users and kubelets do.

    pub fn create(&mut self, kind: Kind, body: Value) -> Id {
        let namespace = if kind.namespaced() { "default" } else { "" };
        self.post(kind, namespace, body).unwrap()
    }

    pub fn create_in(&mut self, namespace: &str, kind: Kind, body: Value) -> Id {
        self.post(kind, namespace, body).unwrap()
    }

    pub fn patch(&mut self, id: &Id, body: Value) {
        self.merge(id, false, &body).unwrap();
    }

    pub fn patch_status(&mut self, id: &Id, body: Value) {
        self.merge(id, true, &json!({ "status": body })).unwrap();
    }

    pub fn delete(&mut self, id: &Id, mode: Deletion) {
        self.remove(id, mode).unwrap();
    }

    pub fn get(&self, id: &Id) -> Value {
        self.objects.get(id).cloned().unwrap_or(Value::Null)
    }

    pub fn all(&self, kind: Kind) -> Vec<&Value> {
        self.objects.iter().filter(|(id, _)| id.kind == kind).map(|(_, object)| object).collect()
    }

    pub fn pods(&self) -> Vec<&Pod> {
        self.world.pods.iter().map(AsRef::as_ref).collect()
    }

    pub fn use_cluster_cidrs(&mut self, ranges: &[&str]) {
        self.config = Config::new(ranges.iter().map(|range| range.parse().unwrap()));
    }

    /// Runs controllers and kubelets for so many steps.
    pub fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            if !self.watch_step() && !self.controller_step() && !self.kubelet_step() {
                return;
            }
        }
    }

    /// Runs controllers and kubelets until nothing happens any more.
    pub fn settle(&mut self) {
        for _ in 0..PATIENCE {
            // Usually news, then controllers, then pods; but not always.
            let moved = match self.next_random(4) {
                0 => self.kubelet_step(),
                1 => self.controller_step(),
                _ => self.watch_step(),
            };
            if moved || self.watch_step() || self.controller_step() || self.kubelet_step() {
                continue;
            }
            return;
        }
        panic!("does not settle; still waiting: {:?}", self.keys);
    }

    /// Runs controllers only.
    pub fn settle_controllers(&mut self) {
        for _ in 0..PATIENCE {
            if !self.watch_step() && !self.controller_step() {
                return;
            }
        }
        panic!("does not settle; still waiting: {:?}", self.keys);
    }

    /// Lets time pass in steps in which every due key comes up.
    pub fn advance(&mut self, seconds: i64) {
        let end = self.now + SignedDuration::from_secs(seconds);
        loop {
            let due = self.wakes.values().min().copied().filter(|at| *at <= end);
            let Some(at) = due else { break };
            self.now = at.max(self.now);
            let ready: Vec<_> = self.wakes.iter().filter(|(_, at)| **at <= self.now).map(|(k, _)| k.clone()).collect();
            for key in ready {
                self.wakes.remove(&key);
                self.keys.insert(key);
            }
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    /// One unit of one node's work on a random pod; false if there is none.
    fn kubelet_step(&mut self) -> bool {
        let waiting: Vec<Id> =
            self.world.pods.iter().filter(|pod| self.kubelet_wants(pod)).map(|p| pod_id(p)).collect();
        if waiting.is_empty() {
            return false;
        }
        let id = waiting[self.next_random(waiting.len())].clone();
        let pod = self.world.pods.get(&id.namespace, &id.name).unwrap().clone();
        if pods::terminating(&pod) {
            self.remove(&id, Deletion::Force).unwrap();
        } else if pods::phase(&pod) == "Pending" {
            let ip = format!("10.244.9.{}", self.next_number() % 250);
            let ready = json!([{"type": "Ready", "status": "False", "lastTransitionTime": self.now}]);
            let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": ready});
            self.patch_status(&id, status);
        } else {
            let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": self.now}]);
            self.patch_status(&id, json!({ "conditions": ready }));
        }
        true
    }

    fn kubelet_wants(&self, pod: &Pod) -> bool {
        let alive = pods::node(pod).is_some_and(|node| self.world.nodes.get("", node).is_some());
        let unfinished = pods::phase(pod) == "Pending" || (!pods::ready(pod) && (self.becomes_ready)(pod));
        alive && (pods::terminating(pod) || (unfinished && !pods::finished(pod)))
    }

    /// One event of a random kind's watch; false if the controllers know everything.
    fn watch_step(&mut self) -> bool {
        let behind: Vec<Kind> = self.watches.iter().filter(|(_, told)| !told.is_empty()).map(|(k, _)| *k).collect();
        if behind.is_empty() {
            return false;
        }
        let kind = behind[self.next_random(behind.len())];
        let change = match self.watches.get_mut(&kind).and_then(VecDeque::pop_front) {
            Some(Told::Applied(object)) => self.known.apply(object),
            Some(Told::Deleted(id, uid)) => self.known.remove(&id, &uid),
            None => None,
        };
        self.tell(change);
        true
    }

    /// One pass of a random controller on a random key that waits; false if there is none.
    fn controller_step(&mut self) -> bool {
        if self.keys.is_empty() {
            return false;
        }
        let nth = self.next_random(self.keys.len());
        let key = self.keys.iter().nth(nth).unwrap().clone();
        self.keys.remove(&key);
        let context = Context { config: &self.config, now: self.now };
        let mut plan = (CONTROLLERS[key.0].plan)(&self.known, &key.1, &context);
        if let Some(at) = plan.again_at {
            let wake = self.wakes.entry(key.clone()).or_insert(at);
            *wake = at.min(*wake);
        }
        while !plan.actions.is_empty() {
            let action = plan.actions.swap_remove(self.next_random(plan.actions.len()));
            if self.carry_out(action).is_err() {
                self.keys.insert(key.clone());
            }
        }
        true
    }

    fn carry_out(&mut self, action: Action) -> Result<(), Refused> {
        let mut name = String::new();
        if let Some(write) = action.write {
            if self.fail_one_in > 0 && self.next_random(usize::try_from(self.fail_one_in).unwrap()) == 0 {
                return Err(Refused("injected"));
            }
            name = self.execute(write)?;
            (self.invariant)(&self.world);
        }
        if let Some(mut report) = action.report {
            report.message = report.message.replace("{name}", &name);
            self.reports.push(report);
        }
        Ok(())
    }

    /// Executes a write; the controllers know its result at once. The name of the object that it created, if it did.
    fn execute(&mut self, write: Write) -> Result<String, Refused> {
        let id = match write {
            Write::Create { kind, namespace, body } => self.post(kind, &namespace, body)?,
            Write::Patch { id, status, body } => {
                self.merge(&id, status, &body)?;
                id
            }
            Write::Delete { id, uid, mode, only_without } => {
                let present = |owner: &Owner| {
                    let found = self.get(&owner.id);
                    !found.is_null() && owner.uid.as_deref().is_none_or(|uid| found["metadata"]["uid"] == uid)
                };
                if self.get(&id)["metadata"]["uid"] != *uid || only_without.iter().any(present) {
                    return Ok(String::new());
                }
                self.remove(&id, mode)?;
                if self.get(&id).is_null() {
                    let change = self.known.remove(&id, &uid);
                    self.tell(change);
                }
                id
            }
            Write::Bind { pod, uid, node } => {
                if !self.get(&pod)["spec"]["nodeName"].is_null() {
                    return Err(Refused("already assigned"));
                }
                self.merge(&pod, false, &json!({"spec": {"nodeName": node}}))?;
                let change = self.known.bind(&pod, &uid, &node);
                self.tell(change);
                return Ok(String::new());
            }
            Write::Finalize { namespace } => {
                let id = Id::new(Kind::Namespace, "", &namespace);
                self.merge(&id, false, &json!({"spec": {"finalizers": null}}))?;
                self.forget(&id);
                return Ok(String::new());
            }
        };
        let change = self.world.get(&id).and_then(|object| self.known.apply(object));
        self.tell(change);
        Ok(id.name)
    }

    // What the API server does.

    fn post(&mut self, kind: Kind, namespace: &str, mut body: Value) -> Result<Id, Refused> {
        let number = self.next_number();
        if let Some(prefix) = body["metadata"]["generateName"].as_str() {
            body["metadata"]["name"] = json!(format!("{prefix}{number:05}"));
        }
        let id = Id::new(kind, namespace, body["metadata"]["name"].as_str().unwrap());
        if self.objects.contains_key(&id) {
            return Err(Refused("already exists"));
        }
        if self.get(&Id::new(Kind::Namespace, "", namespace))["metadata"]["deletionTimestamp"].is_string() {
            return Err(Refused("the namespace is being terminated"));
        }
        if kind == Kind::Namespace {
            body["spec"]["finalizers"] = json!(["kubernetes"]);
        }
        let metadata = &mut body["metadata"];
        if kind.namespaced() {
            metadata["namespace"] = json!(namespace);
        }
        metadata["uid"] = json!(format!("uid-{number}"));
        metadata["creationTimestamp"] = json!(self.now);
        metadata["generation"] = json!(1);
        self.store(id.clone(), body);
        Ok(id)
    }

    fn merge(&mut self, id: &Id, status: bool, patch: &Value) -> Result<(), Refused> {
        let old = self.objects.get(id).cloned().ok_or(Refused("not found"))?;
        let based_on = &patch["metadata"]["resourceVersion"];
        if !based_on.is_null() && *based_on != old["metadata"]["resourceVersion"] {
            return Err(Refused("conflict"));
        }
        let mut new = old.clone();
        json_patch::merge(&mut new, patch);
        if status {
            new = json!({"metadata": old["metadata"], "spec": old["spec"], "status": new["status"]});
        } else if new["spec"] != old["spec"] {
            new["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(1) + 1);
        }
        if id.kind == Kind::EndpointSlice || id.kind == Kind::Endpoints || id.kind == Kind::ConfigMap {
            assert!(!status, "{id:?} has no status");
        }
        if new != old {
            self.store(id.clone(), new);
        }
        let meta = &self.objects[id]["metadata"];
        let held = meta["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty());
        let in_grace = meta["deletionGracePeriodSeconds"].is_number() || id.kind == Kind::Namespace;
        if meta["deletionTimestamp"].is_string() && !held && !in_grace {
            self.forget(id);
        }
        Ok(())
    }

    fn remove(&mut self, id: &Id, mode: Deletion) -> Result<(), Refused> {
        let mut object = self.objects.get(id).cloned().ok_or(Refused("not found"))?;
        let graceful = id.kind == Kind::Pod && object["spec"]["nodeName"].is_string() && mode != Deletion::Force;
        if mode == Deletion::Foreground {
            object["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
        }
        let held = object["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        if !held && !graceful && id.kind != Kind::Namespace {
            self.forget(id);
            return Ok(());
        }
        if graceful {
            object["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        }
        if !object["metadata"]["deletionTimestamp"].is_string() {
            object["metadata"]["deletionTimestamp"] = json!(self.now);
            self.store(id.clone(), object);
        }
        Ok(())
    }

    /// Stores a new state; the watches will tell.
    fn store(&mut self, id: Id, mut object: Value) {
        object["metadata"]["resourceVersion"] = json!(self.next_number().to_string());
        let typed = Object::from_json(id.kind, object.clone()).unwrap();
        self.watches.entry(id.kind).or_default().push_back(Told::Applied(typed.clone()));
        self.objects.insert(id, object);
        self.world.apply(typed);
    }

    fn forget(&mut self, id: &Id) {
        if let Some(object) = self.objects.remove(id) {
            let uid = object["metadata"]["uid"].as_str().unwrap();
            self.world.remove(id, uid);
            self.watches.entry(id.kind).or_default().push_back(Told::Deleted(id.clone(), uid.to_owned()));
        }
    }

    fn tell(&mut self, change: Option<Change>) {
        let Some(change) = change else { return };
        for (index, controller) in CONTROLLERS.iter().enumerate() {
            self.keys.extend((controller.concerns)(&self.known, &change).into_iter().map(|id| (index, id)));
        }
    }
}

fn pod_id(pod: &Pod) -> Id {
    Object::from(pod.clone()).id()
}
