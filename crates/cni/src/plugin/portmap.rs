use serde_json::Value;

use super::Plugin;
use crate::{Call, CniResult, Error, Result};

/// See `portmap/README.md`.
pub struct Portmap;

impl Plugin for Portmap {
    fn add(&self, call: &Call) -> Result<CniResult> {
        refuse_mappings(call)?;
        let alone = || Error::Config("portmap needs \"prevResult\": it is chained after another plugin".to_owned());
        call.previous.clone().ok_or_else(alone)
    }

    fn del(&self, _: &Call) -> Result<()> {
        Ok(())
    }

    fn check(&self, call: &Call) -> Result<()> {
        refuse_mappings(call)
    }

    fn gc(&self, _: &Call) -> Result<()> {
        Ok(())
    }

    fn status(&self, _: &Call) -> Result<()> {
        Ok(())
    }
}

/// Host ports are not mapped yet; a mapping without a host port asks for nothing. Some runtimes write the keys with a
/// capital.
fn refuse_mappings(call: &Call) -> Result<()> {
    let mappings = call.config.get("runtimeConfig").and_then(|config| config.get("portMappings"));
    let host_port = |mapping: &Value| {
        let port = mapping.get("hostPort").or_else(|| mapping.get("HostPort"));
        port.and_then(Value::as_u64).filter(|port| *port != 0)
    };
    match mappings.and_then(Value::as_array).into_iter().flatten().find_map(host_port) {
        None => Ok(()),
        Some(port) => Err(Error::Unsupported {
            field: "runtimeConfig.portMappings",
            detail: format!("host port {port} cannot be mapped by this version; use a Service of type NodePort"),
        }),
    }
}
