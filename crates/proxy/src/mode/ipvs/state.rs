//! What should be in the kernel and what is, and the steps between the two. No IO.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use podwire_kernel::{
    ipset::{Element, Entry},
    ipvs::{Change, Destination, Found, Service, ServiceKey},
};
use podwire_model::{
    Family, IpNet, Protocol,
    delta::{Delta, Step},
};

use super::{
    render::{self, Context, Marks, Objects, Server},
    sets,
};
use crate::{
    Changes,
    mode::{Applied, FAMILIES, Settings, StaleFlows},
    plan::{Backend, Entry as Way, Frontend, Treatment},
};

/// The kernel's destinations of one virtual server beside those that it should have.
#[derive(Debug, Default)]
pub struct Spare {
    /// Each with its weight: zero for those that drain.
    pub destinations: BTreeMap<SocketAddr, u32>,
    /// The virtual server, if it is there for these only.
    pub orphan: Option<Server>,
}

/// This node's addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// All but those of our device.
    pub own: BTreeSet<IpAddr>,
    /// Those that answer at node ports, of each family.
    pub node_ports: [Vec<IpAddr>; 2],
}

/// Changes of virtual servers, in the order in which they are made: what others lead to comes first and goes last.
#[derive(Debug, Default)]
pub struct ServerSteps {
    /// New servers, and whatever changes about destinations.
    pub first: Vec<Change>,
    /// Servers that go.
    pub last: Vec<Change>,
}

/// Everything of both families.
#[derive(Debug)]
pub struct State {
    pub settings: Settings,
    treatments: HashMap<Frontend, Treatment>,
    marks: HashMap<Frontend, u32>,
    marked: HashMap<u32, Frontend>,
    pub node: NodeAddresses,
    pub servers: Delta<ServiceKey, Server>,
    pub spare: BTreeMap<ServiceKey, Spare>,
    pub members: BTreeMap<(sets::Name, Family), Delta<Entry, Option<u32>>>,
    /// Addresses on our device.
    pub vips: Delta<IpAddr, ()>,
    /// How many need an address: frontends, being a cluster IP, and virtual servers that are there for their last
    /// connections.
    users: HashMap<IpAddr, u32>,
    cluster_ips: HashSet<IpAddr>,
    hairpin: HashSet<IpAddr>,
    /// How many treatments lead to each endpoint.
    endpoints: BTreeMap<(IpAddr, Protocol, u16), u32>,
}

impl State {
    pub fn new(settings: Settings) -> Self {
        let sets = sets::Name::ALL.iter().flat_map(|name| FAMILIES.map(|family| (*name, family)));
        Self {
            settings,
            treatments: HashMap::new(),
            marks: HashMap::new(),
            marked: HashMap::new(),
            node: NodeAddresses::default(),
            servers: Delta::new(),
            spare: BTreeMap::new(),
            members: sets.map(|set| (set, Delta::new())).collect(),
            vips: Delta::new(),
            users: HashMap::new(),
            cluster_ips: HashSet::new(),
            hairpin: HashSet::new(),
            endpoints: BTreeMap::new(),
        }
    }

    /// Takes what was planned anew.
    pub fn change(&mut self, changes: Changes, report: &mut Applied) {
        for (address, used) in changes.hairpin {
            self.set_hairpin(address, used);
        }
        for (address, used) in changes.cluster_ips {
            let changed = if used { self.cluster_ips.insert(address) } else { self.cluster_ips.remove(&address) };
            if changed {
                self.count_user(address, used);
            }
        }
        for (frontend, after) in changes.frontends {
            let before = self.treatments.get(&frontend);
            if before == after.as_ref() {
                continue;
            }
            if frontend.protocol == Protocol::Udp {
                let (mut old, mut new) = (sorted_backends(before), sorted_backends(after.as_ref()));
                old.dedup();
                new.dedup();
                report.note_stale(frontend, &old, &new);
            }
            self.treat(frontend, after);
        }
    }

    /// Other addresses of this node: node ports move, and addresses that it has itself are not ours to hold.
    pub fn set_node(&mut self, node: NodeAddresses) {
        if node == self.node {
            return;
        }
        let moved: Vec<_> = self
            .treatments
            .iter()
            .filter(|(frontend, _)| matches!(frontend.entry, Way::NodePort(_)))
            .map(|(frontend, treatment)| (*frontend, treatment.clone()))
            .collect();
        for (frontend, _) in &moved {
            self.treat(*frontend, None);
        }
        let changed: Vec<_> = self.node.own.symmetric_difference(&node.own).copied().collect();
        self.node = node;
        for (frontend, treatment) in moved {
            self.treat(frontend, Some(treatment));
        }
        changed.into_iter().for_each(|address| self.hold(address));
    }

    fn treat(&mut self, frontend: Frontend, after: Option<Treatment>) {
        let before = self.treatments.remove(&frontend);
        let old = self.objects(&frontend, before.as_ref());
        if after.as_ref().is_none_or(|treatment| treatment.outside.is_none()) {
            if let Some(mark) = self.marks.remove(&frontend) {
                self.marked.remove(&mark);
            }
        } else if !self.marks.contains_key(&frontend) {
            self.give_mark(frontend);
        }
        let new = self.objects(&frontend, after.as_ref());
        self.exchange(frontend.entry.family(), old, new);
        self.count_endpoints(frontend.protocol, &sorted_backends(before.as_ref()), &sorted_backends(after.as_ref()));
        if let Way::Address(address) = frontend.entry {
            match (&before, &after) {
                (None, Some(_)) => self.count_user(address, true),
                (Some(_), None) => self.count_user(address, false),
                _ => {}
            }
        }
        if let Some(treatment) = after {
            self.treatments.insert(frontend, treatment);
        }
    }

    fn give_mark(&mut self, frontend: Frontend) {
        let marks = Marks::new(&self.settings);
        let begin = render::mark_number(&frontend);
        let mut numbers = (0..Marks::COUNT).map(|step| marks.mark(begin.wrapping_add(step)));
        if let Some(mark) = numbers.find(|mark| !self.marked.contains_key(mark)) {
            self.marked.insert(mark, frontend);
            self.marks.insert(frontend, mark);
        }
    }

    fn objects(&self, frontend: &Frontend, treatment: Option<&Treatment>) -> Objects {
        let node = &self.node.node_ports[usize::from(frontend.entry.family() == Family::V6)];
        let mark = self.marks.get(frontend).copied().unwrap_or_default();
        let context = Context { settings: &self.settings, node, mark };
        treatment.map(|treatment| render::objects(frontend, treatment, context)).unwrap_or_default()
    }

    fn exchange(&mut self, family: Family, old: Objects, new: Objects) {
        let stays: HashSet<_> = new.servers.iter().map(|(key, _)| *key).collect();
        for (key, _) in old.servers.iter().filter(|(key, _)| !stays.contains(key)) {
            self.servers.unwant(key);
        }
        for (key, server) in new.servers {
            self.servers.want(key, server);
        }
        let stays: HashSet<_> = new.members.iter().map(|(set, element)| (*set, element.entry)).collect();
        for (set, element) in old.members {
            if !stays.contains(&(set, element.entry)) {
                self.want_member((set, family), element, false);
            }
        }
        for (set, element) in new.members {
            self.want_member((set, family), element, true);
        }
    }

    fn want_member(&mut self, set: (sets::Name, Family), element: Element, wanted: bool) {
        if let Some(delta) = self.members.get_mut(&set) {
            if wanted { delta.want(element.entry, element.mark) } else { delta.unwant(&element.entry) }
        }
    }

    /// Counts who leads to endpoints. Both lists are sorted; what is in both is passed over.
    fn count_endpoints(&mut self, protocol: Protocol, old: &[Backend], new: &[Backend]) {
        let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
        loop {
            let more = match (old.peek(), new.peek()) {
                (None, None) => return,
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some(old), Some(new)) if old < new => false,
                (Some(old), Some(new)) if old > new => true,
                (Some(_), Some(_)) => {
                    _ = old.next();
                    _ = new.next();
                    continue;
                }
            };
            if let Some(backend) = if more { new.next() } else { old.next() } {
                self.count_endpoint((backend.address, protocol, backend.port), more);
            }
        }
    }

    fn count_endpoint(&mut self, key: (IpAddr, Protocol, u16), more: bool) {
        let count = self.endpoints.entry(key).or_default();
        *count = if more { *count + 1 } else { count.saturating_sub(1) };
        let exists = *count > 0;
        if !exists {
            self.endpoints.remove(&key);
        }
        if self.hairpin.contains(&key.0) {
            self.loop_back(key, exists);
        }
    }

    fn set_hairpin(&mut self, address: IpAddr, used: bool) {
        if used {
            self.hairpin.insert(address);
        } else {
            self.hairpin.remove(&address);
        }
        let all = (address, Protocol::Tcp, 0)..=(address, Protocol::Sctp, u16::MAX);
        let keys: Vec<_> = self.endpoints.range(all).map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.loop_back(key, used));
    }

    fn loop_back(&mut self, (address, protocol, port): (IpAddr, Protocol, u16), wanted: bool) {
        let entry = Entry::AddressPortNet(address, protocol, port, address.into());
        self.want_member((sets::Name::LoopBack, Family::of(&address)), Element::new(entry), wanted);
    }

    fn count_user(&mut self, address: IpAddr, more: bool) {
        let count = self.users.entry(address).or_default();
        *count = if more { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            self.users.remove(&address);
        }
        self.hold(address);
    }

    /// Decides anew whether an address is to be on our device.
    fn hold(&mut self, address: IpAddr) {
        let wanted = self.users.contains_key(&address) && !self.node.own.contains(&address);
        if wanted {
            self.vips.want(address, ());
        } else {
            self.vips.unwant(&address);
        }
        let entry = Element::new(Entry::Address(address));
        self.want_member((sets::Name::Addresses, Family::of(&address)), entry, wanted);
    }

    /// Takes in the virtual servers that the kernel has.
    pub fn found_servers(&mut self, found: Vec<(Service, Vec<Found>)>) {
        let orphans: Vec<_> = std::mem::take(&mut self.spare).into_values().filter_map(|spare| spare.orphan).collect();
        orphans.into_iter().filter_map(|orphan| orphan.vip).for_each(|vip| self.count_user(vip, false));
        let mut servers = Vec::new();
        for (service, destinations) in found {
            let key = service.key;
            let is_ours = |found: &&Found| found.destination == Destination::new(found.destination.address, 1);
            let mut backends: Vec<_> = destinations.iter().filter(is_ours).map(backend).collect();
            backends.sort_unstable();
            let others = destinations.iter().filter(|found| !is_ours(found));
            let others: BTreeMap<_, _> =
                others.map(|found| (found.destination.address, found.destination.weight)).collect();
            if !others.is_empty() {
                self.spare.insert(key, Spare { destinations: others, orphan: None });
            }
            let mut server = Server::found(&service, backends.into());
            if let Some(wanted) = self.servers.desired(&key) {
                (server.protocol, server.vip) = (wanted.protocol, wanted.vip);
                if wanted.backends == server.backends {
                    server.backends = wanted.backends.clone();
                }
            } else if let ServiceKey::Address(_, to) = key {
                server.vip = Some(to.ip()).filter(|address| !self.node.own.contains(address));
            }
            servers.push((key, server));
        }
        self.servers.found(servers);
    }

    /// What is to be done about virtual servers, as if it were done. What an earlier run sent to UDP endpoints that are
    /// no longer wanted is noted if `report` is given.
    pub fn take_server_steps(&mut self, mut report: Option<&mut Applied>) -> ServerSteps {
        let mut steps = ServerSteps::default();
        let pending: Vec<_> = self
            .servers
            .pending()
            .map(|step| match step {
                Step::Create(key, to) => (*key, None, Some(to.clone())),
                Step::Replace(key, from, to) => (*key, Some(from.clone()), Some(to.clone())),
                Step::Delete(key, from) => (*key, Some(from.clone()), None),
            })
            .collect();
        self.servers.all_done();
        for (key, from, to) in pending {
            if let (Some(report), Some(from)) = (report.as_deref_mut(), &from) {
                self.note_stale(&key, from, to.as_ref(), report);
            }
            match to {
                Some(to) => self.bring(key, from, &to, &mut steps.first),
                None => self.end(key, from, &mut steps),
            }
        }
        steps
    }

    /// Makes or changes a virtual server: what is new first.
    fn bring(&mut self, key: ServiceKey, from: Option<Server>, to: &Server, steps: &mut Vec<Change>) {
        let from = from.or_else(|| self.adopt(&key));
        match &from {
            None => steps.push(Change::AddService(to.service(key))),
            Some(from) if !from.is_like(to) => steps.push(Change::SetService(to.service(key))),
            Some(_) => {}
        }
        let old = from.map(|from| from.backends).unwrap_or_default();
        let spare = &mut self.spare.entry(key).or_default().destinations;
        for backend in to.backends.iter().filter(|backend| old.binary_search(backend).is_err()) {
            let destination = Destination::new(address(backend), 1);
            steps.push(match spare.remove(&destination.address) {
                Some(_) => Change::SetDestination(key, destination),
                None => Change::AddDestination(key, destination),
            });
        }
        for backend in old.iter().filter(|backend| to.backends.binary_search(backend).is_err()) {
            steps.push(retire(key, to.protocol, address(backend), spare));
        }
        // Spare ones that do not drain were made by someone else, or are of an odd kind.
        let odd: Vec<_> = spare.iter().filter(|(_, weight)| **weight != 0).map(|(address, _)| *address).collect();
        steps.extend(odd.into_iter().map(|address| retire(key, to.protocol, address, spare)));
        if spare.is_empty() {
            self.spare.remove(&key);
        }
    }

    /// Ends a virtual server: at once for UDP, else when its last connection has ended.
    fn end(&mut self, key: ServiceKey, from: Option<Server>, steps: &mut ServerSteps) {
        let Some(from) = from else { return };
        let mut spare = self.spare.remove(&key).unwrap_or_default();
        if from.protocol == Protocol::Udp {
            spare.destinations.clear();
        } else {
            for backend in from.backends.iter() {
                steps.first.push(retire(key, from.protocol, address(backend), &mut spare.destinations));
            }
        }
        if spare.destinations.is_empty() {
            steps.last.push(Change::DeleteService(key));
            return;
        }
        if let Some(vip) = from.vip {
            self.count_user(vip, true);
        }
        spare.orphan = Some(Server { backends: Arc::default(), ..from });
        self.spare.insert(key, spare);
    }

    /// The virtual server that was there for its last connections only, if there is one.
    fn adopt(&mut self, key: &ServiceKey) -> Option<Server> {
        let orphan = self.spare.get_mut(key)?.orphan.take()?;
        if let Some(vip) = orphan.vip {
            self.count_user(vip, false);
        }
        Some(orphan)
    }

    /// Whether these are the destinations that a virtual server should have.
    pub fn has(&self, key: &ServiceKey, found: &[Found]) -> bool {
        let backends = self.servers.actual(key).map_or(&[][..], |server| &server.backends);
        let spare = self.spare.get(key).map(|spare| &spare.destinations);
        let wanted = |found: &Found| {
            let weight = match backends.binary_search(&backend(found)) {
                Ok(_) => 1,
                Err(_) if spare.is_some_and(|spare| spare.contains_key(&found.destination.address)) => 0,
                Err(_) => return false,
            };
            found.destination == Destination::new(found.destination.address, weight)
        };
        found.len() == backends.len() + spare.map_or(0, BTreeMap::len) && found.iter().all(wanted)
    }

    /// Takes in what became of the spare destinations of a virtual server: those without connections go.
    pub fn drained(&mut self, key: &ServiceKey, found: &[Found]) -> Vec<Change> {
        let Some(spare) = self.spare.get_mut(key) else { return Vec::new() };
        let mut steps = Vec::new();
        spare.destinations.retain(|address, _| {
            match found.iter().find(|found| found.destination.address == *address) {
                Some(found) if found.connections.active + found.connections.inactive > 0 => true,
                Some(_) => {
                    steps.push(Change::DeleteDestination(*key, *address));
                    false
                }
                None => false,
            }
        });
        if spare.destinations.is_empty() {
            if self.adopt(key).is_some() {
                steps.push(Change::DeleteService(*key));
            }
            self.spare.remove(key);
        }
        steps
    }

    fn note_stale(&self, key: &ServiceKey, from: &Server, to: Option<&Server>, report: &mut Applied) {
        let ServiceKey::Address(Protocol::Udp, at) = key else { return };
        let named = Frontend { entry: Way::Address(at.ip()), protocol: Protocol::Udp, port: at.port() };
        let is_own = self.node.own.contains(&at.ip()) && !self.treatments.contains_key(&named);
        let entry = if is_own { Way::NodePort(Family::of(&at.ip())) } else { named.entry };
        let frontend = Frontend { entry, ..named };
        let spare = self.spare.get(key).into_iter().flat_map(|spare| spare.destinations.keys());
        let spare = spare.map(|address| Backend { address: address.ip(), port: address.port() });
        let gone = from.backends.iter().copied().chain(spare);
        let gone = gone.filter(|backend| to.is_none_or(|to| to.backends.binary_search(backend).is_err()));
        report.stale.extend(gone.map(|backend| StaleFlows::To(frontend, backend)));
    }
}

/// Takes a destination's new connections from it; it goes at once if it is one of UDP.
fn retire(key: ServiceKey, protocol: Protocol, address: SocketAddr, spare: &mut BTreeMap<SocketAddr, u32>) -> Change {
    if protocol == Protocol::Udp {
        spare.remove(&address);
        return Change::DeleteDestination(key, address);
    }
    spare.insert(address, 0);
    Change::SetDestination(key, Destination::new(address, 0))
}

/// The endpoints that a treatment may lead to, sorted; those for traffic from inside and from outside.
fn sorted_backends(treatment: Option<&Treatment>) -> Vec<Backend> {
    let mut backends: Vec<_> = treatment.into_iter().flat_map(render::backends).copied().collect();
    backends.sort();
    backends
}

fn address(backend: &Backend) -> SocketAddr {
    SocketAddr::new(backend.address, backend.port)
}

fn backend(found: &Found) -> Backend {
    Backend { address: found.destination.address.ip(), port: found.destination.address.port() }
}

/// Whether an address is in one of some ranges.
pub fn within(address: &IpAddr, ranges: &[IpNet]) -> bool {
    ranges.iter().any(|range| range.contains(address))
}
