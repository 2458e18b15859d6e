//! What shall happen to the traffic of one Service: every policy is decided here, once, whatever the mode.
//!
//! The rules are those of ServiceSpec and kube-proxy 1.36.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use podwire_model::{
    EndpointSlice, Family, IpNet, Name, ObjectName, Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
};

use crate::select::{Candidates, Chosen};

/// Where this proxy runs, as far as policies ask.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Me {
    /// The node's name: endpoints with it are local.
    pub node: Name,
    /// The node's zone.
    pub zone: Option<Name>,
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
}

/// Everything about one Service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServicePlan {
    /// The ways in.
    pub frontends: BTreeMap<Frontend, Treatment>,
    /// Its cluster IPs: traffic to other ports of theirs is refused.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Backends that may run on this node: masqueraded when they reach themselves.
    pub hairpin: BTreeSet<IpAddr>,
}

/// Plans `service` from its slices. Empty for Services that this proxy does not serve: headless, ExternalName, or
/// labelled for another proxy.
pub fn plan<'a>(service: &Service, slices: impl IntoIterator<Item = &'a EndpointSlice>, me: &Me) -> ServicePlan {
    let mut plan = ServicePlan::default();
    if service.headless || service.other_proxy || matches!(service.kind, ServiceType::ExternalName(_)) {
        return plan;
    }
    let slices: Vec<_> = slices.into_iter().filter(|slice| !slice.headless).collect();
    for family in [Family::V4, Family::V6] {
        let Some(cluster_ip) = service.cluster_ip(family) else { continue };
        plan.cluster_ips.insert(cluster_ip);
        for port in &service.ports {
            let candidates = Candidates::gather(&slices, family, port, me);
            plan.hairpin.extend(candidates.possibly_local());
            let chosen = candidates.choose();
            let masquerade = if me.masquerade_all { Masquerade::Always } else { Masquerade::OffCluster };
            let internal = balance(&chosen, service.internal_policy, masquerade);
            add_port(&mut plan, (service, port), &chosen, (cluster_ip, internal));
        }
    }
    plan
}

fn add_port(
    plan: &mut ServicePlan,
    (service, port): (&Service, &ServicePort),
    chosen: &Chosen,
    (cluster_ip, internal): (IpAddr, Action),
) {
    let family = Family::of(&cluster_ip);
    let label = label(&service.name, port);
    let treatment = |(inside, outside): (Action, Option<Action>)| Treatment {
        label: label.clone(),
        inside,
        outside,
        affinity: service.client_ip_affinity,
    };
    let mut add = |entry, number, treatment| {
        plan.frontends.insert(Frontend { entry, protocol: port.protocol, port: number }, treatment);
    };
    for address in external_addresses(service).filter(|address| Family::of(address) == family) {
        add(Entry::Address(address), port.port, treatment(external(service, chosen)));
    }
    if let Some(node_port) = port.node_port {
        add(Entry::NodePort(family), node_port, treatment(external(service, chosen)));
    }
    // Last: an external address that repeats the cluster IP does not change what the cluster IP means.
    add(Entry::Address(cluster_ip), port.port, treatment((internal, None)));
}

/// externalIPs and those load-balancer addresses that nodes serve. Addresses with `loadBalancerSourceRanges` are left
/// out: serving them to everyone would open what the user closed.
fn external_addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let open = service.source_ranges.is_empty() || service.source_ranges.iter().any(|range| range.prefix_len() == 0);
    let balancer = service.load_balancer.iter().filter(move |ingress| open && !ingress.proxied);
    let is_balancer = service.kind == ServiceType::LoadBalancer;
    service.external_ips.iter().copied().chain(balancer.filter(move |_| is_balancer).map(|ingress| ingress.ip))
}

/// What happens at node ports and external addresses: to pods and this node, and to others if that differs.
fn external(service: &Service, chosen: &Chosen) -> (Action, Option<Action>) {
    match service.external_policy {
        TrafficPolicy::Cluster => (balance(chosen, TrafficPolicy::Cluster, Masquerade::Always), None),
        TrafficPolicy::Local => (
            balance(chosen, TrafficPolicy::Cluster, Masquerade::OffCluster),
            Some(balance(chosen, TrafficPolicy::Local, Masquerade::Never)),
        ),
    }
}

fn balance(chosen: &Chosen, policy: TrafficPolicy, masquerade: Masquerade) -> Action {
    let backends = match policy {
        TrafficPolicy::Cluster => &chosen.cluster,
        TrafficPolicy::Local => &chosen.local,
    };
    if !backends.is_empty() {
        Action::Balance { backends: backends.clone(), masquerade }
    } else if chosen.cluster.is_empty() {
        Action::Reject
    } else {
        Action::Drop
    }
}

fn label(service: &ObjectName, port: &ServicePort) -> Name {
    if port.name.is_empty() { service.to_string().into() } else { format!("{service}:{}", port.name).into() }
}

/// Which sources are pods: the cluster's pod ranges. Without any, no source is known to be a pod, and nothing is
/// masqueraded for being off-cluster.
pub type PodRanges = Vec<IpNet>;
