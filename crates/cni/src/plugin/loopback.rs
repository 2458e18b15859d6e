use podwire_kernel::route::{Link, LinkChange, Route, RouteSocket};

use super::Plugin;
use crate::{Call, CniResult, Error, Interface, IpConfig, Result};

/// See `loopback/README.md`.
pub struct Loopback;

impl Plugin for Loopback {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let (_, mut route) = call.open_pod()?;
        let lo = lo(&mut route)?;
        route.change_link(lo.index, &[LinkChange::Up(true)])?;
        if let Some(previous) = &call.previous {
            return Ok(previous.clone());
        }
        let sandbox = call.netns.as_ref().map(|path| path.display().to_string());
        let addresses = route.addresses(Some(lo.index))?;
        let ip = |net| IpConfig { interface: Some(0), address: net, gateway: None };
        Ok(CniResult {
            interfaces: vec![Interface {
                name: lo.name,
                mac: lo.mac.map(|mac| mac.to_string()),
                mtu: Some(lo.mtu),
                sandbox,
            }],
            ips: addresses.into_iter().map(|address| ip(address.net)).collect(),
            ..CniResult::default()
        })
    }

    fn del(&self, call: &Call) -> Result<()> {
        let Some(mut route) = call.open_pod_if_there()? else { return Ok(()) };
        let lo = lo(&mut route)?;
        Ok(route.change_link(lo.index, &[LinkChange::Up(false)])?)
    }

    fn check(&self, call: &Call) -> Result<()> {
        let (_, mut route) = call.open_pod()?;
        let lo = lo(&mut route)?;
        if lo.up { Ok(()) } else { Err(Error::NotAsSetUp("lo is down".to_owned())) }
    }

    fn gc(&self, _: &Call) -> Result<()> {
        Ok(())
    }

    fn status(&self, _: &Call) -> Result<()> {
        Ok(())
    }
}

/// Whatever `CNI_IFNAME` says, the interface is `lo`.
fn lo(route: &mut RouteSocket) -> Result<Link> {
    route.link("lo")?.ok_or_else(|| Error::NotAsSetUp("there is no lo".to_owned()))
}
