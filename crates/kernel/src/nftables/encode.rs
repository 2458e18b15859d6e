//! A [`Batch`] as netlink bytes.

use podwire_model::Family;

use super::{
    Action, Base, Batch, Chain, ChainKind, Element, Expr, Field, Hook, Mapped, Rule, Set, SetData, SetKind, Table,
    Value, Verdict, expr::push_expr, uapi,
};
use crate::netlink::flags;

/// Bytes of elements in one message: the nest's length has 16 bits.
const MAX_ELEMENTS_BYTES: usize = 60 << 10;

/// A transaction ready to send, and which step each of its messages came from.
pub(super) struct Encoded {
    /// The messages.
    pub bytes: Vec<u8>,
    /// The step of message `first + 1 + i`.
    pub steps: Vec<usize>,
    /// The sequence number of the first message, which begins the batch.
    pub first: u32,
}

impl Encoded {
    /// The step that a sequence number stands for; `None` for the batch as a whole.
    pub fn step(&self, sequence: u32) -> Option<usize> {
        let index = sequence.wrapping_sub(self.first).checked_sub(1)?;
        self.steps.get(index as usize).copied()
    }

    /// The sequence number of the message whose acknowledgement says that all of it happened.
    pub fn last(&self) -> u32 {
        self.first.wrapping_add(self.steps.len() as u32)
    }
}

/// Encodes `batch` with sequence numbers from `first` on.
pub(super) fn encode(batch: &Batch, first: u32) -> Encoded {
    let mut writer = Writer { bytes: Vec::with_capacity(batch.len() * 128), sequence: first, last: 0 };
    let mut steps = Vec::with_capacity(batch.len());
    writer.envelope(uapi::msg::BATCH_BEGIN);
    for (index, (table, action)) in batch.steps.iter().enumerate() {
        let before = writer.sequence;
        push_action(&mut writer, table, action);
        steps.extend((before..writer.sequence).map(|_| index));
    }
    writer.acknowledge_last();
    writer.envelope(uapi::msg::BATCH_END);
    Encoded { bytes: writer.bytes, steps, first }
}

fn push_action(w: &mut Writer, table: &Table, action: &Action) {
    use uapi::msg;
    let family = table.family.number();
    let create = flags::CREATE;
    match action {
        Action::AddTable { comment } => w.message(msg::NEW_TABLE, create, family, |w| {
            w.string(uapi::table::NAME, &table.name);
            w.comment(uapi::table::USERDATA, comment.as_deref());
        }),
        Action::DeleteTable => w.message(msg::DEL_TABLE, 0, family, |w| w.string(uapi::table::NAME, &table.name)),
        Action::AddChain(chain) => w.message(msg::NEW_CHAIN, create, family, |w| push_chain(w, table, chain)),
        Action::DeleteChain(chain) => w.message(msg::DEL_CHAIN, 0, family, |w| {
            w.string(uapi::chain::TABLE, &table.name);
            w.string(uapi::chain::NAME, chain);
        }),
        Action::FlushChain(chain) => w.message(msg::DEL_RULE, 0, family, |w| {
            w.string(uapi::rule::TABLE, &table.name);
            w.string(uapi::rule::CHAIN, chain);
        }),
        Action::AddRule { chain, rule } => w.message(msg::NEW_RULE, create | flags::APPEND, family, |w| {
            w.string(uapi::rule::TABLE, &table.name);
            w.string(uapi::rule::CHAIN, chain);
            push_rule(w, rule);
        }),
        Action::DeleteRule { chain, handle } => w.message(msg::DEL_RULE, 0, family, |w| {
            w.string(uapi::rule::TABLE, &table.name);
            w.string(uapi::rule::CHAIN, chain);
            w.bytes(uapi::rule::HANDLE, &handle.to_be_bytes());
        }),
        Action::AddSet(set) => {
            let id = w.sequence;
            w.message(msg::NEW_SET, create, family, |w| push_set(w, table, set, id));
        }
        Action::DeleteSet(set) => w.message(msg::DEL_SET, 0, family, |w| {
            w.string(uapi::set::TABLE, &table.name);
            w.string(uapi::set::NAME, set);
        }),
        Action::AddElements { set, elements } => {
            push_elements(w, msg::NEW_ELEM, create | flags::EXCLUSIVE, (table, set), elements);
        }
        Action::DeleteElements { set, elements } => push_elements(w, msg::DEL_ELEM, 0, (table, set), elements),
    }
}

fn push_chain(w: &mut Writer, table: &Table, chain: &Chain) {
    w.string(uapi::chain::TABLE, &table.name);
    w.string(uapi::chain::NAME, &chain.name);
    if let Some(Base { kind, hook, priority }) = &chain.base {
        const ACCEPT: u32 = 1;
        w.nest(uapi::chain::HOOK, |w| {
            w.be32(uapi::chain::HOOK_NUM, Hook::number(*hook));
            w.be32(uapi::chain::HOOK_PRIORITY, *priority as u32);
        });
        w.be32(uapi::chain::POLICY, ACCEPT);
        w.string(uapi::chain::TYPE, ChainKind::as_str(*kind));
    }
}

/// The expressions of a rule, without the attribute that they are in.
pub(super) fn expressions(rule: &Rule) -> Vec<u8> {
    let mut writer = Writer { bytes: Vec::new(), sequence: 0, last: 0 };
    push_expressions(&mut writer, rule);
    writer.bytes
}

fn push_expressions(w: &mut Writer, rule: &Rule) {
    for expression in &rule.expressions {
        w.nest(uapi::LIST_ELEM, |w| {
            w.string(uapi::expr::NAME, Expr::name(expression));
            // The kernel lists this one without attributes, and what was sent must be found in what is listed.
            if *expression != Expr::Notrack {
                w.nest(uapi::expr::DATA, |w| push_expr(w, expression));
            }
        });
    }
}

fn push_rule(w: &mut Writer, rule: &Rule) {
    w.nest(uapi::rule::EXPRESSIONS, |w| push_expressions(w, rule));
    w.comment(uapi::rule::USERDATA, rule.comment.as_deref());
}

fn push_set(w: &mut Writer, table: &Table, set: &Set, id: u32) {
    use uapi::set;
    w.string(set::TABLE, &table.name);
    w.string(set::NAME, &set.name);
    let mut userdata = Vec::new();
    push_udata(&mut userdata, uapi::udata::SET_KEY_BYTEORDER, &byteorder(&set.key).to_ne_bytes());
    w.be32(set::FLAGS, set_flags(set));
    w.be32(set::KEY_TYPE, concatenated(&set.key));
    w.be32(set::KEY_LEN, Field::total(&set.key) as u32);
    match &set.data {
        SetData::None => {}
        SetData::Verdict => {
            w.be32(set::DATA_TYPE, set::DATA_VERDICT);
            w.be32(set::DATA_LEN, 0);
        }
        SetData::Fields(fields) => {
            w.be32(set::DATA_TYPE, concatenated(fields));
            w.be32(set::DATA_LEN, Field::total(fields) as u32);
            push_udata(&mut userdata, uapi::udata::SET_DATA_BYTEORDER, &byteorder(fields).to_ne_bytes());
        }
    }
    w.be32(set::ID, id);
    let ranges_of_fields = set.kind == SetKind::Intervals && set.key.len() > 1;
    if set.size.is_some() || ranges_of_fields {
        w.nest(set::DESC, |w| {
            set.size.into_iter().for_each(|size| w.be32(set::DESC_SIZE, size));
            if ranges_of_fields {
                w.nest(set::DESC_CONCAT, |w| {
                    for field in &set.key {
                        w.nest(uapi::LIST_ELEM, |w| w.be32(set::FIELD_LEN, field.length() as u32));
                    }
                });
            }
        });
    }
    if let Some(comment) = &set.comment {
        push_udata(&mut userdata, uapi::udata::SET_COMMENT, &zero_terminated(comment));
    }
    w.bytes(set::USERDATA, &userdata);
}

fn set_flags(set: &Set) -> u32 {
    use uapi::set;
    let map = if set.data == SetData::None { 0 } else { set::FLAG_MAP };
    map | match set.kind {
        SetKind::Plain => 0,
        SetKind::Intervals if set.key.len() > 1 => set::FLAG_INTERVAL | set::FLAG_CONCAT,
        SetKind::Intervals => set::FLAG_INTERVAL,
        SetKind::Dynamic => set::FLAG_TIMEOUT | set::FLAG_EVAL,
    }
}

/// The data type of a concatenation: 6 bits a field, the last one lowest.
fn concatenated(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |number, field| number << 6 | field.datatype())
}

fn byteorder(fields: &[Field]) -> u32 {
    if fields == [Field::Mark] { uapi::udata::HOST_ENDIAN } else { uapi::udata::BIG_ENDIAN }
}

/// What a request for one element says after the netlink header.
pub(super) fn lookup(table: &Table, set: &str, keys: &[Value]) -> Vec<u8> {
    let mut w = Writer { bytes: vec![table.family.number(), 0, 0, 0], sequence: 0, last: 0 };
    w.string(uapi::elem::LIST_TABLE, &table.name);
    w.string(uapi::elem::LIST_SET, set);
    w.nest(uapi::elem::LIST_ELEMENTS, |w| {
        for key in keys {
            w.nest(uapi::LIST_ELEM, |w| push_element(w, &Element::key(*key), false));
        }
    });
    w.bytes
}

fn push_elements(w: &mut Writer, kind: u16, more: u16, (table, set): (&Table, &str), elements: &[Element]) {
    let mut rest = elements.iter().peekable();
    while rest.peek().is_some() {
        w.message(kind, more, table.family.number(), |w| {
            w.string(uapi::elem::LIST_TABLE, &table.name);
            w.string(uapi::elem::LIST_SET, set);
            w.nest(uapi::elem::LIST_ELEMENTS, |w| {
                let begin = w.bytes.len();
                while w.bytes.len() - begin < MAX_ELEMENTS_BYTES {
                    let Some(element) = rest.next() else { break };
                    w.nest(uapi::LIST_ELEM, |w| push_element(w, element, kind == uapi::msg::NEW_ELEM));
                }
            });
        });
    }
}

fn push_element(w: &mut Writer, element: &Element, whole: bool) {
    w.nest(uapi::elem::KEY, |w| w.bytes(uapi::data::VALUE, element.key.as_bytes()));
    if let Some(end) = &element.end {
        w.nest(uapi::elem::KEY_END, |w| w.bytes(uapi::data::VALUE, end.as_bytes()));
    }
    if !whole {
        return;
    }
    match &element.data {
        Mapped::Nothing => {}
        Mapped::Value(value) => w.nest(uapi::elem::DATA, |w| w.bytes(uapi::data::VALUE, value.as_bytes())),
        Mapped::Verdict(verdict) => w.nest(uapi::elem::DATA, |w| push_verdict(w, verdict)),
    }
    w.comment(uapi::elem::USERDATA, element.comment.as_deref());
}

/// A verdict inside a data nest.
pub(super) fn push_verdict(w: &mut Writer, verdict: &Verdict) {
    w.nest(uapi::data::VERDICT, |w| {
        w.be32(uapi::data::VERDICT_CODE, verdict.code() as u32);
        if let Some(chain) = verdict.chain() {
            w.string(uapi::data::VERDICT_CHAIN, chain);
        }
    });
}

/// Appends one record of user data.
fn push_udata(buffer: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let length = value.len().min(usize::from(u8::MAX));
    buffer.extend_from_slice(&[kind, length as u8]);
    buffer.extend_from_slice(value.get(..length).unwrap_or_default());
}

/// A comment as the `nft` tool keeps it, cut at a character where it is too long.
fn zero_terminated(comment: &str) -> Vec<u8> {
    let mut length = comment.len().min(uapi::udata::MAX_COMMENT);
    while !comment.is_char_boundary(length) {
        length -= 1;
    }
    let mut bytes = comment.as_bytes().get(..length).unwrap_or_default().to_vec();
    bytes.push(0);
    bytes
}

/// Frames messages and attributes in one buffer, without a temporary for each nest.
pub(super) struct Writer {
    bytes: Vec<u8>,
    sequence: u32,
    /// Where the last message begins.
    last: usize,
}

impl Writer {
    /// The begin or end of a batch.
    fn envelope(&mut self, kind: u16) {
        let header = [0, 0, 0, uapi::SUBSYSTEM as u8];
        self.framed(kind, flags::REQUEST, header, |_| ());
    }

    fn message(&mut self, kind: u16, more: u16, family: u8, body: impl FnOnce(&mut Self)) {
        self.framed(uapi::SUBSYSTEM << 8 | kind, flags::REQUEST | more, [family, 0, 0, 0], body);
    }

    fn framed(&mut self, kind: u16, flags: u16, nfgenmsg: [u8; 4], body: impl FnOnce(&mut Self)) {
        let begin = self.bytes.len();
        crate::netlink::push_message(&mut self.bytes, kind, flags, self.sequence, &nfgenmsg);
        body(self);
        let length = (self.bytes.len() - begin) as u32;
        self.patch(begin, &length.to_ne_bytes());
        self.last = begin;
        self.sequence = self.sequence.wrapping_add(1);
    }

    fn acknowledge_last(&mut self) {
        const FLAGS_AT: usize = 6;
        let at = self.last + FLAGS_AT;
        if let Some(old) = self.bytes.get(at..).and_then(|bytes| bytes.first_chunk()) {
            let new = u16::from_ne_bytes(*old) | flags::ACK;
            self.patch(at, &new.to_ne_bytes());
        }
    }

    fn patch(&mut self, at: usize, new: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(at).zip(new) {
            *to = *from;
        }
    }

    pub(super) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let begin = self.bytes.len();
        self.bytes(kind | uapi::NESTED, &[]);
        body(self);
        let length = (self.bytes.len() - begin) as u16;
        self.patch(begin, &length.to_ne_bytes());
    }

    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        crate::netlink::push_attribute(&mut self.bytes, kind, value);
    }

    pub(super) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn string(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    fn comment(&mut self, kind: u16, comment: Option<&str>) {
        if let Some(comment) = comment {
            let mut userdata = Vec::new();
            push_udata(&mut userdata, uapi::udata::COMMENT, &zero_terminated(comment));
            self.bytes(kind, &userdata);
        }
    }

    /// A value in a data nest of `kind`.
    pub(super) fn value(&mut self, kind: u16, value: &Value) {
        self.nest(kind, |w| w.bytes(uapi::data::VALUE, value.as_bytes()));
    }
}

/// The `NFPROTO_*` number of an address family.
pub(super) fn nfproto(family: Family) -> u32 {
    u32::from(super::Family::from(family).number())
}
