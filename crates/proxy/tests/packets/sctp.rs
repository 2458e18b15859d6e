//! The first two packets of an SCTP association (RFC 9260), by raw sockets: kernels for tests need not have SCTP.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::atomic::{AtomicU16, Ordering},
    time::Instant,
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, sockopt};

use super::client::{PATIENCE, unless_refused_here};

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// A parameter that whoever does not know it skips (RFC 9260, 3.2.1): it carries a text.
const TEXT: u16 = 0x8001;
/// The fixed part of an INIT or INIT ACK, after the common header of 12 bytes.
const INIT_LENGTH: usize = 20;

/// One packet with one INIT or INIT ACK chunk.
#[derive(Debug)]
struct Packet {
    source: u16,
    destination: u16,
    tag: u32,
    chunk: u8,
    initiate_tag: u32,
    text: String,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.source.to_be_bytes(), self.destination.to_be_bytes()].concat();
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        let parameter = if self.text.is_empty() { 0 } else { 4 + self.text.len() };
        bytes.extend([self.chunk, 0]);
        bytes.extend(u16::try_from(INIT_LENGTH + parameter).unwrap().to_be_bytes());
        bytes.extend(self.initiate_tag.to_be_bytes());
        // The receiver's window, streams out and in, the first sequence number.
        bytes.extend(65_535_u32.to_be_bytes());
        bytes.extend([0, 1, 0, 1]);
        bytes.extend(1_u32.to_be_bytes());
        if parameter > 0 {
            bytes.extend(TEXT.to_be_bytes());
            bytes.extend(u16::try_from(parameter).unwrap().to_be_bytes());
            bytes.extend(self.text.bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let checksum = crc32c(&bytes);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let two = |at: usize| Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let four = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let chunk_end = 12 + usize::from(two(14)?);
        let text = bytes.get(12 + INIT_LENGTH + 4..chunk_end).unwrap_or_default();
        Some(Self {
            source: two(0)?,
            destination: two(2)?,
            tag: four(4)?,
            chunk: *bytes.get(12)?,
            initiate_tag: four(16)?,
            text: String::from_utf8_lossy(text).into_owned(),
        })
    }
}

/// The checksum of SCTP (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    };
    !bytes.iter().fold(!0, step)
}

fn raw_socket(own: IpAddr) -> io::Result<OwnedFd> {
    let family = if own.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, SocketType::RAW, Some(ipproto::SCTP))?;
    rustix::net::bind(&socket, &SocketAddr::new(own, 0))?;
    Ok(socket)
}

/// The next packet and who sent it.
fn receive(socket: &OwnedFd) -> io::Result<Option<(Packet, IpAddr)>> {
    let mut buffer = [0; 500];
    let (length, _, from) = rustix::net::recvfrom(socket, &mut buffer, RecvFlags::empty())?;
    let from = from.and_then(|from| SocketAddr::try_from(from).ok()).map(|from| from.ip());
    // IPv4 raw sockets see the IP header as well.
    let header = if from.is_some_and(|from| from.is_ipv4()) { usize::from(buffer[0] & 15) * 4 } else { 0 };
    Ok(Packet::parse(&buffer[header..length]).zip(from))
}

/// Answers every INIT to one of `ports` with an INIT ACK that says `ADDRESS CLIENT`.
pub fn serve(address: IpAddr, ports: &'static [u16]) -> io::Result<()> {
    let socket = raw_socket(address)?;
    std::thread::spawn(move || {
        while let Ok(received) = receive(&socket) {
            let Some((init, client)) = received else { continue };
            if init.chunk != INIT || !ports.contains(&init.destination) {
                continue;
            }
            let answer = Packet {
                source: init.destination,
                destination: init.source,
                tag: init.initiate_tag,
                chunk: INIT_ACK,
                initiate_tag: 7,
                text: format!("{} {client}", SocketAddr::new(address, init.destination)),
            };
            let _ = rustix::net::sendto(&socket, &answer.bytes(), SendFlags::empty(), &SocketAddr::new(client, 0));
        }
    });
    Ok(())
}

/// Sends an INIT and waits for what comes back. Two at a time from one address to another would see each other's
/// refusals.
pub fn ask(from: IpAddr, to: SocketAddr) -> io::Result<String> {
    static PORT: AtomicU16 = AtomicU16::new(20_000);
    let source = PORT.fetch_add(1, Ordering::Relaxed);
    let socket = raw_socket(from)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    rustix::net::connect(&socket, &SocketAddr::new(to.ip(), 0))?;
    let init = Packet { source, destination: to.port(), tag: 0, chunk: INIT, initiate_tag: 42, text: String::new() };
    unless_refused_here(rustix::net::send(&socket, &init.bytes(), SendFlags::empty()).map_err(io::Error::from))?;
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        if let Some((answer, _)) = receive(&socket)?
            && (answer.chunk, answer.source, answer.destination) == (INIT_ACK, to.port(), source)
        {
            assert_eq!(answer.tag, 42);
            return Ok(answer.text);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

#[test]
fn packets_come_out_as_they_went_in() {
    // The check value of CRC-32C.
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    let packet = Packet { source: 1, destination: 2, tag: 3, chunk: INIT_ACK, initiate_tag: 4, text: "a b".to_owned() };
    let bytes = packet.bytes();
    assert_eq!(bytes.len() % 4, 0);
    let parsed = Packet::parse(&bytes).unwrap();
    assert_eq!(format!("{parsed:?}"), format!("{packet:?}"));
}
