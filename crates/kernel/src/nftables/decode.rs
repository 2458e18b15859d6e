//! What the kernel lists, as values. Pure; never panics on bytes from outside.

use podwire_model::Name;

use super::{
    Base, Chain, ChainKind, Element, Family, Hook, Mapped, RuleInfo, SetInfo, Table, TableInfo, Value, Verdict, uapi,
};
use crate::netlink::attributes;

/// Bytes of `nfgenmsg`, which comes before the attributes.
const NFGENMSG: usize = 4;

/// A table; `None` for a family that Podwire does not use.
pub(super) fn table(payload: &[u8]) -> Option<TableInfo> {
    let (family, body) = split(payload)?;
    let name = string(find(body, uapi::table::NAME)?)?;
    let comment = find(body, uapi::table::USERDATA).and_then(|data| record(data, uapi::udata::COMMENT));
    Some(TableInfo { table: Table { family, name: name.into() }, comment })
}

/// A chain of `of`; `None` for those of other tables. A base chain of an unknown kind or hook has no base here.
pub(super) fn chain(payload: &[u8], of: &Table) -> Option<Chain> {
    let body = in_table(payload, of, uapi::chain::TABLE)?;
    let name = string(find(body, uapi::chain::NAME)?)?;
    let base = find(body, uapi::chain::HOOK).and_then(|hook| {
        let kind = match string(find(body, uapi::chain::TYPE)?)? {
            "filter" => ChainKind::Filter,
            "nat" => ChainKind::Nat,
            _ => return None,
        };
        let number = be32(find(hook, uapi::chain::HOOK_NUM)?)?;
        let priority = be32(find(hook, uapi::chain::HOOK_PRIORITY)?)? as i32;
        Some(Base { kind, hook: Hook::from_number(number)?, priority })
    });
    Some(Chain { name: name.into(), base })
}

/// A rule of `of`; `None` for those of other tables.
pub(super) fn rule(payload: &[u8], of: &Table) -> Option<RuleInfo> {
    let body = in_table(payload, of, uapi::rule::TABLE)?;
    let chain = string(find(body, uapi::rule::CHAIN)?)?;
    let handle = u64::from_be_bytes(*find(body, uapi::rule::HANDLE)?.first_chunk()?);
    let comment = find(body, uapi::rule::USERDATA).and_then(|data| record(data, uapi::udata::COMMENT));
    let list = find(body, uapi::rule::EXPRESSIONS).unwrap_or_default();
    let expressions = attributes(list)
        .filter_map(|(_, expression)| string(find(expression, uapi::expr::NAME)?).map(str::to_owned))
        .collect();
    Some(RuleInfo { chain: chain.into(), handle, comment, expressions, encoded: list.to_vec() })
}

/// A set or map of `of`; `None` for those of other tables.
pub(super) fn set(payload: &[u8], of: &Table) -> Option<SetInfo> {
    let body = in_table(payload, of, uapi::set::TABLE)?;
    let name = string(find(body, uapi::set::NAME)?)?;
    let size = find(body, uapi::set::DESC).and_then(|desc| be32(find(desc, uapi::set::DESC_SIZE)?));
    let comment = find(body, uapi::set::USERDATA).and_then(|data| record(data, uapi::udata::SET_COMMENT));
    let count = find(body, uapi::set::COUNT).and_then(be32);
    Some(SetInfo { name: name.into(), size, count, comment })
}

/// The number of the ruleset's state.
pub(super) fn generation(payload: &[u8]) -> Option<u32> {
    be32(find(payload.get(NFGENMSG..)?, uapi::GENERATION_ID)?)
}

/// Whether a notification is about one of `tables`. (Every kind of object has the name of its table first.)
pub(super) fn is_about(payload: &[u8], tables: &[Table]) -> bool {
    let Some((family, body)) = split(payload) else { return false };
    let name = find(body, uapi::table::NAME).and_then(string);
    tables.iter().any(|table| table.family == family && name == Some(&*table.name))
}

/// The elements in one message of a dump. Those of a shape that Podwire never makes (catch-all, keys longer than any of ours)
/// are left out.
pub(super) fn elements(payload: &[u8]) -> impl Iterator<Item = Element> {
    let list = split(payload).and_then(|(_, body)| find(body, uapi::elem::LIST_ELEMENTS)).unwrap_or_default();
    attributes(list).filter_map(|(_, element)| self::element(element))
}

fn element(body: &[u8]) -> Option<Element> {
    let key = value(find(body, uapi::elem::KEY)?)?;
    let data = match find(body, uapi::elem::DATA) {
        None => Mapped::Nothing,
        Some(data) => match find(data, uapi::data::VERDICT) {
            Some(nest) => Mapped::Verdict(verdict(nest)?),
            None => Mapped::Value(value(data)?),
        },
    };
    let end = find(body, uapi::elem::KEY_END).and_then(value);
    let comment = find(body, uapi::elem::USERDATA).and_then(|data| record(data, uapi::udata::COMMENT));
    Some(Element { key, end, data, comment: comment.map(Name::from) })
}

fn value(data: &[u8]) -> Option<Value> {
    let bytes = find(data, uapi::data::VALUE)?;
    (bytes.len() <= Value::MAX).then(|| Value::from_bytes(bytes))
}

fn verdict(nest: &[u8]) -> Option<Verdict> {
    let chain = || find(nest, uapi::data::VERDICT_CHAIN).and_then(string).map(Name::from);
    match be32(find(nest, uapi::data::VERDICT_CODE)?)? as i32 {
        0 => Some(Verdict::Drop),
        1 => Some(Verdict::Accept),
        -3 => chain().map(Verdict::Jump),
        -4 => chain().map(Verdict::Goto),
        -5 => Some(Verdict::Return),
        _ => None,
    }
}

fn split(payload: &[u8]) -> Option<(Family, &[u8])> {
    let family = Family::from_number(*payload.first()?)?;
    Some((family, payload.get(NFGENMSG..)?))
}

/// The attributes of a message about something in table `of`.
fn in_table<'a>(payload: &'a [u8], of: &Table, attribute: u16) -> Option<&'a [u8]> {
    let (family, body) = split(payload)?;
    let name = string(find(body, attribute)?)?;
    (family == of.family && name == &*of.name).then_some(body)
}

fn find(body: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(body).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn string(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    std::str::from_utf8(bytes.get(..end)?).ok()
}

fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.first_chunk()?))
}

/// One record of the `nft` tool's user data, as text.
fn record(mut userdata: &[u8], kind: u8) -> Option<String> {
    while let [found, length, rest @ ..] = userdata {
        let value = rest.get(..usize::from(*length))?;
        if *found == kind {
            return string(value).map(str::to_owned);
        }
        userdata = rest.get(usize::from(*length)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let of = Table::new(Family::Ip, "podwire");
            let _ = (table(&bytes), chain(&bytes, &of), rule(&bytes, &of), set(&bytes, &of), record(&bytes, 7));
            let _ = (generation(&bytes), is_about(&bytes, &[of]));
            prop_assert!(elements(&bytes).count() <= bytes.len());
        }
    }
}
