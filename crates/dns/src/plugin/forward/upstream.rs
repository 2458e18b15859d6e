//! One other DNS server: asking it, and knowing whether it is worth asking.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use domain::base::iana::{Class, Rtype};
use rustls::pki_types::ServerName;
use tokio::{
    net::{TcpSocket, UdpSocket},
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tracing::{info, warn};

use super::{
    super::prometheus::code_name,
    connections::{Connection, Idle},
    metrics::Counters,
};
use crate::{
    message::{Arrival, BadReply, DnsName, OFFERED_UDP_SIZE, Query, Reply, Transport},
    random::Random,
};

/// How long the answer to a health check may take (CoreDNS).
const CHECK_TIME: Duration = Duration::from_secs(1);
/// Room for answers of servers that disregard the size we offer, bytes.
const UDP_BUFFER: usize = 4 * OFFERED_UDP_SIZE as usize;

/// Why a server gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpstreamError {
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Bad(#[from] BadReply),
}

/// How a server is reached.
pub(super) enum Way {
    /// By UDP, and by TCP for what does not fit.
    Udp,
    Tcp,
    Tls(TlsConnector, ServerName<'static>),
}

/// How to find out whether a server that failed answers again.
#[derive(Debug, Clone)]
pub(super) struct Check {
    pub(super) interval: Duration,
    pub(super) domain: DnsName,
    pub(super) recursion_desired: bool,
    /// After more failed checks in a row than this it is not asked; 0 for never.
    pub(super) max_fails: u32,
}

/// A server and its record.
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    pub(super) way: Way,
    /// The address to ask from, if configured.
    pub(super) source: Option<IpAddr>,
    pub(super) check: Check,
    pub(super) idle: Idle,
    pub(super) random: Arc<Random>,
    pub(super) counters: Counters,
    pub(super) record: Record,
}

/// What is known of a server.
#[derive(Default)]
pub(super) struct Record {
    /// Checks that failed in a row.
    fails: AtomicU32,
    suspected: Notify,
}

impl Upstream {
    /// Whether its health checks say not to ask it.
    pub(super) fn is_down(&self) -> bool {
        self.check.max_fails > 0 && self.record.fails.load(Ordering::Relaxed) > self.check.max_fails
    }

    /// Asks it, for at most `time`. A failure has its health checked.
    pub(super) async fn ask(&self, query: &Query, time: Duration) -> Result<Reply, UpstreamError> {
        let begin = Instant::now();
        let answer = self.exchange(query, time).await;
        match &answer {
            Ok(reply) => {
                self.counters.answered(code_name(reply.rcode), begin.elapsed().as_secs_f64());
                self.is_well();
            }
            Err(_) => self.record.suspected.notify_one(),
        }
        answer
    }

    /// Checks its health from each failure on until it answers. Runs as long as the program.
    pub(super) async fn watch(&self) {
        if self.check.max_fails == 0 {
            return;
        }
        loop {
            self.record.suspected.notified().await;
            while let Err(error) = self.exchange(&self.check.query(&self.random), CHECK_TIME).await {
                self.counters.failed_checks.inc();
                let fails = self.record.fails.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                if fails == self.check.max_fails.saturating_add(1) {
                    warn!("forward: upstream {} failed {fails} health checks in a row: {error}", self.address);
                }
                sleep(self.check.interval).await;
            }
            self.is_well();
        }
    }

    fn is_well(&self) {
        let fails = self.record.fails.swap(0, Ordering::Relaxed);
        if self.check.max_fails > 0 && fails > self.check.max_fails {
            info!("forward: upstream {} answers again", self.address);
        }
    }

    async fn exchange(&self, query: &Query, time: Duration) -> Result<Reply, UpstreamError> {
        let id = (self.random.next() >> 48) as u16;
        let packet = query.encode(id);
        let exchange = async {
            if let Way::Udp = self.way {
                match self.udp(query, id, &packet).await {
                    Err(UpstreamError::Bad(BadReply::Truncated)) => {}
                    other => return other,
                }
            }
            self.stream(query, id, &packet).await
        };
        timeout(time, exchange).await.unwrap_or(Err(UpstreamError::Silent(time)))
    }

    async fn udp(&self, query: &Query, id: u16, packet: &[u8]) -> Result<Reply, UpstreamError> {
        // A socket of its own: the kernel picks a port that an outsider has to guess as well as the id. It also drops
        // what comes from another address.
        let any = match self.address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((self.source().unwrap_or(any), 0)).await?;
        socket.connect(self.address).await?;
        socket.send(packet).await?;
        let mut buffer = vec![0; UDP_BUFFER];
        loop {
            let length = socket.recv(&mut buffer).await?;
            match Reply::parse(Bytes::copy_from_slice(&buffer[..length]), query, id) {
                Err(BadReply::NotOurs) => {}
                other => return Ok(other?),
            }
        }
    }

    /// Asks over a connection that is open, or else over a new one.
    async fn stream(&self, query: &Query, id: u16, packet: &[u8]) -> Result<Reply, UpstreamError> {
        while let Some(mut connection) = self.idle.take() {
            match connection.exchange(query, id, packet).await {
                // The server has closed it meanwhile.
                Err(UpstreamError::Io(_)) => {}
                Err(other) => return Err(other),
                Ok(reply) => {
                    self.counters.reused.inc();
                    self.idle.give_back(connection);
                    return Ok(reply);
                }
            }
        }
        self.counters.opened.inc();
        let mut connection = self.connect().await?;
        let reply = connection.exchange(query, id, packet).await?;
        self.idle.give_back(connection);
        Ok(reply)
    }

    async fn connect(&self) -> Result<Connection, UpstreamError> {
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(source) = self.source() {
            socket.bind((source, 0).into())?;
        }
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.way {
            Way::Tls(connector, name) => Connection::new(connector.connect(name.clone(), stream).await?),
            Way::Udp | Way::Tcp => Connection::new(stream),
        })
    }

    fn source(&self) -> Option<IpAddr> {
        self.source.filter(|source| source.is_ipv4() == self.address.is_ipv4())
    }
}

impl Check {
    fn query(&self, random: &Random) -> Query {
        let client = ([127, 0, 0, 1], 0).into();
        Query {
            id: 0,
            recursion_desired: self.recursion_desired,
            checking_disabled: false,
            authentic_data: false,
            name: self.domain.clone(),
            qtype: Rtype::NS,
            qclass: Class::IN,
            edns: None,
            options: Vec::new(),
            arrival: Arrival { client, transport: Transport::Udp, now: Instant::now(), random: random.next() },
            depth: 1,
        }
    }
}
