use std::net::IpAddr;

use podwire_kernel::nftables::{
    Batch, Chain, ChainKind, Datum, Element, Field, Hook, Is, Kernel, Key, Nftables, Rule, Set, SetData, SetKind,
    Table, Value, priority,
};
use podwire_model::Family;
use serde::Deserialize;

use super::Plugin;
use crate::{
    Call, CniResult, Error, Result,
    elements::{ATTEMPTS, Elements, Held},
    error::all,
    owner,
};

/// See `firewall/README.md`.
pub struct Firewall;

const NAME: &str = "podwire-firewall";
const CONTAINERS: &str = "containers";
const FORWARD: &str = "forward";

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Fields {
    backend: Option<String>,
    iptables_admin_chain_name: Option<String>,
    firewalld_zone: Option<String>,
    ingress_policy: Option<String>,
}

impl Plugin for Firewall {
    fn add(&self, call: &Call) -> Result<CniResult> {
        check_fields(call)?;
        let alone = || Error::Config("firewall needs \"prevResult\": it is chained after another plugin".to_owned());
        let previous = call.previous.clone().ok_or_else(alone)?;
        let (mut kernel, owner) = (Kernel::open()?, owner::of(call));
        let added = addresses(&previous).try_for_each(|address| accept(&mut kernel, address, &owner));
        if added.is_err() {
            // What matters to the caller is why ADD failed.
            _ = release_all(&mut kernel, &|other| other == owner);
        }
        added.map(|()| previous)
    }

    fn del(&self, call: &Call) -> Result<()> {
        let Some(mut kernel) = Kernel::open_if_there()? else { return Ok(()) };
        let owner = owner::of(call);
        match &call.previous {
            Some(previous) => all(addresses(previous).map(|address| {
                elements(&mut kernel, Family::of(&address)).release_if_has(CONTAINERS, key(address), &owner)
            })),
            None => release_all(&mut kernel, &|other| other == owner),
        }
    }

    fn check(&self, call: &Call) -> Result<()> {
        let owner = owner::of(call);
        let mut kernel = Kernel::open()?;
        for address in addresses(call.required_previous()?) {
            let family = Family::of(&address);
            let wanted = [element(address, &owner)];
            if !elements(&mut kernel, family).missing(&wanted)?.is_empty() {
                return Err(Error::NotAsSetUp(format!("{address} is not in table {}", table(family))));
            }
            let found = kernel.rules(&table(family))?;
            let rules = rules(family);
            if found.len() != rules.len() || !found.iter().zip(&rules).all(|(info, rule)| info.does(rule)) {
                return Err(Error::NotAsSetUp(format!("the rules of table {} are not what they were", table(family))));
            }
        }
        Ok(())
    }

    fn gc(&self, call: &Call) -> Result<()> {
        let stale = owner::stale(call)?;
        let Some(mut kernel) = Kernel::open_if_there()? else { return Ok(()) };
        release_all(&mut kernel, &stale)
    }

    fn status(&self, call: &Call) -> Result<()> {
        check_fields(call)?;
        let unavailable = |error| Error::NotReady(format!("packets cannot be filtered: {error}"));
        Kernel::open().map(drop).map_err(unavailable)
    }
}

fn check_fields(call: &Call) -> Result<()> {
    let Fields { backend, iptables_admin_chain_name, firewalld_zone, ingress_policy } = call.config()?;
    let unsupported = |field, detail: &str| Err(Error::Unsupported { field, detail: detail.to_owned() });
    if backend.is_some_and(|backend| !matches!(backend.as_str(), "" | "nftables")) {
        return unsupported("backend", "rules are made in nftables; leave it out");
    }
    if iptables_admin_chain_name.is_some() {
        return unsupported("iptablesAdminChainName", "rules are made in nftables; leave it out");
    }
    if firewalld_zone.is_some() {
        return unsupported("firewalldZone", "rules are made in nftables; leave it out");
    }
    if ingress_policy.is_some_and(|policy| !matches!(policy.as_str(), "" | "open")) {
        return unsupported("ingressPolicy", "only \"open\" is");
    }
    Ok(())
}

/// Accepts what is forwarded from and to `address`. Whoever had the address before does not have it any more.
fn accept(kernel: &mut Kernel, address: IpAddr, owner: &str) -> Result<()> {
    let family = Family::of(&address);
    let wanted = [element(address, owner)];
    let mut elements = elements(kernel, family);
    let mut batch = Batch::new();
    for _ in 0..ATTEMPTS {
        elements.add(&mut batch, &wanted);
        match elements.nftables.commit(&batch) {
            Ok(()) => return Ok(()),
            Err(error) if error.is_not_found() => batch = layout(family),
            Err(error) if error.already_exists() => batch = Batch::new(),
            Err(error) => return Err(error.into()),
        }
        if let Some(held) = elements.get(CONTAINERS, key(address))? {
            elements.delete(&mut batch, &held);
        }
    }
    Err(Error::TryAgain(format!("the table {} is changing all the time", elements.table)))
}

/// Takes out, of both families, what belongs to owners of which `which` says so.
fn release_all(kernel: &mut Kernel, which: &dyn Fn(&str) -> bool) -> Result<()> {
    all([Family::V4, Family::V6].map(|family| elements(kernel, family).release_all(which)))
}

fn elements(nftables: &mut Kernel, family: Family) -> Elements<'_> {
    Elements { nftables, table: table(family), sets: &[CONTAINERS] }
}

fn addresses(result: &CniResult) -> impl Iterator<Item = IpAddr> {
    result.ips.iter().map(|ip| ip.address.addr())
}

fn key(address: IpAddr) -> Value {
    Value::concat(&[Datum::Addr(address)])
}

fn element(address: IpAddr, owner: &str) -> Held {
    (CONTAINERS, Element { comment: Some(owner.into()), ..Element::key(key(address)) })
}

fn table(family: Family) -> Table {
    Table::new(family.into(), NAME)
}

fn rules(family: Family) -> [Rule; 2] {
    const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
    [
        Rule::new(family).in_set(Is::Equal, &[Key::Source], CONTAINERS).accept(),
        Rule::new(family).in_set(Is::Equal, &[Key::Destination], CONTAINERS).ct_state(ESTABLISHED_OR_RELATED).accept(),
    ]
}

/// Makes the table with its rules, or, where they are there, makes the rules anew. Elements stay.
fn layout(family: Family) -> Batch {
    let table = table(family);
    let mut batch = Batch::new();
    batch.add_table(&table, Some("containers whose packets may be forwarded"));
    batch.add_set(
        &table,
        Set {
            name: CONTAINERS.into(),
            key: vec![Field::address(family)],
            data: SetData::None,
            kind: SetKind::Plain,
            size: None,
            comment: None,
        },
    );
    batch.add_chain(&table, Chain::base(FORWARD, ChainKind::Filter, Hook::Forward, priority::FILTER));
    batch.flush_chain(&table, FORWARD);
    for rule in rules(family) {
        batch.add_rule(&table, FORWARD, rule);
    }
    batch
}
