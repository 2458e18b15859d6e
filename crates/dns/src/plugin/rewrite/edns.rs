//! `rewrite edns0`: the EDNS options that go with a question to other servers.

use std::{borrow::Cow, net::IpAddr};

use bytes::Bytes;

use super::setup::Words;
use crate::{
    corefile::{CorefileError, Word},
    message::{Edns, OFFERED_UDP_SIZE, Query},
    plugin::pattern::name_text,
};

/// Name server identifier (RFC 5001).
const NSID: u16 = 3;
/// Client subnet (RFC 7871).
const SUBNET: u16 = 8;

/// `edns0 local|nsid|subnet ACTION …`
pub(super) struct OptionRule {
    action: Action,
    code: u16,
    value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// Changes the option or adds it.
    Set,
    /// Adds the option if it is not there.
    Append,
    /// Changes the option if it is there.
    Replace,
    /// Takes the option away.
    Unset,
}

enum Value {
    Fixed(Bytes),
    Name,
    Type,
    ClientAddress,
    ClientPort,
    Protocol,
    /// The client's network, with so many bits of an IPv4 and of an IPv6 address.
    Subnet(u8, u8),
}

impl OptionRule {
    pub(super) fn new(words: &mut Words<'_>) -> Result<Self, CorefileError> {
        let kind = words.next("local, nsid or subnet")?;
        let action = words.next("set, append, replace or unset")?;
        let action = match action.text.to_ascii_lowercase().as_str() {
            "set" => Action::Set,
            "append" => Action::Append,
            "replace" => Action::Replace,
            "unset" => Action::Unset,
            _ => return Err(action.error("edns0: expected set, append, replace or unset")),
        };
        let (code, value) = match (kind.text.to_ascii_lowercase().as_str(), action) {
            ("local", Action::Unset) => (code(words.next("the option's code")?)?, Value::Fixed(Bytes::new())),
            ("local", _) => (code(words.next("the option's code")?)?, value(words.next("the option's data")?)?),
            ("nsid", _) => (NSID, Value::Fixed(Bytes::new())),
            ("subnet", Action::Unset) => (SUBNET, Value::Fixed(Bytes::new())),
            ("subnet", _) => {
                let bits = |word: &Word, max| word.number(max).map(|bits| u8::try_from(bits).unwrap_or(u8::MAX));
                let v4 = bits(words.next("bits of an IPv4 address")?, 32)?;
                (SUBNET, Value::Subnet(v4, bits(words.next("bits of an IPv6 address")?, 128)?))
            }
            _ => return Err(kind.error("edns0: expected local, nsid or subnet")),
        };
        // Answers never hold options, so there is nothing to take back.
        words.take("revert");
        Ok(Self { action, code, value })
    }

    /// Changes the query's options; says whether the rule fits it.
    pub(super) fn apply(&self, query: &mut Cow<'_, Query>) -> bool {
        let there = query.options.iter().position(|(code, _)| *code == self.code);
        let value = self.value.of(query);
        match (self.action, there) {
            (Action::Set | Action::Replace, Some(index)) => query.to_mut().options[index].1 = value,
            (Action::Set | Action::Append, None) => {
                let query = query.to_mut();
                query.options.push((self.code, value));
                query.edns.get_or_insert(Edns { udp_size: OFFERED_UDP_SIZE, dnssec_ok: false });
            }
            (Action::Unset, Some(index)) => drop(query.to_mut().options.remove(index)),
            (Action::Append, Some(_)) | (Action::Replace | Action::Unset, None) => return false,
        }
        true
    }
}

impl Value {
    fn of(&self, query: &Query) -> Bytes {
        let client = query.arrival.client;
        match self {
            Self::Fixed(bytes) => bytes.clone(),
            Self::Name => name_text(&query.name).into(),
            Self::Type => query.qtype.to_int().to_be_bytes().to_vec().into(),
            Self::ClientAddress => octets(client.ip()).into(),
            Self::ClientPort => client.port().to_be_bytes().to_vec().into(),
            Self::Protocol => query.arrival.transport.as_str().into(),
            Self::Subnet(v4, v6) => {
                let (family, bits) = if client.is_ipv4() { (1, *v4) } else { (2, *v6) };
                let mut bytes = vec![0, family, bits, 0];
                let mut address = octets(client.ip());
                address.truncate(usize::from(bits).div_ceil(8));
                if let Some(last) = address.last_mut().filter(|_| bits % 8 != 0) {
                    *last &= 0xff << (8 - bits % 8);
                }
                bytes.extend(address);
                bytes.into()
            }
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// `0xffee` or `65518`.
fn code(word: &Word) -> Result<u16, CorefileError> {
    let parsed = match word.text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => word.text.parse(),
    };
    parsed.map_err(|_| word.error(format!("edns0: {:?} is not an option's code such as 0xffee", word.text)))
}

/// Text, `0x` and hexadecimal digits, or a variable in braces.
fn value(word: &Word) -> Result<Value, CorefileError> {
    let text = word.text.as_str();
    if let Some(variable) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
        return Ok(match variable {
            "qname" => Value::Name,
            "qtype" => Value::Type,
            "client_ip" => Value::ClientAddress,
            "client_port" => Value::ClientPort,
            "protocol" => Value::Protocol,
            _ => return Err(word.error(format!("edns0: variable {text} is unknown or not supported yet"))),
        });
    }
    let Some(digits) = text.strip_prefix("0x") else { return Ok(Value::Fixed(text.to_owned().into())) };
    let wrong = || word.error(format!("edns0: {text:?} is not an even number of hexadecimal digits"));
    let byte = |pair: &[u8]| str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
    if digits.len() % 2 != 0 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let bytes: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(byte).collect();
    bytes.map(|bytes| Value::Fixed(bytes.into())).ok_or_else(wrong)
}
