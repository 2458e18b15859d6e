//! What clients of a TCP port see.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use podwire_model::Protocol::Tcp;
use podwire_testkit::random::Random;

use super::real::{LONG, echo, echo_server, ip_command, nobody, relay, set, with_loopback};

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&to, LONG)
}

#[test]
fn a_thousand_connections_beside_dead_backends_and_no_error() {
    with_loopback(|| {
        // One host that does not answer at all: nobody answers ARP there.
        ip_command("link add quiet type veth peer name other");
        ip_command("link set quiet up");
        ip_command("link set other up");
        ip_command("address add 192.0.2.1/24 dev quiet");
        let silent = "192.0.2.9:80".parse().unwrap();
        let (_relay, _pool, to) =
            relay(Tcp, &[nobody(), echo_server(), echo_server(), silent, nobody(), echo_server()]);
        let done = AtomicUsize::new(0);
        thread::scope(|scope| {
            for client in 0..20 {
                let done = &done;
                scope.spawn(move || {
                    for number in 0..50 {
                        let stream = connect(to).unwrap();
                        echo(&stream, &format!("client {client}, connection {number}")).unwrap();
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 1000);
    });
}

#[test]
fn a_client_of_dead_backends_only_is_cut_off() {
    with_loopback(|| {
        let (_relay, pool, to) = relay(Tcp, &[nobody(), nobody()]);
        // Cut off after the connection is made, or so soon that making it ends with the reset already.
        let error = connect(to).and_then(|stream| echo(&stream, "anybody?")).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{error}");
        set(&pool, &[echo_server()]);
        echo(&connect(to).unwrap(), "somebody").unwrap();
    });
}

/// How many files this process has open.
fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn two_thousand_connections_at_once_and_pipes_only_while_data_flows() {
    with_loopback(|| {
        let (_relay, _pool, to) = relay(Tcp, &[echo_server(), echo_server()]);
        let before = open_files();
        let streams: Vec<_> = (0..2000).map(|_| connect(to).unwrap()).collect();
        for round in 0..2 {
            for (number, stream) in streams.iter().enumerate() {
                (&*stream).write_all(format!("{round} {number:>6}\n").as_bytes()).unwrap();
            }
            for (number, mut stream) in streams.iter().enumerate() {
                stream.set_read_timeout(Some(LONG)).unwrap();
                let mut answer = [0; 9];
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(answer, *format!("{round} {number:>6}\n").as_bytes());
            }
        }
        // The client's, the server's and the relay's two; two for each of the spare pipes.
        assert!(open_files() - before <= 2000 * 4 + 2 * 64, "{} more than before", open_files() - before);
        drop(streams);
        let begin = Instant::now();
        while open_files() > before + 2 * 64 {
            assert!(begin.elapsed() < LONG, "{} more files than before", open_files() - before);
            thread::sleep(Duration::from_millis(20));
        }
    });
}

/// Bytes of a large transfer.
const LARGE: usize = 100 << 20;

/// Bytes of a chunk.
const CHUNK: usize = 1 << 16;

/// Noise, of which every chunk of a stream is another piece.
fn noise(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..2 * CHUNK / 8).flat_map(|_| random.number().to_le_bytes()).collect()
}

fn chunk(noise: &[u8], number: usize) -> &[u8] {
    &noise[number * 7919 % CHUNK..][..CHUNK]
}

/// Sends [`LARGE`] bytes in pieces of changing size, and says that this was all.
fn send_large(mut stream: &TcpStream, seed: u64) {
    let noise = noise(seed);
    for number in 0..LARGE / CHUNK {
        let (a, b) = chunk(&noise, number).split_at(1 + number * 7919 % (CHUNK - 1));
        stream.write_all(a).unwrap();
        stream.write_all(b).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Reads until the other side has finished, and compares.
fn read_large(mut stream: &TcpStream, seed: u64) {
    let (noise, mut buffer) = (noise(seed), vec![0; CHUNK]);
    for number in 0..LARGE / CHUNK {
        stream.read_exact(&mut buffer).unwrap();
        assert!(buffer == chunk(&noise, number), "chunk {number} is another one");
    }
    assert_eq!(stream.read(&mut buffer).unwrap(), 0, "nothing more");
}

#[test]
fn a_hundred_megabytes_each_way_at_once_arrive_whole() {
    with_loopback(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_relay, _pool, to) = relay(Tcp, &[listener.local_addr().unwrap()]);
        let begin = Instant::now();
        let client = connect(to).unwrap();
        let (server, _) = listener.accept().unwrap();
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(LONG)).unwrap();
        }
        thread::scope(|scope| {
            scope.spawn(|| send_large(&client, 1));
            scope.spawn(|| send_large(&server, 2));
            scope.spawn(|| read_large(&server, 1));
            read_large(&client, 2);
        });
        eprintln!("100 MiB each way in {:?}", begin.elapsed());
    });
}

#[test]
fn one_side_may_finish_long_before_the_other() {
    with_loopback(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_relay, _pool, to) = relay(Tcp, &[listener.local_addr().unwrap()]);
        let mut client = connect(to).unwrap();
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).unwrap();
        assert_eq!(question, "question");
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(100));
            server.write_all(b"answer").unwrap();
        }
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer".repeat(3));
    });
}

#[test]
fn a_client_that_does_not_read_holds_up_its_backend_and_nobody_else() {
    with_loopback(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_relay, pool, to) = relay(Tcp, &[listener.local_addr().unwrap()]);
        let client = connect(to).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut sent = 0;
        let held_up = loop {
            match server.write(&[7; 65536]) {
                Ok(length) => sent += length,
                Err(error) => break error,
            }
            assert!(sent < 1 << 30, "somebody takes everything");
        };
        assert_eq!(held_up.kind(), io::ErrorKind::WouldBlock);
        set(&pool, &[echo_server()]);
        echo(&connect(to).unwrap(), "another client").unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(io::copy(&mut &client, &mut io::sink()).unwrap(), sent as u64);
    });
}

#[test]
fn a_broken_connection_is_broken_on_the_other_side_too() {
    with_loopback(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_relay, _pool, to) = relay(Tcp, &[listener.local_addr().unwrap()]);
        let mut client = connect(to).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.write_all(b"never read").unwrap();
        // Closing with something unread resets the connection.
        while server.peek(&mut [0; 10]).unwrap() < 10 {}
        drop(server);
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    });
}

pub fn relay_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.trim() == "userspace-proxy").count()
}

#[test]
fn a_dropped_relay_serves_established_connections_to_their_end() {
    with_loopback(|| {
        let (relay, pool, to) = relay(Tcp, &[echo_server()]);
        let stream = connect(to).unwrap();
        echo(&stream, "before").unwrap();
        drop(relay);
        echo(&connect(to).unwrap(), "redirected a moment ago").unwrap();
        // The relay closes it when it has lingered.
        let begin = Instant::now();
        let refused = loop {
            match connect(to) {
                Ok(_) => assert!(begin.elapsed() < LONG, "it is still open"),
                Err(error) => break error,
            }
            thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        set(&pool, &[]);
        echo(&stream, "after").unwrap();
        assert_eq!(relay_threads(), 1);
        drop(stream);
        let begin = Instant::now();
        while relay_threads() > 0 {
            assert!(begin.elapsed() < LONG, "the thread goes on with nothing to do");
            thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn connections_wait_while_too_many_files_are_open() {
    with_loopback(|| {
        let (_relay, _pool, to) = relay(Tcp, &[echo_server()]);
        let limit = |files: usize| {
            let pid = std::process::id().to_string();
            let limit = format!("--nofile={files}:20000");
            assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
        };
        let before = open_files();
        limit(before + 40);
        // Clients and relay take what there is from each other.
        let streams: Vec<_> = (0..60).map_while(|_| connect(to).ok()).collect();
        assert!((5..60).contains(&streams.len()), "{}", streams.len());
        thread::sleep(Duration::from_millis(300));
        limit(20_000);
        streams.iter().for_each(|stream| echo(stream, "patience").unwrap());
    });
}
