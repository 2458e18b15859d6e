//! `errors`: logs why a query could not be answered.

use tracing::error;

use super::Plugin;
use crate::{
    corefile::{CorefileError, Directive},
    message::{Query, Reply},
    program::SiteBuilder,
};

struct Errors;

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    directive.arguments(0, 0)?;
    if let Some(option) = directive.body.first() {
        return Err(match option.name() {
            "consolidate" | "stacktrace" | "show_first" => option.unsupported_option("errors"),
            _ => option.unknown_option("errors"),
        });
    }
    site.add(Errors);
    Ok(())
}

impl Plugin for Errors {
    fn name(&self) -> &'static str {
        "errors"
    }

    fn answered(&self, query: &Query, reply: &mut Reply) {
        if let Some(error) = reply.error.as_ref().filter(|_| query.is_from_client()) {
            error!(client = %query.arrival.client, "{} {}: {}: {error}", query.name.fmt_with_dot(), query.qtype, reply.plugin);
        }
    }
}
