#![doc = include_str!("README.md")]

mod apply;
mod cleanup;
pub mod kernel;
mod render;
mod rules;
mod sets;
mod state;
pub mod trace;
mod watch;

pub use apply::Ipvs;
pub use cleanup::remove;

use podwire_kernel::ipvs::SCHEDULERS;

use self::kernel::{Kernel as _, Real};
use crate::{
    Error, Result,
    mode::{Description, Mode, Settings},
};

/// The value of `mode:` in the configuration.
pub const NAME: &str = "ipvs";

/// The mode's line in [`MODES`](crate::mode::MODES).
pub const MODE: Description = Description { name: NAME, keeps_sources: true, probe, open, cleanup };

/// The device that carries the addresses of Services.
pub const DEVICE: &str = "kube-ipvs0";

/// Whether the running kernel has IPVS and ipset.
///
/// # Errors
/// What is missing, and how to bring it.
pub fn probe() -> Result<()> {
    open_kernel().map(drop)
}

fn open_kernel() -> Result<Real> {
    let mut kernel = Real::open().map_err(|source| match &source {
        error if error.is_not_found() && error.to_string().contains("ip_vs") => Error::Missing {
            mode: NAME,
            what: "the kernel has no IPVS",
            remedy: "load it (modprobe ip_vs ip_vs_rr) or use a kernel with CONFIG_IP_VS",
            source,
        },
        _ => failed(source),
    })?;
    kernel.ipset().sets().map_err(|source| Error::Missing {
        mode: NAME,
        what: "the kernel has no ipset",
        remedy: "load it (modprobe ip_set) or use a kernel with CONFIG_IP_SET",
        source,
    })?;
    Ok(kernel)
}

/// Starts the mode for the network namespace that the calling thread is in.
///
/// # Errors
/// What the kernel does not have; a scheduler that Linux does not have.
pub fn open(settings: &Settings) -> Result<Box<dyn Mode>> {
    let scheduler = &settings.ipvs.scheduler;
    if !SCHEDULERS.contains(&scheduler.as_str()) {
        let detail = format!("there is no such scheduler; Linux has {}", SCHEDULERS.join(" "));
        return Err(failed(podwire_kernel::Error::invalid(format_args!("use scheduler {scheduler:?}"), detail)));
    }
    Ok(Box::new(Ipvs::new(open_kernel()?, settings.clone())))
}

/// Removes everything that the mode, or kube-proxy's ipvs mode, ever left in the kernel.
///
/// # Errors
/// When the kernel refuses it; that there is nothing, or no IPVS at all, is no error.
pub fn cleanup() -> Result<()> {
    match open_kernel() {
        Ok(mut kernel) => remove(&mut kernel, &Settings::default()),
        Err(Error::Missing { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn failed(source: podwire_kernel::Error) -> Error {
    Error::Kernel { mode: NAME, source }
}
