//! The runtime's side of the protocol: reads a network configuration and executes its plugins.
//!
//! ```no_run
//! use podwire_cni::runtime::{Attachment, NetworkConfig, Runtime};
//! # fn main() -> podwire_cni::Result<()> {
//! let network = NetworkConfig::load_first("/etc/cni/net.d".as_ref())?.expect("a configuration");
//! let runtime = Runtime::new(["/opt/cni/bin"]);
//! let pod = Attachment::new("0123abcd", "/run/netns/pod", "eth0");
//! let result = runtime.add(&network, &pod)?;
//! println!("{}", result.ips[0].address);
//! runtime.del(&network, &pod)?;
//! # Ok(())
//! # }
//! ```

mod execute;
mod network;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

pub use network::NetworkConfig;
use serde_json::{Map, Value, json};

use self::execute::find;
pub(crate) use self::execute::{Environment, execute};
use crate::{CniResult, Error, Result, Verb, Version, error::all};

/// What to attach: one interface of one container.
#[derive(Debug, Clone, PartialEq)]
pub struct Attachment {
    /// The container's (pod sandbox's) id; letters, digits, `_`, `.`, `-`.
    pub container_id: String,
    /// Path of its network namespace; absent when it is gone (DEL).
    pub netns: Option<PathBuf>,
    /// The interface to make in it.
    pub ifname: String,
    /// `CNI_ARGS`: for pods `K8S_POD_NAMESPACE`, `K8S_POD_NAME`, `K8S_POD_INFRA_CONTAINER_ID`, `K8S_POD_UID`.
    pub args: Vec<(String, String)>,
    /// Values for the capabilities that plugins declare, for example `portMappings`; passed as `runtimeConfig`.
    pub capabilities: Map<String, Value>,
}

impl Attachment {
    /// An attachment without arguments and capabilities.
    pub fn new(container_id: impl Into<String>, netns: impl Into<PathBuf>, ifname: impl Into<String>) -> Self {
        Self {
            container_id: container_id.into(),
            netns: Some(netns.into()),
            ifname: ifname.into(),
            args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
            capabilities: Map::new(),
        }
    }
}

/// Executes the plugins of networks. Holds no state but the files in `cache_dir`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// Where the plugins are, in order of preference; becomes `CNI_PATH`.
    pub bin_dirs: Vec<PathBuf>,
    /// Where results are kept between ADD and DEL; `/var/lib/cni` by default, as the reference does.
    pub cache_dir: PathBuf,
}

impl Runtime {
    /// A runtime with the default cache folder.
    pub fn new(bin_dirs: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self { bin_dirs: bin_dirs.into_iter().map(Into::into).collect(), cache_dir: PathBuf::from("/var/lib/cni") }
    }

    /// Attaches: every plugin's ADD in order, each with the result of the one before; keeps the last result. When one
    /// fails, DEL of all of them leaves nothing behind.
    ///
    /// # Errors
    /// The first plugin's failure, as [`Error::Plugin`].
    pub fn add(&self, network: &NetworkConfig, attachment: &Attachment) -> Result<CniResult> {
        let added = self.add_all(network, attachment).and_then(|result| {
            self.remember(network, attachment, &result)?;
            CniResult::from_json(&result, "the result of the last plugin")
        });
        if added.is_err() {
            // What matters to the caller is why ADD failed; the caller will call DEL again in any case.
            _ = self.del(network, attachment);
        }
        added
    }

    fn add_all(&self, network: &NetworkConfig, attachment: &Attachment) -> Result<Value> {
        let mut previous = None;
        for plugin in &network.plugins {
            let config = network.config_for(plugin, attachment, previous.as_ref());
            previous = Some(self.call(Verb::Add, &config, Some(attachment))?);
        }
        previous.ok_or_else(|| Error::Config(format!("network {} has no plugin", network.name)))
    }

    /// Detaches: every plugin's DEL, last first, with the remembered result. Goes on after a failure; detaching what is
    /// not attached succeeds.
    ///
    /// # Errors
    /// All plugins' failures.
    pub fn del(&self, network: &NetworkConfig, attachment: &Attachment) -> Result<()> {
        let previous = self.recall(network, attachment).ok().flatten();
        // A result was not passed to DEL before 0.4.0.
        let previous = previous.filter(|_| network.cni_version >= Version::V0_4_0);
        let results = network.plugins.iter().rev().map(|plugin| {
            let config = network.config_for(plugin, attachment, previous.as_ref());
            self.call(Verb::Del, &config, Some(attachment)).map(drop)
        });
        all(results)?;
        match fs::remove_file(self.cache_file(network, attachment)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", &self.cache_file(network, attachment), error))
            }
            _ => Ok(()),
        }
    }

    /// Checks that the container's network is as ADD left it. Does nothing before version 0.4.0 or when the network
    /// says `disableCheck`.
    ///
    /// # Errors
    /// The first plugin's complaint; [`Error::UnknownContainer`] when ADD was never called.
    pub fn check(&self, network: &NetworkConfig, attachment: &Attachment) -> Result<()> {
        if network.cni_version < Version::V0_4_0 || network.disable_check {
            return Ok(());
        }
        let Some(previous) = self.recall(network, attachment)? else {
            let Attachment { container_id, ifname, .. } = attachment;
            return Err(Error::UnknownContainer(format!("{container_id} has no {ifname} on network {}", network.name)));
        };
        network.plugins.iter().try_for_each(|plugin| {
            let config = network.config_for(plugin, attachment, Some(&previous));
            self.call(Verb::Check, &config, Some(attachment)).map(drop)
        })
    }

    /// Asks every plugin whether it is ready for ADD. Before version 1.1.0 there is no such question: only that the
    /// plugins exist is known.
    ///
    /// # Errors
    /// The first plugin that is missing or not ready; its code is 50 or 51.
    pub fn status(&self, network: &NetworkConfig) -> Result<()> {
        network.plugins.iter().try_for_each(|plugin| {
            if network.cni_version < Version::V1_1_0 {
                return find(&self.bin_dirs, type_of(plugin)?).map(drop);
            }
            self.call(Verb::Status, &network.config(plugin), None).map(drop)
        })
    }

    /// Releases everything of `network` that is not in `valid`. Does nothing before version 1.1.0 or when the network
    /// says `disableGC`.
    ///
    /// # Errors
    /// All plugins' failures; every plugin is called.
    pub fn gc(&self, network: &NetworkConfig, valid: &[Attachment]) -> Result<()> {
        if network.cni_version < Version::V1_1_0 || network.disable_gc {
            return Ok(());
        }
        let valid: Vec<Value> =
            valid.iter().map(|it| json!({"containerID": it.container_id, "ifname": it.ifname})).collect();
        all(network.plugins.iter().map(|plugin| {
            let mut config = network.config(plugin);
            config.insert("cni.dev/valid-attachments".to_owned(), json!(valid));
            self.call(Verb::Gc, &config, None).map(drop)
        }))
    }

    fn call(&self, verb: Verb, config: &Map<String, Value>, attachment: Option<&Attachment>) -> Result<Value> {
        let kind = type_of(config)?;
        let mut environment = Environment { verb, bin_dirs: self.bin_dirs.clone(), variables: BTreeMap::new() };
        if let Some(attachment) = attachment {
            let args: Vec<String> = attachment.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let netns = attachment.netns.as_deref().map_or(String::new(), |path| path.display().to_string());
            environment.variables = BTreeMap::from([
                ("CNI_CONTAINERID", attachment.container_id.clone()),
                ("CNI_NETNS", netns),
                ("CNI_IFNAME", attachment.ifname.clone()),
                ("CNI_ARGS", args.join(";")),
            ]);
        }
        execute(kind, &environment, config)
    }

    fn cache_file(&self, network: &NetworkConfig, attachment: &Attachment) -> PathBuf {
        let Attachment { container_id, ifname, .. } = attachment;
        self.cache_dir.join("results").join(format!("{}-{container_id}-{ifname}", network.name))
    }

    /// Keeps the result in a file that appears whole or not at all.
    fn remember(&self, network: &NetworkConfig, attachment: &Attachment, result: &Value) -> Result<()> {
        let entry = json!({
            "kind": "cniCacheV1",
            "containerId": attachment.container_id,
            "ifName": attachment.ifname,
            "networkName": network.name,
            "cniArgs": attachment.args.iter().map(|(key, value)| [key, value]).collect::<Vec<_>>(),
            "capabilityArgs": attachment.capabilities,
            "result": result,
        });
        write_whole(&self.cache_file(network, attachment), entry.to_string().as_bytes())
    }

    fn recall(&self, network: &NetworkConfig, attachment: &Attachment) -> Result<Option<Value>> {
        let path = self.cache_file(network, attachment);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path, error)),
        };
        let mut entry: Value =
            serde_json::from_slice(&bytes).map_err(|error| Error::decode(path.display().to_string(), &error))?;
        Ok(entry.get_mut("result").map(Value::take))
    }
}

/// Whether the cache of results in `results` (libcni's or ours: `NETWORK-CONTAINER-INTERFACE`) says in which network
/// namespace the container's interface is, and that one does not exist any more. What it says nothing about may be there.
pub(crate) fn namespace_is_gone(results: &Path, network: &str, container_id: &str, ifname: &str) -> bool {
    let cached = fs::read(results.join(format!("{network}-{container_id}-{ifname}"))).ok();
    let Some(entry) = cached.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()) else { return false };
    let interfaces = entry["result"]["interfaces"].as_array().into_iter().flatten();
    let mut sandboxes =
        interfaces.filter_map(|interface| interface["sandbox"].as_str()).filter(|path| !path.is_empty());
    // What cannot be looked at may be there.
    sandboxes.next().is_some_and(|path| Path::new(path).try_exists().is_ok_and(|exists| !exists))
}

fn type_of(config: &Map<String, Value>) -> Result<&str> {
    let kind = config.get("type").and_then(Value::as_str).filter(|kind| !kind.is_empty() && !kind.contains('/'));
    kind.ok_or_else(|| Error::Config("a plugin without \"type\"".to_owned()))
}

/// Writes a file so that readers see all of it or nothing.
pub(crate) fn write_whole(path: &Path, contents: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| Error::io("create folder", folder, error))?;
    }
    // The whole name in it: `with_extension` would take the end of an address for an extension. A leading dot hides it.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = fs::write(&temporary, contents).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| {
        _ = fs::remove_file(&temporary);
        Error::io("write", path, error)
    })
}
