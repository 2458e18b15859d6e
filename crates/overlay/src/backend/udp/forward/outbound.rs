use std::{
    io::{self, ErrorKind, IoSlice},
    net::{Ipv4Addr, SocketAddrV4},
    ops::Range,
};

use podwire_kernel::{
    socket::{Departure, TunnelSocket},
    tun::{Offload, Queue},
};

use super::{Table, counters::Shared};
use crate::backend::udp::packet::{
    Piece,
    icmp::Problem,
    ipv4::{self, Unfit},
    split::split,
};

/// Room for one packet of the device.
const ROOM: usize = 1 << 16;
/// How many packets of the device are taken before they are sent on.
const BATCH: usize = 4;

/// Packets on the way from the device to the peers: a batch, whose memory is used again for the next.
#[derive(Debug)]
pub(super) struct Outbound {
    memory: Vec<u8>,
    headers: Vec<u8>,
    pieces: Vec<Piece>,
    /// The peer of each piece.
    peers: Vec<SocketAddrV4>,
    /// Packets that go no further, and why.
    pub problems: Vec<(Problem, Range<usize>)>,
}

impl Default for Outbound {
    fn default() -> Self {
        let memory = vec![0; BATCH * ROOM];
        Self { memory, headers: Vec::new(), pieces: Vec::new(), peers: Vec::new(), problems: Vec::new() }
    }
}

/// Pieces that go out as one message: all of one length, but for the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub to: SocketAddrV4,
    /// The length of each.
    pub segment: usize,
    pub pieces: Range<usize>,
    pub bytes: usize,
}

/// Puts packets, in their order, into as few messages as may be.
pub(super) fn plan(packets: impl IntoIterator<Item = (SocketAddrV4, usize)>) -> Vec<Message> {
    let mut messages = Vec::<Message>::new();
    for (index, (to, length)) in packets.into_iter().enumerate() {
        if let Some(last) = messages.last_mut() {
            let full = last.pieces.len() * last.segment == last.bytes;
            let room = last.pieces.len() < TunnelSocket::SEGMENTS && last.bytes + length <= TunnelSocket::BYTES;
            if last.to == to && full && room && length <= last.segment {
                last.pieces.end = index + 1;
                last.bytes += length;
                continue;
            }
        }
        messages.push(Message { to, segment: length, pieces: index..index + 1, bytes: length });
    }
    messages
}

impl Outbound {
    /// Takes a batch from the device, looks up where each packet goes and makes it fit for the wire. How many were taken.
    ///
    /// # Errors
    /// The device is gone. What was taken before may be sent.
    pub fn take(&mut self, queue: &Queue, table: &Table, counters: &Shared) -> (usize, io::Result<()>) {
        self.headers.clear();
        self.pieces.clear();
        self.peers.clear();
        self.problems.clear();
        for slot in 0..BATCH {
            let start = slot * ROOM;
            match queue.receive(&mut self.memory[start..start + ROOM]) {
                Ok((length, offload)) => self.sort(start..start + length, offload, table, counters),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return (slot, Ok(())),
                Err(error) if error.kind() == ErrorKind::InvalidData => counters.dropped_malformed.add(1),
                Err(error) => return (slot, Err(error)),
            }
        }
        (BATCH, Ok(()))
    }

    /// One packet of the device.
    fn sort(&mut self, at: Range<usize>, offload: Offload, table: &Table, counters: &Shared) {
        let packet = &self.memory[at.clone()];
        let destination = match ipv4::lengths(packet) {
            Ok(_) => Ipv4Addr::from(ipv4::u32_at(packet, 16)),
            // The kernel looks for IPv6 neighbours on every device; no route leads IPv6 packets of pods here.
            Err(Unfit::OtherVersion) => return,
            Err(_) => return counters.dropped_malformed.add(1),
        };
        let Some(to) = table.find(destination) else {
            counters.dropped_no_node.add(1);
            return self.problems.push((Problem::NoNode, at));
        };
        match split(&mut self.memory, at.clone(), offload, &mut self.headers, &mut self.pieces) {
            Ok(()) => self.peers.resize(self.pieces.len(), to),
            Err(Unfit::Expired) => {
                counters.dropped_expired.add(1);
                self.problems.push((Problem::Expired, at));
            }
            Err(Unfit::OtherVersion | Unfit::Malformed) => counters.dropped_malformed.add(1),
        }
    }

    /// A packet that goes no further.
    pub fn packet(&self, at: Range<usize>) -> &[u8] {
        &self.memory[at]
    }

    /// Sends the batch.
    pub fn dispatch(&self, socket: &TunnelSocket, counters: &Shared) {
        let messages = plan(self.peers.iter().copied().zip(self.pieces.iter().map(Piece::length)));
        // Two parts for every piece, so that any run of pieces is a run of parts.
        let mut parts = Vec::with_capacity(2 * self.pieces.len());
        for piece in &self.pieces {
            parts.push(IoSlice::new(&self.headers[piece.headers.clone()]));
            parts.push(IoSlice::new(&self.memory[piece.rest.clone()]));
        }
        let departure = |message: &Message| Departure {
            to: message.to,
            segment: if message.pieces.len() > 1 { message.segment as u16 } else { 0 },
            parts: &parts[2 * message.pieces.start..2 * message.pieces.end],
        };
        let departures: Vec<_> = messages.iter().map(departure).collect();
        let mut done = 0;
        while done < messages.len() {
            match socket.send(&departures[done..]) {
                Ok(sent) => {
                    counters.sent_messages.add(sent);
                    for message in &messages[done..done + sent] {
                        counters.sent_packets.add(message.pieces.len());
                        counters.sent_bytes.add(message.bytes);
                    }
                    done += sent;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    send_in_pieces(socket, departures[done], counters);
                    done += 1;
                }
            }
        }
    }
}

/// Sends each packet of a message that was refused as a message of its own. The kernel cuts a message only into what fits
/// the path and only for a device that computes checksums; alone, a packet that does not fit becomes IP fragments.
fn send_in_pieces(socket: &TunnelSocket, message: Departure<'_>, counters: &Shared) {
    if message.segment == 0 {
        return counters.dropped_refused.add(1);
    }
    counters.sent_in_pieces.add(1);
    for parts in message.parts.chunks(2) {
        match socket.send(&[Departure { segment: 0, parts, ..message }]) {
            Ok(_) => {
                counters.sent_messages.add(1);
                counters.sent_packets.add(1);
                counters.sent_bytes.add(parts.iter().map(|part| part.len()).sum());
            }
            Err(_) => counters.dropped_refused.add(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> SocketAddrV4 {
        SocketAddrV4::new([192, 0, 2, n].into(), 8285)
    }

    #[test]
    fn packets_of_one_length_to_one_peer_go_together() {
        let lengths = |packets: &[(u8, usize)]| -> Vec<(usize, usize)> {
            let messages = plan(packets.iter().map(|(n, length)| (peer(*n), *length)));
            assert_eq!(messages.iter().map(|message| message.pieces.len()).sum::<usize>(), packets.len());
            messages.iter().map(|message| (message.segment, message.bytes)).collect()
        };
        assert_eq!(lengths(&[]), []);
        assert_eq!(lengths(&[(1, 1472), (1, 1472), (1, 100), (1, 100)]), [(1472, 3044), (100, 100)]);
        assert_eq!(lengths(&[(1, 100), (1, 1472), (2, 1472), (2, 1472)]), [(100, 100), (1472, 1472), (1472, 2944)]);
        assert_eq!(
            lengths(&[(1, 1472); 45]),
            [(1472, 44 * 1472), (1472, 1472)],
            "no message is longer than UDP allows"
        );
        assert_eq!(lengths(&[(1, 40); 65]), [(40, 64 * 40), (40, 40)], "nor has more segments than the kernel takes");
    }
}
