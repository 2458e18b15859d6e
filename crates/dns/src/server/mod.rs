//! The sockets: what [`Program`] describes, opened, kept over a reload, and closed.

mod connections;
mod fair;
mod http;
mod tcp;
mod udp;

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::{Ipv4Addr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use domain::base::iana::Rcode;
use futures_util::future::BoxFuture;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use tracing::info;

use crate::{
    message::{Arrival, Query, Rejection, Reply, Transport, encode_rejection},
    metrics::Metrics,
    program::{Environment, Program},
    random::Random,
    router::{Progress, Router},
};

/// How many queries may wait for others at once, on one address; more are dropped, and the client asks again.
const MAX_WAITING: usize = 10_000;

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An address cannot be opened.
    #[error(
        "cannot listen on {transport} {address}: {source}; is another DNS server running, or is the port below 1024 and we are not root?"
    )]
    Listen {
        /// `udp` or `tcp`.
        transport: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// A running DNS server. Dropping it closes all sockets.
pub struct Server {
    environment: Environment,
    shared: Arc<Shared>,
    /// By the address that the Corefile names.
    listeners: BTreeMap<SocketAddr, Listener>,
    pages: BTreeMap<SocketAddr, PageListener>,
    background: JoinSet<()>,
}

/// What requests for pages look at.
struct Shared {
    program: Current<Program>,
    draining: AtomicBool,
    metrics: Arc<Metrics>,
}

struct Listener {
    address: SocketAddr,
    service: Arc<Service>,
    _workers: udp::Workers,
    _tasks: JoinSet<()>,
}

struct PageListener {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

/// A value that is replaced as a whole while others read it.
struct Current<T>(RwLock<Arc<T>>);

impl<T> Current<T> {
    fn new(value: Arc<T>) -> Self {
        Self(RwLock::new(value))
    }

    fn get(&self) -> Arc<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, value: Arc<T>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

impl Server {
    /// Opens everything that the program names and begins to answer.
    ///
    /// # Errors
    /// [`ServerError::Listen`] if an address cannot be opened; nothing stays open then.
    pub async fn start(program: Program, environment: Environment) -> Result<Self, ServerError> {
        let shared = Arc::new(Shared {
            program: Current::new(Arc::new(Program::default())),
            draining: AtomicBool::new(false),
            metrics: environment.metrics.clone(),
        });
        let (listeners, pages, background) = (BTreeMap::new(), BTreeMap::new(), JoinSet::new());
        let mut server = Self { environment, shared, listeners, pages, background };
        server.replace(program).await?;
        Ok(server)
    }

    /// Goes over to another program. Ports that both name stay open, and no query is lost on them.
    ///
    /// # Errors
    /// [`ServerError::Listen`] if a new address cannot be opened; the running program goes on unchanged then.
    pub async fn replace(&mut self, program: Program) -> Result<(), ServerError> {
        let mut listeners = Vec::new();
        for (named, router) in program.routers.iter().filter(|(named, _)| !self.listeners.contains_key(named)) {
            listeners.push((*named, Listener::open(*named, router.clone(), &self.environment).await?));
        }
        let mut pages = Vec::new();
        for address in program.pages.keys().filter(|address| !self.pages.contains_key(address)) {
            pages.push((*address, PageListener::open(*address, self.shared.clone()).await?));
        }
        self.listeners.retain(|named, _| program.routers.contains_key(named));
        self.pages.retain(|address, _| program.pages.contains_key(address));
        self.listeners.extend(listeners);
        self.pages.extend(pages);
        self.background = JoinSet::new();
        for (named, router) in &program.routers {
            if let Some(listener) = self.listeners.get(named) {
                listener.service.router.set(router.clone());
            }
            let mut known = HashSet::new();
            for chain in router.chains().filter(|chain| known.insert(Arc::as_ptr(chain))) {
                for task in chain.iter().filter_map(|plugin| plugin.background(router)) {
                    self.background.spawn(task);
                }
            }
        }
        self.shared.program.set(Arc::new(program));
        Ok(())
    }

    /// The program that runs.
    pub fn program(&self) -> Arc<Program> {
        self.shared.program.get()
    }

    /// The addresses that answer DNS, over UDP and TCP alike, in the order of the addresses that the Corefile names.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.values().map(|listener| listener.address)
    }

    /// The addresses that answer HTTP: as the Corefile names them, and as they were opened.
    pub fn pages(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
        self.pages.iter().map(|(named, listener)| (*named, listener.address))
    }

    /// Reports not ready from now on, so that nobody sends new clients here, and goes on answering for the program's lame
    /// duck time.
    pub async fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        tokio::time::sleep(self.program().lameduck).await;
    }
}

impl Shared {
    fn is_ready(&self) -> bool {
        !self.draining.load(Ordering::Relaxed) && self.program.get().is_ready()
    }
}

/// What answers the queries of one port.
struct Service {
    router: Current<Router>,
    random: Arc<Random>,
    metrics: Arc<Metrics>,
    waiting: Arc<Semaphore>,
}

/// What becomes of a packet.
enum Outcome {
    Nothing,
    Answer(Vec<u8>),
    Later(Query, BoxFuture<'static, Reply>),
}

/// The circumstances of a query; a client of an IPv4 address has one, also where the socket takes both families.
fn arrival(client: SocketAddr, transport: Transport, now: Instant, random: &Random) -> Arrival {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    Arrival { client, transport, now, random: random.next() }
}

impl Service {
    /// Answers a packet, in `buffer` where the answer is at hand.
    fn handle(&self, router: &Arc<Router>, packet: &[u8], arrival: Arrival, buffer: Vec<u8>) -> Outcome {
        let query = match Query::parse(packet, arrival) {
            Ok(query) => query,
            Err(Rejection::Ignore) => return Outcome::Nothing,
            Err(Rejection::Answer(rcode)) => return Outcome::Answer(encode_rejection(packet, rcode)),
        };
        // A mistake of ours with one question must not end the answering of all others (as in CoreDNS).
        match catch_unwind(AssertUnwindSafe(|| router.begin(&query))) {
            Ok(Progress::Done(reply)) => Outcome::Answer(reply.encode(&query, buffer)),
            Ok(Progress::Waiting(reply)) => Outcome::Later(query, reply),
            Err(_) => {
                self.metrics.panics.inc();
                Outcome::Answer(Reply::code(Rcode::SERVFAIL, "").encode(&query, buffer))
            }
        }
    }
}

impl Listener {
    async fn open(named: SocketAddr, router: Arc<Router>, environment: &Environment) -> Result<Self, ServerError> {
        let tcp = open_tcp(named).await?;
        // The port that the system chose, if it was to; the same for UDP.
        let address = tcp.local_addr().unwrap_or(named);
        let service = Arc::new(Service {
            router: Current::new(router),
            random: environment.random.clone(),
            metrics: environment.metrics.clone(),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
        });
        let workers = udp::Workers::start(address, &service).map_err(|error| ServerError::Listen {
            transport: "udp",
            address,
            source: io::Error::other(error),
        })?;
        let mut tasks = JoinSet::new();
        tasks.spawn(tcp::serve(tcp, service.clone()));
        info!("answering DNS on {address}, udp and tcp");
        Ok(Self { address, service, _workers: workers, _tasks: tasks })
    }
}

impl PageListener {
    async fn open(named: SocketAddr, shared: Arc<Shared>) -> Result<Self, ServerError> {
        let listener = open_tcp(named).await?;
        let address = listener.local_addr().unwrap_or(named);
        let mut tasks = JoinSet::new();
        tasks.spawn(http::serve(listener, named, shared));
        Ok(Self { address, _tasks: tasks })
    }
}

/// Opens `address`; where that is every IPv6 address and there is no IPv6, every IPv4 address.
async fn open_tcp(address: SocketAddr) -> Result<TcpListener, ServerError> {
    let mut opened = TcpListener::bind(address).await;
    if opened.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::AddrInUse)
        && address.is_ipv6()
        && address.ip().is_unspecified()
    {
        opened = TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
    }
    opened.map_err(|source| ServerError::Listen { transport: "tcp", address, source })
}
