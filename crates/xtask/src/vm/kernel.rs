//! Debian's kernel and busybox, downloaded as packages and unpacked into `target/vm/kernel`; nothing is installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Depends on the kernel of the release: the one whose name has its version.
const NEWEST: &str = "linux-image-amd64";
/// One static program with `sh`, `mount`, `modprobe` and `switch_root`.
const BUSYBOX: &str = "busybox-static";
/// What is unpacked: a quarter of the package. No sound, graphics, disks, wireless.
const UNPACKED: &[&str] = &[
    "./boot/vmlinuz-*",
    "./lib/modules/*/modules.*",
    "./lib/modules/*/kernel/arch/x86/crypto",
    "./lib/modules/*/kernel/crypto",
    "./lib/modules/*/kernel/drivers/dca",
    "./lib/modules/*/kernel/drivers/i2c/algos",
    "./lib/modules/*/kernel/drivers/net",
    "./lib/modules/*/kernel/drivers/virtio",
    "./lib/modules/*/kernel/fs/9p",
    "./lib/modules/*/kernel/fs/fscache",
    "./lib/modules/*/kernel/fs/netfs",
    "./lib/modules/*/kernel/fs/overlayfs",
    "./lib/modules/*/kernel/lib",
    "./lib/modules/*/kernel/net",
];
const NOT_UNPACKED: &[&str] = &["*/drivers/net/wireless", "*/kernel/net/mac80211", "*/kernel/net/bluetooth"];

/// What a machine boots from.
pub struct Kernel {
    /// The compressed kernel.
    pub image: PathBuf,
    /// The folder of folders of modules, one a version, as `/lib/modules` is; with the lists that `depmod` makes.
    pub modules: PathBuf,
    /// As `uname -r` prints it.
    pub version: String,
    /// The static busybox.
    pub busybox: PathBuf,
}

/// The unpacked kernel; fetches it first if it is not there.
pub fn ready() -> Result<Kernel> {
    let folder = folder()?.join("kernel");
    if !folder.is_dir() {
        fetch(&folder).context("cannot fetch Debian's kernel for the vm tier")?;
    }
    let modules = folder.join("lib/modules");
    let version = only_name(&modules)?;
    let image = folder.join(format!("boot/vmlinuz-{version}"));
    Ok(Kernel { image, modules, version, busybox: folder.join("bin/busybox") })
}

/// The folder for everything of machines.
pub fn folder() -> Result<PathBuf> {
    Ok(shell::target()?.join("vm"))
}

/// Fills a folder beside `folder` and renames it at the end, so that `folder` is whole or not there.
fn fetch(folder: &Path) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the vm tier runs on x86_64 only: it boots an x86_64 kernel with the programs of this machine");
    }
    let part = folder.with_extension(format!("{}.part", std::process::id()));
    fs::create_dir_all(&part).with_context(|| part.display().to_string())?;
    let filled = fill(&part).and_then(|()| match fs::rename(&part, folder) {
        // Someone else was faster.
        Err(_) if folder.is_dir() => Ok(()),
        renamed => renamed.with_context(|| folder.display().to_string()),
    });
    // After a success it is not there any more.
    let _ = fs::remove_dir_all(&part);
    filled
}

fn fill(part: &Path) -> Result<()> {
    if !shell::has("apt-get") {
        bail!("no apt-get here: the kernel and {BUSYBOX} come as Debian packages");
    }
    // Without lists of packages, or with old ones, one update helps; only root can.
    if download(part).is_err() {
        shell::run("apt-get", ["update", "-qq"])?;
        download(part)?;
    }
    for package in fs::read_dir(part)? {
        let package = package?.path();
        if package.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"busybox")) {
            shell::run("dpkg-deb", ["-x".as_ref(), package.as_os_str(), part.as_os_str()])?;
        } else if package.extension().is_some_and(|e| e == "deb") {
            unpack(&package, part)?;
        } else {
            continue;
        }
        fs::remove_file(&package)?;
    }
    let version = only_name(&part.join("lib/modules"))?;
    let depmod = ["depmod".as_ref(), "-b".as_ref(), part.as_os_str(), version.as_ref()];
    shell::run(&part.join("bin/busybox").to_string_lossy(), depmod)
}

/// Downloads both packages into `folder`.
fn download(folder: &Path) -> Result<()> {
    let depends = shell::output("apt-cache", ["depends", NEWEST])?;
    let image = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let image = image.with_context(|| format!("{NEWEST} depends on no kernel"))?;
    println!("downloading from Debian: {image} {BUSYBOX}");
    let mut apt = Command::new("apt-get");
    // Its user for downloads may not write here.
    apt.args(["-qq", "-o", "APT::Sandbox::User=root", "download", image, BUSYBOX]).current_dir(folder);
    let status = apt.status().context("cannot start apt-get")?;
    if status.success() { Ok(()) } else { bail!("{apt:?} failed: {status}") }
}

fn unpack(package: &Path, folder: &Path) -> Result<()> {
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.arg("--fsys-tarfile").arg(package).stdout(Stdio::piped());
    let mut dpkg = dpkg.spawn().context("cannot start dpkg-deb")?;
    let archive = dpkg.stdout.take().context("dpkg-deb has no output")?;
    let mut tar = Command::new("tar");
    tar.arg("-x").arg("-C").arg(folder).arg("--wildcards");
    tar.args(NOT_UNPACKED.iter().map(|pattern| format!("--exclude={pattern}"))).args(UNPACKED).stdin(archive);
    let tar = tar.status().context("cannot start tar");
    let dpkg = dpkg.wait()?;
    if !tar?.success() || !dpkg.success() {
        bail!("cannot unpack {}", package.display());
    }
    Ok(())
}

/// The name of the one entry of `folder`.
fn only_name(folder: &Path) -> Result<String> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let names: Vec<_> = entries.collect::<std::io::Result<_>>()?;
    match names.as_slice() {
        [one] => Ok(one.file_name().to_string_lossy().into_owned()),
        other => bail!("{}: one entry expected, not {}; remove target/vm/kernel", folder.display(), other.len()),
    }
}
