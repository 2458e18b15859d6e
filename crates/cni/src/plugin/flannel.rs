mod subnet_env;

#[cfg(test)]
mod tests;

use std::{fs, io, path::PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use self::subnet_env::SubnetEnv;
use super::Plugin;
use crate::{Call, CniResult, Error, Result, RouteConfig, Verb, error::all, runtime::write_whole};

/// See `flannel/README.md`.
pub struct Flannel;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default = "default_subnet_file")]
    subnet_file: PathBuf,
    #[serde(default = "default_data_dir")]
    data_dir: PathBuf,
    #[serde(default)]
    delegate: Map<String, Value>,
    #[serde(default)]
    ipam: Map<String, Value>,
    runtime_config: Option<Value>,
}

fn default_subnet_file() -> PathBuf {
    "/run/flannel/subnet.env".into()
}

fn default_data_dir() -> PathBuf {
    "/var/lib/cni/flannel".into()
}

impl Plugin for Flannel {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let config: Config = call.config()?;
        let env = SubnetEnv::read(&config.subnet_file)?.ok_or_else(|| Error::TryAgain(not_written(&config)))?;
        let delegate = delegate(call, &config, &env)?;
        // Kept for DEL: by then the configuration or the node's subnet may have changed.
        let scratch = config.data_dir.join(&call.container_id);
        let added_before = scratch.exists();
        write_whole(&scratch, Value::Object(delegate.clone()).to_string().as_bytes())?;
        let added = call.delegate(Verb::Add, delegate);
        if added.is_err() && !added_before {
            _ = fs::remove_file(&scratch);
        }
        added.map(Option::unwrap_or_default)
    }

    fn del(&self, call: &Call) -> Result<()> {
        let config: Config = call.config()?;
        let Some(mut delegate) = kept(&config, &call.container_id)? else { return Ok(()) };
        pass_previous(call, &mut delegate);
        call.delegate(Verb::Del, delegate)?;
        forget(&config, &call.container_id)
    }

    fn check(&self, call: &Call) -> Result<()> {
        let config: Config = call.config()?;
        let unknown = || Error::UnknownContainer(format!("{} was never added", call.container_id));
        let mut delegate = kept(&config, &call.container_id)?.ok_or_else(unknown)?;
        pass_previous(call, &mut delegate);
        call.delegate(Verb::Check, delegate).map(drop)
    }

    fn gc(&self, call: &Call) -> Result<()> {
        let config: Config = call.config()?;
        let valid = call.valid_attachments()?;
        let mut results = Vec::new();
        if let Some(env) = SubnetEnv::read(&config.subnet_file)? {
            let field = "cni.dev/valid-attachments";
            let mut delegate = delegate(call, &config, &env)?;
            delegate.insert(field.to_owned(), call.config.get(field).cloned().unwrap_or_default());
            results.push(call.delegate(Verb::Gc, delegate).map(drop));
        }
        let entries = fs::read_dir(&config.data_dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let stale = names.filter(|name| !valid.iter().any(|(id, _)| id == name) && is_of(&config, name, &call.network));
        results.extend(stale.map(|id| forget(&config, &id)));
        all(results)
    }

    fn status(&self, call: &Call) -> Result<()> {
        let config: Config = call.config()?;
        let env = SubnetEnv::read(&config.subnet_file)?;
        let env = env.ok_or_else(|| Error::NotReady(not_written(&config)))?;
        call.delegate(Verb::Status, delegate(call, &config, &env)?).map(drop)
    }
}

fn not_written(config: &Config) -> String {
    let file = config.subnet_file.display();
    format!("flanneld has not written {file} yet: is it running on this node, and does it have a subnet?")
}

/// The configuration of the delegate: what the user wrote under `delegate`, and the rest as flanneld says.
fn delegate(call: &Call, config: &Config, env: &SubnetEnv) -> Result<Map<String, Value>> {
    let mut delegate = config.delegate.clone();
    for field in ["name", "ipam"] {
        if delegate.contains_key(field) {
            return Err(Error::Config(format!("\"delegate\" must not have {field:?}: flannel sets it")));
        }
    }
    if delegate.get("type").is_some_and(|kind| !kind.is_string()) {
        return Err(Error::Config("\"type\" of \"delegate\" must be a string".to_owned()));
    }
    let mut default = |field: &str, value: Value| {
        delegate.entry(field).or_insert(value);
    };
    default("type", json!("bridge"));
    // Somebody must masquerade, and only one.
    default("ipMasq", json!(!env.ip_masq));
    default("mtu", json!(env.mtu));
    if delegate["type"] == "bridge" {
        delegate.entry("isGateway").or_insert(json!(true));
    }
    if let Some(runtime_config) = &config.runtime_config {
        delegate.insert("runtimeConfig".to_owned(), runtime_config.clone());
    }
    delegate.insert("ipam".to_owned(), Value::Object(ipam(config, env)?));
    delegate.insert("name".to_owned(), json!(call.network));
    delegate.insert("cniVersion".to_owned(), json!(call.version));
    Ok(delegate)
}

/// The node's subnets as ranges, and routes to the whole pod network.
fn ipam(config: &Config, env: &SubnetEnv) -> Result<Map<String, Value>> {
    let mut ipam = config.ipam.clone();
    ipam.entry("type").or_insert(json!("host-local"));
    let ranges: Vec<Value> = env.subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
    ipam.insert("ranges".to_owned(), json!(ranges));
    let written = ipam.get("routes").cloned().unwrap_or(json!([]));
    let mut routes: Vec<RouteConfig> =
        Deserialize::deserialize(written).map_err(|error| Error::decode("\"routes\" of \"ipam\"", &error))?;
    routes.extend(env.networks.iter().map(|network| RouteConfig::to(*network)));
    ipam.insert("routes".to_owned(), json!(routes));
    Ok(ipam)
}

fn pass_previous(call: &Call, delegate: &mut Map<String, Value>) {
    if let Some(previous) = call.config.get("prevResult") {
        delegate.insert("prevResult".to_owned(), previous.clone());
    }
}

/// The delegate's configuration as ADD kept it.
fn kept(config: &Config, container_id: &str) -> Result<Option<Map<String, Value>>> {
    let path = config.data_dir.join(container_id);
    match fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(delegate) => Ok(Some(delegate)),
            Err(error) => Err(Error::decode(path.display().to_string(), &error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &path, error)),
    }
}

/// Whether a kept configuration is of `network`: others may keep theirs in the same folder.
fn is_of(config: &Config, container_id: &str, network: &str) -> bool {
    let kept = kept(config, container_id).ok().flatten();
    kept.is_some_and(|delegate| delegate.get("name").and_then(Value::as_str) == Some(network))
}

fn forget(config: &Config, container_id: &str) -> Result<()> {
    let path = config.data_dir.join(container_id);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path, error)),
        _ => Ok(()),
    }
}
