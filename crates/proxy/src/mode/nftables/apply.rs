//! Applies plans to the kernel, a few transactions for each set of changes: see [`Stage`].

use std::collections::{BTreeMap, HashMap};

use podwire_kernel::nftables::Batch;
use podwire_model::{Family, ObjectName};

use super::{
    failed,
    render::Map,
    table::{Stage, TableState},
};
use crate::{
    Change, Result,
    mode::{Applied, FAMILIES, Mode, Settings},
    plan::{Frontend, ServicePlan, Treatment},
};

/// The nftables mode over a kernel or a fake of it.
#[derive(Debug)]
pub struct Nftables<K> {
    kernel: K,
    settings: Settings,
    tables: [TableState; 2],
    plans: HashMap<ObjectName, ServicePlan>,
    /// Who asks for a frontend. Two Services may (an external IP, a node port taken over): the first by name gets it,
    /// so that the result does not depend on who came first.
    claims: HashMap<Frontend, BTreeMap<ObjectName, Treatment>>,
    /// Changes that were handed over and not looked at yet.
    waiting: Vec<Change>,
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
            plans: HashMap::new(),
            claims: HashMap::new(),
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
                self.tables.iter_mut().for_each(TableState::refused);
                self.unknown = true;
                Err(failed(error))
            }
        }
    }

    fn change(&mut self, name: &ObjectName, plan: ServicePlan) {
        let old = self.plans.remove(name).unwrap_or_default();
        for (frontend, treatment) in &plan.frontends {
            if old.frontends.get(frontend) != Some(treatment) {
                self.claim(frontend, name, Some(treatment.clone()));
            }
        }
        for frontend in old.frontends.keys().filter(|frontend| !plan.frontends.contains_key(frontend)) {
            self.claim(frontend, name, None);
        }
        for (map, old, new) in
            [(Map::ClusterIps, &old.cluster_ips, &plan.cluster_ips), (Map::Hairpin, &old.hairpin, &plan.hairpin)]
        {
            for address in new.difference(old) {
                table(&mut self.tables, Family::of(address)).use_address(map, *address, true);
            }
            for address in old.difference(new) {
                table(&mut self.tables, Family::of(address)).use_address(map, *address, false);
            }
        }
        if plan != ServicePlan::default() {
            self.plans.insert(name.clone(), plan);
        }
    }

    fn claim(&mut self, frontend: &Frontend, service: &ObjectName, treatment: Option<Treatment>) {
        let claims = self.claims.entry(*frontend).or_default();
        let before = claims.values().next().cloned();
        match treatment {
            Some(treatment) => claims.insert(service.clone(), treatment),
            None => claims.remove(service),
        };
        let after = claims.values().next().cloned();
        if claims.is_empty() {
            self.claims.remove(frontend);
        }
        if before != after {
            let table = table(&mut self.tables, frontend.entry.family());
            table.route(frontend, before.as_ref(), after.as_ref(), &mut self.report);
        }
    }
}

impl<K: podwire_kernel::nftables::Nftables> Mode for Nftables<K> {
    fn apply(&mut self, changes: Vec<Change>) -> Result<Applied> {
        self.waiting.extend(changes);
        let read = self.unknown;
        if read {
            self.read_kernel()?;
        }
        for (name, plan) in std::mem::take(&mut self.waiting) {
            self.change(&name, plan);
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
}

fn table(tables: &mut [TableState; 2], family: Family) -> &mut TableState {
    let [v4, v6] = tables;
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}
