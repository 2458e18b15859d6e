//! WireGuard devices: what they hold comes and goes by another protocol than links and routes do.

use std::collections::BTreeMap;

use podwire_kernel::{
    Error, Result,
    wireguard::{Change, Wireguard},
};
use podwire_model::Name;

use super::Devices;
use crate::plan::{Entry, Tunnel, TunnelKind};

/// What the device is, and its peers with what is allowed to them.
pub(super) fn read(kernel: &mut dyn Wireguard, device: &Name, index: u32) -> Result<(TunnelKind, Vec<Entry>)> {
    let found = kernel.wireguard(index)?;
    let kind = TunnelKind::Wireguard { key: found.private_key, port: found.listen_port };
    let peers = found.peers.into_iter().map(|peer| Entry::WireguardPeer { device: device.clone(), peer });
    let allowed = found.allowed.into_iter();
    let allowed = allowed.map(|(range, peer)| Entry::Allowed { device: device.clone(), range, peer });
    Ok((kind, peers.chain(allowed).collect()))
}

/// Makes a device what `kind` says, in place: its peers stay.
pub(super) fn configure(kernel: &mut dyn Wireguard, index: u32, kind: &TunnelKind) -> Result<()> {
    let TunnelKind::Wireguard { key, port } = kind else { return Ok(()) };
    let key = key.clone().map(Change::PrivateKey);
    let changes: Vec<_> = key.into_iter().chain([Change::ListenPort(*port)]).collect();
    kernel.set_wireguard(index, &changes)
}

/// The error of a device that cannot listen, in the words of whoever can help it.
pub(super) fn explained(error: Error, tunnel: &Tunnel) -> Error {
    match tunnel.kind {
        TunnelKind::Wireguard { port, .. } if error.errno() == Some(libc::EADDRINUSE) => Error::refused(
            format_args!("have {} listen on UDP port {port}: something else on this node does", tunnel.device),
            libc::EADDRINUSE,
        ),
        _ => error,
    }
}

/// Changes on behalf of entries at some position, for each device.
#[derive(Default)]
pub(super) struct Changes {
    of: BTreeMap<u32, (Vec<usize>, Vec<Change>)>,
    refused: Vec<(usize, Error)>,
}

impl Changes {
    /// Adds what makes `entry`, or unmakes it. Returns whether it is an entry of WireGuard.
    pub(super) fn push(&mut self, devices: &Devices, at: usize, entry: &Entry, put: bool) -> bool {
        let (device, change) = match entry {
            Entry::WireguardPeer { device, peer } if put => (device, Change::Peer(peer.clone())),
            Entry::WireguardPeer { device, peer } => (device, Change::RemovePeer(peer.public_key)),
            Entry::Allowed { device, range, peer } if put => (device, Change::Allow(*range, *peer)),
            Entry::Allowed { device, range, .. } => (device, Change::Disallow(*range)),
            _ => return false,
        };
        match devices.index(device) {
            Ok(index) => {
                let (positions, changes) = self.of.entry(index).or_default();
                positions.push(at);
                changes.push(change);
            }
            Err(error) => self.refused.push((at, error)),
        }
        true
    }

    /// Makes them; returns those that were refused, by position.
    pub(super) fn carry_out(mut self, kernel: &mut dyn Wireguard) -> Vec<(usize, Error)> {
        for (index, (positions, changes)) in self.of {
            if kernel.set_wireguard(index, &changes).is_ok() {
                continue;
            }
            // One by one, to learn which it was.
            for (at, change) in positions.into_iter().zip(changes) {
                if let Err(error) = kernel.set_wireguard(index, &[change]) {
                    self.refused.push((at, error));
                }
            }
        }
        self.refused
    }
}
