use std::net::IpAddr;

use podwire_model::IpNet;
use serde::Deserialize;

use super::Plugin;
use crate::{Call, CniResult, Dns, Error, IpConfig, Result, RouteConfig};

/// See `static_ipam/README.md`.
pub struct Static;

impl Plugin for Static {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let (ips, ipam) = addresses(call)?;
        Ok(CniResult { ips, routes: ipam.routes, dns: ipam.dns, ..CniResult::default() })
    }

    fn del(&self, _: &Call) -> Result<()> {
        Ok(())
    }

    fn check(&self, call: &Call) -> Result<()> {
        let (ips, _) = addresses(call)?;
        let reported = &call.required_previous()?.ips;
        for ip in ips {
            let same = reported.iter().find(|other| other.address.addr() == ip.address.addr());
            if same.is_none_or(|same| ip.gateway.is_some() && same.gateway != ip.gateway) {
                return Err(Error::NotAsSetUp(format!("{} was not assigned, or with another gateway", ip.address)));
            }
        }
        Ok(())
    }

    fn gc(&self, _: &Call) -> Result<()> {
        Ok(())
    }

    fn status(&self, call: &Call) -> Result<()> {
        addresses(call).map(drop)
    }
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    ipam: Ipam,
    runtime_config: Ips,
    args: Args,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Ipam {
    addresses: Vec<Address>,
    routes: Vec<RouteConfig>,
    dns: Dns,
}

#[derive(Deserialize)]
struct Address {
    address: String,
    gateway: Option<IpAddr>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Args {
    cni: Ips,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Ips {
    ips: Vec<String>,
}

/// The addresses: those of `ipam` and of `CNI_ARGS`; in their place those of `args.cni.ips`, in place of both those of
/// `runtimeConfig.ips`.
fn addresses(call: &Call) -> Result<(Vec<IpConfig>, Ipam)> {
    let Config { ipam, runtime_config, args } = call.config()?;
    let mut ips = Vec::new();
    for Address { address, gateway } in &ipam.addresses {
        ips.push(IpConfig { gateway: *gateway, ..parsed(address)? });
    }
    for text in listed(call, "IP") {
        ips.push(parsed(text)?);
    }
    for text in listed(call, "GATEWAY") {
        let gateway: IpAddr =
            text.parse().map_err(|_| Error::Config(format!("GATEWAY in CNI_ARGS: {text:?} is no address")))?;
        let near = ips.iter_mut().filter(|ip| ip.address.contains(&gateway));
        near.for_each(|ip| ip.gateway = Some(gateway));
    }
    for instead in [args.cni.ips, runtime_config.ips] {
        if !instead.is_empty() {
            ips = instead.iter().map(|text| parsed(text)).collect::<Result<_>>()?;
        }
    }
    Ok((ips, ipam))
}

/// The values of a variable of `CNI_ARGS`, which commas separate.
fn listed<'a>(call: &'a Call, name: &str) -> impl Iterator<Item = &'a str> {
    let values = call.args.get(name).map(String::as_str).unwrap_or_default();
    values.split(',').map(str::trim).filter(|value| !value.is_empty())
}

fn parsed(text: &str) -> Result<IpConfig> {
    let address: IpNet = text.trim().parse().map_err(|_| {
        Error::Config(format!("{text:?} is no address with the prefix length of its network, like 10.1.0.5/24"))
    })?;
    Ok(IpConfig { interface: None, address, gateway: None })
}
