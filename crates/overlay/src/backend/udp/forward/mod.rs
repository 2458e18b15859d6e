//! The data path: packets between the device `flannel0` and the UDP sockets of the nodes, in threads of its own.
//!
//! ```text
//! pod ─▶ kernel ─▶ TUN queue ─▶ split, checksums, table ─▶ UDP_SEGMENT ─▶ peer
//! pod ◀─ kernel ◀─ TUN queue ◀─ merge, checksums ◀──────── UDP_GRO ◀───── peer
//! ```
//!
//! The owner of an [`Overlay`] has one running whenever [`Settings::of`] says so, from after the first
//! [`Overlay::apply`] on, with the table that [`Overlay::forwards`] are; it hands on each [`crate::Outcome::forwards`]
//! after that.

mod counters;
mod outbound;
mod table;
mod worker;

use std::{
    net::{SocketAddr, SocketAddrV4},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use ipnet::IpNet;
use podwire_kernel::{
    Error, Result,
    socket::{Poller, Waker},
};
use podwire_model::Name;

pub use counters::Counters;
pub use table::Table;

use self::{counters::Shared, worker::Worker};
use crate::Overlay;

/// Where a forwarder works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The TUN device, such as `flannel0`. It must be there when the forwarder starts; if it is deleted and made again
    /// later, the forwarder finds it.
    pub device: Name,
    /// The node's own address, and the port of all nodes: what peers send to.
    pub listen: SocketAddrV4,
    /// Number of threads, each with a queue of the device and a socket, 1 to 256: [`Settings::processors`].
    pub threads: usize,
}

impl Settings {
    /// What the overlay asks for; nothing if it carries no packets in user space. When it changes, start another.
    pub fn of(overlay: &Overlay) -> Option<Self> {
        let (tunnel, listen) = overlay.forwarder()?;
        let SocketAddr::V4(listen) = listen else { return None };
        Some(Self { device: tunnel.device.clone(), listen, threads: Self::processors() })
    }

    /// As many threads as this process may use processors, at most 16.
    pub fn processors() -> usize {
        thread::available_parallelism().map_or(1, |count| count.get().min(16))
    }
}

/// A running data path. It ends when this is dropped, and all its threads with it.
#[derive(Debug)]
pub struct Forwarder {
    shared: Arc<State>,
    threads: Vec<(JoinHandle<()>, Waker)>,
}

/// What the threads share with the owner.
#[derive(Debug)]
struct State {
    settings: Settings,
    table: RwLock<Table>,
    counters: Vec<Shared>,
    stopping: AtomicBool,
}

impl State {
    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Forwarder {
    /// Starts to carry packets, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The device is missing or of another kind; the address is not this node's, or another program (flanneld, say)
    /// listens there; no right to do so.
    pub fn start(settings: Settings, table: Table) -> Result<Self> {
        if !(1..=256).contains(&settings.threads) {
            return Err(Error::invalid(
                "start the forwarder",
                format!("{} threads, expected 1 to 256", settings.threads),
            ));
        }
        let count = settings.threads;
        let shared = Arc::new(State {
            settings,
            table: RwLock::new(table),
            counters: (0..count).map(|_| Shared::default()).collect(),
            stopping: AtomicBool::new(false),
        });
        let mut forwarder = Self { shared: Arc::clone(&shared), threads: Vec::with_capacity(count) };
        for index in 0..count {
            let poller = Poller::new()?;
            let waker = Waker::new(&poller, worker::WAKER)?;
            let worker = Worker::new(Arc::clone(&shared), index, poller)?;
            let name = format!("udp-{index}");
            let thread = thread::Builder::new().name(name).spawn(move || worker.run());
            let thread = thread.map_err(|error| Error::io("start a thread of the forwarder", error))?;
            forwarder.threads.push((thread, waker));
        }
        Ok(forwarder)
    }

    /// Changes lines of the table ([`crate::Outcome::forwards`]), for the next packets. They wait as long as it takes to
    /// change so many lines, however long the table is.
    pub fn change_table(&self, lines: &[(IpNet, Option<SocketAddr>)]) {
        if lines.is_empty() {
            return;
        }
        let mut table = self.shared.table.write().unwrap_or_else(PoisonError::into_inner);
        lines.iter().for_each(|(range, to)| table.change(*range, *to));
    }

    /// What was carried and dropped so far.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.shared.counters.iter().for_each(|counters| counters.add_to(&mut sum));
        sum
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Relaxed);
        self.threads.iter().for_each(|(_, waker)| waker.wake());
        for (thread, _) in self.threads.drain(..) {
            // It ends by itself, or has ended by a panic that was printed.
            let _ = thread.join();
        }
    }
}
