//! Writes what iptables-nft would write, straight to nf_tables.
//!
//! `iptables-nft-restore` takes time in proportion to the square of the number of chains; the kernel does not. What
//! is written here is the same, byte for byte, so that the programs list it, change it and delete it as their own.

mod attribute;
mod decode;
mod encode;

use std::collections::HashMap;

use podwire_model::Family;

use self::{
    attribute::Attributes,
    encode::{Encoded, encode, without_counts},
};
use super::{Edit, Listing, Rule, Table, prefix, saved::text_digest};
use crate::{
    Error, Result,
    netlink::{Protocol, Socket, attributes, flags, push_message},
    stable_hash,
};

/// Message types of `linux/netfilter/nf_tables.h`.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const DEL_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DEL_RULE: u16 = 8;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// A transaction is sent when it has so many bytes.
const ENOUGH: usize = 32 << 20;

/// A socket to nf_tables.
#[derive(Debug)]
pub(super) struct Native(Socket);

/// The rules of a chain, as encoded without counts, with their handles, in order.
type Listed = Vec<(Vec<u8>, u64)>;

/// What a table is called in nf_tables, and how errors call it.
#[derive(Clone, Copy)]
struct Place {
    family: Family,
    table: Table,
}

impl Native {
    /// For the network namespace that the calling thread is in.
    pub(super) fn open() -> Result<Self> {
        Ok(Self(Socket::open(Protocol::Netfilter)?))
    }

    /// Makes edits, as [`Iptables::edit`](super::Iptables::edit) says. Those that only the program can make are handed
    /// to `program`: with rules of kinds that are not known here.
    pub(super) fn edit(
        &mut self,
        (family, table): (Family, Table),
        edits: &mut dyn Iterator<Item = Edit>,
        mut program: impl FnMut(Edit) -> Result<()>,
    ) -> Result<()> {
        let place = Place { family, table };
        let mut batch = Batch::new(place);
        let mut listed = HashMap::new();
        let mut last: Option<(Edit, Vec<Encoded>)> = None;
        for edit in edits {
            if edit == Edit::Barrier {
                self.commit(&mut batch)?;
                listed.clear();
                // A packet goes by the generation, odd or even, that was current when it began. A transaction writes one
                // of both, chain by chain; a packet that is late finds its own written by the next transaction but one.
                // Replacing a chain by itself is a transaction in between: both have what was written before now.
                if let Some((edit, rules)) = last.take() {
                    self.push(&mut batch, &mut listed, &edit, &rules)?;
                    self.commit(&mut batch)?;
                }
                continue;
            }
            match encoded(&edit, place) {
                None => {
                    self.commit(&mut batch)?;
                    listed.clear();
                    program(edit)?;
                }
                Some(rules) => {
                    if matches!(edit, Edit::Delete { .. }) && batch.steps.iter().any(|(_, chain)| chain == edit.chain())
                    {
                        self.commit(&mut batch)?;
                        listed.clear();
                    }
                    self.push(&mut batch, &mut listed, &edit, &rules)?;
                    if batch.bytes.len() >= ENOUGH {
                        self.commit(&mut batch)?;
                        listed.clear();
                    }
                    if matches!(edit, Edit::Replace { .. }) && !rules.is_empty() {
                        last = Some((edit, rules));
                    }
                }
            }
        }
        self.commit(&mut batch)
    }

    fn push(
        &mut self,
        batch: &mut Batch,
        listed: &mut HashMap<String, Listed>,
        edit: &Edit,
        rules: &[Encoded],
    ) -> Result<()> {
        let chain = edit.chain();
        match edit {
            Edit::Replace { .. } => {
                batch.message(&mut self.0, chain, (NEW_CHAIN, flags::CREATE), |body| body.string(3, chain));
                batch.message(&mut self.0, chain, (DEL_RULE, 0), |body| body.string(2, chain));
                for rule in rules {
                    batch.rule(&mut self.0, chain, flags::APPEND, rule);
                }
            }
            Edit::Insert { .. } => {
                if let Some(base) = Base::of(batch.place.table, chain) {
                    batch.message(&mut self.0, chain, (NEW_CHAIN, flags::CREATE), |body| base.write(chain, body));
                }
                rules.iter().for_each(|rule| batch.rule(&mut self.0, chain, 0, rule));
            }
            Edit::Delete { rule, .. } => {
                if !listed.contains_key(chain) {
                    listed.insert(chain.to_owned(), self.list(batch.place, chain)?);
                }
                let found = listed.get_mut(chain).and_then(|listed| {
                    let wanted = rules.first()?;
                    let at = listed.iter().position(|(bytes, _)| *bytes == wanted.expressions)?;
                    Some(listed.remove(at).1)
                });
                let handle = found.ok_or_else(|| batch.place.no_such_rule(chain, rule))?;
                batch.message(&mut self.0, chain, (DEL_RULE, 0), |body| {
                    body.string(2, chain);
                    body.bytes(3, &handle.to_be_bytes());
                });
            }
            Edit::Remove { .. } => {
                batch.message(&mut self.0, chain, (DEL_RULE, 0), |body| body.string(2, chain));
                batch.message(&mut self.0, chain, (DEL_CHAIN, 0), |body| body.string(3, chain));
            }
            Edit::Barrier => {}
        }
        Ok(())
    }

    /// A table in short: chain by chain, since all rules at once can be a gigabyte.
    pub(super) fn listing(&mut self, family: Family, table: Table) -> Result<Listing> {
        let place = Place { family, table };
        let what = format_args!("list the chains of {}", prefix(family));
        let messages = self.0.dump(SUBSYSTEM << 8 | GET_CHAIN, 0, &[place.number(), 0, 0, 0], what)?;
        let named = |payload: &[u8]| {
            let text = |wanted| {
                let (_, value) = attributes(payload.get(4..)?).find(|(kind, _)| *kind == wanted)?;
                Some(String::from_utf8_lossy(value.strip_suffix(&[0])?).into_owned())
            };
            let (of, name) = (text(1)?, text(3)?);
            let counts = name.starts_with("KUBE-") || table.builtin_chains().contains(&name.as_str());
            (of == table.name() && counts).then_some(name)
        };
        let names: Vec<String> = messages.iter().filter_map(|message| named(message.payload)).collect();
        let mut listing = Listing::default();
        for name in names {
            let mut digests = Vec::new();
            for (expressions, _) in self.list(place, &name)? {
                digests.push(stable_hash(expressions.iter().copied()));
                listing.udp.extend(decode::udp(&expressions, family).map(|rule| (name.clone(), rule)));
            }
            listing.chains.insert(name, digests);
        }
        Ok(listing)
    }

    /// The rules of a chain.
    fn list(&mut self, place: Place, chain: &str) -> Result<Listed> {
        let mut body = Attributes(vec![place.number(), 0, 0, 0]);
        body.string(1, place.table.name());
        body.string(2, chain);
        let what = format_args!("list chain {chain} of table {} of {}", place.table, prefix(place.family));
        let messages = self.0.dump(SUBSYSTEM << 8 | GET_RULE, 0, &body.0, what)?;
        let rule = |payload: &[u8]| {
            let mut found = (Vec::new(), 0);
            for (kind, value) in attributes(payload.get(4..)?) {
                match kind {
                    3 => found.1 = u64::from_be_bytes(value.try_into().ok()?),
                    4 => found.0 = without_counts(value),
                    _ => {}
                }
            }
            Some(found)
        };
        Ok(messages.iter().filter_map(|message| rule(message.payload)).collect())
    }

    /// Sends the batch as one transaction and begins a new one.
    fn commit(&mut self, batch: &mut Batch) -> Result<()> {
        let full = std::mem::replace(batch, Batch::new(batch.place));
        let Some((last, _)) = full.steps.last().cloned() else { return Ok(()) };
        let place = full.place;
        let (bytes, steps) = full.finish(&mut self.0);
        let what = format_args!("change table {} of {}", place.table, prefix(place.family));
        let mut answer = self.0.batch(&bytes, what)?;
        if !answer.refused.is_empty() {
            let refusal = answer.refused.swap_remove(0);
            let step = steps.iter().find(|(sequence, _)| *sequence == refusal.sequence);
            let chain = step.map_or("?", |(_, chain)| chain);
            return Err(refusal.into_error(format_args!("{what}, chain {chain}")));
        }
        if answer.acknowledged.contains(&last) { Ok(()) } else { Err(Error::Overrun { what: what.to_string() }) }
    }
}

/// The digest of a rule by its expressions.
pub(super) fn digest(family: Family, rule: &Rule) -> u64 {
    match encode(rule, family) {
        Some(encoded) => stable_hash(encoded.expressions),
        None => text_digest(family, rule),
    }
}

/// The rules that an edit carries; `None` if only the program can make it.
fn encoded(edit: &Edit, place: Place) -> Option<Vec<Encoded>> {
    let rules = match edit {
        Edit::Insert { rule, .. } | Edit::Delete { rule, .. } => std::slice::from_ref(rule),
        _ if place.table.builtin_chains().contains(&edit.chain()) => return None,
        Edit::Replace { rules, .. } => rules.as_slice(),
        Edit::Remove { .. } | Edit::Barrier => &[],
    };
    rules.iter().map(|rule| encode(rule, place.family)).collect()
}

impl Place {
    const fn number(self) -> u8 {
        match self.family {
            Family::V4 => libc::AF_INET as u8,
            Family::V6 => libc::AF_INET6 as u8,
        }
    }

    fn no_such_rule(self, chain: &str, rule: &Rule) -> Error {
        let Self { family, table } = self;
        let what = format_args!("delete {} from chain {chain} of table {table}", rule.display(family)).to_string();
        Error::refused(what, libc::ENOENT)
    }
}

/// A chain that the kernel calls, made as the program makes it when the first rule comes.
struct Base {
    kind: &'static str,
    hook: u32,
    priority: i32,
}

impl Base {
    fn of(table: Table, chain: &str) -> Option<Self> {
        const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
        let hook = HOOKS.iter().position(|name| *name == chain)? as u32;
        let (kind, priority) = match (table, chain) {
            (Table::Nat, "PREROUTING" | "OUTPUT") => ("nat", -100),
            (Table::Nat, _) => ("nat", 100),
            (Table::Filter, _) => ("filter", 0),
            (Table::Mangle, "OUTPUT") => ("route", -150),
            (Table::Mangle, _) => ("filter", -150),
            (Table::Raw, _) => ("filter", -300),
        };
        Some(Self { kind, hook, priority })
    }

    /// Without a policy: that of a chain which is there already stays.
    fn write(&self, chain: &str, body: &mut Attributes) {
        body.string(3, chain);
        body.nest(4 | NESTED, |hook| {
            hook.be32(1, self.hook);
            hook.bytes(2, &self.priority.to_be_bytes());
        });
        body.string(7, self.kind);
    }
}

/// Messages of one transaction.
struct Batch {
    place: Place,
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
    /// The sequence number of each message, and the chain that it is about.
    steps: Vec<(u32, String)>,
}

impl Batch {
    const fn new(place: Place) -> Self {
        Self { place, bytes: Vec::new(), last: 0, steps: Vec::new() }
    }

    fn message(
        &mut self,
        socket: &mut Socket,
        chain: &str,
        (kind, more): (u16, u16),
        fill: impl FnOnce(&mut Attributes),
    ) {
        if self.bytes.is_empty() {
            self.envelope(socket, BATCH_BEGIN);
            self.append(socket, "", (NEW_TABLE, flags::CREATE), |_| ());
        }
        self.append(socket, chain, (kind, more), fill);
    }

    fn append(
        &mut self,
        socket: &mut Socket,
        chain: &str,
        (kind, more): (u16, u16),
        fill: impl FnOnce(&mut Attributes),
    ) {
        let sequence = socket.next_sequence();
        let mut body = Attributes(Vec::with_capacity(1024));
        body.0.extend_from_slice(&[self.place.number(), 0, 0, 0]);
        body.string(1, self.place.table.name());
        fill(&mut body);
        self.last = self.bytes.len();
        push_message(&mut self.bytes, SUBSYSTEM << 8 | kind, flags::REQUEST | more, sequence, &body.0);
        self.steps.push((sequence, chain.to_owned()));
    }

    fn rule(&mut self, socket: &mut Socket, chain: &str, more: u16, rule: &Encoded) {
        self.message(socket, chain, (NEW_RULE, flags::CREATE | more), |body| {
            body.string(2, chain);
            body.bytes(4, &rule.expressions);
            if let Some(protocol) = rule.protocol {
                body.nest(5, |compat| {
                    compat.be32(1, protocol);
                    compat.be32(2, 0);
                });
            }
        });
    }

    fn envelope(&mut self, socket: &mut Socket, kind: u16) {
        let header = [0, 0, 0, SUBSYSTEM as u8];
        push_message(&mut self.bytes, kind, flags::REQUEST, socket.next_sequence(), &header);
    }

    /// The transaction, whose last change is acknowledged.
    fn finish(mut self, socket: &mut Socket) -> (Vec<u8>, Vec<(u32, String)>) {
        const FLAGS_AT: usize = 6;
        if let Some(low) = self.bytes.get_mut(self.last + FLAGS_AT) {
            *low |= flags::ACK as u8;
        }
        self.envelope(socket, BATCH_END);
        (self.bytes, self.steps)
    }
}

#[cfg(test)]
mod tests {
    use podwire_model::Family::{V4, V6};

    use super::*;
    use crate::{
        iptables::{Backend, Iptables as _, Real},
        test_support::in_new_netns,
    };

    /// Every rule that is written natively.
    const RULES: &[&str] = &[
        "! -s 10.0.0.0/8 -d 10.96.0.1/32 -p tcp -m comment --comment \"ns/x:p cluster IP\" -m tcp --dport 80 -j KUBE-B",
        "-s 10.244.128.0/17 ! -i cni+ -m statistic --mode random --probability 0.33333333349 -j KUBE-B",
        "-s 10.0.0.0/7 -o eth0 -m statistic --mode random --probability 0.50000000000 -j KUBE-B",
        "! -d ::1/128 -m addrtype --dst-type LOCAL -j KUBE-B",
        "-s fd00:10:244::/61 -d fd00::/8 -p udp -m udp ! --dport 53 -g KUBE-B",
        "-p tcp -m recent --set --name KUBE-B --mask MASK --rsource -m tcp -j DNAT --to-destination ADDRESS",
        "-p udp -m comment --comment x -m udp -j DNAT --to-destination ADDRESS",
        "-p sctp -m comment --comment x -m sctp -j DNAT --to-destination ADDRESS",
        "-p sctp -m sctp ! --dport 5 -j ACCEPT",
        "-p sctp -m sctp --dport 5 -j ACCEPT",
        "-i eth0 -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-m mark --mark 0x4000 -j RETURN",
        "-j MARK --set-xmark 0x4000/0x0",
        "-j MARK --set-xmark 0x4000/0x4000",
        "-m comment --comment x -j MASQUERADE --random-fully",
        "-j MASQUERADE",
        "-m addrtype ! --src-type LOCAL ! --dst-type UNICAST -j KUBE-B",
        "-m recent --rcheck --seconds 10800 --reap --name KUBE-B --mask MASK --rsource -j KUBE-B",
        "-m comment --comment \"just text\"",
        "! -p tcp -j RETURN",
        "-m conntrack --ctstate INVALID -j RETURN",
        "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT",
        "-m conntrack --ctstate NEW,UNTRACKED,SNAT",
        "REJECT",
        "DROP",
    ];

    fn rules(family: Family) -> Vec<(Table, Rule)> {
        let (mask, address) = match family {
            V4 => ("255.255.255.255", "10.1.1.1:80"),
            V6 => ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "[fd00::9]:80"),
        };
        let of_family = |rule: &&&str| match family {
            V4 => !rule.contains("::"),
            V6 => !rule.contains("10.") && !rule.contains("s 10"),
        };
        let texts = RULES.iter().filter(of_family).map(|rule| rule.replace("MASK", mask).replace("ADDRESS", address));
        texts
            .map(|text| match text.as_str() {
                "REJECT" | "DROP" => (Table::Filter, format!("-j {text}").parse().unwrap()),
                _ => (Table::Nat, text.parse().unwrap()),
            })
            .collect()
    }

    fn edits(family: Family, table: Table) -> Vec<Edit> {
        let rules = rules(family).into_iter().filter(|(of, _)| *of == table).map(|(_, rule)| rule).collect();
        let replace = |chain: &str, rules| Edit::Replace { chain: chain.to_owned(), rules };
        vec![replace("KUBE-B", Vec::new()), replace("KUBE-A", rules)]
    }

    /// What the kernel has of a chain, to the byte.
    fn listed(family: Family, table: Table) -> Listed {
        Native::open().unwrap().list(Place { family, table }, "KUBE-A").unwrap()
    }

    #[test]
    fn what_is_written_is_what_the_program_writes() {
        for family in [V4, V6] {
            in_new_netns(|| {
                let mut program = Real::open(Some(Backend::Nft)).unwrap();
                let mut native = Native::open().unwrap();
                for table in [Table::Nat, Table::Filter] {
                    let text = super::super::edit::text(family, table, &mut edits(family, table).into_iter());
                    program.restore(family, &text).unwrap();
                    let theirs = listed(family, table);
                    let saved = program.save(family, table).unwrap();
                    native
                        .edit((family, table), &mut edits(family, table).into_iter(), |edit| panic!("{edit:?}"))
                        .unwrap();
                    let ours = listed(family, table);
                    assert_eq!(ours.len(), theirs.len());
                    for ((ours, theirs), rule) in ours.iter().zip(&theirs).zip(saved.rules("KUBE-A")) {
                        assert_eq!(hex(&ours.0), hex(&theirs.0), "{rule}");
                    }
                    assert_eq!(program.save(family, table).unwrap(), saved);
                }
            });
        }
    }

    #[test]
    fn chains_of_the_kernel_are_made_as_the_program_makes_them() {
        in_new_netns(|| {
            let mut native = Native::open().unwrap();
            let mut program = Real::open(Some(Backend::Nft)).unwrap();
            for (family, table) in [V4, V6].into_iter().flat_map(|family| Table::ALL.map(|table| (family, table))) {
                let insert =
                    |chain: &str, text: &str| Edit::Insert { chain: chain.to_owned(), rule: text.parse().unwrap() };
                for chain in table.builtin_chains() {
                    let mut edits = [insert(chain, "-j ACCEPT"), insert(chain, "-p tcp")].into_iter();
                    native.edit((family, table), &mut edits, |edit| panic!("{edit:?}")).unwrap();
                    assert_eq!(program.save(family, table).unwrap().rules(chain), ["-p tcp", "-j ACCEPT"]);
                    program.restore(family, &format!("*{table}\n-D {chain} -p tcp\nCOMMIT\n")).unwrap();
                    if table == Table::Filter {
                        program.restore(family, &format!("*{table}\n:{chain} DROP [0:0]\nCOMMIT\n")).unwrap();
                    }
                    let delete = Edit::Delete { chain: (*chain).to_owned(), rule: "-j ACCEPT".parse().unwrap() };
                    let mut edits = [insert(chain, "-p udp"), delete.clone()].into_iter();
                    native.edit((family, table), &mut edits, |edit| panic!("{edit:?}")).unwrap();
                    let saved = program.save(family, table).unwrap();
                    assert_eq!(saved.rules(chain), ["-p udp"]);
                    let policy = if table == Table::Filter { "DROP" } else { "ACCEPT" };
                    assert_eq!(saved.chains[*chain].policy.as_deref(), Some(policy), "an administrator's policy stays");
                    let refused = native.edit((family, table), &mut [delete].into_iter(), |edit| panic!("{edit:?}"));
                    assert!(refused.unwrap_err().is_not_found());
                }
            }
        });
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.chunks(4).map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + " ").collect()
    }
}
