//! Applies plans to the kernel, a few transactions for each set of changes: see [`Stage`].

use std::collections::HashMap;

use podwire_kernel::nftables::Batch;
use podwire_model::Family;

use super::{
    failed,
    render::Map,
    table::{Stage, TableState},
};
use crate::{
    Changes, Result,
    mode::{Applied, FAMILIES, Mode, Settings},
    plan::{Frontend, Treatment},
};

/// The nftables mode over a kernel or a fake of it.
#[derive(Debug)]
pub struct Nftables<K> {
    kernel: K,
    settings: Settings,
    tables: [TableState; 2],
    treatments: HashMap<Frontend, Treatment>,
    /// Changes that were handed over and not looked at yet.
    waiting: Vec<Changes>,
    /// What applied changes left to report.
    report: Applied,
    /// What the kernel holds is not known: at start and after an error.
    unknown: bool,
}

impl<K: podwire_kernel::nftables::Nftables> Nftables<K> {
    /// Knows nothing yet about what `kernel` holds; the first [`Mode::apply`] reads it.
    pub fn new(kernel: K, settings: Settings) -> Self {
        Self {
            kernel,
            settings,
            tables: FAMILIES.map(TableState::new),
            treatments: HashMap::new(),
            waiting: Vec::new(),
            report: Applied::default(),
            unknown: true,
        }
    }

    /// The kernel.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// The kernel, for tests that interfere.
    pub fn kernel_mut(&mut self) -> &mut K {
        &mut self.kernel
    }

    fn read_kernel(&mut self) -> Result<()> {
        for table in &mut self.tables {
            table.read(&mut self.kernel, &self.settings).map_err(failed)?;
        }
        self.unknown = false;
        self.report.full = true;
        Ok(())
    }

    /// Writes what is to be done in some stages, in one transaction.
    fn commit(&mut self, stages: &[Stage]) -> Result<usize> {
        let mut batch = Batch::new();
        let written = self.tables.iter_mut().map(|table| table.write(stages, &mut batch, &self.settings)).sum();
        match self.kernel.commit(&batch) {
            Ok(()) => {
                self.tables.iter_mut().for_each(TableState::committed);
                Ok(written)
            }
            Err(error) => {
                self.unknown = true;
                let outgrown = self.tables.iter_mut().filter_map(|table| table.refused(&error).then_some(())).count();
                if outgrown == 0 {
                    return Err(failed(error));
                }
                // A table that is being made anew has room, so this ends.
                self.read_kernel()?;
                self.commit(&[Stage::Prepare, Stage::Switch])
            }
        }
    }

    fn change(&mut self, changes: Changes) {
        for (frontend, after) in changes.frontends {
            let before = match &after {
                Some(treatment) => self.treatments.insert(frontend, treatment.clone()),
                None => self.treatments.remove(&frontend),
            };
            if before != after {
                let table = table(&mut self.tables, frontend.entry.family());
                table.route(&frontend, before.as_ref(), after.as_ref(), &mut self.report);
            }
        }
        for (map, addresses) in [(Map::ClusterIps, changes.cluster_ips), (Map::Hairpin, changes.hairpin)] {
            for (address, used) in addresses {
                table(&mut self.tables, Family::of(&address)).use_address(map, address, used);
            }
        }
    }
}

impl<K: podwire_kernel::nftables::Nftables> Mode for Nftables<K> {
    fn apply(&mut self, changes: Changes) -> Result<Applied> {
        self.waiting.push(changes);
        let read = self.unknown;
        if read {
            self.read_kernel()?;
        }
        for changes in std::mem::take(&mut self.waiting) {
            self.change(changes);
        }
        if read {
            self.tables.iter().for_each(|table| table.note_stale_frontends(&mut self.report));
        }
        let mut written = 0;
        if self.tables.iter().any(TableState::must_be_made) {
            written += self.commit(&[Stage::Prepare, Stage::Switch])?;
        } else {
            written += self.commit(&[Stage::Prepare])?;
            written += self.commit(&[Stage::Switch])?;
        }
        let untidy = self.tables.iter().any(TableState::is_untidy);
        Ok(Applied { written, untidy, ..std::mem::take(&mut self.report) })
    }

    fn tidy(&mut self) -> Result<bool> {
        if !self.unknown {
            self.commit(&[Stage::Tidy])?;
        }
        Ok(self.tables.iter().any(TableState::is_untidy))
    }

    fn disturbed(&mut self) -> Result<bool> {
        Ok(false)
    }
}

fn table(tables: &mut [TableState; 2], family: Family) -> &mut TableState {
    let [v4, v6] = tables;
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}
