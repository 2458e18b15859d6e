//! The chains and rules that are there whatever the Services are.

use podwire_kernel::iptables::{AddressKind, CtStates, Is, Match, Rule, Table, Target};
use podwire_model::{Family, IpNet};

use super::{names::Shared, render::MARK_MASQ};
use crate::mode::{NodePortAddresses, Settings};

/// Shared with kubelet, which writes the very same rule; never emptied.
pub const FIREWALL: &str = "KUBE-FIREWALL";
/// Chains that are there for others to look at: they vanish when somebody flushes iptables.
pub const CANARY: &str = "KUBE-PROXY-CANARY";
const FORWARD: &str = "KUBE-FORWARD";
const POSTROUTING: &str = "KUBE-POSTROUTING";
/// Of table filter; the one of table nat is [`Shared::NodePorts`].
const HEALTH_CHECKS: &str = "KUBE-NODEPORTS";

/// The names of the chains that [`constant`] makes.
pub const NAMES: [&str; 5] = [CANARY, MARK_MASQ, POSTROUTING, HEALTH_CHECKS, FORWARD];

/// Chains whose rules are always the same, in the order in which they must be made.
pub fn constant(settings: &Settings) -> Vec<(Table, &'static str, Vec<Rule>)> {
    let mark = settings.masquerade_mark;
    let marked = |is: Is<(u32, u32)>| Match::Mark(is);
    let postrouting = vec![
        Rule::to(Target::Return).and(marked(Is::not((mark, mark)))),
        Rule::to(Target::Mark { value: mark, mask: 0 }),
        Rule::to(Target::Masquerade { random_fully: true }).comment("kubernetes service traffic requiring SNAT"),
    ];
    let in_state = |states| Match::CtState(Is::equal(states));
    let invalid = settings.drop_invalid.then(|| Rule::to(Target::Drop).and(in_state(CtStates::INVALID)));
    let forward = invalid.into_iter().chain([
        Rule::to(Target::Accept).comment("kubernetes forwarding rules").and(marked(Is::equal((mark, mark)))),
        Rule::to(Target::Accept)
            .comment("kubernetes forwarding conntrack rule")
            .and(in_state(CtStates::RELATED.or(CtStates::ESTABLISHED))),
    ]);
    vec![
        (Table::Mangle, CANARY, Vec::new()),
        (Table::Nat, CANARY, Vec::new()),
        (Table::Nat, MARK_MASQ, vec![Rule::to(Target::Mark { value: mark, mask: mark })]),
        (Table::Nat, POSTROUTING, postrouting),
        (Table::Filter, CANARY, Vec::new()),
        (Table::Filter, HEALTH_CHECKS, Vec::new()),
        (Table::Filter, FORWARD, forward.collect()),
    ]
}

/// The rules after all others of a shared chain.
pub fn tail(shared: Shared, family: Family, settings: &Settings) -> Vec<Rule> {
    match shared {
        Shared::Addresses => node_ports(family, settings),
        Shared::Unserved => unserved(family, settings),
        _ => Vec::new(),
    }
}

/// After the cluster IPs without endpoints: what this node itself sends to external addresses without endpoints, then
/// what no Service took of the addresses that Services have.
fn unserved(family: Family, settings: &Settings) -> Vec<Rule> {
    // Output leads to this chain, not to that of external addresses; kube-proxy's cleanup would stumble over a jump from there.
    let from_here = Match::AddressType { source: Some(Is::equal(AddressKind::Local)), destination: None };
    let external = Rule::to(Target::jump(Shared::UnservedExternal.name()))
        .comment("kubernetes externally-visible service portals")
        .and(from_here);
    let mut rules = vec![external];
    let to_cluster_ips = |destination| Rule {
        destination,
        ..Rule::to(Target::jump(Shared::ClusterIps.name())).comment("kubernetes ports without a service")
    };
    let ranges = settings.service_ranges.iter().filter(|range| Family::of(&range.addr()) == family);
    for range in ranges {
        let within = Some(Is::equal(range.trunc()));
        let drop = Rule::to(Target::Drop).comment("kubernetes service addresses without a service");
        rules.extend([to_cluster_ips(within), Rule { destination: within, ..drop }]);
    }
    if rules.len() == 1 {
        rules.push(to_cluster_ips(None));
    }
    rules
}

/// To the node ports, for what no address of a Service took.
fn node_ports(family: Family, settings: &Settings) -> Vec<Rule> {
    let text = "kubernetes service nodeports; NOTE: this must be the last rule in this chain";
    let jump = || Rule::to(Target::jump(Shared::NodePorts.name())).comment(text);
    let local = || Match::AddressType { source: None, destination: Some(Is::equal(AddressKind::Local)) };
    let of_family = |net: &&IpNet| Family::of(&net.addr()) == family;
    match &settings.node_port_addresses {
        NodePortAddresses::All => {
            let mut rule = jump().and(local());
            if let Some(loopback) = without_loopback(family, settings) {
                rule.destination = Some(Is::not(loopback));
            }
            vec![rule]
        }
        NodePortAddresses::Primary => {
            let primary = settings.node_ips.iter().find(|address| Family::of(address) == family);
            let at = |address: &std::net::IpAddr| Rule { destination: Some(Is::equal((*address).into())), ..jump() };
            primary.map(at).into_iter().collect()
        }
        NodePortAddresses::Ranges(ranges) => {
            let within = |net: &IpNet| {
                let everything = net.prefix_len() == 0;
                let loopback = without_loopback(family, settings).filter(|_| everything).map(Is::not);
                let destination = if everything { loopback } else { Some(Is::equal(net.trunc())) };
                Rule { destination, ..jump().and(local()) }
            };
            ranges.iter().filter(of_family).map(within).collect()
        }
    }
}

/// Loopback addresses, unless node ports answer there: never for IPv6, where the kernel cannot do it.
fn without_loopback(family: Family, settings: &Settings) -> Option<IpNet> {
    match family {
        Family::V4 if settings.localhost_node_ports => None,
        Family::V4 => IpNet::new(std::net::Ipv4Addr::new(127, 0, 0, 0).into(), 8).ok(),
        Family::V6 => Some(std::net::IpAddr::from(std::net::Ipv6Addr::LOCALHOST).into()),
    }
}

/// Whether node ports answer at 127.0.0.1.
pub fn answers_at_localhost(settings: &Settings) -> bool {
    let localhost = std::net::IpAddr::from(std::net::Ipv4Addr::LOCALHOST);
    settings.localhost_node_ports
        && match &settings.node_port_addresses {
            NodePortAddresses::All => true,
            NodePortAddresses::Primary => false,
            NodePortAddresses::Ranges(ranges) => ranges.iter().any(|range| range.contains(&localhost)),
        }
}

/// What keeps other machines from addresses of this one's loopback, once those are routed at all.
pub fn localhost_guard() -> Option<Rule> {
    let loopback = IpNet::new(std::net::Ipv4Addr::new(127, 0, 0, 0).into(), 8).ok()?;
    let known = CtStates::RELATED.or(CtStates::ESTABLISHED).or(CtStates::DNAT);
    let rule =
        Rule::to(Target::Drop).comment("block incoming localnet connections").and(Match::CtState(Is::not(known)));
    Some(Rule { source: Some(Is::not(loopback)), destination: Some(Is::equal(loopback)), ..rule })
}

/// From the kernel's chains to ours, in the order in which packets meet them.
pub fn jumps(family: Family, settings: &Settings) -> Vec<(Table, &'static str, Rule)> {
    let new = || Match::CtState(Is::equal(CtStates::NEW));
    let jump = |chain: &str, text: &str| Rule::to(Target::jump(chain)).comment(text);
    let on_new = |chain: &str, text: &str| Rule::to(Target::jump(chain)).and(new()).comment(text);
    let external = || on_new(Shared::UnservedExternal.name(), "kubernetes externally-visible service portals");
    let firewall = || on_new(Shared::Firewall.name(), "kubernetes load balancer firewall");
    let unserved = || on_new(Shared::Unserved.name(), "kubernetes service portals");
    let services = || jump(Shared::Addresses.name(), "kubernetes service portals");
    let mut jumps = vec![
        (Table::Filter, "INPUT", external()),
        (Table::Filter, "INPUT", firewall()),
        (Table::Filter, "INPUT", jump(HEALTH_CHECKS, "kubernetes health check service ports")),
        (Table::Filter, "FORWARD", external()),
        (Table::Filter, "FORWARD", firewall()),
        (Table::Filter, "FORWARD", unserved()),
        (Table::Filter, "FORWARD", jump(FORWARD, "kubernetes forwarding rules")),
        (Table::Filter, "OUTPUT", firewall()),
        (Table::Filter, "OUTPUT", unserved()),
        (Table::Nat, "OUTPUT", services()),
        (Table::Nat, "PREROUTING", services()),
        (Table::Nat, "POSTROUTING", jump(POSTROUTING, "kubernetes postrouting rules")),
    ];
    if family == Family::V4 && answers_at_localhost(settings) {
        jumps.push((Table::Filter, "INPUT", Rule::to(Target::jump(FIREWALL))));
        jumps.push((Table::Filter, "OUTPUT", Rule::to(Target::jump(FIREWALL))));
    }
    jumps
}
