use podwire_kernel::route::Mac;
use serde::Deserialize;

use crate::{Call, Dns, Error, Result, ipam::Ipam, masquerade};

/// The checked configuration of one call.
#[derive(Debug)]
pub struct Config {
    pub bridge: String,
    pub gateway: bool,
    pub default_gateway: bool,
    pub force_address: bool,
    pub masquerade: bool,
    pub mtu: Option<u32>,
    pub promiscuous: bool,
    pub vlans: Option<Vlans>,
    pub port: Port,
    /// Whether the container's interface is left down and without addresses.
    pub disabled: bool,
    pub dad: bool,
    pub ipam: Ipam,
    pub mac: Option<Mac>,
    /// Takes the place of what the IPAM plugin says, when set.
    pub dns: Dns,
}

/// How the container's port differs from any other.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    pub hairpin: bool,
    pub isolated: bool,
    /// Lets the container send from its own MAC address only.
    pub locked: bool,
}

/// The VLANs that the container's port is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vlans {
    /// That of frames without a tag; the gateway's address is there.
    pub access: Option<u16>,
    /// Ranges of those of frames with a tag, in order and apart from each other.
    pub trunk: Vec<(u16, u16)>,
    /// Whether the port stays in the VLAN that the bridge puts new ports into.
    pub keep_default: bool,
}

impl Vlans {
    /// The VLAN of frames without a tag; a trunk without one has the first.
    pub fn native(&self) -> u16 {
        self.access.unwrap_or(1)
    }
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
    ip_masq_backend: Option<String>,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    hairpin_mode: bool,
    #[serde(default)]
    promisc_mode: bool,
    #[serde(default)]
    vlan: i64,
    vlan_trunk: Option<Vec<Trunk>>,
    #[serde(default)]
    preserve_default_vlan: bool,
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
    runtime_config: WithMac,
    #[serde(default)]
    args: Args,
    #[serde(default)]
    dns: Dns,
}

#[derive(Deserialize)]
struct Trunk {
    #[serde(rename = "minID")]
    min_id: Option<i64>,
    #[serde(rename = "maxID")]
    max_id: Option<i64>,
    id: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Args {
    cni: WithMac,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WithMac {
    mac: String,
}

fn default_bridge() -> String {
    "cni0".to_owned()
}

impl Config {
    /// Reads and checks the configuration of `call`.
    pub fn of(call: &Call) -> Result<Self> {
        let raw: Raw = call.config()?;
        refuse(&raw)?;
        Ok(Self {
            gateway: raw.is_gateway || raw.is_default_gateway,
            default_gateway: raw.is_default_gateway,
            force_address: raw.force_address,
            masquerade: raw.ip_masq,
            mtu: Some(raw.mtu).filter(|mtu| *mtu > 0),
            promiscuous: raw.promisc_mode,
            vlans: vlans(&raw)?,
            port: Port { hairpin: raw.hairpin_mode, isolated: raw.port_isolation, locked: raw.macspoofchk },
            disabled: raw.disable_container_interface,
            dad: raw.enabledad,
            mac: mac(call, &raw)?,
            bridge: raw.bridge,
            ipam: raw.ipam,
            dns: raw.dns,
        })
    }
}

/// The first that is set: by the runtime, by the configuration's `args`, by `CNI_ARGS`.
fn mac(call: &Call, raw: &Raw) -> Result<Option<Mac>> {
    let given = [Some(&raw.runtime_config.mac), Some(&raw.args.cni.mac), call.args.get("MAC")];
    let mac = given.into_iter().flatten().find(|mac| !mac.is_empty());
    mac.map(|mac| mac.parse())
        .transpose()
        .map_err(|error: podwire_kernel::route::NotAMac| Error::Config(error.to_string()))
}

fn refuse(raw: &Raw) -> Result<()> {
    let wrong = |detail: &str| Err(Error::Config(detail.to_owned()));
    masquerade::check_backend(raw.ip_masq_backend.as_deref())?;
    if raw.hairpin_mode && raw.promisc_mode {
        return wrong("\"hairpinMode\" and \"promiscMode\" exclude each other");
    }
    if raw.disable_container_interface && raw.ipam.is_set() {
        return wrong("\"disableContainerInterface\" leaves no use for \"ipam\"");
    }
    Ok(())
}

fn vlans(raw: &Raw) -> Result<Option<Vlans>> {
    let number = |field: &str, id: i64| {
        let id = u16::try_from(id).ok().filter(|id| (1..=4094).contains(id));
        id.ok_or_else(|| Error::Config(format!("{field:?} is no VLAN: expected 1 to 4094")))
    };
    let access = Some(raw.vlan).filter(|id| *id != 0).map(|id| number("vlan", id)).transpose()?;
    let mut ranges = Vec::new();
    for trunk in raw.vlan_trunk.iter().flatten() {
        match (trunk.min_id, trunk.max_id) {
            (None, None) => {}
            (Some(min), Some(max)) if min <= max => {
                ranges.push((number("vlanTrunk.minID", min)?, number("vlanTrunk.maxID", max)?));
            }
            _ => {
                return Err(Error::Config("\"vlanTrunk\": \"minID\" needs a \"maxID\" that is not smaller".to_owned()));
            }
        }
        if let Some(id) = trunk.id {
            let id = number("vlanTrunk.id", id)?;
            ranges.push((id, id));
        }
    }
    if access.is_none() && raw.vlan_trunk.is_none() {
        return Ok(None);
    }
    Ok(Some(Vlans { access, trunk: merged(ranges), keep_default: raw.preserve_default_vlan }))
}

/// The same numbers as ranges that are in order and apart from each other.
fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{Verb, test_support::call};

    fn config(more: Value) -> Result<Config> {
        let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Config::of(&call(Verb::Add, "box", &config).unwrap())
    }

    #[test]
    fn trunks_are_read_as_ranges() {
        let trunk = json!([{"minID": 30, "maxID": 40}, {"id": 5}, {"id": 41}, {"minID": 35, "maxID": 50, "id": 4094}]);
        let vlans = config(json!({"vlanTrunk": trunk})).unwrap().vlans.unwrap();
        assert_eq!((vlans.trunk.as_slice(), vlans.native()), ([(5, 5), (30, 50), (4094, 4094)].as_slice(), 1));
        let vlans = config(json!({"vlan": 7, "preserveDefaultVlan": true})).unwrap().vlans.unwrap();
        assert_eq!(vlans, Vlans { access: Some(7), trunk: vec![], keep_default: true });
        assert_eq!(config(json!({})).unwrap().vlans, None);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (more, code, named) in [
            (json!({"vlan": 4095}), 7, "\"vlan\""),
            (json!({"vlan": -1}), 7, "\"vlan\""),
            (json!({"vlan": "7"}), 6, "string"),
            (json!({"vlanTrunk": [{"minID": 9, "maxID": 8}]}), 7, "\"minID\""),
            (json!({"vlanTrunk": [{"maxID": 8}]}), 7, "\"minID\""),
            (json!({"vlanTrunk": [{"id": 0}]}), 7, "\"vlanTrunk.id\""),
            (json!({"hairpinMode": true, "promiscMode": true}), 7, "\"promiscMode\""),
            (json!({"disableContainerInterface": true, "ipam": {"type": "host-local"}}), 7, "\"ipam\""),
            (json!({"ipMasqBackend": "iptables"}), 2, "\"ipMasqBackend\""),
            (json!({"ipMasqBackend": "magic"}), 7, "\"ipMasqBackend\""),
            (json!({"runtimeConfig": {"mac": "red"}}), 7, "\"red\""),
        ] {
            let error = config(more).unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn the_runtime_has_the_last_word_on_the_mac() {
        let args = json!({"cni": {"mac": "02:00:00:00:00:01"}});
        let mac = |more| config(more).unwrap().mac.unwrap().to_string();
        assert_eq!(mac(json!({"args": args})), "02:00:00:00:00:01");
        assert_eq!(mac(json!({"args": args, "runtimeConfig": {"mac": "02:00:00:00:00:02"}})), "02:00:00:00:00:02");
    }
}
