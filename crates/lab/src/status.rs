//! `podwire lab status`: what runs in a lab, and how much memory it takes.

use std::{collections::BTreeMap, fs, path::Path};

use podwire_k8s::{
    Client,
    k8s_openapi::api::core::v1::{Node, Pod},
    kube::{Api, api::ListParams},
};
use serde::Serialize;

use crate::{
    enter::lab_proc,
    error::{Context, Error, Result},
    ready,
    state::{self, Directory, State},
    topology,
};

/// How a lab is. Serialized it is what `podwire lab status --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Since it began to start.
    pub uptime_seconds: u64,
    /// The API server's URL on the host; empty while the lab is starting.
    pub api_url: String,
    /// The machines, nodes first.
    pub machines: Vec<MachineStatus>,
    /// Our own processes, by machine and name.
    pub processes: Vec<ProcessStatus>,
}

/// How a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineStatus {
    /// Its name.
    pub name: String,
    /// Its address on the underlay.
    pub address: String,
    /// `Ready`, `NotReady`, or empty for the client.
    pub condition: String,
    /// How many pods are bound to it.
    pub pods: usize,
}

/// One process of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProcessStatus {
    /// The machine that it is on; empty for the supervisor's side.
    pub machine: String,
    /// What it is: `kube-proxy`, `flanneld`, `kubelet`, …
    pub name: String,
    /// Resident memory, in KiB.
    pub rss_kb: u64,
    /// Resident memory with shared pages divided among their users, in KiB.
    pub pss_kb: u64,
}

/// Looks at the running lab called `name`.
///
/// # Errors
/// The lab does not run, or its API does not answer.
pub async fn status(name: &str) -> Result<Status> {
    let directory = Directory::of(name)?;
    let state = directory.read_running(name)?;
    let client = Client::from_kubeconfig(Some(&directory.kubeconfig())).await.map_err(|error| api_error(&error))?;
    let all = ListParams::default();
    let nodes = Api::<Node>::all(client.kube()).list(&all).await.map_err(|error| api_error(&error))?.items;
    let pods = Api::<Pod>::all(client.kube()).list(&all).await.map_err(|error| api_error(&error))?.items;
    Ok(Status {
        name: name.to_owned(),
        uptime_seconds: state::age(state.started).as_secs(),
        api_url: state.running.as_ref().map(|running| running.api_url.clone()).unwrap_or_default(),
        machines: machines(&state, &nodes, &pods),
        processes: processes(&state)?,
    })
}

fn api_error(error: &dyn std::error::Error) -> Error {
    Error::Api { tried: "ask the lab's API server".to_owned(), reason: error.to_string() }
}

fn machines(state: &State, nodes: &[Node], pods: &[Pod]) -> Vec<MachineStatus> {
    let machines = state.running.iter().flat_map(|running| &running.machines);
    machines
        .map(|running| {
            let name = running.machine.name.clone();
            let node = nodes.iter().find(|node| node.metadata.name.as_deref() == Some(&name));
            let bound = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(&name);
            MachineStatus {
                address: running.machine.address.to_string(),
                condition: node.map_or("", |node| if ready::is_ready(node) { "Ready" } else { "NotReady" }).to_owned(),
                pods: pods.iter().filter(bound).count(),
                name,
            }
        })
        .collect()
}

/// One process as `/proc` has it.
struct Entry {
    parent: u32,
    arguments: Vec<String>,
}

fn processes(state: &State) -> Result<Vec<ProcessStatus>> {
    let proc = lab_proc(state.init);
    let entries = entries(&proc)?;
    let machines: BTreeMap<u32, &str> = state
        .running
        .iter()
        .flat_map(|running| &running.machines)
        .map(|running| (running.pid, running.machine.name.as_str()))
        .collect();
    let mut found = Vec::new();
    for (pid, entry) in &entries {
        let Some(name) = own_name(&entry.arguments) else { continue };
        let Some((rss_kb, pss_kb)) = memory(&proc.join(pid.to_string())) else { continue };
        let machine = machine_of(*pid, &entries, &machines);
        let name = if machine == topology::CLIENT_NAME { "machine".to_owned() } else { name };
        found.push(ProcessStatus { machine, name, rss_kb, pss_kb });
    }
    found.sort_by(|a, b| (&a.machine, &a.name).cmp(&(&b.machine, &b.name)));
    Ok(found)
}

fn entries(proc: &Path) -> Result<BTreeMap<u32, Entry>> {
    let failed = || format!("read {}", proc.display());
    let mut entries = BTreeMap::new();
    for entry in fs::read_dir(proc).trying(failed)? {
        let entry = entry.trying(failed)?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end while it is looked at.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let arguments = line.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect();
        entries.insert(pid, Entry { parent: field(&status, "PPid:").unwrap_or(0), arguments });
    }
    Ok(entries)
}

/// What one of our processes is called in the output; `None` for other programs.
fn own_name(arguments: &[String]) -> Option<String> {
    let is_ours = arguments.first().is_some_and(|program| ["podwire", "exe"].contains(&base_name(program)));
    let name = arguments.get(1).filter(|_| is_ours)?;
    Some(match name.as_str() {
        "lab-init" => "init".to_owned(),
        "lab-supervisor" => "supervisor with API server and controllers".to_owned(),
        "lab-node" => "kubelet".to_owned(),
        name => name.to_owned(),
    })
}

fn base_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn machine_of(pid: u32, entries: &BTreeMap<u32, Entry>, machines: &BTreeMap<u32, &str>) -> String {
    let ancestors = std::iter::successors(Some(pid), |pid| entries.get(pid).map(|entry| entry.parent));
    ancestors.take(entries.len()).find_map(|pid| machines.get(&pid)).copied().unwrap_or_default().to_owned()
}

fn memory(process: &Path) -> Option<(u64, u64)> {
    let text = fs::read_to_string(process.join("smaps_rollup")).ok()?;
    Some((field(&text, "Rss:")?, field(&text, "Pss:")?))
}

/// The number in the line of a `/proc` file that begins with `label`.
fn field<T: std::str::FromStr>(text: &str, label: &str) -> Option<T> {
    text.lines().find_map(|line| line.strip_prefix(label))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_named_and_placed() {
        let entry = |parent, line: &str| Entry { parent, arguments: line.split(' ').map(str::to_owned).collect() };
        let entries = BTreeMap::from([
            (1, entry(0, "podwire lab-init {}")),
            (2, entry(1, "podwire lab-supervisor {}")),
            (5, entry(2, "/proc/self/exe lab-node")),
            (9, entry(5, "/usr/local/bin/podwire kube-proxy --config=x")),
            (10, entry(9, "sh -c x")),
        ]);
        let machines = BTreeMap::from([(5, "node1")]);
        let describe = |pid: u32| (own_name(&entries[&pid].arguments), machine_of(pid, &entries, &machines));
        assert_eq!(describe(9), (Some("kube-proxy".to_owned()), "node1".to_owned()));
        assert_eq!(describe(5), (Some("kubelet".to_owned()), "node1".to_owned()));
        assert_eq!(describe(10), (None, "node1".to_owned()));
        assert_eq!(describe(1), (Some("init".to_owned()), String::new()));
    }

    #[test]
    fn numbers_are_read_from_proc_files() {
        let text =
            "55d0-7ffe ---p 00000000 00:00 0    [rollup]\nRss:        4204 kB\nPss:         812 kB\nPss_Dirty: 1 kB\n";
        assert_eq!((field(text, "Rss:"), field(text, "Pss:")), (Some(4204_u64), Some(812_u64)));
        assert_eq!(field::<u64>(text, "Swap:"), None);
    }
}
