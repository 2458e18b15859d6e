//! `ready`: says over HTTP whether every plugin can do its work.

use crate::{
    corefile::{CorefileError, Directive},
    program::{Page, SiteBuilder},
};

/// CoreDNS's default port.
const PORT: u16 = 8181;

/// `ready [ADDRESS]`
pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let address = directive.plain(0, 1)?.first();
    site.page(Page::Ready, address, PORT)
}
