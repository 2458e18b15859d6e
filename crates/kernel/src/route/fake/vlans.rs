//! The VLANs of bridge ports.

use std::fmt::Arguments;

use super::FakeRoute;
use crate::{Error, Result, route::PortVlans};

const VLANS: std::ops::RangeInclusive<u16> = 1..=4094;

impl FakeRoute {
    /// A new port is in the default VLAN; one that is no more is in none.
    pub(super) fn set_default_vlan(&mut self, port: u32, master: Option<u32>) {
        self.vlans.retain(|(device, _), _| *device != port);
        let default = master.and_then(|master| self.links.get(&master)?.vlans).map_or(0, |vlans| vlans.default);
        if default != 0 {
            self.vlans.insert((port, default), true);
        }
    }

    /// One entry for VLANs in a row, as the kernel lists them.
    pub(super) fn list_vlans(&self) -> Vec<PortVlans> {
        let mut all: Vec<PortVlans> = Vec::new();
        for ((device, id), native) in &self.vlans {
            match all.last_mut() {
                Some(row) if (row.device, row.last + 1, row.native, *native) == (*device, *id, false, false) => {
                    row.last = *id;
                }
                _ => all.push(PortVlans { device: *device, first: *id, last: *id, native: *native }),
            }
        }
        all
    }

    pub(super) fn put_vlans(&mut self, vlans: &PortVlans, what: Arguments<'_>) -> Result<()> {
        self.check_port_vlans(vlans, what)?;
        if vlans.native && vlans.first != vlans.last {
            return Err(Error::refused(what, libc::EINVAL));
        }
        if vlans.native {
            self.vlans.iter_mut().filter(|((device, _), _)| *device == vlans.device).for_each(|(_, on)| *on = false);
        }
        self.vlans.extend((vlans.first..=vlans.last).map(|id| ((vlans.device, id), vlans.native)));
        Ok(())
    }

    pub(super) fn remove_vlans(&mut self, vlans: &PortVlans, what: Arguments<'_>) -> Result<()> {
        self.check_port_vlans(vlans, what)?;
        self.vlans.retain(|(device, id), _| *device != vlans.device || !(vlans.first..=vlans.last).contains(id));
        Ok(())
    }

    fn check_port_vlans(&mut self, vlans: &PortVlans, what: Arguments<'_>) -> Result<()> {
        if self.at(vlans.device, what)?.port.is_none() {
            return Err(Error::refused(what, libc::EOPNOTSUPP));
        }
        let valid = vlans.first <= vlans.last && VLANS.contains(&vlans.first) && VLANS.contains(&vlans.last);
        if valid { Ok(()) } else { Err(Error::refused(what, libc::EINVAL)) }
    }
}
