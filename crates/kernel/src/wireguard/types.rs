use std::{collections::BTreeMap, fmt, net::SocketAddr, time::Duration};

use podwire_model::IpNet;

use super::{PresharedKey, PrivateKey, PublicKey};

/// What a WireGuard device holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Who it is; a new device is nobody.
    pub private_key: Option<PrivateKey>,
    /// Its public key, as the kernel calculates it.
    pub public_key: Option<PublicKey>,
    /// The UDP port that it listens on, for IPv4 and IPv6; zero as long as none is chosen.
    pub listen_port: u16,
    /// In the order of their keys.
    pub peers: Vec<Peer>,
    /// Which peer a packet to a destination goes to, the longest prefix counts; and which peer may send from there. `wg`
    /// calls it "allowed ips" and shows it with each peer.
    pub allowed: BTreeMap<IpNet, PublicKey>,
}

/// A peer of a device, known by its public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub public_key: PublicKey,
    /// The secret shared with it, if there is one.
    pub preshared_key: Option<PresharedKey>,
    /// Where packets to it go. The kernel changes this to where the last authentic packet came from.
    pub endpoint: Option<SocketAddr>,
    /// How often an empty packet goes out to keep a way through NAT open; zero for never. Whole seconds, up to 65,535.
    pub keepalive: Duration,
}

impl Peer {
    /// A peer that may be anywhere.
    pub const fn new(public_key: PublicKey) -> Self {
        Self { public_key, preshared_key: None, endpoint: None, keepalive: Duration::ZERO }
    }
}

/// A change to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Who it is from now on. A peer with this very key is removed.
    PrivateKey(PrivateKey),
    /// Where it listens; zero for any free port.
    ListenPort(u16),
    /// Adds the peer, or makes it so. Without an endpoint, a known one is kept. The device itself as a peer is ignored.
    Peer(Peer),
    /// Removes the peer, if it is there, and what is allowed to it.
    RemovePeer(PublicKey),
    /// Gives the range to this peer, whoever has it now. Ignored if the peer is not there.
    Allow(IpNet, PublicKey),
    /// Takes the range from whoever has it.
    Disallow(IpNet),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PrivateKey(key) => write!(f, "take the identity {}", key.public()),
            Self::ListenPort(port) => write!(f, "listen on UDP port {port}"),
            Self::Peer(peer) => write!(f, "set peer {}", peer.public_key),
            Self::RemovePeer(key) => write!(f, "remove peer {key}"),
            Self::Allow(range, key) => write!(f, "allow {range} to peer {key}"),
            Self::Disallow(range) => write!(f, "allow {range} to nobody"),
        }
    }
}
