//! The ways to carry a pod's packet to another node.
//!
//! A backend is a pure function from this node and a peer to what the kernel should hold; it does no IO. To add one,
//! write its folder and add its line to [`BACKENDS`]: the reconciler and the tests iterate that table.

use std::fmt;

use ipnet::IpNet;
use podwire_kernel::wireguard::PrivateKey;
use podwire_model::Lease;
use serde_json::{Map, Value};

use crate::{
    Error,
    config::Fields,
    plan::{Command, Entry, Path, Peer, Site, Uplink},
};

pub mod alloc;
pub mod extension;
pub mod host_gw;
pub mod ipip;
pub mod udp;
pub mod vxlan;
pub mod wireguard;

/// A line of [`BACKENDS`].
pub struct Kind {
    /// The value of `Backend.Type`.
    pub name: &'static str,
    configure: Configure,
}

/// Reads the other fields of `Backend`; whatever it does not take is refused as unknown.
enum Configure {
    /// From the fields alone.
    Plain(fn(&mut Fields) -> Configured),
    /// With the key that says who this node is, whatever its address.
    Keyed(fn(&mut Fields, PrivateKey) -> Configured),
}

type Configured = Result<Box<dyn Backend>, Error>;

/// Where this node's key comes from; asked only by a backend that needs it.
pub(crate) type KeySource<'a> = &'a dyn Fn() -> Result<PrivateKey, Error>;

/// Every backend there is.
pub const BACKENDS: &[Kind] = &[
    Kind { name: alloc::NAME, configure: Configure::Plain(alloc::configure) },
    Kind { name: extension::NAME, configure: Configure::Plain(extension::configure) },
    Kind { name: host_gw::NAME, configure: Configure::Plain(host_gw::configure) },
    Kind { name: ipip::NAME, configure: Configure::Plain(ipip::configure) },
    Kind { name: udp::NAME, configure: Configure::Plain(udp::configure) },
    Kind { name: vxlan::NAME, configure: Configure::Plain(vxlan::configure) },
    Kind { name: wireguard::NAME, configure: Configure::Keyed(wireguard::configure) },
];

/// A configured backend.
pub trait Backend: fmt::Debug + Send + Sync {
    /// The value of `Backend.Type`, also of the annotation `backend-type`.
    fn name(&self) -> &'static str;

    /// Whether a peer runs the same that published this `backend-type`.
    fn answers_to(&self, published: &str) -> bool {
        published == self.name()
    }

    /// The MTU of pods in bytes, for this uplink.
    fn mtu(&self, uplink: &Uplink) -> u32;

    /// How much longer packets of pods are on the uplink, in bytes. To be said where [`Backend::mtu`] does not follow the
    /// uplink's MTU, since the configuration sets one.
    fn overhead(&self, uplink: &Uplink) -> u32 {
        let large = Uplink { mtu: 65_535, ..uplink.clone() };
        large.mtu.saturating_sub(self.mtu(&large))
    }

    /// The annotation `backend-data`: what peers need to know of this node beyond its address. JSON.
    fn lease_data(&self, site: &Site) -> String;

    /// What this node needs whoever its peers are.
    fn local(&self, site: &Site) -> Vec<Entry>;

    /// What this node needs to reach `peer`, whoever the others are.
    ///
    /// # Errors
    /// The peer's data cannot be used; [`Error::OtherBackend`] when it belongs to a configuration that this node cannot
    /// speak to.
    fn peer(&self, site: &Site, peer: Peer<'_>) -> Result<Vec<Entry>, Error>;

    /// Whether what [`Backend::peer`] says depends on the [`crate::plan::Path`] to the peer. It is asked again when that
    /// changes.
    fn needs_path(&self) -> bool {
        false
    }

    /// Whether someone else makes the routes to peers, so that routes which look like those of an overlay are none of it,
    /// unless it made them itself since it was started.
    fn leaves_routes_to_others(&self) -> bool {
        false
    }

    /// Whether the backend, as configured, can carry the packets of these networks: one of each address family at most.
    ///
    /// # Errors
    /// [`Error::Config`]: it cannot; names the field of net-conf.json.
    fn check_networks(&self, networks: &[IpNet]) -> Result<(), Error> {
        let _ = networks;
        Ok(())
    }

    /// Whether the backend can work on this node at all.
    ///
    /// # Errors
    /// [`Error::Site`]: it cannot; says what to do.
    fn check(&self, site: &Site) -> Result<(), Error> {
        let _ = site;
        Ok(())
    }

    /// A command to run before anything else; what it prints becomes [`Site::prepared`].
    fn prepare(&self) -> Option<Command> {
        None
    }
}

/// The route to a peer that is on the link: the peer is the router to its own pods.
fn direct_route(peer: &Lease, path: &Path) -> Entry {
    let (destination, gateway) = (peer.subnet, Some(peer.public_ip));
    Entry::Route { device: path.device.clone(), destination, gateway, onlink: false }
}

/// [`Backend::check_networks`] of a backend that carries IPv4 only.
fn check_ipv4_only(name: &str, networks: &[IpNet]) -> Result<(), Error> {
    match networks.iter().find(|network| matches!(network, IpNet::V6(_))) {
        None => Ok(()),
        Some(network) => Err(Error::config(
            "EnableIPv6",
            format!("must be false with backend {name}, which carries IPv4 only and not {network}; or use vxlan"),
        )),
    }
}

/// Configures the backend that the `Backend` object of net-conf.json names.
///
/// # Errors
/// No `Type`, one that is not in [`BACKENDS`], a field that the backend does not know or cannot use.
pub(crate) fn configure(object: Option<Map<String, Value>>, key: KeySource<'_>) -> Result<Box<dyn Backend>, Error> {
    let mut fields = Fields::new("Backend.", object.unwrap_or_default());
    let supported = || BACKENDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ");
    let Some(name) = fields.take::<String>("Type")? else {
        // flannel falls back to "udp" here: a slow surprise rather than a default.
        return Err(fields.error("Type", format!("missing; supported: {}", supported())));
    };
    let Some(kind) = BACKENDS.iter().find(|kind| kind.name == name) else {
        return Err(fields.error("Type", format!("backend {name:?} is not supported; supported: {}", supported())));
    };
    let backend = match kind.configure {
        Configure::Plain(configure) => configure(&mut fields)?,
        Configure::Keyed(configure) => configure(&mut fields, key()?)?,
    };
    fields.finish()?;
    Ok(backend)
}

#[cfg(test)]
pub(crate) mod tests {
    //! What the tests of backends share.

    use super::*;

    /// Who node 1 is.
    pub fn key() -> PrivateKey {
        PrivateKey::from_bytes([1; 32])
    }

    /// The backend that an object like `{"Type": "vxlan"}` configures, or what is wrong with it.
    pub fn configured(json: &str) -> Result<Box<dyn Backend>, String> {
        configure(serde_json::from_str(json).unwrap(), &|| Ok(key())).map_err(|error| error.to_string())
    }

    /// Node `n` of the cluster 10.244.0.0/16 on the network 172.25.0.0/16.
    pub fn site(n: u8) -> Site {
        let address = [172, 25, 2, n].into();
        Site {
            node: format!("node{n}").into(),
            network: "10.244.0.0/16".parse().unwrap(),
            subnet: format!("10.244.{n}.0/24").parse().unwrap(),
            uplink: Uplink { name: "eth0".into(), index: 2, mtu: 1500, address },
            public_ip: address,
            published: None,
            prepared: None,
        }
    }
}
