//! The way out for names outside the cluster: the underlay has no route to anywhere, so the supervisor, which is in the
//! host's network, passes DNS messages on unread.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    time,
};

/// How long the upstream may take to answer one question.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest UDP message.
const LARGEST: usize = u16::MAX as usize;

/// Sockets on the underlay whose messages go to an upstream nameserver.
pub struct DnsRelay {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    upstream: SocketAddr,
}

impl DnsRelay {
    /// A relay from two sockets (bound where questions come from) to port 53 of `upstream`.
    ///
    /// # Errors
    /// A socket cannot be used.
    pub fn new(udp: std::net::UdpSocket, tcp: std::net::TcpListener, upstream: IpAddr) -> io::Result<Self> {
        Self::to(udp, tcp, (upstream, 53).into())
    }

    fn to(udp: std::net::UdpSocket, tcp: std::net::TcpListener, upstream: SocketAddr) -> io::Result<Self> {
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp: Arc::new(UdpSocket::from_std(udp)?), tcp: TcpListener::from_std(tcp)?, upstream })
    }

    /// Relays until it is dropped. What fails is left to the asker's own time-out, as on any network.
    pub async fn run(self) {
        let mut message = vec![0; LARGEST];
        loop {
            tokio::select! {
                received = self.udp.recv_from(&mut message) => {
                    let Ok((length, asker)) = received else { continue };
                    let (socket, question) = (self.udp.clone(), message[..length].to_vec());
                    tokio::spawn(time::timeout(PATIENCE, relay_datagram(socket, self.upstream, asker, question)));
                }
                accepted = self.tcp.accept() => match accepted {
                    Ok((stream, _)) => {
                        tokio::spawn(relay_stream(stream, self.upstream));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the DNS relay cannot take a connection");
                        time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
    }
}

async fn relay_datagram(
    socket: Arc<UdpSocket>,
    upstream: SocketAddr,
    asker: SocketAddr,
    question: Vec<u8>,
) -> io::Result<()> {
    let any: SocketAddr = if upstream.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let outside = UdpSocket::bind(any).await?;
    outside.connect(upstream).await?;
    outside.send(&question).await?;
    let mut answer = vec![0; LARGEST];
    let length = outside.recv(&mut answer).await?;
    socket.send_to(&answer[..length], asker).await.map(drop)
}

async fn relay_stream(mut inside: TcpStream, upstream: SocketAddr) -> io::Result<()> {
    let mut outside = time::timeout(PATIENCE, TcpStream::connect(upstream)).await??;
    tokio::io::copy_bidirectional(&mut inside, &mut outside).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener as StdListener, UdpSocket as StdSocket};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LOCAL: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

    #[tokio::test]
    async fn questions_go_up_and_answers_come_back() {
        let upstream = UdpSocket::bind(LOCAL).await.unwrap();
        let address = upstream.local_addr().unwrap();
        let upstream_tcp = TcpListener::bind(address).await.unwrap();
        let (udp, tcp) = (StdSocket::bind(LOCAL).unwrap(), StdListener::bind(LOCAL).unwrap());
        let (udp_address, tcp_address) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        let relay = tokio::spawn(DnsRelay::to(udp, tcp, address).unwrap().run());

        let asker = UdpSocket::bind(LOCAL).await.unwrap();
        asker.send_to(b"question", udp_address).await.unwrap();
        let mut message = [0; 64];
        let (length, from) = upstream.recv_from(&mut message).await.unwrap();
        assert_eq!(&message[..length], b"question");
        upstream.send_to(b"answer", from).await.unwrap();
        let (length, from) = asker.recv_from(&mut message).await.unwrap();
        assert_eq!((&message[..length], from), (&b"answer"[..], udp_address));

        let mut asker = TcpStream::connect(tcp_address).await.unwrap();
        asker.write_all(b"over TCP").await.unwrap();
        asker.shutdown().await.unwrap();
        let (mut stream, _) = upstream_tcp.accept().await.unwrap();
        let mut question = Vec::new();
        stream.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"over TCP");
        relay.abort();
    }
}
