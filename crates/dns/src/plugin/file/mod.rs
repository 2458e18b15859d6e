//! `file`: answers from a zone file (RFC 1035 5).

mod zone;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use domain::base::iana::Rtype;
use futures_util::{FutureExt, future::BoxFuture};
use tracing::{error, info, warn};

use self::zone::{Outcome, Zone};
use super::{Plugin, Step, fall::Fallthrough, watched::WatchedFile};
use crate::{
    corefile::{CorefileError, Directive},
    message::{DnsName, Query, Reply},
    program::{SiteBuilder, nearest},
    router::{Rest, Router},
};

const NAME: &str = "file";
/// How often CoreDNS looks for a changed file.
const RELOAD: Duration = Duration::from_secs(60);

/// `file DBFILE [ZONES…] { reload DURATION; reload_by_mtime; fallthrough [ZONES…] }`
struct File {
    origins: Vec<DnsName>,
    fallthrough: Fallthrough,
    book: Arc<Book>,
}

/// The file and the zones that are in force.
struct Book {
    file: WatchedFile,
    /// Whether a changed file is taken over whatever its serial number.
    by_mtime: bool,
    zones: RwLock<HashMap<DnsName, Arc<Zone>>>,
}

impl Book {
    /// Reads the file if it changed; one that is broken or gone leaves the zones as they are.
    fn look(&self, origins: &[DnsName]) -> Result<(), String> {
        let Some(read) = self.file.changed() else { return Ok(()) };
        let path = self.file.path.display();
        let (_, text) = read.map_err(|error| format!("cannot read {path}: {error}"))?;
        for origin in origins {
            let zone = Zone::parse(&text, origin).map_err(|error| format!("{path}:{error}"))?;
            let mut zones = self.zones.write().unwrap_or_else(PoisonError::into_inner);
            let name = origin.fmt_with_dot();
            match zones.get(origin) {
                Some(known) if !self.by_mtime && known.serial() == zone.serial() => {
                    warn!("file: {path} changed but not the serial number of zone {name}, which stays as it was");
                    continue;
                }
                Some(_) => info!("file: zone {name} is taken over from the changed {path}"),
                None => {}
            }
            zones.insert(origin.clone(), Arc::new(zone));
        }
        Ok(())
    }
}

impl Plugin for File {
    fn name(&self) -> &'static str {
        NAME
    }

    fn ask(&self, query: &Query, _rest: &Rest<'_>) -> Step {
        let Some(origin) = nearest(&self.origins, &query.name) else { return Step::Next };
        if matches!(query.qtype, Rtype::AXFR | Rtype::IXFR) {
            return Step::Reply(Reply::code(domain::base::iana::Rcode::REFUSED, NAME));
        }
        let zone = self.book.zones.read().unwrap_or_else(PoisonError::into_inner).get(origin).cloned();
        let Some(zone) = zone else {
            let path = self.book.file.path.display();
            return Step::Reply(Reply::failure(NAME, format!("{path} could not be read yet")));
        };
        match zone.answer(query) {
            Outcome::Missing(_) if self.fallthrough.takes(&query.name) => Step::Next,
            Outcome::Reply(reply) | Outcome::Missing(reply) => Step::Reply(reply),
            Outcome::Alias(reply, target) => Step::Follow(reply, target),
        }
    }

    fn background(&self, _router: &Arc<Router>) -> Option<BoxFuture<'static, ()>> {
        let (book, origins) = (self.book.clone(), self.origins.clone());
        let look = move || {
            if let Err(error) = book.look(&origins) {
                error!("file: {error}; what was read before stays in force");
            }
        };
        Some(WatchedFile::watch(self.book.file.interval, look).boxed())
    }
}

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let (path, names) = directive.arguments(1, usize::MAX)?.split_at(1);
    let path = &path[0];
    let origins = site.zones_or_own(names)?;
    let mut file = WatchedFile::new(&path.text, RELOAD);
    let (mut by_mtime, mut fallthrough) = (false, Fallthrough::default());
    for option in &directive.body {
        match option.name() {
            "reload" => {
                let [word] = option.plain(1, 1)? else { continue };
                file.interval = word.duration()?;
            }
            "reload_by_mtime" => {
                option.plain(0, 0)?;
                by_mtime = true;
            }
            "fallthrough" => fallthrough = Fallthrough::new(option)?,
            // CoreDNS: upstream does nothing any more.
            "upstream" => {}
            _ => return Err(option.unknown_option(NAME)),
        }
    }
    if !file.path.exists() {
        let missing = format!("{NAME}: {} is not there", path.text);
        if file.interval.is_zero() {
            return Err(path.error(missing));
        }
        warn!("{missing} yet; its zones get SERVFAIL");
    }
    let book = Book { file, by_mtime, zones: RwLock::default() };
    book.look(&origins).map_err(|error| path.error(format!("{NAME}: {error}")))?;
    site.add(File { origins, fallthrough, book: Arc::new(book) });
    Ok(())
}
