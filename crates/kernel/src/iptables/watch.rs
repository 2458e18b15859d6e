#![allow(unsafe_code)]

//! Noticing that somebody else changed a table.

use std::{
    collections::BTreeMap,
    mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use podwire_model::Family;

use super::Table;
use crate::{
    Error, Result,
    netlink::{Protocol, Socket},
};

/// Every notification with this in it counts: a chain's name, or where a rule leads.
const OURS: &[u8] = b"KUBE-";
const NFNLGRP_NFTABLES: u32 = 7;
/// The kernel's message that a table is gone (`NFT_MSG_DELTABLE`): its chains go without a word of each.
const DELETE_TABLE: u16 = 10 << 8 | 2;
const DATAGRAMS: usize = 10_000;

/// Notifications of nf_tables, from when it was opened.
#[derive(Debug)]
pub(super) struct NftWatch(Socket);

impl NftWatch {
    pub(super) fn open() -> Result<Self> {
        let socket = Socket::open(Protocol::Netfilter)?;
        socket.join(NFNLGRP_NFTABLES)?;
        Ok(Self(socket))
    }

    /// Whether anything of ours was touched since the last call.
    pub(super) fn disturbed(&mut self) -> Result<bool> {
        let mut disturbed = false;
        for _ in 0..DATAGRAMS {
            match self.0.receive(Some(Duration::ZERO), format_args!("watch nf_tables")) {
                Ok(messages) if messages.is_empty() => return Ok(disturbed),
                Ok(messages) => {
                    disturbed |= messages.iter().any(|message| {
                        let touches_ours = || message.payload.windows(OURS.len()).any(|bytes| bytes == OURS);
                        message.kind == DELETE_TABLE || touches_ours()
                    });
                }
                Err(Error::Overrun { .. }) => disturbed = true,
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// `struct ipt_getinfo` and `struct ip6t_get_info` of `linux/netfilter_ipv4/ip_tables.h`: the same.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Info {
    name: [u8; 32],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    entries: u32,
    size: u32,
}

/// The number and size of the rules of legacy tables that were seen before.
#[derive(Debug)]
pub(super) struct LegacyWatch {
    sockets: [OwnedFd; 2],
    seen: BTreeMap<(Family, Table), Info>,
}

impl LegacyWatch {
    pub(super) fn open() -> Result<Self> {
        let socket = |family: libc::c_int| {
            // SAFETY: socket(2) takes no pointers; the result is checked before it is owned.
            let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
            if fd < 0 {
                return Err(Error::last("open a socket to ask for iptables"));
            }
            // SAFETY: `fd` was just returned by the kernel and has no other owner.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        };
        Ok(Self { sockets: [socket(libc::AF_INET)?, socket(libc::AF_INET6)?], seen: BTreeMap::new() })
    }

    /// Remembers a table as it is now. Asking for a table makes it, if the kernel does not have it yet.
    pub(super) fn look(&mut self, family: Family, table: Table) -> Result<()> {
        let info = self.info(family, table)?;
        self.seen.insert((family, table), info);
        Ok(())
    }

    /// Whether a table that was looked at is another one now; it counts once.
    pub(super) fn disturbed(&mut self) -> Result<bool> {
        let mut disturbed = false;
        for (family, table) in self.seen.keys().copied().collect::<Vec<_>>() {
            let info = self.info(family, table)?;
            disturbed |= self.seen.insert((family, table), info) != Some(info);
        }
        Ok(disturbed)
    }

    fn info(&self, family: Family, table: Table) -> Result<Info> {
        /// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
        const GET_INFO: libc::c_int = 64;
        let [v4, v6] = &self.sockets;
        let (socket, level) = match family {
            Family::V4 => (v4, libc::IPPROTO_IP),
            Family::V6 => (v6, libc::IPPROTO_IPV6),
        };
        // SAFETY: `Info` is plain data for which all zeroes is a valid value.
        let mut info: Info = unsafe { mem::zeroed() };
        for (to, from) in info.name.iter_mut().zip(table.name().bytes()) {
            *to = from;
        }
        let mut length = mem::size_of::<Info>() as libc::socklen_t;
        // SAFETY: pointer and length describe `info`, which outlives the call; the kernel fills it with numbers.
        let result =
            unsafe { libc::getsockopt(socket.as_raw_fd(), level, GET_INFO, (&raw mut info).cast(), &raw mut length) };
        if result < 0 { Err(Error::last(format_args!("ask for legacy iptables table {table}"))) } else { Ok(info) }
    }
}
