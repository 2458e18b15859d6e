//! A node with two pods, a namespace each: a client's and a server's.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    process::{Command, id},
    thread,
};

use podwire_kernel::{
    Error,
    ns::Namespace,
    sysctl::{ProcSys, Sysctl},
};

use super::Result;

/// Where the server is, and the client.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 2);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 3);
/// The node, as pods see it.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);

/// What the server does with a connection, by the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Port {
    /// Closes it.
    Close = 8080,
    /// Gives back what it gets.
    Echo = 8081,
    /// Takes everything and says nothing.
    Sink = 8082,
}

impl Port {
    /// Directly, past the proxy.
    pub fn address(self) -> SocketAddr {
        (SERVER, self as u16).into()
    }
}

/// The namespaces.
pub struct Net {
    node: Namespace,
    client: Namespace,
    _server: Namespace,
}

impl Net {
    pub fn new() -> Result<Self> {
        let node = Namespace::new_net()?;
        node.run(|| {
            ip("link set lo up")?;
            let mut sysctl = ProcSys;
            sysctl.write("net/ipv4/ip_forward", "1")?;
            // There are many connections, one after the other: tracking need not remember those that are over.
            sysctl.write("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "1")?;
            sysctl.write("net/netfilter/nf_conntrack_tcp_timeout_close", "1")
        })?;
        let client = pod(&node, CLIENT)?;
        let server = pod(&node, SERVER)?;
        server.run(serve)?;
        Ok(Self { node, client, _server: server })
    }

    /// Runs `f` on the node.
    pub fn on_node<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.node.run(|| Ok::<_, Error>(f()))?
    }

    /// Moves the calling thread into the client's pod.
    pub fn become_client(&self) -> Result<()> {
        Ok(self.client.enter()?)
    }

    /// Runs `f` in the client's pod.
    pub fn in_client<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.client.run(|| Ok::<_, Error>(f()))?
    }
}

/// A pod on a veth pair of its own, as a routed CNI plugin makes it.
fn pod(node: &Namespace, address: Ipv4Addr) -> Result<Namespace> {
    let pod = Namespace::new_net()?;
    let link = format!("pod{}", address.octets()[3]);
    let path = format!("/proc/{}/fd/{}", id(), pod.as_fd().as_raw_fd());
    node.run(|| {
        ip(&format!("link add {link} type veth peer name eth0 netns {path}"))?;
        ip(&format!("link set {link} up"))?;
        ip(&format!("address add {GATEWAY}/32 dev {link}"))?;
        ip(&format!("route add {address}/32 dev {link}"))
    })?;
    pod.run(|| {
        ip("link set lo up")?;
        ip("link set eth0 up")?;
        ip(&format!("address add {address}/32 dev eth0"))?;
        ip(&format!("route add {GATEWAY} dev eth0"))?;
        ip(&format!("route add default via {GATEWAY}"))
    })?;
    Ok(pod)
}

/// Runs `ip` in the calling thread's namespace.
fn ip(arguments: &str) -> Result<(), Error> {
    let what = format!("ip {arguments}");
    let output = Command::new("ip").args(arguments.split(' ')).output().map_err(|error| Error::io(&what, error))?;
    let said = || Error::invalid(&what, String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(()) } else { Err(said()) }
}

/// Serves until this process ends.
fn serve() -> Result<(), Error> {
    for port in [Port::Close, Port::Echo, Port::Sink] {
        let listener = TcpListener::bind(port.address()).map_err(|error| Error::io("listen", error))?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if port != Port::Close {
                    thread::spawn(move || answer(stream, port));
                }
            }
        });
    }
    Ok(())
}

/// Until the client closes the connection.
fn answer(mut stream: TcpStream, port: Port) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 1 << 17];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length if port == Port::Echo => stream.write_all(&buffer[..length])?,
            _ => {}
        }
    }
}

/// The server's address, as an endpoint has it.
pub fn server() -> IpAddr {
    SERVER.into()
}
