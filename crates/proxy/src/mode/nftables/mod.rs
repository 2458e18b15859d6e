#![doc = include_str!("README.md")]

mod apply;
mod frontends;
mod kind;
mod map;
mod read;
pub mod render;
mod sticky;
mod table;
mod tidy;
pub mod trace;
mod work;

use std::{thread, time::Duration};

pub use apply::Nftables;

use podwire_kernel::nftables::{Batch, Family, Kernel, Nftables as _, Table};

use crate::{
    Error, Result,
    mode::{Description, Mode, Settings},
};

/// The value of `mode:` in the configuration.
pub const NAME: &str = "nftables";

/// The mode's line in [`MODES`](crate::mode::MODES).
pub const MODE: Description = Description { name: NAME, keeps_sources: true, probe, open, cleanup };

/// Whether the running kernel has nf_tables.
///
/// # Errors
/// When it does not answer.
pub fn probe() -> Result<()> {
    let mut kernel = Kernel::open().map_err(failed)?;
    kernel.tables().map(drop).map_err(failed)
}

/// Starts the mode for the network namespace that the calling thread is in.
///
/// # Errors
/// When the kernel has no nf_tables.
pub fn open(settings: &Settings) -> Result<Box<dyn Mode>> {
    let kernel = Kernel::open().map_err(failed)?;
    Ok(Box::new(Nftables::new(kernel, settings.clone())))
}

/// How long a packet that entered a chain before it went may be on its way through it.
const IN_FLIGHT: Duration = Duration::from_millis(500);

/// Deletes the mode's tables. What the kernel calls goes first: a packet on its way through a table that is deleted
/// whole no longer finds its Service in the maps, but still finds its address among the cluster IPs, and would be
/// refused although another mode serves it by now.
///
/// # Errors
/// When the kernel refuses it; that there is none is no error.
pub fn cleanup() -> Result<()> {
    let mut kernel = Kernel::open().map_err(failed)?;
    let (mut doors, mut tables) = (Batch::new(), Batch::new());
    for family in [Family::Ip, Family::Ip6] {
        let table = Table::new(family, render::TABLE);
        if kernel.tables().map_err(failed)?.iter().any(|info| info.table == table) {
            for chain in kernel.chains(&table).map_err(failed)?.into_iter().filter(|chain| chain.base.is_some()) {
                doors.flush_chain(&table, chain.name.clone());
                doors.delete_chain(&table, chain.name);
            }
            tables.delete_table(&table);
        }
    }
    if doors.steps().next().is_some() {
        kernel.commit(&doors).map_err(failed)?;
        thread::sleep(IN_FLIGHT);
    }
    kernel.commit(&tables).map_err(failed)
}

fn failed(source: podwire_kernel::Error) -> Error {
    Error::Kernel { mode: NAME, source }
}
