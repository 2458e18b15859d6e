use podwire_kernel::route::IpvlanMode;
use serde::Deserialize;

use crate::{
    Call, Error, Result, Verb,
    upper::{Common, Kind, Settings, Upper},
};

/// See `ipvlan/README.md`.
pub const IPVLAN: Upper = Upper(settings);

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    mode: String,
    #[serde(flatten)]
    common: Common,
}

fn settings(call: &Call) -> Result<Settings> {
    let Config { mode, mut common } = call.config()?;
    let mode = match mode.as_str() {
        "" | "l2" => IpvlanMode::L2,
        "l3" => IpvlanMode::L3,
        "l3s" => IpvlanMode::L3s,
        other => {
            let detail = format!("\"mode\" is {other:?}: expected \"l2\", \"l3\" or \"l3s\"");
            return Err(Error::Config(detail));
        }
    };
    // Chained after a plugin that made the device below, and perhaps got an address for it. To CHECK, what is in
    // `prevResult` is our own.
    let before = call.previous.as_ref().filter(|_| call.verb == Verb::Add);
    if let Some(before) = before.filter(|_| common.master.is_empty()) {
        match before.interfaces.as_slice() {
            [only] if !only.name.is_empty() => common.master.clone_from(&only.name),
            _ => {
                let detail = "\"master\" is missing, and \"prevResult\" has not just one interface to take for it";
                return Err(Error::Config(detail.to_owned()));
            }
        }
    }
    let assigned = before.filter(|before| !common.ipam.is_set() && !before.ips.is_empty()).cloned();
    Ok(Settings { kind: Kind::Ipvlan(mode), common, mac: None, assigned, without_address: false })
}
