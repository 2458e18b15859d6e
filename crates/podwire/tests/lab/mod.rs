//! A lab of a test's own, run with the real `podwire`.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long something that the kernel does in the background may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A lab that is taken down when the test ends, however it ends.
pub struct Lab {
    pub name: String,
}

/// What a process was, for finding out whether it is still there.
pub type Processes = BTreeMap<u32, String>;

impl Lab {
    /// A lab that is not up yet; `None`, with the reason printed, where labs cannot be (which fails in CI).
    pub fn new(test: &str) -> Option<Self> {
        let is_root = fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
        let is_capable = is_root && Command::new("unshare").args(["-n", "true"]).status().is_ok_and(|s| s.success());
        if !is_capable {
            assert!(std::env::var_os("CI").is_none(), "labs need root and namespaces");
            eprintln!("skipped: labs need root and namespaces");
            return None;
        }
        Some(Self { name: format!("t-{test}-{}", std::process::id()) })
    }

    /// `podwire lab COMMAND --name NAME ARGUMENTS…`.
    pub fn command(&self, command: &str, arguments: &[&str]) -> Command {
        let mut process = podwire();
        process.args(["lab", command, "--name", &self.name]).args(arguments);
        process
    }

    /// Runs [`Lab::command`] to its end.
    pub fn run(&self, command: &str, arguments: &[&str]) -> Output {
        self.command(command, arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Brings the lab up, which must succeed; returns what it printed.
    pub fn up(&self, arguments: &[&str]) -> String {
        let output = self.run("up", arguments);
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command on a machine of the lab; returns whether it succeeded and what it printed.
    pub fn exec(&self, machine: &str, command: &[&str]) -> (bool, String) {
        let output = self.run("exec", &[&[machine, "--"], command].concat());
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    }

    /// Runs kubectl on the lab, which must succeed; returns what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.kubectl_command(arguments).output().unwrap();
        assert!(output.status.success(), "kubectl {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// kubectl on the lab, to be run from the folder of the workspace.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.directory().join("kubeconfig")).args(arguments);
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
        command
    }

    /// A command in a pod: by kubectl, or, where kubectl is older than 1.30 and its exec speaks SPDY only, without it.
    pub fn in_pod(&self, pod: &str, command: &[&str]) -> Command {
        if kubectl_minor() >= 30 {
            self.kubectl_command(&[&["exec", "-i", pod, "--"], command].concat())
        } else {
            self.command("exec", &[&[&*format!("pod/{pod}"), "--"], command].concat())
        }
    }

    /// Runs [`Lab::in_pod`], which must succeed; returns what it printed.
    pub fn run_in_pod(&self, pod: &str, command: &[&str]) -> String {
        let output = self.in_pod(pod, command).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{command:?} in {pod}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Waits until the demo's Deployment is as it should be.
    pub fn rolled_out(&self) {
        self.kubectl(&["rollout", "status", "deployment/demo2", "--timeout=30s"]);
    }

    /// What `examples/ask.sh` says in the end; it asks `url` from a machine until its `/tmp/stop` appears.
    pub fn ask(&self, machine: &str, url: &str) -> Child {
        let mut command = self.command("exec", &[machine, "--", "sh", "-s", url]);
        asking(&mut command)
    }

    /// What tcpdump sees on a machine while `act` runs.
    pub fn captured(&self, machine: &str, arguments: &[&str], act: impl FnOnce()) -> String {
        let line = [&[machine, "--", "timeout", "10", "tcpdump", "-nn"], arguments].concat();
        let tcpdump = self.command("exec", &line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It says nothing reliable when it begins to listen, so wait until its socket is there.
        eventually("tcpdump listens", || self.exec(machine, &["ss", "-0", "-a", "-p"]).1.contains("tcpdump"));
        act();
        text(&tcpdump.wait_with_output().unwrap().stdout)
    }

    /// A running pod of the demo on `node`: name and address.
    pub fn pod_on(&self, node: &str) -> (String, String) {
        let selector = format!("--field-selector=spec.nodeName={node}");
        let pods = self.kubectl(&["get", "pods", "-l", "app=myapp", &selector, "-o", "wide", "--no-headers"]);
        // The column STATUS tells a terminating pod from a running one, which the phase does not.
        let mut columns = pods.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let running = columns.find(|columns| columns[2] == "Running").unwrap_or_else(|| panic!("{node}: {pods}"));
        (running[0].to_owned(), running[5].to_owned())
    }

    /// The lab's directory.
    pub fn directory(&self) -> PathBuf {
        Path::new("/run/podwire/lab").join(&self.name)
    }

    /// The number of the init process, from the state file.
    pub fn init(&self) -> u32 {
        let state = fs::read(self.directory().join("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        state["init"]["pid"].as_u64().unwrap().try_into().unwrap()
    }

    /// All processes of the lab, by the host's numbers, with their command lines.
    pub fn processes(&self) -> Processes {
        let all = processes();
        let init = self.init();
        let is_ours = |pid: u32| {
            let mut ancestors = std::iter::successors(Some(pid), |pid| all.get(pid).map(|(parent, _)| *parent));
            ancestors.by_ref().take(all.len()).any(|pid| pid == init)
        };
        all.iter().filter(|(pid, _)| is_ours(**pid)).map(|(pid, (_, line))| (*pid, line.clone())).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.run("down", &[]);
    }
}

/// The minor version of the machine's kubectl: 32 for 1.32.
fn kubectl_minor() -> u32 {
    let output = Command::new("kubectl").args(["version", "--client", "-o", "json"]).output().unwrap();
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    version["clientVersion"]["minor"].as_str().unwrap().trim_end_matches('+').parse().unwrap()
}

/// Starts a command that runs `examples/ask.sh` from its standard input.
pub fn asking(command: &mut Command) -> Child {
    let script = fs::File::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/ask.sh")).unwrap();
    command.stdin(script).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Kills a process of a lab.
pub fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

/// The `podwire` that was built for this test.
pub fn podwire() -> Command {
    let path = Path::new(env!("CARGO_BIN_EXE_podwire"));
    assert!(path.with_file_name("podwire-cni").exists(), "build podwire-cni too: cargo build -p podwire-cni");
    Command::new(path)
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Network and mount namespaces that `processes` are in, except the test's own.
pub fn namespaces(processes: &Processes) -> BTreeSet<PathBuf> {
    let own = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    let all = processes.keys().flat_map(|pid| ["net", "mnt"].map(|kind| format!("/proc/{pid}/ns/{kind}")));
    all.filter_map(|link| fs::read_link(link).ok())
        .filter(|space| *space != own("net") && *space != own("mnt"))
        .collect()
}

/// Waits until `what` holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Asserts that none of `before` runs any more, no process is in `spaces`, and the host mounts nothing of the lab.
pub fn assert_gone(lab: &Lab, before: &Processes, spaces: &BTreeSet<PathBuf>) {
    eventually("the lab's processes are gone", || {
        let now = processes();
        before.iter().all(|(pid, line)| now.get(pid).is_none_or(|(_, other)| other != line || line.is_empty()))
    });
    eventually("the lab's namespaces are gone", || {
        let now: Processes = processes().into_keys().map(|pid| (pid, String::new())).collect();
        namespaces(&now).is_disjoint(spaces)
    });
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&lab.name), "{mounts}");
}

/// Parent and command line of every process of the host.
fn processes() -> BTreeMap<u32, (u32, String)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
        found.insert(pid, (parent, text(&line).replace('\0', " ")));
    }
    found
}
