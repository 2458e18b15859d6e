//! `ready`: says over HTTP whether every plugin can do its work.

use crate::{
    corefile::{CorefileError, Directive},
    program::{Page, SiteBuilder},
};

/// CoreDNS's default port.
const PORT: u16 = 8181;

/// `ready [ADDRESS] { monitor until-ready|continuously }`
pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    site.only_once(directive)?;
    let address = directive.arguments(0, 1)?.first();
    for option in &directive.body {
        if option.name() != "monitor" {
            return Err(option.unknown_option("ready"));
        }
        let [mode] = option.plain(1, 1)? else { continue };
        site.program.ready_continuously |= match mode.text.as_str() {
            "until-ready" => false,
            "continuously" => true,
            other => return Err(mode.error(format!("monitor: {other:?} is neither until-ready nor continuously"))),
        };
    }
    site.page(Page::Ready, address, PORT)
}
