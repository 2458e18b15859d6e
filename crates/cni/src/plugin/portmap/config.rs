use std::net::IpAddr;

use podwire_model::Family;
use serde::Deserialize;

use crate::{Call, CniResult, Error, Result};

/// The checked configuration of one call.
#[derive(Debug)]
pub struct Config {
    /// Whether what comes from the container itself and from the node's loopback addresses is masqueraded.
    pub snat: bool,
    /// Whether everything that is mapped is.
    pub masquerade_all: bool,
    /// Without those that have no host port.
    pub mappings: Vec<Mapping>,
}

/// A port of the node that leads to one of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Which address of the node; all of a family when unspecified, all when absent.
    pub host_ip: Option<IpAddr>,
    pub protocol: Protocol,
    pub host_port: u16,
    pub container_port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Fields {
    backend: Option<String>,
    snat: Option<bool>,
    masq_all: bool,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: Option<String>,
    conditions_v4: Option<Vec<String>>,
    conditions_v6: Option<Vec<String>>,
    runtime_config: Option<RuntimeConfig>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RuntimeConfig {
    port_mappings: Option<Vec<Entry>>,
}

/// Keys begin with a capital letter when the caller is containerd.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(alias = "HostPort", default)]
    host_port: i64,
    #[serde(alias = "ContainerPort", default)]
    container_port: i64,
    #[serde(alias = "Protocol", default)]
    protocol: String,
    #[serde(rename = "hostIP", alias = "HostIP", alias = "hostIp", default)]
    host_ip: String,
}

impl Config {
    /// Reads and checks the configuration of `call`.
    pub fn of(call: &Call) -> Result<Self> {
        let fields: Fields = call.config()?;
        refuse_unsupported(&fields)?;
        let entries = fields.runtime_config.and_then(|config| config.port_mappings).unwrap_or_default();
        let mut mappings = Vec::new();
        for entry in entries.iter().filter(|entry| entry.host_port != 0) {
            let mapping = Mapping::of(entry)?;
            if !mappings.contains(&mapping) {
                mappings.push(mapping);
            }
        }
        refuse_ambiguous(&mappings)?;
        Ok(Self { snat: fields.snat.unwrap_or(true), masquerade_all: fields.masq_all, mappings })
    }

    /// Only the mappings, as far as they make sense: what teardown needs, whatever has become of the rest.
    pub fn for_teardown(call: &Call) -> Self {
        #[derive(Deserialize, Default)]
        #[serde(default, rename_all = "camelCase")]
        struct Part {
            runtime_config: Option<RuntimeConfig>,
        }
        let part: Part = call.config().unwrap_or_default();
        let entries = part.runtime_config.and_then(|config| config.port_mappings).unwrap_or_default();
        let mappings = entries.iter().filter_map(|entry| Mapping::of(entry).ok()).collect();
        Self { snat: true, masquerade_all: false, mappings }
    }

    /// The mappings that the container's address of `family` takes part in.
    pub fn mappings_of(&self, family: Family) -> impl Iterator<Item = &Mapping> {
        self.mappings.iter().filter(move |mapping| mapping.host_ip.is_none_or(|ip| Family::of(&ip) == family))
    }
}

impl Mapping {
    fn of(entry: &Entry) -> Result<Self> {
        let wrong = |what: &str| Error::Config(format!("portMappings: {what}"));
        let port = |name: &str, port: i64| {
            let valid = u16::try_from(port).ok().filter(|port| *port != 0);
            valid.ok_or_else(|| wrong(&format!("{name} {port} is none: expected 1 to 65535")))
        };
        let protocol = match entry.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => return Err(wrong(&format!("protocol {other:?} is none of tcp, udp, sctp"))),
        };
        let host_ip = match entry.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| wrong(&format!("hostIP {text:?} is no address")))?),
        };
        let (host_port, container_port) = (entry.host_port, entry.container_port);
        Ok(Self {
            host_ip,
            protocol,
            host_port: port("hostPort", host_port)?,
            container_port: port("containerPort", container_port)?,
        })
    }

    /// The one address that it is for.
    pub fn one_address(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// As in error messages: `8080/tcp`, `192.0.2.1:8080/tcp`.
    pub fn name(&self) -> String {
        let port = format!("{}/{}", self.host_port, self.protocol.name());
        match self.one_address() {
            None => port,
            Some(IpAddr::V4(ip)) => format!("{ip}:{port}"),
            Some(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        }
    }
}

impl Protocol {
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// The container's first address of each family: those that the interface of the call has, as far as that is known.
pub fn targets(result: &CniResult, ifname: &str) -> Vec<IpAddr> {
    let ours = |interface: Option<usize>| {
        let interface = interface.and_then(|at| result.interfaces.get(at));
        interface.is_none_or(|it| it.name == ifname && it.sandbox.as_deref().is_some_and(|path| !path.is_empty()))
    };
    let addresses = || result.ips.iter().filter(|ip| ours(ip.interface)).map(|ip| ip.address.addr());
    let (v4, v6) = (addresses().find(IpAddr::is_ipv4), addresses().find(IpAddr::is_ipv6));
    v4.into_iter().chain(v6).collect()
}

fn refuse_unsupported(fields: &Fields) -> Result<()> {
    let unsupported = |field, detail: &str| Err(Error::Unsupported { field, detail: detail.to_owned() });
    let given = |conditions: &Option<Vec<String>>| conditions.iter().flatten().any(|condition| !condition.is_empty());
    match fields.backend.as_deref() {
        None | Some("nftables") => {}
        Some("iptables") => return unsupported("backend", "only \"nftables\" is; leave it out"),
        Some(other) => return Err(Error::Config(format!("\"backend\" is {other:?}: expected \"nftables\""))),
    }
    if fields.external_set_mark_chain.is_some() {
        if fields.mark_masq_bit.is_some() {
            let both = "\"externalSetMarkChain\" and \"markMasqBit\" exclude each other";
            return Err(Error::Config(both.to_owned()));
        }
        return unsupported("externalSetMarkChain", "chains of iptables cannot be used from nftables; leave it out");
    }
    // Nothing is marked here, so that any bit will do.
    if let Some(bit) = fields.mark_masq_bit.filter(|bit| !(0..32).contains(bit)) {
        return Err(Error::Config(format!("\"markMasqBit\" is {bit}: expected 0 to 31")));
    }
    if given(&fields.conditions_v4) {
        return unsupported("conditionsV4", "map a port of one address by \"hostIP\"");
    }
    if given(&fields.conditions_v6) {
        return unsupported("conditionsV6", "map a port of one address by \"hostIP\"");
    }
    Ok(())
}

/// A port cannot lead to two places.
fn refuse_ambiguous(mappings: &[Mapping]) -> Result<()> {
    let overlap = |a: Option<IpAddr>, b: Option<IpAddr>| match (a, b) {
        (Some(a), Some(b)) => a == b,
        (Some(one), None) | (None, Some(one)) => one.is_unspecified(),
        (None, None) => true,
    };
    for (at, a) in mappings.iter().enumerate() {
        let same =
            |b: &&Mapping| (a.protocol, a.host_port) == (b.protocol, b.host_port) && overlap(a.host_ip, b.host_ip);
        if let Some(b) = mappings[at + 1..].iter().find(same) {
            let (a_port, b_port) = (a.container_port, b.container_port);
            if a_port != b_port {
                return Err(Error::Config(format!("portMappings: {} leads to both {a_port} and {b_port}", a.name())));
            }
        }
    }
    Ok(())
}
