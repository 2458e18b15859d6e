//! Zones as a Corefile spells them: names, address ranges, ports.

use std::{fmt, net::IpAddr};

use podwire_model::IpNet;

use super::{CorefileError, Position, Word};
use crate::message::DnsName;

/// The port of a server block that names none.
const DEFAULT_PORT: u16 = 53;

/// A zone and the port it is served on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneKey {
    /// The zone's name; the root for `.`.
    pub zone: DnsName,
    /// The port, of UDP and TCP alike.
    pub port: u16,
    /// Where the Corefile says so.
    pub at: Position,
}

impl ZoneKey {
    /// Reads `[dns://]zone[:port]`. An address range gives the reverse zones that cover it.
    ///
    /// # Errors
    /// At the word: another transport, a bad port, a bad name.
    pub fn parse(word: &Word) -> Result<Vec<Self>, CorefileError> {
        let text = match word.text.split_once("://") {
            Some(("dns", rest)) => rest,
            Some((transport, _)) => {
                return Err(word.error(format!("transport {transport:?} is not supported yet, only dns")));
            }
            None => &word.text,
        };
        // In `fd00::/8` the colons are not a port's: a port follows the prefix length.
        let (head, tail) = text.split_at(text.find('/').unwrap_or(0));
        let (zone, port) = match tail.rsplit_once(':') {
            Some((_, port)) => {
                let wrong = || word.error(format!("{port:?} is not a port from 0 to 65535"));
                (&text[..text.len() - port.len() - 1], port.parse().map_err(|_| wrong())?)
            }
            None => (&text[..head.len() + tail.len()], DEFAULT_PORT),
        };
        let zones = zone_names(&Word { text: zone.to_owned(), at: word.at })?;
        Ok(zones.into_iter().map(|zone| Self { zone, port, at: word.at }).collect())
    }
}

impl fmt::Display for ZoneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.zone.fmt_with_dot(), self.port)
    }
}

/// The zone names that a word stands for: one, or for an address range the reverse zones that cover it.
///
/// # Errors
/// At the word, when it is no domain name.
pub fn zone_names(word: &Word) -> Result<Vec<DnsName>, CorefileError> {
    if let Ok(range) = word.text.parse::<IpNet>() {
        return reverse_zones(range).ok_or_else(|| word.error(format!("{range} has no reverse zones")));
    }
    if word.text.is_empty() {
        return Err(word.error("expected a zone before the port, such as \".\""));
    }
    match DnsName::bytes_from_str(&word.text) {
        Ok(name) => Ok(vec![name]),
        Err(error) => Err(word.error(format!("{:?} is not a domain name: {error}", word.text))),
    }
}

/// The zones of `in-addr.arpa` or `ip6.arpa` that cover a range, split where the range ends within an octet or nibble.
pub fn reverse_zones(range: IpNet) -> Option<Vec<DnsName>> {
    let (step, suffix) = match range {
        IpNet::V4(_) => (8, "in-addr.arpa"),
        IpNet::V6(_) => (4, "ip6.arpa"),
    };
    let length = range.prefix_len().next_multiple_of(step);
    let zone = |part: IpNet| {
        let labels = usize::from(length / step);
        let mut labels: Vec<String> = match part.network() {
            IpAddr::V4(ip) => ip.octets()[..labels].iter().map(u8::to_string).collect(),
            IpAddr::V6(ip) => format!("{:032x}", u128::from(ip)).chars().take(labels).map(String::from).collect(),
        };
        labels.reverse();
        labels.push(suffix.to_owned());
        DnsName::bytes_from_str(&labels.join(".")).ok()
    };
    range.subnets(length).ok()?.map(zone).collect()
}
