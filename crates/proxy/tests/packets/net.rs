//! A node with two pods, a pod of another node and a machine outside, each a namespace with addresses of both families.
//! Pods serve TCP, UDP and SCTP at two ports.

use std::{collections::HashMap, net::IpAddr, os::fd::AsFd, os::fd::AsRawFd, process::Command};

use podwire_kernel::{
    Error,
    conntrack::{self, Conntrack},
    ns::Namespace,
    sysctl::{ProcSys, Sysctl},
};
use podwire_proxy::{
    Tracker,
    mode::{Applied, Description, MODES, Mode, iptables},
};
use podwire_testkit::packet_table::{
    FAMILIES, NODE, NODE_INNER, OUTSIDE, POD_A, POD_B, POD_C, World, address, interface,
};

use super::{server::serve, support};

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

pub struct Net {
    node: Namespace,
    others: HashMap<IpAddr, Namespace>,
    /// For every other address that is one of these machines'.
    aliases: HashMap<IpAddr, IpAddr>,
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
        node.run(|| {
            ip_command("link set lo up");
            set_up_stack()?;
            for (key, value) in [
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
                // Refusals are not limited in number.
                ("net/ipv4/icmp_ratelimit", "0"),
                ("net/ipv4/icmp_ratemask", "0"),
                ("net/ipv6/icmp/ratelimit", "0"),
                ("net/ipv6/icmp/ratemask", "255"),
            ] {
                ProcSys.write(key, value)?;
            }
            Ok::<_, Error>(())
        })?;
        let mut net = Self { node, others: HashMap::new(), aliases: HashMap::new() };
        for machine in [POD_A, POD_B, POD_C, OUTSIDE] {
            net.add(machine)?;
        }
        Ok(net)
    }

    /// A machine at the other end of a pair of links.
    fn add(&mut self, machine: &str) -> Result<(), Error> {
        let namespace = Namespace::new_net()?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd());
        let [v4, v6] = FAMILIES.map(|family| address(machine, family));
        let [inner_v4, inner_v6] = FAMILIES.map(|family| address(NODE_INNER, family));
        let [node_v4, node_v6] = FAMILIES.map(|family| address(NODE, family));
        let (link, is_pod) = (interface(&v4), machine != OUTSIDE);
        namespace.run(set_up_stack)?;
        self.node.run(|| {
            ip_command(&format!("link add {link} type veth peer name eth0 netns {path}"));
            ip_command(&format!("link set {link} up"));
            if is_pod {
                for command in [
                    format!("address add {inner_v4}/32 dev {link}"),
                    format!("address add {inner_v6}/128 dev {link} nodad"),
                    format!("route add {v4}/32 dev {link}"),
                    format!("route add {v6}/128 dev {link} src {inner_v6}"),
                ] {
                    ip_command(&command);
                }
            } else {
                for command in [
                    format!("address add {node_v4}/24 dev {link}"),
                    format!("address add {node_v6}/112 dev {link} nodad"),
                    format!("route add default via {v4}"),
                    format!("route add default via {v6} src {node_v6}"),
                ] {
                    ip_command(&command);
                }
            }
            Ok::<_, Error>(())
        })?;
        namespace.run(|| {
            ip_command("link set lo up");
            ip_command("link set eth0 up");
            if is_pod {
                for command in [
                    format!("address add {v4}/32 dev eth0"),
                    format!("address add {v6}/128 dev eth0 nodad"),
                    format!("route add {inner_v4} dev eth0"),
                    format!("route add {inner_v6} dev eth0"),
                    format!("route add default via {inner_v4}"),
                    format!("route add default via {inner_v6}"),
                ] {
                    ip_command(&command);
                }
                [v4, v6].into_iter().try_for_each(serve).map_err(|error| Error::io("listen", error))?;
            } else {
                for command in [
                    format!("address add {v4}/24 dev eth0"),
                    format!("address add {v6}/112 dev eth0 nodad"),
                    format!("route add default via {node_v4}"),
                    format!("route add default via {node_v6}"),
                ] {
                    ip_command(&command);
                }
            }
            Ok::<_, Error>(())
        })?;
        self.others.insert(v4, namespace);
        self.aliases.insert(v6, v4);
        Ok(())
    }

    /// Runs `f` where `from` is an address: in the node or one of the others.
    pub fn at<T: Send>(&self, from: &IpAddr, f: impl FnOnce() -> T + Send) -> T {
        let from = self.aliases.get(from).unwrap_or(from);
        self.others.get(from).unwrap_or(&self.node).run(|| Ok::<_, Error>(f())).unwrap()
    }

    /// Starts a proxy on the node.
    pub fn proxy(&self, description: &Description, world: &World) -> Proxy {
        let node = address(NODE, podwire_model::Family::V4);
        let (mode, conntrack) = self
            .at(&node, || ((description.open)(&support::settings(world)).unwrap(), conntrack::Kernel::open().unwrap()));
        let mut proxy = Proxy { tracker: support::tracker(world), mode, conntrack };
        proxy.set(world);
        proxy
    }
}

/// A proxy as the agent runs it.
pub struct Proxy {
    pub tracker: Tracker,
    mode: Box<dyn Mode>,
    conntrack: conntrack::Kernel,
}

impl Proxy {
    /// Brings a world into the kernel.
    pub fn set(&mut self, world: &World) {
        self.tracker.set_services(world.services.clone());
        self.tracker.set_slices(world.slices.clone());
        self.sync();
    }

    /// Brings what the tracker knows into the kernel.
    pub fn sync(&mut self) -> Applied {
        let applied = self.mode.apply(self.tracker.take_changes().unwrap()).unwrap();
        for stale in &applied.stale {
            self.conntrack.delete(&stale.filter()).unwrap();
        }
        applied
    }

    /// Has everything removed that is unused, as a proxy does in the seconds after a change.
    pub fn tidy(&mut self) {
        while self.mode.tidy().unwrap() {}
    }
}

/// What all machines need: no waiting for duplicate addresses, no tests of where packets come from.
fn set_up_stack() -> Result<(), Error> {
    for conf in ["all", "default"] {
        for (key, value) in [
            (format!("net/ipv4/conf/{conf}/rp_filter"), "0"),
            // Redirects for hairpin packets would use up the rate that refusals are limited to.
            (format!("net/ipv4/conf/{conf}/send_redirects"), "0"),
            (format!("net/ipv6/conf/{conf}/accept_dad"), "0"),
            (format!("net/ipv6/conf/{conf}/accept_redirects"), "0"),
        ] {
            ProcSys.write(&key, value)?;
        }
    }
    Ok(())
}

fn ip_command(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
