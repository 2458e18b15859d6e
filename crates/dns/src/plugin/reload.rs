//! `reload`: takes a changed Corefile over without a restart.

use std::time::Duration;

use crate::{
    corefile::{CorefileError, Directive},
    program::SiteBuilder,
};

/// How often to look where the directive does not say: reading one small file is cheap, and the change is awaited.
const INTERVAL: Duration = Duration::from_secs(2);
/// CoreDNS's lower bound.
const SHORTEST: Duration = Duration::from_secs(2);

/// `reload [INTERVAL] [JITTER]`, or `reload off`. The jitter is accepted and not needed: what differs between replicas
/// here is when they started.
pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let interval = match directive.plain(0, 2)? {
        [] => Some(INTERVAL),
        [off] if off.text == "off" => None,
        [interval, jitter @ ..] => {
            jitter.iter().try_for_each(|jitter| jitter.duration().map(drop))?;
            let duration = interval.duration()?;
            if duration < SHORTEST {
                return Err(interval.error("reload: the shortest interval is 2s"));
            }
            Some(duration)
        }
    };
    site.program.reload = interval;
    Ok(())
}
