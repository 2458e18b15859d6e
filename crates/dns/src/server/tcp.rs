//! The TCP loop: messages framed by their length (RFC 1035 4.2.2), any number on a connection (RFC 7766).

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tracing::debug;

use super::{Outcome, Service, arrival, connections::Connections};
use crate::message::Transport;

/// Connections at once, where the limit of open files allows it.
const MAX_CONNECTIONS: u64 = 100_000;
/// Files that are left for everything else.
const OTHER_FILES: u64 = 500;
/// How long a connection may be silent, or take over a message.
const IDLE: Duration = Duration::from_secs(10);
/// How long to rest after a connection could not be accepted.
const REST: Duration = Duration::from_millis(10);

/// Accepts connections until it is aborted, which closes them.
pub(super) async fn serve(listener: TcpListener, service: Arc<Service>) {
    let files = podwire_kernel::socket::raise_open_files().unwrap_or(2 * OTHER_FILES);
    let limit = files.saturating_sub(OTHER_FILES).min(MAX_CONNECTIONS);
    let places = Connections::new(usize::try_from(limit).unwrap_or(usize::MAX));
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                // Closed at once, so that the client knows.
                let Some(place) = places.enter(client.ip().to_canonical()) else { continue };
                let service = service.clone();
                connections.spawn(async move {
                    if let Err(error) = converse(stream, client, &service).await {
                        debug!("tcp {client}: {error}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                debug!("tcp accept: {error}");
                tokio::time::sleep(REST).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(mut stream: TcpStream, client: SocketAddr, service: &Service) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // A silent connection holds no memory.
    loop {
        let Some(packet) = timeout(IDLE, read(&mut stream)).await?? else { return Ok(()) };
        let arrival = arrival(client, Transport::Tcp, Instant::now(), &service.random);
        let answer = match service.handle(&service.router.get(), &packet, arrival, Vec::new()) {
            Outcome::Nothing => return Ok(()),
            Outcome::Answer(answer) => answer,
            Outcome::Later(query, reply) => reply.await.encode(&query, Vec::new()),
        };
        let mut framed = Vec::with_capacity(answer.len() + 2);
        framed.extend(u16::try_from(answer.len()).map_err(io::Error::other)?.to_be_bytes());
        framed.extend(&answer);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

/// Reads one message; `None` when the client has closed the connection instead.
async fn read(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    // As it comes: who only says that much will follow gets no memory for it.
    let mut packet = Vec::new();
    stream.take(length.into()).read_to_end(&mut packet).await?;
    if packet.len() < length.into() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(packet))
}
