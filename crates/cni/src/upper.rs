//! An interface of the container on top of a device below: what `macvlan`, `ipvlan` and `vlan` have in common.

use podwire_kernel::{
    ns::Namespace,
    route::{
        IpvlanMode, Link, LinkChange, LinkKind, Mac, MacvlanMode, NewLink, NewLinkKind, Route, RouteFilter, RouteSocket,
    },
};
use serde::Deserialize;

use crate::{Call, CniResult, Dns, Error, Result, Verb, error::all, ipam::Ipam, plugin::Plugin, pod};

/// A plugin of this family: how it reads its configuration.
pub struct Upper(pub fn(&Call) -> Result<Settings>);

/// The checked configuration of one call.
#[derive(Debug)]
pub struct Settings {
    /// What to make.
    pub kind: Kind,
    /// The device below and other things that are the same for all.
    pub common: Common,
    /// Its MAC address; the kernel's choice otherwise.
    pub mac: Option<Mac>,
    /// What the plugin before this one made, where its addresses are to be used and no IPAM plugin's.
    pub assigned: Option<CniResult>,
    /// Whether it is made also when nobody gives it an address.
    pub without_address: bool,
}

/// What to make on the device below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Macvlan { mode: MacvlanMode, broadcast_queue: Option<u32> },
    Ipvlan(IpvlanMode),
    Vlan(u16),
}

/// The fields that all of them have.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Common {
    /// The device below; empty for the one of the default route.
    pub master: String,
    /// Zero for that of the device below.
    mtu: u32,
    /// The device below is in the container, too.
    link_in_container: bool,
    pub ipam: Ipam,
    dns: Dns,
}

impl Kind {
    fn on(self, lower: u32) -> NewLinkKind<'static> {
        match self {
            Self::Macvlan { mode, broadcast_queue } => NewLinkKind::Macvlan { lower, mode, broadcast_queue },
            Self::Ipvlan(mode) => NewLinkKind::Ipvlan { lower, mode },
            Self::Vlan(id) => NewLinkKind::Vlan { lower, id },
        }
    }

    fn made(self) -> LinkKind {
        match self {
            Self::Macvlan { mode, .. } => LinkKind::Macvlan(mode),
            Self::Ipvlan(mode) => LinkKind::Ipvlan(mode),
            Self::Vlan(id) => LinkKind::Vlan(id),
        }
    }
}

impl Plugin for Upper {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let settings = (self.0)(call)?;
        let (namespace, pod) = pod::open(call)?;
        let mut add = Add { call, settings: &settings, namespace: &namespace, host: RouteSocket::open()?, pod };
        let added = add.run();
        if added.is_err() {
            // What matters to the caller is why ADD failed.
            _ = remove(call);
            _ = settings.common.ipam.call(call, Verb::Del);
        }
        added
    }

    fn del(&self, call: &Call) -> Result<()> {
        // The address last: nobody may get one that still answers here.
        all([remove(call), Ipam::of(call)?.call(call, Verb::Del).map(drop)])
    }

    fn check(&self, call: &Call) -> Result<()> {
        let settings = (self.0)(call)?;
        let previous = call.required_previous()?;
        settings.common.ipam.call(call, Verb::Check)?;
        let link = pod::check(call, previous)?;
        let expected = settings.kind.made();
        if link.kind != expected {
            return Err(Error::NotAsSetUp(format!("{} is {:?}, not {expected:?}", link.name, link.kind)));
        }
        // A device that is not named may be another one by now.
        if !settings.common.master.is_empty() {
            let mut below = if settings.common.link_in_container { call.open_pod()?.1 } else { RouteSocket::open()? };
            let lower = lower(&mut below, &settings.common.master);
            let lower = lower.map_err(|error| Error::NotAsSetUp(error.to_string()))?;
            if link.peer_index != Some(lower.index) {
                return Err(Error::NotAsSetUp(format!("{} is not on {}", link.name, lower.name)));
            }
        }
        Ok(())
    }

    fn gc(&self, call: &Call) -> Result<()> {
        // The interfaces went with their containers.
        Ipam::of(call)?.call(call, Verb::Gc).map(drop)
    }

    fn status(&self, call: &Call) -> Result<()> {
        let settings = (self.0)(call)?;
        let Common { master, link_in_container, .. } = &settings.common;
        if !master.is_empty() && !link_in_container {
            let found = lower(&mut RouteSocket::open()?, master);
            found.map_err(|error| Error::NotReady(error.to_string()))?;
        }
        settings.common.ipam.call(call, Verb::Status).map(drop)
    }
}

/// One ADD.
struct Add<'a> {
    call: &'a Call,
    settings: &'a Settings,
    namespace: &'a Namespace,
    host: RouteSocket,
    pod: RouteSocket,
}

impl Add<'_> {
    fn run(&mut self) -> Result<CniResult> {
        self.create()?;
        let Self { call, settings, .. } = self;
        let common = &settings.common;
        let assigned = match &settings.assigned {
            Some(assigned) => Some(assigned.clone()),
            None => common.ipam.call(call, Verb::Add)?,
        };
        if assigned.as_ref().is_some_and(|assigned| assigned.ips.is_empty()) {
            return Err(Error::NoAddress("the IPAM plugin gave no address".to_owned()));
        }
        if assigned.is_none() && !settings.without_address {
            return Err(Error::Config("\"ipam\" is missing: without one there is no address".to_owned()));
        }
        let mut result = CniResult { dns: common.dns.clone(), ..assigned.unwrap_or_default() };
        pod::announce(self.namespace, &call.ifname)?;
        let link = pod::configure(call, self.namespace, &mut self.pod, &result, false)?;
        result.interfaces = vec![pod::describe(&link, pod::sandbox(call))];
        for ip in &mut result.ips {
            ip.interface = Some(0);
        }
        Ok(result)
    }

    /// Makes the link, in the container from the first moment.
    fn create(&mut self) -> Result<()> {
        let Self { call, settings, .. } = self;
        let common = &settings.common;
        let below = if common.link_in_container { &mut self.pod } else { &mut self.host };
        let lower = lower(below, &common.master)?;
        if common.mtu > lower.mtu {
            let detail = format!("\"mtu\" is {}, more than the {} of {}", common.mtu, lower.mtu, lower.name);
            return Err(Error::Config(detail));
        }
        // Before Linux 6.15, a name that is taken on the host is refused in the container, too.
        let temporary = temporary_name(call);
        let name = if common.link_in_container { &call.ifname } else { &temporary };
        let mtu = Some(common.mtu).filter(|mtu| *mtu > 0);
        let new = NewLink { mac: settings.mac, mtu, ..NewLink::new(name, settings.kind.on(lower.index)) };
        if common.link_in_container {
            self.pod.create_link(&new)?;
            return Ok(());
        }
        self.host.create_link_in(&new, std::os::fd::AsFd::as_fd(self.namespace))?;
        let vanished = || Error::UnknownContainer(format!("{name} vanished from the container"));
        let link = self.pod.link(name)?.ok_or_else(vanished)?;
        Ok(self.pod.change_link(link.index, &[LinkChange::Name(&call.ifname)])?)
    }
}

/// Deletes the container's interface, under either of its names.
fn remove(call: &Call) -> Result<()> {
    all([pod::remove(call, &call.ifname), pod::remove(call, &temporary_name(call))])
}

/// What the interface is called until it is in the container: the same for the same attachment.
fn temporary_name(call: &Call) -> String {
    let bytes = call.network.bytes().chain(*b"/").chain(call.ifname.bytes());
    format!("upper{:08x}", podwire_kernel::stable_hash(bytes) & 0xffff_ffff)
}

/// The device below: the one called `name`, or that of the default route.
fn lower(route: &mut RouteSocket, name: &str) -> Result<Link> {
    if !name.is_empty() {
        let missing = || Error::Config(format!("there is no device {name:?}, which \"master\" asks for"));
        return route.link(name)?.ok_or_else(missing);
    }
    let routes = route.routes(&RouteFilter::MAIN)?;
    let default = routes.iter().filter(|route| route.destination.prefix_len() == 0 && route.device.is_some());
    let device = default.min_by_key(|route| route.metric).and_then(|route| route.device);
    let found = device.map(|index| route.link_by_index(index)).transpose()?.flatten();
    found.ok_or_else(|| Error::Config("\"master\" is missing, and there is no default route to tell it".to_owned()))
}

/// The MAC address that is asked for: by `runtimeConfig.mac`, `MAC=` in `CNI_ARGS`, or `mac`, the first of them that is set.
pub fn requested_mac(call: &Call) -> Result<Option<Mac>> {
    #[derive(Deserialize, Default)]
    #[serde(default, rename_all = "camelCase")]
    struct Fields {
        mac: String,
        runtime_config: RuntimeConfig,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct RuntimeConfig {
        mac: String,
    }
    let fields: Fields = call.config()?;
    let asked = [Some(fields.runtime_config.mac), call.args.get("MAC").cloned(), Some(fields.mac)];
    let asked = asked.into_iter().flatten().find(|mac| !mac.is_empty());
    asked
        .map(|mac| mac.parse().map_err(|error: podwire_kernel::route::NotAMac| Error::Config(error.to_string())))
        .transpose()
}
