//! The file system that a node or a container sees: the host's own, with private layers where something writes.
//!
//! The new root is a small tmpfs. The host's top-level directories are bound into it; `/etc` and `/var` are overlays whose
//! changes stay in the tmpfs; `/run`, `/tmp` and `/dev/shm` are empty; `/proc` and `/sys` are those of the caller's PID and network
//! namespace. Mount points that the host lacks are made on an overlay of the nearest directory that it has, so nothing
//! is ever created on a file system of the host. Everything goes with the mount namespace: there is nothing to clean.
//!
//! Overlays always have the host's original as their lower directory, never a node's overlay: the kernel stacks two
//! overlays at most, and the host's root may be one already (a machine that is itself a container).

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, symlink},
    path::{Path, PathBuf},
};

use podwire_kernel::mount::{self, Overlay};

use crate::error::{Context, Result};

/// Where a node sees the host's root.
pub const HOST: &str = "/.host";
/// Where nodes and containers have the `podwire` executable.
pub const PODWIRE: &str = "/usr/local/bin/podwire";

/// Where the upper directories of overlays are kept in the new root.
const LAYERS: &str = "/.layers";
/// Top-level names that are not bound from the host.
const OWN: [&str; 9] = ["proc", "sys", "run", "tmp", "etc", "var", "lost+found", ".host", ".layers"];

/// A root to be built. Nothing happens before [`Rootfs::enter`].
#[derive(Debug, Clone)]
pub struct Rootfs {
    /// The host's root, as seen from where `enter` is called.
    host: PathBuf,
    /// A container reads the host's files, a node is the host's user and may write them.
    is_container: bool,
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
enum Step {
    Tmpfs { target: PathBuf, mode: u32 },
    Bind { source: PathBuf, target: PathBuf, read_only: bool },
    File { target: PathBuf, contents: Vec<u8> },
}

impl Rootfs {
    /// The root of a node; `podwire` is the executable to show at [`PODWIRE`]. To be entered from the host's root; the
    /// host stays visible at [`HOST`]. Other software's CNI and kubelet state is hidden.
    pub fn node(podwire: &Path) -> Self {
        ["/etc/cni", "/opt/cni", "/var/lib/cni", "/var/lib/kubelet", "/var/log/pods"]
            .into_iter()
            .fold(Self { host: "/".into(), is_container: false, steps: Vec::new() }, |root, dir| root.tmpfs(dir, 0o755))
            .bind(podwire, PODWIRE)
    }

    /// The root of a container: the host's files, read-only, with the private layers. To be entered from a node's root.
    pub fn container() -> Self {
        // The directory, not the file: a file that was replaced on the host since (a rebuild) cannot be bound again.
        let bin = Path::new(PODWIRE).parent().unwrap_or(Path::new("/"));
        Self { host: HOST.into(), is_container: true, steps: Vec::new() }.bind_read_only(bin, bin)
    }

    /// Adds an empty directory in memory at `target`, with permission bits `mode`. Steps are taken in the order added.
    pub fn tmpfs(mut self, target: impl Into<PathBuf>, mode: u32) -> Self {
        self.steps.push(Step::Tmpfs { target: target.into(), mode });
        self
    }

    /// Shows `source`, a file or directory as seen from where [`Rootfs::enter`] is called, at `target`.
    pub fn bind(mut self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        self.steps.push(Step::Bind { source: source.into(), target: target.into(), read_only: false });
        self
    }

    /// As [`Rootfs::bind`]; the file or directory cannot be written through `target`.
    pub fn bind_read_only(mut self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        self.steps.push(Step::Bind { source: source.into(), target: target.into(), read_only: true });
        self
    }

    /// Writes a file (mode 0644), in place of whatever the host has at `target`.
    pub fn file(mut self, target: impl Into<PathBuf>, contents: impl Into<Vec<u8>>) -> Self {
        self.steps.push(Step::File { target: target.into(), contents: contents.into() });
        self
    }

    /// Builds the root and moves the calling process into it, to `/`.
    ///
    /// The process must have one thread and a mount namespace of its own (`unshare(&[Kind::Mount])`), and be in the PID and
    /// network namespaces that `/proc` and `/sys` are to show. `base` is a directory to mount on, made if need be;
    /// only this mount namespace ever sees something there.
    ///
    /// # Errors
    /// A source does not exist, a target is of another type, or mounting is not permitted. The namespace is then
    /// half-built: the process should end.
    pub fn enter(self, base: &Path) -> Result<()> {
        mount::make_private()?;
        let steps = self.steps.into_iter().map(resolve_source).collect::<Result<Vec<_>>>()?;
        fs::create_dir_all(base).trying(|| format!("create {}", base.display()))?;
        mount::tmpfs(base, 0o755)?;
        let put_old = base.join(HOST.trim_start_matches('/'));
        fs::create_dir(&put_old).trying(|| format!("create {}", put_old.display()))?;
        mount::pivot_root(base, &put_old)?;

        let host = under(HOST, &self.host);
        let mut builder = Builder { private: BTreeMap::from([("/".into(), true)]), layers: 0 };
        builder.host_directories(&host, self.is_container)?;
        for dir in ["/etc", "/var"] {
            builder.overlay(&under(&host, Path::new(dir)), Path::new(dir))?;
        }
        builder.kernel_file_systems(&host)?;
        for step in steps {
            builder.take(step)?;
        }
        if self.is_container {
            mount::detach(Path::new(HOST))?;
        }
        Ok(())
    }
}

/// `path`, which is absolute, seen from a root at `root`.
fn under(root: impl AsRef<Path>, path: &Path) -> PathBuf {
    root.as_ref().join(path.strip_prefix("/").unwrap_or(path))
}

/// Follows the symlinks of a bind's source while the old root is still `/`, and says where it will be afterwards.
fn resolve_source(step: Step) -> Result<Step> {
    let Step::Bind { source, target, read_only } = step else { return Ok(step) };
    let real = fs::canonicalize(&source).trying(|| format!("mount {} at {}", source.display(), target.display()))?;
    Ok(Step::Bind { source: under(HOST, &real), target, read_only })
}

/// Works inside the new root; the old one is at [`HOST`].
struct Builder {
    /// Mount points made so far, and whether files may be created there without touching the host.
    private: BTreeMap<PathBuf, bool>,
    layers: usize,
}

impl Builder {
    /// Binds the host's top-level directories and copies its top-level symlinks (`/bin -> usr/bin`).
    fn host_directories(&mut self, host: &Path, read_only: bool) -> Result<()> {
        let failed = || format!("read the host's root, {}", host.display());
        for entry in fs::read_dir(host).trying(failed)? {
            let entry = entry.trying(failed)?;
            let name = entry.file_name();
            if OWN.iter().any(|own| name == *own) {
                continue;
            }
            let target = Path::new("/").join(&name);
            let kind = entry.file_type().trying(failed)?;
            if kind.is_symlink() {
                let to = fs::read_link(entry.path()).trying(failed)?;
                symlink(to, &target).trying(|| format!("create {}", target.display()))?;
            } else if kind.is_dir() {
                fs::create_dir(&target).trying(|| format!("create {}", target.display()))?;
                self.bind(&entry.path(), &target, read_only && name != "dev")?;
            }
        }
        Ok(())
    }

    /// `/proc`, `/sys` and the empty directories in memory.
    fn kernel_file_systems(&mut self, host: &Path) -> Result<()> {
        for dir in ["/proc", "/sys"] {
            make_directory(Path::new(dir))?;
            self.private.insert(dir.into(), false);
        }
        mount::proc(Path::new("/proc"))?;
        // Without owning the network namespace only the host's view can be shown.
        mount::sysfs(Path::new("/sys")).or_else(|_| mount::bind(&under(host, Path::new("/sys")), Path::new("/sys")))?;
        self.tmpfs(Path::new("/run"), 0o755)?;
        self.tmpfs(Path::new("/tmp"), 0o1777)?;
        if Path::new("/dev/shm").is_dir() {
            self.tmpfs(Path::new("/dev/shm"), 0o1777)?;
        }
        Ok(())
    }

    fn take(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Tmpfs { target, mode } => {
                self.mount_point(&target, true)?;
                self.tmpfs(&target, mode)
            }
            Step::Bind { source, target, read_only } => {
                let is_dir = fs::metadata(&source).trying(|| format!("look at {}", source.display()))?.is_dir();
                self.mount_point(&target, is_dir)?;
                self.bind(&source, &target, read_only)
            }
            Step::File { target, contents } => {
                let parent = target.parent().unwrap_or(Path::new("/"));
                self.mount_point(parent, true)?;
                self.make_private(parent)?;
                // A symlink (say, to a resolver's file under /run) is to be replaced, not followed.
                match fs::remove_file(&target) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => fs::write(&target, contents),
                }
                .trying(|| format!("write {}", target.display()))
            }
        }
    }

    fn bind(&mut self, source: &Path, target: &Path, read_only: bool) -> Result<()> {
        mount::bind(source, target)?;
        if read_only {
            mount::make_read_only(target)?;
        }
        self.note(target, false)
    }

    fn tmpfs(&mut self, target: &Path, mode: u32) -> Result<()> {
        make_directory(target)?;
        mount::tmpfs(target, mode)?;
        self.note(target, true)
    }

    fn overlay(&mut self, lower: &Path, target: &Path) -> Result<()> {
        make_directory(target)?;
        if !lower.is_dir() {
            return Ok(());
        }
        let layer = Path::new(LAYERS).join(self.layers.to_string());
        self.layers += 1;
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        make_directory(&upper)?;
        make_directory(&work)?;
        Overlay { lower, upper: &upper, work: &work }.mount(target)?;
        self.note(target, true)
    }

    /// Makes `target` exist as a directory or an empty file, somewhere that is ours.
    fn mount_point(&mut self, target: &Path, is_dir: bool) -> Result<()> {
        if target.exists() {
            return Ok(());
        }
        let parent = if is_dir { target } else { target.parent().unwrap_or(target) };
        let nearest = parent.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"));
        self.make_private(nearest)?;
        make_directory(parent)?;
        if !is_dir {
            fs::File::create(target).trying(|| format!("create {}", target.display()))?;
        }
        Ok(())
    }

    /// Lays an overlay over `dir`, which exists, unless files may be created there already.
    fn make_private(&mut self, dir: &Path) -> Result<()> {
        let real = fs::canonicalize(dir).trying(|| format!("look at {}", dir.display()))?;
        let is_private = real.ancestors().find_map(|ancestor| self.private.get(ancestor)).copied().unwrap_or(false);
        if is_private { Ok(()) } else { self.overlay(&real, &real) }
    }

    fn note(&mut self, target: &Path, is_private: bool) -> Result<()> {
        let real = fs::canonicalize(target).trying(|| format!("look at {}", target.display()))?;
        self.private.insert(real, is_private);
        Ok(())
    }
}

fn make_directory(path: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path).trying(|| format!("create {}", path.display()))
}
