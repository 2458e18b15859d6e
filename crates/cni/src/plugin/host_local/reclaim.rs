//! Leases of containers that are gone without a DEL: after a crash or a reboot.
//!
//! Lease files name no namespace. The runtime's cache of results does (libcni, and `podwire_cni::runtime` alike):
//! `results/NETWORK-CONTAINER-INTERFACE` beside the folder of leases holds ADD's result, in which the container's
//! interface names its sandbox.

use std::{fs, path::Path};

use serde_json::Value;

use super::store::{Lease, Store};
use crate::Result;

/// Releases what belongs to containers whose namespace does not exist any more; returns how many addresses that are. A
/// container of which nothing is known keeps its address: its ADD may not have ended.
pub fn reclaim(store: &Store, data_dir: &Path, network: &str) -> Result<usize> {
    let Some(results) = data_dir.parent().map(|folder| folder.join("results")) else { return Ok(0) };
    let leases = store.leases()?;
    let gone: Vec<&Lease> = leases.iter().filter(|lease| is_gone(&results, network, lease)).collect();
    gone.iter().try_for_each(|lease| store.release(lease.ip))?;
    Ok(gone.len())
}

fn is_gone(results: &Path, network: &str, lease: &Lease) -> bool {
    let Some((container_id, ifname)) = lease.owner() else { return false };
    let cached = fs::read(results.join(format!("{network}-{container_id}-{ifname}"))).ok();
    let Some(entry) = cached.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()) else { return false };
    let interfaces = entry["result"]["interfaces"].as_array().into_iter().flatten();
    let mut sandboxes =
        interfaces.filter_map(|interface| interface["sandbox"].as_str()).filter(|path| !path.is_empty());
    // What cannot be looked at may be there.
    sandboxes.next().is_some_and(|path| Path::new(path).try_exists().is_ok_and(|exists| !exists))
}
