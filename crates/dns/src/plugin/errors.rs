//! `errors`: logs why a query could not be answered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use regex::bytes::Regex;
use tokio::sync::Notify;
use tracing::{debug, error, info, warn};

use super::{Plugin, pattern::regex};
use crate::{
    corefile::{CorefileError, Directive, Word},
    message::{Query, Reply},
    program::SiteBuilder,
    router::Router,
};

const NAME: &str = "errors";

/// `errors { consolidate DURATION REGEX [LEVEL] [show_first]; stacktrace }`
struct Errors(Vec<Arc<Consolidation>>);

/// Errors that are counted and told together.
struct Consolidation {
    period: Duration,
    regex: Regex,
    level: Level,
    show_first: bool,
    /// Errors since the period began.
    count: AtomicU64,
    begun: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Debug,
    Info,
    Warning,
    Error,
}

impl Level {
    fn log(self, text: &str) {
        match self {
            Self::Debug => debug!("{text}"),
            Self::Info => info!("{text}"),
            Self::Warning => warn!("{text}"),
            Self::Error => error!("{text}"),
        }
    }
}

impl Consolidation {
    /// Counts an error; says whether it is to be told by itself as well.
    fn count(&self) -> bool {
        let first = self.count.fetch_add(1, Ordering::Relaxed) == 0;
        if first {
            self.begun.notify_one();
        }
        first && self.show_first
    }

    /// Ends the period: what there is to tell about it.
    fn summary(&self) -> Option<String> {
        let count = self.count.swap(0, Ordering::Relaxed);
        // A single one was told when it happened.
        let enough = count > u64::from(self.show_first);
        enough.then(|| format!("{count} errors like '{}' occurred in last {:?}", self.regex.as_str(), self.period))
    }

    async fn run(self: Arc<Self>) {
        loop {
            self.begun.notified().await;
            tokio::time::sleep(self.period).await;
            if let Some(summary) = self.summary() {
                self.level.log(&summary);
            }
        }
    }
}

impl Drop for Consolidation {
    fn drop(&mut self) {
        if let Some(summary) = self.summary() {
            self.level.log(&summary);
        }
    }
}

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    site.only_once(directive)?;
    if let Some(file) = directive.arguments(0, 1)?.first().filter(|file| file.text != "stdout") {
        return Err(file.error("errors: only stdout, as in CoreDNS"));
    }
    let mut consolidations = Vec::new();
    for option in &directive.body {
        match option.name() {
            "consolidate" => consolidations.push(Arc::new(consolidation(option)?)),
            // A panic is told with its place anyway.
            "stacktrace" => drop(option.plain(0, 0)?),
            _ => return Err(option.unknown_option(NAME)),
        }
    }
    site.add(Errors(consolidations));
    Ok(())
}

fn consolidation(option: &Directive) -> Result<Consolidation, CorefileError> {
    let [period, pattern, rest @ ..] = option.plain(2, 4)? else {
        return Err(option.error("consolidate needs a duration and a regular expression"));
    };
    let (show_first, level) = match rest {
        [level @ .., last] if last.text == "show_first" => (true, level),
        level => (false, level),
    };
    let level = match level {
        [] => Level::Error,
        [word] => self::level(word)?,
        [_, word, ..] => return Err(word.error(format!("consolidate: unexpected {:?}", word.text))),
    };
    let (count, begun) = (AtomicU64::new(0), Notify::new());
    Ok(Consolidation { period: period.duration()?, regex: regex(pattern)?, level, show_first, count, begun })
}

fn level(word: &Word) -> Result<Level, CorefileError> {
    Ok(match word.text.as_str() {
        "debug" => Level::Debug,
        "info" => Level::Info,
        "warning" => Level::Warning,
        "error" => Level::Error,
        other => {
            let message = format!("consolidate: {other:?} is not one of debug, info, warning, error, show_first");
            return Err(word.error(message));
        }
    })
}

impl Plugin for Errors {
    fn name(&self) -> &'static str {
        NAME
    }

    fn answered(&self, query: &Query, reply: &mut Reply) {
        let Some(error) = reply.error.as_ref().filter(|_| query.is_from_client()) else { return };
        let line = || format!("{} {}: {}: {error}", query.name.fmt_with_dot(), query.qtype, reply.plugin);
        match self.0.iter().find(|known| known.regex.is_match(error.as_bytes())) {
            None => error!(client = %query.arrival.client, "{}", line()),
            Some(known) => {
                if known.count() {
                    known.level.log(&line());
                }
            }
        }
    }

    fn background(&self, _router: &Arc<Router>) -> Option<BoxFuture<'static, ()>> {
        let all: Vec<_> = self.0.iter().map(|known| known.clone().run()).collect();
        (!all.is_empty()).then(|| join_all(all).map(drop).boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consolidation(show_first: bool) -> Consolidation {
        Consolidation {
            period: Duration::from_secs(30),
            regex: Regex::new("^no .*").unwrap(),
            level: Level::Info,
            show_first,
            count: AtomicU64::new(0),
            begun: Notify::new(),
        }
    }

    #[test]
    fn errors_are_told_together() {
        let known = consolidation(false);
        assert_eq!((0..3).filter(|_| known.count()).count(), 0);
        assert_eq!(known.summary().unwrap(), "3 errors like '^no .*' occurred in last 30s");
        assert_eq!(known.summary(), None);
    }

    #[test]
    fn the_first_may_be_told_at_once_and_then_not_again() {
        let known = consolidation(true);
        assert!(known.count());
        assert_eq!(known.summary(), None);
        assert_eq!((0..3).map(|_| known.count()).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(known.summary().unwrap(), "3 errors like '^no .*' occurred in last 30s");
    }
}
