//! `bufsize`: the largest UDP answer, whatever the client offers, so that none is fragmented on the way.

use super::Plugin;
use crate::{
    corefile::{CorefileError, Directive},
    message::{OFFERED_UDP_SIZE, Query, Reply},
    program::SiteBuilder,
};

const NAME: &str = "bufsize";

/// `bufsize [SIZE]`
struct Bufsize(u16);

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let size = match directive.plain(0, 1)?.first() {
        None => OFFERED_UDP_SIZE,
        Some(word) => {
            let size = word.text.parse().ok().filter(|size| (512..=4096).contains(size));
            size.ok_or_else(|| word.error(format!("bufsize: {:?} is not a number from 512 to 4096", word.text)))?
        }
    };
    site.add(Bufsize(size));
    Ok(())
}

impl Plugin for Bufsize {
    fn name(&self) -> &'static str {
        NAME
    }

    fn answered(&self, _query: &Query, reply: &mut Reply) {
        reply.udp_limit = Some(self.0);
    }
}
