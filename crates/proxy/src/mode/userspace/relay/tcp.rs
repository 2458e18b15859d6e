//! TCP connections: accept, find a backend that takes it, copy.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use podwire_kernel::socket::{Interest, Ready, TcpListener, abort, begin_connect, connect_outcome, set_keepalive};

use super::{
    Key, Pool, STARVED_PAUSE, Shared, Token,
    splice::{End, Half, Pipes, Stop},
};
use crate::{mode::userspace::dial::Dial, plan::Backend};

/// So many connections are accepted in a row at one port before others have their turn.
const ACCEPTS: usize = 64;
/// After so much silence a peer is asked whether it is still there, as often as Go's proxies do.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// All TCP ports and connections.
#[derive(Default)]
pub struct Tcp {
    doors: HashMap<u64, (Key, TcpListener, Arc<Pool>)>,
    dialing: HashMap<u64, Dialing>,
    open: HashMap<u64, Connection>,
    /// When to give up which attempts.
    deadlines: BinaryHeap<Reverse<(Instant, u64)>>,
    pipes: Pipes,
    /// Connections with more to copy than their turn allowed.
    unfinished: BTreeSet<u64>,
    starved: Starved,
}

/// What waits for open files.
#[derive(Default)]
struct Starved {
    until: Option<Instant>,
    doors: BTreeSet<u64>,
    dialing: BTreeSet<u64>,
    open: BTreeSet<u64>,
}

/// A client that waits for a backend.
struct Dialing {
    client: End,
    address: IpAddr,
    pool: Arc<Pool>,
    dial: Dial,
    attempt: Option<Attempt>,
}

struct Attempt {
    backend: Backend,
    end: End,
    deadline: Instant,
}

/// A connection: the client, the backend, and both directions between them.
struct Connection {
    ends: [End; 2],
    halves: [Half; 2],
}

impl Connection {
    fn copy(&mut self, pipes: &mut Pipes) -> io::Result<[Stop; 2]> {
        let [client, backend] = &mut self.ends;
        let [there, back] = &mut self.halves;
        Ok([there.copy(client, backend, pipes)?, back.copy(backend, client, pipes)?])
    }

    /// Lets both ends see that it broke.
    fn abort(self) {
        self.ends.into_iter().for_each(|end| abort(end.socket));
    }
}

impl Tcp {
    /// Begins to accept at a port.
    pub fn open(&mut self, key: Key, listener: TcpListener, pool: Arc<Pool>, shared: &mut Shared) {
        let id = shared.new_id();
        match shared.poller.add(&listener, Token::Door(id).encode(), Interest::Reading) {
            Ok(()) => drop(self.doors.insert(id, (key, listener, pool))),
            Err(error) => tracing::error!("userspace proxy: port {}: {error}", key.2),
        }
    }

    /// Closes a port, after accepting who waits there already.
    pub fn close(&mut self, key: Key, shared: &mut Shared, now: Instant) {
        let found = self.doors.iter().find(|(_, (other, ..))| *other == key).map(|(id, _)| *id);
        if let Some(id) = found {
            self.accept(id, shared, now);
            self.doors.remove(&id);
        }
    }

    /// Closes every port, after accepting who waits there already.
    pub fn close_all(&mut self, shared: &mut Shared, now: Instant) {
        let ids: Vec<_> = self.doors.keys().copied().collect();
        ids.into_iter().for_each(|id| self.accept(id, shared, now));
        self.doors.clear();
    }

    /// Whether there is no connection.
    pub fn is_idle(&self) -> bool {
        self.dialing.is_empty() && self.open.is_empty()
    }

    /// When [`Tcp::run_due`] is wanted, at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        // In the past: at once.
        let now = self.unfinished.first().map(|_| Instant::now());
        let deadline = self.deadlines.peek().map(|Reverse((at, _))| *at);
        [now, deadline, self.starved.until].into_iter().flatten().min()
    }

    /// Accepts who waits at a port.
    pub fn accept(&mut self, id: u64, shared: &mut Shared, now: Instant) {
        for _ in 0..ACCEPTS {
            let Some((_, listener, pool)) = self.doors.get(&id) else { return };
            match listener.accept() {
                Ok((client, peer)) => {
                    let (pool, address) = (pool.clone(), peer.ip().to_canonical());
                    let id = shared.new_id();
                    if shared.poller.add(&client, Token::End(id, 0).encode(), Interest::Edges).is_err() {
                        abort(client);
                        continue;
                    }
                    let client = End::new(client);
                    self.dialing.insert(id, Dialing { client, address, pool, dial: Dial::default(), attempt: None });
                    self.dial(id, shared, now);
                }
                Err(error) => {
                    if shared.is_starved(&error, now)
                        && shared.poller.modify(listener, Token::Door(id).encode(), Interest::Nothing).is_ok()
                    {
                        self.starved.doors.insert(id);
                        self.starved.until.get_or_insert(now + STARVED_PAUSE);
                    }
                    return;
                }
            }
        }
    }

    /// Tries the next backend, or gives up.
    fn dial(&mut self, id: u64, shared: &mut Shared, now: Instant) {
        while let Some(dialing) = self.dialing.get_mut(&id) {
            let next = dialing.dial.next(&mut dialing.pool.lock(), dialing.address, now);
            let Some((backend, deadline)) = next else {
                if let Some(dialing) = self.dialing.remove(&id) {
                    abort(dialing.client.socket);
                }
                return;
            };
            let begun = begin_connect(SocketAddr::new(backend.address, backend.port)).and_then(|socket| {
                let watched = shared.poller.add(&socket, Token::End(id, 1).encode(), Interest::Edges);
                watched.map_err(io::Error::other).map(|()| socket)
            });
            match begun {
                Ok(socket) => {
                    dialing.attempt = Some(Attempt { backend, end: End::new(socket), deadline });
                    self.deadlines.push(Reverse((deadline, id)));
                    return;
                }
                Err(error) if shared.is_starved(&error, now) => {
                    self.starved.dialing.insert(id);
                    self.starved.until.get_or_insert(now + STARVED_PAUSE);
                    return;
                }
                Err(_) => {
                    dialing.pool.lock().failed(backend, now);
                    dialing.dial.refused(backend);
                }
            }
        }
    }

    /// Something happened at one end of a connection.
    pub fn ready(&mut self, (id, end): (u64, usize), event: &Ready, shared: &mut Shared, now: Instant) {
        if let Some(connection) = self.open.get_mut(&id) {
            note(&mut connection.ends[end], event);
            self.copy(id, shared, now);
        } else if let Some(dialing) = self.dialing.get_mut(&id) {
            match (end, dialing.attempt.take()) {
                (1, Some(attempt)) => self.connected(id, attempt, event, (shared, now)),
                (_, attempt) => {
                    dialing.attempt = attempt;
                    note(&mut dialing.client, event);
                }
            }
        }
    }

    /// An attempt to connect has come to its end.
    fn connected(&mut self, id: u64, attempt: Attempt, event: &Ready, (shared, now): (&mut Shared, Instant)) {
        let Some(dialing) = self.dialing.get_mut(&id) else { return };
        let Attempt { backend, mut end, .. } = attempt;
        if connect_outcome(&end.socket).is_err() {
            dialing.pool.lock().failed(backend, now);
            dialing.dial.refused(backend);
            return self.dial(id, shared, now);
        }
        dialing.pool.lock().succeeded(&backend);
        if let Some(Dialing { client, .. }) = self.dialing.remove(&id) {
            note(&mut end, event);
            let ends = [client, end];
            for end in &ends {
                // It fails for what is no connection any more, which copying finds out.
                let _ = set_keepalive(&end.socket, KEEPALIVE);
            }
            self.open.insert(id, Connection { ends, halves: Default::default() });
            self.copy(id, shared, now);
        }
    }

    fn copy(&mut self, id: u64, shared: &mut Shared, now: Instant) {
        let Some(connection) = self.open.get_mut(&id) else { return };
        let stops = match connection.copy(&mut self.pipes) {
            Ok(stops) => stops,
            Err(error) if shared.is_starved(&error, now) => [Stop::Starved; 2],
            Err(_) => {
                if let Some(connection) = self.open.remove(&id) {
                    connection.abort();
                }
                return;
            }
        };
        if stops == [Stop::Finished; 2] {
            self.open.remove(&id);
        } else if stops.contains(&Stop::Starved) {
            self.starved.open.insert(id);
            self.starved.until.get_or_insert(now + STARVED_PAUSE);
        } else if stops.contains(&Stop::Turn) {
            self.unfinished.insert(id);
        }
    }

    /// Does what is due: further turns, attempts that took too long, what waited for open files.
    pub fn run_due(&mut self, shared: &mut Shared, now: Instant) {
        for id in std::mem::take(&mut self.unfinished) {
            self.copy(id, shared, now);
        }
        while let Some(Reverse((at, id))) = self.deadlines.peek().copied()
            && at <= now
        {
            self.deadlines.pop();
            if let Some(dialing) = self.dialing.get_mut(&id)
                && let Some(attempt) = dialing.attempt.take_if(|attempt| attempt.deadline == at)
            {
                dialing.pool.lock().failed(attempt.backend, now);
                dialing.dial.slow(attempt.backend);
                self.dial(id, shared, now);
            }
        }
        if self.starved.until.is_some_and(|at| at <= now) {
            self.feed(shared, now);
        }
    }

    /// Tries again what waited for open files.
    fn feed(&mut self, shared: &mut Shared, now: Instant) {
        let Starved { doors, dialing, open, .. } = std::mem::take(&mut self.starved);
        open.into_iter().for_each(|id| self.copy(id, shared, now));
        dialing.into_iter().for_each(|id| self.dial(id, shared, now));
        for id in doors {
            if let Some((_, listener, _)) = self.doors.get(&id)
                && shared.poller.modify(listener, Token::Door(id).encode(), Interest::Reading).is_err()
            {
                self.starved.doors.insert(id);
                self.starved.until.get_or_insert(now + STARVED_PAUSE);
            }
        }
    }
}

fn note(end: &mut End, event: &Ready) {
    end.readable |= event.readable;
    end.writable |= event.writable;
}
