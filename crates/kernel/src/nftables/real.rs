//! The kernel's own nf_tables.

use super::{
    Batch, Chain, Element, Nftables, RuleInfo, SetInfo, Table, TableInfo, Value, decode,
    encode::{Encoded, encode, lookup},
    uapi,
    watch::{Watch, generation},
};
use crate::{
    Error, Result,
    netlink::{Messages, Protocol, Refusal, Socket, push_attribute},
};

/// nf_tables of the network namespace that the opening thread was in.
#[derive(Debug)]
pub struct Kernel {
    socket: Socket,
    watch: Option<Watch>,
}

/// Transactions of more bytes are not watched: to write the notifications would take as long as the rest.
const WATCHED: usize = 64 << 10;

/// Keys that are looked up with one request: each is answered by a message of its own, which the socket's queue must hold.
const LOOKUPS: usize = 256;

impl Kernel {
    /// Opens the netlink socket, and has nf_tables answer.
    ///
    /// # Errors
    /// When the kernel has no nf_tables ([`Error::is_unsupported`]), or the caller may not change it.
    pub fn open() -> Result<Self> {
        // Connection tracking has the protocol, too: that there is a socket does not say that there is nf_tables.
        let opened = Socket::open(Protocol::Netfilter)
            .and_then(|mut socket| generation(&mut socket).map(|_| Self { socket, watch: None }));
        opened.map_err(|error| match error.errno() {
            // No netfilter netlink (socket(2)); no such subsystem of it (nfnetlink_rcv_msg).
            Some(libc::EPROTONOSUPPORT | libc::EINVAL) => {
                Error::refused("use nftables, since the kernel has no nf_tables", libc::EOPNOTSUPP)
            }
            _ => error,
        })
    }

    /// As [`Kernel::open`]; `None` when the kernel has no nf_tables, and so nothing in it.
    ///
    /// # Errors
    /// All others.
    pub fn open_if_there() -> Result<Option<Self>> {
        match Self::open() {
            Err(error) if error.is_unsupported() => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn dump(&mut self, kind: u16, table: Option<&Table>, names: &[(u16, &str)], what: &str) -> Result<Messages> {
        let family = table.map_or(0, |table| table.family.number());
        let mut payload = vec![family, 0, 0, 0];
        for (attribute, name) in names {
            push_attribute(&mut payload, *attribute, format!("{name}\0").as_bytes());
        }
        let request = uapi::SUBSYSTEM << 8 | kind;
        match table {
            Some(table) => self.socket.dump(request, 0, &payload, format_args!("list {what} of table {table}")),
            None => self.socket.dump(request, 0, &payload, format_args!("list {what}")),
        }
    }
}

impl Nftables for Kernel {
    fn commit(&mut self, batch: &Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let first = self.socket.next_sequence();
        let encoded = encode(batch, first);
        // The socket's counter must pass the numbers that this batch uses, so that a late answer is never mistaken.
        for _ in 0..=encoded.steps.len() {
            self.socket.next_sequence();
        }
        let what = "change nftables";
        let send = |socket: &mut Socket| {
            let mut answer = socket.batch(&encoded.bytes, format_args!("{what}"))?;
            if !answer.refused.is_empty() {
                return Err(refused(batch, &encoded, answer.refused.swap_remove(0)));
            }
            let done = answer.acknowledged.contains(&encoded.last());
            if done { Ok(()) } else { Err(Error::Overrun { what: what.to_owned() }) }
        };
        match &mut self.watch {
            Some(watch) if encoded.bytes.len() > WATCHED => watch.pause_for(&mut self.socket, send),
            _ => send(&mut self.socket),
        }
    }

    fn tables(&mut self) -> Result<Vec<TableInfo>> {
        let messages = self.dump(uapi::msg::GET_TABLE, None, &[], "nftables tables")?;
        Ok(messages.iter().filter_map(|message| decode::table(message.payload)).collect())
    }

    fn chains(&mut self, table: &Table) -> Result<Vec<Chain>> {
        let names = [(uapi::chain::TABLE, &*table.name)];
        let messages = self.dump(uapi::msg::GET_CHAIN, Some(table), &names, "chains")?;
        Ok(messages.iter().filter_map(|message| decode::chain(message.payload, table)).collect())
    }

    fn rules(&mut self, table: &Table) -> Result<Vec<RuleInfo>> {
        let names = [(uapi::rule::TABLE, &*table.name)];
        let messages = self.dump(uapi::msg::GET_RULE, Some(table), &names, "rules")?;
        Ok(messages.iter().filter_map(|message| decode::rule(message.payload, table)).collect())
    }

    fn sets(&mut self, table: &Table) -> Result<Vec<SetInfo>> {
        let names = [(uapi::set::TABLE, &*table.name)];
        let messages = self.dump(uapi::msg::GET_SET, Some(table), &names, "sets")?;
        Ok(messages.iter().filter_map(|message| decode::set(message.payload, table)).collect())
    }

    fn each_element(&mut self, table: &Table, set: &str, each: &mut dyn FnMut(Element)) -> Result<()> {
        let names = [(uapi::elem::LIST_TABLE, &*table.name), (uapi::elem::LIST_SET, set)];
        let messages = self.dump(uapi::msg::GET_ELEM, Some(table), &names, &format!("elements of {set}"))?;
        messages.iter().flat_map(|message| decode::elements(message.payload)).for_each(each);
        Ok(())
    }

    fn elements_at(&mut self, table: &Table, set: &str, keys: &[Value]) -> Result<Option<Vec<Element>>> {
        let what = format_args!("get elements of {set} in nftables table {table}");
        let request = uapi::SUBSYSTEM << 8 | uapi::msg::GET_ELEM;
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(LOOKUPS) {
            match self.socket.request(request, 0, &lookup(table, set, keys), what) {
                Ok(messages) => found.extend(messages.iter().flat_map(|message| decode::elements(message.payload))),
                // The kernel has one error for a missing element, set and table.
                Err(error) if error.is_not_found() && self.sets(table)?.iter().any(|info| &*info.name == set) => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(found))
    }

    fn changed_by_others(&mut self, tables: &[Table]) -> Result<bool> {
        match &mut self.watch {
            Some(watch) => watch.changed(self.socket.port()?, tables),
            watch => {
                *watch = Some(Watch::open()?);
                Ok(false)
            }
        }
    }
}

fn refused(batch: &Batch, encoded: &Encoded, refusal: Refusal) -> Error {
    match encoded.step(refusal.sequence).and_then(|step| batch.steps.get(step)) {
        Some((table, action)) => refusal.into_error(format_args!("{action} in nftables table {table}")),
        None => refusal.into_error(format_args!("commit a change of nftables")),
    }
}
