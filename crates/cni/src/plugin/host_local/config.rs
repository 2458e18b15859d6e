use std::{
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use podwire_model::IpNet;
use serde::Deserialize;

use crate::{
    Call, Dns, Error, Result, RouteConfig,
    address::{first_host, from_number, last_host, number},
};

const DATA_DIR: &str = "/var/lib/cni/networks";

/// The checked configuration of one call.
#[derive(Debug)]
pub struct Ipam {
    pub data_dir: PathBuf,
    pub routes: Vec<RouteConfig>,
    pub ranges: Vec<RangeSet>,
    pub requested: Vec<IpAddr>,
    resolv_conf: Option<PathBuf>,
}

/// Addresses that are as good as each other: a container gets one of every set.
#[derive(Debug)]
pub struct RangeSet(Vec<Range>);

/// A part of a subnet to take addresses from; `start` and `end` belong to it.
#[derive(Debug)]
pub struct Range {
    subnet: IpNet,
    start: IpAddr,
    end: IpAddr,
    pub gateway: IpAddr,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    ipam: IpamConfig,
    runtime_config: RuntimeConfig,
    args: Args,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct IpamConfig {
    data_dir: Option<PathBuf>,
    resolv_conf: Option<PathBuf>,
    routes: Vec<RouteConfig>,
    ranges: Vec<Vec<RangeConfig>>,
    #[serde(flatten)]
    single: OptionalRange,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RuntimeConfig {
    ips: Vec<String>,
    ip_ranges: Vec<Vec<RangeConfig>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Args {
    cni: CniArgs,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct CniArgs {
    ips: Vec<String>,
}

/// The older spelling: one range, directly in `ipam`.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct OptionalRange {
    subnet: Option<IpNet>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RangeConfig {
    subnet: IpNet,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

impl Ipam {
    /// Reads and checks the configuration of `call`.
    pub fn of(call: &Call) -> Result<Self> {
        let Config { ipam, runtime_config, args } = call.config()?;
        let OptionalRange { subnet, range_start, range_end, gateway } = ipam.single;
        let single = subnet.map(|subnet| vec![RangeConfig { subnet, range_start, range_end, gateway }]);
        let ranges = runtime_config.ip_ranges.into_iter().chain(single).chain(ipam.ranges);
        let ranges = ranges.map(RangeSet::new).collect::<Result<Vec<_>>>()?;
        if ranges.is_empty() {
            return Err(Error::Config("ipam has neither \"ranges\" nor \"subnet\"".to_owned()));
        }
        refuse_overlaps(&ranges)?;
        let from_args = call.args.get("IP").into_iter().flat_map(|ips| ips.split(',')).map(str::to_owned);
        let requested = from_args.chain(args.cni.ips).chain(runtime_config.ips);
        Ok(Self {
            data_dir: ipam.data_dir.unwrap_or_else(|| DATA_DIR.into()),
            routes: ipam.routes,
            ranges,
            requested: requested.map(|text| requested_ip(&text)).collect::<Result<_>>()?,
            resolv_conf: ipam.resolv_conf,
        })
    }

    /// Only where the leases are: what teardown needs, whatever has become of the rest of the configuration.
    pub fn data_dir_of(call: &Call) -> Result<PathBuf> {
        #[derive(Deserialize, Default)]
        #[serde(default, rename_all = "camelCase")]
        struct Part {
            data_dir: Option<PathBuf>,
        }
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Whole {
            ipam: Part,
        }
        Ok(call.config::<Whole>()?.ipam.data_dir.unwrap_or_else(|| DATA_DIR.into()))
    }

    /// Whether any of the ranges has `ip`.
    pub fn has(&self, ip: IpAddr) -> bool {
        self.ranges.iter().any(|set| set.range_of(ip).is_some())
    }

    /// The resolver settings in `resolvConf`.
    pub fn dns(&self) -> Result<Dns> {
        match &self.resolv_conf {
            None => Ok(Dns::default()),
            Some(path) => read_resolv_conf(path),
        }
    }
}

impl RangeSet {
    fn new(configs: Vec<RangeConfig>) -> Result<Self> {
        let ranges = configs.into_iter().map(Range::new).collect::<Result<Vec<_>>>()?;
        let Some(first) = ranges.first() else {
            return Err(Error::Config("ipam has an empty list in \"ranges\"".to_owned()));
        };
        if let Some(other) = ranges.iter().find(|range| range.start.is_ipv4() != first.start.is_ipv4()) {
            return Err(Error::Config(format!("{first} and {other} of one range set are of different families")));
        }
        Ok(Self(ranges))
    }

    /// The range that `ip` is in.
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.has(ip))
    }

    /// Every address once, beginning after `last`.
    pub fn from(&self, last: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &Range)> {
        let at = last.and_then(|ip| Some((self.0.iter().position(|range| range.has(ip))?, number(ip))));
        let whole = |range: &Range| (number(range.start), number(range.end));
        let mut parts: Vec<(&Range, u128, u128)> = Vec::new();
        let (begin, last) = at.unwrap_or((0, 0));
        for step in 0..self.0.len() {
            let range = &self.0[(begin + step) % self.0.len()];
            let (start, end) = whole(range);
            parts.push((range, if step == 0 && at.is_some() { last.saturating_add(1) } else { start }, end));
        }
        if at.is_some() {
            parts.push((&self.0[begin], number(self.0[begin].start), last));
        }
        parts.into_iter().flat_map(|(range, from, to)| (from..=to).map(move |n| (from_number(range.start, n), range)))
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl Range {
    fn new(config: RangeConfig) -> Result<Self> {
        let subnet = config.subnet;
        let wrong = |detail: String| Error::Config(format!("ipam: subnet {subnet}: {detail}"));
        if subnet.trunc() != subnet {
            return Err(wrong(format!("it has host bits; did you mean {}?", subnet.trunc())));
        }
        if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
            return Err(wrong("it is too small to take addresses from".to_owned()));
        }
        let inside = |field: &str, ip: IpAddr| match subnet.contains(&ip) {
            true => Ok(ip),
            false => Err(wrong(format!("{field} {ip} is outside"))),
        };
        let start = inside("rangeStart", config.range_start.unwrap_or_else(|| first_host(subnet)))?;
        let end = inside("rangeEnd", config.range_end.unwrap_or_else(|| last_host(subnet)))?;
        if start > end {
            return Err(wrong(format!("rangeStart {start} is after rangeEnd {end}")));
        }
        // A gateway may be outside: on the link by other means.
        let gateway = config.gateway.unwrap_or_else(|| first_host(subnet));
        if gateway.is_ipv4() != start.is_ipv4() {
            return Err(wrong(format!("gateway {gateway} is of the other family")));
        }
        Ok(Self { subnet, start, end, gateway })
    }

    fn has(&self, ip: IpAddr) -> bool {
        self.start.is_ipv4() == ip.is_ipv4() && (self.start..=self.end).contains(&ip)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.start.is_ipv4() == other.start.is_ipv4() && self.start <= other.end && other.start <= self.end
    }

    /// `ip` with the prefix length of the subnet.
    pub fn net_of(&self, ip: IpAddr) -> IpNet {
        IpNet::new_assert(ip, self.subnet.prefix_len())
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

fn refuse_overlaps(sets: &[RangeSet]) -> Result<()> {
    let ranges: Vec<&Range> = sets.iter().flat_map(|set| &set.0).collect();
    for (at, range) in ranges.iter().enumerate() {
        if let Some(other) = ranges[at + 1..].iter().find(|other| range.overlaps(other)) {
            return Err(Error::Config(format!("ipam: ranges {range} and {other} overlap")));
        }
    }
    Ok(())
}

/// An address, with or without a prefix length.
fn requested_ip(text: &str) -> Result<IpAddr> {
    let address = text.split_once('/').map_or(text, |(address, _)| address);
    address.trim().parse().map_err(|_| Error::Config(format!("the requested address {text:?} is none")))
}

fn read_resolv_conf(path: &Path) -> Result<Dns> {
    let text = fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next().unwrap_or_default(),
            Some("search") => dns.search.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    Ok(dns)
}
