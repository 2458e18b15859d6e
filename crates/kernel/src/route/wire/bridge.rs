//! A bridge's settings and the VLANs of its ports as rtnetlink messages and back (`linux/if_bridge.h`).

use super::{AF_BRIDGE, Body, link::link_header, read_flag};
use crate::{
    netlink::{attributes, u16_at, u32_at},
    route::types::{BridgeVlans, PortVlans},
};

const BR_VLAN_FILTERING: u16 = 7;
const BR_VLAN_DEFAULT_PVID: u16 = 39;
const VLAN_INFO: u16 = 2;
const PVID: u16 = 1 << 1;
const UNTAGGED: u16 = 1 << 2;
const RANGE_BEGIN: u16 = 1 << 3;
const RANGE_END: u16 = 1 << 4;

/// What a bridge that keeps VLANs apart has in IFLA_INFO_DATA.
pub fn filtering(data: &mut Body) {
    data.flag(BR_VLAN_FILTERING, true);
}

/// IFLA_INFO_DATA of a bridge. A kernel that cannot tell VLANs apart says nothing of them.
pub fn read_bridge(data: &[u8]) -> BridgeVlans {
    let mut vlans = BridgeVlans { filtering: false, default: 0 };
    for (kind, value) in attributes(data) {
        match kind {
            BR_VLAN_FILTERING => vlans.filtering = read_flag(value),
            BR_VLAN_DEFAULT_PVID => vlans.default = u16_at(value, 0).unwrap_or(0),
            _ => {}
        }
    }
    vlans
}

/// RTM_GETLINK for the VLANs of every port.
pub fn get_vlans() -> Body {
    const COMPRESSED_VLANS: u32 = 1 << 2;
    let mut body = link_header(0, 0, 0);
    body.0[0] = AF_BRIDGE;
    body.u32(libc::IFLA_EXT_MASK, COMPRESSED_VLANS);
    body
}

/// RTM_SETLINK to add `vlans`, RTM_DELLINK to delete them.
pub fn vlans(vlans: &PortVlans) -> Body {
    let mut body = link_header(vlans.device, 0, 0);
    body.0[0] = AF_BRIDGE;
    let native = if vlans.native { PVID | UNTAGGED } else { 0 };
    body.nest(libc::IFLA_AF_SPEC, |spec| {
        let mut info = |flags: u16, id: u16| {
            spec.attribute(VLAN_INFO, &[flags.to_ne_bytes(), id.to_ne_bytes()].concat());
        };
        if vlans.first == vlans.last {
            info(native, vlans.first);
        } else {
            info(native | RANGE_BEGIN, vlans.first);
            info(native | RANGE_END, vlans.last);
        }
    });
    body
}

/// RTM_NEWLINK of AF_BRIDGE as the kernel sends it.
pub fn read_vlans(payload: &[u8]) -> Option<Vec<PortVlans>> {
    let device = u32_at(payload, 4)?;
    let spec = attributes(payload.get(16..)?).find(|(kind, _)| *kind == libc::IFLA_AF_SPEC)?.1;
    let (mut all, mut begun) = (Vec::new(), None);
    for (_, info) in attributes(spec).filter(|(kind, _)| *kind == VLAN_INFO) {
        let (flags, id) = (u16_at(info, 0)?, u16_at(info, 2)?);
        if flags & RANGE_BEGIN != 0 {
            begun = Some(id);
            continue;
        }
        let first = begun.take().filter(|_| flags & RANGE_END != 0).unwrap_or(id);
        all.push(PortVlans { device, first, last: id, native: flags & PVID != 0 });
    }
    Some(all)
}
