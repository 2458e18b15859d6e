//! As much of a listed rule as says where UDP packets are sent: what [`encode`](super::encode) writes, read back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use podwire_model::Family;

use crate::{
    iptables::{Is, Match, Ports, Rule, Target},
    netlink::attributes,
};

const UDP: u8 = 17;

/// The rule, with its protocol, whole destination address and port, comment, and the endpoint that it sends to; `None`
/// if it does not match UDP.
pub fn udp(expressions: &[u8], family: Family) -> Option<Rule> {
    let mut rule = Rule::default();
    // What was loaded for the next comparison.
    let mut loaded = Loaded::Other;
    for (_, element) in attributes(expressions) {
        let name = attribute(element, 1)?;
        let Some(data) = attribute(element, 2) else { continue };
        match name.strip_suffix(&[0])? {
            b"meta" if number(data, 2) == Some(16) => loaded = Loaded::Protocol,
            b"payload" => loaded = Loaded::of(data, family),
            b"cmp" => {
                let value = attribute(attribute(data, 3)?, 1)?;
                compared(&mut rule, loaded, value, number(data, 2) == Some(0));
                loaded = Loaded::Other;
            }
            b"match" if attribute(data, 1) == Some(b"comment\0") => {
                let text = attribute(data, 3)?.split(|byte| *byte == 0).next()?;
                rule.matches.push(Match::Comment(String::from_utf8_lossy(text).into_owned()));
            }
            b"target" if attribute(data, 1) == Some(b"DNAT\0") => {
                rule.target = Some(Target::Dnat(endpoint(attribute(data, 3)?, family)?.to_string()));
            }
            _ => loaded = Loaded::Other,
        }
    }
    rule.protocol.is_some().then_some(rule)
}

#[derive(Clone, Copy)]
enum Loaded {
    Protocol,
    Destination,
    Port,
    Other,
}

impl Loaded {
    fn of(data: &[u8], family: Family) -> Self {
        let (offset, length) = if family == Family::V4 { (16, 4) } else { (24, 16) };
        match (number(data, 2), number(data, 3), number(data, 4)) {
            (Some(1), Some(at), Some(bytes)) if (at, bytes) == (offset, length) => Self::Destination,
            (Some(2), Some(2), Some(2)) => Self::Port,
            _ => Self::Other,
        }
    }
}

fn compared(rule: &mut Rule, loaded: Loaded, value: &[u8], equal: bool) {
    match loaded {
        Loaded::Protocol if equal && value == [UDP] => rule.protocol = Some(Is::equal("udp".to_owned())),
        Loaded::Destination => {
            let address = address(value);
            rule.destination = address.map(|address| Is { not: !equal, value: address.into() });
        }
        Loaded::Port => {
            if let Ok(port) = <[u8; 2]>::try_from(value).map(u16::from_be_bytes) {
                let destination = Some(Is { not: !equal, value: (port, port) });
                rule.matches.push(Match::Ports(Ports { protocol: "udp".to_owned(), source: None, destination }));
            }
        }
        _ => {}
    }
}

fn endpoint(range: &[u8], family: Family) -> Option<SocketAddr> {
    let address = address(range.get(4..if family == Family::V4 { 8 } else { 20 })?)?;
    let port = u16::from_be_bytes(range.get(36..38)?.try_into().ok()?);
    Some(SocketAddr::new(address, port))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn number(bytes: &[u8], wanted: u16) -> Option<u32> {
    attribute(bytes, wanted)?.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::encode::encode, *};

    #[test]
    fn rules_for_udp_come_back() {
        for (family, text) in [
            (Family::V4, "-d 10.96.0.1/32 -p udp -m comment --comment \"ns/x cluster IP\" -m udp --dport 53"),
            (Family::V4, "-p udp -m comment --comment \"ns/x\" -j DNAT --to-destination 10.1.1.1:53"),
            (Family::V6, "-d fd00::1/128 -p udp -m comment --comment x -m udp --dport 53"),
            (Family::V6, "-p udp -m comment --comment x -j DNAT --to-destination [fd00::9]:53"),
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(udp(&encode(&rule, family).unwrap().expressions, family), Some(rule));
        }
        let tcp = "-d 10.96.0.1/32 -p tcp -m tcp --dport 53".parse().unwrap();
        assert_eq!(udp(&encode(&tcp, Family::V4).unwrap().expressions, Family::V4), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = udp(&bytes, Family::V6);
        }
    }
}
