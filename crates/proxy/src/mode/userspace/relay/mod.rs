//! The thread that moves the traffic: accepts, connects, copies. It asks a [`Pool`] for a backend and knows nothing else
//! about Services.

mod fake;
mod splice;
mod tcp;
mod udp;

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    time::{Duration, Instant},
};

use podwire_kernel::{
    Error as KernelError,
    ns::{Kind, Namespace},
    socket::{Poller, Ready, TcpListener, UdpListener, Waker, raise_open_files},
};
use podwire_model::{Family, Protocol};
use tracing::{error, warn};

pub use self::fake::FakePorts;
use self::{tcp::Tcp, udp::Udp};
use super::balancer::Balancer;

/// How long a dropped relay takes new connections: those that the rules sent here a moment before they were removed.
const LINGER: Duration = Duration::from_secs(1);
/// How soon to try again what failed for want of open files.
const STARVED_PAUSE: Duration = Duration::from_millis(20);
/// How often at most to complain about it.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);

/// The backends behind one local port, shared by who changes them and the relay.
#[derive(Debug, Default)]
pub struct Pool(Mutex<Balancer>);

impl Pool {
    /// The backends, for as long as the guard lives.
    pub fn lock(&self) -> MutexGuard<'_, Balancer> {
        // Nobody panics while holding it; even so a balancer is never half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A local port that is asked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address family.
    pub family: Family,
    /// The port it had before; another one if that is taken.
    pub port: Option<u16>,
    /// Who gets what comes in.
    pub pool: Arc<Pool>,
}

/// Local ports: the relay, or a fake of it.
pub trait Ports: Send {
    /// Opens each of them and says which port it got.
    ///
    /// # Errors
    /// For each one: no port, or too many open files.
    fn open(&mut self, wanted: Vec<Wanted>) -> Vec<Result<u16, KernelError>>;

    /// Closes one to new connections. Established ones live on; over UDP, where there are none, clients are forgotten.
    fn close(&mut self, protocol: Protocol, family: Family, port: u16);
}

/// A running relay. Dropping it takes no new connections; established ones live on, in the background, until their ends
/// end them.
pub struct Relay {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    /// Where the ports are.
    namespace: Namespace,
}

/// A port is known by this.
type Key = (Protocol, Family, u16);

/// A listening socket.
#[derive(Debug)]
enum Door {
    Tcp(TcpListener),
    Udp(UdpListener),
}

enum Command {
    Open(Key, Door, Arc<Pool>),
    Close(Key),
    Drain,
}

impl Relay {
    /// Starts the thread, in the network namespace of the caller.
    ///
    /// # Errors
    /// No more threads or files.
    pub fn start() -> Result<Self, KernelError> {
        let open_files = raise_open_files()?;
        let poller = Poller::new()?;
        let waker = Arc::new(Waker::new(&poller, Token::WAKER)?);
        let namespace = Namespace::current(Kind::Net)?;
        let (commands, received) = mpsc::channel();
        let worker = Worker {
            commands: received,
            tcp: Tcp::default(),
            udp: Udp::new(open_files),
            shared: Shared { poller, last_id: 0, complained: None },
            drain_at: None,
            _waker: waker.clone(),
        };
        std::thread::Builder::new()
            .name("userspace-proxy".to_owned())
            .spawn(move || worker.run())
            .map_err(|error| KernelError::io("start the userspace proxy's thread", error))?;
        Ok(Self { commands, waker, namespace })
    }

    fn send(&self, command: Command) {
        // The thread ends only when it is told to drain, or when the kernel refuses to wait, which it has logged.
        let _ = self.commands.send(command);
        self.waker.wake();
    }
}

impl Ports for Relay {
    fn open(&mut self, wanted: Vec<Wanted>) -> Vec<Result<u16, KernelError>> {
        let bind = || Ok::<_, KernelError>(wanted.iter().map(bind_near).collect::<Vec<_>>());
        let bound = match self.namespace.run(bind) {
            Ok(bound) => bound,
            Err(error) => return vec![Err(error)],
        };
        let open = |(wanted, bound): (&Wanted, Result<(Door, u16), KernelError>)| {
            let (door, port) = bound?;
            let key = (wanted.protocol, wanted.family, port);
            let _ = self.commands.send(Command::Open(key, door, wanted.pool.clone()));
            Ok(port)
        };
        let ports = wanted.iter().zip(bound).map(open).collect();
        self.waker.wake();
        ports
    }

    fn close(&mut self, protocol: Protocol, family: Family, port: u16) {
        self.send(Command::Close((protocol, family, port)));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.send(Command::Drain);
    }
}

/// Binds the wanted port, or any if that is taken.
fn bind_near(wanted: &Wanted) -> Result<(Door, u16), KernelError> {
    match wanted.port.map(|port| bind(wanted, port)) {
        Some(Ok(bound)) => Ok(bound),
        _ => bind(wanted, 0),
    }
}

fn bind(wanted: &Wanted, port: u16) -> Result<(Door, u16), KernelError> {
    // REDIRECT goes to whichever address the interface has, so all of them; rules keep out what was not redirected.
    let address = match wanted.family {
        Family::V4 => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        Family::V6 => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
    };
    match wanted.protocol {
        Protocol::Tcp => {
            let listener = TcpListener::bind(address)?;
            let port = listener.port()?;
            Ok((Door::Tcp(listener), port))
        }
        Protocol::Udp => {
            let listener = UdpListener::bind(address)?;
            let port = listener.port()?;
            Ok((Door::Udp(listener), port))
        }
        Protocol::Sctp => Err(KernelError::invalid("listen on an SCTP port", "userspace mode relays TCP and UDP")),
    }
}

/// What a watched file is, as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// A listening socket, or the waker.
    Door(u64),
    /// The client's or the backend's end of a TCP connection.
    End(u64, usize),
    /// The backend's end of a UDP flow.
    Flow(u64),
}

impl Token {
    const WAKER: u64 = 0;

    const fn encode(self) -> u64 {
        match self {
            Self::Door(id) => id << 2,
            Self::End(id, end) => (id << 2) | (1 + end as u64),
            Self::Flow(id) => (id << 2) | 3,
        }
    }

    const fn decode(token: u64) -> Self {
        let id = token >> 2;
        match token & 3 {
            0 => Self::Door(id),
            3 => Self::Flow(id),
            end => Self::End(id, end as usize - 1),
        }
    }
}

/// What TCP and UDP both use.
struct Shared {
    poller: Poller,
    /// Numbers are never used twice: what comes late for something that is gone finds nothing.
    last_id: u64,
    complained: Option<Instant>,
}

impl Shared {
    fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Whether an error is a want of open files or memory, which passes; says so from time to time.
    fn is_starved(&mut self, error: &std::io::Error, now: Instant) -> bool {
        // EMFILE, ENFILE, ENOBUFS, ENOMEM.
        let starved = matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12));
        if starved && self.complained.is_none_or(|last| now.duration_since(last) >= COMPLAINT_PAUSE) {
            self.complained = Some(now);
            warn!(
                "userspace proxy: connections wait: {error}; raise the limit of open files (LimitNOFILE) of this process"
            );
        }
        starved
    }
}

struct Worker {
    commands: Receiver<Command>,
    tcp: Tcp,
    udp: Udp,
    shared: Shared,
    /// Draining: when to close the doors.
    drain_at: Option<Instant>,
    /// Stays watched while this lives.
    _waker: Arc<Waker>,
}

impl Worker {
    fn run(mut self) {
        let mut events = Vec::new();
        loop {
            let now = Instant::now();
            let timeout = self.next_deadline(now).map(|at| at.saturating_duration_since(now));
            if let Err(error) = self.shared.poller.wait(&mut events, timeout) {
                return error!("userspace proxy: {error}; no connection is served any more");
            }
            let now = Instant::now();
            for event in &events {
                self.handle(event, now);
            }
            self.tcp.run_due(&mut self.shared, now);
            self.udp.run_due(now);
            if self.drain_at.is_some_and(|at| at <= now) && self.is_drained(now) {
                return;
            }
        }
    }

    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let drain_at = self.drain_at.filter(|at| *at > now);
        [drain_at, self.tcp.next_deadline(), self.udp.next_deadline()].into_iter().flatten().min()
    }

    fn handle(&mut self, event: &Ready, now: Instant) {
        match Token::decode(event.token) {
            Token::Door(Token::WAKER) => self.take_commands(now),
            Token::Door(id) => {
                self.tcp.accept(id, &mut self.shared, now);
                self.udp.questions(id, &mut self.shared, now);
            }
            Token::End(id, end) => self.tcp.ready((id, end), event, &mut self.shared, now),
            Token::Flow(id) => self.udp.answers(id, &mut self.shared, now),
        }
    }

    fn take_commands(&mut self, now: Instant) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Open(key, Door::Tcp(listener), pool) => self.tcp.open(key, listener, pool, &mut self.shared),
                Command::Open(key, Door::Udp(listener), pool) => self.udp.open(key, listener, pool, &mut self.shared),
                Command::Close(key) => {
                    self.tcp.close(key, &mut self.shared, now);
                    self.udp.close(key);
                }
                Command::Drain => self.drain_at = Some(now + LINGER),
            }
        }
    }

    /// Closes all doors that nobody is known to use. Whether nothing is left to do.
    fn is_drained(&mut self, now: Instant) -> bool {
        self.tcp.close_all(&mut self.shared, now);
        self.udp.close_unused();
        self.tcp.is_idle() && self.udp.is_idle()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_as_they_were_written() {
        for token in [Token::Door(0), Token::Door(5), Token::End(7, 0), Token::End(7, 1), Token::Flow(1 << 60)] {
            assert_eq!(Token::decode(token.encode()), token);
        }
        assert_eq!(Token::Door(0).encode(), Token::WAKER);
    }
}
