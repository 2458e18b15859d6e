//! What is in the kernel for it: addresses, and a table of nftables.
//!
//! Leftovers are told by their names: the interface, and table `inet podwire-dns`. Where addresses are on `lo`, the
//! table's comment says which of them are ours.

use std::net::IpAddr;

use anyhow::{Context, bail};
use podwire_kernel::{
    Result, ResultExt,
    nftables::{Batch, Chain, ChainKind, Family as TableFamily, Hook, Is, Nftables, Rule, Side, Table, priority},
    route::{Address, LinkChange, LinkKind, NewLink, NewLinkKind, Route, Scope},
};
use podwire_model::{Family, IpNet, Protocol};
use tracing::info;

/// The port of DNS.
const PORT: u16 = 53;
/// Begins the table's comment where addresses are on `lo`; they follow.
const ON_LO: &str = "on lo: ";
/// The longest comment that nftables keeps, bytes.
const MAX_COMMENT: usize = 127;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Network {
    /// The addresses to answer at.
    pub addresses: Vec<IpAddr>,
    /// The dummy interface that holds them; none where somebody else makes them.
    pub interface: Option<String>,
    /// Whether to keep their packets out of connection tracking.
    pub rules: bool,
    /// TCP port of health probes.
    pub health_port: u16,
}

/// The table that holds all rules. Nothing else lives there.
pub fn table() -> Table {
    Table::new(TableFamily::Inet, "podwire-dns")
}

impl Network {
    /// Makes what is missing: addresses and, with `take_over`, rules; and removes rules without. Returns whether anything
    /// was written.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn ensure(&self, take_over: bool, route: &mut dyn Route, nftables: &mut dyn Nftables) -> anyhow::Result<bool> {
        let mut device = None;
        let mut written = false;
        if let Some(name) = &self.interface {
            let (index, on_lo, made) = find_device(name, route)?;
            device = Some((index, on_lo));
            written |= made;
        }
        let on_lo: &[IpAddr] = if device.is_some_and(|(_, on_lo)| on_lo) { &self.addresses } else { &[] };
        let comment = comment(on_lo);
        if comment.len() > MAX_COMMENT {
            bail!(
                "too many addresses for a kernel without dummy interfaces: {comment:?} does not fit a comment of nftables"
            );
        }
        let former = recorded(nftables).context("reading nftables")?;
        remove_from_lo(former.iter().filter(|address| !on_lo.contains(address)), route)?;
        // The record comes before the addresses that it is about.
        written |= self.ensure_table(take_over, &comment, !on_lo.is_empty(), nftables).context("writing nftables")?;
        if let Some((index, on_lo)) = device {
            let added = self.ensure_addresses(index, !on_lo, route).context("adding addresses")?;
            if added && on_lo {
                info!("this kernel has no dummy interfaces: the addresses of -localip are on lo");
            }
            written |= added;
        }
        Ok(written)
    }

    /// Removes all of it, also what runs with other addresses left.
    ///
    /// # Errors
    /// The kernel refused; what it did not refuse is done.
    pub fn remove(&self, route: &mut dyn Route, nftables: &mut dyn Nftables) -> anyhow::Result<()> {
        let link = match &self.interface {
            Some(name) => route.link(name)?,
            None => None,
        };
        let dummy = link.filter(|link| link.kind == LinkKind::Dummy);
        let link_gone = dummy.map_or(Ok(()), |link| route.delete_link(link.index).or_gone());
        let former = recorded(nftables)?;
        // Only then may the record go.
        remove_from_lo(former.iter(), route)?;
        delete_table(nftables)?;
        Ok(link_gone?)
    }

    fn ensure_addresses(&self, device: u32, is_ours: bool, route: &mut dyn Route) -> Result<bool> {
        let held = route.addresses(Some(device))?;
        let mut written = false;
        for address in self.addresses.iter().filter(|wanted| !held.iter().any(|held| held.net == host(**wanted))) {
            let address = Address { scope: Scope::Host, ..Address::new(device, host(*address)) };
            route.add_address(&address).or_exists()?;
            written = true;
        }
        if is_ours {
            let is_strange = |held: &&Address| {
                held.net.prefix_len() == held.net.max_prefix_len() && !self.addresses.contains(&held.net.addr())
            };
            for address in held.iter().filter(is_strange) {
                route.delete_address(address).or_gone()?;
                written = true;
            }
            // IPv4 addresses work on an interface that is down, and down it is no candidate for anything else.
            let up = self.addresses.iter().any(IpAddr::is_ipv6);
            if up && route.link_by_index(device)?.is_some_and(|link| !link.up) {
                route.change_link(device, &[LinkChange::Up(true)])?;
                written = true;
            }
        }
        Ok(written)
    }

    fn ensure_table(&self, take_over: bool, comment: &str, record: bool, nftables: &mut dyn Nftables) -> Result<bool> {
        let rules = take_over && self.rules;
        if !rules && !record {
            return delete_table(nftables);
        }
        let table = table();
        let mut batch = Batch::new();
        batch.replace_table(&table, Some(comment));
        if rules {
            for (name, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
                batch.add_chain(&table, Chain::base(name, ChainKind::Filter, hook, priority::RAW));
            }
            for address in &self.addresses {
                for protocol in [Protocol::Udp, Protocol::Tcp] {
                    let to = |port| packets(*address, protocol, Side::Destination, port);
                    let from = |port| packets(*address, protocol, Side::Source, port);
                    batch.add_rule(&table, "prerouting", to(PORT));
                    batch.add_rule(&table, "output", to(PORT));
                    batch.add_rule(&table, "output", from(PORT));
                    // Probes of the kubelet, which come from this node.
                    if protocol == Protocol::Tcp {
                        batch.add_rule(&table, "output", to(self.health_port));
                        batch.add_rule(&table, "output", from(self.health_port));
                    }
                }
            }
        }
        batch.ensure(nftables)
    }
}

/// `ip daddr ADDRESS udp dport PORT notrack`, or the same of the source.
fn packets(address: IpAddr, protocol: Protocol, side: Side, port: u16) -> Rule {
    let rule = Rule::new(Family::of(&address)).of_family();
    let rule = match side {
        Side::Source => rule.source(Is::Equal, host(address)),
        Side::Destination => rule.destination(Is::Equal, host(address)),
    };
    rule.port(protocol, side, port).notrack()
}

/// The interface, made if need be; `lo` where the kernel has no dummy interfaces. Its index, whether it is `lo`, and
/// whether it was made.
fn find_device(name: &str, route: &mut dyn Route) -> anyhow::Result<(u32, bool, bool)> {
    match route.link(name)? {
        Some(link) if link.kind == LinkKind::Dummy => return Ok((link.index, false, false)),
        Some(link) => bail!("{name} is no dummy interface but {:?}; name another with -interfacename", link.kind),
        None => {}
    }
    match route.create_link(&NewLink::new(name, NewLinkKind::Dummy)) {
        Ok(link) => Ok((link.index, false, true)),
        Err(error) if error.is_unsupported() => {
            let lo = route.link("lo")?.context("there is no interface lo")?;
            Ok((lo.index, true, false))
        }
        Err(error) => Err(error).with_context(|| format!("making interface {name}")),
    }
}

fn comment(on_lo: &[IpAddr]) -> String {
    let addresses: Vec<_> = on_lo.iter().map(ToString::to_string).collect();
    match addresses.is_empty() {
        true => "queries that this node answers".to_owned(),
        false => format!("{ON_LO}{}", addresses.join(" ")),
    }
}

/// The addresses on `lo` that the table says are ours.
fn recorded(nftables: &mut dyn Nftables) -> Result<Vec<IpAddr>> {
    let tables = nftables.tables()?;
    let comment = tables.iter().find(|info| info.table == table()).and_then(|info| info.comment.as_deref());
    let words = comment.and_then(|comment| comment.strip_prefix(ON_LO)).unwrap_or_default().split(' ');
    Ok(words.filter_map(|word| word.parse().ok()).collect())
}

fn remove_from_lo<'a>(addresses: impl Iterator<Item = &'a IpAddr>, route: &mut dyn Route) -> anyhow::Result<()> {
    let mut addresses = addresses.peekable();
    if addresses.peek().is_none() {
        return Ok(());
    }
    let lo = route.link("lo")?.context("there is no interface lo")?.index;
    let held = route.addresses(Some(lo))?;
    for address in addresses {
        if let Some(held) = held.iter().find(|held| held.net == host(*address)) {
            route.delete_address(held).or_gone()?;
            info!("removed {address} from lo");
        }
    }
    Ok(())
}

/// Whether there was one.
fn delete_table(nftables: &mut dyn Nftables) -> Result<bool> {
    let is_there = nftables.tables()?.iter().any(|info| info.table == table());
    if is_there {
        let mut batch = Batch::new();
        batch.delete_table(&table());
        nftables.commit(&batch).or_gone()?;
    }
    Ok(is_there)
}

/// The address alone as a network.
fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

#[cfg(test)]
mod tests {
    use podwire_kernel::{nftables::Fake, route::FakeRoute};

    use super::*;

    fn network(addresses: &[&str]) -> Network {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Network { addresses, interface: Some("nodelocaldns".to_owned()), rules: true, health_port: 8080 }
    }

    fn held(route: &mut FakeRoute) -> Vec<String> {
        let link = route.link("nodelocaldns").unwrap().unwrap();
        route.addresses(Some(link.index)).unwrap().iter().map(|address| address.net.to_string()).collect()
    }

    #[test]
    fn what_is_there_is_not_written_again_and_what_is_not_wanted_goes() {
        let (mut route, mut nftables) = (FakeRoute::new(), Fake::new());
        let both = network(&["169.254.20.10", "fd00:10:96::a"]);
        assert!(both.ensure(false, &mut route, &mut nftables).unwrap());
        assert!(!both.ensure(false, &mut route, &mut nftables).unwrap());
        assert!(nftables.tables().unwrap().is_empty(), "queries are not taken over yet");
        assert!(both.ensure(true, &mut route, &mut nftables).unwrap());
        assert!(!both.ensure(true, &mut route, &mut nftables).unwrap());
        // For each address: UDP and TCP; to it in both chains, from it in one; for health probes two more.
        assert_eq!(nftables.rules(&table()).unwrap().len(), 2 * (2 * 3 + 2));
        let one = network(&["169.254.20.11"]);
        assert!(one.ensure(true, &mut route, &mut nftables).unwrap());
        assert_eq!(held(&mut route), ["169.254.20.11/32"]);
        assert!(one.ensure(false, &mut route, &mut nftables).unwrap(), "given back");
        assert!(nftables.tables().unwrap().is_empty());
        one.remove(&mut route, &mut nftables).unwrap();
        assert_eq!(route.link("nodelocaldns").unwrap(), None);
        one.remove(&mut route, &mut nftables).unwrap();
    }

    #[test]
    fn an_interface_of_somebody_else_is_left_alone() {
        let (mut route, mut nftables) = (FakeRoute::new(), Fake::new());
        route.create_link(&NewLink::new("nodelocaldns", NewLinkKind::Bridge)).unwrap();
        let network = network(&["169.254.20.10"]);
        let error = network.ensure(true, &mut route, &mut nftables).unwrap_err().to_string();
        assert_eq!(error, "nodelocaldns is no dummy interface but Bridge; name another with -interfacename");
        network.remove(&mut route, &mut nftables).unwrap();
        assert!(route.link("nodelocaldns").unwrap().is_some());
    }

    #[test]
    fn the_table_tells_which_addresses_of_lo_are_ours() {
        let mut nftables = Fake::new();
        let addresses = ["169.254.20.10", "fd00:10:96::a"].map(|address| address.parse().unwrap());
        for (on_lo, found) in [(&addresses[..], &addresses[..]), (&[], &[])] {
            let mut batch = Batch::new();
            batch.replace_table(&table(), Some(&comment(on_lo)));
            nftables.commit(&batch).unwrap();
            assert_eq!(recorded(&mut nftables).unwrap(), found);
        }
    }
}
