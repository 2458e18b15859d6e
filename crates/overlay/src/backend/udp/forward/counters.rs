use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What the forwarder did since it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Packets of pods that went to other nodes, as many as are on the wire.
    pub sent_packets: u64,
    /// Their bytes, without the outer headers.
    pub sent_bytes: u64,
    /// Messages to the kernel that they went out in.
    pub sent_messages: u64,
    /// Messages that went out in pieces since the path to the peer, or its device, could not take them whole.
    pub sent_in_pieces: u64,
    /// Packets that came from other nodes.
    pub received_packets: u64,
    /// Their bytes, without the outer headers.
    pub received_bytes: u64,
    /// Packets that TUN got for them: fewer, since those of one flow become one.
    pub received_merged: u64,
    /// Packets dropped since no node has the destination; the sender was told.
    pub dropped_no_node: u64,
    /// Packets dropped since they went through too many nodes; the sender was told.
    pub dropped_expired: u64,
    /// Packets dropped that are not IPv4, or not a packet.
    pub dropped_malformed: u64,
    /// Packets dropped since the kernel did not take them: no route to the node, device down, memory short.
    pub dropped_refused: u64,
    /// How often the device was gone and had to be opened again.
    pub reopened: u64,
}

macro_rules! shared {
    ($($field:ident),* $(,)?) => {
        /// The counters of one thread; others only read them.
        #[derive(Debug, Default)]
        pub(super) struct Shared { $(pub $field: Counter),* }

        impl Shared {
            pub fn add_to(&self, sum: &mut Counters) {
                $(sum.$field += self.$field.0.load(Relaxed);)*
            }
        }
    };
}

shared!(
    sent_packets,
    sent_bytes,
    sent_messages,
    sent_in_pieces,
    received_packets,
    received_bytes,
    received_merged,
    dropped_no_node,
    dropped_expired,
    dropped_malformed,
    dropped_refused,
    reopened,
);

/// A number that one thread counts and others read.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: usize) {
        // With one writer, a load and a store do, and are cheaper than an atomic addition.
        self.0.store(self.0.load(Relaxed) + count as u64, Relaxed);
    }
}
