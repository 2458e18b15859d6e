#![doc = include_str!("README.md")]

mod apply;
pub mod balancer;
mod dial;
pub mod relay;
pub mod rules;
mod tables;
pub mod trace;

pub use apply::Userspace;

use podwire_kernel::{
    conntrack::{self, Conntrack as _, Filter},
    iptables::{Backend, Iptables as _, Real},
};
use podwire_model::Protocol;

use self::tables::{Tables, removal};
use crate::{
    Error, Result,
    mode::{Description, FAMILIES, Mode, Settings},
};

/// The value of `mode:` in the configuration.
pub const NAME: &str = "userspace";

/// The mode's line in [`MODES`](crate::mode::MODES).
pub const MODE: Description = Description { name: NAME, keeps_sources: false, probe, open, cleanup };

/// Whether there is an iptables that works.
///
/// # Errors
/// It is not installed, or the kernel does not have it.
pub fn probe() -> Result<()> {
    let mut iptables = Real::open(None).map_err(failed)?;
    Tables::new(FAMILIES[0]).read(&mut iptables).map(drop).map_err(failed)
}

/// Starts the mode for the network namespace that the calling thread is in.
///
/// # Errors
/// No iptables; no more threads or files.
pub fn open(settings: &Settings) -> Result<Box<dyn Mode>> {
    let iptables = Real::open(None).map_err(failed)?;
    let relay = relay::Relay::start().map_err(failed)?;
    Ok(Box::new(Userspace::new(iptables, relay, settings.clone())))
}

/// Deletes the mode's chains, the rules that lead there, and what connection tracking knows of redirected UDP.
///
/// # Errors
/// The first failure; everything else is cleaned even so.
pub fn cleanup() -> Result<()> {
    let mut first = Ok(());
    for backend in [Backend::Legacy, Backend::Nft] {
        // What is not installed has left nothing.
        let Ok(mut iptables) = Real::open(Some(backend)) else { continue };
        for family in FAMILIES {
            let cleaned = Tables::new(family).read(&mut iptables).and_then(|saved| {
                iptables.restore(family, &removal(&saved))?;
                apply::redirections(family, &saved)
                    .filter(|(frontend, ..)| frontend.protocol == Protocol::Udp)
                    .try_for_each(|(frontend, _, port)| {
                        forget_udp(&crate::mode::StaleFlows::Redirected(frontend, port).filter())
                    })
            });
            first = first.and(cleaned.map_err(failed));
        }
    }
    first
}

fn forget_udp(filter: &Filter) -> podwire_kernel::Result<()> {
    conntrack::Kernel::open()?.delete(filter)
}

fn failed(source: podwire_kernel::Error) -> Error {
    Error::Kernel { mode: NAME, source }
}
