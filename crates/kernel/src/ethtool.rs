//! What a network card is asked to do in place of the kernel: the ioctls of `ethtool`.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::{Error, Result, process::tried};

/// `SIOCETHTOOL`, linux/sockios.h.
const REQUEST: u32 = 0x8946;
/// `ETHTOOL_GTXCSUM` and `ETHTOOL_STXCSUM`, linux/ethtool.h.
const GET_TX_CHECKSUM: u32 = 0x16;
const SET_TX_CHECKSUM: u32 = 0x17;

/// Settings of links in one network namespace.
#[derive(Debug)]
pub struct Ethtool(OwnedFd);

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

impl Ethtool {
    /// For the network namespace that the calling thread is in.
    ///
    /// # Errors
    /// Too many open files.
    pub fn open() -> Result<Self> {
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .map(Self)
            .map_err(tried("open a socket for ethtool"))
    }

    /// Whether `device` leaves checksums of what is sent to hardware (`ethtool -k`: tx-checksumming).
    ///
    /// # Errors
    /// ENODEV: there is no such device.
    pub fn tx_checksum(&self, device: &str) -> Result<bool> {
        let what = format!("ask whether {device} makes checksums");
        self.call(device, Value { command: GET_TX_CHECKSUM, data: 0 }, &what).map(|data| data != 0)
    }

    /// Turns that on or off (`ethtool -K DEVICE tx off`: for a vxlan device, tx-checksum-ip-generic, and with it what
    /// cannot be done without: segmentation). Does nothing where it is so already.
    ///
    /// # Errors
    /// ENODEV: there is no such device; EPERM.
    pub fn set_tx_checksum(&self, device: &str, on: bool) -> Result<()> {
        if self.tx_checksum(device)? == on {
            return Ok(());
        }
        let what = format!("turn checksums by {device} {}", if on { "on" } else { "off" });
        self.call(device, Value { command: SET_TX_CHECKSUM, data: on.into() }, &what).map(drop)
    }

    /// Returns `data` as the kernel leaves it.
    #[allow(unsafe_code)]
    fn call(&self, device: &str, mut value: Value, what: &str) -> Result<u32> {
        // SAFETY: all zeroes is a valid ifreq: it holds integers, arrays of them, and null pointers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if device.is_empty() || device.len() >= request.ifr_name.len() {
            return Err(Error::refused(what, libc::ENODEV));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: the name ends with a zero; ifru_data points to a live ethtool_value, which is all that these two
        // commands read and write, and both outlive the call.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), REQUEST as _, &raw mut request) };
        if result == 0 { Ok(value.data) } else { Err(Error::last(what)) }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::test_support::in_new_netns;

    #[test]
    fn checksums_are_turned_off_and_on_again() {
        in_new_netns(|| {
            let add = ["link", "add", "v0", "type", "vxlan", "id", "1", "dstport", "8472", "nolearning"];
            assert!(Command::new("ip").args(add).status().unwrap().success());
            let ethtool = Ethtool::open().unwrap();
            for on in [true, false, false, true] {
                ethtool.set_tx_checksum("v0", on).unwrap();
                assert_eq!(ethtool.tx_checksum("v0").unwrap(), on);
            }
        });
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        in_new_netns(|| {
            let ethtool = Ethtool::open().unwrap();
            for name in ["v0", "", "a-name-that-is-far-too-long"] {
                let error = ethtool.tx_checksum(name).unwrap_err();
                assert!(error.is_not_found() && error.to_string().contains(name), "{error}");
            }
        });
    }
}
