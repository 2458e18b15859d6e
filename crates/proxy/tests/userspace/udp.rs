//! What clients of a UDP port see.

use std::{
    net::{SocketAddr, UdpSocket},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use podwire_model::Protocol::Udp;
use podwire_proxy::mode::userspace::relay::Ports;

use super::real::{LONG, nobody, relay, set, with_loopback};

/// Answers every datagram with its own name and what came.
fn server(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let answer = [name.as_bytes(), b" ", &buffer[..length]].concat();
            let _ = socket.send_to(&answer[..answer.len().min(65507)], client);
        }
    });
    address
}

fn client(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    // Connected: it takes answers from nowhere else.
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket
}

fn ask(socket: &UdpSocket, text: &str) -> std::io::Result<String> {
    socket.send(text.as_bytes())?;
    let mut buffer = vec![0; 65536];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

#[test]
fn a_client_keeps_its_backend_and_moves_when_that_goes() {
    with_loopback(|| {
        let servers = [server("a"), server("b")];
        let (_relay, pool, to) = relay(Udp, &servers);
        let one = client(to);
        let first = ask(&one, "1").unwrap();
        for _ in 0..5 {
            assert_eq!(ask(&one, "1").unwrap(), first);
        }
        let second = ask(&client(to), "1").unwrap();
        assert_ne!(first, second, "another client, another backend");
        set(&pool, &servers[usize::from(first == "a 1")..][..1]);
        assert_eq!(ask(&one, "1").unwrap(), second);
        set(&pool, &[]);
        one.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(ask(&one, "1").is_err());
    });
}

#[test]
fn a_backend_that_refuses_is_replaced_before_the_client_notices() {
    with_loopback(|| {
        let (_relay, _pool, to) = relay(Udp, &[nobody(), nobody(), server("a"), nobody()]);
        for _ in 0..100 {
            assert_eq!(ask(&client(to), "?").unwrap(), "a ?");
        }
    });
}

#[test]
fn the_largest_datagrams_pass() {
    with_loopback(|| {
        let (_relay, _pool, to) = relay(Udp, &[server("a")]);
        let text = "x".repeat(65000);
        assert_eq!(ask(&client(to), &text).unwrap(), format!("a {text}"));
        assert_eq!(ask(&client(to), "").unwrap(), "a ");
    });
}

#[test]
fn many_clients_in_a_hurry_are_all_answered() {
    with_loopback(|| {
        let (_relay, _pool, to) = relay(Udp, &[server("a"), server("b"), server("c")]);
        let answered = AtomicUsize::new(0);
        thread::scope(|scope| {
            for worker in 0..4 {
                let answered = &answered;
                scope.spawn(move || {
                    let clients: Vec<_> = (0..50).map(|_| client(to)).collect();
                    for round in 0..20 {
                        // A burst, no larger than what sockets hold.
                        for (number, socket) in clients.iter().enumerate() {
                            socket.send(format!("{worker} {round} {number}").as_bytes()).unwrap();
                        }
                        for (number, socket) in clients.iter().enumerate() {
                            let mut buffer = [0; 100];
                            let length = socket.recv(&mut buffer).unwrap();
                            let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
                            assert_eq!(&answer[2..], format!("{worker} {round} {number}"));
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(answered.into_inner(), 4 * 50 * 20);
    });
}

#[test]
fn a_closed_port_refuses() {
    with_loopback(|| {
        let (mut relay, _pool, to) = relay(Udp, &[server("a")]);
        let socket = client(to);
        assert_eq!(ask(&socket, "1").unwrap(), "a 1");
        relay.close(Udp, podwire_model::Family::V4, to.port());
        // The relay closes it in its own time; what comes just then is lost.
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let begin = Instant::now();
        while !ask(&socket, "1").is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
            assert!(begin.elapsed() < LONG, "it is still open");
        }
    });
}

#[test]
fn clients_of_a_dropped_relay_are_served_on() {
    with_loopback(|| {
        let (relay, _pool, to) = relay(Udp, &[server("a")]);
        let socket = client(to);
        assert_eq!(ask(&socket, "before").unwrap(), "a before");
        drop(relay);
        thread::sleep(Duration::from_millis(1300));
        assert_eq!(ask(&socket, "after").unwrap(), "a after");
    });
}

#[test]
fn datagrams_that_cannot_be_sent_are_lost_and_others_are_served() {
    with_loopback(|| {
        let (backend, filter) = (server("a"), |command: &str, to: SocketAddr| {
            let port = to.port().to_string();
            let rule = ["-w", command, "OUTPUT", "-p", "udp", "--dport", &port, "-j", "DROP"];
            assert!(Command::new("iptables-legacy").args(rule).status().unwrap().success());
        });
        let (_relay, pool, to) = relay(Udp, &[backend]);
        // The sender is told: operation not permitted.
        filter("-A", backend);
        let socket = client(to);
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(ask(&socket, "?").is_err());
        filter("-D", backend);
        assert_eq!(ask(&client(to), "?").unwrap(), "a ?");
        set(&pool, &[nobody(), nobody()]);
        assert!(ask(&socket, "?").is_err());
        set(&pool, &[backend]);
        assert_eq!(ask(&client(to), "?").unwrap(), "a ?");
    });
}
