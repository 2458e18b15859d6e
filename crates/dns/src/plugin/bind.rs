//! `bind`: the addresses that a server block is served on, instead of all.

use std::net::IpAddr;

use crate::{
    corefile::{CorefileError, Directive, Word},
    program::SiteBuilder,
};

/// `bind ADDRESS|INTERFACE… { except ADDRESS|INTERFACE… }`; an interface stands for the addresses that it has now.
pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let words = directive.arguments(1, usize::MAX)?;
    let mut except = Vec::new();
    for option in &directive.body {
        match option.name() {
            "except" => except.extend(addresses(option.plain(1, usize::MAX)?, site)?),
            _ => return Err(option.unknown_option("bind")),
        }
    }
    let wanted = addresses(words, site)?;
    let before = site.addresses.len();
    for address in wanted.into_iter().filter(|address| !except.contains(address)) {
        if !site.addresses.contains(&address) {
            site.addresses.push(address);
        }
    }
    match site.addresses.len() > before {
        true => Ok(()),
        // Without an address the block would be served on all of them.
        false => Err(directive.error("bind: no address is left")),
    }
}

fn addresses(words: &[Word], site: &SiteBuilder<'_>) -> Result<Vec<IpAddr>, CorefileError> {
    let mut all = Vec::new();
    for word in words {
        if let Ok(address) = word.text.parse() {
            all.push(address);
            continue;
        }
        let found = (site.environment.interfaces)(&word.text);
        let found = found.map_err(|error| word.error(format!("bind: cannot look up {:?}: {error}", word.text)))?;
        let found = found.ok_or_else(|| {
            word.error(format!("bind: {:?} is neither an address nor a network interface of this host", word.text))
        })?;
        // A link-local IPv6 address belongs to an interface, and an address alone does not say which.
        all.extend(
            found.into_iter().filter(|address| !matches!(address, IpAddr::V6(ip) if ip.is_unicast_link_local())),
        );
    }
    Ok(all)
}
