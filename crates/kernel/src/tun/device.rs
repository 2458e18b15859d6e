use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, IoSliceMut},
    mem,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::Offload;
use crate::{Error, Result, process::tried, route::check_name};

/// The device file of the driver.
const DRIVER: &str = "/dev/net/tun";
/// Bare IP packets, each after a `struct virtio_net_hdr`, by as many queues as are attached.
const FLAGS: libc::c_int = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
/// What the kernel may leave undone: checksums, and cutting TCP.
const OFFLOADS: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// As [`OFFLOADS`], cutting UDP too: since Linux 6.2, and only for both address families.
const WITH_UDP: libc::c_uint = OFFLOADS | libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Makes a device called `name` in the network namespace of the calling thread. It is down, and stays when nothing is
/// attached to it; without a [`Queue`] it has no carrier and drops what is sent through it.
///
/// # Errors
/// EEXIST: there is a link of that name; EPERM without CAP_NET_ADMIN; `/dev/net/tun` is missing.
pub fn create(name: &str) -> Result<()> {
    let what = format!("create tun {name}");
    check_name(name)?;
    let file = open(&what)?;
    match select(&file, name, FLAGS | libc::IFF_TUN_EXCL) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Err(Error::refused(what, libc::EEXIST)),
        selected => selected.map_err(|error| Error::io(&what, error))?,
    }
    set(&file, libc::TUNSETPERSIST, 1).map_err(|error| Error::io(what, error))
}

/// One of the queues of a device. The kernel spreads flows over the queues, and remembers by which one a flow answers.
///
/// What is called for every packet returns a bare [`io::Error`]: "would block" is no news and must cost nothing. After
/// the device was deleted it is EBADFD.
#[derive(Debug)]
pub struct Queue {
    file: File,
    udp_segments: bool,
}

impl Queue {
    /// Attaches to the device called `name` in the network namespace of the calling thread; from now on the kernel leaves
    /// checksums and the cutting of TCP, and since Linux 6.2 of UDP, to whoever reads from its queues.
    ///
    /// # Errors
    /// ENODEV: there is no such device; EINVAL: it is not one that [`create`] made; E2BIG: it has 256 queues already.
    pub fn attach(name: &str) -> Result<Self> {
        let what = format!("attach to tun {name}");
        check_name(name)?;
        // The driver would make what is missing.
        rustix::net::netdevice::name_to_index(any_socket(&what)?, name).map_err(tried(&what))?;
        let file = open(&what)?;
        select(&file, name, FLAGS).map_err(|error| Error::io(&what, error))?;
        let udp_segments = set(&file, libc::TUNSETOFFLOAD, WITH_UDP).is_ok();
        if !udp_segments {
            set(&file, libc::TUNSETOFFLOAD, OFFLOADS).map_err(|error| Error::io(what, error))?;
        }
        Ok(Self { file, udp_segments })
    }

    /// Whether the kernel knows [`super::SegmentKind::Udp`], in what it gives and in what it takes: since Linux 6.2.
    pub const fn knows_udp_segments(&self) -> bool {
        self.udp_segments
    }

    /// From now on the kernel leaves nothing undone, for no queue of the device: every packet is one for the wire.
    ///
    /// # Errors
    /// EBADFD: the device was deleted.
    pub fn decline_offloads(&self) -> Result<()> {
        set(&self.file, libc::TUNSETOFFLOAD, 0).map_err(|error| Error::io("decline what a tun leaves undone", error))
    }

    /// Takes one packet that the kernel sends through the device. At most 65,535 bytes; what `packet` has no room for is
    /// lost.
    ///
    /// # Errors
    /// "Would block": there is none. "Invalid data": it was left undone in a way that nobody asked for, and is lost.
    pub fn receive(&self, packet: &mut [u8]) -> io::Result<(usize, Offload)> {
        let mut header = [0; Offload::LENGTH];
        let read = rustix::io::readv(&self.file, &mut [IoSliceMut::new(&mut header), IoSliceMut::new(packet)])?;
        let offload = Offload::from_bytes(header).ok_or(io::ErrorKind::InvalidData)?;
        let length = read.checked_sub(header.len()).ok_or(io::ErrorKind::InvalidData)?;
        Ok((length, offload))
    }

    /// Hands the kernel one packet as if it had come in by the device. The packet is what `parts`, at most 1,023, are
    /// together.
    ///
    /// # Errors
    /// EINVAL: not an IP packet, or `offload` does not fit it, or has segments that the kernel does not know. EIO: the device is down.
    pub fn send(&self, offload: Offload, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let header = offload.to_bytes();
        let mut all = Vec::with_capacity(1 + parts.len());
        all.push(IoSlice::new(&header));
        all.extend_from_slice(parts);
        Ok(rustix::io::writev(&self.file, &all).map(drop)?)
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open(what: &str) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DRIVER);
    file.map_err(|error| Error::io(format_args!("{what}: open {DRIVER}"), error))
}

fn any_socket(what: &str) -> Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).map_err(tried(what))
}

/// TUNSETIFF: says which device, of which kind, the open file is for.
fn select(file: &File, name: &str, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: plain data, for which all zero is a request without a name.
    #[allow(unsafe_code)]
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // A name has at most 15 bytes, so the last one stays zero.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the argument of TUNSETIFF is a `struct ifreq`, which is alive until after the call.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A setting whose argument is a number, not a pointer.
fn set(file: &File, request: libc::Ioctl, value: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST and TUNSETOFFLOAD take the argument itself; nothing is pointed to.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, libc::c_ulong::from(value)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
