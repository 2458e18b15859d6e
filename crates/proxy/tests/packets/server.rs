//! What pods serve: they answer with their own address and the client's.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
};

use super::sctp;

/// Answers on TCP, UDP and SCTP 8080 and 8081 with `ADDRESS CLIENT`; on TCP then echoes lines.
pub fn serve(address: IpAddr) -> io::Result<()> {
    for port in [8080, 8081] {
        let own = SocketAddr::new(address, port);
        serve_tcp(TcpListener::bind(own)?, own);
        serve_udp(UdpSocket::bind(own)?, own);
    }
    sctp::serve(address, &[8080, 8081])
}

fn serve_tcp(listener: TcpListener, own: SocketAddr) {
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let client = stream.peer_addr()?.ip();
                writeln!(&stream, "{own} {client}")?;
                for line in BufReader::new(&stream).lines() {
                    writeln!(&stream, "{}", line?)?;
                }
                Ok::<_, io::Error>(())
            });
        }
    });
}

fn serve_udp(socket: UdpSocket, own: SocketAddr) {
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{own} {}", client.ip()).as_bytes(), client);
        }
    });
}
