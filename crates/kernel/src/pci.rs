//! Devices on the PCI bus, as sysfs shows them: which network interface is which function of which card.
//!
//! A function has an address such as `0000:03:02.1`. Those that an SR-IOV card makes ("virtual functions") are found from
//! the card's own ("physical function") by their number, and the card's from theirs (`Documentation/PCI/pci-iov-howto.rst`).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// sysfs. Network interfaces are those of the network namespace that was mounted with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysfs(PathBuf);

impl Default for Sysfs {
    fn default() -> Self {
        Self::new("/sys")
    }
}

impl Sysfs {
    /// sysfs at another place than `/sys`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// The address of the function that is the interface called `name`; `None` when it is no PCI device.
    ///
    /// # Errors
    /// ENOENT when there is no such interface.
    pub fn address_of(&self, name: &str) -> Result<Option<String>> {
        let interface = self.0.join("class/net").join(plain(name)?);
        fs::symlink_metadata(&interface).map_err(looking_at(&interface))?;
        let bus = target(&interface.join("device/subsystem"))?;
        if bus.is_none_or(|bus| bus != "pci") { Ok(None) } else { target(&interface.join("device")) }
    }

    /// Whether there is such a function.
    ///
    /// # Errors
    /// `address` is none.
    pub fn has(&self, address: &str) -> Result<bool> {
        Ok(self.function(address)?.exists())
    }

    /// The names of the interfaces that the function is, here: most often one. None when its driver makes no interfaces, or
    /// when it is in another network namespace.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn interfaces(&self, address: &str) -> Result<Vec<String>> {
        let function = self.function(address)?;
        let mut names = interfaces_at(&function)?;
        // virtio has a device of its own in between.
        for child in list(&function)?.iter().filter(|name| name.starts_with("virtio")) {
            names.extend(interfaces_at(&function.join(child))?);
        }
        Ok(names)
    }

    /// The name of the function's driver; `None` without one.
    ///
    /// # Errors
    /// The link cannot be read.
    pub fn driver(&self, address: &str) -> Result<Option<String>> {
        target(&self.function(address)?.join("driver"))
    }

    /// The address of the card's own function, for a virtual function; `None` for any other.
    ///
    /// # Errors
    /// The link cannot be read.
    pub fn physical_function(&self, address: &str) -> Result<Option<String>> {
        target(&self.function(address)?.join("physfn"))
    }

    /// The virtual functions of the card with this function, as number and address, in the order of their numbers.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn virtual_functions(&self, address: &str) -> Result<Vec<(u32, String)>> {
        let function = self.function(address)?;
        let mut found = Vec::new();
        for name in list(&function)? {
            let Some(number) = name.strip_prefix("virtfn").and_then(|number| number.parse().ok()) else { continue };
            found.extend(target(&function.join(&name))?.map(|address| (number, address)));
        }
        found.sort();
        Ok(found)
    }

    fn function(&self, address: &str) -> Result<PathBuf> {
        Ok(self.0.join("bus/pci/devices").join(plain(address)?))
    }
}

/// The names of the interfaces that the device in this folder of sysfs is, for devices on other buses.
///
/// # Errors
/// The folder cannot be read.
pub fn interfaces_at(device: &Path) -> Result<Vec<String>> {
    list(&device.join("net"))
}

/// Refuses what would lead elsewhere.
fn plain(name: &str) -> Result<&str> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(Error::invalid(format_args!("look for device {name:?} in sysfs"), "it is no device's name"));
    }
    Ok(name)
}

fn looking_at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::io(format_args!("look at {}", path.display()), error)
}

/// The last part of what a symbolic link points to; `None` when it is not there.
fn target(path: &Path) -> Result<Option<String>> {
    match fs::read_link(path) {
        Ok(target) => Ok(target.file_name().map(|name| name.to_string_lossy().into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(looking_at(path)(error)),
    }
}

/// The names in a folder, in order; none when it is not there.
fn list(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(looking_at(folder))?,
    };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::{env, os::unix::fs::symlink, process};

    use super::*;

    /// A card with two virtual functions, the second of which has no interface here, and a virtio card.
    fn machine() -> (Sysfs, PathBuf) {
        let root = env::temp_dir().join(format!("podwire-sysfs-{}", process::id()));
        let devices = root.join("devices/pci0000:00");
        for folder in
            ["0000:00:02.0/net/eth0", "0000:00:12.0/net/eth1", "0000:00:12.2", "0000:00:03.0/virtio0/net/ens3"]
        {
            fs::create_dir_all(devices.join(folder)).unwrap();
        }
        fs::create_dir_all(root.join("bus/pci/devices")).unwrap();
        fs::create_dir_all(root.join("bus/pci/drivers/vfio-pci")).unwrap();
        fs::create_dir_all(root.join("class/net")).unwrap();
        fs::create_dir_all(root.join("devices/virtual/net/lo")).unwrap();
        for address in ["0000:00:02.0", "0000:00:12.0", "0000:00:12.2", "0000:00:03.0"] {
            symlink(devices.join(address), root.join("bus/pci/devices").join(address)).unwrap();
            symlink(root.join("bus/pci"), devices.join(address).join("subsystem")).unwrap();
        }
        let card = devices.join("0000:00:02.0");
        for (number, address) in [(1, "0000:00:12.2"), (0, "0000:00:12.0")] {
            symlink(format!("../{address}"), card.join(format!("virtfn{number}"))).unwrap();
            symlink("../0000:00:02.0", devices.join(address).join("physfn")).unwrap();
        }
        symlink(&card, card.join("net/eth0/device")).unwrap();
        symlink(card.join("net/eth0"), root.join("class/net/eth0")).unwrap();
        symlink(root.join("devices/virtual/net/lo"), root.join("class/net/lo")).unwrap();
        symlink(root.join("bus/pci/drivers/vfio-pci"), devices.join("0000:00:12.2/driver")).unwrap();
        (Sysfs::new(&root), root)
    }

    #[test]
    fn functions_and_interfaces_are_found_from_each_other() {
        let (sysfs, root) = machine();
        assert_eq!(sysfs.address_of("eth0").unwrap().as_deref(), Some("0000:00:02.0"));
        assert_eq!(sysfs.address_of("lo").unwrap(), None);
        assert!(sysfs.address_of("eth9").unwrap_err().is_not_found());
        let functions = [(0, "0000:00:12.0".to_owned()), (1, "0000:00:12.2".to_owned())];
        assert_eq!(sysfs.virtual_functions("0000:00:02.0").unwrap(), functions);
        assert_eq!(sysfs.virtual_functions("0000:00:12.0").unwrap(), []);
        assert_eq!(sysfs.physical_function("0000:00:12.2").unwrap().as_deref(), Some("0000:00:02.0"));
        assert_eq!(sysfs.physical_function("0000:00:02.0").unwrap(), None);
        assert_eq!(sysfs.interfaces("0000:00:12.0").unwrap(), ["eth1"]);
        assert_eq!(sysfs.interfaces("0000:00:12.2").unwrap(), Vec::<String>::new());
        assert_eq!(sysfs.interfaces("0000:00:03.0").unwrap(), ["ens3"]);
        assert_eq!(sysfs.driver("0000:00:12.2").unwrap().as_deref(), Some("vfio-pci"));
        assert_eq!(sysfs.driver("0000:00:12.0").unwrap(), None);
        assert!(sysfs.has("0000:00:12.0").unwrap() && !sysfs.has("0000:00:13.0").unwrap());
        for outside in ["../../etc", "", "..", "a/b"] {
            assert!(matches!(sysfs.has(outside), Err(Error::Invalid { .. })), "{outside:?}");
        }
        fs::remove_dir_all(root).unwrap();
    }
}
