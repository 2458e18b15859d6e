use podwire_kernel::{
    ResultExt,
    route::{Link, LinkKind, NewLink, NewLinkKind, Route, RouteSocket},
    tc::{TokenBucket, TrafficControl},
};
use serde::Deserialize;

use super::Plugin;
use crate::{Call, CniResult, Error, Result, mark, pod};

/// See `bandwidth/README.md`.
pub struct Bandwidth;

/// Bits a second and bits; zero for no limit. Keys begin with a capital letter when the caller is containerd.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Limits {
    #[serde(alias = "IngressRate")]
    ingress_rate: u64,
    #[serde(alias = "IngressBurst")]
    ingress_burst: u64,
    #[serde(alias = "EgressRate")]
    egress_rate: u64,
    #[serde(alias = "EgressBurst")]
    egress_burst: u64,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Fields {
    runtime_config: Option<RuntimeConfig>,
    shaped_subnets: Vec<String>,
    unshaped_subnets: Vec<String>,
    #[serde(flatten)]
    fixed: Limits,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RuntimeConfig {
    bandwidth: Option<Limits>,
}

/// The checked configuration of one call: what may reach the container, and what it may send.
#[derive(Debug)]
struct Config {
    ingress: Option<TokenBucket>,
    egress: Option<TokenBucket>,
}

impl Config {
    fn of(call: &Call) -> Result<Self> {
        let Fields { runtime_config, fixed, shaped_subnets, unshaped_subnets } = call.config()?;
        for (field, subnets) in [("shapedSubnets", shaped_subnets), ("unshapedSubnets", unshaped_subnets)] {
            if !subnets.is_empty() {
                return Err(Error::Unsupported {
                    field,
                    detail: "all traffic is limited alike; leave it out".to_owned(),
                });
            }
        }
        let given = runtime_config.and_then(|config| config.bandwidth).unwrap_or_default();
        // What the network says goes before what the caller says.
        let limits = if fixed == Limits::default() { given } else { fixed };
        Ok(Self {
            ingress: bucket("ingress", limits.ingress_rate, limits.ingress_burst)?,
            egress: bucket("egress", limits.egress_rate, limits.egress_burst)?,
        })
    }

    const fn is_empty(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

/// A token bucket in bytes, in which packets wait for 25 ms at most, as in the reference plugin.
fn bucket(direction: &str, rate: u64, burst: u64) -> Result<Option<TokenBucket>> {
    let wrong = |what: String| Err(Error::Config(format!("bandwidth: {what}")));
    match (rate, burst) {
        (0, 0) => return Ok(None),
        (0, _) => return wrong(format!("{direction}Burst needs {direction}Rate")),
        (_, 0) => return wrong(format!("{direction}Rate needs {direction}Burst")),
        _ => {}
    }
    let Ok(burst) = u32::try_from(burst / 8) else {
        return wrong(format!("{direction}Burst {burst} is more than 4 GiB"));
    };
    let rate = rate / 8;
    let limit = u32::try_from(rate / 40).unwrap_or(u32::MAX).saturating_add(burst);
    Ok(Some(TokenBucket { rate, burst, limit }))
}

impl Plugin for Bandwidth {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let config = Config::of(call)?;
        let alone = || Error::Config("bandwidth needs \"prevResult\": it is chained after another plugin".to_owned());
        let mut result = call.previous.clone().ok_or_else(alone)?;
        if config.is_empty() {
            return Ok(result);
        }
        let mut host = RouteSocket::open()?;
        let veth = host_end(call, &mut host)?;
        for (name, bucket) in [("ingressBurst", config.ingress), ("egressBurst", config.egress)] {
            let packet = veth.mtu + ETHERNET;
            if let Some(bucket) = bucket.filter(|bucket| bucket.burst < packet) {
                let (bits, least) = (bucket.burst * 8, packet * 8);
                return Err(Error::Config(format!(
                    "bandwidth: {name} {bits} lets no packet through: at least {least}"
                )));
            }
        }
        let limited = limit(call, &config, &mut host, &veth);
        if limited.is_err() {
            // What matters to the caller is why ADD failed.
            _ = TrafficControl::open().and_then(|mut tc| tc.unlimit(veth.index));
            _ = mark::remove(&mut host, call, &ifb_name(call));
        }
        result.interfaces.extend(limited?.map(|ifb| pod::describe(&ifb, None)));
        Ok(result)
    }

    fn del(&self, call: &Call) -> Result<()> {
        // The limit on the host's end goes with it.
        mark::remove(&mut RouteSocket::open()?, call, &ifb_name(call))
    }

    fn check(&self, call: &Call) -> Result<()> {
        let config = Config::of(call)?;
        if config.is_empty() {
            return Ok(());
        }
        let mut host = RouteSocket::open()?;
        let veth = host_end(call, &mut host)?;
        let mut tc = TrafficControl::open()?;
        let wrong =
            |what: &str, link: &Link| Err(Error::NotAsSetUp(format!("{what} of {} is not as set up", link.name)));
        let limit = |bucket: TokenBucket| Some((bucket.rate, bucket.limit));
        if let Some(bucket) = config.ingress
            && tc.limit_of(veth.index)? != limit(bucket)
        {
            return wrong("the limit", &veth);
        }
        let Some(bucket) = config.egress else { return Ok(()) };
        let name = ifb_name(call);
        let ifb = host.link(&name)?.filter(|link| link.up);
        let ifb = ifb.ok_or_else(|| Error::NotAsSetUp(format!("{name} is gone or down")))?;
        if tc.redirect_of(veth.index)? != Some(ifb.index) {
            return wrong("the redirection", &veth);
        }
        if tc.limit_of(ifb.index)? == limit(bucket) { Ok(()) } else { wrong("the limit", &ifb) }
    }

    fn gc(&self, call: &Call) -> Result<()> {
        mark::remove_stale(&mut RouteSocket::open()?, call)
    }

    fn status(&self, call: &Call) -> Result<()> {
        Config::of(call).map(drop)
    }
}

/// Bytes of a packet besides what the MTU counts.
const ETHERNET: u32 = 14;

/// Limits the container's traffic in both directions; returns the device for what it sends.
fn limit(call: &Call, config: &Config, host: &mut RouteSocket, veth: &Link) -> Result<Option<Link>> {
    let mut tc = TrafficControl::open()?;
    if let Some(bucket) = &config.ingress {
        tc.limit(veth.index, bucket)?;
    }
    let Some(bucket) = &config.egress else { return Ok(None) };
    let name = ifb_name(call);
    mark::remove(host, call, &name)?;
    let ifb = host.create_link(&NewLink { mtu: Some(veth.mtu), up: true, ..NewLink::new(&name, NewLinkKind::Ifb) })?;
    let marked = host.change_link(ifb.index, &[podwire_kernel::route::LinkChange::Alias(&mark::of(call))]);
    let limited = marked.and_then(|()| tc.limit(ifb.index, bucket)).and_then(|()| tc.redirect(veth.index, ifb.index));
    if limited.is_err() {
        // It may not have its mark yet.
        _ = host.delete_link(ifb.index).or_gone();
    }
    limited?;
    Ok(Some(ifb))
}

/// The host's end of the container's interface.
fn host_end(call: &Call, host: &mut RouteSocket) -> Result<Link> {
    let (_, mut inside) = call.open_pod()?;
    let inner = pod::interface(call, &mut inside)?;
    let outer = match (inner.peer_index, &inner.kind) {
        (Some(index), LinkKind::Veth) => host.link_by_index(index)?,
        _ => None,
    };
    // In another namespace the same number is another link.
    let known = |link: &Link| {
        call.previous.iter().flat_map(|it| &it.interfaces).any(|it| it.name == link.name && it.sandbox.is_none())
    };
    let outer = outer.filter(|link| link.kind == LinkKind::Veth && link.peer_index == Some(inner.index) && known(link));
    let none =
        || Error::Config(format!("bandwidth: {} has no veth end on the host: only that can be limited", call.ifname));
    outer.ok_or_else(none)
}

/// The same for the same attachment, so that DEL finds it.
fn ifb_name(call: &Call) -> String {
    let hash = podwire_kernel::stable_hash(mark::of(call).bytes());
    format!("bwp{:012x}", hash >> 16)
}
