//! The TCP loop: messages framed by their length (RFC 1035 4.2.2), any number on a connection (RFC 7766).

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tracing::debug;

use super::{Outcome, Service, answer_later};
use crate::message::Transport;

/// Connections at once; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 1000;
/// How long a connection may be silent, or take over a message.
const IDLE: Duration = Duration::from_secs(10);
/// How long to rest after a connection could not be accepted.
const REST: Duration = Duration::from_millis(10);

/// Accepts connections until it is aborted, which closes them.
pub(super) async fn serve(listener: TcpListener, service: Arc<Service>) {
    let limit = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    while let Ok(permit) = limit.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, client)) => {
                let service = service.clone();
                connections.spawn(async move {
                    if let Err(error) = converse(stream, client, &service).await {
                        debug!("tcp {client}: {error}");
                    }
                    drop(permit);
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
    let mut packet = Vec::new();
    while timeout(IDLE, read(&mut stream, &mut packet)).await?? {
        let answer = match service.handle(&packet, client, Transport::Tcp, Vec::new()) {
            Outcome::Nothing => return Ok(()),
            Outcome::Answer(answer) => answer.into(),
            Outcome::Later(query, reply) => answer_later(query, reply).await,
        };
        let mut framed = Vec::with_capacity(answer.len() + 2);
        framed.extend(u16::try_from(answer.len()).map_err(io::Error::other)?.to_be_bytes());
        framed.extend(&answer);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
    Ok(())
}

/// Reads one message; `false` when the client has closed the connection instead.
async fn read(stream: &mut TcpStream, packet: &mut Vec<u8>) -> io::Result<bool> {
    let length = match stream.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    };
    packet.resize(length.into(), 0);
    stream.read_exact(packet).await?;
    Ok(true)
}
