use std::fmt;

use super::Mac;

/// A virtual function of an SR-IOV card, as the driver of the physical function describes it
/// (`IFLA_VFINFO_LIST`, `linux/if_link.h`). What the driver does not tell reads as its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtualFunction {
    /// Its number on the card, from zero.
    pub id: u32,
    /// The MAC address that the host has set; zero when it leaves the choice to whoever has the function.
    pub mac: Mac,
    /// The VLAN that the card puts it in.
    pub vlan: VfVlan,
    /// Bandwidth to send with.
    pub rate: VfRate,
    /// Whether the card drops frames that it sends from another MAC address; `None` where the driver cannot tell.
    pub spoof_check: Option<bool>,
    /// Whether it may do what others would notice, such as receive everything; `None` where the driver cannot tell.
    pub trust: Option<bool>,
    /// The link that it sees.
    pub link_state: VfLinkState,
}

/// The VLAN of a virtual function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VfVlan {
    /// The tag, 1 to 4094; zero for none.
    pub id: u16,
    /// Priority of its frames, 0 to 7.
    pub qos: u8,
    /// The kind of tag.
    pub protocol: VlanProtocol,
}

/// The kind of a VLAN tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VlanProtocol {
    /// 802.1Q, the ordinary one.
    #[default]
    Q,
    /// 802.1ad, the outer one of two.
    Ad,
}

impl VlanProtocol {
    /// Its Ethernet type.
    pub const fn ether_type(self) -> u16 {
        match self {
            Self::Q => 0x8100,
            Self::Ad => 0x88a8,
        }
    }
}

impl fmt::Display for VlanProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Q => "802.1q",
            Self::Ad => "802.1ad",
        })
    }
}

/// Bandwidth that a virtual function may send with, in Mbit/s; zero for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VfRate {
    /// Guaranteed.
    pub min: u32,
    /// At most.
    pub max: u32,
}

/// The link that a virtual function sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VfLinkState {
    /// That of the physical function.
    #[default]
    Auto,
    /// Always up: functions of one card reach each other without a cable.
    Enable,
    /// Always down.
    Disable,
}

/// One change of a virtual function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VfChange {
    /// Set [`VirtualFunction::mac`].
    Mac(Mac),
    /// Set [`VirtualFunction::vlan`].
    Vlan(VfVlan),
    /// Set [`VirtualFunction::rate`].
    Rate(VfRate),
    /// Set [`VirtualFunction::spoof_check`].
    SpoofCheck(bool),
    /// Set [`VirtualFunction::trust`].
    Trust(bool),
    /// Set [`VirtualFunction::link_state`].
    LinkState(VfLinkState),
}
