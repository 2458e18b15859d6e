//! Devices of the host that a container has for a time: what `host-device` and `sriov` have in common.

use std::os::fd::AsFd;

use podwire_kernel::{
    ns::{Kind, Namespace},
    pci::Sysfs,
    route::{Link, LinkChange, Route, RouteSocket},
};

use crate::{Call, Result};

/// Drivers that leave a device to a program in user space: there is no interface to move.
const USER_SPACE_DRIVERS: [&str; 3] = ["igb_uio", "uio_pci_generic", "vfio-pci"];

/// Whether the PCI function with this address is driven by a program in user space (DPDK).
pub fn is_in_user_space(address: &str) -> Result<bool> {
    let driver = Sysfs::default().driver(address)?;
    Ok(driver.is_some_and(|driver| USER_SPACE_DRIVERS.contains(&driver.as_str())))
}

/// Moves a link of the host into the container, where it has the name asked for, and is down.
///
/// One message moves and renames: on its way the device has neither name twice, and nothing that watches the host's devices
/// sees it under a name of the container.
pub fn move_in(call: &Call, host: &mut RouteSocket, link: &Link, namespace: &Namespace) -> Result<()> {
    Ok(host.change_link(link.index, &[LinkChange::Netns(namespace.as_fd()), LinkChange::Name(&call.ifname)])?)
}

/// Moves a link of the container back to the host, where it is called `name`, and is down.
pub fn move_out(pod: &mut RouteSocket, link: &Link, name: &str) -> Result<()> {
    let here = Namespace::current(Kind::Net)?;
    Ok(pod.change_link(link.index, &[LinkChange::Netns(here.as_fd()), LinkChange::Name(name)])?)
}
