use podwire_kernel::route::MacvlanMode;
use serde::Deserialize;

use crate::{
    Call, Error, Result,
    upper::{Common, Kind, Settings, Upper, requested_mac},
};

/// See `macvlan/README.md`.
pub const MACVLAN: Upper = Upper(settings);

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    mode: String,
    #[serde(default)]
    bcqueuelen: u32,
    #[serde(flatten)]
    common: Common,
}

fn settings(call: &Call) -> Result<Settings> {
    let config: Config = call.config()?;
    let mode = match config.mode.as_str() {
        "" | "bridge" => MacvlanMode::Bridge,
        "private" => MacvlanMode::Private,
        "vepa" => MacvlanMode::Vepa,
        "passthru" => MacvlanMode::Passthru,
        other => {
            let detail = format!("\"mode\" is {other:?}: expected \"bridge\", \"private\", \"vepa\" or \"passthru\"");
            return Err(Error::Config(detail));
        }
    };
    Ok(Settings {
        kind: Kind::Macvlan { mode, broadcast_queue: Some(config.bcqueuelen).filter(|length| *length > 0) },
        common: config.common,
        mac: requested_mac(call)?,
        assigned: None,
        without_address: true,
    })
}
