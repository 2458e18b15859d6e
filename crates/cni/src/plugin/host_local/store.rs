use std::{
    fs::{self, File},
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::{Error, Result, error::all, runtime::write_whole};

/// The leases of one network, locked against every other process, also those of the reference plugin: same files, same
/// lock. Dropping it unlocks.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    _lock: File,
}

/// An address that is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub ip: IpAddr,
    container_id: String,
    /// Absent in files of very old versions of the reference plugin.
    ifname: Option<String>,
}

impl Lease {
    /// Container id and interface, where both are known.
    pub fn owner(&self) -> Option<(&str, &str)> {
        Some((&self.container_id, self.ifname.as_deref()?))
    }

    /// Whether the file was made and never written, by a program or a machine that ended in between. (Whoever writes one holds
    /// the lock, and so do we.)
    pub fn is_debris(&self) -> bool {
        self.container_id.is_empty()
    }

    pub fn belongs_to(&self, container_id: &str, ifname: &str) -> bool {
        self.container_id == container_id && self.ifname.as_deref().is_none_or(|own| own == ifname)
    }
}

impl Store {
    /// Opens the folder of `network`, or makes it, and waits for the lock.
    pub fn open(data_dir: &Path, network: &str) -> Result<Self> {
        let folder = data_dir.join(network);
        fs::create_dir_all(&folder).map_err(|error| Error::io("create folder", &folder, error))?;
        let path = folder.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.and_then(|lock| lock.lock().map(|()| lock)).map_err(|error| Error::io("lock", &path, error))?;
        Ok(Self { folder, _lock: lock })
    }

    /// As [`Store::open`]; `None` when nothing was ever reserved.
    pub fn open_existing(data_dir: &Path, network: &str) -> Result<Option<Self>> {
        match data_dir.join(network).is_dir() {
            true => Self::open(data_dir, network).map(Some),
            false => Ok(None),
        }
    }

    /// Takes `ip` for (container id, interface); false when it is taken.
    pub fn reserve(&self, ip: IpAddr, (container_id, ifname): (&str, &str)) -> Result<bool> {
        let path = self.path(ip);
        if path.try_exists().map_err(|error| Error::io("look for", &path, error))? {
            return Ok(false);
        }
        // Whole or not at all: an empty file would be a lease that nobody can ever release.
        write_whole(&path, format!("{container_id}\r\n{ifname}").as_bytes()).map(|()| true)
    }

    /// Gives `ip` back.
    pub fn release(&self, ip: IpAddr) -> Result<()> {
        match fs::remove_file(self.path(ip)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &self.path(ip), error)),
            _ => Ok(()),
        }
    }

    /// Every lease, in the order of addresses. Files that are no leases are passed over.
    pub fn leases(&self) -> Result<Vec<Lease>> {
        let entries = fs::read_dir(&self.folder).map_err(|error| Error::io("list", &self.folder, error))?;
        let mut leases = Vec::new();
        for entry in entries.flatten() {
            let Some(ip) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let text = match fs::read_to_string(entry.path()) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("read", &entry.path(), error)),
            };
            let mut lines = text.trim().lines().map(|line| line.trim().to_owned());
            leases.push(Lease { ip, container_id: lines.next().unwrap_or_default(), ifname: lines.next() });
        }
        leases.sort_by_key(|lease| lease.ip);
        Ok(leases)
    }

    /// Deletes files that were being written when their writer ended.
    pub fn remove_debris(&self) -> Result<()> {
        let entries = fs::read_dir(&self.folder).map_err(|error| Error::io("list", &self.folder, error))?;
        let hidden = entries.flatten().filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"."));
        all(hidden
            .map(|entry| fs::remove_file(entry.path()).map_err(|error| Error::io("remove", &entry.path(), error))))
    }

    /// The address given out last from the range set with this number.
    pub fn last(&self, set: usize) -> Option<IpAddr> {
        fs::read_to_string(self.last_path(set)).ok()?.trim().parse().ok()
    }

    /// Remembers the address given out last.
    pub fn set_last(&self, set: usize, ip: IpAddr) -> Result<()> {
        let (path, text) = (self.last_path(set), ip.to_string());
        // Over what is there: a file that is made empty first is written to the disk when it is closed (ext4's
        // `auto_da_alloc`), which would be a fifth of the time of ADD. Half of a number is no harm: it is only where to begin.
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let written = file.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            let length = text.len() as u64;
            if file.metadata()?.len() > length { file.set_len(length) } else { Ok(()) }
        });
        written.map_err(|error| Error::io("write", &path, error))
    }

    fn last_path(&self, set: usize) -> PathBuf {
        self.folder.join(format!("last_reserved_ip.{set}"))
    }

    fn path(&self, ip: IpAddr) -> PathBuf {
        self.folder.join(ip.to_string())
    }
}
