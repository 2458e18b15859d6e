#![doc = include_str!("README.md")]

mod apply;
mod found;
mod layout;
mod names;
mod render;
mod state;
pub mod trace;
mod unused;

pub use apply::{IptablesMode, remove};

use podwire_kernel::{
    iptables::{Backend, Real},
    sysctl::{ProcSys, Sysctl as _},
};
use podwire_model::Family;

use crate::{
    Error, Result,
    mode::{Description, Mode, Settings},
};

/// The value of `mode:` in the configuration.
pub const NAME: &str = "iptables";

/// The mode's line in [`MODES`](crate::mode::MODES).
pub const MODE: Description = Description { name: NAME, keeps_sources: true, probe, open, cleanup };

/// The mode with the kernel's ip_tables, whatever the machine uses: for tests that try both.
pub const LEGACY: Description = Description {
    probe: || probe_with(Some(Backend::Legacy)),
    open: |settings| open_with(Some(Backend::Legacy), settings),
    ..MODE
};

/// Lets packets of 127.0.0.0/8 leave and enter, for node ports at 127.0.0.1.
const ROUTE_LOCALNET: &str = "net/ipv4/conf/all/route_localnet";

/// Whether iptables is installed and the kernel knows everything that rules of this mode need.
///
/// # Errors
/// What the program says, for example that the kernel lacks a match.
pub fn probe() -> Result<()> {
    probe_with(None)
}

fn probe_with(backend: Option<Backend>) -> Result<()> {
    let mut iptables = Real::open(backend).map_err(failed)?;
    iptables.test(Family::V4, PROBE).map_err(failed)
}

/// A rule with everything special. Tested only, never made.
const PROBE: &str = "*nat
:KUBE-SEP-PROBE - [0:0]
-A KUBE-SEP-PROBE -p tcp -m comment --comment probe -m addrtype --dst-type LOCAL -m mark --mark 0x4000/0x4000 -m tcp -j DNAT --to-destination 127.0.0.1:80
-A KUBE-SEP-PROBE -m statistic --mode random --probability 0.5 -m recent --rcheck --name probe -j MASQUERADE --random-fully
COMMIT
*filter
:KUBE-SEP-PROBE - [0:0]
-A KUBE-SEP-PROBE -m conntrack --ctstate INVALID -j REJECT
COMMIT
";

/// Starts the mode for the network namespace that the calling thread is in.
///
/// # Errors
/// When iptables is not installed, or node ports cannot be made to answer at 127.0.0.1.
pub fn open(settings: &Settings) -> Result<Box<dyn Mode>> {
    open_with(None, settings)
}

fn open_with(backend: Option<Backend>, settings: &Settings) -> Result<Box<dyn Mode>> {
    let iptables = Real::open(backend).map_err(failed)?;
    if layout::answers_at_localhost(settings) {
        ProcSys.ensure(ROUTE_LOCALNET, "1").map_err(failed)?;
    }
    Ok(Box::new(IptablesMode::new(iptables, settings.clone())))
}

/// Removes the mode's chains and rules, of both kinds of iptables that are installed.
///
/// # Errors
/// When iptables refuses it; that there is nothing is no error.
pub fn cleanup() -> Result<()> {
    let mut last = Ok(());
    for backend in [Backend::Nft, Backend::Legacy].into_iter().filter(|backend| backend.is_installed()) {
        let removed = Real::open(Some(backend)).map_err(failed).and_then(|mut iptables| remove(&mut iptables));
        last = last.and(removed);
    }
    last
}

fn failed(source: podwire_kernel::Error) -> Error {
    Error::Kernel { mode: NAME, source }
}
