//! Finds out, before anything is made, whether this machine can run a lab: every kernel feature is really tried, in
//! namespaces that are thrown away.

use std::{fs::File, net::Ipv4Addr, os::fd::AsFd, path::Path, thread};

use podwire_kernel::{
    mount::{self, Overlay},
    netlink,
    ns::{self, Kind, Namespace},
    process,
    route::{Ipip, NewLink, NewLinkKind, Peer, Route, RouteSocket, Vxlan},
};

use crate::{
    backend::Backend,
    error::{Context, Error, Result},
};

/// Where TUN devices are made.
const TUN: &str = "/dev/net/tun";

/// Tries everything that a lab with `backend` needs. `scratch` is an empty directory.
///
/// # Errors
/// [`Error::Unavailable`] names what is missing and what to do.
pub fn check(backend: Backend, scratch: &Path) -> Result<()> {
    // The one place that asks for root: with a user namespace around the lab, this is what would change.
    if !process::is_root() {
        return Err(Error::Unavailable("a lab needs root: run podwire lab with sudo".into()));
    }
    let network = Namespace::new_net().map_err(|error| {
        missing("make network namespaces", "CAP_SYS_ADMIN; in a container, run it privileged", &error)
    })?;
    check_links(&network, backend)?;
    network
        .run(|| netlink::Socket::open(netlink::Protocol::Netfilter).map(drop))
        .map_err(|error| missing("use nf_tables", "a kernel with CONFIG_NF_TABLES (modprobe nf_tables)", &error))?;
    check_mounts(scratch)
}

fn check_links(network: &Namespace, backend: Backend) -> Result<()> {
    let mut route = RouteSocket::open_in(network.as_fd())?;
    let vxlan = Vxlan { id: 1, port: 8472, local: None, device: None, learning: false, gbp: false };
    let peer = Peer { name: "probe1", mac: None, mtu: None, netns: None };
    let overlay = match backend {
        Backend::Vxlan | Backend::VxlanDirect => Some(("vxlan", NewLinkKind::Vxlan(vxlan))),
        Backend::Wireguard => Some(("wireguard", NewLinkKind::Wireguard)),
        Backend::Ipip => Some(("ipip", NewLinkKind::Ipip(Ipip { local: Ipv4Addr::LOCALHOST, device: None }))),
        Backend::Udp => {
            check_tun()?;
            None
        }
        Backend::HostGw | Backend::Alloc => None,
    };
    for (name, kind) in [("bridge", NewLinkKind::Bridge), ("veth", NewLinkKind::Veth(peer))].into_iter().chain(overlay)
    {
        route.create_link(&NewLink::new(name, kind)).map_err(|error| {
            missing(
                &format!("create {name} interfaces"),
                &format!("CAP_NET_ADMIN and a kernel with {name} (modprobe {name})"),
                &error,
            )
        })?;
    }
    Ok(())
}

fn check_tun() -> Result<()> {
    let opened = File::options().read(true).write(true).open(TUN);
    opened.map(drop).map_err(|error| missing(&format!("open {TUN}"), "a kernel with tun (modprobe tun)", &error))
}

/// On a thread of its own, whose mount namespace goes with it.
fn check_mounts(scratch: &Path) -> Result<()> {
    let attempt = || -> Result<()> {
        ns::unshare(&[Kind::Mount])?;
        mount::make_private()?;
        mount::tmpfs(scratch, 0o700)?;
        let [upper, work, merged] = ["upper", "work", "merged"].map(|name| scratch.join(name));
        for directory in [&upper, &work, &merged] {
            std::fs::create_dir(directory).trying(|| format!("create {}", directory.display()))?;
        }
        Overlay { lower: Path::new("/etc"), upper: &upper, work: &work }.mount(&merged)?;
        Ok(())
    };
    thread::scope(|scope| scope.spawn(attempt).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        .map_err(|error| missing("mount tmpfs and overlayfs", "CAP_SYS_ADMIN and a kernel with overlay", &error))
}

fn missing(what: &str, needs: &str, error: &dyn std::error::Error) -> Error {
    Error::Unavailable(format!("a lab must be able to {what}; needed: {needs}. The kernel says: {error}"))
}
