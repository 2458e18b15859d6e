//! What shall happen to the traffic of one Service: every policy is decided here, once, whatever the mode.
//!
//! The rules are those of ServiceSpec and kube-proxy 1.36.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc, time::Duration};

use podwire_model::{Family, IpNet, Name, ObjectName, Protocol, Service, ServicePort, ServiceType, TrafficPolicy};

use crate::{endpoints::Slice, select::Candidates};

/// The longest time that a client may keep its endpoint (Kubernetes API, `MaxClientIPServiceAffinitySeconds`).
const MAX_AFFINITY: Duration = Duration::from_secs(86_400);

/// Where this proxy runs, as far as policies ask.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Me {
    /// The node's name: endpoints with it are local.
    pub node: Name,
    /// The node's zone.
    pub zone: Option<Name>,
    /// The node's own addresses.
    pub addresses: Vec<IpAddr>,
    /// The ranges of the node's pods (`spec.podCIDRs`).
    pub pod_ranges: Vec<IpNet>,
    /// Masquerade pods' traffic to cluster IPs as well (`masqueradeAll`).
    pub masquerade_all: bool,
}

/// Where traffic enters a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// A Service address: cluster IP, external IP or load-balancer IP.
    Address(IpAddr),
    /// Every address of this node, in one family.
    NodePort(Family),
}

impl Entry {
    /// The address family.
    pub const fn family(&self) -> Family {
        match self {
            Self::Address(address) => Family::of(address),
            Self::NodePort(family) => *family,
        }
    }
}

/// One way into a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// Address or node port.
    pub entry: Entry,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The port there.
    pub port: u16,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.lower();
        match self.entry {
            Entry::Address(IpAddr::V4(address)) => write!(f, "{address}:{}/{protocol}", self.port),
            Entry::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}/{protocol}", self.port),
            Entry::NodePort(_) => write!(f, "node port {}/{protocol}", self.port),
        }
    }
}

/// One endpoint that traffic is sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// Its address.
    pub address: IpAddr,
    /// The port it listens on.
    pub port: u16,
}

/// Whose source address is replaced by this node's, so that answers come back here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Masquerade {
    /// Nobody's: the endpoint sees the client.
    Never,
    /// Everyone's but the pods'.
    OffCluster,
    /// Everyone's.
    Always,
}

/// What happens to traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Refused at once: the Service has no endpoint anywhere.
    Reject,
    /// Dropped: a Local policy, and no endpoint here. A load balancer may send it elsewhere.
    Drop,
    /// Spread over endpoints; sorted, at least one.
    Balance {
        /// Whether these are the endpoints of the whole cluster or those of this node.
        policy: TrafficPolicy,
        /// Who gets it.
        backends: Arc<[Backend]>,
        /// Whose source is replaced. A pod that reaches itself is masqueraded in any case.
        masquerade: Masquerade,
    },
}

/// What happens at one frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Treatment {
    /// Service and port, for people: `namespace/name:port`.
    pub label: Name,
    /// Traffic of pods and of this node itself.
    pub inside: Action,
    /// Traffic from anywhere else, where that is treated in another way (`externalTrafficPolicy: Local`).
    pub outside: Option<Action>,
    /// How long a client keeps its endpoint (`sessionAffinity: ClientIP`).
    pub affinity: Option<Duration>,
    /// The only sources that may enter, whoever they are; traffic of others is dropped (`loadBalancerSourceRanges`).
    pub sources: Option<Arc<[IpNet]>>,
}

/// What a load balancer asks this node about one Service (`healthCheckNodePort`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port where it asks, by HTTP.
    pub port: u16,
    /// How many ready endpoints the Service has on this node.
    pub local_endpoints: usize,
}

/// Everything about one Service. Lists are sorted, and hold everything once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServicePlan {
    /// The ways in.
    pub frontends: Vec<(Frontend, Treatment)>,
    /// Its cluster IPs: traffic to other ports of theirs is refused.
    pub cluster_ips: Vec<IpAddr>,
    /// Backends that may reach themselves through this node: masqueraded when they do.
    pub hairpin: Vec<IpAddr>,
    /// What load balancers ask, if they do.
    pub health_check: Option<HealthCheck>,
}

/// Plans `service` from its slices. Empty for Services that this proxy does not serve: headless, ExternalName, or
/// labelled for another proxy.
pub fn plan(service: &Service, slices: &[Slice], me: &Me) -> ServicePlan {
    let mut plan = ServicePlan::default();
    if service.headless || service.other_proxy || matches!(service.kind, ServiceType::ExternalName(_)) {
        return plan;
    }
    let mut ready_here = 0;
    for family in [Family::V4, Family::V6] {
        let Some(cluster_ip) = service.cluster_ip(family) else { continue };
        plan.cluster_ips.push(cluster_ip);
        let mut of_family = BTreeSet::new();
        for port in &service.ports {
            let candidates = Candidates::gather(slices, family, port, me);
            of_family.extend(candidates.ready_here());
            Port { service, port, family, chosen: Chosen::new(service, &candidates), me }.add(&mut plan, cluster_ip);
            plan.hairpin.extend(candidates.here());
        }
        // A pod with an address of each family is one endpoint.
        ready_here = ready_here.max(of_family.len());
    }
    // Of equal ones the last that was added holds.
    plan.frontends.reverse();
    plan.frontends.sort_by_key(|(frontend, _)| *frontend);
    plan.frontends.dedup_by_key(|(frontend, _)| *frontend);
    plan.frontends.shrink_to_fit();
    plan.hairpin.sort_unstable();
    plan.hairpin.dedup();
    plan.hairpin.shrink_to_fit();
    let asked = service
        .health_check_node_port
        .filter(|_| service.kind == ServiceType::LoadBalancer && service.external_policy == TrafficPolicy::Local);
    plan.health_check = asked.map(|port| HealthCheck { port, local_endpoints: ready_here });
    plan
}

/// The endpoints that get traffic.
struct Chosen {
    /// For policy Cluster.
    cluster: Arc<[Backend]>,
    /// For policy Local; empty if no policy of the Service is Local.
    local: Arc<[Backend]>,
}

impl Chosen {
    fn new(service: &Service, candidates: &Candidates) -> Self {
        let cluster = candidates.cluster();
        let asked = service.internal_policy == TrafficPolicy::Local || service.external_policy == TrafficPolicy::Local;
        let local = if asked { candidates.local() } else { Arc::default() };
        Self { local: if local == cluster { cluster.clone() } else { local }, cluster }
    }

    fn balance(&self, policy: TrafficPolicy, masquerade: Masquerade) -> Action {
        let backends = match policy {
            TrafficPolicy::Cluster => &self.cluster,
            TrafficPolicy::Local => &self.local,
        };
        if !backends.is_empty() {
            Action::Balance { policy, backends: backends.clone(), masquerade }
        } else if self.cluster.is_empty() {
            Action::Reject
        } else {
            Action::Drop
        }
    }
}

/// One port of a Service in one family.
struct Port<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    family: Family,
    chosen: Chosen,
    me: &'a Me,
}

impl Port<'_> {
    /// Adds its frontends: where the Service names one address twice, the later one holds.
    fn add(&self, plan: &mut ServicePlan, cluster_ip: IpAddr) {
        let (service, port) = (self.service, self.port);
        let label = label(&service.name, port);
        let affinity = service.client_ip_affinity.map(|time| time.min(MAX_AFFINITY));
        let treatment = |(inside, outside): (Action, Option<Action>), sources| Treatment {
            label: label.clone(),
            inside,
            outside,
            affinity,
            sources,
        };
        let mut add = |entry, number, treatment| {
            plan.frontends.push((Frontend { entry, protocol: port.protocol, port: number }, treatment));
        };
        let of_family = |address: &IpAddr| Family::of(address) == self.family;
        if let Some(node_port) = port.node_port {
            add(Entry::NodePort(self.family), node_port, treatment(self.external(), None));
        }
        for address in service.external_ips.iter().copied().filter(of_family) {
            add(Entry::Address(address), port.port, treatment(self.external(), None));
        }
        // After external addresses: one that is the load balancer's as well is open to the same sources only.
        for address in load_balancer_addresses(service).filter(of_family) {
            add(Entry::Address(address), port.port, treatment(self.external(), sources(service, address, self.me)));
        }
        // Last: an external address that repeats the cluster IP does not change what the cluster IP means.
        let masquerade = if self.me.masquerade_all { Masquerade::Always } else { Masquerade::OffCluster };
        let internal = self.chosen.balance(service.internal_policy, masquerade);
        add(Entry::Address(cluster_ip), port.port, treatment((internal, None), None));
        self.add_hairpin(plan);
    }

    /// What happens at node ports and external addresses: to pods and this node, and to others if that differs.
    fn external(&self) -> (Action, Option<Action>) {
        match self.service.external_policy {
            TrafficPolicy::Cluster => (self.chosen.balance(TrafficPolicy::Cluster, Masquerade::Always), None),
            TrafficPolicy::Local => (
                self.chosen.balance(TrafficPolicy::Cluster, Masquerade::OffCluster),
                Some(self.chosen.balance(TrafficPolicy::Local, Masquerade::Never)),
            ),
        }
    }

    /// With policy Local, pods of other nodes too reach every endpoint through this node without being masqueraded, and
    /// so may reach themselves.
    fn add_hairpin(&self, plan: &mut ServicePlan) {
        let from_outside = self.port.node_port.is_some()
            || !self.service.external_ips.is_empty()
            || load_balancer_addresses(self.service).next().is_some();
        if from_outside && self.service.external_policy == TrafficPolicy::Local {
            plan.hairpin.extend(self.chosen.cluster.iter().map(|backend| backend.address));
        }
    }
}

/// The load-balancer addresses that nodes serve.
fn load_balancer_addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let is_balancer = service.kind == ServiceType::LoadBalancer;
    service.load_balancer.iter().filter(move |ingress| is_balancer && !ingress.proxied).map(|ingress| ingress.ip)
}

/// Who may use a load-balancer address: `loadBalancerSourceRanges` of its family, or everyone. A node that may use it
/// may send from that address itself, where the load balancer gave it to the node.
fn sources(service: &Service, address: IpAddr, me: &Me) -> Option<Arc<[IpNet]>> {
    let family = Family::of(&address);
    let mut ranges: BTreeSet<IpNet> =
        service.source_ranges.iter().map(IpNet::trunc).filter(|range| Family::of(&range.addr()) == family).collect();
    if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    if me.addresses.iter().any(|own| ranges.iter().any(|range| range.contains(own))) {
        ranges.insert(address.into());
    }
    Some(ranges.into_iter().collect())
}

fn label(service: &ObjectName, port: &ServicePort) -> Name {
    if port.name.is_empty() { service.to_string().into() } else { format!("{service}:{}", port.name).into() }
}
