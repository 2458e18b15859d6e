//! The CNI side of the node: whether the network is ready, and connecting sandboxes to it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use podwire_cni::runtime::{self, NetworkConfig, Runtime};
use serde_json::Value;
use tokio::{sync::watch, task::spawn_blocking};

/// How often an unready network is looked at: a file appears, a daemon comes up.
const UNREADY_PERIOD: Duration = Duration::from_millis(50);
/// How often a ready network is looked at.
const READY_PERIOD: Duration = Duration::from_secs(5);
/// What the kubelet says before there is a configuration.
const NOT_INITIALIZED: &str = "cni plugin not initialized";
/// The interface of a pod.
const INTERFACE: &str = "eth0";
/// How containerd and CRI-O set up `lo`; in the oldest version, which every plugin speaks.
const LOOPBACK: &str = r#"{"cniVersion": "0.3.1", "name": "cni-loopback", "plugins": [{"type": "loopback"}]}"#;

/// Whether pods can be connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkState {
    /// They can.
    Ready,
    /// They cannot, and why.
    NotReady(String),
}

/// A sandbox, as plugins are told of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Attachment {
    /// The sandbox's id.
    pub container_id: String,
    /// Its network namespace.
    pub netns: PathBuf,
    /// `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// `runtimeConfig.portMappings`.
    pub port_mappings: Vec<Value>,
    /// Names of networks that it is connected to besides, by interfaces `net1`, `net2`, ….
    pub more_networks: Vec<String>,
}

/// A connected sandbox.
#[derive(Debug, Clone, Default)]
pub struct Connected {
    /// The interfaces in the order of their making, each with its network as it was then: DEL is told what ADD was told,
    /// whatever has become of the files.
    interfaces: Vec<(NetworkConfig, runtime::Attachment)>,
    /// The pod's addresses: those of `eth0`.
    pub ips: Vec<String>,
}

/// The network that the first configuration file describes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cni {
    conf_dir: PathBuf,
    runtime: Runtime,
}

impl Cni {
    /// The network configured in `conf_dir`, with plugins from `bin_dir`.
    pub fn new(conf_dir: &Path, bin_dir: &Path) -> Self {
        Self { conf_dir: conf_dir.to_owned(), runtime: Runtime::new([bin_dir]) }
    }

    /// Whether there is a configuration whose plugins are there and, from CNI 1.1 on, say that they are ready.
    pub async fn state(&self) -> NetworkState {
        let checked = self.blocking(|cni| {
            let network = cni.network()?;
            cni.runtime.status(&network).map_err(|e| e.to_string())
        });
        checked.await.map_or_else(NetworkState::NotReady, |()| NetworkState::Ready)
    }

    /// Connects a sandbox: `lo`, then `eth0` to the network, then the others that it asks for. A failure leaves nothing behind.
    ///
    /// # Errors
    /// What the plugins say; they gave no address; a network is asked for that no file describes.
    pub async fn add(&self, attachment: &Attachment) -> Result<Connected, String> {
        let attachment = attachment.clone();
        self.blocking(move |cni| {
            let network = cni.network()?;
            let name = network.name.clone();
            let mut wanted = vec![(loopback()?, "lo".to_owned()), (network, INTERFACE.to_owned())];
            for (name, number) in attachment.more_networks.iter().zip(1..) {
                wanted.push((cni.named(name)?, format!("net{number}")));
            }
            let mut connected = Connected::default();
            for (network, interface) in wanted {
                let attachment = attachment.on(&interface);
                match cni.runtime.add(&network, &attachment) {
                    Ok(result) if interface == INTERFACE => {
                        connected.ips = result.ips.iter().map(|ip| ip.address.addr().to_string()).collect();
                    }
                    Ok(_) => {}
                    Err(error) => return Err(cni.give_up(&connected, error.to_string())),
                }
                connected.interfaces.push((network, attachment));
            }
            if connected.ips.is_empty() {
                return Err(cni.give_up(&connected, format!("network {name:?} gave no address")));
            }
            Ok(connected)
        })
        .await
    }

    /// Disconnects a sandbox, the last interface first. May be called again.
    ///
    /// # Errors
    /// What the plugins say; the other interfaces are gone nevertheless.
    pub async fn del(&self, connected: &Connected) -> Result<(), String> {
        let connected = connected.clone();
        self.blocking(move |cni| cni.disconnect(&connected)).await
    }

    fn disconnect(&self, connected: &Connected) -> Result<(), String> {
        let mut failures = Vec::new();
        for (network, attachment) in connected.interfaces.iter().rev() {
            if let Err(error) = self.runtime.del(network, attachment) {
                failures.push(error.to_string());
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    /// Takes back what was connected before something failed, and returns why that failed.
    fn give_up(&self, connected: &Connected, why: String) -> String {
        if let Err(error) = self.disconnect(connected) {
            tracing::warn!(%error, "cannot clean up after a failed CNI ADD");
        }
        why
    }

    /// The network called `name`, whichever file describes it.
    fn named(&self, name: &str) -> Result<NetworkConfig, String> {
        let all = NetworkConfig::load_all(&self.conf_dir).map_err(|e| e.to_string())?;
        let found = all.into_iter().find(|network| network.name == name);
        found.ok_or_else(|| format!("no file in {} describes a network called {name:?}", self.conf_dir.display()))
    }

    fn network(&self) -> Result<NetworkConfig, String> {
        let network = NetworkConfig::load_first(&self.conf_dir).map_err(|e| e.to_string())?;
        network.ok_or_else(|| NOT_INITIALIZED.to_owned())
    }

    /// Plugins are executed on a thread of their own: the runtime is synchronous.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let cni = self.clone();
        spawn_blocking(move || work(&cni)).await.unwrap_or_else(|e| Err(format!("the CNI runtime failed: {e}")))
    }
}

impl Attachment {
    fn on(&self, interface: &str) -> runtime::Attachment {
        let mut attachment = runtime::Attachment::new(&self.container_id, &self.netns, interface);
        attachment.args.clone_from(&self.args);
        if !self.port_mappings.is_empty() {
            attachment.capabilities.insert("portMappings".into(), Value::Array(self.port_mappings.clone()));
        }
        attachment
    }
}

fn loopback() -> Result<NetworkConfig, String> {
    NetworkConfig::from_json(LOOPBACK.as_bytes(), "the loopback network").map_err(|e| e.to_string())
}

/// Looks at the network for ever, and says when its state changes.
pub async fn watch_state(cni: &Cni, state: watch::Sender<NetworkState>) {
    loop {
        let is_ready = *state.borrow() == NetworkState::Ready;
        tokio::time::sleep(if is_ready { READY_PERIOD } else { UNREADY_PERIOD }).await;
        let now = cni.state().await;
        state.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}
