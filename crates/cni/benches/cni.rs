//! What attaching a pod costs: ADD and DEL of `bridge` with `host-local`, from the runtime's call to its answer, which
//! is mostly the start of processes. Prints one JSON object a line, for `cargo xtask bench cni`.
//!
//! The peers are the reference plugins as Debian packages them (`containernetworking-plugins`), where installed: the
//! same configuration and the same runtime, in turns.

use std::{
    env,
    error::Error,
    fs, iter,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::symlink,
    },
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

use podwire_cni::{
    PLUGINS,
    runtime::{Attachment, NetworkConfig, Runtime},
};
use podwire_kernel::ns::Namespace;
use podwire_testkit::bench::{Measured, percentile};
use serde_json::json;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Where Debian has the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";
const PEER: &str = "containernetworking-plugins";
/// Pods attached and detached.
const ROUNDS: usize = 50;
/// What both have of what a node needs.
const COMMON: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

fn main() -> Result<()> {
    let folder = env::temp_dir().join(format!("podwire-bench-cni-{}", process::id()));
    let measured = measure(&folder);
    fs::remove_dir_all(&folder)?;
    measured
}

fn measure(folder: &Path) -> Result<()> {
    let program = Path::new(env!("CARGO_BIN_EXE_podwire-cni"));
    let bin = folder.join("bin");
    fs::create_dir_all(&bin)?;
    for plugin in PLUGINS {
        symlink(program, bin.join(plugin))?;
    }
    let has_reference = COMMON.iter().all(|name| Path::new(REFERENCE).join(name).exists());
    let mut ours = Node::new(bin, folder.join("ours"))?;
    let mut reference = has_reference.then(|| Node::new(REFERENCE.into(), folder.join("reference"))).transpose()?;
    for round in 0..ROUNDS {
        for node in iter::once(&mut ours).chain(&mut reference) {
            node.attach_and_detach(round)?;
        }
    }
    let report = |metric: &str, unit: &str, value, peer: Option<f64>| {
        let (case, peer) = ("bridge with host-local", peer.map(|value| (PEER, value)));
        println!("{}", Measured { bench: "cni", case, metric, value, unit, peer });
    };
    for (at, verb) in ["ADD", "DEL"].into_iter().enumerate() {
        for (name, percent) in [("median", 50), ("90th percentile", 90)] {
            let value = |node: &Node| percentile(&node.took[at], percent);
            report(&format!("{verb}, {name}"), "ms", value(&ours), reference.as_ref().map(value));
        }
    }
    let size = || -> Result<f64> {
        let sizes = COMMON.iter().map(|name| Ok(fs::metadata(Path::new(REFERENCE).join(name))?.len() as f64 / 1e6));
        sizes.sum()
    };
    let peer = has_reference.then(size).transpose()?.map(|value| (PEER, value));
    let value = fs::metadata(program)?.len() as f64 / 1e6;
    let case = "bridge, host-local, loopback, portmap";
    println!("{}", Measured { bench: "cni", case, metric: "size of the programs", value, unit: "MB", peer });
    Ok(())
}

/// A node's network namespace and its plugins.
struct Node {
    namespace: Namespace,
    runtime: Runtime,
    network: NetworkConfig,
    /// The times of ADD and of DEL.
    took: [Vec<Duration>; 2],
}

impl Node {
    fn new(bin: PathBuf, folder: PathBuf) -> Result<Self> {
        let plugin = json!({
            "type": "bridge",
            "bridge": "cni0",
            "isDefaultGateway": true,
            "hairpinMode": true,
            "ipam": { "type": "host-local", "subnet": "10.244.1.0/24", "dataDir": folder.join("networks") },
        });
        let list = json!({ "name": "bench", "cniVersion": "1.0.0", "plugins": [plugin] });
        Ok(Self {
            namespace: Namespace::new_net()?,
            runtime: Runtime { bin_dirs: vec![bin], cache_dir: folder.join("cache") },
            network: NetworkConfig::from_json(list.to_string().as_bytes(), "bench")?,
            took: Default::default(),
        })
    }

    fn attach_and_detach(&mut self, round: usize) -> Result<()> {
        let pod = Namespace::new_net()?;
        let path = format!("/proc/{}/fd/{}", process::id(), pod.as_fd().as_raw_fd());
        let attachment = Attachment::new(format!("pod-{round}"), path, "eth0");
        let Self { namespace, runtime, network, .. } = self;
        let took = namespace.run(|| {
            let begin = Instant::now();
            runtime.add(network, &attachment)?;
            let add = begin.elapsed();
            let begin = Instant::now();
            runtime.del(network, &attachment)?;
            Ok::<_, Box<dyn Error + Send + Sync>>([add, begin.elapsed()])
        })?;
        self.took.iter_mut().zip(took).for_each(|(all, time)| all.push(time));
        Ok(())
    }
}
