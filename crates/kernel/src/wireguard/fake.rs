use std::{collections::BTreeMap, fmt::Arguments};

use podwire_model::IpNet;

use super::{Change, Device, Peer, PrivateKey, PublicKey, Wireguard};
use crate::{
    Error, Result,
    route::{FakeRoute, LinkKind},
};

/// What a WireGuard link of [`FakeRoute`] holds besides what every link does.
#[derive(Debug, Clone, Default)]
pub struct FakeDevice {
    private_key: Option<PrivateKey>,
    listen_port: u16,
    peers: BTreeMap<PublicKey, Peer>,
    allowed: BTreeMap<IpNet, PublicKey>,
}

impl FakeDevice {
    fn change(&mut self, change: &Change) {
        match change {
            Change::PrivateKey(key) => {
                self.remove(&key.public());
                self.private_key = Some(key.clone());
            }
            Change::ListenPort(port) => self.listen_port = *port,
            Change::RemovePeer(key) => self.remove(key),
            Change::Peer(peer) if self.private_key.as_ref().is_some_and(|key| key.public() == peer.public_key) => {}
            Change::Peer(peer) => {
                let known = self.peers.get(&peer.public_key).and_then(|known| known.endpoint);
                let peer = Peer { endpoint: peer.endpoint.or(known), ..peer.clone() };
                self.peers.insert(peer.public_key, peer);
            }
            Change::Allow(range, key) if self.peers.contains_key(key) => drop(self.allowed.insert(*range, *key)),
            Change::Allow(..) => {}
            Change::Disallow(range) => drop(self.allowed.remove(range)),
        }
    }

    fn remove(&mut self, key: &PublicKey) {
        self.peers.remove(key);
        self.allowed.retain(|_, owner| owner != key);
    }
}

impl FakeRoute {
    fn check_wireguard(&mut self, device: u32, what: Arguments<'_>) -> Result<()> {
        self.step(what)?;
        let errno = match self.kind_of(device) {
            Some(LinkKind::Wireguard) => return Ok(()),
            Some(_) => libc::EOPNOTSUPP,
            None => libc::ENODEV,
        };
        Err(Error::refused(what, errno))
    }
}

impl Wireguard for FakeRoute {
    fn wireguard(&mut self, device: u32) -> Result<Device> {
        self.check_wireguard(device, format_args!("read WireGuard device #{device}"))?;
        let found = self.wireguards.entry(device).or_default();
        Ok(Device {
            private_key: found.private_key.clone(),
            public_key: found.private_key.as_ref().map(PrivateKey::public),
            listen_port: found.listen_port,
            peers: found.peers.values().cloned().collect(),
            allowed: found.allowed.clone(),
        })
    }

    fn set_wireguard(&mut self, device: u32, changes: &[Change]) -> Result<()> {
        self.check_wireguard(device, format_args!("change WireGuard device #{device}"))?;
        let found = self.wireguards.entry(device).or_default();
        changes.iter().for_each(|change| found.change(change));
        Ok(())
    }
}
