//! IPVS (IP Virtual Server) by generic netlink: virtual services and their destinations. No `ipvsadm` is executed.
//!
//! [`Kernel`] is the real thing, [`Fake`] a strict one for tests. The numbers are those of `linux/ip_vs.h`.
//!
//! ```no_run
//! use podwire_kernel::ipvs::{Change, Destination, Ipvs, Kernel, Service, ServiceKey};
//! use podwire_model::Protocol::Tcp;
//!
//! # fn main() -> podwire_kernel::Result<()> {
//! let mut kernel = Kernel::open()?;
//! let key = ServiceKey::Address(Tcp, "10.96.0.10:80".parse().unwrap());
//! let destination = Destination::new("10.244.0.2:8080".parse().unwrap(), 1);
//! kernel.change(&[
//!     Change::AddService(Service::new(key, "rr")),
//!     Change::AddDestination(key, destination),
//! ])
//! # }
//! ```

mod fake;
mod real;
mod types;
mod wire;

#[cfg(test)]
mod tests;

pub use fake::Fake;
pub use real::Kernel;
pub use types::{
    Change, Connections, Destination, Found, Info, Persistence, SCHEDULERS, Service, ServiceKey, Timeouts, flags,
};

use crate::Result;

/// The kernel's IPVS in one network namespace, or a fake of it.
pub trait Ipvs: Send {
    /// The version, to see whether it is there at all.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn info(&mut self) -> Result<Info>;

    /// How long idle connections are remembered.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn timeouts(&mut self) -> Result<Timeouts>;

    /// Sets how long idle connections are remembered. A zero leaves what is set.
    ///
    /// # Errors
    /// EINVAL for a time beyond what the kernel can count.
    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()>;

    /// Every virtual service, in no particular order.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn services(&mut self) -> Result<Vec<Service>>;

    /// The destinations of a virtual service, in no particular order; none for a service that does not exist.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn destinations(&mut self, service: &ServiceKey) -> Result<Vec<Found>>;

    /// Makes changes, in order.
    ///
    /// # Errors
    /// The first refusal: EEXIST for what is there, ESRCH for a missing service, ENOENT for a missing destination or a
    /// scheduler that the kernel does not have and cannot load, ERANGE for thresholds that contradict each other. This is
    /// no transaction: the other changes, before and after it, are tried all the same.
    fn change(&mut self, changes: &[Change]) -> Result<()>;
}
