mod attach;
mod config;

use podwire_kernel::route::{LinkKind, Route, RouteSocket};

use self::{attach::Attach, config::Config};
use super::Plugin;
use crate::{Call, CniResult, Error, Result, Verb, error::all, mark, pod};

/// See `bridge/README.md`.
pub struct Bridge;

impl Plugin for Bridge {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let config = Config::of(call)?;
        let (namespace, pod) = pod::open(call)?;
        let assigned = config.ipam.call(call, Verb::Add)?.unwrap_or_default();
        let mut attach = Attach { call, config: &config, namespace: &namespace, host: RouteSocket::open()?, pod };
        let attached = attach.run(assigned);
        if attached.is_err() {
            // What matters to the caller is why ADD failed.
            _ = mark::remove(&mut attach.host, call, &host_name(call));
            _ = config.ipam.call(call, Verb::Del);
        }
        attached
    }

    fn del(&self, call: &Call) -> Result<()> {
        let config = Config::for_teardown(call)?;
        // The addresses last: nobody may get one that still answers here.
        all([
            RouteSocket::open()
                .map_err(Error::from)
                .and_then(|mut host| mark::remove(&mut host, call, &host_name(call))),
            pod::remove(call, &call.ifname),
            config.ipam.call(call, Verb::Del).map(drop),
        ])
    }

    fn check(&self, call: &Call) -> Result<()> {
        let config = Config::of(call)?;
        let previous = call.required_previous()?;
        config.ipam.call(call, Verb::Check)?;
        let mut host = RouteSocket::open()?;
        let bridge = host.link(&config.bridge)?.filter(|link| link.kind == LinkKind::Bridge);
        let bridge = bridge.ok_or_else(|| Error::NotAsSetUp(format!("bridge {} is gone", config.bridge)))?;
        let veth = host.link(&host_name(call))?;
        if veth.is_none_or(|veth| veth.master != Some(bridge.index) || !veth.up) {
            let (name, bridge) = (host_name(call), &config.bridge);
            return Err(Error::NotAsSetUp(format!("{name} is gone, down, or no port of {bridge}")));
        }
        pod::check(call, previous).map(drop)
    }

    fn gc(&self, call: &Call) -> Result<()> {
        let config = Config::for_teardown(call)?;
        let removed = RouteSocket::open().map_err(Error::from).and_then(|mut host| mark::remove_stale(&mut host, call));
        all([removed, config.ipam.call(call, Verb::Gc).map(drop)])
    }

    fn status(&self, call: &Call) -> Result<()> {
        let config = Config::of(call)?;
        config.ipam.call(call, Verb::Status).map(drop)
    }
}

/// The name of the host's end: the same for the same attachment, so that DEL finds it without the namespace.
fn host_name(call: &Call) -> String {
    let bytes =
        call.network.bytes().chain(*b"/").chain(call.container_id.bytes()).chain(*b"/").chain(call.ifname.bytes());
    let hash = podwire_kernel::stable_hash(bytes);
    format!("veth{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff))
}
