/// How a bridge treats VLAN tags (IEEE 802.1Q).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgeVlans {
    /// Whether it keeps VLANs apart; otherwise a tag is part of a frame like any other.
    pub filtering: bool,
    /// The VLAN that a new port is put into, untagged; zero for none. The kernel's default is 1.
    pub default: u16,
}

/// VLANs that a bridge port belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortVlans {
    /// Index of the port.
    pub device: u32,
    /// The first VLAN, 1 to 4094.
    pub first: u16,
    /// The last VLAN; `first` for a single one.
    pub last: u16,
    /// Frames without a tag belong to it, and its frames leave without one (`pvid untagged` in `bridge vlan`); otherwise they
    /// have its tag. Only a single VLAN can be native.
    pub native: bool,
}

impl PortVlans {
    /// The one VLAN `id`, tagged.
    pub const fn tagged(device: u32, id: u16) -> Self {
        Self { device, first: id, last: id, native: false }
    }

    /// The one VLAN `id`, for frames without a tag.
    pub const fn native(device: u32, id: u16) -> Self {
        Self { device, first: id, last: id, native: true }
    }
}
