//! WireGuard: pods' packets encrypted in UDP between the nodes' kernels. See README.md.

mod data;
pub mod key_file;

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, time::Duration};

use ipnet::IpNet;
use podwire_kernel::wireguard::{self, PresharedKey, PrivateKey};
use podwire_model::{Family, Name};
use serde_json::Value;

use self::data::LeaseData;
use super::Backend;
use crate::{
    Error,
    config::Fields,
    plan::{Entry, Peer, Site, Tunnel, TunnelKind, Uplink},
};

/// The value of `Backend.Type`.
pub const NAME: &str = "wireguard";

/// Outer IPv6 header 40, UDP 8, WireGuard 16 and 16 bytes. flannel takes as many off for IPv4, where 20 of them are spare.
const OVERHEAD: u32 = 80;

#[derive(Debug)]
struct WireguardBackend {
    key: PrivateKey,
    one_tunnel: bool,
    port: u16,
    port_v6: u16,
    /// `MTU`: stands for the uplink's MTU, the overhead still comes off.
    mtu: Option<u32>,
    preshared_key: Option<PresharedKey>,
    keepalive: Duration,
}

/// `key` is who this node is: see [`key_file`].
pub(super) fn configure(fields: &mut Fields, key: PrivateKey) -> Result<Box<dyn Backend>, Error> {
    Ok(Box::new(WireguardBackend {
        key,
        one_tunnel: one_tunnel(fields)?,
        port: fields.take_within("ListenPort", 1..=u16::MAX)?.unwrap_or(51820),
        port_v6: fields.take_within("ListenPortV6", 1..=u16::MAX)?.unwrap_or(51821),
        mtu: fields.take_within("MTU", 576 + OVERHEAD..=65_535)?,
        preshared_key: preshared_key(fields)?,
        keepalive: Duration::from_secs(fields.take::<u16>("PersistentKeepaliveInterval")?.unwrap_or(0).into()),
    }))
}

/// Whether one tunnel is asked for where there are two address families. Where there is one, there is one tunnel anyway.
fn one_tunnel(fields: &mut Fields) -> Result<bool, Error> {
    match fields.take::<String>("Mode")?.as_deref() {
        None | Some("separate") => Ok(false),
        Some("auto" | "ipv4") => Ok(true),
        Some("ipv6") => {
            Err(fields.error("Mode", "ipv6 is not supported: a tunnel carries packets of its own address family"))
        }
        Some(other) => {
            Err(fields.error("Mode", format!("{other:?} is unknown, expected separate, auto, ipv4 or ipv6")))
        }
    }
}

/// Whatever stands there may be meant as a secret, so no error repeats it.
fn preshared_key(fields: &mut Fields) -> Result<Option<PresharedKey>, Error> {
    let text = match fields.take::<Value>("PSK")? {
        None => return Ok(None),
        Some(Value::String(text)) if text.is_empty() => return Ok(None),
        Some(value) => value,
    };
    let key = text.as_str().and_then(|text| text.parse().ok());
    key.map(Some).ok_or_else(|| fields.error("PSK", wireguard::NotAKey.to_string()))
}

impl WireguardBackend {
    fn device(family: Family) -> Name {
        match family {
            Family::V4 => "flannel-wg",
            Family::V6 => "flannel-wg-v6",
        }
        .into()
    }

    const fn port(&self, family: Family) -> u16 {
        match family {
            Family::V4 => self.port,
            Family::V6 => self.port_v6,
        }
    }
}

impl Backend for WireguardBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn mtu(&self, uplink: &Uplink) -> u32 {
        self.mtu.unwrap_or(uplink.mtu).saturating_sub(OVERHEAD)
    }

    fn lease_data(&self, site: &Site) -> String {
        LeaseData { key: self.key.public(), port: Some(self.port(site.family())) }.to_string()
    }

    fn check_networks(&self, networks: &[IpNet]) -> Result<(), Error> {
        if !self.one_tunnel || networks.len() < 2 {
            return Ok(());
        }
        let problem = "must be separate, or left out, with IPv4 and IPv6: one tunnel for both is not supported";
        Err(Error::config("Backend.Mode", problem))
    }

    fn local(&self, site: &Site) -> Vec<Entry> {
        let device = Self::device(site.family());
        let tunnel = Tunnel {
            device: device.clone(),
            mac: None,
            mtu: self.mtu(&site.uplink),
            up: true,
            kind: TunnelKind::Wireguard { key: Some(self.key.clone()), port: self.port(site.family()) },
        };
        // A host prefix, so that the kernel adds no broadcast or subnet route. The address is the source of what the
        // node itself sends to remote pods. One route leads to all of them: the device knows each peer's range.
        let route = Entry::Route { device: device.clone(), destination: site.network, gateway: None, onlink: false };
        let address = IpNet::from(site.subnet.network());
        vec![Entry::Tunnel(tunnel), Entry::Address { device, address }, route]
    }

    fn peer(&self, site: &Site, peer: Peer<'_>) -> Result<Vec<Entry>, Error> {
        let lease = peer.lease;
        let refuse = |problem: String| Error::Lease { node: lease.node.to_string(), problem };
        let data = LeaseData::parse(&lease.backend_data).map_err(|why| refuse(format!("backend data: {why}")))?;
        if data.key == self.key.public() {
            let problem = "has this node's own public key: one key file was copied to both; remove it on one of them";
            return Err(refuse(problem.to_owned()));
        }
        let device = Self::device(site.family());
        let port = data.port.unwrap_or(self.port(site.family()));
        let settings = wireguard::Peer {
            public_key: data.key,
            preshared_key: self.preshared_key.clone(),
            endpoint: Some(SocketAddr::new(lease.public_ip, port)),
            keepalive: self.keepalive,
        };
        Ok(vec![
            Entry::WireguardPeer { device: device.clone(), peer: settings },
            Entry::Allowed { device, range: lease.subnet, peer: data.key },
        ])
    }
}
