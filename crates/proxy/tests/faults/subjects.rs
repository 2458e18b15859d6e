//! Every mode over its strict fake, made alike.

use std::{collections::BTreeSet, net::SocketAddr};

use podwire_kernel::{
    iptables::{self, Table},
    nftables::Fake,
    route::{Address, Route as _},
};
use podwire_model::{Family, Service};
use podwire_proxy::mode::{
    Mode, Settings,
    iptables::{IptablesMode, trace as iptables_trace},
    ipvs::{Ipvs, kernel::Fake as FakeKernel, trace as ipvs_trace},
    nftables::{
        Nftables,
        trace::{self, Fate},
    },
    userspace::{self, Userspace, relay::FakePorts},
};
use podwire_testkit::packet_table::{self, Outcome, Packet, World};

/// A mode over a fake kernel.
pub trait Subject {
    /// The mode.
    fn mode(&mut self) -> &mut dyn Mode;

    /// Ends the mode and starts another one over the same kernel.
    fn restart(&mut self);

    /// Ends the kernel's failures.
    fn heal(&mut self);

    /// What the rules do with a packet.
    fn traced(&self, world: &World, packet: &Packet) -> Result<Outcome, String>;

    /// Everything in the kernel that depends on the present only: two subjects that were brought to the same world by
    /// different roads must agree in it.
    fn shape(&self) -> BTreeSet<String>;
}

/// A mode's name, and how to make it over an empty kernel that fails one in so many operations.
pub type Maker = (&'static str, fn(Option<u64>) -> Box<dyn Subject>);

/// Every mode.
pub const SUBJECTS: &[Maker] = &[
    ("nftables", |fail| Box::new(OverNftables::new(fail))),
    ("iptables", |fail| Box::new(OverIptables::new(fail))),
    ("ipvs", |fail| Box::new(OverIpvs::new(fail))),
    ("userspace", |fail| Box::new(OverUserspace::new(fail))),
];

fn settings() -> Settings {
    super::support::settings(&packet_table::empty())
}

struct OverNftables(Nftables<Fake>);

impl OverNftables {
    fn new(fail: Option<u64>) -> Self {
        Self(Nftables::new(fail.map_or_else(Fake::new, |n| Fake::new().failing_one_in(n)), settings()))
    }
}

impl Subject for OverNftables {
    fn mode(&mut self) -> &mut dyn Mode {
        &mut self.0
    }

    fn restart(&mut self) {
        self.0 = Nftables::new(self.0.kernel().clone(), settings());
    }

    fn heal(&mut self) {
        self.0.kernel_mut().heal();
    }

    fn traced(&self, world: &World, packet: &Packet) -> Result<Outcome, String> {
        let family = podwire_model::Family::of(&packet.to.ip()).into();
        let name = podwire_kernel::nftables::Table::new(family, podwire_proxy::mode::nftables::render::TABLE);
        let table = self.0.kernel().ruleset().get(&name).ok_or("there is no table")?;
        let traced = trace::Packet {
            source: packet.from,
            destination: packet.to.ip(),
            protocol: packet.protocol.number(),
            port: packet.to.port(),
        };
        let fates = trace::trace(table, traced, &world.node_addresses).map_err(|unknown| unknown.to_string())?;
        let mut sent = BTreeSet::new();
        for fate in &fates {
            match fate {
                Fate::Sent { to, masqueraded } => sent.insert((SocketAddr::new(to.address, to.port), *masqueraded)),
                other if fates.len() > 1 => return Err(format!("{other:?} among {fates:?}")),
                Fate::Rejected => return Ok(Outcome::Rejected),
                Fate::Dropped => return Ok(Outcome::Dropped),
                Fate::Untouched => return Ok(Outcome::Untouched),
            };
        }
        Ok(Outcome::Sent(sent))
    }

    fn shape(&self) -> BTreeSet<String> {
        let tables = self.0.kernel().ruleset().iter();
        let lines = tables.flat_map(|(table, state)| {
            let chains = state.chains.iter().map(move |(name, chain)| {
                let rules: Vec<_> = chain.rules.iter().map(|(_, rule)| rule).collect();
                format!("{table} chain {name} {rules:?}")
            });
            let elements = state.sets.iter().flat_map(move |(name, set)| {
                set.elements.keys().map(move |key| format!("{table} set {name} {:?}", key.as_bytes()))
            });
            chains.chain(elements)
        });
        lines.collect()
    }
}

struct OverIptables(IptablesMode<iptables::Fake>);

impl OverIptables {
    fn new(fail: Option<u64>) -> Self {
        let fake = fail.map_or_else(iptables::Fake::new, |n| iptables::Fake::new().failing_one_in(n));
        Self(IptablesMode::new(fake, settings()))
    }
}

impl Subject for OverIptables {
    fn mode(&mut self) -> &mut dyn Mode {
        &mut self.0
    }

    fn restart(&mut self) {
        self.0 = IptablesMode::new(self.0.iptables().clone(), settings());
    }

    fn heal(&mut self) {
        self.0.iptables_mut().heal();
    }

    fn traced(&self, world: &World, packet: &Packet) -> Result<Outcome, String> {
        let table = |table| self.0.iptables().table(Family::of(&packet.to.ip()), table);
        let (nat, filter) = (table(Table::Nat), table(Table::Filter));
        let made_here = world.node_addresses.contains(&packet.from);
        let traced = iptables_trace::Packet {
            source: packet.from,
            destination: packet.to.ip(),
            protocol: packet.protocol,
            port: packet.to.port(),
            input: (!made_here).then_some("eth0"),
        };
        let tables = iptables_trace::Tables { nat: &nat, filter: &filter };
        let fates =
            iptables_trace::trace(tables, traced, &world.node_addresses).map_err(|unknown| unknown.to_string())?;
        let mut sent = BTreeSet::new();
        for fate in &fates {
            match fate {
                iptables_trace::Fate::Sent { to, masqueraded } => {
                    sent.insert((SocketAddr::new(to.address, to.port), *masqueraded))
                }
                other if fates.len() > 1 => return Err(format!("{other:?} among {fates:?}")),
                iptables_trace::Fate::Rejected => return Ok(Outcome::Rejected),
                iptables_trace::Fate::Dropped => return Ok(Outcome::Dropped),
                iptables_trace::Fate::Untouched => return Ok(Outcome::Untouched),
            };
        }
        Ok(Outcome::Sent(sent))
    }

    /// The order of rules counts in the chains of Services only: in those that Services share, new rules come first.
    fn shape(&self) -> BTreeSet<String> {
        let mut lines = BTreeSet::new();
        let fake = self.0.iptables();
        for family in [Family::V4, Family::V6] {
            // What all Services need is made for the first one, and stays after the last one: not the present only.
            let served = !fake.table(family, Table::Filter).rules("KUBE-CLUSTER-IPS").is_empty();
            for table in Table::ALL {
                let chains = fake.table(family, table).chains;
                let of_services = ["KUBE-SEP-", "KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-"];
                let of_service = |name: &str| of_services.iter().any(|prefix| name.starts_with(prefix));
                for (name, chain) in chains.iter().filter(|(name, _)| served || of_service(name)) {
                    let mut rules = chain.rules.clone();
                    if !of_service(name) {
                        rules.sort();
                    }
                    lines.insert(format!("{family:?} {table} {name} {rules:?}"));
                }
            }
        }
        lines
    }
}

struct OverIpvs(Ipvs<FakeKernel>);

impl OverIpvs {
    fn new(fail: Option<u64>) -> Self {
        let mut fake = FakeKernel::new();
        for (number, address) in packet_table::empty().node_addresses.into_iter().enumerate() {
            let device = fake.route.add_device(&format!("eth{number}"));
            fake.route.add_address(&Address::new(device, address)).unwrap();
        }
        if let Some(n) = fail {
            fake.fail_one_in(n);
        }
        Self(Ipvs::new(fake, settings()))
    }
}

/// Whether a Service has an address for traffic from outside, and none has that port of it. This mode holds addresses
/// whole: other ports are refused.
fn is_spare_port(world: &World, packet: &Packet) -> bool {
    let to = packet.to.ip();
    let has = |service: &Service| {
        let balancers = service.load_balancer.iter().filter(|ingress| !ingress.proxied).map(|ingress| ingress.ip);
        service.external_ips.iter().copied().chain(balancers).any(|address| address == to)
    };
    let serves = |service: &Service| {
        service.ports.iter().any(|port| (port.protocol, port.port) == (packet.protocol, packet.to.port()))
    };
    let mut holders = world.services.iter().filter(|service| has(service) && !service.headless).peekable();
    let is_cluster_ip = world.services.iter().any(|service| service.cluster_ips.contains(&to));
    holders.peek().is_some() && !is_cluster_ip && !holders.any(serves)
}

impl Subject for OverIpvs {
    fn mode(&mut self) -> &mut dyn Mode {
        &mut self.0
    }

    fn restart(&mut self) {
        self.0 = Ipvs::new(self.0.kernel().clone(), settings());
    }

    fn heal(&mut self) {
        self.0.kernel_mut().heal();
    }

    fn traced(&self, world: &World, packet: &Packet) -> Result<Outcome, String> {
        use ipvs_trace::{Fate, trace};
        let from_node = world.node_addresses.contains(&packet.from);
        let traced = ipvs_trace::Packet {
            source: packet.from,
            destination: packet.to.ip(),
            protocol: packet.protocol,
            port: packet.to.port(),
            input: if from_node { None } else { Some("eth0") },
        };
        let mut sent = BTreeSet::new();
        for fate in trace(self.0.kernel(), traced).map_err(|unknown| unknown.to_string())? {
            match fate {
                Fate::Sent { to, masqueraded } => sent.insert((SocketAddr::new(to.address, to.port), masqueraded)),
                Fate::Rejected if is_spare_port(world, packet) => return Ok(Outcome::Untouched),
                Fate::Rejected => return Ok(Outcome::Rejected),
                Fate::Dropped => return Ok(Outcome::Dropped),
                Fate::Untouched => return Ok(Outcome::Untouched),
            };
        }
        Ok(Outcome::Sent(sent))
    }

    fn shape(&self) -> BTreeSet<String> {
        let fake = self.0.kernel();
        let ipvs = fake.ipvs.table().iter().map(|entry| format!("{entry:?}"));
        let entries = fake.ipset.table().values();
        let ipset =
            entries.flat_map(|(set, entries)| entries.iter().map(move |entry| format!("{} {entry:?}", set.name)));
        let mut route = fake.route.clone();
        route.fail_every(0);
        let addresses = route.addresses(None).unwrap().into_iter().map(|address| address.net.to_string());
        ipvs.chain(ipset).chain(addresses).collect()
    }
}

struct OverUserspace(Userspace<iptables::Fake, FakePorts>);

impl OverUserspace {
    fn new(fail: Option<u64>) -> Self {
        let (mut iptables, mut ports) = (iptables::Fake::new(), FakePorts::default());
        if let Some(n) = fail {
            (iptables, ports) = (iptables.failing_one_in(n), ports.failing_one_in(n));
        }
        Self(Userspace::new(iptables, ports, settings()))
    }
}

impl Subject for OverUserspace {
    fn mode(&mut self) -> &mut dyn Mode {
        &mut self.0
    }

    fn restart(&mut self) {
        // The ports went with the process.
        self.0 = Userspace::new(self.0.iptables().clone(), FakePorts::default(), settings());
    }

    fn heal(&mut self) {
        self.0.iptables_mut().heal();
        self.0.ports_mut().heal();
    }

    fn traced(&self, world: &World, packet: &Packet) -> Result<Outcome, String> {
        use userspace::trace::{Fate, Machine, Packet, trace};
        let family = Family::of(&packet.to.ip());
        let [nat, filter] = [Table::Nat, Table::Filter].map(|table| self.0.iptables().table(family, table));
        let ports = self.0.ports();
        let machine = Machine { nat: &nat, filter: &filter, addresses: &world.node_addresses, ports };
        let traced = Packet {
            source: packet.from,
            destination: (packet.to.ip(), packet.to.port()),
            protocol: packet.protocol,
            input: "eth0",
        };
        Ok(match trace(&machine, traced)? {
            Fate::Untouched => Outcome::Untouched,
            Fate::Rejected => Outcome::Rejected,
            Fate::Dropped => Outcome::Dropped,
            Fate::Relayed(to) => {
                Outcome::Sent(to.into_iter().map(|to| (SocketAddr::new(to.address, to.port), true)).collect())
            }
        })
    }

    fn shape(&self) -> BTreeSet<String> {
        // Which local port it is depends on the past; comments say whose it is.
        let without_port = |rule: &String| {
            let words =
                rule.split(' ').map(|word| if word.parse::<u16>().is_ok_and(|n| n >= 40_000) { "PORT" } else { word });
            words.collect::<Vec<_>>().join(" ")
        };
        let [nat, filter] =
            [Table::Nat, Table::Filter].map(|table| (table, self.0.iptables().table(Family::V4, table)));
        let lines = [nat, filter].into_iter().flat_map(|(table, state)| {
            let rules = state.chains.into_iter().flat_map(move |(chain, state)| {
                let rules: Vec<_> =
                    state.rules.iter().map(|rule| format!("{table} {chain} {}", without_port(rule))).collect();
                rules
            });
            rules.collect::<Vec<_>>()
        });
        let open = self.0.ports().open_ports().iter();
        let open = open.map(|((protocol, ..), pool)| format!("{protocol} {:?}", pool.lock().backends()));
        lines.chain(open).collect()
    }
}
