//! `health`: says over HTTP that the process is alive, and how long it stays so after the order to stop.

use crate::{
    corefile::{CorefileError, Directive},
    program::{Page, SiteBuilder},
};

/// CoreDNS's default port.
const PORT: u16 = 8080;

/// `health [ADDRESS] { lameduck DURATION }`
pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let address = directive.arguments(0, 1)?.first();
    for option in &directive.body {
        match option.name() {
            "lameduck" => {
                let [duration] = option.plain(1, 1)? else { continue };
                site.program.lameduck = duration.duration()?;
            }
            _ => return Err(option.unknown_option("health")),
        }
    }
    site.page(Page::Health, address, PORT)
}
