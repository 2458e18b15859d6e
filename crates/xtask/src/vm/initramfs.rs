//! The first file system of a machine: busybox, `init.sh`, and the modules that it needs to see the host's files.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};

use super::{kernel::Kernel, quoted};

/// The modules that `init.sh` loads; all others come from the host's folder when they are asked for.
const MODULES: &[&str] = &["virtio_pci", "9pnet_virtio", "9p", "overlay"];
const INIT: &str = include_str!("init.sh");

/// The archive. `init` hands over to `guest.sh` in `run`, a folder of the host.
pub fn build(kernel: &Kernel, run: &Path) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let mut archive = Archive::default();
    archive.file("init", 0o755, INIT.as_bytes());
    let mut settings = Vec::new();
    let values =
        [("MODULES", kernel.modules.as_os_str()), ("RUN", run.as_os_str()), ("LOAD", MODULES.join(" ").as_ref())]
            .map(|(name, value)| [name.as_bytes(), b"=", quoted(value).as_encoded_bytes(), b"\n"].concat());
    settings.extend(values.into_iter().flatten());
    archive.file("settings", 0o644, &settings);
    for folder in ["bin", "dev", "proc", "host", "memory"] {
        archive.folder(folder);
    }
    archive.file("bin/busybox", 0o755, &read(&kernel.busybox)?);
    let modules = kernel.modules.join(&kernel.version);
    let lists = fs::read_to_string(modules.join("modules.dep")).context("modules.dep")?;
    let base = format!("lib/modules/{}", kernel.version);
    archive.folder_all(&base);
    archive.file(&format!("{base}/modules.dep"), 0o644, lists.as_bytes());
    for module in needed(&lists, MODULES) {
        let path = format!("{base}/{module}");
        archive.folder_all(path.rsplit_once('/').map_or("", |(folder, _)| folder));
        archive.file(&path, 0o644, &read(&modules.join(module))?);
    }
    Ok(archive.finish())
}

/// The files of the modules named and of all that they depend on. A line of modules.dep is `file: file…`, where what
/// follows the colon is complete.
fn needed<'a>(lists: &'a str, names: &[&str]) -> BTreeSet<&'a str> {
    let is_named = |file: &str| {
        let name = file.rsplit('/').next().and_then(|name| name.strip_suffix(".ko"));
        name.is_some_and(|name| names.contains(&name))
    };
    let lines = lists.lines().filter_map(|line| line.split_once(':'));
    let lines = lines.filter(|(file, _)| is_named(file));
    lines.flat_map(|(file, others)| others.split_whitespace().chain([file])).collect()
}

/// A cpio archive as the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst` has it: "newc".
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<String>,
}

impl Archive {
    fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) {
        self.entry(path, 0o100_000 | permissions, contents);
    }

    fn folder(&mut self, path: &str) {
        if self.folders.insert(path.to_owned()) {
            self.entry(path, 0o040_755, &[]);
        }
    }

    /// `path` and every folder above it.
    fn folder_all(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            self.folder(&path[..end]);
        }
        self.folder(path);
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let (size, name_size) = (contents.len(), path.len() + 1);
        let number = self.entries;
        // inode, mode, uid, gid, links, time, size, device, device of a node, length of the name, checksum
        self.bytes.extend_from_slice(b"070701");
        let fields = [number, mode, 0, 0, 1, 0, size as u32, 0, 0, 0, 0, name_size as u32, 0];
        self.bytes.extend(fields.map(|field| format!("{field:08x}")).concat().into_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(contents);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_modules_depend_on() {
        let lists = "kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs.ko\nkernel/net/9p/9pnet.ko:\nkernel/x9p.ko: y.ko\n";
        let expected = ["kernel/fs/9p/9p.ko", "kernel/fs/netfs.ko", "kernel/net/9p/9pnet.ko"];
        assert_eq!(needed(lists, &["9p"]).into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn archive_has_aligned_entries_and_each_folder_once() {
        let mut archive = Archive::default();
        archive.folder_all("a/b");
        archive.folder_all("a/c");
        archive.file("a/b/f", 0o644, b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let headers: Vec<usize> =
            bytes.windows(6).enumerate().filter(|(_, w)| *w == b"070701").map(|(n, _)| n).collect();
        assert_eq!(headers.len(), 5, "a, a/b, a/c, a/b/f and the trailer");
        assert!(headers.iter().all(|start| start % 4 == 0));
        assert_eq!(&bytes[headers[3]..][..14], b"07070100000004");
        assert_eq!(&bytes[headers[3] + 54..][..8], b"00000005", "the seventh field is the size");
        assert_eq!(&bytes[headers[3] + 110..][..6], b"a/b/f\0");
    }
}
