//! Mounts, as safe calls. Every function changes the mount namespace of the calling thread only, provided that
//! [`make_private`] was called in it first.

use std::{ffi::CString, io, os::unix::ffi::OsStrExt, path::Path};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::process::tried;

/// Stops mounts below `/` from spreading to other mount namespaces, and theirs from coming in.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN over the mount namespace.
pub fn make_private() -> io::Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(tried("make mounts private"))
}

/// Mounts an empty tmpfs with the given permission bits on `target`.
///
/// # Errors
/// `target` is not a directory, or mounting is not permitted.
pub fn tmpfs(target: &Path, mode: u32) -> io::Result<()> {
    mount("tmpfs", target, MountFlags::NOSUID | MountFlags::NODEV, &format!("mode={mode:o}"))
}

/// Mounts the `proc` of the calling process's PID namespace.
///
/// # Errors
/// As [`tmpfs`].
pub fn proc(target: &Path) -> io::Result<()> {
    mount("proc", target, MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, "")
}

/// Mounts a `sysfs` that shows the interfaces of the calling thread's network namespace.
///
/// # Errors
/// As [`tmpfs`]; `EPERM` also where the user namespace does not own the network namespace.
pub fn sysfs(target: &Path) -> io::Result<()> {
    mount("sysfs", target, MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, "")
}

/// The directories of an overlay: what is read, what is written, and the kernel's work space.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// Read-only lower directory.
    pub lower: &'a Path,
    /// Takes every change; on a file system of ours.
    pub upper: &'a Path,
    /// Empty, on the same file system as `upper`.
    pub work: &'a Path,
}

impl Overlay<'_> {
    /// Mounts the overlay on `target`.
    ///
    /// # Errors
    /// `EINVAL` when `lower` is itself an overlay on an overlay (the kernel stacks two, not three); a path with a
    /// comma, colon or backslash cannot be named in mount options.
    pub fn mount(&self, target: &Path) -> io::Result<()> {
        let options = ["lowerdir", "upperdir", "workdir"]
            .iter()
            .zip([self.lower, self.upper, self.work])
            .map(|(name, path)| match path.to_str() {
                Some(text) if !text.contains([',', ':', '\\']) => Ok(format!("{name}={text}")),
                _ => Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "cannot use {} as overlay {name}: the name has a comma, a colon or a backslash",
                        path.display()
                    ),
                )),
            })
            .collect::<io::Result<Vec<_>>>()?;
        mount("overlay", target, MountFlags::empty(), &options.join(","))
    }
}

/// Makes `source` (a file or a directory with everything mounted below it) visible at `target` too.
///
/// # Errors
/// One of them does not exist, or one is a directory and the other not.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    rustix::mount::mount_bind_recursive(source, target).map_err(tried(format_args!(
        "bind {} at {}",
        source.display(),
        target.display()
    )))
}

/// Makes the mount at `target`, and every mount below it, read-only in this mount namespace.
///
/// # Errors
/// `target` is not a mount point; `ENOSYS` before Linux 5.12.
pub fn make_read_only(target: &Path) -> io::Result<()> {
    let path = CString::new(target.as_os_str().as_bytes())?;
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: `path` is a NUL-terminated string and `attributes` a mount_attr of the size given; both outlive the call,
    // which writes to neither.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(error.kind(), format!("cannot make {} read-only: {error}", target.display())))
}

/// Takes the mount at `target` and all below it out of the namespace at once; it goes when nothing uses it any more.
///
/// # Errors
/// `target` is not a mount point.
pub fn detach(target: &Path) -> io::Result<()> {
    rustix::mount::unmount(target, UnmountFlags::DETACH).map_err(tried(format_args!("unmount {}", target.display())))
}

/// Makes the mount at `new_root` the root of this mount namespace, drops the old root and goes to `/`.
///
/// # Errors
/// `EINVAL` when `new_root` is not a mount point or mounts are shared.
pub fn pivot_root(new_root: &Path) -> io::Result<()> {
    let what = format!("make {} the root", new_root.display());
    let failed = || tried(&what);
    rustix::process::chdir(new_root).map_err(failed())?;
    // Old and new root may be the same directory: the old one is then stacked on top, and detached (pivot_root(2)).
    rustix::process::pivot_root(".", ".").map_err(failed())?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed())?;
    rustix::process::chdir("/").map_err(failed())
}

fn mount(kind: &str, target: &Path, flags: MountFlags, options: &str) -> io::Result<()> {
    let options = CString::new(options)?;
    rustix::mount::mount(kind, target, kind, flags, options.as_c_str())
        .map_err(tried(format_args!("mount {kind} on {}", target.display())))
}
