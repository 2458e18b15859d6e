//! The mode at work over both families.

use podwire_kernel::iptables::Iptables;
use podwire_model::Family;

use super::{failed, found, render::backends, state::FamilyState};
use crate::{
    Changes, Result,
    mode::{Applied, FAMILIES, Mode, Settings},
};

/// The iptables mode over the machine's iptables or a fake of it.
#[derive(Debug)]
pub struct IptablesMode<K> {
    iptables: K,
    settings: Settings,
    families: [FamilyState; 2],
    /// Flows that changes left behind, until they are reported.
    report: Applied,
    /// What the kernel holds is not known: at start, after an error, and when others changed it.
    unknown: bool,
    /// Nothing was brought into the kernel yet.
    starting: bool,
}

impl<K: Iptables> IptablesMode<K> {
    /// Knows nothing yet about what the kernel holds; the first [`Mode::apply`] reads it.
    pub fn new(iptables: K, settings: Settings) -> Self {
        let families = FAMILIES.map(FamilyState::new);
        Self { iptables, settings, families, report: Applied::default(), unknown: true, starting: true }
    }

    /// The iptables underneath.
    pub fn iptables(&self) -> &K {
        &self.iptables
    }

    /// The iptables underneath, for tests that interfere.
    pub fn iptables_mut(&mut self) -> &mut K {
        &mut self.iptables
    }

    fn is_untidy(&self) -> bool {
        self.families.iter().any(FamilyState::is_untidy)
    }

    fn change(&mut self, changes: Changes) {
        for (frontend, after) in changes.frontends {
            let new = backends(after.as_ref());
            let state = family(&mut self.families, frontend.entry.family());
            let old = backends(state.route(frontend, after).as_ref());
            // At start the kernel says what an earlier run sent where.
            if !self.starting {
                self.report.note_stale(frontend, &old, &new);
            }
        }
        for (address, used) in changes.cluster_ips {
            family(&mut self.families, Family::of(&address)).use_cluster_ip(address, used);
        }
    }
}

impl<K: Iptables> Mode for IptablesMode<K> {
    fn apply(&mut self, changes: Changes) -> Result<Applied> {
        self.change(changes);
        let full = std::mem::replace(&mut self.unknown, true);
        let mut written = 0;
        for state in &mut self.families {
            written += if full || state.must_be_made() {
                state.sync(&mut self.iptables, &self.settings, &mut self.report)
            } else {
                state.write(&mut self.iptables, &self.settings)
            }
            .map_err(failed)?;
        }
        (self.unknown, self.starting) = (false, false);
        let mut stale = std::mem::take(&mut self.report).stale;
        stale.sort_unstable();
        stale.dedup();
        Ok(Applied { full, written, stale, untidy: self.is_untidy() })
    }

    fn tidy(&mut self) -> Result<bool> {
        // What is not known is read by the next call of apply, which is due then.
        if !std::mem::replace(&mut self.unknown, true) {
            for state in &mut self.families {
                state.tidy(&mut self.iptables).map_err(failed)?;
            }
            self.unknown = false;
        }
        Ok(self.is_untidy())
    }

    fn disturbed(&mut self) -> Result<bool> {
        let disturbed = self.iptables.disturbed().map_err(failed)?;
        self.unknown |= disturbed;
        Ok(disturbed)
    }
}

/// Removes everything of this mode's, and of kube-proxy's in the same mode.
///
/// # Errors
/// What iptables refused.
pub fn remove(iptables: &mut impl Iptables) -> Result<()> {
    for family in FAMILIES {
        for (table, edits) in found::removal(iptables, family).map_err(failed)? {
            iptables.edit(family, table, &mut edits.into_iter()).map_err(failed)?;
        }
    }
    Ok(())
}

fn family(families: &mut [FamilyState; 2], family: Family) -> &mut FamilyState {
    let [v4, v6] = families;
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}
