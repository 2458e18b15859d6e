//! The directive's options.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use domain::base::iana::Rcode;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tracing::warn;

use super::{
    Answers, Forward, NAME, Policy, Pool,
    connections::{Idle, Keeping},
    flights::Flights,
    places::Places,
    tls,
    upstream::{Check, Record, Upstream, Way},
};
use crate::{
    corefile::{CorefileError, Directive, Word, zone_names},
    message::DnsName,
    program::{SiteBuilder, zones},
};

/// The most upstreams (CoreDNS).
const MAX_UPSTREAMS: usize = 15;
/// Queries that may wait at once where `max_concurrent` does not say: fewer than the server lets wait altogether.
const PLACES: usize = 8192;
/// The shortest time between health checks: they must not be a load.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Where a word of the directive leads.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    address: SocketAddr,
    tls: bool,
    /// The name that the server's certificate must have, where the word says.
    server_name: Option<String>,
}

/// `forward FROM TO… { … }`, with CoreDNS's options.
pub(in crate::plugin) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let (from, to) = directive.arguments(2, usize::MAX)?.split_at(1);
    let mut options = Options::default();
    directive.body.iter().try_for_each(|option| options.set(option))?;
    if let Some(word) = options.max_age_word.filter(|_| options.keeping.max_age < Some(options.keeping.expire)) {
        return Err(word.error("max_age must not be less than expire"));
    }
    let mut without = String::new();
    let mut upstreams = Vec::new();
    let mut connector = None;
    for word in to {
        for target in targets(word, &mut without)? {
            let way = options.way(word, &target, &mut connector)?;
            upstreams.push(options.upstream(target.address, way, site));
        }
    }
    if upstreams.len() > MAX_UPSTREAMS {
        return Err(directive.error(format!("forward: {} upstreams, at most {MAX_UPSTREAMS}", upstreams.len())));
    }
    if upstreams.is_empty() {
        warn!("forward: {without}; names outside the cluster get SERVFAIL");
    }
    let pool = Pool {
        upstreams,
        without,
        policy: options.policy,
        turn: AtomicUsize::new(0),
        places: Places::new(options.places),
        flights: Flights::default(),
        answers: options.answers,
        read_timeout: options.read_timeout,
        max_attempts: options.max_attempts,
        fail_fast: options.fail_fast,
        expire: options.keeping.expire.max(MIN_INTERVAL),
        metrics: site.environment.metrics.clone(),
    };
    site.add(Forward { from: zone_names(&from[0])?, except: options.except, pool: Arc::new(pool) });
    Ok(())
}

struct Options<'a> {
    except: Vec<DnsName>,
    policy: Policy,
    places: usize,
    force_tcp: bool,
    check: Check,
    keeping: Keeping,
    max_age_word: Option<&'a Word>,
    read_timeout: Duration,
    max_attempts: usize,
    fail_fast: bool,
    answers: Answers,
    tls: Option<&'a Directive>,
    server_name: Option<&'a Word>,
    source: Option<IpAddr>,
}

impl Default for Options<'_> {
    /// CoreDNS's defaults.
    fn default() -> Self {
        let root = DnsName::root_bytes();
        Self {
            except: Vec::new(),
            policy: Policy::Random,
            places: PLACES,
            force_tcp: false,
            check: Check { interval: Duration::from_millis(500), domain: root, recursion_desired: true, max_fails: 2 },
            keeping: Keeping { expire: Duration::from_secs(10), max_age: None, max_idle: usize::MAX },
            max_age_word: None,
            read_timeout: Duration::from_secs(2),
            max_attempts: usize::MAX,
            fail_fast: false,
            answers: Answers::default(),
            tls: None,
            server_name: None,
            source: None,
        }
    }
}

impl<'a> Options<'a> {
    fn set(&mut self, option: &'a Directive) -> Result<(), CorefileError> {
        let one = || option.plain(1, 1).map(|words| &words[0]);
        let flag = || option.plain(0, 0).map(|_| true);
        match option.name() {
            "except" => self.except.extend(zones(option.plain(1, usize::MAX)?)?),
            "policy" => self.policy = policy(one()?)?,
            "force_tcp" => self.force_tcp = flag()?,
            // Queries go by UDP unless force_tcp says otherwise, whatever the client used.
            "prefer_udp" => drop(flag()?),
            "max_concurrent" => self.places = count(one()?)?.unwrap_or(PLACES),
            "max_fails" => self.check.max_fails = u32::try_from(one()?.number(1 << 24)?).unwrap_or(u32::MAX),
            "max_connect_attempts" => self.max_attempts = count(one()?)?.unwrap_or(usize::MAX),
            "max_idle_conns" => self.keeping.max_idle = count(one()?)?.unwrap_or(usize::MAX),
            "expire" => self.keeping.expire = one()?.duration()?,
            "max_age" => {
                self.keeping.max_age = Some(one()?.duration()?).filter(|age| !age.is_zero());
                self.max_age_word = self.keeping.max_age.and(option.args.first());
            }
            "read_timeout" => self.read_timeout = positive(one()?)?,
            "health_check" => self.set_check(option)?,
            "failfast_all_unhealthy_upstreams" => self.fail_fast = flag()?,
            "next" => self.answers.next.extend(codes(option)?),
            "next_on_nodata" => self.answers.next_on_nodata = flag()?,
            "failover" => {
                self.answers.failover.extend(codes(option)?);
                if self.answers.failover.contains(&Rcode::NOERROR) {
                    return Err(option.error("failover: NOERROR is no failure"));
                }
            }
            "tls" => {
                option.plain(0, 3)?;
                self.tls = Some(option);
            }
            "tls_servername" => self.server_name = Some(one()?),
            "source_address" => {
                let word = one()?;
                let address = word.text.parse();
                self.source = Some(address.map_err(|_| word.error(format!("{:?} is no address", word.text)))?);
            }
            "doh_method" | "resolver" => return Err(option.unsupported_option(NAME)),
            _ => return Err(option.unknown_option(NAME)),
        }
        Ok(())
    }

    /// `health_check INTERVAL [no_rec] [domain FQDN]`
    fn set_check(&mut self, option: &Directive) -> Result<(), CorefileError> {
        let mut words = option.plain(1, 4)?.iter();
        self.check.interval = words.next().map_or(Ok(self.check.interval), positive)?.max(MIN_INTERVAL);
        while let Some(word) = words.next() {
            match (word.text.as_str(), words.as_slice().first()) {
                ("no_rec", _) => self.check.recursion_desired = false,
                ("domain", Some(name)) => {
                    let domain = DnsName::bytes_from_str(&name.text);
                    self.check.domain =
                        domain.map_err(|error| name.error(format!("{:?} is not a domain name: {error}", name.text)))?;
                    words.next();
                }
                ("domain", None) => return Err(word.error("health_check: domain needs a name")),
                (other, _) => return Err(word.error(format!("health_check: unknown option {other:?}"))),
            }
        }
        Ok(())
    }

    fn way(&self, word: &Word, target: &Target, made: &mut Option<TlsConnector>) -> Result<Way, CorefileError> {
        if !target.tls {
            return Ok(if self.force_tcp { Way::Tcp } else { Way::Udp });
        }
        let name = match (&target.server_name, self.server_name) {
            (Some(_), Some(both)) => {
                return Err(both.error(format!("tls_servername: {:?} has a name of its own", word.text)));
            }
            (Some(name), None) => Some((name, word)),
            (None, named) => named.map(|named| (&named.text, named)),
        };
        let name = match name {
            None => ServerName::IpAddress(target.address.ip().into()),
            Some((name, at)) => ServerName::try_from(name.clone())
                .map_err(|error| at.error(format!("{name:?} is not a server's name: {error}")))?,
        };
        let connector = match made {
            Some(connector) => connector,
            None => made.insert(tls::connector(self.tls, word)?),
        };
        Ok(Way::Tls(connector.clone(), name))
    }

    fn upstream(&self, address: SocketAddr, way: Way, site: &SiteBuilder<'_>) -> Upstream {
        let proto = if matches!(way, Way::Tls(..)) { "tcp-tls" } else { "tcp" };
        Upstream {
            address,
            way,
            source: self.source,
            check: self.check.clone(),
            idle: Idle::new(self.keeping),
            random: site.environment.random.clone(),
            counters: site.environment.metrics.forward.of(&address.to_string(), proto),
            record: Record::default(),
        }
    }
}

fn policy(word: &Word) -> Result<Policy, CorefileError> {
    match word.text.as_str() {
        "random" => Ok(Policy::Random),
        "round_robin" => Ok(Policy::RoundRobin),
        "sequential" => Ok(Policy::Sequential),
        other => Err(word.error(format!("policy: {other:?} is not one of random, round_robin, sequential"))),
    }
}

/// A number, where 0 stands for no limit.
fn count(word: &Word) -> Result<Option<usize>, CorefileError> {
    let number = usize::try_from(word.number(1 << 24)?).unwrap_or_default();
    Ok((number > 0).then_some(number))
}

fn positive(word: &Word) -> Result<Duration, CorefileError> {
    match word.duration()? {
        Duration::ZERO => Err(word.error("a duration of 0")),
        duration => Ok(duration),
    }
}

fn codes(option: &Directive) -> Result<Vec<Rcode>, CorefileError> {
    let code = |word: &Word| {
        let named = |code: &Rcode| code.to_mnemonic_str().is_some_and(|name| name.eq_ignore_ascii_case(&word.text));
        let code = (0..16).map(Rcode::masked_from_int).find(named);
        code.ok_or_else(|| word.error(format!("{:?} is not a response code such as NXDOMAIN", word.text)))
    };
    option.plain(1, usize::MAX)?.iter().map(code).collect()
}

/// The servers that a word names: an address, or a file such as `/etc/resolv.conf`. A file that is missing or names none
/// is no error, since names of the cluster can be answered all the same; `without` says so for those that cannot.
fn targets(word: &Word, without: &mut String) -> Result<Vec<Target>, CorefileError> {
    let plain = |address| Target { address, tls: false, server_name: None };
    let text = match word.text.split_once("://") {
        Some(("dns", rest)) => rest,
        Some(("tls", rest)) => {
            let target = tls_target(rest);
            return Ok(vec![target.ok_or_else(|| word.error(format!("forward: {rest:?} is not an address")))?]);
        }
        Some((transport, _)) => {
            return Err(word.error(format!("forward: transport {transport:?} is not supported yet, only dns and tls")));
        }
        None => &word.text,
    };
    if let Some(address) = address(text, 53) {
        return Ok(vec![plain(address)]);
    }
    if !text.starts_with(['/', '.']) {
        return Err(word.error(format!("forward: {text:?} is neither an address nor a file such as /etc/resolv.conf")));
    }
    let servers = match fs::read_to_string(text) {
        Ok(file) => nameservers(&file),
        Err(error) => {
            *without = format!("no upstream: cannot read {text}: {error}");
            return Ok(Vec::new());
        }
    };
    if servers.is_empty() {
        *without = format!("no upstream: {text} names no nameserver");
    }
    Ok(servers.into_iter().map(plain).collect())
}

fn address(text: &str, default_port: u16) -> Option<SocketAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    text.parse().ok().or_else(|| bare.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, default_port)))
}

/// `ADDRESS[%NAME][:PORT]`
fn tls_target(text: &str) -> Option<Target> {
    let Some((ip, rest)) = text.rsplit_once('%') else {
        return Some(Target { address: address(text, 853)?, tls: true, server_name: None });
    };
    let (name, port) = rest.rsplit_once(':').unwrap_or((rest, "853"));
    let ip: IpAddr = ip.trim_matches(['[', ']']).parse().ok()?;
    let address = SocketAddr::new(ip, port.parse().ok()?);
    Some(Target { address, tls: true, server_name: Some(name.trim_end_matches(']').to_owned()) })
}

/// The `nameserver` lines of a resolv.conf(5).
fn nameservers(file: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        // A scope such as fe80::1%eth0 has no place in a plain address.
        words.next().filter(|word| *word == "nameserver").and_then(|_| words.next()).and_then(|word| address(word, 53))
    };
    file.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let file = "# nameserver 1.1.1.1\nsearch x\nnameserver 10.0.0.1\n nameserver\tfd00::1 \nnameserver\nnameserver fe80::1%eth0\n";
        assert_eq!(nameservers(file), ["10.0.0.1:53".parse().unwrap(), "[fd00::1]:53".parse().unwrap()]);
    }

    #[test]
    fn addresses() {
        for (text, wanted) in
            [("10.0.0.1", "10.0.0.1:53"), ("10.0.0.1:54", "10.0.0.1:54"), ("[::1]:54", "[::1]:54"), ("::1", "[::1]:53")]
        {
            assert_eq!(address(text, 53), Some(wanted.parse().unwrap()));
        }
        assert_eq!(address("example.org", 53), None);
    }

    #[test]
    fn tls_targets() {
        for (text, address, name) in [
            ("9.9.9.9", "9.9.9.9:853", None),
            ("[::1]:54", "[::1]:54", None),
            ("9.9.9.9%dns.quad9.net", "9.9.9.9:853", Some("dns.quad9.net")),
            ("9.9.9.9%dns.quad9.net:10853", "9.9.9.9:10853", Some("dns.quad9.net")),
            ("[2620:fe::fe%dns.quad9.net]:10853", "[2620:fe::fe]:10853", Some("dns.quad9.net")),
        ] {
            let target =
                Target { address: address.parse().unwrap(), tls: true, server_name: name.map(ToOwned::to_owned) };
            assert_eq!(tls_target(text), Some(target), "{text}");
        }
        assert_eq!(tls_target("dns.quad9.net"), None);
    }
}
