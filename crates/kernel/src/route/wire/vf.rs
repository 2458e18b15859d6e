//! Virtual functions of SR-IOV cards as attributes of their physical function's link and back.

use super::{Body, link::link_header};
use crate::{
    netlink::{attributes, u32_at},
    route::types::{Mac, VfChange, VfLinkState, VfRate, VfVlan, VirtualFunction, VlanProtocol},
};

/// Kinds inside IFLA_VFINFO_LIST that `libc` does not have (`linux/if_link.h`). Each value is a structure that begins with
/// the number of the function, in 32 bits.
mod kind {
    pub const VF_INFO: u16 = 1;
    pub const MAC: u16 = 1;
    pub const VLAN: u16 = 2;
    pub const SPOOFCHK: u16 = 4;
    pub const LINK_STATE: u16 = 5;
    pub const RATE: u16 = 6;
    pub const TRUST: u16 = 9;
    pub const VLAN_LIST: u16 = 12;
    pub const VLAN_INFO: u16 = 1;
}

/// The longest address of any kind of link (MAX_ADDR_LEN).
const LONGEST_ADDRESS: usize = 32;
/// What a driver leaves in place of what it cannot tell (`rtnl_fill_vfinfo` of `net/core/rtnetlink.c`).
const UNKNOWN: u32 = u32::MAX;

/// RTM_GETLINK for one link and its virtual functions.
pub fn get_vfs(index: u32) -> Body {
    const VIRTUAL_FUNCTIONS: u32 = 1;
    const SKIP_STATISTICS: u32 = 1 << 3;
    let mut body = link_header(index, 0, 0);
    body.u32(libc::IFLA_EXT_MASK, VIRTUAL_FUNCTIONS | SKIP_STATISTICS);
    body
}

/// RTM_SETLINK of the physical function with one change of function `id`.
pub fn change_vf(index: u32, id: u32, change: &VfChange) -> Body {
    let mut body = link_header(index, 0, 0);
    body.nest(libc::IFLA_VFINFO_LIST, |list| {
        list.nest(kind::VF_INFO, |info| write(info, id, change));
    });
    body
}

fn write(info: &mut Body, id: u32, change: &VfChange) {
    let words = |words: &[u32]| [&[id], words].concat().iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    match *change {
        VfChange::Mac(Mac(octets)) => {
            let mut value = words(&[]);
            value.extend(octets);
            value.resize(4 + LONGEST_ADDRESS, 0);
            info.attribute(kind::MAC, &value);
        }
        VfChange::Vlan(VfVlan { id, qos, protocol: VlanProtocol::Q }) => {
            info.attribute(kind::VLAN, &words(&[id.into(), qos.into()]));
        }
        VfChange::Vlan(VfVlan { id, qos, protocol }) => {
            let mut value = words(&[id.into(), qos.into()]);
            value.extend(protocol.ether_type().to_be_bytes());
            value.resize(16, 0);
            info.nest(kind::VLAN_LIST, |list| _ = list.attribute(kind::VLAN_INFO, &value));
        }
        VfChange::Rate(VfRate { min, max }) => _ = info.attribute(kind::RATE, &words(&[min, max])),
        VfChange::SpoofCheck(on) => _ = info.attribute(kind::SPOOFCHK, &words(&[on.into()])),
        VfChange::Trust(on) => _ = info.attribute(kind::TRUST, &words(&[on.into()])),
        VfChange::LinkState(state) => _ = info.attribute(kind::LINK_STATE, &words(&[state_number(state)])),
    }
}

const fn state_number(state: VfLinkState) -> u32 {
    match state {
        VfLinkState::Auto => 0,
        VfLinkState::Enable => 1,
        VfLinkState::Disable => 2,
    }
}

/// The virtual functions in an RTM_NEWLINK, in the order of their numbers; none for other links.
pub fn read_vfs(payload: &[u8]) -> Option<Vec<VirtualFunction>> {
    let lists = attributes(payload.get(16..)?).filter(|(kind, _)| *kind == libc::IFLA_VFINFO_LIST);
    let infos = lists.flat_map(|(_, list)| attributes(list)).filter(|(kind, _)| *kind == kind::VF_INFO);
    let mut found: Vec<VirtualFunction> = infos.filter_map(|(_, info)| read_vf(info)).collect();
    found.sort_by_key(|function| function.id);
    Some(found)
}

fn read_vf(info: &[u8]) -> Option<VirtualFunction> {
    let known = |value: &[u8]| u32_at(value, 4).filter(|setting| *setting != UNKNOWN).map(|setting| setting != 0);
    let mut id = None;
    let mut function = VirtualFunction {
        id: 0,
        mac: Mac([0; 6]),
        vlan: VfVlan::default(),
        rate: VfRate::default(),
        spoof_check: None,
        trust: None,
        link_state: VfLinkState::Auto,
    };
    for (kind, value) in attributes(info) {
        match kind {
            kind::MAC => {
                id = u32_at(value, 0);
                function.mac = Mac(value.get(4..).and_then(|octets| octets.first_chunk().copied())?);
            }
            // Older than the list, which follows and has the protocol, too.
            kind::VLAN => function.vlan = read_vlan(value)?,
            kind::VLAN_LIST => {
                let first = attributes(value).find(|(kind, _)| *kind == kind::VLAN_INFO);
                function.vlan = first.and_then(|(_, value)| read_vlan(value)).unwrap_or(function.vlan);
            }
            kind::RATE => function.rate = VfRate { min: u32_at(value, 4)?, max: u32_at(value, 8)? },
            kind::SPOOFCHK => function.spoof_check = known(value),
            kind::TRUST => function.trust = known(value),
            kind::LINK_STATE => {
                let states = [VfLinkState::Auto, VfLinkState::Enable, VfLinkState::Disable];
                let found = states.into_iter().find(|state| Some(state_number(*state)) == u32_at(value, 4));
                function.link_state = found.unwrap_or_default();
            }
            _ => {}
        }
    }
    function.id = id?;
    Some(function)
}

/// `struct ifla_vf_vlan`, or `struct ifla_vf_vlan_info`, which is longer.
fn read_vlan(value: &[u8]) -> Option<VfVlan> {
    let (id, qos) = (u32_at(value, 4)? as u16, u32_at(value, 8)? as u8);
    let outer = value.get(12..14) == Some(&VlanProtocol::Ad.ether_type().to_be_bytes());
    Some(VfVlan { id, qos, protocol: if outer { VlanProtocol::Ad } else { VlanProtocol::Q } })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The kernel's answer has the same structures as the request: a function is read as it was changed.
    fn read_back(id: u32, changes: &[VfChange]) -> VirtualFunction {
        let mut body = link_header(7, 0, 0);
        body.nest(libc::IFLA_VFINFO_LIST, |list| {
            list.nest(kind::VF_INFO, |info| changes.iter().for_each(|change| write(info, id, change)));
        });
        read_vfs(&body.0).unwrap().remove(0)
    }

    proptest! {
        #[test]
        fn a_function_is_read_as_it_was_changed(id in any::<u32>(), octets in any::<[u8; 6]>(), vlan in 0_u16..4095,
            qos in 0_u8..8, outer in any::<bool>(), min in any::<u32>(), max in any::<u32>(), spoof in any::<bool>(),
            trust in any::<bool>(), state in prop::sample::select(vec![VfLinkState::Auto, VfLinkState::Enable, VfLinkState::Disable])) {
            let protocol = if outer { VlanProtocol::Ad } else { VlanProtocol::Q };
            let expected = VirtualFunction {
                id,
                mac: Mac(octets),
                vlan: VfVlan { id: vlan, qos, protocol },
                rate: VfRate { min, max },
                spoof_check: Some(spoof),
                trust: Some(trust),
                link_state: state,
            };
            let changes = [
                VfChange::Mac(expected.mac), VfChange::Vlan(expected.vlan), VfChange::Rate(expected.rate),
                VfChange::SpoofCheck(spoof), VfChange::Trust(trust), VfChange::LinkState(state),
            ];
            prop_assert_eq!(read_back(id, &changes), expected);
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            _ = read_vfs(&bytes);
            let mut body = link_header(7, 0, 0);
            body.nest(libc::IFLA_VFINFO_LIST, |list| _ = list.attribute(kind::VF_INFO, &bytes));
            _ = read_vfs(&body.0);
        }
    }

    #[test]
    fn what_a_driver_cannot_tell_is_unknown() {
        let mut body = link_header(7, 0, 0);
        body.nest(libc::IFLA_VFINFO_LIST, |list| {
            list.nest(kind::VF_INFO, |info| {
                write(info, 3, &VfChange::Mac(Mac([2; 6])));
                info.attribute(kind::SPOOFCHK, &[3_u32.to_ne_bytes(), UNKNOWN.to_ne_bytes()].concat());
            });
        });
        let function = read_vfs(&body.0).unwrap().remove(0);
        assert_eq!((function.id, function.spoof_check, function.trust), (3, None, None));
    }
}
