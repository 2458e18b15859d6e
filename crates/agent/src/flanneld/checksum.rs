//! Checksums that get lost.
//!
//! A vxlan device leaves the checksums of packets to the network card. Some cards and some kernels then send wrong ones,
//! above all when the outer packet is translated as well: small packets get lost, pings do not. flannel's documentation
//! has people turn that off by hand (`ethtool -K flannel.1 tx-checksum-ip-generic off`). Here it is found out: a UDP
//! datagram without a checksum gets through to a peer's end of the tunnel, one with a checksum does not.

use std::{fmt, net::IpAddr};

use podwire_kernel::path::{Fate, Probe};

/// `--vxlan-tx-checksum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Offload {
    /// As the kernel has it, until checksums turn out to get lost.
    Auto,
    /// The device leaves checksums to hardware.
    On,
    /// The kernel makes checksums.
    Off,
}

/// How often a datagram must get lost to count as lost.
const TRIES: usize = 3;
/// Of what size, in bytes: that of the smallest packets of TCP.
const SIZE: u32 = 60;

/// What can be asked about a tunnel to a peer.
pub(super) trait Tunnel {
    /// Sends a datagram to the peer's end of it.
    fn probe(&mut self, probe: Probe) -> anyhow::Result<Fate>;
    /// Says who makes checksums.
    fn set_offload(&mut self, on: bool) -> anyhow::Result<()>;
}

/// What [`check`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Checksums arrive.
    Fine,
    /// Nothing can be said: nothing arrives at all, or nobody answers.
    Unknown,
    /// They got lost while they were left to hardware, and no longer do: it was turned off.
    TurnedOff,
    /// They get lost whoever makes them: it is as it was.
    LostAnyway,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fine => "checksums arrive",
            Self::Unknown => "nobody answers",
            Self::TurnedOff => {
                "packets whose checksum was left to hardware got lost: the kernel makes checksums now \
                 (tx-checksum-ip-generic off), which takes more processor time"
            }
            Self::LostAnyway => "UDP datagrams with a checksum get lost, also when the kernel makes the checksum",
        })
    }
}

/// Sends datagrams to `to`, the peer's end of the tunnel, and turns the offload off if that helps.
pub(super) fn check(tunnel: &mut impl Tunnel, to: IpAddr) -> anyhow::Result<Found> {
    let probe = |checksum| Probe { from: None, to, size: SIZE, checksum };
    for attempt in 0..TRIES {
        match tunnel.probe(probe(true))? {
            Fate::Lost => {}
            Fate::Arrived if attempt == 0 => return Ok(Found::Fine),
            // Some got through: a network that loses packets.
            _ => return Ok(Found::Unknown),
        }
        if tunnel.probe(probe(false))? != Fate::Arrived {
            return Ok(Found::Unknown);
        }
    }
    tunnel.set_offload(false)?;
    for _ in 0..TRIES {
        if tunnel.probe(probe(true))? == Fate::Arrived {
            return Ok(Found::TurnedOff);
        }
    }
    tunnel.set_offload(true)?;
    Ok(Found::LostAnyway)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network in which checksums get lost in some way; counts datagrams.
    struct Fake {
        offload: bool,
        arrives: fn(checksum: bool, offload: bool, sent: usize) -> bool,
        sent: usize,
    }

    impl Tunnel for Fake {
        fn probe(&mut self, probe: Probe) -> anyhow::Result<Fate> {
            self.sent += 1;
            let arrives = (self.arrives)(probe.checksum, self.offload, self.sent);
            Ok(if arrives { Fate::Arrived } else { Fate::Lost })
        }

        fn set_offload(&mut self, on: bool) -> anyhow::Result<()> {
            self.offload = on;
            Ok(())
        }
    }

    #[test]
    fn it_is_turned_off_only_where_that_helps() {
        type Arrives = fn(bool, bool, usize) -> bool;
        let rows: [(Arrives, Found, bool); 6] = [
            (|_, _, _| true, Found::Fine, true),
            (|_, _, _| false, Found::Unknown, true),
            (|checksum, offload, _| !(checksum && offload), Found::TurnedOff, false),
            (|checksum, _, _| !checksum, Found::LostAnyway, true),
            (|_, _, sent| sent > 1, Found::Unknown, true),
            (|checksum, _, _| checksum, Found::Fine, true),
        ];
        for (at, (arrives, found, offload)) in rows.into_iter().enumerate() {
            let mut tunnel = Fake { offload: true, arrives, sent: 0 };
            assert_eq!(check(&mut tunnel, [10, 244, 1, 0].into()).unwrap(), found, "row {at}");
            assert_eq!(tunnel.offload, offload, "row {at}");
            assert!(tunnel.sent <= 3 * TRIES, "row {at}");
        }
    }
}
