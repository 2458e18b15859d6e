mod attach;
mod config;
mod port;
mod segment;

use podwire_kernel::route::{LinkKind, Route, RouteSocket};

use self::{attach::Attach, config::Config};
use super::Plugin;
use crate::{Call, CniResult, Error, Result, Verb, masquerade, pair, pod};

/// See `bridge/README.md`.
pub struct Bridge;

impl Plugin for Bridge {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let config = Config::of(call)?;
        let host = RouteSocket::open()?;
        let (namespace, pod) = pod::open(call)?;
        let assigned = config.ipam.call(call, Verb::Add)?;
        let attached = Attach { call, config: &config, namespace: &namespace, host, pod }.run(assigned);
        if attached.is_err() {
            // What matters to the caller is why ADD failed.
            _ = self.del(call);
        }
        attached
    }

    fn del(&self, call: &Call) -> Result<()> {
        call.config::<pair::Teardown>()?.del(call)
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
        call.config::<pair::Teardown>()?.gc(call)
    }

    fn status(&self, call: &Call) -> Result<()> {
        let config = Config::of(call)?;
        if config.masquerade {
            masquerade::status()?;
        }
        config.ipam.call(call, Verb::Status).map(drop)
    }
}
