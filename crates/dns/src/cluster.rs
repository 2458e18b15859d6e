//! The state of the cluster, shared between the watch that writes it and the queries that read it.

use std::sync::{
    PoisonError, RwLock, RwLockReadGuard,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use crate::view::View;

/// A [`View`] behind a lock, and whether it is complete.
#[derive(Debug, Default)]
pub struct Cluster {
    view: RwLock<View>,
    synced: AtomicBool,
    serial: AtomicU32,
}

impl Cluster {
    /// Reads the view.
    pub fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the view. `serial` is the SOA serial number from now on: seconds since 1970, as CoreDNS has it.
    pub fn update(&self, serial: u32, change: impl FnOnce(&mut View)) {
        change(&mut self.view.write().unwrap_or_else(PoisonError::into_inner));
        self.serial.store(serial, Ordering::Relaxed);
    }

    /// Says that the view holds the whole cluster. Before, every question about it is answered with SERVFAIL.
    pub fn set_synced(&self) {
        self.synced.store(true, Ordering::Release);
    }

    /// Whether the view holds the whole cluster.
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// The SOA serial number.
    pub fn serial(&self) -> u32 {
        self.serial.load(Ordering::Relaxed)
    }
}
