//! flannel's `net-conf.json`.
//!
//! Field names are matched without regard to case, as Go's decoder does: the seed's own `"Directrouting"` works with
//! flannel only because of that. Unlike flannel, a field that nothing reads is an error: a misspelt one would
//! otherwise be ignored in silence.

use std::fmt::Display;

use ipnet::IpNet;
use podwire_kernel::wireguard::PrivateKey;
use podwire_model::Family;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{
    Error,
    backend::{self, Backend},
};

/// The usable content of net-conf.json.
#[derive(Debug)]
pub struct Config {
    /// `Network` and `IPv6Network`, as far as enabled: the ranges of all pods of the cluster, one for each address family.
    pub networks: Vec<IpNet>,
    /// `Backend`, checked and configured.
    pub backend: Box<dyn Backend>,
}

/// The fields of a family.
struct Names {
    enable: &'static str,
    network: &'static str,
    len: &'static str,
    bounds: [&'static str; 2],
    /// The longest prefix that leaves a node two pods.
    longest: u8,
    example: &'static str,
}

const FAMILIES: [(Family, Names); 2] = [
    (
        Family::V4,
        Names {
            enable: "EnableIPv4",
            network: "Network",
            len: "SubnetLen",
            bounds: ["SubnetMin", "SubnetMax"],
            longest: 30,
            example: "10.244.0.0/16",
        },
    ),
    (
        Family::V6,
        Names {
            enable: "EnableIPv6",
            network: "IPv6Network",
            len: "IPv6SubnetLen",
            bounds: ["IPv6SubnetMin", "IPv6SubnetMax"],
            longest: 126,
            example: "fd00:10:244::/48",
        },
    ),
];

/// Reads net-conf.json.
///
/// IPv4 is on unless `EnableIPv4` says otherwise, IPv6 is off unless `EnableIPv6` does, as in flannel. `SubnetLen`,
/// `SubnetMin`, `SubnetMax` and their IPv6 kin are accepted and checked but not used: with `--kube-subnet-mgr` the pod
/// range of each node comes from the Node object. `EnableNFTables` is accepted: the rules are nftables rules either way.
///
/// # Errors
/// Text that is no JSON object, an unknown field, a value of the wrong type or out of range, a backend that is not
/// supported: each names the field.
pub fn parse(text: &str) -> Result<Config, Error> {
    parse_with_key(text, &|| Err(Error::config("Backend.Type", "this backend needs a key that says who the node is")))
}

/// As [`parse`], for a node that has a key: `key` is asked for it if the backend is `wireguard`
/// ([`backend::wireguard::key_file::load_or_create`], for example).
///
/// # Errors
/// As [`parse`], and those of `key`.
pub fn parse_with_key(text: &str, key: &dyn Fn() -> Result<PrivateKey, Error>) -> Result<Config, Error> {
    let mut fields = Fields::new("", serde_json::from_str(text).map_err(Error::Json)?);
    let mut networks = Vec::new();
    for (family, names) in &FAMILIES {
        networks.extend(read_family(&mut fields, *family, names)?);
    }
    if networks.is_empty() {
        return Err(Error::config("EnableIPv4", "must be true, or EnableIPv6 must be: nothing is left to do"));
    }
    fields.take::<bool>("EnableNFTables")?;
    let backend = backend::configure(fields.take::<Map<String, Value>>("Backend")?, key)?;
    fields.finish()?;
    backend.check_networks(&networks)?;
    Ok(Config { networks, backend })
}

/// The network of a family, if that is enabled. What is not enabled is not checked either.
fn read_family(fields: &mut Fields, family: Family, names: &Names) -> Result<Option<IpNet>, Error> {
    if !fields.take::<bool>(names.enable)?.unwrap_or(family == Family::V4) {
        for name in [names.network, names.len].iter().chain(&names.bounds) {
            fields.take::<Value>(name)?;
        }
        return Ok(None);
    }
    let wrong = |problem: String| Err(Error::config(names.network, problem));
    let Some(network) = fields.take::<IpNet>(names.network)? else {
        return wrong(format!("missing: expected the cluster's pod range, such as {}", names.example));
    };
    if Family::of(&network.addr()) != family {
        return wrong(format!("{network} is no {family:?} range, expected one such as {}", names.example));
    }
    if network != network.trunc() {
        return wrong(format!("{network} has host bits set, expected {}", network.trunc()));
    }
    if let Some(len) = fields.take::<u8>(names.len)?
        && len != 0
        && !(network.prefix_len() < len && len <= names.longest)
    {
        let (least, most) = (network.prefix_len() + 1, names.longest);
        return Err(Error::config(names.len, format!("{len} is no subnet of {network}: expected {least} to {most}")));
    }
    for name in names.bounds {
        if let Some(address) = fields.take::<std::net::IpAddr>(name)?
            && !network.contains(&address)
        {
            return Err(Error::config(name, format!("{address} is not in {} {network}", names.network)));
        }
    }
    Ok(Some(network))
}

/// The fields of a JSON object, taken one by one; what is left at the end is unknown.
pub(crate) struct Fields {
    prefix: &'static str,
    map: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    /// `prefix` stands before each field's name in errors: `""` or for example `"Backend."`.
    pub(crate) fn new(prefix: &'static str, map: Map<String, Value>) -> Self {
        Self { prefix, map, known: Vec::new() }
    }

    /// Takes `name`; `None` when it is absent or null.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<Option<T>, Error> {
        self.known.push(name);
        let mut found = None;
        while let Some(key) = self.map.keys().find(|key| key.eq_ignore_ascii_case(name)).cloned() {
            found = self.map.remove(&key);
        }
        match found {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let shown = value.to_string();
                serde_json::from_value(value).map(Some).map_err(|error| self.error(name, format!("{shown}: {error}")))
            }
        }
    }

    /// Like [`Fields::take`], within `range`.
    pub(crate) fn take_within<T>(
        &mut self,
        name: &'static str,
        range: std::ops::RangeInclusive<T>,
    ) -> Result<Option<T>, Error>
    where
        T: DeserializeOwned + PartialOrd + Display,
    {
        match self.take::<T>(name)? {
            Some(value) if !range.contains(&value) => {
                let problem = format!("{value} is out of range, expected {} to {}", range.start(), range.end());
                Err(self.error(name, problem))
            }
            value => Ok(value),
        }
    }

    /// An error about the field `name`.
    pub(crate) fn error(&self, name: &str, problem: impl Into<String>) -> Error {
        Error::config(format!("{}{name}", self.prefix), problem)
    }

    /// Refuses what was not taken.
    pub(crate) fn finish(self) -> Result<(), Error> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(key) => Err(self.error(key, format!("unknown field, expected one of {}", self.known.join(", ")))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn reads_the_stock_file() {
        let text = r#"{"Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": {"Type": "vxlan"}}"#;
        let config = parse(text).unwrap();
        assert_eq!(config.networks, ["10.244.0.0/16".parse().unwrap()]);
        assert_eq!(config.backend.name(), "vxlan");
    }

    #[test]
    fn field_names_ignore_case_as_in_go() {
        let text = r#"{"network": "10.0.0.0/8", "SUBNETLEN": 24, "backend": {"type": "vxlan", "Directrouting": true}}"#;
        assert_eq!(parse(text).unwrap().networks, ["10.0.0.0/8".parse().unwrap()]);
    }

    #[test]
    fn errors_name_the_field_and_say_what_is_expected() {
        let rows = [
            (r#"{"Backend": {"Type": "vxlan"}}"#, "Network: missing"),
            (r#"{"Network": "10.244.0.0/33"}"#, r#"Network: "10.244.0.0/33""#),
            (r#"{"Network": "10.244.1.0/16"}"#, "Network: 10.244.1.0/16 has host bits set, expected 10.244.0.0/16"),
            (r#"{"Network": "10.244.0.0/16", "Netwrok": 1, "Backend": {"Type": "vxlan"}}"#, "Netwrok: unknown field"),
            (r#"{"Network": "10.244.0.0/16", "SubnetLen": 12}"#, "SubnetLen: 12"),
            (r#"{"Network": "10.244.0.0/16", "SubnetMin": "10.1.0.0"}"#, "SubnetMin: 10.1.0.0"),
            (r#"{"Network": "fd00::/48"}"#, "Network: fd00::/48 is no V4 range"),
            (r#"{"Network": "10.244.0.0/16", "EnableIPv6": true}"#, "IPv6Network: missing"),
            (r#"{"EnableIPv4": false, "Network": "10.244.0.0/16"}"#, "EnableIPv4: must be true, or EnableIPv6"),
            (
                r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/48", "IPv6SubnetLen": 127}"#,
                "IPv6SubnetLen: 127 is no subnet of fd00::/48: expected 49 to 126",
            ),
            (r#"{"Network": "10.244.0.0/16"}"#, "Backend.Type: missing"),
            (
                r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "geneve"}}"#,
                "\"geneve\" is not supported; supported: ",
            ),
            (r#"{"Network": "10.244.0.0/16", "Backend": "vxlan"}"#, r#"Backend: "vxlan""#),
        ];
        for (text, expected) in rows {
            let message = message(text);
            assert!(message.contains(expected), "{text}\n gave: {message}\n want: {expected}");
        }
        assert!(message("[]").starts_with("net-conf.json is not valid JSON"));
    }

    #[test]
    fn both_families_or_ipv6_alone() {
        let backend = r#""Backend": {"Type": "vxlan"}"#;
        let both = format!(
            r#"{{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:244::/48", "IPv6SubnetLen": 64, {backend}}}"#
        );
        let expected: Vec<IpNet> = vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()];
        assert_eq!(parse(&both).unwrap().networks, expected);
        let alone =
            format!(r#"{{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:10:244::/48", {backend}}}"#);
        assert_eq!(parse(&alone).unwrap().networks, expected[1..]);
        // What is switched off is not looked at.
        let off = format!(r#"{{"Network": "10.244.0.0/16", "EnableIPv6": false, "IPv6Network": "", {backend}}}"#);
        assert_eq!(parse(&off).unwrap().networks, expected[..1]);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in r#"[ -~]{0,80}|\{"(Network|Backend|SubnetLen|EnableIPv4)": ?[ -~]{0,40}\}"#) {
            let _ = parse(&text);
        }
    }
}
