//! The plugins. A new one is a folder here and a line in the table.

mod bandwidth;
mod bridge;
mod firewall;
mod flannel;
mod host_device;
mod host_local;
mod ipvlan;
mod loopback;
mod macvlan;
mod portmap;
mod ptp;
mod sriov;
mod static_ipam;
mod tuning;
mod vlan;

use crate::{Call, CniResult, Result, Verb};

/// A plugin: what it does for each command. The network namespace of the calling thread is the host's.
pub trait Plugin: Sync {
    /// Attaches the container. A failure leaves nothing behind.
    ///
    /// # Errors
    /// Why it could not.
    fn add(&self, call: &Call) -> Result<CniResult>;

    /// Detaches the container. Succeeds when it is detached already, in part or wholly.
    ///
    /// # Errors
    /// Something is there and cannot be removed.
    fn del(&self, call: &Call) -> Result<()>;

    /// Compares with [`Call::required_previous`].
    ///
    /// # Errors
    /// [`crate::Error::NotAsSetUp`].
    fn check(&self, call: &Call) -> Result<()>;

    /// Releases everything that is not in [`Call::valid_attachments`].
    ///
    /// # Errors
    /// All failures; it goes on after one.
    fn gc(&self, call: &Call) -> Result<()>;

    /// Whether ADD can be served now. Cheap: runtimes ask it over and over.
    ///
    /// # Errors
    /// [`crate::Error::NotReady`], or what is wrong with the configuration.
    fn status(&self, call: &Call) -> Result<()>;
}

const TABLE: [(&str, &dyn Plugin); 15] = [
    ("bandwidth", &bandwidth::Bandwidth),
    ("bridge", &bridge::Bridge),
    ("firewall", &firewall::Firewall),
    ("flannel", &flannel::Flannel),
    ("host-device", &host_device::HostDevice),
    ("host-local", &host_local::HostLocal),
    ("ipvlan", &ipvlan::IPVLAN),
    ("loopback", &loopback::Loopback),
    ("macvlan", &macvlan::MACVLAN),
    ("portmap", &portmap::Portmap),
    ("ptp", &ptp::Ptp),
    ("sriov", &sriov::Sriov),
    ("static", &static_ipam::Static),
    ("tuning", &tuning::Tuning),
    ("vlan", &vlan::VLAN),
];

/// The names of all plugins, in order: what an installer links to `podwire-cni` in `/opt/cni/bin`.
pub const PLUGINS: &[&str] = &{
    let mut names = [""; TABLE.len()];
    let mut at = 0;
    while at < names.len() {
        names[at] = TABLE[at].0;
        at += 1;
    }
    names
};

/// The plugin called `name`.
pub(crate) fn named(name: &str) -> Option<&'static dyn Plugin> {
    TABLE.iter().find(|(known, _)| *known == name).map(|(_, plugin)| *plugin)
}

/// Does what `call` asks for; there is a result for ADD.
pub(crate) fn call(plugin: &dyn Plugin, call: &Call) -> Result<Option<CniResult>> {
    match call.verb {
        Verb::Add => plugin.add(call).map(Some),
        Verb::Del => plugin.del(call).map(|()| None),
        Verb::Check => plugin.check(call).map(|()| None),
        Verb::Gc => plugin.gc(call).map(|()| None),
        Verb::Status => plugin.status(call).map(|()| None),
        Verb::Version => Ok(None),
    }
}
