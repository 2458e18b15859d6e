//! Mounts, as safe calls. Every function changes the mount namespace of the calling thread only, provided that
//! [`make_private`] was called in it first.

use std::{ffi::CString, os::unix::ffi::OsStrExt, path::Path};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::{Error, Result, process::tried};

/// Stops mounts below `/` from spreading to other mount namespaces, and theirs from coming in.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN over the mount namespace.
pub fn make_private() -> Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(tried("make mounts private"))
}

/// Mounts an empty tmpfs with the given permission bits on `target`.
///
/// # Errors
/// `target` is not a directory, or mounting is not permitted.
pub fn tmpfs(target: &Path, mode: u32) -> Result<()> {
    mount("tmpfs", target, MountFlags::NOSUID | MountFlags::NODEV, &format!("mode={mode:o}"))
}

/// Mounts the `proc` of the calling process's PID namespace.
///
/// # Errors
/// As [`tmpfs`].
pub fn proc(target: &Path) -> Result<()> {
    mount("proc", target, MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, "")
}

/// Mounts a `sysfs` that shows the interfaces of the calling thread's network namespace.
///
/// # Errors
/// As [`tmpfs`]; `EPERM` also where the user namespace does not own the network namespace.
pub fn sysfs(target: &Path) -> Result<()> {
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
    pub fn mount(&self, target: &Path) -> Result<()> {
        let options = ["lowerdir", "upperdir", "workdir"]
            .iter()
            .zip([self.lower, self.upper, self.work])
            .map(|(name, path)| match path.to_str() {
                Some(text) if !text.contains([',', ':', '\\']) => Ok(format!("{name}={text}")),
                _ => Err(Error::invalid(
                    format!("use {} as overlay {name}", path.display()),
                    "the name has a comma, a colon or a backslash",
                )),
            })
            .collect::<Result<Vec<_>>>()?;
        mount("overlay", target, MountFlags::empty(), &options.join(","))
    }
}

/// Makes `source` (a file or a directory with everything mounted below it) visible at `target` too.
///
/// # Errors
/// One of them does not exist, or one is a directory and the other not.
pub fn bind(source: &Path, target: &Path) -> Result<()> {
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
pub fn make_read_only(target: &Path) -> Result<()> {
    let what = format!("make {} read-only", target.display());
    let path = CString::new(target.as_os_str().as_bytes()).map_err(|error| Error::invalid(&what, error))?;
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
    if result == 0 { Ok(()) } else { Err(Error::last(what)) }
}

/// Takes the mount at `target` and all below it out of the namespace at once; it goes when nothing uses it any more.
///
/// # Errors
/// `target` is not a mount point.
pub fn detach(target: &Path) -> Result<()> {
    rustix::mount::unmount(target, UnmountFlags::DETACH).map_err(tried(format_args!("unmount {}", target.display())))
}

/// Makes the mount at `new_root` the root of this mount namespace and shows the old root at `put_old`, a directory below
/// `new_root`. The caller is then in the new `/`.
///
/// # Errors
/// `EINVAL` when `new_root` is not a mount point or mounts are shared.
pub fn pivot_root(new_root: &Path, put_old: &Path) -> Result<()> {
    rustix::process::pivot_root(new_root, put_old)
        .and_then(|()| rustix::process::chdir("/"))
        .map_err(tried(format_args!("make {} the root", new_root.display())))
}

fn mount(kind: &str, target: &Path, flags: MountFlags, options: &str) -> Result<()> {
    let what = format!("mount {kind} on {}", target.display());
    let options = CString::new(options).map_err(|error| Error::invalid(&what, error))?;
    rustix::mount::mount(kind, target, kind, flags, options.as_c_str()).map_err(tried(what))
}
