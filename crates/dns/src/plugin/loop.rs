//! `loop`: finds out whether what is forwarded comes back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use domain::base::iana::{Class, Rtype};
use futures_util::{FutureExt, future::BoxFuture};
use tracing::error;

use super::{Plugin, Step};
use crate::{
    corefile::{CorefileError, Directive},
    message::{Arrival, DnsName, Query, Reply, Transport, name_below},
    program::SiteBuilder,
    router::{Rest, Router},
};

/// When to probe, counted from the start: an upstream may come up later than we do.
const PROBES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(10)];

/// Asks its own chain for a name that nobody else knows. If an upstream brings the question back, there is a loop:
/// everything that would be forwarded is answered with SERVFAIL from then on, where CoreDNS ends the process. Names of
/// the cluster go on being answered.
struct Loop {
    /// The zone's name below two random labels.
    probe: DnsName,
    random: u64,
    seen: Arc<AtomicU32>,
    found: AtomicBool,
}

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    directive.plain(0, 0)?;
    let Some(zone) = site.zones().into_iter().next() else { return Ok(()) };
    let random = &site.environment.random;
    let label = || format!("{:016x}", random.next());
    let probe = name_below(&[label().as_bytes(), label().as_bytes()], &zone)
        .map_err(|error| directive.error(format!("loop: zone too long: {error}")))?;
    let random = random.next();
    site.add(Loop { probe, random, seen: Arc::default(), found: AtomicBool::new(false) });
    Ok(())
}

impl Plugin for Loop {
    fn name(&self) -> &'static str {
        "loop"
    }

    fn ask(&self, query: &Query, _rest: &Rest<'_>) -> Step {
        if query.qtype == Rtype::HINFO && query.name == self.probe {
            // Each probe sets the count to 0; it passes here once on its way out.
            let again = self.seen.fetch_add(1, Ordering::Relaxed) > 0;
            if again && !self.found.swap(true, Ordering::Relaxed) {
                error!(
                    "loop: what is forwarded comes back from {}: names outside the cluster get SERVFAIL until the upstream is \
                     another server than this one",
                    query.arrival.client
                );
            }
        }
        if self.found.load(Ordering::Relaxed) {
            return Step::Reply(Reply::failure(self.name(), "forwarding loop: the upstream leads back here"));
        }
        Step::Next
    }

    fn background(&self, router: &Arc<Router>) -> Option<BoxFuture<'static, ()>> {
        let (router, seen, probe, random) = (router.clone(), self.seen.clone(), self.probe.clone(), self.random);
        let task = async move {
            let start = Instant::now();
            for at in PROBES {
                tokio::time::sleep(at.saturating_sub(start.elapsed())).await;
                seen.store(0, Ordering::Relaxed);
                router.resolve(&probe_query(probe.clone(), random)).await;
            }
        };
        Some(task.boxed())
    }
}

fn probe_query(name: DnsName, random: u64) -> Query {
    let client = ([127, 0, 0, 1], 0).into();
    Query {
        id: 0,
        recursion_desired: true,
        checking_disabled: false,
        name,
        qtype: Rtype::HINFO,
        qclass: Class::IN,
        edns: None,
        options: Vec::new(),
        arrival: Arrival { client, transport: Transport::Udp, now: Instant::now(), random },
        depth: 1,
    }
}
