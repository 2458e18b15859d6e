use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Attachment, type_of};
use crate::{Error, Result, Version};

/// A network: a list of plugins that are executed in order.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// The network's name.
    pub name: String,
    /// In which version its plugins are spoken to.
    pub cni_version: Version,
    /// Whether CHECK is not to be called.
    pub disable_check: bool,
    /// Whether GC is not to be called.
    pub disable_gc: bool,
    /// The plugins' configurations, each with a `type`.
    pub plugins: Vec<Map<String, Value>>,
}

/// A `.conflist` file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct List {
    name: Option<String>,
    cni_version: Option<String>,
    #[serde(default)]
    cni_versions: Vec<String>,
    #[serde(default)]
    disable_check: bool,
    #[serde(default, rename = "disableGC")]
    disable_gc: bool,
    plugins: Option<Vec<Map<String, Value>>>,
}

impl NetworkConfig {
    /// Loads the first file of `folder` in the order of names: `*.conflist`, or `*.conf` and `*.json` with one plugin.
    /// `None` when there is no such file or folder.
    ///
    /// # Errors
    /// The first file is broken; the error names it.
    pub fn load_first(folder: &Path) -> Result<Option<Self>> {
        files(folder)?.first().map(|file| Self::load(file)).transpose()
    }

    /// Loads every file of `folder`, in the order of [`NetworkConfig::load_first`].
    ///
    /// # Errors
    /// A file is broken; the error names it.
    pub fn load_all(folder: &Path) -> Result<Vec<Self>> {
        files(folder)?.iter().map(|file| Self::load(file)).collect()
    }

    fn load(file: &Path) -> Result<Self> {
        let bytes = fs::read(file).map_err(|error| Error::io("read", file, error))?;
        Self::from_json(&bytes, &file.display().to_string())
    }

    /// Reads a list of plugins, or a single plugin; `source` names the JSON in errors.
    ///
    /// # Errors
    /// No JSON, the wrong shape, no name, no plugin, or an unknown version.
    pub fn from_json(bytes: &[u8], source: &str) -> Result<Self> {
        let value: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| Error::decode(source, &error))?;
        let list = List::deserialize(&Value::Object(value.clone())).map_err(|error| Error::decode(source, &error))?;
        let wrong = |detail: &str| Error::Config(format!("{source}: {detail}"));
        let plugins = list.plugins.unwrap_or_else(|| vec![value]);
        if plugins.is_empty() {
            return Err(wrong("\"plugins\" is empty"));
        }
        for plugin in &plugins {
            type_of(plugin).map_err(|_| wrong("a plugin without \"type\""))?;
        }
        Ok(Self {
            name: list.name.filter(|name| !name.is_empty()).ok_or_else(|| wrong("no \"name\""))?,
            cni_version: version(list.cni_version, &list.cni_versions)?,
            disable_check: list.disable_check,
            disable_gc: list.disable_gc,
            plugins,
        })
    }

    /// The JSON that a plugin gets, without what belongs to an attachment.
    pub(super) fn config(&self, plugin: &Map<String, Value>) -> Map<String, Value> {
        let mut config = plugin.clone();
        config.insert("name".to_owned(), json!(self.name));
        config.insert("cniVersion".to_owned(), json!(self.cni_version));
        config
    }

    /// The JSON that a plugin gets for an attachment: with `runtimeConfig` for the capabilities that it declares, and the
    /// result so far.
    pub(super) fn config_for(
        &self,
        plugin: &Map<String, Value>,
        attachment: &Attachment,
        previous: Option<&Value>,
    ) -> Map<String, Value> {
        let mut config = self.config(plugin);
        let declared = |name: &String| plugin.get("capabilities").is_some_and(|all| all[name] == json!(true));
        let given: Map<String, Value> = attachment
            .capabilities
            .iter()
            .filter(|(name, _)| declared(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        config.remove("capabilities");
        if !given.is_empty() {
            config.insert("runtimeConfig".to_owned(), Value::Object(given));
        }
        if let Some(previous) = previous {
            config.insert("prevResult".to_owned(), previous.clone());
        }
        config
    }
}

/// The newest version of `cniVersions` (since 1.1.0) that we know, else `cniVersion`.
fn version(one: Option<String>, several: &[String]) -> Result<Version> {
    let newest = several.iter().filter_map(|version| version.parse().ok()).max();
    match (newest, one) {
        (Some(newest), _) => Ok(newest),
        (None, Some(one)) => one.parse(),
        // The specification lets the version be absent; the oldest we serve is the nearest.
        (None, None) => Ok(Version::V0_3_0),
    }
}

/// The configuration files of a folder, sorted by name; none where there is no folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", folder, error)),
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| is_config(path)).collect();
    files.sort();
    Ok(files)
}

fn is_config(path: &Path) -> bool {
    let kind = path.extension().and_then(|extension| extension.to_str());
    matches!(kind, Some("conflist" | "conf" | "json"))
}
