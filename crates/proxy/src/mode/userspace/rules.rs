//! The rules that lead from a Service's address to a local port, and refuse or drop the rest. Pure.

use std::net::IpAddr;

use podwire_kernel::iptables::{AddressKind, CtStates, Is, Match, Ports, Rule, Table, Target};
use podwire_model::{Family, IpNet, Protocol, TrafficPolicy};

use crate::{
    mode::{DetectLocal, NodePortAddresses, Settings},
    plan::{Action, Entry, Frontend, Treatment},
};

/// Service addresses, for traffic that comes in ("container") and for this node's own ("host"). In table `nat` what is
/// redirected, in table `filter` what is refused or dropped.
pub const PORTALS: [&str; 2] = ["KUBE-PORTALS-CONTAINER", "KUBE-PORTALS-HOST"];
/// Node ports, likewise.
pub const NODE_PORTS: [&str; 2] = ["KUBE-NODEPORT-CONTAINER", "KUBE-NODEPORT-HOST"];
/// The proxy's own ports: they take what was redirected to them and nothing else.
pub const DOORS: &str = "KUBE-NODEPORT-NON-LOCAL";
/// What no Service has: other ports of cluster IPs.
pub const UNUSED_PORTS: &str = "KUBE-PORTALS-UNUSED-PORTS";
/// What no Service has: other addresses of the Service ranges.
pub const UNUSED_ADDRESSES: &str = "KUBE-PORTALS-UNUSED-IPS";

/// The chains that this mode makes in a table, and empties and deletes when it goes.
pub const fn chains(table: Table) -> &'static [&'static str] {
    match table {
        Table::Nat => &[PORTALS[0], PORTALS[1], NODE_PORTS[0], NODE_PORTS[1]],
        Table::Filter => &[PORTALS[0], PORTALS[1], NODE_PORTS[0], NODE_PORTS[1], DOORS, UNUSED_PORTS, UNUSED_ADDRESSES],
        Table::Mangle | Table::Raw => &[],
    }
}

/// The tables with rules of this mode.
pub const TABLES: [Table; 2] = [Table::Nat, Table::Filter];

/// A rule and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The table.
    pub table: Table,
    /// The chain.
    pub chain: &'static str,
    /// The rule, as `iptables-save` prints it.
    pub rule: String,
}

/// Whose traffic. The discriminant is the index into [`PORTALS`] and [`NODE_PORTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// What comes in by an interface.
    Container,
    /// What this node sends itself.
    Host,
}

/// The rules of the kernel's own chains that lead to ours, in order: first of all rules there.
pub fn jumps(family: Family, table: Table, settings: &Settings) -> Vec<(&'static str, Vec<String>)> {
    let new = || Match::CtState(Is::equal(CtStates::NEW));
    let print = |rule: Rule| rule.display(family).to_string();
    let [portals, portals_host] = PORTALS.map(|chain| Rule::to(Target::jump(chain)));
    let [container, host] =
        [Origin::Container, Origin::Host].map(|origin| node_port_jumps(family, origin, settings).collect::<Vec<_>>());
    let jumps = match table {
        Table::Nat => vec![
            ("PREROUTING", [vec![portals.comment("service portals")], container].concat()),
            ("OUTPUT", [vec![portals_host.comment("service portals")], host].concat()),
        ],
        Table::Filter => {
            let unused = [UNUSED_PORTS, UNUSED_ADDRESSES].map(|chain| Rule::to(Target::jump(chain))).to_vec();
            let doors = Rule::to(Target::jump(DOORS));
            vec![
                ("INPUT", [vec![doors, portals.clone()], container, unused.clone()].concat()),
                ("FORWARD", [vec![portals], unused.clone()].concat()),
                ("OUTPUT", [vec![portals_host], host, unused].concat()),
            ]
        }
        Table::Mangle | Table::Raw => Vec::new(),
    };
    let only_new = |rule: Rule| if table == Table::Filter { rule.and(new()) } else { rule };
    let finish = |rules: Vec<Rule>| rules.into_iter().map(|rule| print(only_new(rule))).collect();
    jumps.into_iter().map(|(chain, rules)| (chain, finish(rules))).collect()
}

/// To the node ports' chain: what is sent to one of this node's addresses that answers there.
fn node_port_jumps(family: Family, origin: Origin, settings: &Settings) -> impl Iterator<Item = Rule> {
    let of_family = |net: &IpNet| Family::of(&net.addr()) == family;
    let loopback: IpNet = match family {
        Family::V4 => IpNet::new_assert([127, 0, 0, 0].into(), 8),
        Family::V6 => IpNet::from(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)),
    };
    let destinations: Vec<Option<Is<IpNet>>> = match &settings.node_port_addresses {
        NodePortAddresses::All if origin == Origin::Host && !settings.localhost_node_ports => {
            vec![Some(Is::not(loopback))]
        }
        NodePortAddresses::All => vec![None],
        NodePortAddresses::Primary => {
            let mut own = settings.node_ips.iter().copied().map(IpNet::from);
            own.find(of_family).map(|net| Some(Is::equal(net))).into_iter().collect()
        }
        NodePortAddresses::Ranges(ranges) => {
            let wanted = |net: &IpNet| settings.localhost_node_ports || !loopback.contains(net);
            let ranges = ranges.iter().map(IpNet::trunc).filter(of_family).filter(wanted);
            ranges.map(|net| (net.prefix_len() > 0).then_some(Is::equal(net))).collect()
        }
    };
    let local = Match::AddressType { source: None, destination: Some(Is::equal(AddressKind::Local)) };
    destinations.into_iter().map(move |destination| Rule {
        destination,
        ..Rule::to(Target::jump(NODE_PORTS[origin as usize])).comment("service node ports").and(local.clone())
    })
}

/// Some traffic of an origin.
#[derive(Debug, Clone, Default)]
struct Who {
    source: Option<IpNet>,
    input: Option<String>,
}

/// What happens to whom, in order.
type Steps<'a> = Vec<(Who, &'a Action)>;

/// The rules of a frontend. `port` says which local port serves the endpoints of a policy, if one does: what cannot be
/// served is refused.
pub fn frontend(
    frontend: &Frontend,
    treatment: &Treatment,
    port: impl Fn(TrafficPolicy) -> Option<u16>,
    detect_local: &DetectLocal,
) -> Vec<Placed> {
    let mut rules = Vec::new();
    for origin in [Origin::Container, Origin::Host] {
        let steps = steps(frontend, treatment, origin, detect_local);
        let chain = match frontend.entry {
            Entry::Address(_) => PORTALS[origin as usize],
            Entry::NodePort(_) => NODE_PORTS[origin as usize],
        };
        let mut add = |table, who: &Who, target, suffix| {
            let label = format!("{}{suffix}", treatment.label);
            let rule = matching(frontend, who, label, target).display(frontend.entry.family()).to_string();
            rules.push(Placed { table, chain, rule });
        };
        let last = steps.iter().rposition(|(_, action)| matches!(action, Action::Balance { .. }));
        for (index, (who, action)) in steps.iter().enumerate() {
            let redirect = match action {
                Action::Balance { policy, .. } => port(*policy).map(|port| (Target::Redirect(port), suffix(*policy))),
                Action::Reject | Action::Drop => None,
            };
            match (redirect, action) {
                (Some((target, suffix)), _) => add(Table::Nat, who, target, suffix),
                // Others are redirected below.
                (None, _) if last.is_some_and(|last| index < last) => add(Table::Nat, who, Target::Return, ""),
                (None, _) => {}
            }
            match action {
                Action::Drop => add(Table::Filter, who, Target::Drop, ""),
                Action::Reject => add(Table::Filter, who, Target::Reject, ""),
                Action::Balance { policy, .. } if port(*policy).is_none() => {
                    add(Table::Filter, who, Target::Reject, "");
                }
                // It was redirected: it is no longer addressed to the frontend.
                Action::Balance { .. } => {}
            }
        }
        if treatment.sources.is_some() {
            add(Table::Filter, &Who::default(), Target::Drop, "");
        }
    }
    rules
}

/// What tells the ports of one Service port apart, in comments.
pub const fn suffix(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "",
        TrafficPolicy::Local => " local endpoints",
    }
}

fn steps<'a>(frontend: &Frontend, treatment: &'a Treatment, origin: Origin, detect: &DetectLocal) -> Steps<'a> {
    let everyone = (Who::default(), &treatment.inside);
    let steps = match (&treatment.outside, origin) {
        (Some(outside), Origin::Container) => {
            let pods = pods(frontend.entry.family(), detect).into_iter();
            pods.map(|who| (who, &treatment.inside)).chain([(Who::default(), outside)]).collect()
        }
        _ => vec![everyone],
    };
    let Some(sources) = &treatment.sources else { return steps };
    let within = |who: &Who, range: &IpNet| {
        let source = who.source.map_or(Some(*range), |source| intersection(source, *range))?;
        Some(Who { source: Some(source), ..who.clone() })
    };
    steps
        .into_iter()
        .flat_map(|(who, action)| {
            let limited: Vec<_> = sources.iter().filter_map(|range| within(&who, range)).collect();
            limited.into_iter().map(move |who| (who, action))
        })
        .collect()
}

/// Ranges either hold one another or have nothing in common.
fn intersection(a: IpNet, b: IpNet) -> Option<IpNet> {
    if a.contains(&b) {
        Some(b)
    } else if b.contains(&a) {
        Some(a)
    } else {
        None
    }
}

/// The traffic of pods of this node.
fn pods(family: Family, detect: &DetectLocal) -> Vec<Who> {
    match detect {
        DetectLocal::Unknown => Vec::new(),
        DetectLocal::Ranges(_) => {
            let source = |range: &IpNet| (range.prefix_len() > 0).then(|| range.trunc());
            detect.ranges(family).map(|range| Who { source: source(range), input: None }).collect()
        }
        DetectLocal::Interface(name) => vec![Who { source: None, input: Some(name.clone()) }],
        DetectLocal::InterfacePrefix(prefix) => vec![Who { source: None, input: Some(format!("{prefix}+")) }],
    }
}

fn matching(frontend: &Frontend, who: &Who, comment: String, target: Target) -> Rule {
    let destination = match frontend.entry {
        Entry::Address(address) => Some(Is::equal(IpNet::from(address))),
        Entry::NodePort(_) => None,
    };
    let rule = to_port(frontend.protocol, frontend.port, comment, target);
    Rule { source: who.source.map(Is::equal), destination, input: who.input.clone().map(Is::equal), ..rule }
}

fn to_port(protocol: Protocol, port: u16, comment: String, target: Target) -> Rule {
    let name = protocol.lower().to_owned();
    let ports = Ports { protocol: name.clone(), source: None, destination: Some(Is::equal((port, port))) };
    let rule = Rule { protocol: Some(Is::equal(name)), ..Rule::to(target) };
    rule.comment(comment).and(Match::Ports(ports))
}

/// What refuses every other port of a cluster IP.
pub fn cluster_ip(address: IpAddr) -> Vec<Placed> {
    let rule = Rule { destination: Some(Is::equal(IpNet::from(address))), ..Rule::to(Target::Reject) };
    let rule = rule.display(Family::of(&address)).to_string();
    vec![Placed { table: Table::Filter, chain: UNUSED_PORTS, rule }]
}

/// What drops every other address of the Service ranges.
pub fn service_ranges(family: Family, ranges: &[IpNet]) -> Vec<Placed> {
    let of_family = ranges.iter().map(IpNet::trunc).filter(|range| Family::of(&range.addr()) == family);
    let rules = of_family.map(|range| Rule { destination: Some(Is::equal(range)), ..Rule::to(Target::Drop) });
    let place =
        |rule: Rule| Placed { table: Table::Filter, chain: UNUSED_ADDRESSES, rule: rule.display(family).to_string() };
    rules.map(place).collect()
}

/// What lets in at a local port what was redirected there, whatever a firewall thinks of the port, and nothing else.
pub fn door(family: Family, protocol: Protocol, port: u16, label: &str) -> Vec<Placed> {
    let redirected = Match::CtState(Is::equal(CtStates::DNAT));
    let to = |target| to_port(protocol, port, label.to_owned(), target);
    let place = |rule: Rule| Placed { table: Table::Filter, chain: DOORS, rule: rule.display(family).to_string() };
    vec![place(to(Target::Accept).and(redirected)), place(to(Target::Reject))]
}

/// What a rule of table `nat` says about an earlier run: a frontend, the label of a local port, and the port.
pub fn redirection(family: Family, chain: &str, rule: &str) -> Option<(Frontend, String, u16)> {
    let rule: Rule = rule.parse().ok()?;
    let Some(Target::Redirect(to)) = rule.target else { return None };
    let name = rule.protocol?.value;
    let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|protocol| protocol.lower() == name)?;
    let (mut label, mut port) = (None, None);
    for more in rule.matches {
        match more {
            Match::Comment(text) => label = Some(text),
            Match::Ports(ports) => port = ports.destination.map(|port| port.value.0),
            _ => {}
        }
    }
    let entry = if NODE_PORTS.contains(&chain) {
        Entry::NodePort(family)
    } else {
        Entry::Address(rule.destination?.value.addr())
    };
    Some((Frontend { entry, protocol, port: port? }, label?, to))
}
