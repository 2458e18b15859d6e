use podwire_kernel::{
    ns::Namespace,
    route::{Link, LinkChange, Route, RouteSocket},
};

use std::os::fd::AsFd;

use super::Plugin;
use crate::{Call, CniResult, Error, Interface, IpConfig, Result};

/// See `loopback/README.md`.
pub struct Loopback;

impl Plugin for Loopback {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let namespace = call.open_netns()?;
        let (mut route, lo) = lo(&namespace)?;
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
        let Some(namespace) = call.netns_if_there()? else { return Ok(()) };
        let (mut route, lo) = lo(&namespace)?;
        Ok(route.change_link(lo.index, &[LinkChange::Up(false)])?)
    }

    fn check(&self, call: &Call) -> Result<()> {
        let (_, lo) = lo(&call.open_netns()?)?;
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
fn lo(namespace: &Namespace) -> Result<(RouteSocket, Link)> {
    let mut route = RouteSocket::open_in(namespace.as_fd())?;
    match route.link("lo")? {
        Some(lo) => Ok((route, lo)),
        None => Err(Error::NotAsSetUp("there is no lo".to_owned())),
    }
}
