/// What is left to do for a packet that crosses a [`super::Queue`]; by default nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// The transport checksum is still to be computed: its field holds the sum of the pseudo header only. A packet that
    /// is written so is taken to be intact.
    pub checksum: Option<Checksum>,
    /// The packet stands for several, and is still to be cut.
    pub segments: Option<Segments>,
}

/// Where a checksum begins, and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum {
    /// First byte that it covers, from the start of the packet: where the transport header is.
    pub start: u16,
    /// Its field, from `start`.
    pub offset: u16,
}

/// How a packet is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// What is in it.
    pub kind: SegmentKind,
    /// How many bytes after the headers each packet has at most, never 0.
    pub size: u16,
    /// Length of IP and transport header together; a hint only in what the kernel gives.
    pub headers: u16,
    /// (TCP) The flag CWR is set, and is for the first packet only.
    pub ecn: bool,
}

/// What a packet that is to be cut carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// Whole UDP datagrams, over IPv4 or IPv6.
    Udp,
}

/// `VIRTIO_NET_HDR_*` of `linux/virtio_net.h`.
mod flag {
    pub const NEEDS_CHECKSUM: u8 = 1;
    pub const GSO_TCP4: u8 = 1;
    pub const GSO_TCP6: u8 = 4;
    pub const GSO_UDP: u8 = 5;
    pub const GSO_ECN: u8 = 0x80;
}

impl Offload {
    /// The length of `struct virtio_net_hdr`.
    pub(super) const LENGTH: usize = 10;

    /// As `struct virtio_net_hdr`, in the byte order of this machine.
    pub(super) fn to_bytes(self) -> [u8; Self::LENGTH] {
        let (mut flags, mut kind) = (0, 0);
        let mut words = [0_u16; 4];
        if let Some(Checksum { start, offset }) = self.checksum {
            flags = flag::NEEDS_CHECKSUM;
            (words[2], words[3]) = (start, offset);
        }
        if let Some(segments) = self.segments {
            kind = match segments.kind {
                SegmentKind::Tcp4 => flag::GSO_TCP4,
                SegmentKind::Tcp6 => flag::GSO_TCP6,
                SegmentKind::Udp => flag::GSO_UDP,
            };
            kind |= if segments.ecn { flag::GSO_ECN } else { 0 };
            (words[0], words[1]) = (segments.headers, segments.size);
        }
        let [[a, b], [c, d], [e, f], [g, h]] = words.map(u16::to_ne_bytes);
        [flags, kind, a, b, c, d, e, f, g, h]
    }

    /// The opposite of [`Offload::to_bytes`]; nothing for a kind of segments that was not asked for.
    pub(super) fn from_bytes(bytes: [u8; Self::LENGTH]) -> Option<Self> {
        let [flags, kind, a, b, c, d, e, f, g, h] = bytes;
        let [headers, size, start, offset] = [[a, b], [c, d], [e, f], [g, h]].map(u16::from_ne_bytes);
        let checksum = (flags & flag::NEEDS_CHECKSUM != 0).then_some(Checksum { start, offset });
        let segments = |kind| Some(Segments { kind, size, headers, ecn: bytes[1] & flag::GSO_ECN != 0 });
        let segments = match kind & !flag::GSO_ECN {
            0 => None,
            _ if size == 0 => return None,
            flag::GSO_TCP4 => segments(SegmentKind::Tcp4),
            flag::GSO_TCP6 => segments(SegmentKind::Tcp6),
            flag::GSO_UDP => segments(SegmentKind::Udp),
            _ => return None,
        };
        Some(Self { checksum, segments })
    }
}
