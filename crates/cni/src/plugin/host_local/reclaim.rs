//! Leases of containers that are gone without a DEL: after a crash or a reboot.
//!
//! Lease files name no namespace. The runtime's cache of results does; it is beside the folder of leases.

use std::path::Path;

use super::store::{Lease, Store};
use crate::{Result, runtime::namespace_is_gone};

/// Releases what belongs to containers whose namespace does not exist any more; returns how many addresses that are. A
/// container of which nothing is known keeps its address: its ADD may not have ended.
pub fn reclaim(store: &Store, data_dir: &Path, network: &str) -> Result<usize> {
    let Some(results) = data_dir.parent().map(|folder| folder.join("results")) else { return Ok(0) };
    store.remove_debris()?;
    let leases = store.leases()?;
    let gone: Vec<&Lease> = leases.iter().filter(|lease| is_gone(&results, network, lease)).collect();
    gone.iter().try_for_each(|lease| store.release(lease.ip))?;
    Ok(gone.len())
}

fn is_gone(results: &Path, network: &str, lease: &Lease) -> bool {
    lease.is_debris()
        || lease.owner().is_some_and(|(container_id, ifname)| namespace_is_gone(results, network, container_id, ifname))
}
