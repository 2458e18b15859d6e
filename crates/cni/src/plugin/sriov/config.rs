use std::path::PathBuf;

use podwire_kernel::route::{Mac, VfChange, VfLinkState, VfRate, VfVlan, VirtualFunction, VlanProtocol};
use serde::Deserialize;

use crate::{Call, Error, Result, ipam::Ipam, upper::requested_mac};

const DATA_DIR: &str = "/var/lib/cni/sriov";

/// The checked configuration of one call.
#[derive(Debug)]
pub struct Config {
    /// The address of the function; by `runtimeConfig` or by the configuration.
    pub device_id: Option<String>,
    /// The card's own interface, where any free function of it will do.
    pub master: Option<String>,
    pub settings: Settings,
    pub ipam: Ipam,
    pub data_dir: PathBuf,
}

/// What a function is to be like; what is `None` is left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    pub mac: Option<Mac>,
    pub vlan: Option<VfVlan>,
    pub rate: Option<VfRate>,
    pub spoof_check: Option<bool>,
    pub trust: Option<bool>,
    pub link_state: Option<VfLinkState>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default, rename = "deviceID")]
    device_id: String,
    #[serde(default)]
    master: String,
    vlan: Option<u16>,
    #[serde(rename = "vlanQoS")]
    vlan_qos: Option<u8>,
    #[serde(rename = "vlanProto")]
    vlan_proto: Option<String>,
    min_tx_rate: Option<u32>,
    max_tx_rate: Option<u32>,
    #[serde(default)]
    spoofchk: String,
    #[serde(default)]
    trust: String,
    #[serde(default)]
    link_state: String,
    #[serde(default)]
    ipam: Ipam,
    #[serde(default, rename = "runtimeConfig")]
    runtime_config: RuntimeConfig,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RuntimeConfig {
    #[serde(rename = "deviceID")]
    device_id: String,
}

impl Config {
    /// Reads and checks the configuration of `call`.
    pub fn of(call: &Call) -> Result<Self> {
        let raw: Raw = call.config()?;
        let settings = Settings {
            mac: requested_mac(call)?,
            vlan: vlan(&raw)?,
            rate: rate(&raw)?,
            spoof_check: on_or_off("spoofchk", &raw.spoofchk)?,
            trust: on_or_off("trust", &raw.trust)?,
            link_state: link_state(&raw.link_state)?,
        };
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        Ok(Self {
            device_id: given(raw.runtime_config.device_id).or(given(raw.device_id)),
            master: given(raw.master),
            settings,
            ipam: raw.ipam,
            data_dir: data_dir(call)?,
        })
    }
}

/// Where what is given to containers is written down: also for teardown.
pub fn data_dir(call: &Call) -> Result<PathBuf> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Part {
        data_dir: Option<PathBuf>,
    }
    Ok(call.config::<Part>()?.data_dir.unwrap_or_else(|| DATA_DIR.into()))
}

impl Settings {
    /// Those that `function` has.
    pub fn all_of(function: &VirtualFunction) -> Self {
        Self {
            mac: Some(function.mac),
            vlan: Some(function.vlan),
            rate: Some(function.rate),
            spoof_check: function.spoof_check,
            trust: function.trust,
            link_state: Some(function.link_state),
        }
    }

    /// What must be changed of `now`. The MAC address comes last: the function may have to be trusted for it, and it takes
    /// effect with the rest.
    pub fn changes(&self, now: &VirtualFunction) -> Vec<VfChange> {
        let changes = [
            self.vlan.filter(|vlan| *vlan != now.vlan).map(VfChange::Vlan),
            self.rate.filter(|rate| *rate != now.rate).map(VfChange::Rate),
            self.spoof_check.filter(|on| Some(*on) != now.spoof_check).map(VfChange::SpoofCheck),
            self.trust.filter(|on| Some(*on) != now.trust).map(VfChange::Trust),
            self.link_state.filter(|state| *state != now.link_state).map(VfChange::LinkState),
            self.mac.filter(|mac| *mac != now.mac).map(VfChange::Mac),
        ];
        changes.into_iter().flatten().collect()
    }
}

fn vlan(raw: &Raw) -> Result<Option<VfVlan>> {
    let wrong = |what: String| Err(Error::Config(what));
    let Some(id) = raw.vlan else {
        return match (raw.vlan_qos, &raw.vlan_proto) {
            (None, None) => Ok(None),
            (Some(_), _) => wrong("\"vlanQoS\" without \"vlan\"".to_owned()),
            (None, Some(_)) => wrong("\"vlanProto\" without \"vlan\"".to_owned()),
        };
    };
    let qos = raw.vlan_qos.unwrap_or(0);
    let protocol = match raw.vlan_proto.as_deref().map(str::to_ascii_lowercase).as_deref() {
        None | Some("802.1q") => VlanProtocol::Q,
        Some("802.1ad") => VlanProtocol::Ad,
        Some(other) => return wrong(format!("\"vlanProto\" is {other:?}: expected \"802.1q\" or \"802.1ad\"")),
    };
    match (id, qos, protocol) {
        (4095.., ..) => wrong(format!("\"vlan\" is {id}: expected at most 4094")),
        (_, 8.., _) => wrong(format!("\"vlanQoS\" is {qos}: expected at most 7")),
        (0, 1.., _) => wrong("\"vlanQoS\" without a VLAN: \"vlan\" is 0".to_owned()),
        (0, _, VlanProtocol::Ad) => wrong("\"vlanProto\" without a VLAN: \"vlan\" is 0".to_owned()),
        _ => Ok(Some(VfVlan { id, qos, protocol })),
    }
}

fn rate(raw: &Raw) -> Result<Option<VfRate>> {
    let (min, max) = (raw.min_tx_rate.unwrap_or(0), raw.max_tx_rate.unwrap_or(0));
    if max != 0 && min > max {
        return Err(Error::Config(format!("\"min_tx_rate\" is {min}, more than \"max_tx_rate\", {max}")));
    }
    Ok(raw.min_tx_rate.or(raw.max_tx_rate).map(|_| VfRate { min, max }))
}

fn on_or_off(field: &str, text: &str) -> Result<Option<bool>> {
    match text {
        "" => Ok(None),
        "on" => Ok(Some(true)),
        "off" => Ok(Some(false)),
        other => Err(Error::Config(format!("\"{field}\" is {other:?}: expected \"on\" or \"off\""))),
    }
}

fn link_state(text: &str) -> Result<Option<VfLinkState>> {
    match text {
        "" => Ok(None),
        "auto" => Ok(Some(VfLinkState::Auto)),
        "enable" => Ok(Some(VfLinkState::Enable)),
        "disable" => Ok(Some(VfLinkState::Disable)),
        other => {
            let detail = format!("\"link_state\" is {other:?}: expected \"auto\", \"enable\" or \"disable\"");
            Err(Error::Config(detail))
        }
    }
}
