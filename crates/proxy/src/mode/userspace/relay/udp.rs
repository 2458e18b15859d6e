//! UDP: each client of a port has a socket of its own to its backend, so that answers find back to it.

use std::{
    collections::{HashMap, hash_map},
    io,
    net::SocketAddr,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use podwire_kernel::socket::{Datagrams, Interest, LocalEnd, UdpFlow, UdpListener};

use super::{Key, Pool, Shared, Token};
use crate::plan::Backend;

/// How long a client of one question, or without an answer, keeps its backend after its last datagram.
const BRIEF: Duration = Duration::from_secs(30);
/// How long a client in conversation does. Both are what connection tracking does for the modes in the kernel.
const LONG: Duration = Duration::from_secs(120);
/// How often silent clients are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// So many batches are taken in a row from one socket before others have their turn.
const BATCHES: usize = 8;

/// All UDP ports and their clients.
pub struct Udp {
    doors: HashMap<u64, (Key, UdpListener, Arc<Pool>)>,
    flows: HashMap<u64, Flow>,
    by_client: HashMap<Client, u64>,
    batch: Datagrams,
    /// How many clients there may be; each one is an open file.
    most: usize,
    sweep_at: Option<Instant>,
}

/// Who asks, at which port, and which address of this machine it asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Client {
    door: u64,
    address: SocketAddr,
    local: LocalEnd,
}

struct Flow {
    client: Client,
    backend: Backend,
    socket: UdpFlow,
    used: Instant,
    /// Datagrams were sent before and after the first answer.
    conversation: bool,
    answered: bool,
    /// The last question as long as nothing was answered: for another backend, when this one refuses it.
    question: Vec<u8>,
    /// Backends that refused it.
    refused: Vec<Backend>,
}

impl Udp {
    /// Nobody yet; clients take up to half of the files that may be open.
    pub fn new(open_files: u64) -> Self {
        Self {
            doors: HashMap::new(),
            flows: HashMap::new(),
            by_client: HashMap::new(),
            batch: Datagrams::default(),
            most: usize::try_from(open_files / 2).unwrap_or(usize::MAX).clamp(64, 1 << 16),
            sweep_at: None,
        }
    }

    /// Begins to receive at a port.
    pub fn open(&mut self, key: Key, listener: UdpListener, pool: Arc<Pool>, shared: &mut Shared) {
        let id = shared.new_id();
        match shared.poller.add(&listener, Token::Door(id).encode(), Interest::Reading) {
            Ok(()) => drop(self.doors.insert(id, (key, listener, pool))),
            Err(error) => tracing::error!("userspace proxy: port {}: {error}", key.2),
        }
    }

    /// Closes a port and forgets its clients.
    pub fn close(&mut self, key: Key) {
        if let Some(id) = self.doors.iter().find(|(_, (other, ..))| *other == key).map(|(id, _)| *id) {
            self.doors.remove(&id);
            self.forget(|flow| flow.client.door == id);
        }
    }

    /// Closes the ports that have no clients.
    pub fn close_unused(&mut self) {
        let flows = &self.flows;
        self.doors.retain(|id, _| flows.values().any(|flow| flow.client.door == *id));
    }

    /// Whether no port is open.
    pub fn is_idle(&self) -> bool {
        self.doors.is_empty()
    }

    /// When [`Udp::run_due`] is wanted, at the latest.
    pub const fn next_deadline(&self) -> Option<Instant> {
        self.sweep_at
    }

    /// Forgets clients that have been silent for long.
    pub fn run_due(&mut self, now: Instant) {
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.forget(|flow| now.duration_since(flow.used) >= if flow.conversation { LONG } else { BRIEF });
            self.sweep_at = (!self.flows.is_empty()).then_some(now + SWEEP);
        }
    }

    fn forget(&mut self, mut which: impl FnMut(&Flow) -> bool) {
        let by_client = &mut self.by_client;
        self.flows.retain(|_, flow| {
            let gone = which(flow);
            if gone {
                by_client.remove(&flow.client);
            }
            !gone
        });
    }

    /// Datagrams of clients wait at a port.
    pub fn questions(&mut self, door: u64, shared: &mut Shared, now: Instant) {
        for _ in 0..BATCHES {
            let Some((_, listener, _)) = self.doors.get(&door) else { return };
            let mut batch = std::mem::take(&mut self.batch);
            // An error is "nothing waits", or a client that no longer wants an answer.
            let more = batch.receive(listener).unwrap_or(false);
            let mut begin = 0;
            while let Some(first) = batch.get(begin) {
                let client = Client { door, address: first.from, local: first.to };
                let is_same =
                    |index: &usize| batch.get(*index).is_some_and(|d| (d.from, d.to) == (first.from, first.to));
                let end = (begin..batch.len()).take_while(is_same).last().map_or(begin, |last| last) + 1;
                self.forward((&batch, begin..end), client, shared, now);
                begin = end;
            }
            self.batch = batch;
            if !more {
                return;
            }
        }
    }

    /// Sends what one client sent in a row to its backend, or to one that does not refuse it.
    fn forward(
        &mut self,
        (batch, mut which): (&Datagrams, Range<usize>),
        client: Client,
        shared: &mut Shared,
        now: Instant,
    ) {
        while !which.is_empty() {
            let Some(flow) = self.flow_of(client, shared, now) else { return };
            match batch.forward(which.clone(), &flow.socket) {
                Ok(sent) => {
                    flow.note_sent(batch, which.end - 1, now);
                    which.start += sent.max(1);
                }
                Err(error) if is_refusal(&error) => {
                    self.refused(client, shared, now);
                    if !self.by_client.contains_key(&client) {
                        return;
                    }
                }
                // No room, too large, or a firewall: these are lost, as they may be anywhere on their way.
                Err(_) => return,
            }
        }
    }

    /// The flow of a client, with a backend that its Service still has.
    fn flow_of(&mut self, client: Client, shared: &mut Shared, now: Instant) -> Option<&mut Flow> {
        let (_, _, pool) = self.doors.get(&client.door)?;
        if let hash_map::Entry::Occupied(entry) = self.by_client.entry(client) {
            let usable = self.flows.get(entry.get()).is_some_and(|flow| pool.lock().has(&flow.backend));
            if usable {
                return self.flows.get_mut(entry.get());
            }
            self.flows.remove(&entry.remove());
        }
        self.begin((client, Vec::new()), shared, now)
    }

    /// A new flow of a client, to a backend that has not refused it.
    fn begin(
        &mut self,
        (client, mut refused): (Client, Vec<Backend>),
        shared: &mut Shared,
        now: Instant,
    ) -> Option<&mut Flow> {
        if self.flows.len() >= self.most {
            self.make_room();
        }
        let pool = self.doors.get(&client.door)?.2.clone();
        loop {
            let backend = pool.lock().pick(client.address.ip().to_canonical(), &refused, now)?;
            match UdpFlow::connect(SocketAddr::new(backend.address, backend.port)) {
                Ok(socket) => {
                    let id = shared.new_id();
                    shared.poller.add(&socket, Token::Flow(id).encode(), Interest::Reading).ok()?;
                    self.by_client.insert(client, id);
                    self.sweep_at.get_or_insert(now + SWEEP);
                    let flow = Flow {
                        client,
                        backend,
                        socket,
                        used: now,
                        conversation: false,
                        answered: false,
                        question: Vec::new(),
                        refused,
                    };
                    return Some(self.flows.entry(id).or_insert(flow));
                }
                Err(error) if shared.is_starved(&error, now) => {
                    // This datagram is lost; the next one finds room.
                    self.make_room();
                    return None;
                }
                Err(_) => {
                    pool.lock().failed(backend, now);
                    refused.push(backend);
                }
            }
        }
    }

    /// Forgets the eighth of the clients that has been silent longest.
    fn make_room(&mut self) {
        let mut times: Vec<_> = self.flows.values().map(|flow| flow.used).collect();
        let eighth = times.len() / 8;
        if !times.is_empty() {
            let (_, limit, _) = times.select_nth_unstable(eighth);
            let limit = *limit;
            self.forget(|flow| flow.used <= limit);
        }
    }

    /// The backend of a client refused a datagram: the client gets another one, which gets the question.
    fn refused(&mut self, client: Client, shared: &mut Shared, now: Instant) {
        let Some(mut flow) = self.by_client.remove(&client).and_then(|id| self.flows.remove(&id)) else { return };
        if let Some((_, _, pool)) = self.doors.get(&client.door) {
            pool.lock().failed(flow.backend, now);
        }
        flow.refused.push(flow.backend);
        let question = std::mem::take(&mut flow.question);
        if let Some(flow) = self.begin((client, flow.refused), shared, now)
            && !question.is_empty()
            && flow.socket.send(&question).is_ok()
        {
            flow.question = question;
        }
    }

    /// A backend answers, or refuses.
    pub fn answers(&mut self, id: u64, shared: &mut Shared, now: Instant) {
        for _ in 0..BATCHES {
            let Some(flow) = self.flows.get_mut(&id) else { return };
            let more = match self.batch.receive(&flow.socket) {
                Ok(more) => more,
                Err(error) if is_refusal(&error) => {
                    let client = flow.client;
                    return self.refused(client, shared, now);
                }
                Err(_) => return,
            };
            flow.used = now;
            flow.answered = true;
            flow.question = Vec::new();
            if let Some((_, listener, _)) = self.doors.get(&flow.client.door) {
                // What the socket has no room for is lost, as it may be anywhere on its way.
                let _ = self.batch.answer(listener, flow.client.address, flow.client.local);
            }
            if !more {
                return;
            }
        }
    }
}

/// Whether a backend, or a router on the way there, said that it does not take datagrams (ICMP).
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
}

impl Flow {
    /// Notes what was sent; the last one of it.
    fn note_sent(&mut self, batch: &Datagrams, last: usize, now: Instant) {
        self.used = now;
        self.conversation |= self.answered;
        if !self.answered
            && let Some(datagram) = batch.get(last)
        {
            self.question.clear();
            self.question.extend_from_slice(datagram.bytes);
        }
    }
}
