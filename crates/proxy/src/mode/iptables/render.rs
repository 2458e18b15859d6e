//! Rules of Service ports: pure, from treatments and settings. The shapes and comments are kube-proxy's.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use podwire_kernel::iptables::{AddressKind, Is, Match, Ports, Recent, Rule, Target};
use podwire_model::{Family, IpNet, Name, Protocol, TrafficPolicy};

use super::names::{Chain, Kind, Shared, socket_address};
use crate::{
    mode::{DetectLocal, Settings},
    plan::{Action, Backend, Entry, Frontend, Masquerade, Treatment},
};

/// The chain that marks packets whose source is to be replaced.
pub const MARK_MASQ: &str = "KUBE-MARK-MASQ";

/// One port of a Service in one family, with everything that happens at its frontends.
pub struct ServicePort<'a> {
    /// `namespace/name:port`.
    pub label: &'a Name,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its frontends, sorted.
    pub frontends: Vec<(Frontend, &'a Treatment)>,
    /// Which addresses are cluster IPs: policies differ.
    pub cluster_ips: &'a HashSet<IpAddr>,
}

/// What the frontends of a Service port make necessary in its own chains.
#[derive(Default)]
struct Needs<'a> {
    /// Endpoints by policy, Cluster and Local.
    backends: [Option<&'a [Backend]>; 2],
    /// Rules before the choice of an endpoint, by policy.
    marks: [Vec<Rule>; 2],
    /// What is done with external traffic: to pods and this node, and to others.
    external: Option<(&'a Action, Option<&'a Action>)>,
    sources: BTreeSet<IpNet>,
}

impl ServicePort<'_> {
    /// Its rules in chains that it shares with others.
    pub fn shared(&self, settings: &Settings) -> Vec<(Shared, Rule)> {
        self.frontends(settings).1
    }

    /// The chains of its own, in the order in which they must be made.
    pub fn chains(&self, settings: &Settings) -> BTreeMap<Chain, Vec<Rule>> {
        let mut chains = BTreeMap::new();
        let (needs, _) = self.frontends(settings);
        let affinity = self.frontends.first().and_then(|(_, treatment)| treatment.affinity);
        let seconds = affinity.map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
        let [cluster_marks, local_marks] = needs.marks;
        let [cluster, local] = needs.backends;
        for (kind, backends, marks) in [(Kind::Cluster, cluster, cluster_marks), (Kind::Local, local, local_marks)] {
            if let Some(backends) = backends {
                let rules = marks.into_iter().chain(self.choice(backends, seconds)).collect();
                chains.insert(self.chain(kind), rules);
                for backend in backends {
                    let chain = self.endpoint_chain(backend);
                    chains.entry(chain).or_insert_with(|| self.endpoint(chain, backend, seconds.is_some()));
                }
            }
        }
        if let Some((inside, outside)) = needs.external {
            chains.insert(self.chain(Kind::External), self.external(inside, outside, settings));
        }
        if !needs.sources.is_empty() && needs.external.is_some() {
            chains.insert(self.chain(Kind::Firewall), self.firewall(&needs.sources));
        }
        chains
    }

    fn frontends(&self, settings: &Settings) -> (Needs<'_>, Vec<(Shared, Rule)>) {
        let (mut needs, mut shared) = (Needs::default(), Vec::new());
        for (frontend, treatment) in &self.frontends {
            self.frontend(frontend, treatment, settings, (&mut needs, &mut shared));
        }
        (needs, shared)
    }

    fn chain(&self, kind: Kind) -> Chain {
        Chain::new(kind, self.label, self.protocol, None)
    }

    fn endpoint_chain(&self, backend: &Backend) -> Chain {
        Chain::new(Kind::Endpoint, self.label, self.protocol, Some(backend))
    }

    fn frontend<'a>(
        &self,
        frontend: &Frontend,
        treatment: &'a Treatment,
        settings: &Settings,
        (needs, shared): (&mut Needs<'a>, &mut Vec<(Shared, Rule)>),
    ) {
        let label = self.label;
        let (inside, outside) = (&treatment.inside, treatment.outside.as_ref());
        let cluster_ip = matches!(frontend.entry, Entry::Address(address) if self.cluster_ips.contains(&address));
        for action in [Some(inside), outside].into_iter().flatten() {
            if let Action::Balance { policy, backends, .. } = action {
                needs.backends[slot(*policy)] = Some(backends);
            }
        }
        // Traffic for which there is no endpoint keeps its destination, and so comes to table filter with it.
        let unserved = if cluster_ip { Shared::Unserved } else { Shared::UnservedExternal };
        match outside.unwrap_or(inside) {
            Action::Reject => {
                let rule = at(frontend, &format!("{label} has no endpoints"), Target::Reject);
                shared.extend(from_each(rule, treatment.sources.as_deref()).map(|rule| (unserved, rule)));
            }
            Action::Drop => {
                shared.push((unserved, at(frontend, &format!("{label} has no local endpoints"), Target::Drop)))
            }
            Action::Balance { .. } => {}
        }
        if let Some(sources) = &treatment.sources {
            let firewall = self.chain(Kind::Firewall);
            let text = format!("{label} traffic not accepted by {firewall}");
            shared.push((Shared::Firewall, at(frontend, &text, Target::Drop)));
            needs.sources.extend(sources.iter());
        }
        let balanced = |action: &Action| matches!(action, Action::Balance { .. });
        if !balanced(inside) && !outside.is_some_and(balanced) {
            return;
        }
        let jump = |kind| Target::jump(self.chain(kind).to_string());
        if let (true, Action::Balance { policy, masquerade, .. }) = (cluster_ip, inside) {
            let kind = if *policy == TrafficPolicy::Cluster { Kind::Cluster } else { Kind::Local };
            let text = format!("{label} cluster IP");
            needs.marks[slot(*policy)].extend(masquerade_rules(frontend, &text, *masquerade, settings));
            shared.push((Shared::Addresses, at(frontend, &text, jump(kind))));
            return;
        }
        needs.external = Some((inside, outside));
        shared.push(match (frontend.entry, &treatment.sources) {
            (Entry::NodePort(_), _) => (
                Shared::NodePorts,
                port_rule(frontend).comment(&**label).and(ports(frontend)).target(jump(Kind::External)),
            ),
            (_, None) => (Shared::Addresses, at(frontend, &format!("{label} external IP"), jump(Kind::External))),
            (_, Some(_)) => {
                (Shared::Addresses, at(frontend, &format!("{label} loadbalancer IP"), jump(Kind::Firewall)))
            }
        });
    }

    /// Spreads connections over endpoints: with affinity first to where the client was before.
    fn choice<'a>(&'a self, backends: &'a [Backend], seconds: Option<u32>) -> impl Iterator<Item = Rule> + 'a {
        let to = move |backend: &Backend| {
            let chain = self.endpoint_chain(backend).to_string();
            let text = format!("{} -> {}", self.label, socket_address(backend));
            (Rule::to(Target::jump(chain.as_str())).comment(text), chain)
        };
        let kept = seconds.into_iter().flat_map(move |seconds| {
            backends.iter().map(move |backend| {
                let (rule, name) = to(backend);
                rule.and(Match::Recent(Recent::Check { name, seconds }))
            })
        });
        let random = backends.iter().enumerate().map(move |(at, backend)| {
            let (rule, _) = to(backend);
            match backends.len() - at {
                1 => rule,
                left => rule.and(Match::Random(one_in(left))),
            }
        });
        kept.chain(random)
    }

    /// To one endpoint; one that reaches itself is masqueraded, or it would answer itself past us.
    fn endpoint(&self, chain: Chain, backend: &Backend, sticky: bool) -> Vec<Rule> {
        let mut hairpin = Rule::to(Target::jump(MARK_MASQ)).comment(&**self.label);
        hairpin.source = Some(Is::equal(backend.address.into()));
        let mut send = Rule::to(Target::Dnat(socket_address(backend))).comment(&**self.label);
        send.protocol = Some(Is::equal(self.protocol.lower().to_owned()));
        if sticky {
            send = send.and(Match::Recent(Recent::Set { name: chain.to_string() }));
        }
        let protocol = self.protocol.lower().to_owned();
        vec![hairpin, send.and(Match::Ports(Ports { protocol, source: None, destination: None }))]
    }

    fn external(&self, inside: &Action, outside: Option<&Action>, settings: &Settings) -> Vec<Rule> {
        let label = self.label;
        let cluster = || Target::jump(self.chain(Kind::Cluster).to_string());
        let marked = |what: &str| {
            Rule::to(Target::jump(MARK_MASQ)).comment(format!("masquerade {what} {label} external destinations"))
        };
        let Some(outside) = outside else {
            let always = matches!(inside, Action::Balance { masquerade: Masquerade::Always, .. });
            return always.then(|| marked("traffic for")).into_iter().chain([Rule::to(cluster())]).collect();
        };
        let mut rules = Vec::new();
        if matches!(inside, Action::Balance { .. }) {
            let text = format!("pod traffic for {label} external destinations");
            rules.extend(of_pods(Rule::to(cluster()).comment(text), settings, self.family()));
            let local = || Match::AddressType { source: Some(Is::equal(AddressKind::Local)), destination: None };
            rules.push(marked("LOCAL traffic for").and(local()));
            let text = format!("route LOCAL traffic for {label} external destinations");
            rules.push(Rule::to(cluster()).comment(text).and(local()));
        }
        if matches!(outside, Action::Balance { .. }) {
            rules.push(Rule::to(Target::jump(self.chain(Kind::Local).to_string())));
        }
        rules
    }

    fn firewall(&self, sources: &BTreeSet<IpNet>) -> Vec<Rule> {
        let text = format!("{} loadbalancer IP", self.label);
        let external = Target::jump(self.chain(Kind::External).to_string());
        let allowed =
            from_each(Rule::to(external).comment(text), Some(sources.iter().copied().collect::<Vec<_>>().as_slice()))
                .collect::<Vec<_>>();
        let text = format!("other traffic to {} will be dropped by {}", self.label, Shared::Firewall.name());
        allowed.into_iter().chain([Rule::default().comment(text)]).collect()
    }

    fn family(&self) -> Family {
        self.frontends.first().map_or(Family::V4, |(frontend, _)| frontend.entry.family())
    }
}

/// Every endpoint that a frontend leads to; sorted.
pub fn backends(treatment: Option<&Treatment>) -> Vec<Backend> {
    let actions = treatment.into_iter().flat_map(|treatment| [Some(&treatment.inside), treatment.outside.as_ref()]);
    let of_each = actions.flatten().filter_map(|action| match action {
        Action::Balance { backends, .. } => Some(&**backends),
        _ => None,
    });
    let sorted: BTreeSet<Backend> = of_each.flatten().copied().collect();
    sorted.into_iter().collect()
}

const fn slot(policy: TrafficPolicy) -> usize {
    match policy {
        TrafficPolicy::Cluster => 0,
        TrafficPolicy::Local => 1,
    }
}

/// The probability of one in `n`, times 2³¹, as the kernel gets it from the ten digits that kube-proxy writes.
fn one_in(n: usize) -> u32 {
    let digits = (1e10 / n as f64).round() / 1e10;
    (digits * f64::from(1_u32 << 31)).round() as u32
}

/// The rule once for each source; just the rule if there are none.
fn from_each(rule: Rule, sources: Option<&[IpNet]>) -> impl Iterator<Item = Rule> {
    let sources: Vec<_> =
        sources.map_or_else(|| vec![None], |nets| nets.iter().map(|net| Some(Is::equal(*net))).collect());
    sources.into_iter().map(move |source| Rule { source, ..rule.clone() })
}

/// Matches packets to a frontend's port, as far as protocol and address go.
fn port_rule(frontend: &Frontend) -> Rule {
    let destination = match frontend.entry {
        Entry::Address(address) => Some(Is::equal(address.into())),
        Entry::NodePort(_) => None,
    };
    Rule { destination, protocol: Some(Is::equal(frontend.protocol.lower().to_owned())), ..Rule::default() }
}

fn ports(frontend: &Frontend) -> Match {
    let destination = Some(Is::equal((frontend.port, frontend.port)));
    Match::Ports(Ports { protocol: frontend.protocol.lower().to_owned(), source: None, destination })
}

/// What happens at a frontend.
fn at(frontend: &Frontend, comment: &str, target: Target) -> Rule {
    let mut rule = port_rule(frontend).comment(comment);
    if let Entry::NodePort(_) = frontend.entry {
        rule = rule.and(Match::AddressType { source: None, destination: Some(Is::equal(AddressKind::Local)) });
    }
    rule.and(ports(frontend)).target(target)
}

/// Marks what comes to a cluster IP from elsewhere than pods.
fn masquerade_rules(frontend: &Frontend, comment: &str, whose: Masquerade, settings: &Settings) -> Option<Rule> {
    let mut rule = at(frontend, comment, Target::jump(MARK_MASQ));
    match (whose, &settings.detect_local) {
        (Masquerade::Always, _) => {}
        (Masquerade::Never, _) | (_, DetectLocal::Unknown) => return None,
        (_, local @ DetectLocal::Ranges(_)) => {
            rule.source = Some(Is::not(*local.ranges(frontend.entry.family()).next()?));
        }
        (_, DetectLocal::Interface(name)) => rule.input = Some(Is::not(name.clone())),
        (_, DetectLocal::InterfacePrefix(prefix)) => rule.input = Some(Is::not(format!("{prefix}+"))),
    }
    Some(rule)
}

/// The rule for what comes from pods; nothing if nobody can tell.
fn of_pods(rule: Rule, settings: &Settings, family: Family) -> Vec<Rule> {
    match &settings.detect_local {
        DetectLocal::Unknown => Vec::new(),
        local @ DetectLocal::Ranges(_) => {
            let ranges: Vec<_> = local.ranges(family).copied().collect();
            from_each(rule, Some(&ranges)).collect()
        }
        DetectLocal::Interface(name) => vec![Rule { input: Some(Is::equal(name.clone())), ..rule }],
        DetectLocal::InterfacePrefix(prefix) => vec![Rule { input: Some(Is::equal(format!("{prefix}+"))), ..rule }],
    }
}
