//! `bind`: the addresses that a server block is served on, instead of all.

use crate::{
    corefile::{CorefileError, Directive},
    program::SiteBuilder,
};

/// `bind ADDRESS…`
pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    for word in directive.plain(1, usize::MAX)? {
        let address = word.text.parse().map_err(|_| {
            word.error(format!("bind: {:?} is no address; names of interfaces are not supported yet", word.text))
        })?;
        site.addresses.push(address);
    }
    Ok(())
}
