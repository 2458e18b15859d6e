//! Connections to an upstream that wait for the next query.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::upstream::UpstreamError;
use crate::message::{BadReply, Query, Reply};

/// TCP, or TLS over TCP.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection, used by one query at a time.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    opened: Instant,
    used: Instant,
}

impl Connection {
    pub(super) fn new(stream: impl Stream + 'static) -> Self {
        let now = Instant::now();
        Self { stream: Box::new(stream), opened: now, used: now }
    }

    /// Sends a query and waits for its answer; answers to what was asked before and given up are passed over.
    pub(super) async fn exchange(&mut self, query: &Query, id: u16, packet: &[u8]) -> Result<Reply, UpstreamError> {
        let length = u16::try_from(packet.len()).map_err(io::Error::other)?;
        self.stream.write_all(&[&length.to_be_bytes(), packet].concat()).await?;
        self.stream.flush().await?;
        loop {
            let mut answer = vec![0; usize::from(self.stream.read_u16().await?)];
            self.stream.read_exact(&mut answer).await?;
            match Reply::parse(answer.into(), query, id) {
                Err(BadReply::NotOurs) => {}
                other => return Ok(other?),
            }
        }
    }
}

/// How long connections are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keeping {
    /// Without a query.
    pub(super) expire: Duration,
    /// Altogether, if limited.
    pub(super) max_age: Option<Duration>,
    /// How many wait at once.
    pub(super) max_idle: usize,
}

/// The connections that nobody uses, the one used last at the end.
pub(super) struct Idle {
    connections: Mutex<Vec<Connection>>,
    keeping: Keeping,
}

impl Idle {
    pub(super) fn new(keeping: Keeping) -> Self {
        Self { connections: Mutex::default(), keeping }
    }

    fn connections(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self) -> Option<Connection> {
        self.close_expired();
        self.connections().pop()
    }

    pub(super) fn give_back(&self, mut connection: Connection) {
        connection.used = Instant::now();
        let mut connections = self.connections();
        if connections.len() < self.keeping.max_idle {
            connections.push(connection);
        }
    }

    /// Closes those that have been kept for long enough.
    pub(super) fn close_expired(&self) {
        let Keeping { expire, max_age, .. } = self.keeping;
        let fresh = |connection: &Connection| {
            connection.used.elapsed() < expire && max_age.is_none_or(|age| connection.opened.elapsed() < age)
        };
        self.connections().retain(fresh);
    }
}
