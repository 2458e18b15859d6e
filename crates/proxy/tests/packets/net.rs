//! A node with two pods, a pod of another node and a machine outside, each a namespace. Pods serve TCP and UDP 8080.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    process::Command,
    time::Duration,
};

use podwire_kernel::{
    Error,
    conntrack::{self, Conntrack},
    ns::Namespace,
    sysctl::{ProcSys, Sysctl},
};
use podwire_model::Protocol;
use podwire_proxy::{
    Tracker,
    mode::{Description, DetectLocal, MODES, Mode, Settings, iptables},
    plan::Me,
};
use podwire_testkit::{
    build::ip,
    packet_table::{NODE, OUTSIDE, POD_A, POD_B, POD_C, World},
};

/// Modes that need a kernel with more modules than the netns tier's has: they run in the vm tier.
const IN_THE_MACHINE_ONLY: &[&str] = &["ipvs"];

/// Every mode that this tier can run; iptables with both kinds of programs. The modes that `PODWIRE_MODES` names, if it
/// is set.
pub fn modes() -> impl Iterator<Item = &'static Description> {
    let in_the_machine = std::env::var_os("PODWIRE_TIER").is_some_and(|tier| tier == "vm");
    let runs = move |mode: &&Description| in_the_machine || !IN_THE_MACHINE_ONLY.contains(&mode.name);
    let asked = std::env::var("PODWIRE_MODES").ok();
    let is_asked =
        move |mode: &&Description| asked.as_ref().is_none_or(|asked| asked.split(',').any(|name| name == mode.name));
    MODES.iter().chain([&iptables::LEGACY]).filter(runs).filter(is_asked)
}

/// How long an answer may take before the packet counts as dropped.
const PATIENCE: Duration = Duration::from_millis(400);

pub struct Net {
    node: Namespace,
    others: HashMap<IpAddr, Namespace>,
}

impl Net {
    /// Builds it, or says why it cannot be built (a missing capability, outside CI).
    pub fn build() -> Option<Self> {
        match Self::try_build() {
            Ok(net) => Some(net),
            Err(error) if error.is_not_permitted() && std::env::var_os("CI").is_none() => {
                eprintln!("not tested: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn try_build() -> Result<Self, Error> {
        let node = Namespace::new_net()?;
        let mut others = HashMap::new();
        node.run(|| {
            ip_command("link set lo up");
            ProcSys.write("net/ipv4/ip_forward", "1")?;
            for conf in ["all", "default"] {
                ProcSys.write(&format!("net/ipv4/conf/{conf}/rp_filter"), "0")?;
                // Redirects for hairpin packets would use up the rate that refusals are limited to.
                ProcSys.write(&format!("net/ipv4/conf/{conf}/send_redirects"), "0")?;
            }
            ProcSys.write("net/ipv4/icmp_ratelimit", "0")
        })?;
        for (number, address) in [POD_A, POD_B, POD_C, OUTSIDE].into_iter().enumerate() {
            let namespace = Namespace::new_net()?;
            let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd());
            let (link, is_pod) = (format!("peer{number}"), address != OUTSIDE);
            node.run(|| {
                ip_command(&format!("link add {link} type veth peer name eth0 netns {path}"));
                ip_command(&format!("link set {link} up"));
                if is_pod {
                    ip_command(&format!("address add 10.244.0.1/32 dev {link}"));
                    ip_command(&format!("route add {address}/32 dev {link}"));
                } else {
                    ip_command(&format!("address add {NODE}/24 dev {link}"));
                    ip_command(&format!("route add default via {OUTSIDE}"));
                }
                Ok::<_, Error>(())
            })?;
            namespace.run(|| {
                ip_command("link set lo up");
                ip_command("link set eth0 up");
                if is_pod {
                    ip_command(&format!("address add {address}/32 dev eth0"));
                    ip_command("route add 10.244.0.1 dev eth0");
                    ip_command("route add default via 10.244.0.1");
                    serve(ip(address))
                } else {
                    ip_command(&format!("address add {address}/24 dev eth0"));
                    ip_command(&format!("route add default via {NODE}"));
                    Ok(())
                }
            })?;
            others.insert(ip(address), namespace);
        }
        Ok(Self { node, others })
    }

    /// Runs `f` where `from` is an address: in the node or one of the others.
    pub fn at<T: Send>(&self, from: &IpAddr, f: impl FnOnce() -> T + Send) -> T {
        self.others.get(from).unwrap_or(&self.node).run(|| Ok::<_, Error>(f())).unwrap()
    }

    /// Starts a proxy on the node.
    pub fn proxy(&self, description: &Description, world: &World) -> Proxy {
        let settings = Settings { detect_local: DetectLocal::Ranges(vec![world.pods]), ..Settings::default() };
        let (mode, conntrack) =
            self.at(&ip(NODE), || ((description.open)(&settings).unwrap(), conntrack::Kernel::open().unwrap()));
        let tracker = Tracker::new(Me { node: world.node.into(), ..Me::default() });
        let mut proxy = Proxy { tracker, mode, conntrack };
        proxy.set(world);
        proxy
    }
}

/// A proxy as the agent runs it.
pub struct Proxy {
    tracker: Tracker,
    mode: Box<dyn Mode>,
    conntrack: conntrack::Kernel,
}

impl Proxy {
    /// Brings a world into the kernel.
    pub fn set(&mut self, world: &World) {
        self.tracker.set_services(world.services.clone());
        self.tracker.set_slices(world.slices.clone());
        let applied = self.mode.apply(self.tracker.take_changes().unwrap()).unwrap();
        for stale in applied.stale {
            self.conntrack.delete(&stale.filter()).unwrap();
        }
    }
}

/// What a client saw.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// This endpoint answered, and this is the source that it saw.
    Answer(IpAddr, IpAddr),
    /// Connection refused.
    Refused,
    /// Nothing within [`PATIENCE`].
    Nothing,
}

/// One new connection from the calling thread's namespace.
pub fn connect(to: SocketAddr, protocol: Protocol) -> Seen {
    let answer = match protocol {
        Protocol::Tcp => TcpStream::connect_timeout(&to, PATIENCE).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            Ok(line)
        }),
        _ => udp_client(to).and_then(|socket| ask(&socket)),
    };
    match answer {
        Ok(line) => {
            let (endpoint, source) = line.trim().split_once(' ').unwrap();
            Seen::Answer(ip(endpoint), ip(source))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Seen::Refused,
        Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => Seen::Nothing,
        Err(error) => panic!("{to}/{protocol}: {error}"),
    }
}

/// A UDP socket that keeps its port.
pub fn udp_client(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    Ok(socket)
}

/// One question and its answer.
pub fn ask(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"?")?;
    let mut buffer = [0; 100];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Answers on TCP and UDP 8080 with its own address and the client's; on TCP then echoes lines.
fn serve(address: IpAddr) -> Result<(), Error> {
    let listen = |error| Error::io("listen", error);
    let tcp = TcpListener::bind((address, 8080)).map_err(listen)?;
    let udp = UdpSocket::bind((address, 8080)).map_err(listen)?;
    std::thread::spawn(move || {
        for stream in tcp.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let source = stream.peer_addr()?.ip();
                writeln!(&stream, "{address} {source}")?;
                for line in BufReader::new(&stream).lines() {
                    writeln!(&stream, "{}", line?)?;
                }
                Ok::<_, io::Error>(())
            });
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, client)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(format!("{address} {}", client.ip()).as_bytes(), client);
        }
    });
    Ok(())
}

fn ip_command(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
