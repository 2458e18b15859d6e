//! The virtual servers and set entries of a frontend. Pure.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use podwire_kernel::{
    ipset::{Element, Entry},
    ipvs::{Persistence, Service, ServiceKey, flags},
};
use podwire_model::{Family, Name, Protocol};

use super::sets;
use crate::{
    mode::Settings,
    plan::{Action, Backend, Entry as Way, Frontend, Masquerade, Treatment},
};

/// The packet marks that lead to virtual servers of our own: all bits but the one for masquerading, the highest of them
/// being a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// The tag.
    pub tag: u32,
    /// Its bits.
    pub mask: u32,
    /// The bit that asks for masquerading.
    bit: u32,
}

impl Marks {
    const TAG: u32 = 0b0101 << 27;
    const TAG_BITS: u32 = 0b1111 << 27;
    /// How many marks there are.
    pub const COUNT: u32 = 1 << 27;

    /// Around the masquerade bit of `settings`.
    pub const fn new(settings: &Settings) -> Self {
        let bit = settings.masquerade_mark;
        Self { tag: spread(Self::TAG, bit), mask: spread(Self::TAG_BITS, bit), bit }
    }

    /// The `number`-th mark.
    pub const fn mark(self, number: u32) -> u32 {
        spread(Self::TAG | (number % Self::COUNT), self.bit)
    }

    /// Whether a mark is one of ours.
    pub const fn is_ours(self, mark: u32) -> bool {
        mark & self.mask == self.tag && mark & self.bit == 0
    }
}

/// Moves the bits of a 31-bit number out of the way of one bit, which stays zero.
const fn spread(number: u32, bit: u32) -> u32 {
    let below = bit.wrapping_sub(1);
    (number & below) | ((number & !below) << 1)
}

/// The number from which the search for a free mark begins.
pub fn mark_number(frontend: &Frontend) -> u32 {
    (podwire_kernel::stable_hash(frontend.to_string().bytes()) % u64::from(Marks::COUNT)) as u32
}

/// A virtual server.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Of the traffic that it takes.
    pub protocol: Protocol,
    /// The address that must be here as long as it is; `None` for one of this node's own.
    pub vip: Option<IpAddr>,
    /// The kernel's name.
    pub scheduler: Name,
    /// Flags of the scheduler.
    pub flags: u32,
    /// Session affinity.
    pub persistence: Option<Persistence>,
    /// Its destinations of weight 1; sorted.
    pub backends: Arc<[Backend]>,
}

impl Server {
    /// As the kernel is told of it.
    pub fn service(&self, key: ServiceKey) -> Service {
        Service { key, scheduler: self.scheduler.clone(), flags: self.flags, persistence: self.persistence }
    }

    /// Whether the kernel's object, without destinations, is the same.
    pub fn is_like(&self, other: &Self) -> bool {
        (&self.scheduler, self.flags, self.persistence) == (&other.scheduler, other.flags, other.persistence)
    }

    /// One as the kernel lists it. What that does not say is guessed from the key.
    pub fn found(service: &Service, backends: Arc<[Backend]>) -> Self {
        let protocol = match service.key {
            ServiceKey::Address(protocol, _) => protocol,
            ServiceKey::Mark(..) => Protocol::Tcp,
        };
        let Service { scheduler, flags, persistence, .. } = service.clone();
        Self { protocol, vip: None, scheduler, flags, persistence, backends }
    }
}

/// Everything of one frontend.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// Virtual servers.
    pub servers: Vec<(ServiceKey, Server)>,
    /// Entries of sets.
    pub members: Vec<(sets::Name, Element)>,
}

/// What the objects of a frontend depend on beside its treatment.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Settings.
    pub settings: &'a Settings,
    /// The node's addresses of the frontend's family that answer at node ports.
    pub node: &'a [IpAddr],
    /// The mark for traffic of pods and of this node, if that is treated in a way of its own.
    pub mark: u32,
}

/// Everything of one frontend.
///
/// Each address has a virtual server, also one without destinations: the kernel then answers that the port is
/// unreachable. It has the endpoints for traffic from outside; where traffic from inside gets others, that is marked, and
/// the mark leads to a virtual server of its own.
pub fn objects(frontend: &Frontend, treatment: &Treatment, context: Context<'_>) -> Objects {
    let mut objects = Objects::default();
    let addresses = match &frontend.entry {
        Way::Address(address) => std::slice::from_ref(address),
        Way::NodePort(_) => context.node,
    };
    let vip = match frontend.entry {
        Way::Address(address) => Some(address),
        Way::NodePort(_) => None,
    };
    let server = |action: &Action| server(frontend, vip, action, (treatment.affinity, context.settings));
    let first = server(treatment.outside.as_ref().unwrap_or(&treatment.inside));
    for address in addresses {
        let key = ServiceKey::Address(frontend.protocol, SocketAddr::new(*address, frontend.port));
        objects.servers.push((key, first.clone()));
    }
    let at = |address: &IpAddr| Entry::AddressPort(*address, frontend.protocol, frontend.port);
    let mut add = |set, mark| {
        objects.members.extend(addresses.iter().map(|address| (set, Element { entry: at(address), mark })));
    };
    match (&treatment.inside, &treatment.outside) {
        (Action::Drop, _) => add(sets::Name::Drop, None),
        (Action::Balance { .. }, Some(outside)) => {
            add(sets::Name::Inside, Some(context.mark));
            if *outside == Action::Drop {
                add(sets::Name::DropOutside, None);
            }
            let key = ServiceKey::Mark(frontend.entry.family(), context.mark);
            objects.servers.push((key, marked(server(&treatment.inside))));
        }
        _ => {}
    }
    classify(frontend, treatment, addresses, &mut objects);
    objects
}

fn server(
    frontend: &Frontend,
    vip: Option<IpAddr>,
    action: &Action,
    (affinity, settings): (Option<Duration>, &Settings),
) -> Server {
    let scheduler = settings.ipvs.scheduler.as_str();
    let prefix = if frontend.entry.family() == Family::V4 { 32 } else { 128 };
    let backends = match action {
        Action::Balance { backends, .. } => backends.clone(),
        Action::Reject | Action::Drop => Arc::default(),
    };
    Server {
        protocol: frontend.protocol,
        vip,
        scheduler: scheduler.into(),
        flags: scheduler_flags(scheduler),
        persistence: affinity.map(|timeout| Persistence { timeout, prefix }),
        backends,
    }
}

/// `mh` hashes ports too, as kube-proxy has it; `sh` goes on to the next destination where one drains.
fn scheduler_flags(scheduler: &str) -> u32 {
    match scheduler {
        "mh" => flags::SCHEDULER_2,
        "sh" => flags::SCHEDULER_1,
        _ => 0,
    }
}

/// A virtual server by mark cannot be persistent: the kernel would keep the port of the packet instead of the
/// destination's. It picks by the client's address instead.
fn marked(server: Server) -> Server {
    if server.persistence.is_none() {
        return server;
    }
    Server { scheduler: "sh".into(), flags: scheduler_flags("sh"), persistence: None, ..server }
}

/// The sets that say how a frontend's traffic is masqueraded and who may enter.
fn classify(frontend: &Frontend, treatment: &Treatment, addresses: &[IpAddr], objects: &mut Objects) {
    let (protocol, port) = (frontend.protocol, frontend.port);
    let at = |address: &IpAddr| Element::new(Entry::AddressPort(*address, protocol, port));
    let mut add = |set, element| objects.members.push((set, element));
    if let Some(sources) = &treatment.sources {
        for address in addresses {
            add(sets::Name::Firewall, at(address));
            for source in sources.iter() {
                let one = source.prefix_len() == source.max_prefix_len();
                let set = if one { sets::Name::SourceIp } else { sets::Name::SourceCidr };
                add(set, Element::new(Entry::AddressPortNet(*address, protocol, port, *source)));
            }
        }
    }
    let local = treatment.outside.is_some();
    match (&frontend.entry, protocol) {
        (Way::NodePort(_), Protocol::Tcp | Protocol::Udp) => {
            for local in [false, true].into_iter().take(1 + usize::from(local)) {
                add(sets::Name::node_ports(protocol, local), Element::new(Entry::Port(port)));
            }
        }
        (Way::NodePort(_), Protocol::Sctp) => {
            for local in [false, true].into_iter().take(1 + usize::from(local)) {
                let set = sets::Name::node_ports(protocol, local);
                addresses.iter().for_each(|address| add(set, at(address)));
            }
        }
        (Way::Address(address), _) => {
            let Action::Balance { masquerade, .. } = &treatment.inside else { return };
            let sets: &[_] = match (treatment.sources.is_some(), local, masquerade) {
                (true, true, _) => &[sets::Name::LoadBalancer, sets::Name::LoadBalancerLocal],
                (true, false, _) => &[sets::Name::LoadBalancer],
                (false, true, _) => &[sets::Name::ExternalIpLocal],
                (false, false, Masquerade::Always) => &[sets::Name::ExternalIp],
                (false, false, _) => &[sets::Name::ClusterIp],
            };
            sets.iter().for_each(|set| add(*set, at(address)));
        }
    }
}

/// The endpoints that a treatment may lead to, some twice.
pub fn backends(treatment: &Treatment) -> impl Iterator<Item = &Backend> {
    [Some(&treatment.inside), treatment.outside.as_ref()].into_iter().flatten().flat_map(|action| match action {
        Action::Balance { backends, .. } => backends.iter(),
        Action::Reject | Action::Drop => [].iter(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_leave_the_masquerade_bit_alone_whichever_it_is() {
        for bit in 0..32 {
            let marks = Marks::new(&Settings { masquerade_mark: 1 << bit, ..Settings::default() });
            for number in [0, 1, 2, 0x7fff, Marks::COUNT - 1] {
                let mark = marks.mark(number);
                assert!(mark & 1 << bit == 0 && marks.is_ours(mark), "{bit} {number} {mark:#x}");
                assert!(!marks.is_ours(mark | 1 << bit), "{bit}");
            }
            assert_ne!(marks.mark(1), marks.mark(2));
            assert!(!marks.is_ours(1 << bit) && !marks.is_ours(0));
        }
    }
}
