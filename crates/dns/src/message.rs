//! DNS messages: from bytes to a [`Query`], from a [`Reply`] to bytes that fit the client. Pure.

use std::{net::SocketAddr, time::Instant};

use bytes::Bytes;
use domain::{
    base::{
        Message, MessageBuilder, Name, NameBuilder, ParsedName, Question, StaticCompressor, Ttl,
        iana::{Class, Opcode, OptRcode, Rcode, Rtype},
        name::{FlattenInto, PushError},
        record::ParsedRecord,
        wire::ParseError,
    },
    dep::octseq::OctetsBuilder,
    rdata::AllRecordData,
};

/// An owned domain name, cheap to clone.
pub type DnsName = Name<Bytes>;
/// The data of a record, with every name in it uncompressed.
pub type Data = AllRecordData<Bytes, DnsName>;
/// A resource record.
pub type Record = domain::base::Record<DnsName, Data>;

/// The largest UDP answer without EDNS (RFC 1035 4.2.1), bytes.
const PLAIN_UDP_SIZE: u16 = 512;
/// The largest UDP answer that we send whatever the client offers, bytes.
const MAX_UDP_SIZE: u16 = 4096;
/// The UDP size that we offer in turn (DNS Flag Day 2020), bytes.
pub const OFFERED_UDP_SIZE: u16 = 1232;
/// What an OPT record without options takes, bytes.
const OPT_SIZE: usize = 11;
/// The length of a message header, bytes.
const HEADER_SIZE: usize = 12;

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// In a stream, framed by length.
    Tcp,
}

impl Transport {
    /// `udp` or `tcp`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// The circumstances of a query: what pure code may not ask the system for.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// Who asks.
    pub client: SocketAddr,
    /// By which transport.
    pub transport: Transport,
    /// When it came.
    pub now: Instant,
    /// A number that the client cannot guess.
    pub random: u64,
}

/// The OPT record of a query (RFC 6891).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// The largest UDP answer that the client takes, bytes.
    pub udp_size: u16,
    /// The DO bit (RFC 3225).
    pub dnssec_ok: bool,
}

/// One question to answer.
#[derive(Debug, Clone)]
pub struct Query {
    /// The message's id.
    pub id: u16,
    /// The RD bit.
    pub recursion_desired: bool,
    /// The CD bit.
    pub checking_disabled: bool,
    /// The AD bit: the client wants to know whether the answer is verified (RFC 6840 5.7).
    pub authentic_data: bool,
    /// The name asked for, in the client's spelling.
    pub name: DnsName,
    /// The type asked for.
    pub qtype: Rtype,
    /// The class asked for.
    pub qclass: Class,
    /// The OPT record, if there was one.
    pub edns: Option<Edns>,
    /// EDNS options, by code, for the servers that are asked in turn. Those of the client end here (RFC 6891 6.1.1).
    pub options: Vec<(u16, Bytes)>,
    /// How, when and from where it came.
    pub arrival: Arrival,
    /// How many steps of our own led here; 0 for what a client asked.
    pub depth: u8,
}

/// What to do with a packet that is no query we answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// Say nothing: it is too short to be a message, or an answer itself.
    Ignore,
    /// Answer with this code and nothing else.
    Answer(OptRcode),
}

impl Query {
    /// Reads a query.
    ///
    /// # Errors
    /// How to turn the packet down, if it is not a query with one question.
    pub fn parse(packet: &[u8], arrival: Arrival) -> Result<Self, Rejection> {
        let message = Message::from_slice(packet).map_err(|_| Rejection::Ignore)?;
        let header = message.header();
        if header.qr() {
            return Err(Rejection::Ignore);
        }
        if header.opcode() != Opcode::QUERY {
            return Err(Rejection::Answer(OptRcode::NOTIMP));
        }
        let wrong = Rejection::Answer(OptRcode::FORMERR);
        let question = message.sole_question().map_err(|_| wrong)?;
        let (edns, version) = match message.opt() {
            Some(opt) => (Some(Edns { udp_size: opt.udp_payload_size(), dnssec_ok: opt.dnssec_ok() }), opt.version()),
            None if message.header_counts().arcount() > 0 && message.additional().is_err() => return Err(wrong),
            None => (None, 0),
        };
        if version > 0 {
            return Err(Rejection::Answer(OptRcode::BADVERS));
        }
        Ok(Self {
            id: header.id(),
            recursion_desired: header.rd(),
            checking_disabled: header.cd(),
            authentic_data: header.ad(),
            name: question.qname().flatten_into(),
            qtype: question.qtype(),
            qclass: question.qclass(),
            edns,
            options: Vec::new(),
            arrival,
            depth: 0,
        })
    }

    /// Whether a client asked this: only such queries are logged and counted.
    pub fn is_from_client(&self) -> bool {
        self.depth == 0
    }

    /// A query of our own for another name, on behalf of this one.
    pub fn follow(&self, name: DnsName) -> Self {
        Self { name, depth: self.depth + 1, ..self.clone() }
    }

    /// The largest answer that the client takes, bytes.
    pub fn size_limit(&self) -> usize {
        let size = match (self.arrival.transport, self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => PLAIN_UDP_SIZE,
            (Transport::Udp, Some(edns)) => edns.udp_size.clamp(PLAIN_UDP_SIZE, MAX_UDP_SIZE),
        };
        usize::from(size)
    }

    /// Whether the client wants DNSSEC records (RFC 3225).
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// The query as bytes, to ask someone else under another id.
    pub fn encode(&self, id: u16) -> Vec<u8> {
        let Ok(mut builder) = MessageBuilder::from_target(Vec::with_capacity(PLAIN_UDP_SIZE.into()));
        let header = builder.header_mut();
        header.set_id(id);
        header.set_rd(self.recursion_desired);
        header.set_cd(self.checking_disabled);
        // Whether the client asked or not: the answer may also be for others.
        header.set_ad(true);
        let mut builder = builder.question();
        // Pushing fails only beyond a limit or a full buffer; a Vec has neither.
        let _ = builder.push(Question::new(&self.name, self.qtype, self.qclass));
        let mut builder = builder.additional();
        if let Some(edns) = self.edns {
            let _ = builder.opt(|opt| {
                opt.set_udp_payload_size(OFFERED_UDP_SIZE);
                opt.set_dnssec_ok(edns.dnssec_ok);
                for (code, value) in &self.options {
                    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
                    opt.push_raw_option((*code).into(), length, |target| target.append_slice(&value[..length.into()]))?;
                }
                Ok(())
            });
        }
        builder.finish()
    }
}

/// Where an answer's facts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Source {
    /// Our own state: never stale, so nothing to cache.
    #[default]
    Local,
    /// Another DNS server's answer.
    Upstream,
}

/// An answer before it is bytes.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The response code.
    pub rcode: Rcode,
    /// The AA bit.
    pub authoritative: bool,
    /// The RA bit.
    pub recursion_available: bool,
    /// The AD bit, for clients that want to know.
    pub authentic: bool,
    /// The answer section.
    pub answer: Vec<Record>,
    /// The authority section.
    pub authority: Vec<Record>,
    /// The additional section, without OPT.
    pub additional: Vec<Record>,
    /// The largest UDP message it may be sent in, bytes, where that is less than the client takes.
    pub udp_limit: Option<u16>,
    /// Where it comes from.
    pub source: Source,
    /// The plugin that gave it.
    pub plugin: &'static str,
    /// Why it failed, for the log.
    pub error: Option<String>,
}

impl Default for Reply {
    /// NOERROR with nothing in it.
    fn default() -> Self {
        Self {
            rcode: Rcode::NOERROR,
            authoritative: false,
            recursion_available: false,
            authentic: false,
            answer: Vec::new(),
            authority: Vec::new(),
            additional: Vec::new(),
            udp_limit: None,
            source: Source::Local,
            plugin: "",
            error: None,
        }
    }
}

/// Bytes that are no answer to what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadReply {
    /// Malformed.
    #[error("malformed answer")]
    Malformed,
    /// Another id or question: a stray or forged packet.
    #[error("answer to another question")]
    NotOurs,
    /// The TC bit is set: ask again over TCP.
    #[error("truncated answer")]
    Truncated,
}

impl Reply {
    /// An empty answer with a response code.
    pub fn code(rcode: Rcode, plugin: &'static str) -> Self {
        Self { rcode, plugin, ..Self::default() }
    }

    /// SERVFAIL, with the reason for the log.
    pub fn failure(plugin: &'static str, error: impl Into<String>) -> Self {
        Self { rcode: Rcode::SERVFAIL, plugin, error: Some(error.into()), ..Self::default() }
    }

    /// Reads another server's answer to `query.encode(id)`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(packet: Bytes, query: &Query, id: u16) -> Result<Self, BadReply> {
        // What does not even have our id tells nothing about the server: anyone may have sent it.
        let message = Message::from_octets(packet).map_err(|_| BadReply::NotOurs)?;
        let header = message.header();
        if header.id() != id || !header.qr() {
            return Err(BadReply::NotOurs);
        }
        if header.rcode() != Rcode::NOERROR && message.header_counts().qdcount() == 0 {
            // A server that could not read the question, for example one that does not know EDNS.
            return Ok(Self { source: Source::Upstream, ..Self::code(header.rcode(), "") });
        }
        let question = message.sole_question().map_err(|_| BadReply::Malformed)?;
        if question != Question::new(&query.name, query.qtype, query.qclass) {
            return Err(BadReply::NotOurs);
        }
        if header.tc() {
            return Err(BadReply::Truncated);
        }
        let mut reply = Self {
            rcode: header.rcode(),
            authoritative: header.aa(),
            recursion_available: header.ra(),
            authentic: header.ad(),
            source: Source::Upstream,
            ..Self::default()
        };
        let malformed = |_| BadReply::Malformed;
        let (_, answer, authority, additional) = message.sections().map_err(malformed)?;
        let sections =
            [(answer, &mut reply.answer), (authority, &mut reply.authority), (additional, &mut reply.additional)];
        for (section, records) in sections {
            for record in section {
                let record = record.map_err(malformed)?;
                if record.rtype() == Rtype::OPT {
                    continue;
                }
                records.push(owned_record(record).map_err(malformed)?);
            }
        }
        Ok(reply)
    }

    /// The answer as bytes, in `buffer` (what it held is lost). Holds as many records as the client has room for; if an
    /// answer or authority record had to stay out, the TC bit says so (RFC 2181 9).
    pub fn encode(&self, query: &Query, mut buffer: Vec<u8>) -> Vec<u8> {
        buffer.clear();
        let Ok(mut builder) = MessageBuilder::from_target(StaticCompressor::new(buffer));
        let limit = self.udp_limit.filter(|_| query.arrival.transport == Transport::Udp && query.edns.is_some());
        let limit = limit.map_or(usize::MAX, usize::from).min(query.size_limit());
        builder.set_push_limit(limit - if query.edns.is_some() { OPT_SIZE } else { 0 });
        let header = builder.header_mut();
        header.set_id(query.id);
        header.set_qr(true);
        header.set_rcode(self.rcode);
        header.set_aa(self.authoritative);
        header.set_ra(self.recursion_available);
        header.set_ad(self.authentic && (query.authentic_data || query.dnssec_ok()));
        header.set_rd(query.recursion_desired);
        header.set_cd(query.checking_disabled);
        let mut builder = builder.question();
        let mut fits = builder.push(Question::new(&query.name, query.qtype, query.qclass)).is_ok();
        let mut builder = builder.answer();
        fits = fits && self.answer.iter().all(|record| builder.push(record).is_ok());
        let mut builder = builder.authority();
        fits = fits && self.authority.iter().all(|record| builder.push(record).is_ok());
        let mut builder = builder.additional();
        builder.header_mut().set_tc(!fits);
        if fits {
            // What is left out here can be asked for by name: no need for TC.
            let _ = self.additional.iter().all(|record| builder.push(record).is_ok());
        }
        if let Some(edns) = query.edns {
            builder.clear_push_limit();
            let _ = builder.opt(|opt| {
                opt.set_udp_payload_size(OFFERED_UDP_SIZE);
                opt.set_dnssec_ok(edns.dnssec_ok);
                Ok(())
            });
        }
        builder.finish().into_target()
    }

    /// The same answer to another client's query for the same name, which it may spell in another case; `ttl` makes each
    /// record's TTL from the one it had, seconds.
    pub fn retold(&self, query: &Query, ttl: impl Fn(u32) -> u32) -> Self {
        let section = |records: &[Record]| -> Vec<Record> {
            let retold = |record: &Record| {
                let owner = if *record.owner() == query.name { &query.name } else { record.owner() };
                let ttl = Ttl::from_secs(ttl(record.ttl().as_secs()));
                Record::new(owner.clone(), record.class(), ttl, record.data().clone())
            };
            records.iter().map(retold).collect()
        };
        Self {
            answer: section(&self.answer),
            authority: section(&self.authority),
            additional: section(&self.additional),
            error: self.error.clone(),
            ..*self
        }
    }

    /// Every record of the answer.
    pub fn records_mut(&mut self) -> impl Iterator<Item = &mut Record> {
        self.answer.iter_mut().chain(&mut self.authority).chain(&mut self.additional)
    }
}

/// The answer that turns a packet down: its header with a response code, and an OPT record where the code needs one.
/// `packet` holds at least a header, or [`Query::parse`] would have said to ignore it.
pub fn encode_rejection(packet: &[u8], rcode: OptRcode) -> Vec<u8> {
    let Ok(mut builder) = MessageBuilder::from_target(Vec::with_capacity(HEADER_SIZE + OPT_SIZE));
    if let Ok(message) = Message::from_slice(packet) {
        let header = builder.header_mut();
        header.set_id(message.header().id());
        header.set_opcode(message.header().opcode());
        header.set_rd(message.header().rd());
    }
    builder.header_mut().set_qr(true);
    builder.header_mut().set_rcode(rcode.rcode());
    let mut builder = builder.additional();
    if rcode.is_ext() {
        let _ = builder.opt(|opt| {
            opt.set_udp_payload_size(OFFERED_UDP_SIZE);
            opt.set_rcode(rcode);
            Ok(())
        });
    }
    builder.finish()
}

/// A record of a message as answers hold it.
pub(crate) fn owned_record(record: ParsedRecord<'_, Bytes>) -> Result<Record, ParseError> {
    Ok(record.into_any_record::<AllRecordData<Bytes, ParsedName<Bytes>>>()?.flatten_into())
}

/// A record of class IN.
pub fn record(owner: DnsName, ttl: u32, data: impl Into<Data>) -> Record {
    Record::new(owner, Class::IN, Ttl::from_secs(ttl), data.into())
}

/// The name made of `labels` and `zone`.
///
/// # Errors
/// A label is empty or longer than 63 bytes, or the name is longer than 255.
pub fn name_below(labels: &[&[u8]], zone: &DnsName) -> Result<DnsName, PushError> {
    let mut name = NameBuilder::bytes_with_capacity(Name::MAX_LEN);
    for label in labels {
        name.append_label(label)?;
    }
    name.append_origin(zone).map_err(|_| PushError::LongName)
}
