//! What the node needs beside the overlay: masquerade and forward rules, forwarding itself, the blackhole route.

use podwire_kernel::{
    nftables,
    route::{Route, RouteEntry, RouteFilter, RouteKind, RouteProtocol, RouteSocket, Scope},
    sysctl::{ProcSys, Sysctl},
};
use podwire_model::{Family, IpNet};
use podwire_overlay::{Site, masquerade};

use super::Args;

/// Makes what is missing. Returns how much that was: nothing is written that is there already.
///
/// # Errors
/// The kernel refused.
pub(super) fn ensure(args: &Args, site: &Site, kernel: &mut RouteSocket) -> anyhow::Result<u64> {
    let options = masquerade::Options {
        masquerade: args.ip_masq,
        fully_random: !args.ip_masq_fully_random_disable,
        forward: args.iptables_forward_rules,
    };
    let rules = masquerade::rules(site.network, site.subnet, options);
    let mut made = u64::from(rules.ensure(&mut nftables::Kernel::open()?)?);
    match site.family() {
        Family::V4 => ProcSys.ensure("net/ipv4/ip_forward", "1")?,
        Family::V6 => forward_v6(&mut ProcSys, &site.uplink.name)?,
    }
    if args.ip_blackhole_route {
        made += u64::from(ensure_blackhole(site.subnet, kernel)?);
    }
    Ok(made)
}

/// A machine that forwards IPv6 no longer listens to routers, unless it is told to do both: it might have its default route
/// from one.
fn forward_v6(sysctl: &mut dyn Sysctl, uplink: &str) -> podwire_kernel::Result<()> {
    let listens = format!("net/ipv6/conf/{uplink}/accept_ra");
    if sysctl.read(&listens)? == "1" {
        sysctl.write(&listens, "2")?;
    }
    sysctl.ensure("net/ipv6/conf/all/forwarding", "1")
}

/// Where no bridge holds this node's pod range: what is sent to an address of it that no pod has would come back by the
/// default route.
fn ensure_blackhole(subnet: IpNet, kernel: &mut RouteSocket) -> podwire_kernel::Result<bool> {
    let filter = RouteFilter { family: Some(Family::of(&subnet.addr())), ..RouteFilter::MAIN };
    // A bridge's own, or ours.
    if kernel.routes(&filter)?.iter().any(|route| route.destination == subnet) {
        return Ok(false);
    }
    kernel.add_route(&RouteEntry {
        device: None,
        kind: RouteKind::Blackhole,
        scope: Scope::Global,
        protocol: RouteProtocol::BOOT,
        // The bridge's own route, which comes with the first pod, wins by its metric: 0, or 256 for IPv6.
        metric: 1024,
        ..RouteEntry::on_link(subnet, 0)
    })?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use podwire_kernel::sysctl::FakeSysctl;

    use super::*;

    #[test]
    fn a_node_that_forwards_still_listens_to_its_routers() {
        let (ra, all) = ("net/ipv6/conf/eth0/accept_ra", "net/ipv6/conf/all/forwarding");
        for (before, after) in [("0", "0"), ("1", "2"), ("2", "2")] {
            let mut sysctl = FakeSysctl::new([(ra, before), (all, "0")]);
            forward_v6(&mut sysctl, "eth0").unwrap();
            assert_eq!((sysctl.read(ra).unwrap(), sysctl.read(all).unwrap()), (after.to_owned(), "1".to_owned()));
        }
    }
}
