//! The Node object: registration, conditions, the lease.

use std::{collections::BTreeMap, fs, time::Duration};

use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{Node, NodeAddress, NodeCondition, NodeStatus, NodeSystemInfo},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{MicroTime, ObjectMeta, Time},
    },
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::watch;

use super::{
    cni::NetworkState,
    events::{Recorder, Severity},
};
use crate::node::NodeConfig;

/// The namespace of node leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Between two renewals of the lease.
const LEASE_PERIOD: Duration = Duration::from_secs(10);
/// `spec.leaseDurationSeconds`.
const LEASE_SECONDS: i32 = 40;
/// Between two reports of an unchanged status.
const STATUS_PERIOD: Duration = Duration::from_secs(300);
/// The first pause after the API server did not answer; doubles up to [`LEASE_PERIOD`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// How many pods a node takes, as the kubelet's default.
const MAX_PODS: u32 = 110;

/// What the machine is, read once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// CPUs that may be used.
    pub cpus: usize,
    /// Memory in KiB.
    pub memory: u64,
    /// `kernelVersion`.
    pub kernel: String,
    /// `osImage`.
    pub os: String,
    /// `machineID`.
    pub machine_id: String,
    /// `bootID`.
    pub boot_id: String,
}

impl Machine {
    /// Reads what this machine is; what cannot be read is empty.
    pub fn read() -> Self {
        let line = |path: &str| fs::read_to_string(path).map(|s| s.trim().to_owned()).unwrap_or_default();
        let memory = line("/proc/meminfo");
        let memory = memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
        let os = line("/etc/os-release");
        let os = os.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory.unwrap_or(0),
            kernel: line("/proc/sys/kernel/osrelease"),
            os: os.trim_matches('"').to_owned(),
            machine_id: line("/etc/machine-id"),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
        }
    }
}

/// The Node as it may be made before its kubelet runs: name and labels.
pub fn bare(name: &str) -> Node {
    let labels = [
        ("beta.kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
    ];
    Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
            ..Default::default()
        },
        ..Default::default()
    }
}

/// `architecture` in Go's spelling.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The Node as it registers.
fn object(config: &NodeConfig, machine: &Machine, network: &NetworkState, now: Timestamp) -> Node {
    let address = |kind: &str, address: String| NodeAddress { type_: kind.into(), address };
    let resources: BTreeMap<String, Quantity> = [
        ("cpu", machine.cpus.to_string()),
        ("memory", format!("{}Ki", machine.memory)),
        ("pods", MAX_PODS.to_string()),
    ]
    .map(|(name, quantity)| (name.to_owned(), Quantity(quantity)))
    .into();
    Node {
        status: Some(NodeStatus {
            addresses: Some(
                config
                    .addresses
                    .iter()
                    .map(|ip| address("InternalIP", ip.to_string()))
                    .chain([address("Hostname", config.name.clone())])
                    .collect(),
            ),
            allocatable: Some(resources.clone()),
            capacity: Some(resources),
            conditions: Some(conditions(network, now, now)),
            node_info: Some(NodeSystemInfo {
                architecture: architecture().to_owned(),
                boot_id: machine.boot_id.clone(),
                container_runtime_version: concat!("podwire://", env!("CARGO_PKG_VERSION")).to_owned(),
                kernel_version: machine.kernel.clone(),
                kubelet_version: "v1.36.0+podwire".to_owned(),
                machine_id: machine.machine_id.clone(),
                operating_system: "linux".to_owned(),
                os_image: machine.os.clone(),
                system_uuid: machine.machine_id.clone(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..bare(&config.name)
    }
}

/// The kubelet's conditions; `since` is when the network's state changed last.
fn conditions(network: &NetworkState, since: Timestamp, now: Timestamp) -> Vec<NodeCondition> {
    let condition = |kind: &str, status: &str, reason: &str, message: &str| NodeCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: Some(Time(since)),
    };
    let ready = match network {
        NetworkState::Ready => condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        NetworkState::NotReady(why) => {
            let message = format!(
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                 message:Network plugin returns error: {why}"
            );
            condition("Ready", "False", "KubeletNotReady", &message)
        }
    };
    vec![
        condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ready,
    ]
}

/// Registers the node and keeps its status in step with the network's, for ever.
pub async fn keep_status(
    client: kube::Client,
    config: &NodeConfig,
    mut network: watch::Receiver<NetworkState>,
    events: &Recorder,
) {
    let api: Api<Node> = Api::all(client);
    let machine = Machine::read();
    let mut reported = network.borrow_and_update().clone();
    let node = object(config, &machine, &reported, Timestamp::now());
    retry("register the node", || register(&api, &node)).await;
    events.node(&config.name, Severity::Normal, ("Starting", "Starting kubelet.".to_owned()));
    let mut since = Timestamp::now();
    loop {
        tokio::select! {
            changed = network.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(STATUS_PERIOD) => {}
        }
        let state = network.borrow_and_update().clone();
        if state != reported {
            since = Timestamp::now();
        }
        if std::mem::discriminant(&state) != std::mem::discriminant(&reported) {
            let reason = if state == NetworkState::Ready { "NodeReady" } else { "NodeNotReady" };
            let message = format!("Node {} status is now: {reason}", config.name);
            events.node(&config.name, Severity::Normal, (reason, message));
        }
        let patch = json!({"status": {"conditions": conditions(&state, since, Timestamp::now())}});
        reported = state;
        let patch = Patch::Strategic(patch);
        retry("report the node's status", || async {
            api.patch_status(&config.name, &PatchParams::default(), &patch).await.map(drop)
        })
        .await;
    }
}

/// Creates the Node; one that is there already, as in a lab, gets labels and status and keeps the rest.
async fn register(api: &Api<Node>, node: &Node) -> kube::Result<()> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    match api.create(&PostParams::default(), node).await {
        Err(kube::Error::Api(error)) if error.code == 409 => {
            let patch = Patch::Strategic(json!({"metadata": {"labels": node.metadata.labels}}));
            api.patch(name, &PatchParams::default(), &patch).await?;
        }
        result => drop(result?),
    }
    // Servers drop the status of a create.
    let patch = Patch::Strategic(json!({"status": node.status}));
    api.patch_status(name, &PatchParams::default(), &patch).await.map(drop)
}

/// Renews the node's lease, for ever.
pub async fn keep_lease(client: kube::Client, name: &str) {
    let api: Api<Lease> = Api::namespaced(client, LEASE_NAMESPACE);
    loop {
        retry("renew the node's lease", || renew(&api, name)).await;
        tokio::time::sleep(LEASE_PERIOD).await;
    }
}

async fn renew(api: &Api<Lease>, name: &str) -> kube::Result<()> {
    let now = MicroTime(Timestamp::now());
    let patch = Patch::Merge(json!({"spec": {"renewTime": now}}));
    match api.patch(name, &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(error)) if error.code == 404 => {}
        result => return result.map(drop),
    }
    let lease = Lease {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(now),
            ..Default::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(drop)
}

/// Tries until it succeeds, with a growing pause.
async fn retry<F: Future<Output = kube::Result<()>>>(what: &str, mut attempt: impl FnMut() -> F) {
    let mut pause = FIRST_PAUSE;
    while let Err(error) = attempt().await {
        tracing::warn!(%error, retry_in = ?pause, "cannot {what}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LEASE_PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(network: &NetworkState) -> (String, String, String) {
        let now = Timestamp::UNIX_EPOCH;
        let condition = conditions(network, now, now).pop().unwrap();
        (condition.status, condition.reason.unwrap(), condition.message.unwrap())
    }

    #[test]
    fn ready_follows_the_network() {
        let (status, reason, _) = ready(&NetworkState::Ready);
        assert_eq!((status.as_str(), reason.as_str()), ("True", "KubeletReady"));
        let (status, reason, message) = ready(&NetworkState::NotReady("cni plugin not initialized".into()));
        assert_eq!((status.as_str(), reason.as_str()), ("False", "KubeletNotReady"));
        assert_eq!(
            message,
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network \
             plugin returns error: cni plugin not initialized"
        );
    }

    #[test]
    fn the_node_says_what_the_machine_is() {
        let config = NodeConfig {
            name: "node1".into(),
            addresses: vec!["172.25.2.1".parse().unwrap(), "fd00:172:25:2::1".parse().unwrap()],
            kubeconfig: String::new(),
            api_server: ("172.25.2.254".parse().unwrap(), 6443),
            cluster_dns: "10.96.0.10".parse().unwrap(),
            cluster_domain: "cluster.local".into(),
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dir: "/opt/cni/bin".into(),
        };
        let machine = Machine::read();
        assert!(machine.cpus > 0 && machine.memory > 0 && !machine.kernel.is_empty(), "{machine:?}");
        let node = object(&config, &machine, &NetworkState::Ready, Timestamp::UNIX_EPOCH);
        let labels = node.metadata.labels.unwrap();
        assert_eq!(labels["kubernetes.io/hostname"], "node1");
        let status = node.status.unwrap();
        let addresses: Vec<_> = status.addresses.unwrap().into_iter().map(|a| (a.type_, a.address)).collect();
        let expected = [("InternalIP", "172.25.2.1"), ("InternalIP", "fd00:172:25:2::1"), ("Hostname", "node1")];
        assert_eq!(addresses, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(status.node_info.unwrap().kubelet_version, "v1.36.0+podwire");
        assert_eq!(status.capacity.unwrap()["pods"], Quantity("110".into()));
    }
}
