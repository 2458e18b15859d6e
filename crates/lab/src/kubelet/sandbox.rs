//! The network namespace of a pod.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use podwire_kernel::{mount, ns::Namespace};

use super::cni::{Attachment, Cni, Connected};
use crate::error::{Context, Result};

/// Where the names of network namespaces are, for CNI plugins and `ip netns`.
pub const NETNS_DIR: &str = "/run/netns";

/// The annotation by which a pod asks for further networks, as Multus reads it (the short form: names only).
const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";

/// What the containers of a pod share.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// The pod's network; `None` on the node's.
    network: Option<Network>,
    /// The pod's addresses.
    pub ips: Vec<String>,
}

/// A pod's own network namespace.
#[derive(Debug, Clone)]
struct Network {
    namespace: Arc<Namespace>,
    /// Where its name is.
    path: PathBuf,
    connected: Connected,
}

impl Sandbox {
    /// The sandbox of a pod on the node's network.
    pub fn on_host(ips: Vec<String>) -> Self {
        Self { network: None, ips }
    }

    /// Makes a network namespace and has it connected. A failure leaves nothing behind.
    ///
    /// # Errors
    /// As the kubelet words it (`FailedCreatePodSandBox`).
    pub async fn create(cni: &Cni, pod: &Pod, directory: &Path) -> Result<Self, String> {
        let id = super::random_id();
        let path = directory.join(format!("cni-{}", &id[..16]));
        let attachment = attachment(pod, id, path.clone());
        let net = pinned(&path).map_err(|e| format!("failed to create a network namespace: {e}"))?;
        match cni.add(&attachment).await {
            Ok(connected) => {
                let ips = connected.ips.clone();
                Ok(Self { network: Some(Network { namespace: Arc::new(net), path, connected }), ips })
            }
            Err(error) => {
                unpin(&path);
                let id = &attachment.container_id;
                Err(format!("failed to setup network for sandbox \"{id}\": {error}"))
            }
        }
    }

    /// The namespace to start containers in; `None` for the node's.
    pub fn namespace(&self) -> Option<Arc<Namespace>> {
        self.network.as_ref().map(|network| network.namespace.clone())
    }

    /// Disconnects and removes the namespace. To be called again when it fails.
    ///
    /// # Errors
    /// What the plugins say.
    pub async fn remove(&self, cni: &Cni) -> Result<(), String> {
        let Some(network) = &self.network else { return Ok(()) };
        cni.del(&network.connected).await?;
        unpin(&network.path);
        Ok(())
    }

    /// Removes the namespace without asking the plugins: for a node that goes down with everything in it.
    pub fn abandon(&self) {
        if let Some(network) = &self.network {
            unpin(&network.path);
        }
    }
}

/// A new network namespace that can be found at `path`.
fn pinned(path: &Path) -> Result<Namespace> {
    let failed = || format!("create {}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).trying(failed)?;
    }
    let net = Namespace::new_net()?;
    fs::File::create(path).trying(failed)?;
    let open = PathBuf::from(format!("/proc/self/fd/{}", net.as_fd().as_raw_fd()));
    mount::bind(&open, path).inspect_err(|_| unpin(path))?;
    Ok(net)
}

fn unpin(path: &Path) {
    let _ = mount::detach(path);
    let _ = fs::remove_file(path);
}

fn attachment(pod: &Pod, id: String, netns: PathBuf) -> Attachment {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    Attachment {
        // The keys that containerd and CRI-O pass on.
        args: vec![
            ("IgnoreUnknown".into(), "1".into()),
            ("K8S_POD_NAMESPACE".into(), namespace),
            ("K8S_POD_NAME".into(), name),
            ("K8S_POD_INFRA_CONTAINER_ID".into(), id.clone()),
            ("K8S_POD_UID".into(), uid),
        ],
        more_networks: more_networks(pod),
        port_mappings: pod.spec.as_ref().map(port_mappings).unwrap_or_default(),
        container_id: id,
        netns,
    }
}

/// The networks that a pod asks for besides the cluster's, by name, separated by commas.
fn more_networks(pod: &Pod) -> Vec<String> {
    let asked = pod.metadata.annotations.as_ref().and_then(|all| all.get(NETWORKS)).map_or("", String::as_str);
    asked.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// `runtimeConfig.portMappings` for the host ports of a pod.
fn port_mappings(spec: &PodSpec) -> Vec<serde_json::Value> {
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(serde_json::json!({
                "hostPort": port.host_port.filter(|p| *p > 0)?,
                "containerPort": port.container_port,
                "protocol": port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(),
                "hostIP": port.host_ip.clone().unwrap_or_default(),
            }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn further_networks_are_asked_for_by_an_annotation() {
        let asked = |text: &str| {
            let mut pod = Pod::default();
            pod.metadata.annotations = Some([(NETWORKS.to_owned(), text.to_owned())].into());
            more_networks(&pod)
        };
        assert_eq!(asked("lan, storage"), ["lan", "storage"]);
        assert!(asked("").is_empty() && more_networks(&Pod::default()).is_empty());
    }

    #[test]
    fn host_ports_become_port_mappings() {
        let spec: PodSpec = serde_json::from_value(json!({"containers": [
            {"name": "a", "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]},
            {"name": "b", "ports": [{"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"}]},
        ]}))
        .unwrap();
        assert_eq!(
            port_mappings(&spec),
            [
                json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}),
                json!({"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}),
            ]
        );
    }
}
