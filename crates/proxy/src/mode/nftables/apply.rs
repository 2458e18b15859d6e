//! Applies plans to the kernel, a few transactions for each set of changes: see [`Stage`].

use podwire_kernel::nftables::{Batch, Table};
use podwire_model::Family;

use super::{
    failed,
    map::Item,
    table::{Stage, TableState},
};
use crate::{
    Changes, Error, Result,
    mode::{Applied, FAMILIES, Mode, Settings},
    plan::Frontend,
};

/// How many endpoints are written in one transaction of a large first sync: it takes a few milliseconds, and others may
/// have their turn in between (docs/adr/0007).
const AT_ONCE: usize = 1 << 13;

/// The nftables mode over a kernel or a fake of it.
#[derive(Debug)]
pub struct Nftables<K> {
    kernel: K,
    settings: Settings,
    tables: [TableState; 2],
    /// What applied changes left to report.
    report: Applied,
    /// What the kernel holds is not known: at start and after an error.
    unknown: bool,
}

impl<K: podwire_kernel::nftables::Nftables> Nftables<K> {
    /// Knows nothing yet about what `kernel` holds; the first [`Mode::apply`] reads it.
    pub fn new(kernel: K, settings: Settings) -> Self {
        let tables = FAMILIES.map(TableState::new);
        Self { kernel, settings, tables, report: Applied::default(), unknown: true }
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
        // What others change from here on is news.
        let tables = self.tables.each_ref().map(|table| table.table().clone());
        self.kernel.changed_by_others(&tables).map_err(failed)?;
        for table in &mut self.tables {
            table.read(&mut self.kernel, &self.settings).map_err(failed)?;
        }
        self.unknown = false;
        self.report.full = true;
        Ok(())
    }

    /// Takes note of what is wanted; returns the frontends that it is about.
    fn want(&mut self, changes: Changes) -> [Vec<Frontend>; 2] {
        let mut changed = [Vec::new(), Vec::new()];
        for (frontend, treatment) in changes.frontends {
            let family = frontend.entry.family();
            of(&mut changed, family).push(frontend);
            of(&mut self.tables, family).want(frontend, treatment);
        }
        for (address, used) in changes.cluster_ips {
            of(&mut self.tables, Family::of(&address)).use_address(Item::ClusterIp(address), used);
        }
        for (address, used) in changes.hairpin {
            of(&mut self.tables, Family::of(&address)).use_address(Item::Hairpin(address), used);
        }
        changed
    }

    /// Notes what is to be written for each of some frontends; writes endpoints already, where there are many.
    fn route(&mut self, frontends: [Vec<Frontend>; 2]) -> Result<()> {
        let split = !self.tables.iter().any(TableState::must_be_replaced);
        for (index, frontends) in frontends.into_iter().enumerate() {
            for frontend in frontends {
                let Some(table) = self.tables.get_mut(index) else { continue };
                table.route(&frontend, &mut self.report);
                if split && table.prepared() >= AT_ONCE {
                    let mut batch = Batch::new();
                    let written = table.write_endpoints(&mut batch, &self.settings);
                    self.commit(&batch, written)?;
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, stages: &[Stage]) -> Result<()> {
        let mut batch = Batch::new();
        let mut written = 0;
        for stage in stages {
            written +=
                self.tables.iter_mut().map(|table| table.write(*stage, &mut batch, &self.settings)).sum::<usize>();
        }
        self.commit(&batch, written)
    }

    fn commit(&mut self, batch: &Batch, written: usize) -> Result<()> {
        let Err(error) = self.kernel.commit(batch) else {
            self.report.written += written;
            return Ok(());
        };
        // The tables count on it that what they write happens: as it did not, they must be read again.
        self.unknown = true;
        if error.set_is_full() {
            self.tables.iter_mut().for_each(TableState::outgrown);
        }
        Err(failed(error))
    }

    /// Brings what is wanted at some frontends into the kernel, or all there is if it is not known what that holds.
    fn sync(&mut self, mut frontends: [Vec<Frontend>; 2]) -> Result<()> {
        if self.unknown {
            self.read_kernel()?;
            frontends = self.tables.each_ref().map(TableState::all_frontends);
        }
        self.route(frontends)?;
        if self.tables.iter().any(TableState::must_be_replaced) {
            return self.write(&[Stage::Prepare, Stage::Switch]);
        }
        self.write(&[Stage::Prepare])?;
        self.write(&[Stage::Switch])
    }
}

impl<K: podwire_kernel::nftables::Nftables> Mode for Nftables<K> {
    fn apply(&mut self, changes: Changes) -> Result<Applied> {
        let frontends = self.want(changes);
        match self.sync(frontends) {
            Err(Error::Kernel { source, .. }) if source.set_is_full() => self.sync([Vec::new(), Vec::new()])?,
            done => done?,
        }
        let untidy = self.tables.iter().any(TableState::is_untidy);
        Ok(Applied { untidy, ..std::mem::take(&mut self.report) })
    }

    fn tidy(&mut self) -> Result<bool> {
        if !self.unknown {
            let written = self.report.written;
            self.write(&[Stage::Tidy])?;
            self.report.written = written;
        }
        Ok(self.tables.iter().any(TableState::is_untidy))
    }

    fn disturbed(&mut self) -> Result<bool> {
        let tables: [Table; 2] = self.tables.each_ref().map(|table| table.table().clone());
        let disturbed = self.kernel.changed_by_others(&tables).map_err(failed)?;
        self.unknown |= disturbed;
        Ok(disturbed)
    }
}

fn of<T>([v4, v6]: &mut [T; 2], family: Family) -> &mut T {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}
