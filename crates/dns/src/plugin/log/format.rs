//! The lines of `log`: text with placeholders for what is known about a question and its answer.

use std::{borrow::Cow, net::IpAddr, time::Duration};

use super::Class;
use crate::{
    corefile::{CorefileError, Word},
    message::{Query, Reply, Transport},
    plugin::pattern::name_text,
};

/// CoreDNS's default line.
const COMMON: &str = "{remote}:{port} - {>id} \"{type} {class} {name} {proto} {size} {>do} {>bufsize}\" {rcode} {>rflags} {rsize} {duration}";
/// The same with the operation code.
const COMBINED: &str = "{remote}:{port} - {>id} \"{type} {class} {name} {proto} {size} {>do} {>bufsize}\" {rcode} {>rflags} {rsize} {duration} \"{>opcode}\"";

/// What CoreDNS writes where it has no value.
const NOTHING: &str = "-";
/// The length of a message header, bytes.
const HEADER: usize = 12;
/// The length of type and class, bytes.
const QUESTION: usize = 4;
/// The length of an OPT record without options, bytes.
const OPT: usize = 11;

/// A line as it is configured.
#[derive(Debug, PartialEq)]
pub(super) struct Format(Vec<Part>);

#[derive(Debug, PartialEq)]
enum Part {
    Literal(String),
    Value(Value),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Value {
    Type,
    Name,
    Class,
    Protocol,
    Remote,
    Port,
    Size,
    ReplySize,
    Duration,
    Rcode,
    Id,
    Opcode,
    DnssecOk,
    BufferSize,
    Flags,
    LogClass,
    LogType,
    Nothing,
}

impl Default for Format {
    fn default() -> Self {
        Self::new(COMMON)
    }
}

impl Format {
    /// The format that a word spells. What is in braces and no placeholder is text (CoreDNS).
    ///
    /// # Errors
    /// At the word, for a placeholder of CoreDNS that is not there yet.
    pub(super) fn parse(word: &Word) -> Result<Self, CorefileError> {
        if word.text.contains("{local}") {
            return Err(word.error("log: placeholder {local} is not supported yet"));
        }
        Ok(Self::new(&word.text.replace("{common}", COMMON).replace("{combined}", COMBINED)))
    }

    fn new(text: &str) -> Self {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(close) = rest.find('}') {
            let (before, after) = rest.split_at(close + 1);
            rest = after;
            // The innermost brace, as in "{ {name} }".
            let value = before.rfind('{').and_then(|open| Some((open, value(&before[open + 1..close])?)));
            let Some((open, value)) = value else {
                literal.push_str(before);
                continue;
            };
            literal.push_str(&before[..open]);
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(Part::Value(value));
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Self(parts)
    }

    /// The line about an answer that took `duration`.
    pub(super) fn line(&self, query: &Query, reply: &Reply, duration: Duration) -> String {
        let mut line = String::new();
        for part in &self.0 {
            match part {
                Part::Literal(text) => line.push_str(text),
                Part::Value(value) => line.push_str(&value.text(query, reply, duration)),
            }
        }
        line
    }
}

/// What stands in braces.
fn value(name: &str) -> Option<Value> {
    Some(match name {
        "type" => Value::Type,
        "name" => Value::Name,
        "class" => Value::Class,
        "proto" => Value::Protocol,
        "remote" => Value::Remote,
        "port" => Value::Port,
        "size" => Value::Size,
        "rsize" => Value::ReplySize,
        "duration" => Value::Duration,
        "rcode" => Value::Rcode,
        ">id" => Value::Id,
        ">opcode" => Value::Opcode,
        ">do" => Value::DnssecOk,
        ">bufsize" => Value::BufferSize,
        ">rflags" => Value::Flags,
        "/log/class" => Value::LogClass,
        "/log/type" => Value::LogType,
        // Labels of directive metadata, which is not there.
        label if label.starts_with('/') => Value::Nothing,
        _ => return None,
    })
}

impl Value {
    fn text(self, query: &Query, reply: &Reply, duration: Duration) -> Cow<'static, str> {
        let text = match self {
            Self::Type => query.qtype.to_string(),
            Self::Name => name_text(&query.name),
            Self::Class => query.qclass.to_string(),
            Self::Protocol => return query.arrival.transport.as_str().into(),
            Self::Remote => match query.arrival.client.ip() {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            },
            Self::Port => query.arrival.client.port().to_string(),
            Self::Size => size(query).to_string(),
            Self::ReplySize => (size(query) + records(reply)).to_string(),
            Self::Duration => format!("{}s", duration.as_secs_f64()),
            Self::Rcode => reply.rcode.to_string(),
            Self::Id => query.id.to_string(),
            // Other operations never get here.
            Self::Opcode => return "0".into(),
            Self::DnssecOk => query.edns.is_some_and(|edns| edns.dnssec_ok).to_string(),
            Self::BufferSize => match (query.arrival.transport, query.edns) {
                (Transport::Tcp, _) => u16::MAX.to_string(),
                (Transport::Udp, edns) => edns.map_or(512, |edns| edns.udp_size.max(512)).to_string(),
            },
            Self::Flags => flags(query, reply),
            Self::LogClass => return Class::of(reply).as_str().into(),
            Self::LogType => match Class::of(reply) {
                Class::Denial if reply.answer.is_empty() && reply.rcode == domain::base::iana::Rcode::NOERROR => {
                    return "NODATA".into();
                }
                _ => reply.rcode.to_string(),
            },
            Self::Nothing => return NOTHING.into(),
        };
        text.into()
    }
}

/// The length of a query without the client's EDNS options, bytes.
fn size(query: &Query) -> usize {
    HEADER + query.name.len() + QUESTION + if query.edns.is_some() { OPT } else { 0 }
}

/// The length of an answer's records before names are compressed and records left out, bytes.
fn records(reply: &Reply) -> usize {
    let mut bytes = Vec::new();
    for record in reply.answer.iter().chain(&reply.authority).chain(&reply.additional) {
        // Writing to a Vec does not fail.
        let _ = record.compose(&mut bytes);
    }
    bytes.len()
}

fn flags(query: &Query, reply: &Reply) -> String {
    let flags = [
        ("qr", true),
        ("aa", reply.authoritative),
        ("rd", query.recursion_desired),
        ("ra", reply.recursion_available),
        ("ad", reply.authentic),
        ("cd", query.checking_disabled),
    ];
    let set: Vec<_> = flags.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    set.join(",")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use domain::{base::iana::Rcode, rdata::A};
    use proptest::prelude::*;

    use super::*;
    use crate::message::{Arrival, Data, record};

    /// `Example.org A` with RD set, and with an OPT record that offers 4096 bytes and has the DO bit.
    fn query(client: &str, edns: bool) -> Query {
        let arrival =
            Arrival { client: client.parse().unwrap(), transport: Transport::Udp, now: Instant::now(), random: 0 };
        let mut packet = vec![0x71, 0x50, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
        packet.extend(b"\x07Example\x03org\0\0\x01\0\x01");
        if edns {
            packet.extend([0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, 0]);
        }
        Query::parse(&packet, arrival).unwrap()
    }

    fn line(format: &str, query: &Query, reply: &Reply) -> String {
        Format::parse(&Word { text: format.to_owned(), at: Default::default() }).unwrap().line(
            query,
            reply,
            Duration::from_micros(1_500),
        )
    }

    #[test]
    fn lines() {
        let query6 = query("[::1]:50759", true);
        let query4 = query("10.0.0.1:53", false);
        let mut reply = Reply { authoritative: true, ..Reply::default() };
        let common = "[::1]:50759 - 29008 \"A IN example.org. udp 40 true 4096\" NOERROR qr,aa,rd 40 0.0015s";
        assert_eq!(Format::default().line(&query6, &reply, Duration::from_micros(1_500)), common);
        assert_eq!(line("{combined}", &query6, &reply), format!("{common} \"0\""));
        assert_eq!(line("x {common}", &query6, &reply), format!("x {common}"));
        assert_eq!(line("{/log/class} {/log/type} {/other/x}", &query4, &reply), "denial NODATA -");
        reply.answer.push(record(query4.name.clone(), 5, Data::A(A::new([10, 0, 0, 1].into()))));
        assert_eq!(line("{remote} {size} {rsize} {>bufsize} {>do}", &query4, &reply), "10.0.0.1 29 56 512 false");
        assert_eq!(line("{ {rcode} } {none} {>x} a}b {", &query4, &reply), "{ NOERROR } {none} {>x} a}b {");
        reply.rcode = Rcode::SERVFAIL;
        assert_eq!(line("{/log/class} {/log/type}", &query4, &reply), "error SERVFAIL");
    }

    proptest! {
        #[test]
        fn any_format_is_survived(parts in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "{type}", "{>id}", "{/x}", " ", "{common}", "ä", "{>", "name}",
        ]), 0..20)) {
            let text = parts.concat();
            let written = line(&text, &query("10.0.0.1:53", false), &Reply::default());
            // What is no placeholder stays.
            prop_assert_eq!(written.matches('ä').count(), text.matches('ä').count());
        }
    }
}
