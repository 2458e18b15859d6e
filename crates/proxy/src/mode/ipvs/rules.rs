//! The iptables rules: their number depends on the settings only, never on Services. Pure.

use podwire_kernel::iptables::{AddressKind, CtStates, Is, Match, Rule, Table, Target};
use podwire_model::{Family, IpNet};

use super::{render::Marks, sets::Name};
use crate::mode::{DetectLocal, Settings};

const ACCESS: &str = "KUBE-IPVS-ACCESS";
const SOURCES: &str = "KUBE-IPVS-SOURCES";
const INSIDE: &str = "KUBE-IPVS-INSIDE";
const SERVICES: &str = "KUBE-IPVS-SERVICES";
const OFF_CLUSTER: &str = "KUBE-IPVS-OFF-CLUSTER";
const NODE_PORT: &str = "KUBE-IPVS-NODE-PORT";
const POSTROUTING: &str = "KUBE-IPVS-POSTROUTING";
const FILTER: &str = "KUBE-IPVS-FILTER";
const OUT_FILTER: &str = "KUBE-IPVS-OUT-FILTER";
const FORWARD: &str = "KUBE-IPVS-FORWARD";

/// The tables that have rules.
pub const TABLES: [Table; 3] = [Table::Mangle, Table::Nat, Table::Filter];

/// Every chain that a run of this mode, or kube-proxy in its ipvs mode alone, may have left.
pub const CHAINS: [&str; 13] = [
    ACCESS,
    SOURCES,
    INSIDE,
    SERVICES,
    OFF_CLUSTER,
    NODE_PORT,
    POSTROUTING,
    FILTER,
    OUT_FILTER,
    FORWARD,
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
];

/// One table: chains in the order in which they can be made, and what leads to them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// Chains with all their rules.
    pub chains: Vec<(&'static str, Vec<Rule>)>,
    /// Chains of the kernel's, each with the rule that leads to one of ours.
    pub jumps: Vec<(&'static str, Rule)>,
}

/// The rules of a table.
pub fn rules(table: Table, family: Family, settings: &Settings) -> Rules {
    match table {
        Table::Mangle => mangle(family, settings),
        Table::Nat => nat(family, settings),
        Table::Filter => filter(family, settings),
        Table::Raw => Rules::default(),
    }
}

fn in_set(name: Name, family: Family) -> Match {
    Match::Set(Is::equal((name.name(family), name.directions().to_owned())))
}

fn not_in_set(name: Name, family: Family) -> Match {
    Match::Set(Is::not((name.name(family), name.directions().to_owned())))
}

fn in_state(states: CtStates) -> Match {
    Match::CtState(Is::equal(states))
}

const fn from_here(is: Is<AddressKind>) -> Match {
    Match::AddressType { source: Some(is), destination: None }
}

/// Before routing, and before IPVS sees what this node sends: who may enter, and what is marked as coming from inside.
fn mangle(family: Family, settings: &Settings) -> Rules {
    let set = |name| in_set(name, family);
    let ranges = settings.service_ranges.iter().filter(|range| Family::of(&range.addr()) == family);
    let mut access: Vec<_> = ranges
        .map(|range| Rule {
            destination: Some(Is::equal(range.trunc())),
            ..Rule::to(Target::Drop)
                .comment("service addresses that no service has")
                .and(not_in_set(Name::Addresses, family))
        })
        .collect();
    let marks = Marks::new(settings);
    let is_marked = Match::Mark(Is::not((marks.tag, marks.mask)));
    access.extend([
        Rule::to(Target::Drop).comment("local traffic policy and no local endpoint").and(set(Name::Drop)),
        Rule::to(Target::jump(SOURCES)).comment("load balancer source ranges").and(set(Name::Firewall)),
        Rule::to(Target::jump(INSIDE)).comment("pods and this node reach all endpoints").and(set(Name::Inside)),
        Rule::to(Target::Drop)
            .comment("local traffic policy and no local endpoint")
            .and(set(Name::DropOutside))
            .and(is_marked),
    ]);
    let sources = vec![
        Rule::to(Target::Return).and(set(Name::SourceCidr)),
        Rule::to(Target::Return).and(set(Name::SourceIp)),
        Rule::to(Target::Drop),
    ];
    let map = || {
        let (set, directions) = (Name::Inside.name(family), Name::Inside.directions().to_owned());
        Rule::to(Target::MapMark { set, directions })
    };
    let mut inside = vec![map().and(from_here(Is::equal(AddressKind::Local)))];
    inside.extend(pods(family, settings, map));
    let jump = || Rule::to(Target::jump(ACCESS)).and(in_state(CtStates::NEW)).comment("kubernetes ipvs access");
    Rules {
        chains: vec![(SOURCES, sources), (INSIDE, inside), (ACCESS, access)],
        jumps: vec![("PREROUTING", jump()), ("OUTPUT", jump())],
    }
}

/// Rules, all but alike, that match what pods send. None if nobody can tell.
fn pods(family: Family, settings: &Settings, rule: impl Fn() -> Rule) -> Vec<Rule> {
    match &settings.detect_local {
        DetectLocal::Unknown => Vec::new(),
        DetectLocal::Ranges(_) => {
            let by_source = |range: &IpNet| Rule { source: Some(Is::equal(range.trunc())), ..rule() };
            settings.detect_local.ranges(family).map(by_source).collect()
        }
        DetectLocal::Interface(name) => vec![Rule { input: Some(Is::equal(name.clone())), ..rule() }],
        DetectLocal::InterfacePrefix(prefix) => {
            vec![Rule { input: Some(Is::equal(format!("{prefix}+"))), ..rule() }]
        }
    }
}

/// Whose source is replaced.
fn nat(family: Family, settings: &Settings) -> Rules {
    let set = |name| in_set(name, family);
    let bit = settings.masquerade_mark;
    let mark = || Rule::to(Target::Mark { value: bit, mask: bit });
    // What this node sends to an address that it holds has that address as its source: it must always be replaced.
    let mut off_cluster = pods(family, settings, || Rule::to(Target::Return));
    if off_cluster.is_empty() {
        off_cluster.push(Rule::to(Target::Return).and(from_here(Is::not(AddressKind::Local))));
    }
    off_cluster.push(mark());
    let of_protocol = |protocol: &str, rule: Rule| Rule { protocol: Some(Is::equal(protocol.to_owned())), ..rule };
    let node_port = vec![
        of_protocol("tcp", Rule::to(Target::Return).and(set(Name::NodePortLocalTcp))),
        of_protocol("tcp", mark().and(set(Name::NodePortTcp))),
        of_protocol("udp", Rule::to(Target::Return).and(set(Name::NodePortLocalUdp))),
        of_protocol("udp", mark().and(set(Name::NodePortUdp))),
        of_protocol("sctp", Rule::to(Target::Return).and(set(Name::NodePortLocalSctp))),
        of_protocol("sctp", mark().and(set(Name::NodePortSctp))),
    ];
    let to_here = Match::AddressType { source: None, destination: Some(Is::equal(AddressKind::Local)) };
    let services = vec![
        Rule { source: loopback(family).map(Is::equal), ..Rule::to(Target::Return) },
        Rule::to(Target::jump(OFF_CLUSTER)).comment("cluster IPs").and(set(Name::ClusterIp)),
        mark().comment("external IPs").and(set(Name::ExternalIp)),
        Rule::to(Target::Return).comment("load balancer addresses with local policy").and(set(Name::LoadBalancerLocal)),
        mark().comment("load balancer addresses").and(set(Name::LoadBalancer)),
        Rule::to(Target::jump(NODE_PORT)).comment("node ports").and(to_here),
    ];
    let marks = Marks::new(settings);
    let masquerade = || Rule::to(Target::Masquerade { random_fully: true });
    let postrouting = vec![
        masquerade().comment("endpoints that reach themselves").and(set(Name::LoopBack)),
        masquerade()
            .comment("this node to services with local policy")
            .and(Match::Mark(Is::equal((marks.tag, marks.mask))))
            .and(from_here(Is::equal(AddressKind::Local))),
        Rule::to(Target::Return).and(Match::Mark(Is::not((bit, bit)))),
        Rule::to(Target::Mark { value: bit, mask: 0 }),
        masquerade().comment("kubernetes service traffic requiring SNAT"),
    ];
    let jump = |chain| Rule::to(Target::jump(chain)).comment("kubernetes service portals");
    Rules {
        chains: vec![
            (OFF_CLUSTER, off_cluster),
            (NODE_PORT, node_port),
            (SERVICES, services),
            (POSTROUTING, postrouting),
        ],
        jumps: vec![
            ("PREROUTING", jump(SERVICES)),
            ("OUTPUT", jump(SERVICES)),
            ("POSTROUTING", Rule::to(Target::jump(POSTROUTING)).comment("kubernetes postrouting rules")),
        ],
    }
}

fn loopback(family: Family) -> Option<IpNet> {
    match family {
        Family::V4 => IpNet::new(std::net::Ipv4Addr::new(127, 0, 0, 0).into(), 8).ok(),
        Family::V6 => Some(std::net::IpAddr::from(std::net::Ipv6Addr::LOCALHOST).into()),
    }
}

/// Ports of our addresses that no Service has: this node's own programs do not answer there.
fn filter(family: Family, settings: &Settings) -> Rules {
    let set = |name| in_set(name, family);
    let served =
        [Name::ClusterIp, Name::ExternalIp, Name::ExternalIpLocal, Name::LoadBalancer, Name::LoadBalancerLocal];
    let refuse = || {
        let refuse = Rule::to(Target::Reject).comment("ports that no service has");
        refuse.and(in_state(CtStates::NEW)).and(set(Name::Addresses))
    };
    let mut input: Vec<_> = served.into_iter().map(|name| Rule::to(Target::Return).and(set(name))).collect();
    input.push(refuse());
    let bit = settings.masquerade_mark;
    let invalid = settings.drop_invalid.then(|| Rule::to(Target::Drop).and(in_state(CtStates::INVALID)));
    let forward = invalid.into_iter().chain([
        Rule::to(Target::Accept).comment("kubernetes forwarding rules").and(Match::Mark(Is::equal((bit, bit)))),
        Rule::to(Target::Accept)
            .comment("kubernetes forwarding conntrack rule")
            .and(in_state(CtStates::RELATED.or(CtStates::ESTABLISHED))),
    ]);
    let jump = |chain, text: &str| Rule::to(Target::jump(chain)).comment(text);
    Rules {
        // What this node sends to one of our addresses comes here only if IPVS did not take it.
        chains: vec![(FILTER, input), (OUT_FILTER, vec![refuse()]), (FORWARD, forward.collect())],
        jumps: vec![
            ("INPUT", jump(FILTER, "kubernetes ipvs access filter")),
            ("OUTPUT", jump(OUT_FILTER, "kubernetes ipvs access filter")),
            ("FORWARD", jump(FORWARD, "kubernetes forwarding rules")),
        ],
    }
}
