//! net-conf.json as it was last found good, and what of a change of it can take effect.

use std::path::Path;

use anyhow::Context;
use podwire_model::{Family, IpNet};
use podwire_overlay::{backend::Backend, config::Config};
use serde_json::{Map, Value};

use super::key;

/// A usable net-conf.json.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NetConf {
    text: String,
    /// The ranges of all pods of the cluster, of each family at most one.
    pub(super) networks: Vec<IpNet>,
}

impl NetConf {
    /// Reads the content of `path`.
    ///
    /// # Errors
    /// It cannot be used; names the field and what is expected there.
    pub(super) fn new(path: &Path, text: String) -> anyhow::Result<Self> {
        let config = key::parse(&text).with_context(|| format!("reading {}", path.display()))?;
        Ok(Self { networks: config.networks, text })
    }

    /// A backend as it is configured; each family has one of its own.
    ///
    /// # Errors
    /// None: the text was read before.
    pub(super) fn backend(&self) -> anyhow::Result<Box<dyn Backend>> {
        let Config { backend, .. } = key::parse(&self.text)?;
        Ok(backend)
    }

    /// Whether both configure the same backend in the same way.
    pub(super) fn same_backend(&self, other: &Self) -> bool {
        let backend = |text: &str| -> Vec<Value> {
            let fields: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
            fields
                .into_iter()
                .filter(|(name, _)| name.eq_ignore_ascii_case("Backend"))
                .map(|(_, value)| value)
                .collect()
        };
        backend(&self.text) == backend(&other.text)
    }

    /// The range of all pods of `family`.
    pub(super) fn network(&self, family: Family) -> Option<IpNet> {
        self.networks.iter().copied().find(|network| Family::of(&network.addr()) == family)
    }

    /// Whether `next` can take effect while pods run: they keep their addresses.
    ///
    /// # Errors
    /// It cannot; says why and what to do.
    pub(super) fn check_change(&self, next: &Self) -> anyhow::Result<()> {
        for network in &self.networks {
            match next.network(Family::of(&network.addr())) {
                Some(same) if same == *network => {}
                Some(other) => anyhow::bail!(
                    "the network cannot change from {network} to {other} while pods run: drain the node, delete its pods \
                     and start again"
                ),
                None => anyhow::bail!("network {network} cannot go while pods run: drain the node and start again"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_part_of_what_configures_a_backend() {
        let conf = |text: &str| NetConf { text: text.to_owned(), networks: Vec::new() };
        let one = conf(r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard", "PSK": "a"}}"#);
        let other = conf(r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard", "PSK": "b"}}"#);
        let spelt = conf(r#"{"backend": {"PSK": "a", "Type": "wireguard"}, "EnableNFTables": true}"#);
        assert!(!one.same_backend(&other) && one.same_backend(&spelt));
    }
}
