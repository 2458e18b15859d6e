//! A relay in a namespace of its own, and the mode over the machine's own iptables.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use podwire_kernel::iptables::{Backend as Programs, Iptables as _, Real, Table};
use podwire_model::{Family, Protocol};
use podwire_proxy::{
    mode::{
        Mode,
        userspace::{
            Userspace,
            relay::{Pool, Ports, Relay, Wanted},
        },
    },
    plan::Backend,
};
use podwire_testkit::{
    namespace::in_namespace,
    packet_table::{self, World},
};

use super::{support, tcp::relay_threads};

/// Longer than anything here takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(20);

/// Runs `test` in a namespace with a loopback interface.
pub fn with_loopback(test: impl FnOnce() + Send) {
    in_namespace(|| {
        ip_command("link set lo up");
        test();
    });
}

pub fn ip_command(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A relay with one port for these backends.
pub fn relay(protocol: Protocol, backends: &[SocketAddr]) -> (Relay, Arc<Pool>, SocketAddr) {
    let mut relay = Relay::start().unwrap();
    let pool = Arc::new(Pool::default());
    set(&pool, backends);
    let wanted = Wanted { protocol, family: Family::V4, port: None, pool: pool.clone() };
    let port = relay.open(vec![wanted]).remove(0).unwrap();
    (relay, pool, SocketAddr::from(([127, 0, 0, 1], port)))
}

pub fn set(pool: &Pool, backends: &[SocketAddr]) {
    let mut backends: Vec<_> = backends.iter().map(|to| Backend { address: to.ip(), port: to.port() }).collect();
    backends.sort();
    pool.lock().set(backends.into(), None);
}

/// Answers every line with itself until the client has finished, on as many connections as come.
pub fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        loop {
            // Too many open files pass in a while.
            let Ok((stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            std::thread::spawn(move || {
                let mut reader = BufReader::new(&stream);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
                    if (&stream).write_all(line.as_bytes()).is_err() {
                        return;
                    }
                    line.clear();
                }
            });
        }
    });
    address
}

/// An address where nobody listens, each time another: below those that the kernel gives to sockets.
pub fn nobody() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    SocketAddr::from(([127, 0, 0, 1], NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Sends a line and reads it back.
pub fn echo(mut stream: &TcpStream, text: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(LONG))?;
    stream.write_all(format!("{text}\n").as_bytes())?;
    let mut answer = vec![0; text.len() + 1];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer, format!("{text}\n").as_bytes());
    Ok(())
}

fn start(programs: Programs, world: &World) -> (Userspace<Real, Relay>, podwire_proxy::mode::Applied) {
    let settings = support::settings(world);
    let mut mode = Userspace::new(Real::open(Some(programs)).unwrap(), Relay::start().unwrap(), settings);
    let applied = mode.apply(support::planned(world)).unwrap();
    (mode, applied)
}

#[test]
fn a_restart_takes_the_same_ports_and_writes_nothing() {
    for programs in [Programs::Legacy, Programs::Nft] {
        with_loopback(|| {
            let world = packet_table::world();
            let (mode, first) = start(programs, &world);
            assert!(first.written > 50 && first.full, "{first:?}");
            drop(mode);
            // A killed process gives its ports back at once, a dropped mode after lingering.
            let begin = Instant::now();
            while relay_threads() > 0 {
                assert!(begin.elapsed() < LONG, "it lingers for ever");
                std::thread::sleep(Duration::from_millis(10));
            }
            let (mut mode, second) = start(programs, &world);
            assert_eq!((second.written, second.full, &second.stale), (0, true, &Vec::new()), "{programs:?}");

            // By hand, and something that is nobody's business.
            assert!(!mode.disturbed().unwrap());
            let mut other = Real::open(Some(programs)).unwrap();
            other.restore(Family::V4, "*filter\n:KUBE-OTHER - [0:0]\n-A KUBE-OTHER -j RETURN\nCOMMIT\n").unwrap();
            assert!(!mode.disturbed().unwrap(), "{programs:?}");
            other.restore(Family::V4, "*nat\n:KUBE-PORTALS-HOST - [0:0]\nCOMMIT\n").unwrap();
            assert!(mode.disturbed().unwrap(), "{programs:?}");
            assert!(mode.apply(Default::default()).unwrap().written > 10);
            let host = other.save(Family::V4, Table::Nat).unwrap();
            assert!(host.rules("KUBE-PORTALS-HOST").len() > 10);
            assert!(!mode.disturbed().unwrap());
        });
    }
}
