mod config;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use podwire_kernel::{
    route::{Link, LinkChange, Mac, Route},
    sysctl::{ProcSys, Sysctl},
};
use serde::{Deserialize, Serialize};

use self::config::Config;
use super::Plugin;
use crate::{Call, CniResult, Error, Result, error::all, pod, runtime::write_whole};

/// See `tuning/README.md`.
pub struct Tuning;

/// How the interface was before, in the file and the shape of the reference plugin.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Before {
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    tx_queue_length: Option<u32>,
}

impl Plugin for Tuning {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let config = Config::of(call)?;
        let alone = || Error::Config("tuning needs \"prevResult\": it is chained after another plugin".to_owned());
        let mut result = call.previous.clone().ok_or_else(alone)?;
        if config.is_empty() {
            return Ok(result);
        }
        let (namespace, mut inside) = call.open_pod()?;
        namespace.run(|| config.sysctls.iter().try_for_each(|(key, value)| ProcSys.write(key, value)))?;
        let changes = config.changes();
        if changes.is_empty() {
            return Ok(result);
        }
        let link = pod::interface(call, &mut inside)?;
        remember(&file(&config, call), &config, &link)?;
        let changed = inside.change_link(link.index, &changes);
        if changed.is_err() {
            // What matters to the caller is why ADD failed.
            _ = restore(&file(&config, call), call);
        }
        changed?;
        let ours = result.interfaces.iter_mut().filter(|it| it.name == call.ifname && it.sandbox.is_some());
        for interface in ours {
            interface.mac = config.mac.map(|mac| mac.to_string()).or(interface.mac.take());
            interface.mtu = config.mtu.or(interface.mtu);
        }
        Ok(result)
    }

    fn del(&self, call: &Call) -> Result<()> {
        restore(&Config::folder_of(call).join(name(&call.container_id, &call.ifname)), call)
    }

    fn check(&self, call: &Call) -> Result<()> {
        let config = Config::of(call)?;
        if config.is_empty() {
            return Ok(());
        }
        let (namespace, mut inside) = call.open_pod()?;
        let differs = |what: &str, is: String, wanted: &str| {
            Err(Error::NotAsSetUp(format!("{what} of {} is {is}, not {wanted}", call.ifname)))
        };
        for (key, wanted) in &config.sysctls {
            let is = namespace.run(|| ProcSys.read(key))?;
            if is != wanted.trim() {
                return differs(key, is, wanted);
            }
        }
        let link = pod::interface(call, &mut inside)?;
        if let Some(mac) = config.mac
            && link.mac != Some(mac)
        {
            return differs(
                "the MAC address",
                link.mac.map_or_else(String::new, |mac| mac.to_string()),
                &mac.to_string(),
            );
        }
        let numbers = [("mtu", config.mtu, link.mtu), ("txQLen", config.tx_queue_length, link.tx_queue_length)];
        let flags = [
            ("promisc", config.promiscuous.then_some(true), link.promiscuous),
            ("allmulti", config.all_multicast, link.all_multicast),
        ];
        let flags = flags.map(|(name, wanted, is)| (name, wanted.map(u32::from), u32::from(is)));
        for (name, wanted, is) in numbers.into_iter().chain(flags) {
            if wanted.is_some_and(|wanted| wanted != is) {
                return differs(name, is.to_string(), &wanted.unwrap_or_default().to_string());
            }
        }
        Ok(())
    }

    fn gc(&self, call: &Call) -> Result<()> {
        // Files name no network, and other networks' attachments are not known here: none can be told to be stale.
        call.valid_attachments().map(drop)
    }

    fn status(&self, call: &Call) -> Result<()> {
        Config::of(call).map(drop)
    }
}

fn file(config: &Config, call: &Call) -> PathBuf {
    config.folder.join(name(&call.container_id, &call.ifname))
}

fn name(container_id: &str, ifname: &str) -> String {
    format!("{container_id}_{ifname}.json")
}

/// Keeps how `link` is now, of what will be changed. An earlier file is of an ADD that was not undone: it knows better.
fn remember(file: &Path, config: &Config, link: &Link) -> Result<()> {
    if file.exists() {
        return Ok(());
    }
    let before = Before {
        mac: config.mac.and(link.mac).map_or_else(String::new, |mac| mac.to_string()),
        promisc: config.promiscuous.then_some(link.promiscuous),
        mtu: config.mtu.map(|_| link.mtu),
        allmulti: config.all_multicast.map(|_| link.all_multicast),
        tx_queue_length: config.tx_queue_length.map(|_| link.tx_queue_length),
    };
    let text = serde_json::to_vec(&before).map_err(|error| Error::decode("what was before", &error))?;
    write_whole(file, &text)
}

/// Makes the interface what it was before, if it is still there; for those that outlive their container (host-device,
/// sriov). Forgets it then.
fn restore(file: &Path, call: &Call) -> Result<()> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("read", file, error)),
    };
    // A file that makes no sense cannot be of use later either.
    let before: Before = serde_json::from_slice(&bytes).unwrap_or_default();
    let restored = undo(&before, call);
    let forgotten = fs::remove_file(file).map_err(|error| Error::io("remove", file, error));
    all([restored, forgotten])
}

fn undo(before: &Before, call: &Call) -> Result<()> {
    let Some(mut inside) = call.open_pod_if_there()? else { return Ok(()) };
    let Some(link) = inside.link(&call.ifname)? else { return Ok(()) };
    let mut changes: Vec<LinkChange<'_>> = Vec::new();
    changes.extend(before.mac.parse::<Mac>().ok().map(LinkChange::Mac));
    changes.extend(before.mtu.map(LinkChange::Mtu));
    changes.extend(before.promisc.map(LinkChange::Promiscuous));
    changes.extend(before.allmulti.map(LinkChange::AllMulticast));
    changes.extend(before.tx_queue_length.map(LinkChange::TxQueueLength));
    Ok(inside.change_link(link.index, &changes)?)
}
