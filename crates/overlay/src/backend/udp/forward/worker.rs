use std::{
    io::{self, IoSlice},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use podwire_kernel::{
    Result,
    socket::{Arrivals, IcmpSender, Interest, Poller, TunnelSocket},
    tun::Queue,
};

use super::{State, counters::Shared, outbound::Outbound};
use crate::backend::udp::packet::{
    icmp::{self, Problem},
    ipv4::Unfit,
    merge::Merger,
};

/// What a poll says is ready.
pub(super) const WAKER: u64 = 0;
const QUEUE: u64 = 1;
const SOCKET: u64 = 2;
/// How long to wait for a device that is gone before looking for it again.
const PATIENCE: Duration = Duration::from_millis(50);

/// One thread: a queue of the device and a socket.
pub(super) struct Worker {
    shared: Arc<State>,
    index: usize,
    poller: Poller,
    /// Absent while there is no device.
    queue: Option<Queue>,
    socket: TunnelSocket,
    icmp: IcmpSender,
    outbound: Outbound,
    arrivals: Arrivals,
    merger: Merger,
}

impl Worker {
    /// Opens its queue and its socket, in the network namespace of the calling thread.
    pub fn new(shared: Arc<State>, index: usize, poller: Poller) -> Result<Self> {
        let socket = TunnelSocket::bind(shared.settings.listen)?;
        poller.add(&socket, SOCKET, Interest::Reading)?;
        let queue = Queue::attach(&shared.settings.device)?;
        poller.add(&queue, QUEUE, Interest::Reading)?;
        let (outbound, arrivals) = Default::default();
        let merger = Merger::new(queue.knows_udp_segments());
        Ok(Self {
            shared,
            index,
            poller,
            queue: Some(queue),
            socket,
            icmp: IcmpSender::open()?,
            outbound,
            arrivals,
            merger,
        })
    }

    /// Carries packets until it is told to stop.
    pub fn run(mut self) {
        let mut ready = Vec::new();
        while !self.shared.stopping.load(Relaxed) {
            // As long as there is something to do, trying both is cheaper than asking which one has it.
            let sent = self.send();
            let received = self.receive();
            if sent || received {
                continue;
            }
            if self.queue.is_none() {
                self.reopen();
            }
            let timeout = if self.queue.is_none() { Some(PATIENCE) } else { None };
            // Waiting fails only for what is no epoll set.
            if self.poller.wait(&mut ready, timeout).is_err() {
                return;
            }
        }
    }

    /// Device to peers. Whether there was anything.
    fn send(&mut self) -> bool {
        let Some(queue) = &self.queue else { return false };
        let counters = &self.shared.counters[self.index];
        let (taken, result) = self.outbound.take(queue, &self.shared.table(), counters);
        if taken > 0 {
            self.outbound.dispatch(&self.socket, counters);
            for (problem, at) in &self.outbound.problems {
                tell_sender(&self.icmp, *problem, self.outbound.packet(at.clone()));
            }
        }
        if result.is_err() {
            self.queue = None;
        }
        taken > 0
    }

    /// Peers to device. Whether there was anything.
    fn receive(&mut self) -> bool {
        if self.arrivals.receive(&self.socket).is_err() {
            return false;
        }
        let counters = &self.shared.counters[self.index];
        let (memory, datagrams) = self.arrivals.open();
        self.merger.clear();
        for at in datagrams {
            let length = at.len();
            match self.merger.push(memory, at.clone()) {
                Ok(()) => {
                    counters.received_packets.add(1);
                    counters.received_bytes.add(length);
                }
                Err(Unfit::Expired) => {
                    counters.dropped_expired.add(1);
                    tell_sender(&self.icmp, Problem::Expired, &memory[at]);
                }
                Err(Unfit::OtherVersion | Unfit::Malformed) => counters.dropped_malformed.add(1),
            }
        }
        self.merger.finish(memory);
        if hand_over(self.queue.as_ref(), &self.merger, memory, counters).is_err() {
            self.queue = None;
        }
        true
    }

    /// Looks for the device, which was deleted and may be there again.
    fn reopen(&mut self) {
        let Ok(queue) = Queue::attach(&self.shared.settings.device) else { return };
        if self.poller.add(&queue, QUEUE, Interest::Reading).is_ok() {
            self.shared.counters[self.index].reopened.add(1);
            self.queue = Some(queue);
        }
    }
}

/// Gives the device what has come.
///
/// # Errors
/// The device is gone.
fn hand_over(queue: Option<&Queue>, merger: &Merger, memory: &[u8], counters: &Shared) -> io::Result<()> {
    let Some(queue) = queue else {
        counters.dropped_refused.add(merger.groups.len());
        return Ok(());
    };
    let mut parts = Vec::with_capacity(merger.parts.len());
    parts.extend(merger.parts.iter().map(|at| IoSlice::new(&memory[at.clone()])));
    for group in &merger.groups {
        match queue.send(group.offload, &parts[group.parts.clone()]) {
            Ok(()) => counters.received_merged.add(1),
            Err(error) => {
                counters.dropped_refused.add(1);
                if error.raw_os_error() == Some(libc::EBADFD) {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// If the message gets lost, the sender is told about its next packet.
fn tell_sender(icmp: &IcmpSender, problem: Problem, packet: &[u8]) {
    if let Some((sender, message)) = icmp::error(problem, packet) {
        let _ = icmp.send(sender, &message);
    }
}
