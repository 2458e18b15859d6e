//! `ipMasq`: what a container sends beyond its own network leaves with the host's address.
//!
//! One nftables table a family. A map has the containers' addresses, so that a packet finds its rule at once however many
//! there are, and leads to a chain for each of their networks. The comment on an element says whose it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podwire_kernel::nftables::{
    Batch, Chain, ChainKind, Datum, Element, Field, Hook, Is, Kernel, Key, Mapped, Nftables, Rule, Set, SetData,
    SetKind, Table, Value, Verdict, priority,
};
use podwire_model::{Family, IpNet};

use crate::{Call, Error, IpConfig, Result, error::all, owner};

const NAME: &str = "podwire-masquerade";
const POSTROUTING: &str = "postrouting";
const PODS: &str = "pods";
/// How often to begin again after somebody else changed what was looked at. Each time somebody got further.
const ATTEMPTS: usize = 8;

/// Checks `ipMasqBackend`.
///
/// # Errors
/// [`Error::Unsupported`] for iptables, [`Error::Config`] for what is unknown.
pub fn check_backend(backend: Option<&str>) -> Result<()> {
    match backend {
        None | Some("nftables") => Ok(()),
        Some("iptables") => {
            let detail = "only \"nftables\" is; leave it out".to_owned();
            Err(Error::Unsupported { field: "ipMasqBackend", detail })
        }
        Some(other) => Err(Error::Config(format!("\"ipMasqBackend\" is {other:?}: expected \"nftables\""))),
    }
}

/// (ADD) Masquerades for the container's addresses.
///
/// # Errors
/// The kernel has no nftables, or no masquerading of a family. Nothing was changed then.
pub fn add(call: &Call, ips: &[IpConfig]) -> Result<()> {
    put(&mut Kernel::open()?, &owner::of(call), ips)
}

/// (DEL) Takes out what this attachment has.
pub fn remove(call: &Call) -> Result<()> {
    let Some(mut kernel) = Kernel::open_if_there()? else { return Ok(()) };
    let owner = owner::of(call);
    match &call.previous {
        Some(previous) => take(&mut kernel, &owner, &previous.ips),
        // Runtimes that were restarted may not know the addresses.
        None => take_all(&mut kernel, &|comment| comment == owner),
    }
}

/// (GC) Takes out what is of this network and of no valid attachment.
pub fn remove_stale(call: &Call) -> Result<()> {
    let stale = owner::stale(call)?;
    Kernel::open_if_there()?.map_or(Ok(()), |mut kernel| take_all(&mut kernel, &stale))
}

/// (CHECK) Whether the addresses are masqueraded for.
///
/// # Errors
/// [`Error::NotAsSetUp`].
pub fn check(call: &Call, ips: &[IpConfig]) -> Result<()> {
    let (mut kernel, owner) = (Kernel::open()?, owner::of(call));
    for ip in ips {
        match get(&mut kernel, ip)? {
            Some(element) if element.comment.as_deref() == Some(&owner) => {}
            _ => return Err(Error::NotAsSetUp(format!("{} is not masqueraded", ip.address.addr()))),
        }
    }
    Ok(())
}

/// Whether the kernel has nftables, for STATUS.
///
/// # Errors
/// [`Error::NotReady`].
pub fn status() -> Result<()> {
    let unavailable = |error| Error::NotReady(format!("ipMasq needs nftables: {error}"));
    Kernel::open().map(drop).map_err(unavailable)
}

fn put(nftables: &mut dyn Nftables, owner: &str, ips: &[IpConfig]) -> Result<()> {
    let mut batch = Batch::new();
    for _ in 0..ATTEMPTS {
        for ip in ips {
            batch.add_elements(&table_of(ip), PODS, vec![element(ip, owner)]);
        }
        match nftables.commit(&batch) {
            Ok(()) => return Ok(()),
            // Usually all is there but the elements.
            Err(error) if error.is_not_found() => batch = layout(ips),
            Err(error) if error.already_exists() => batch = Batch::new(),
            Err(error) => return Err(error.into()),
        }
        // An address has one owner, and this one has it from the IPAM plugin: who had it before is gone.
        for ip in ips {
            if let Some(before) = get(nftables, ip)? {
                delete(&mut batch, ip, before);
            }
        }
    }
    Err(Error::TryAgain(format!("the nftables table {NAME} is changing all the time")))
}

fn take(nftables: &mut dyn Nftables, owner: &str, ips: &[IpConfig]) -> Result<()> {
    retry(nftables, |nftables, batch| {
        for ip in ips {
            if let Some(element) = get(nftables, ip)?.filter(|element| element.comment.as_deref() == Some(owner)) {
                delete(batch, ip, element);
            }
        }
        Ok(())
    })
}

fn take_all(nftables: &mut dyn Nftables, which: &dyn Fn(&str) -> bool) -> Result<()> {
    all([Family::V4, Family::V6].map(|family| {
        retry(nftables, |nftables, batch| {
            let mut elements = match nftables.elements(&table(family), PODS) {
                Err(error) if error.is_not_found() => return Ok(()),
                elements => elements?,
            };
            elements.retain(|element| element.comment.as_deref().is_some_and(which));
            batch.delete_elements(&table(family), PODS, elements);
            Ok(())
        })
    }))
}

/// Commits what `find` finds to delete; begins again when somebody else was sooner.
fn retry(nftables: &mut dyn Nftables, mut find: impl FnMut(&mut dyn Nftables, &mut Batch) -> Result<()>) -> Result<()> {
    let mut committed = Ok(());
    for _ in 0..ATTEMPTS {
        let mut batch = Batch::new();
        find(nftables, &mut batch)?;
        committed = nftables.commit(&batch);
        match &committed {
            Err(error) if error.is_not_found() => {}
            _ => break,
        }
    }
    Ok(committed?)
}

fn delete(batch: &mut Batch, ip: &IpConfig, element: Element) {
    batch.delete_elements(&table_of(ip), PODS, vec![element]);
}

/// The element of an address, whosever it is.
fn get(nftables: &mut dyn Nftables, ip: &IpConfig) -> Result<Option<Element>> {
    match nftables.element(&table_of(ip), PODS, &key(ip)) {
        Err(error) if error.is_not_found() => Ok(None),
        element => Ok(element?),
    }
}

fn table(family: Family) -> Table {
    Table::new(family.into(), NAME)
}

fn table_of(ip: &IpConfig) -> Table {
    table(Family::of(&ip.address.addr()))
}

fn key(ip: &IpConfig) -> Value {
    Value::concat(&[Datum::Addr(ip.address.addr())])
}

fn element(ip: &IpConfig, owner: &str) -> Element {
    let verdict = Verdict::Goto(chain_of(ip.address).into());
    Element { comment: Some(owner.into()), ..Element::map(key(ip), Mapped::Verdict(verdict)) }
}

/// The chain for containers of a network; `nft` takes no colons in names.
fn chain_of(address: IpNet) -> String {
    format!("beyond-{}", address.trunc()).replace(':', "-")
}

/// One transaction that makes the tables with the chains for the networks of `ips`, or makes their rules anew. Elements
/// stay.
fn layout(ips: &[IpConfig]) -> Batch {
    let mut batch = Batch::new();
    for ip in ips {
        let family = Family::of(&ip.address.addr());
        let table = table(family);
        batch.add_table(&table, Some("containers that the outside knows by the host's address"));
        batch.add_set(&table, pods(family));
        let base = Chain::base(POSTROUTING, ChainKind::Nat, Hook::Postrouting, priority::SRCNAT);
        let beyond = Rule::new(family)
            .destination(Is::Not, ip.address.trunc())
            .destination(Is::Not, multicast(family))
            .masquerade(0);
        let rules = [
            (base, Rule::new(family).verdict_map(&[Key::Source], PODS)),
            (Chain::regular(chain_of(ip.address)), beyond),
        ];
        for (chain, rule) in rules {
            let name = chain.name.clone();
            batch.add_chain(&table, chain);
            batch.flush_chain(&table, name.clone());
            batch.add_rule(&table, name, rule);
        }
    }
    batch
}

fn pods(family: Family) -> Set {
    Set {
        name: PODS.into(),
        key: vec![Field::address(family)],
        data: SetData::Verdict,
        kind: SetKind::Plain,
        size: None,
        comment: None,
    }
}

fn multicast(family: Family) -> IpNet {
    let (address, length) = match family {
        Family::V4 => (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
        Family::V6 => (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    };
    IpNet::new_assert(address, length)
}

#[cfg(test)]
mod tests;
