//! One machine: from a job to its exit status.

use std::{
    ffi::OsString,
    fs,
    io::IsTerminal,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    initramfs,
    kernel::{self, Kernel},
    quoted,
};

const QEMU: &str = "qemu-system-x86_64";
/// With PCI Express, which SR-IOV needs.
const MACHINE: &str = "q35";
/// Processors: as many as the machines have that run the tests.
const PROCESSORS: &str = "2";
/// Memory in MiB; the host gives only what is used.
const MEMORY: &str = "3072";
/// Software emulation: the host may be a virtual machine itself, and hardware virtualisation inside it hangs or is absent.
const ACCELERATOR: &str = "tcg,thread=multi,tb-size=512";
/// What the kernel is told: speak on the first serial line, stop at once at what would be a panic, and believe in the
/// timer, which comes late on a busy host.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off no_timer_check";
const GUEST: &str = include_str!("guest.sh");
/// What precedes the exit status on the first serial line.
const RESULT: &str = "podwire-vm: job ended with ";
/// Variables that a job gets from the caller, by the beginning of their names.
const PASSED_ON: &[&str] = &["CI", "PATH", "RUST_", "PROPTEST_", "PODWIRE_"];

/// What a machine does.
pub struct Job {
    /// A shell script.
    pub script: OsString,
    /// A folder of the host, where the script starts.
    pub folder: PathBuf,
    /// After this time the machine is killed, which is an error.
    pub limit: Duration,
}

/// Boots a machine, runs the job, its output passed through, and returns its exit status. Any other end is an error that
/// shows what the kernel had to say.
pub fn run(kernel: &Kernel, job: &Job) -> Result<u8> {
    let run = Folder::new()?;
    fs::write(run.0.join("job.sh"), script(job).as_encoded_bytes())?;
    fs::write(run.0.join("guest.sh"), GUEST)?;
    fs::write(run.0.join("initramfs"), initramfs::build(kernel, &run.0)?)?;
    let console = run.0.join("console");
    let mut machine = Machine(command(kernel, &run.0).spawn().with_context(|| format!("cannot start {QEMU}"))?);
    let ended = machine.wait(job.limit)?;
    let said = fs::read(&console).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let status = said.lines().find_map(|line| line.split_once(RESULT)?.1.trim().parse().ok());
    match (ended, status) {
        (Some(_), Some(status)) => Ok(status),
        (Some(ended), None) => bail!("the machine ended without a result ({QEMU}: {ended}); its console:\n{said}"),
        (None, _) => bail!("the machine was killed after {} s; its console:\n{said}", job.limit.as_secs()),
    }
}

fn script(job: &Job) -> OsString {
    let mut script = OsString::new();
    let mut line = |parts: &[OsString]| {
        parts.iter().for_each(|part| script.push(part));
        script.push("\n");
    };
    let mut ours = vec![("PODWIRE_TIER".into(), "vm".into())];
    if !std::io::stdout().is_terminal() {
        // In the machine it is one, always.
        ours.push(("NO_COLOR".into(), "1".into()));
    }
    let passed = std::env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        PASSED_ON.iter().any(|start| name.starts_with(start)) && name != "PODWIRE_TIER"
    });
    for (name, value) in passed.chain(ours) {
        // The guest's own folders come last, for a caller whose path lacks them.
        let rest = if name == "PATH" { ":$PATH" } else { "" };
        line(&["export ".into(), name, "=".into(), quoted(value), rest.into()]);
    }
    line(&["cd ".into(), quoted(&job.folder), " || exit".into()]);
    line(std::slice::from_ref(&job.script));
    script
}

fn command(kernel: &Kernel, run: &Path) -> Command {
    // Dies with this process, however that ends. The option exists since util-linux 2.33 (Debian 10).
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", QEMU, "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"]);
    command.args(["-machine", MACHINE, "-accel", ACCELERATOR, "-cpu", "max", "-smp", PROCESSORS, "-m", MEMORY]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(run.join("initramfs"));
    command.args(["-append", COMMAND_LINE]);
    let mut console = OsString::from("file:");
    console.push(run.join("console"));
    command.arg("-serial").arg(console).args(["-serial", "stdio"]);
    command.args(["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"]);
    command.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
    // A network card for its virtual functions, at a network with nobody else. Its driver is not loaded before a test does it.
    command.args(["-netdev", "user,id=nobody,restrict=on", "-device", "igb,netdev=nobody"]);
    command.stdin(Stdio::null());
    command
}

/// A running machine; killed when dropped.
struct Machine(Child);

impl Machine {
    /// Waits at most `limit`; `None` if that was too short.
    fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(None)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The files of one run; removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let parent = kernel::folder()?;
        sweep(&parent);
        let path = parent.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes the folders of runs that were interrupted.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("run-").filter(|pid| !Path::new("/proc").join(pid).exists());
        if owner.is_some() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
