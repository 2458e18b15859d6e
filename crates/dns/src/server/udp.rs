//! The UDP side of a port: one thread and one socket for each processor, and the kernel spreads clients over them. A
//! thread takes what waits in one system call and sends what it can answer at once in another; what has to wait for
//! others goes to the runtime.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use podwire_kernel::socket::{Answers, Datagram, Datagrams, Interest, Poller, UdpListener, Waker};
use tokio::runtime::Handle;
use tracing::debug;

use super::{Outcome, Service, arrival, fair::Shares};
use crate::{message::Transport, random::Random, router::Router};

/// Room for a query; longer ones are cut and then malformed. Bytes.
const MAX_QUERY: usize = 4096;
/// How long to rest after the socket reported an error, so that a lasting one does not keep a processor busy.
const REST: Duration = Duration::from_millis(10);
/// System calls that a busy socket is emptied with before anything is answered: 32 queries each.
const MAX_BATCHES: usize = 16;
/// Queries that are answered of those: the rest, of clients that ask for more than their share, is dropped.
const BUDGET: usize = 256;

/// The threads that answer on one address. Dropping them ends them and closes the sockets.
pub(super) struct Workers {
    stop: Arc<AtomicBool>,
    wakers: Vec<Waker>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Opens the sockets and begins to answer. A later [`Workers::start`] on the same address would share the port: what
    /// keeps two servers apart is the TCP socket.
    pub(super) fn start(address: SocketAddr, service: &Arc<Service>) -> podwire_kernel::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from);
        let mut workers = Self { stop: Arc::default(), wakers: Vec::new(), threads: Vec::new() };
        // All sockets before the first answer: the kernel spreads clients anew with each.
        let sockets =
            (0..count).map(|_| UdpListener::bind_shared(address)).collect::<podwire_kernel::Result<Vec<_>>>()?;
        for socket in sockets {
            let poller = Poller::new()?;
            workers.wakers.push(Waker::new(&poller, 1)?);
            poller.add(&socket, 0, Interest::Reading)?;
            let worker = Worker {
                socket: Arc::new(socket),
                service: service.clone(),
                random: Random::default(),
                runtime: Handle::current(),
                batches: vec![Datagrams::with_room(MAX_QUERY)],
                answers: Answers::default(),
            };
            let stop = workers.stop.clone();
            workers.threads.push(thread::spawn(move || worker.run(&poller, &stop)));
        }
        Ok(workers)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wakers.iter().for_each(Waker::wake);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

struct Worker {
    socket: Arc<UdpListener>,
    service: Arc<Service>,
    random: Random,
    runtime: Handle,
    /// What was received last; more than one only once the socket was busy.
    batches: Vec<Datagrams>,
    answers: Answers,
}

impl Worker {
    fn run(mut self, poller: &Poller, stop: &AtomicBool) {
        let runtime = self.runtime.clone();
        // Plugins may spawn what goes on in the background.
        let _inside = runtime.enter();
        let mut ready = Vec::new();
        while !stop.load(Ordering::Acquire) {
            // A socket that was not emptied is ready at once.
            let received = poller.wait(&mut ready, None).map_err(io::Error::other).and_then(|()| self.receive());
            match received {
                Ok(received) => self.answer(received),
                Err(error) => {
                    debug!("udp receive: {error}");
                    thread::sleep(REST);
                }
            }
        }
    }

    /// Takes what waits, as far as there is room: how many batches.
    fn receive(&mut self) -> io::Result<usize> {
        for received in 0..MAX_BATCHES {
            if received == self.batches.len() {
                self.batches.push(Datagrams::with_room(MAX_QUERY));
            }
            match self.batches[received].receive(&self.socket) {
                Ok(true) => {}
                Ok(false) => return Ok(received + 1),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(received),
                // What was received before is lost, as datagrams may be.
                Err(error) => return Err(error),
            }
        }
        Ok(MAX_BATCHES)
    }

    /// Answers what the first batches hold.
    fn answer(&mut self, received: usize) {
        let batches = std::mem::take(&mut self.batches);
        let queries = || batches[..received].iter().flat_map(|batch| (0..batch.len()).filter_map(|n| batch.get(n)));
        let total: usize = batches[..received].iter().map(Datagrams::len).sum();
        let mut shares = (total > BUDGET).then(|| Shares::divide(queries().map(|query| query.from.ip()), BUDGET));
        let (router, now) = (self.service.router.get(), Instant::now());
        for query in queries() {
            if shares.as_mut().is_none_or(|shares| shares.take(query.from.ip())) {
                self.handle(&router, query, now);
            }
        }
        if let Err(error) = self.answers.send(&self.socket) {
            debug!("udp answers: {error}");
        }
        self.batches = batches;
    }

    fn handle(&mut self, router: &Arc<Router>, query: Datagram<'_>, now: Instant) {
        let Datagram { bytes, from: client, to } = query;
        let arrival = arrival(client, Transport::Udp, now, &self.random);
        match self.service.handle(router, bytes, arrival, self.answers.buffer()) {
            Outcome::Nothing => {}
            Outcome::Answer(answer) => self.answers.push(answer, client, to),
            Outcome::Later(query, reply) => {
                let Ok(permit) = self.service.waiting.clone().try_acquire_owned() else { return };
                let socket = self.socket.clone();
                self.runtime.spawn(async move {
                    let mut answers = Answers::default();
                    answers.push(reply.await.encode(&query, Vec::new()), client, to);
                    if let Err(error) = answers.send(&socket) {
                        debug!("udp answer to {client}: {error}");
                    }
                    drop(permit);
                });
            }
        }
    }
}
