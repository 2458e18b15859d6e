//! `hosts`: answers from a hosts(5) file and from lines of the same form in the Corefile.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use domain::{
    base::{
        iana::{Rcode, Rtype},
        name::Label,
    },
    rdata::{A, Aaaa, Ptr},
};
use futures_util::{FutureExt, future::BoxFuture};
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use tracing::{info, warn};

use super::{Plugin, Step, fall::Fallthrough, watched::WatchedFile};
use crate::{
    corefile::{CorefileError, Directive},
    message::{Data, DnsName, Query, Reply, name_below, record},
    program::{SiteBuilder, nearest},
    router::{Rest, Router},
    view::reverse_address,
};

const NAME: &str = "hosts";
/// The file where the directive names none (CoreDNS).
const FILE: &str = "/etc/hosts";
/// CoreDNS's TTL, seconds.
const TTL: u32 = 3600;
/// CoreDNS's longest TTL, seconds.
const MAX_TTL: u64 = 65_535;
/// How often CoreDNS looks for a changed file.
const RELOAD: Duration = Duration::from_secs(5);

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct HostsMetrics {
    entries: Gauge,
    /// Seconds since 1970.
    reloaded: Gauge<f64, AtomicU64>,
}

impl HostsMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("hosts_entries", "Entries of the hosts file and the Corefile", self.entries.clone());
        let help = "When the hosts file that was read last was changed, seconds since 1970";
        registry.register("hosts_reload_timestamp_seconds", help, self.reloaded.clone());
    }
}

/// `hosts [FILE [ZONES…]] { ADDRESS NAME…; ttl SECONDS; no_reverse; reload DURATION; fallthrough [ZONES…];
/// fallthrough_unsupported }`
struct Hosts {
    zones: Vec<DnsName>,
    ttl: u32,
    fallthrough: Fallthrough,
    /// Other types of a name that is there fall through too.
    fallthrough_unsupported: bool,
    book: Arc<Book>,
}

/// The file and what is in it.
struct Book {
    file: WatchedFile,
    zones: Vec<DnsName>,
    inline: Vec<(IpAddr, DnsName)>,
    no_reverse: bool,
    table: RwLock<Table>,
    metrics: Arc<crate::metrics::Metrics>,
}

#[derive(Debug, Default)]
struct Table {
    addresses: HashMap<DnsName, Vec<IpAddr>>,
    names: HashMap<IpAddr, Vec<DnsName>>,
}

impl Table {
    fn add(&mut self, address: IpAddr, name: &DnsName, reverse: bool) {
        let addresses = self.addresses.entry(name.clone()).or_default();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
        if reverse && *name.first() != *Label::wildcard() {
            let names = self.names.entry(address).or_default();
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
    }

    /// The addresses of a name, or of the wildcard that stands for it: one label, and only where the name is not there.
    fn addresses(&self, name: &DnsName) -> Option<&Vec<IpAddr>> {
        self.addresses.get(name).or_else(|| {
            let wildcard = name_below(&[b"*"], &name.parent()?).ok()?;
            self.addresses.get(&wildcard)
        })
    }
}

impl Book {
    /// Reads the file if it changed. A file that is gone takes its entries with it; those of the Corefile stay.
    fn look(&self) {
        let Some(read) = self.file.changed() else { return };
        let path = self.file.path.display();
        let text = match read {
            Ok((stamp, bytes)) => {
                let since = stamp.modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                self.metrics.hosts.reloaded.set(since.as_secs_f64());
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Err(error) => {
                warn!("hosts: cannot read {path} any more, its entries are gone: {error}");
                String::new()
            }
        };
        let entries = self.fill(&text);
        info!("hosts: {entries} entries with those of {path}");
    }

    /// Puts the table together anew; says how many entries it has.
    fn fill(&self, text: &str) -> i64 {
        let mut table = Table::default();
        for (address, name) in parse(text).iter().chain(&self.inline) {
            if nearest(&self.zones, name).is_some() {
                table.add(*address, name, !self.no_reverse);
            }
        }
        let entries = table.addresses.values().map(Vec::len).chain(table.names.values().map(Vec::len)).sum::<usize>();
        let entries = i64::try_from(entries).unwrap_or(i64::MAX);
        self.metrics.hosts.entries.set(entries);
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
        entries
    }
}

/// The entries of a hosts(5) file. Like the system's resolver it passes over what it does not understand.
fn parse(text: &str) -> Vec<(IpAddr, DnsName)> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(address) = words.next().and_then(address) else { continue };
        entries.extend(words.filter_map(|word| Some((address, DnsName::bytes_from_str(word).ok()?))));
    }
    entries
}

/// An address without its scope: `fe80::1%eth0` is `fe80::1`.
fn address(text: &str) -> Option<IpAddr> {
    text.split('%').next().and_then(|text| text.parse().ok())
}

impl Plugin for Hosts {
    fn name(&self) -> &'static str {
        NAME
    }

    fn ask(&self, query: &Query, _rest: &Rest<'_>) -> Step {
        let table = self.book.table.read().unwrap_or_else(PoisonError::into_inner);
        let answer = |data: Data| record(query.name.clone(), self.ttl, data);
        let mut reply = Reply { authoritative: true, plugin: NAME, ..Reply::default() };
        if query.qtype == Rtype::PTR {
            // In any zone: the reverse zones need not be named.
            let Some(names) = reverse_address(query.name.for_slice()).and_then(|ip| table.names.get(&ip)) else {
                return Step::Next;
            };
            reply.answer.extend(names.iter().map(|name| answer(Data::Ptr(Ptr::new(name.clone())))));
            return Step::Reply(reply);
        }
        if nearest(&self.zones, &query.name).is_none() {
            return Step::Next;
        }
        let falls = self.fallthrough.takes(&query.name);
        match (table.addresses(&query.name), query.qtype) {
            (None, _) if falls => return Step::Next,
            // Without a SOA record there is no proper NXDOMAIN (CoreDNS).
            (None, _) => reply = Reply::code(Rcode::SERVFAIL, NAME),
            (Some(addresses), Rtype::A | Rtype::AAAA) => {
                reply.answer.extend(addresses.iter().filter_map(|address| match (address, query.qtype) {
                    (IpAddr::V4(ip), Rtype::A) => Some(answer(Data::A(A::new(*ip)))),
                    (IpAddr::V6(ip), Rtype::AAAA) => Some(answer(Data::Aaaa(Aaaa::new(*ip)))),
                    _ => None,
                }));
            }
            (Some(_), _) if falls && self.fallthrough_unsupported => return Step::Next,
            (Some(_), _) => {}
        }
        Step::Reply(reply)
    }

    fn background(&self, _router: &Arc<Router>) -> Option<BoxFuture<'static, ()>> {
        let book = self.book.clone();
        Some(WatchedFile::watch(book.file.interval, move || book.look()).boxed())
    }
}

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    site.only_once(directive)?;
    let (path, names) = match directive.args.split_first() {
        Some((path, names)) => (path.text.as_str(), names),
        None => (FILE, &[][..]),
    };
    let zones = site.zones_or_own(names)?;
    let mut book = Book {
        file: WatchedFile::new(path, RELOAD),
        zones: zones.clone(),
        inline: Vec::new(),
        no_reverse: false,
        table: RwLock::default(),
        metrics: site.environment.metrics.clone(),
    };
    let (mut ttl, mut fallthrough, mut unsupported) = (TTL, Fallthrough::default(), None);
    for option in &directive.body {
        match option.name() {
            "ttl" => {
                let [word] = option.plain(1, 1)? else { continue };
                ttl = u32::try_from(word.number(MAX_TTL)?).unwrap_or(TTL);
            }
            "no_reverse" => {
                option.plain(0, 0)?;
                book.no_reverse = true;
            }
            "reload" => {
                let [word] = option.plain(1, 1)? else { continue };
                book.file.interval = word.duration()?;
            }
            "fallthrough" => fallthrough = Fallthrough::new(option)?,
            "fallthrough_unsupported" => {
                option.plain(0, 0)?;
                unsupported = Some(option);
            }
            text => {
                let Some(address) = address(text) else { return Err(option.unknown_option(NAME)) };
                for word in option.plain(1, usize::MAX)? {
                    let name = DnsName::bytes_from_str(&word.text);
                    let wrong = |error| word.error(format!("{:?} is not a domain name: {error}", word.text));
                    book.inline.push((address, name.map_err(wrong)?));
                }
            }
        }
    }
    if let Some(option) = unsupported.filter(|_| !fallthrough.is_set()) {
        return Err(option.error("fallthrough_unsupported needs fallthrough"));
    }
    book.fill("");
    if !book.file.path.exists() {
        warn!("hosts: {path} is not there yet");
    }
    book.look();
    let fallthrough_unsupported = unsupported.is_some();
    site.add(Hosts { zones, ttl, fallthrough, fallthrough_unsupported, book: Arc::new(book) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_a_hosts_file() {
        let text =
            "# 10.0.0.1 no\n10.0.0.1 a b#c\n\tfe80::1%lo0\tA.example # x\n10.0.0.2\nx y\n10.0.0 y\n10.0.0.3 a..b ok.\n";
        let entries: Vec<_> = parse(text).iter().map(|(ip, name)| format!("{ip} {name}")).collect();
        assert_eq!(entries, ["10.0.0.1 a", "10.0.0.1 b", "fe80::1 A.example", "10.0.0.3 ok"]);
    }

    proptest! {
        #[test]
        fn any_hosts_file_is_survived(text in "[0-9a-f:.%# \\n*\\\\-]{0,200}") {
            for (address, name) in parse(&text) {
                prop_assert!(text.contains(&name.first().to_string()) || text.contains('\\'), "{address} {name}");
            }
        }
    }
}
