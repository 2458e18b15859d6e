//! What gets through to another machine: one UDP datagram to a port where nobody listens. That it arrived is told by
//! the ICMP error that it causes; it takes no privilege, and the other machine needs nothing but a kernel.

use std::{
    io::{self, ErrorKind},
    mem,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};

use crate::{Error, Result};

/// Where `traceroute` begins: nobody listens there.
const PORT: u16 = 33_434;

/// A datagram to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// From this address; from that of the route where there is none.
    pub from: Option<IpAddr>,
    /// To this address.
    pub to: IpAddr,
    /// Size of the whole IP packet, in bytes. It may not be fragmented on the way.
    pub size: u32,
    /// Whether it carries a UDP checksum. IPv6 always does.
    pub checksum: bool,
}

/// What became of a [`Probe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It arrived whole.
    Arrived,
    /// It is too large for the path: what the kernel now knows fits, in bytes.
    TooLarge(u32),
    /// This machine does not send it: no route, a firewall.
    Refused,
    /// Nobody said anything: it got lost, or the answer did, or a firewall keeps quiet.
    Lost,
}

impl Probe {
    /// Sends it and waits for news for at most `patience`.
    ///
    /// The datagram leaves from the network namespace of the calling thread.
    ///
    /// # Errors
    /// It could not be sent at all; `EADDRNOTAVAIL` where `from` is not an address of this machine.
    pub fn send(&self, patience: Duration) -> Result<Fate> {
        let what = format!("send {} bytes to {} to see what arrives", self.size, self.to);
        let tried = |error| Error::io(&what, error);
        let any = SocketAddr::new(self.from.unwrap_or(unspecified(self.to)), 0);
        let socket = UdpSocket::bind(any).map_err(tried)?;
        forbid_fragments(&socket, self.to).map_err(tried)?;
        if !self.checksum && self.to.is_ipv4() {
            omit_checksum(&socket).map_err(tried)?;
        }
        let headers = if self.to.is_ipv4() { 20 + 8 } else { 40 + 8 };
        let payload = vec![0; usize::try_from(self.size.saturating_sub(headers)).unwrap_or_default()];
        let fate = socket.connect(SocketAddr::new(self.to, PORT)).and_then(|()| socket.send(&payload).map(drop));
        if let Err(error) = fate {
            return self.explain(&socket, error).map_err(tried);
        }
        let begin = Instant::now();
        loop {
            let left = patience.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Ok(Fate::Lost);
            }
            socket.set_read_timeout(Some(left)).map_err(tried)?;
            match socket.recv(&mut [0]) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.explain(&socket, error).map_err(tried),
                // Somebody listens after all.
                Ok(_) => return Ok(Fate::Arrived),
            }
        }
    }

    /// What an error of a connected socket says about the datagram.
    fn explain(&self, socket: &UdpSocket, error: io::Error) -> io::Result<Fate> {
        match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Ok(Fate::Arrived),
            Some(libc::EMSGSIZE) => {
                Ok(Fate::TooLarge(if self.to.is_ipv4() { sockopt::ip_mtu(socket) } else { sockopt::ipv6_mtu(socket) }?))
            }
            Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EACCES | libc::EPERM | libc::ENOPROTOOPT) => {
                Ok(Fate::Refused)
            }
            _ => Err(error),
        }
    }
}

const fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}

fn forbid_fragments(socket: &UdpSocket, to: IpAddr) -> io::Result<()> {
    Ok(match to {
        IpAddr::V4(_) => sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DO),
        IpAddr::V6(_) => sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DO),
    }?)
}

fn omit_checksum(socket: &UdpSocket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer is to a live c_int and the length is its size.
    #[allow(unsafe_code)]
    let result = unsafe {
        let size = mem::size_of_val(&on) as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, (&raw const on).cast(), size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{ns::Namespace, test_support::in_new_netns};

    const PATIENCE: Duration = Duration::from_secs(5);

    fn run(line: &str) {
        let mut words = line.split(' ');
        let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Here, behind a router, is another machine: 192.0.2.2 and 2001:db8:2::2; the link behind the router has `mtu`.
    fn behind_a_router(mtu: u32, test: impl FnOnce(&Namespace) + Send) {
        in_new_netns(|| {
            let (router, far) = (Namespace::new_net().unwrap(), Namespace::new_net().unwrap());
            let place = |space: &Namespace| {
                use std::os::fd::AsFd;
                format!("/proc/{}/fd/{}", std::process::id(), space.as_fd().as_raw_fd())
            };
            let within = |space: &Namespace, lines: &[&str]| {
                let all = || {
                    lines.iter().for_each(|line| run(line));
                    Ok::<_, Error>(())
                };
                space.run(all).unwrap();
            };
            run(&format!("ip link add eth0 type veth peer name west netns {}", place(&router)));
            within(&router, &[&format!("ip link add east type veth peer name eth0 netns {}", place(&far))]);
            for line in [
                "ip addr add 192.0.1.1/24 dev eth0",
                "ip addr add 2001:db8:1::1/64 dev eth0 nodad",
                "ip link set eth0 up",
                "ip route add default via 192.0.1.254",
                "ip route add default via 2001:db8:1::fe",
            ] {
                run(line);
            }
            within(
                &router,
                &[
                    "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
                    "ip addr add 192.0.1.254/24 dev west",
                    "ip addr add 2001:db8:1::fe/64 dev west nodad",
                    "ip addr add 192.0.2.254/24 dev east",
                    "ip addr add 2001:db8:2::fe/64 dev east nodad",
                    "ip link set west up",
                    &format!("ip link set east up mtu {mtu}"),
                ],
            );
            within(
                &far,
                &[
                    "ip addr add 192.0.2.2/24 dev eth0",
                    "ip addr add 2001:db8:2::2/64 dev eth0 nodad",
                    &format!("ip link set eth0 up mtu {mtu}"),
                    "ip route add default via 192.0.2.254",
                    "ip route add default via 2001:db8:2::fe",
                ],
            );
            test(&far);
        });
    }

    fn probe(to: &str, size: u32) -> Probe {
        Probe { from: None, to: to.parse().unwrap(), size, checksum: true }
    }

    #[test]
    fn what_fits_arrives_and_what_does_not_is_told_with_what_does() {
        behind_a_router(1400, |_| {
            for to in ["192.0.2.2", "2001:db8:2::2"] {
                assert_eq!(probe(to, 1400).send(PATIENCE).unwrap(), Fate::Arrived, "{to}");
                assert_eq!(probe(to, 1401).send(PATIENCE).unwrap(), Fate::TooLarge(1400), "{to}");
                assert_eq!(probe(to, 1500).send(PATIENCE).unwrap(), Fate::TooLarge(1400), "known by now");
                assert_eq!(probe(to, 1300).send(PATIENCE).unwrap(), Fate::Arrived);
            }
            let without = Probe { checksum: false, ..probe("192.0.2.2", 100) };
            assert_eq!(without.send(PATIENCE).unwrap(), Fate::Arrived);
        });
    }

    #[test]
    fn silence_and_refusals_are_told_apart() {
        behind_a_router(1500, |far| {
            let filter = "table ip t { chain in { type filter hook input priority 0; ip length 1001-2000 drop; \
                          udp checksum != 0 ip length 300 drop; }; }";
            far.run(|| {
                let nft = Command::new("nft").args(["-f", "-"]).stdin(std::process::Stdio::piped()).spawn();
                let mut child = nft.unwrap();
                io::Write::write_all(&mut child.stdin.take().unwrap(), filter.as_bytes()).unwrap();
                assert!(child.wait().unwrap().success());
                Ok::<_, Error>(())
            })
            .unwrap();
            let quick = Duration::from_millis(300);
            assert_eq!(probe("192.0.2.2", 1000).send(PATIENCE).unwrap(), Fate::Arrived);
            assert_eq!(probe("192.0.2.2", 1001).send(quick).unwrap(), Fate::Lost);
            assert_eq!(probe("192.0.2.2", 300).send(quick).unwrap(), Fate::Lost);
            let without = Probe { checksum: false, ..probe("192.0.2.2", 300) };
            assert_eq!(without.send(PATIENCE).unwrap(), Fate::Arrived);
            run("ip route add unreachable 198.51.100.0/24");
            assert_eq!(probe("198.51.100.1", 100).send(PATIENCE).unwrap(), Fate::Refused);
            let elsewhere = Probe { from: Some([203, 0, 113, 1].into()), ..probe("192.0.2.2", 100) };
            assert_eq!(elsewhere.send(quick).unwrap_err().errno(), Some(libc::EADDRNOTAVAIL));
        });
    }
}
