//! The container's port of the bridge: the host's end of a veth pair whose other end is in the container from the first
//! moment.

use podwire_kernel::{
    ns::Namespace,
    route::{BridgePort, FdbEntry, FdbTable, Link, LinkChange, Mac, NeighbourState, PortVlans, Route, RouteSocket},
};

use super::config::{Config, Port, Vlans};
use crate::{Call, Error, Result, pair};

/// Makes it.
pub fn make(
    host: &mut RouteSocket,
    call: &Call,
    config: &Config,
    bridge: &Link,
    container: (&Namespace, Option<Mac>),
) -> Result<Link> {
    let link = pair::make(host, call, container, config.mtu, Some(bridge.index))?;
    settle(host, link.index, config.port)?;
    if let Some(vlans) = &config.vlans {
        enter_vlans(host, link.index, bridge, vlans)?;
    }
    Ok(link)
}

/// What is not as it is with every new port.
fn settle(host: &mut RouteSocket, port: u32, wanted: Port) -> Result<()> {
    let all = [
        (wanted.hairpin, LinkChange::Hairpin(true)),
        (wanted.isolated, LinkChange::Isolated(true)),
        (wanted.locked, LinkChange::Locked(true)),
    ];
    let changes: Vec<LinkChange<'_>> =
        all.into_iter().filter(|(wanted, _)| *wanted).map(|(_, change)| change).collect();
    Ok(host.change_link(port, &changes)?)
}

/// Puts the port of `bridge` into its VLANs.
pub fn enter_vlans(host: &mut RouteSocket, port: u32, bridge: &Link, vlans: &Vlans) -> Result<()> {
    let default = bridge.vlans.map_or(0, |vlans| vlans.default);
    if default != 0 && !vlans.keep_default && default != vlans.native() {
        host.delete_port_vlans(&PortVlans::native(port, default))?;
    }
    host.add_port_vlans(&PortVlans::native(port, vlans.native()))?;
    for (first, last) in without(&vlans.trunk, vlans.native()) {
        host.add_port_vlans(&PortVlans { device: port, first, last, native: false })?;
    }
    Ok(())
}

/// `ranges` without `id`.
fn without(ranges: &[(u16, u16)], id: u16) -> impl Iterator<Item = (u16, u16)> {
    let halves = move |(first, last): &(u16, u16)| {
        let (first, last) = (*first, *last);
        if !(first..=last).contains(&id) {
            return [Some((first, last)), None];
        }
        [Some((first, id - 1)).filter(|_| first < id), Some((id + 1, last)).filter(|_| id < last)]
    };
    ranges.iter().flat_map(halves).flatten()
}

/// Has the port take frames from `mac` only, with every tag that it may have.
pub fn bind_mac(host: &mut RouteSocket, port: u32, mac: Option<Mac>) -> Result<()> {
    let locked = host.link_by_index(port)?.and_then(|link| link.port).is_some_and(|port| port.locked);
    let Some(mac) = mac.filter(|_| locked) else {
        let detail = "the kernel's bridge ports cannot be locked (before Linux 5.16)".to_owned();
        return Err(Error::Unsupported { field: "macspoofchk", detail });
    };
    let table = FdbTable::Bridge;
    Ok(host.replace_fdb(&FdbEntry { device: port, table, mac, remote: None, state: NeighbourState::NoArp })?)
}

/// (CHECK) The port is there, up, and set as `config` says.
///
/// # Errors
/// [`Error::NotAsSetUp`].
pub fn check(host: &mut RouteSocket, call: &Call, config: &Config, bridge: &Link) -> Result<()> {
    let name = pair::host_name(call);
    let wrong = |what: &str| Err(Error::NotAsSetUp(format!("{name} {what}")));
    let found = host.link(&name)?.filter(|link| link.up && link.master == Some(bridge.index));
    let Some((index, port)) = found.and_then(|link| Some((link.index, link.port?))) else {
        return wrong(&format!("is gone, down, or no port of {}", bridge.name));
    };
    let BridgePort { hairpin, isolated, locked, .. } = port;
    if (Port { hairpin, isolated, locked }) != config.port {
        return wrong("has other settings as a port: hairpin, isolated or locked");
    }
    if let Some(vlans) = &config.vlans {
        let mut wanted = vec![PortVlans::native(index, vlans.native())];
        let tagged = without(&vlans.trunk, vlans.native());
        wanted.extend(tagged.map(|(first, last)| PortVlans { device: index, first, last, native: false }));
        let found = host.port_vlans()?;
        let has = |vlans: &PortVlans| found.iter().any(|other| covers(other, vlans));
        if !wanted.iter().all(has) {
            return wrong("is not in its VLANs");
        }
    }
    Ok(())
}

fn covers(found: &PortVlans, wanted: &PortVlans) -> bool {
    (found.device, found.native) == (wanted.device, wanted.native)
        && found.first <= wanted.first
        && found.last >= wanted.last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_native_vlan_is_not_tagged_as_well() {
        let left = |ranges: &[(u16, u16)], id| without(ranges, id).collect::<Vec<_>>();
        assert_eq!(left(&[(5, 9), (20, 20)], 7), [(5, 6), (8, 9), (20, 20)]);
        assert_eq!(left(&[(5, 9), (20, 20)], 5), [(6, 9), (20, 20)]);
        assert_eq!(left(&[(5, 9), (20, 20)], 20), [(5, 9)]);
        assert_eq!(left(&[], 1), []);
    }
}
