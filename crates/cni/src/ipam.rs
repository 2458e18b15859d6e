//! Calling the plugin that gives out addresses.

use serde::Deserialize;
use serde_json::Value;

use crate::{Call, CniResult, Result, Verb};

/// `ipam` of a configuration: which plugin. The rest is for that plugin to read.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Ipam {
    #[serde(rename = "type", default)]
    kind: String,
}

impl Ipam {
    /// The one of `call`, for teardown: whatever has become of the rest of the configuration.
    pub fn of(call: &Call) -> Result<Self> {
        #[derive(Deserialize, Default)]
        struct Whole {
            #[serde(default)]
            ipam: Ipam,
        }
        Ok(call.config::<Whole>()?.ipam)
    }

    /// Whether there is such a plugin; without one the container gets no address.
    pub fn is_set(&self) -> bool {
        !self.kind.is_empty()
    }

    /// Calls it with the whole configuration, as the protocol wants it, and returns its result for ADD; nothing without
    /// one.
    pub fn call(&self, call: &Call, verb: Verb) -> Result<Option<CniResult>> {
        if !self.is_set() {
            return Ok(None);
        }
        let mut delegated = call.config.clone();
        delegated.insert("type".to_owned(), Value::String(self.kind.clone()));
        call.delegate(verb, delegated)
    }
}
