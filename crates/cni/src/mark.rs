//! The mark on links on the host, shown as `alias` by `ip link`: whose they are.

use podwire_kernel::{
    ResultExt,
    route::{Route, RouteSocket},
};

use crate::{Call, Error, Result, error::all};

/// IFALIASZ, without the terminator.
const LONGEST: usize = 255;

/// The mark of the attachment that `call` is about: `podwire-cni:NETWORK/CONTAINER-ID/INTERFACE`.
pub fn of(call: &Call) -> String {
    mark(&call.network, &call.container_id, &call.ifname)
}

fn mark(network: &str, container_id: &str, ifname: &str) -> String {
    let mut mark = format!("{}{container_id}/{ifname}", prefix(network));
    mark.truncate(mark.floor_char_boundary(LONGEST));
    mark
}

/// What every mark begins with.
pub const LABEL: &str = "podwire-cni:";

fn prefix(network: &str) -> String {
    format!("{LABEL}{network}/")
}

/// Deletes the link called `name` if it has this attachment's mark.
pub fn remove(host: &mut RouteSocket, call: &Call, name: &str) -> Result<()> {
    match host.link(name)? {
        Some(link) if link.alias == Some(of(call)) => Ok(host.delete_link_early(link.index).or_gone()?),
        _ => Ok(()),
    }
}

/// (GC) Deletes every link with a mark of this network that is in no valid attachment; goes on after an error.
pub fn remove_stale(host: &mut RouteSocket, call: &Call) -> Result<()> {
    let valid = call.valid_attachments()?;
    let valid: Vec<String> = valid.iter().map(|(id, ifname)| mark(&call.network, id, ifname)).collect();
    let ours = prefix(&call.network);
    let links = host.links()?;
    let stale = links
        .iter()
        .filter(|link| link.alias.as_ref().is_some_and(|mark| mark.starts_with(&ours) && !valid.contains(mark)));
    all(stale.map(|link| host.delete_link(link.index).or_gone().map_err(Error::from)))
}
