use serde::Deserialize;

use crate::{
    Call, Error, Result,
    upper::{Common, Kind, Settings, Upper},
};

/// See `vlan/README.md`.
pub const VLAN: Upper = Upper(settings);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    vlan_id: u16,
    #[serde(flatten)]
    common: Common,
}

fn settings(call: &Call) -> Result<Settings> {
    let Config { vlan_id, common } = call.config()?;
    if common.master.is_empty() {
        return Err(Error::Config("\"master\" is missing: the device whose frames have the tag".to_owned()));
    }
    if vlan_id > 4094 {
        return Err(Error::Config(format!("\"vlanId\" is {vlan_id}: expected at most 4094")));
    }
    Ok(Settings { kind: Kind::Vlan(vlan_id), common, mac: None, assigned: None, without_address: false })
}
