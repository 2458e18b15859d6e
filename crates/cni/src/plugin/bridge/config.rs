use podwire_kernel::route::Mac;
use serde::Deserialize;

use crate::{Call, Dns, Error, Result, ipam::Ipam};

/// The checked configuration of one call.
#[derive(Debug)]
pub struct Config {
    pub bridge: String,
    pub gateway: bool,
    pub default_gateway: bool,
    pub force_address: bool,
    pub mtu: Option<u32>,
    pub hairpin: bool,
    pub isolated: bool,
    pub dad: bool,
    pub ipam: Ipam,
    pub mac: Option<Mac>,
    /// Takes the place of what the IPAM plugin says, when set.
    pub dns: Dns,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default = "default_bridge")]
    bridge: String,
    #[serde(default)]
    is_gateway: bool,
    #[serde(default)]
    is_default_gateway: bool,
    #[serde(default)]
    force_address: bool,
    #[serde(default)]
    ip_masq: bool,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    hairpin_mode: bool,
    #[serde(default)]
    promisc_mode: bool,
    #[serde(default)]
    vlan: u32,
    #[serde(default)]
    vlan_trunk: Vec<serde_json::Value>,
    #[serde(default)]
    macspoofchk: bool,
    #[serde(default)]
    port_isolation: bool,
    #[serde(default)]
    enabledad: bool,
    #[serde(default)]
    disable_container_interface: bool,
    #[serde(default)]
    ipam: Ipam,
    #[serde(default)]
    runtime_config: RuntimeConfig,
    #[serde(default)]
    dns: Dns,
}

#[derive(Deserialize, Default)]
struct RuntimeConfig {
    #[serde(default)]
    mac: String,
}

fn default_bridge() -> String {
    "cni0".to_owned()
}

impl Config {
    /// Reads and checks the configuration of `call`.
    pub fn of(call: &Call) -> Result<Self> {
        let raw: Raw = call.config()?;
        refuse_unsupported(&raw)?;
        Self::from_raw(call, raw)
    }

    /// For DEL and GC: what cannot be set up can still be torn down.
    pub fn for_teardown(call: &Call) -> Result<Self> {
        Self::from_raw(call, call.config()?)
    }

    fn from_raw(call: &Call, raw: Raw) -> Result<Self> {
        let mac = Some(raw.runtime_config.mac).filter(|mac| !mac.is_empty()).or_else(|| call.args.get("MAC").cloned());
        let mac = mac.map(|mac| mac.parse::<Mac>()).transpose().map_err(|error| Error::Config(error.to_string()))?;
        Ok(Self {
            bridge: raw.bridge,
            gateway: raw.is_gateway || raw.is_default_gateway,
            default_gateway: raw.is_default_gateway,
            force_address: raw.force_address,
            mtu: Some(raw.mtu).filter(|mtu| *mtu > 0),
            hairpin: raw.hairpin_mode,
            isolated: raw.port_isolation,
            dad: raw.enabledad,
            ipam: raw.ipam,
            mac,
            dns: raw.dns,
        })
    }
}

fn refuse_unsupported(raw: &Raw) -> Result<()> {
    let fields = [
        ("ipMasq", raw.ip_masq, "let the overlay masquerade: flanneld --ip-masq"),
        ("promiscMode", raw.promisc_mode, "use hairpinMode"),
        ("vlan", raw.vlan != 0, "leave it out"),
        ("vlanTrunk", !raw.vlan_trunk.is_empty(), "leave it out"),
        ("macspoofchk", raw.macspoofchk, "leave it out"),
        ("disableContainerInterface", raw.disable_container_interface, "leave it out"),
    ];
    match fields.into_iter().find(|(_, set, _)| *set) {
        Some((field, _, advice)) => Err(Error::Unsupported { field, detail: advice.to_owned() }),
        None => Ok(()),
    }
}
