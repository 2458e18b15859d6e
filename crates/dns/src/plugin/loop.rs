//! `loop`: finds out whether what is forwarded comes back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use domain::base::{
    iana::{Class, Rcode, Rtype},
    name::PushError,
};
use futures_util::{FutureExt, future::BoxFuture};
use tracing::{error, info};

use super::{Plugin, Step};
use crate::{
    corefile::{CorefileError, Directive},
    message::{Arrival, DnsName, Query, Reply, Source, Transport, name_below},
    program::SiteBuilder,
    random::Random,
    router::{Rest, Router},
};

/// When to probe, counted from the start: an upstream may come up later than we do.
const PROBES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(10)];
/// How often to look whether a loop that was found is still there.
const RECHECK: Duration = Duration::from_secs(5);

/// Asks its own chain for a name that nobody else knows. If an upstream brings the question back, there is a loop:
/// everything that would be forwarded is answered with SERVFAIL until a later probe does not come back, where CoreDNS
/// ends the process. Names of the cluster go on being answered.
struct Loop(Arc<State>);

struct State {
    /// Probes are below this name, which has a random label.
    zone: DnsName,
    random: Arc<Random>,
    /// How often the current probe was seen.
    seen: AtomicU32,
    found: AtomicBool,
}

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    directive.plain(0, 0)?;
    let Some(zone) = site.zones().into_iter().next() else { return Ok(()) };
    let random = site.environment.random.clone();
    let zone = random_name(&random, &zone).map_err(|error| directive.error(format!("loop: zone too long: {error}")))?;
    site.add(Loop(Arc::new(State { zone, random, seen: AtomicU32::new(0), found: AtomicBool::new(false) })));
    Ok(())
}

fn random_name(random: &Random, zone: &DnsName) -> Result<DnsName, PushError> {
    name_below(&[format!("{:016x}", random.next()).as_bytes()], zone)
}

impl Plugin for Loop {
    fn name(&self) -> &'static str {
        "loop"
    }

    fn ask(&self, query: &Query, _rest: &Rest<'_>) -> Step {
        let state = &self.0;
        if query.qtype == Rtype::HINFO && query.name.ends_with(&state.zone) {
            // Each probe sets the count to 0; it passes here once on its way out.
            if state.seen.fetch_add(1, Ordering::Relaxed) == 0 {
                return Step::Next;
            }
            if !state.found.swap(true, Ordering::Relaxed) {
                error!(
                    "loop: what is forwarded comes back from {}: names outside the cluster get SERVFAIL until the upstream is \
                     another server than this one",
                    query.arrival.client
                );
            }
        }
        if state.found.load(Ordering::Relaxed) {
            return Step::Reply(Reply::failure(self.name(), "forwarding loop: the upstream leads back here"));
        }
        Step::Next
    }

    fn background(&self, router: &Arc<Router>) -> Option<BoxFuture<'static, ()>> {
        let (router, state) = (router.clone(), self.0.clone());
        let task = async move {
            let start = Instant::now();
            for at in PROBES {
                tokio::time::sleep(at.saturating_sub(start.elapsed())).await;
                state.probe(&router).await;
                while state.found.load(Ordering::Relaxed) {
                    tokio::time::sleep(RECHECK).await;
                    state.probe(&router).await;
                }
            }
        };
        Some(task.boxed())
    }
}

impl State {
    async fn probe(&self, router: &Arc<Router>) {
        // A new name each time, which no cache on the way knows.
        let Ok(name) = random_name(&self.random, &self.zone) else { return };
        self.seen.store(0, Ordering::Relaxed);
        let reply = router.resolve(&probe_query(name, self.random.next())).await;
        // No answer tells nothing: perhaps the upstream that leads back here is only away.
        let answered = reply.source == Source::Upstream && reply.rcode != Rcode::SERVFAIL;
        if answered && self.seen.load(Ordering::Relaxed) <= 1 && self.found.swap(false, Ordering::Relaxed) {
            info!("loop: what is forwarded does not come back any more");
        }
    }
}

fn probe_query(name: DnsName, random: u64) -> Query {
    let client = ([127, 0, 0, 1], 0).into();
    Query {
        id: 0,
        recursion_desired: true,
        checking_disabled: false,
        authentic_data: false,
        name,
        qtype: Rtype::HINFO,
        qclass: Class::IN,
        edns: None,
        options: Vec::new(),
        arrival: Arrival { client, transport: Transport::Udp, now: Instant::now(), random },
        depth: 1,
    }
}
