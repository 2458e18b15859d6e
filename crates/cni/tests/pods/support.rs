//! What the tests share: nodes and pods as network namespaces.

use std::{
    env, fs,
    io::Write,
    os::{fd::AsFd, fd::AsRawFd, unix::fs::symlink},
    path::PathBuf,
    process::{self, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use podwire_cni::{
    Error, PLUGINS,
    runtime::{Attachment, NetworkConfig, Runtime},
};
use podwire_kernel::{
    ns::Namespace,
    route::{NewLink, NewLinkKind, Peer, Route, RouteSocket},
};
use serde_json::{Value, json};

/// A node: a network namespace (that of the test's thread) and a folder with its plugins and files.
pub struct Node {
    pub folder: PathBuf,
    pub runtime: Runtime,
}

impl Node {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("podwire-cni-test-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = env::temp_dir().join(name);
        let bin = folder.join("bin");
        fs::create_dir_all(&bin).unwrap();
        for plugin in PLUGINS {
            symlink(env!("CARGO_BIN_EXE_podwire-cni"), bin.join(plugin)).unwrap();
        }
        let runtime = Runtime { bin_dirs: vec![bin], cache_dir: folder.join("cache") };
        Self { folder, runtime }
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.join(name), text).unwrap();
    }

    pub fn write_subnet_env(&self, more: &str) {
        let text =
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        self.write("subnet.env", &format!("{text}{more}"));
    }

    /// The seed's conflist, with this node's files.
    pub fn flannel(&self, version: &str) -> NetworkConfig {
        let list = json!({
            "name": "cbr0",
            "cniVersion": version,
            "plugins": [
                {
                    "type": "flannel",
                    "subnetFile": self.folder.join("subnet.env"),
                    "dataDir": self.folder.join("flannel"),
                    "ipam": {"dataDir": self.folder.join("networks")},
                    "delegate": {"hairpinMode": true, "isDefaultGateway": true},
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        NetworkConfig::from_json(list.to_string().as_bytes(), "test").unwrap()
    }

    pub fn bridge(&self, plugin: Value) -> NetworkConfig {
        let mut plugin = plugin;
        plugin["type"] = json!("bridge");
        plugin["ipam"]["type"] = json!("host-local");
        plugin["ipam"]["dataDir"] = json!(self.folder.join("networks"));
        let list = json!({"name": "net", "cniVersion": "1.1.0", "plugins": [plugin]});
        NetworkConfig::from_json(list.to_string().as_bytes(), "test").unwrap()
    }

    /// A network of one plugin.
    pub fn network(&self, plugin: Value) -> NetworkConfig {
        let list = json!({"name": "net", "cniVersion": "1.1.0", "plugins": [plugin]});
        NetworkConfig::from_json(list.to_string().as_bytes(), "test").unwrap()
    }

    /// An `ipam` with leases of 10.1.0.0/24.
    pub fn ipam(&self) -> Value {
        let range = json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10"});
        json!({"type": "host-local", "ranges": [[range]], "dataDir": self.folder.join("networks")})
    }

    /// The addresses that are taken.
    pub fn leases(&self, network: &str) -> Vec<String> {
        let entries = fs::read_dir(self.folder.join("networks").join(network)).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let mut leases: Vec<String> = names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect();
        leases.sort();
        leases
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.folder);
    }
}

pub struct Pod {
    pub namespace: Namespace,
    pub attachment: Attachment,
}

impl Pod {
    pub fn new(id: &str) -> Self {
        let namespace = Namespace::new_net().unwrap();
        let path = format!("/proc/{}/fd/{}", process::id(), namespace.as_fd().as_raw_fd());
        Self { namespace, attachment: Attachment::new(id, path, "eth0") }
    }

    /// What a program prints inside; fails the test when it fails.
    pub fn run(&self, command: &str) -> String {
        self.namespace.run(|| Ok::<_, podwire_kernel::Error>(run(command))).unwrap()
    }

    /// Whether a program that is run inside succeeds.
    pub fn succeeds(&self, command: &str) -> bool {
        let mut words = command.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        let status = || Ok::<_, podwire_kernel::Error>(command.args(words).stdout(Stdio::null()).status().unwrap());
        self.namespace.run(status).unwrap().success()
    }

    pub fn has_eth0(&self) -> bool {
        RouteSocket::open_in(self.namespace.as_fd()).unwrap().link("eth0").unwrap().is_some()
    }
}

/// Gives the node an `eth0` with a cable to another machine, which has 10.1.0.1/24 and fd01::1/64 on its `eth0`.
pub fn cabled() -> Pod {
    let outside = Pod::new("outside");
    let netns = Some(outside.namespace.as_fd());
    let peer = Peer { name: "eth0", mac: None, mtu: None, netns };
    let near = NewLink { up: true, ..NewLink::new("eth0", NewLinkKind::Veth(peer)) };
    RouteSocket::open().unwrap().create_link(&near).unwrap();
    outside.run("ip address add 10.1.0.1/24 dev eth0");
    outside.run("ip address add fd01::1/64 dev eth0 nodad");
    outside.run("ip link set eth0 up");
    outside
}

/// For tests of what the netns tier's kernel lacks: whether this is the vm tier, whose kernel must have it.
pub fn in_the_machine() -> bool {
    let in_the_machine = env::var_os("PODWIRE_TIER").is_some_and(|tier| tier == "vm");
    if !in_the_machine {
        eprintln!("left to the vm tier: cargo xtask test vm cni");
    }
    in_the_machine
}

pub fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs `test` on a node of its own.
pub fn on_a_node(test: impl FnOnce(&Node) + Send) {
    let namespace = match Namespace::new_net() {
        Ok(namespace) => namespace,
        Err(error) if env::var_os("CI").is_some() => panic!("this test needs a network namespace: {error}"),
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let ran: podwire_kernel::Result<()> = namespace.run(|| {
        test(&Node::new());
        Ok(())
    });
    ran.unwrap();
}

pub fn veths() -> Vec<String> {
    let links = RouteSocket::open().unwrap().links().unwrap();
    links.into_iter().map(|link| link.name).filter(|name| name.starts_with("veth")).collect()
}

pub fn code(result: Result<impl std::fmt::Debug, Error>) -> u32 {
    result.expect_err("it should be refused").code()
}

/// Executes one plugin.
pub fn call(node: &Node, plugin: &str, verb: &str, attachment: &Attachment, config: &Value) -> (Value, bool) {
    let bin = &node.runtime.bin_dirs[0];
    let args: Vec<String> = attachment.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut child = Command::new(bin.join(plugin))
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", &attachment.container_id)
        .env("CNI_NETNS", attachment.netns.as_deref().unwrap_or("".as_ref()))
        .env("CNI_IFNAME", &attachment.ifname)
        .env("CNI_ARGS", args.join(";"))
        .env("CNI_PATH", bin)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (serde_json::from_slice(&output.stdout).unwrap_or(Value::Null), output.status.success())
}
