//! Which function which container has, and what it was like before: files that outlive a crash, in the format of sriov-cni, so
//! that either can take over from the other.
//!
//! `CONTAINER-INTERFACE` holds the configuration and what was found; `pci/ADDRESS` the path of the namespace that has the
//! function; `pci/vf_lock/ADDRESS.lock` is locked (`flock`) while one is given or taken.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use podwire_kernel::route::{Mac, VfLinkState, VfRate, VfVlan, VirtualFunction, VlanProtocol};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{Call, Error, Result, runtime::write_whole};

/// The folder with the files.
#[derive(Debug)]
pub struct Store(PathBuf);

/// One function that a container has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Given {
    /// Name of the network.
    #[serde(default)]
    pub name: String,
    /// Its address.
    #[serde(rename = "deviceID")]
    pub device_id: String,
    /// The card's own interface.
    #[serde(rename = "Master", default)]
    pub master: String,
    /// Its number on the card.
    #[serde(rename = "VFID")]
    pub id: u32,
    /// What it was like before.
    #[serde(rename = "OrigVfState")]
    pub original: Original,
    /// The file that says so.
    #[serde(skip)]
    file: PathBuf,
}

/// What a function was like on the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Original {
    /// Its interface; empty when a program in user space drives it.
    #[serde(rename = "HostIFName", default)]
    pub interface: String,
    spoof_chk: bool,
    trust: bool,
    #[serde(rename = "AdminMAC")]
    admin_mac: String,
    /// The interface's own MAC address.
    #[serde(rename = "EffectiveMAC", default)]
    pub effective_mac: String,
    vlan: u16,
    #[serde(rename = "VlanQoS")]
    vlan_qos: u8,
    #[serde(default)]
    vlan_proto: u16,
    min_tx_rate: u32,
    max_tx_rate: u32,
    link_state: u32,
    /// The interface's MTU; zero when it has none.
    #[serde(rename = "MTU", default)]
    pub mtu: u32,
}

/// In the order of the kernel's numbers.
const LINK_STATES: [VfLinkState; 3] = [VfLinkState::Auto, VfLinkState::Enable, VfLinkState::Disable];

impl Original {
    /// What `function` is like now; `interface`: name, MAC address and MTU of its interface.
    pub fn of(function: &VirtualFunction, interface: Option<(&str, Option<Mac>, u32)>) -> Self {
        let (name, mac, mtu) = interface.unwrap_or_default();
        let state = LINK_STATES.iter().position(|state| *state == function.link_state);
        Self {
            interface: name.to_owned(),
            spoof_chk: function.spoof_check.unwrap_or_default(),
            trust: function.trust.unwrap_or_default(),
            admin_mac: function.mac.to_string(),
            effective_mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
            vlan: function.vlan.id,
            vlan_qos: function.vlan.qos,
            vlan_proto: function.vlan.protocol.ether_type(),
            min_tx_rate: function.rate.min,
            max_tx_rate: function.rate.max,
            link_state: state.unwrap_or_default() as u32,
            mtu,
        }
    }

    /// As the card is to have it again. What the driver cannot tell `now` it could not tell then.
    pub fn function(&self, now: &VirtualFunction) -> VirtualFunction {
        let outer = self.vlan_proto == VlanProtocol::Ad.ether_type();
        VirtualFunction {
            id: now.id,
            mac: self.admin_mac.parse().unwrap_or(now.mac),
            vlan: VfVlan {
                id: self.vlan,
                qos: self.vlan_qos,
                protocol: if outer { VlanProtocol::Ad } else { VlanProtocol::Q },
            },
            rate: VfRate { min: self.min_tx_rate, max: self.max_tx_rate },
            spoof_check: now.spoof_check.map(|_| self.spoof_chk),
            trust: now.trust.map(|_| self.trust),
            link_state: LINK_STATES.get(self.link_state as usize).copied().unwrap_or_default(),
        }
    }
}

impl Given {
    /// A function that `call`'s container is about to have.
    pub fn new(call: &Call, device_id: &str, master: &str, id: u32, original: Original) -> Self {
        let (name, file) = (call.network.clone(), file_name(&call.container_id, &call.ifname));
        Self { name, device_id: device_id.to_owned(), master: master.to_owned(), id, original, file }
    }

    /// Whether it is this attachment's.
    pub fn belongs_to(&self, container_id: &str, ifname: &str) -> bool {
        self.file.file_name() == file_name(container_id, ifname).file_name()
    }
}

fn file_name(container_id: &str, ifname: &str) -> PathBuf {
    format!("{container_id}-{ifname}").into()
}

impl Store {
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Waits until nobody else gives or takes the function; until the value is dropped nobody will.
    pub fn lock(&self, address: &str) -> Result<File> {
        let folder = self.0.join("pci/vf_lock");
        fs::create_dir_all(&folder).map_err(|error| Error::io("create folder", &folder, error))?;
        let path = folder.join(format!("{address}.lock"));
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        lock.and_then(|lock| lock.lock().map(|()| lock)).map_err(|error| Error::io("lock", &path, error))
    }

    /// Writes down that a container is about to have a function: before anything is changed, so that whatever happens
    /// then can be undone.
    pub fn write(&self, call: &Call, given: &Given) -> Result<()> {
        let netns = call.netns.as_deref().unwrap_or(Path::new("")).display().to_string();
        write_whole(&self.owner_file(&given.device_id), netns.as_bytes())?;
        let mut written: Map<String, Value> = call.config.clone();
        written.remove("prevResult");
        if let Value::Object(fields) = json!(given) {
            written.extend(fields);
        }
        write_whole(&self.0.join(&given.file), Value::Object(written).to_string().as_bytes())
    }

    /// Forgets it: all is as it was. The owner last, and first in [`Store::write`]: nobody else can have the function while
    /// a file says what it was like.
    pub fn forget(&self, given: &Given) -> Result<()> {
        remove(&self.0.join(&given.file))?;
        remove(&self.owner_file(&given.device_id))
    }

    /// The namespace of the container that has the function; `None` when none has it.
    pub fn owner(&self, address: &str) -> Result<Option<PathBuf>> {
        let path = self.owner_file(address);
        match fs::read_to_string(&path) {
            Ok(netns) => Ok(Some(netns.trim().into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path, error)),
        }
    }

    /// What is written of this attachment.
    pub fn of_attachment(&self, container_id: &str, ifname: &str) -> Result<Option<Given>> {
        self.read(&self.0.join(file_name(container_id, ifname)))
    }

    /// Whether this is written still.
    pub fn has(&self, given: &Given) -> Result<bool> {
        Ok(self.read(&self.0.join(&given.file))?.as_ref() == Some(given))
    }

    /// Everything that is written; what cannot be read is passed over.
    pub fn all(&self) -> Vec<Given> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
        files.filter_map(|entry| self.read(&entry.path()).ok().flatten()).collect()
    }

    fn read(&self, path: &Path) -> Result<Option<Given>> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(|error| Error::io("read", path, error))?,
        };
        let given: Given =
            serde_json::from_slice(&bytes).map_err(|error| Error::decode(path.display().to_string(), &error))?;
        Ok(Some(Given { file: path.file_name().unwrap_or_default().into(), ..given }))
    }

    fn owner_file(&self, address: &str) -> PathBuf {
        self.0.join("pci").join(address)
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}
