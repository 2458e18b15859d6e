mod attach;
mod config;
mod port;
mod segment;

use podwire_kernel::route::{LinkKind, Route, RouteSocket};

use self::{
    attach::Attach,
    config::{Config, Teardown},
};
use super::Plugin;
use crate::{Call, CniResult, Error, Result, Verb, error::all, mark, masquerade, pod};

/// See `bridge/README.md`.
pub struct Bridge;

impl Plugin for Bridge {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let config = Config::of(call)?;
        // Before the container's is entered: where we are now is the host.
        let host = RouteSocket::open()?;
        let (namespace, pod) = pod::open(call)?;
        let assigned = config.ipam.call(call, Verb::Add)?;
        let mut attach = Attach { call, config: &config, namespace: &namespace, host, pod };
        let attached = attach.run(assigned);
        if attached.is_err() {
            // What matters to the caller is why ADD failed.
            _ = mark::remove(&mut attach.host, call, &host_name(call));
            _ = remove_masquerade(call, config.masquerade);
            _ = config.ipam.call(call, Verb::Del);
        }
        attached
    }

    fn del(&self, call: &Call) -> Result<()> {
        let config: Teardown = call.config()?;
        // The addresses last: nobody may get one that still answers here.
        all([
            RouteSocket::open()
                .map_err(Error::from)
                .and_then(|mut host| mark::remove(&mut host, call, &host_name(call))),
            pod::remove(call, &call.ifname),
            remove_masquerade(call, config.masquerade),
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
        if config.promiscuous && !bridge.promiscuous {
            return Err(Error::NotAsSetUp(format!("bridge {} does not take every frame", config.bridge)));
        }
        port::check(&mut host, call, &config, &bridge)?;
        if config.masquerade {
            masquerade::check(call, &previous.ips)?;
        }
        if config.disabled { Ok(()) } else { pod::check(call, previous).map(drop) }
    }

    fn gc(&self, call: &Call) -> Result<()> {
        let config: Teardown = call.config()?;
        all([
            RouteSocket::open().map_err(Error::from).and_then(|mut host| mark::remove_stale(&mut host, call)),
            if config.masquerade { masquerade::remove_stale(call) } else { Ok(()) },
            config.ipam.call(call, Verb::Gc).map(drop),
        ])
    }

    fn status(&self, call: &Call) -> Result<()> {
        let config = Config::of(call)?;
        if config.masquerade {
            masquerade::status()?;
        }
        config.ipam.call(call, Verb::Status).map(drop)
    }
}

fn remove_masquerade(call: &Call, set: bool) -> Result<()> {
    if set { masquerade::remove(call) } else { Ok(()) }
}

/// The name of the host's end: the same for the same attachment, so that DEL finds it without the namespace.
fn host_name(call: &Call) -> String {
    let bytes =
        call.network.bytes().chain(*b"/").chain(call.container_id.bytes()).chain(*b"/").chain(call.ifname.bytes());
    let hash = podwire_kernel::stable_hash(bytes);
    format!("veth{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff))
}
