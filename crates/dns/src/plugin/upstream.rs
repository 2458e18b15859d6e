//! One other DNS server: asking it, and knowing whether it is worth asking.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use tracing::{info, warn};

use crate::{
    message::{BadReply, OFFERED_UDP_SIZE, Query, Reply},
    random::Random,
};

/// How long one answer may take (CoreDNS).
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// How long a server that failed too often is left alone before it gets another chance.
const PAUSE: Duration = Duration::from_secs(1);
/// Room for answers of servers that disregard the size we offer, bytes.
const UDP_BUFFER: usize = 4 * OFFERED_UDP_SIZE as usize;

/// Why a server gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Bad(#[from] BadReply),
}

/// A server and its record.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    force_tcp: bool,
    /// Failures in a row that put it aside; 0 for never.
    max_fails: u32,
    fails: AtomicU32,
    /// When it may be asked again.
    retry: Mutex<Option<Instant>>,
}

impl Upstream {
    pub(crate) fn new(address: SocketAddr, force_tcp: bool, max_fails: u32) -> Self {
        Self { address, force_tcp, max_fails, fails: AtomicU32::new(0), retry: Mutex::new(None) }
    }

    /// Whether to ask it. After a pause one query at a time tries it again.
    pub(crate) fn is_up(&self, now: Instant) -> bool {
        let mut retry = self.retry.lock().unwrap_or_else(PoisonError::into_inner);
        match *retry {
            Some(at) if now < at => false,
            Some(_) => {
                *retry = Some(now + PAUSE);
                true
            }
            None => true,
        }
    }

    /// Asks it, for at most `time`.
    pub(crate) async fn ask(&self, query: &Query, time: Duration, random: &Random) -> Result<Reply, UpstreamError> {
        let time = time.min(ANSWER_TIME);
        let id = (random.next() >> 48) as u16;
        let answer = timeout(time, self.exchange(query, id)).await.unwrap_or(Err(UpstreamError::Silent(time)));
        self.note(answer.as_ref().err());
        answer
    }

    async fn exchange(&self, query: &Query, id: u16) -> Result<Reply, UpstreamError> {
        let packet = query.encode(id);
        if !self.force_tcp {
            match self.udp(query, id, &packet).await {
                Err(UpstreamError::Bad(BadReply::Truncated)) => {}
                other => return other,
            }
        }
        self.tcp(query, id, &packet).await
    }

    async fn udp(&self, query: &Query, id: u16, packet: &[u8]) -> Result<Reply, UpstreamError> {
        // A socket of its own: the kernel picks a port that an outsider has to guess as well as the id.
        let any: SocketAddr = match self.address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
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

    async fn tcp(&self, query: &Query, id: u16, packet: &[u8]) -> Result<Reply, UpstreamError> {
        let mut stream = TcpStream::connect(self.address).await?;
        let mut framed = Vec::with_capacity(packet.len() + 2);
        framed.extend(u16::try_from(packet.len()).unwrap_or(u16::MAX).to_be_bytes());
        framed.extend(packet);
        stream.write_all(&framed).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        Ok(Reply::parse(answer.into(), query, id)?)
    }

    fn note(&self, error: Option<&UpstreamError>) {
        let mut retry = self.retry.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            None => {
                self.fails.store(0, Ordering::Relaxed);
                if retry.take().is_some() {
                    info!("forward: upstream {} answers again", self.address);
                }
            }
            Some(error) => {
                let fails = self.fails.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                if self.max_fails > 0 && fails >= self.max_fails && retry.is_none() {
                    warn!("forward: upstream {} failed {fails} times in a row: {error}", self.address);
                    *retry = Some(Instant::now() + PAUSE);
                }
            }
        }
    }
}
