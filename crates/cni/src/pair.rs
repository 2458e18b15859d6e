//! A veth pair with one end in the container: what `bridge` and `ptp` have in common.

use std::{os::fd::AsFd, thread, time::Duration};

use podwire_kernel::{
    ns::Namespace,
    route::{Link, LinkChange, Mac, NewLink, NewLinkKind, Peer, Route, RouteSocket},
};
use serde::Deserialize;

use crate::{Call, Error, Result, Verb, error::all, ipam::Ipam, mark, masquerade, pod};

/// The name of the host's end: the same for the same attachment, so that DEL finds it without the namespace.
pub fn host_name(call: &Call) -> String {
    name(call.network.bytes().chain(*b"/").chain(call.container_id.bytes()).chain(*b"/").chain(call.ifname.bytes()))
}

/// `veth` and eight hexadecimal digits that follow from `bytes`.
pub fn name(bytes: impl IntoIterator<Item = u8>) -> String {
    let hash = podwire_kernel::stable_hash(bytes);
    format!("veth{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff))
}

/// Makes the pair, the container's end at its place from the first moment, and marks the host's end and brings it up,
/// on the bridge with index `master` if there is one.
///
/// To create the link, and then make it a port, takes the kernel less than to do both at once: it need not become an
/// interface of the host first, with all that this brings.
pub fn make(
    host: &mut RouteSocket,
    call: &Call,
    (namespace, mac): (&Namespace, Option<Mac>),
    mtu: Option<u32>,
    master: Option<u32>,
) -> Result<Link> {
    let name = host_name(call);
    let peer = Peer { name: &call.ifname, mac, mtu, netns: Some(namespace.as_fd()) };
    let link = host.create_link(&NewLink { mtu, ..NewLink::new(&name, NewLinkKind::Veth(peer)) })?;
    let mark = mark::of(call);
    let mut changes = vec![LinkChange::Alias(&mark), LinkChange::Up(true)];
    changes.extend(master.map(|master| LinkChange::Master(Some(master))));
    if let Err(error) = host.change_link(link.index, &changes) {
        // Without its mark nobody will know it for ours.
        _ = host.delete_link_early(link.index);
        return Err(error.into());
    }
    Ok(Link { master, up: true, ..link })
}

/// Waits until packets can leave by the link with this index, whose other end was just brought up, and returns it as it is then.
///
/// The kernel notices a carrier later, up to a second for a bridge whose first port this is, and drops packets until then. To
/// ask for the link is to have it look (`linkwatch_sync_dev` in `rtnl_getlink`, Linux 6.8); others take their time.
///
/// # Errors
/// [`Error::TryAgain`].
pub fn wait_until_running(host: &mut RouteSocket, index: u32) -> Result<Link> {
    for pause in [0, 1, 4, 20, 75, 400, 500, 1000] {
        thread::sleep(Duration::from_millis(pause));
        match host.link_by_index(index)? {
            Some(link) if link.running => return Ok(link),
            Some(_) => {}
            None => return Err(Error::TryAgain("the container's link vanished while it was made".to_owned())),
        }
    }
    Err(Error::TryAgain(format!("link #{index} has no carrier after two seconds")))
}

/// What DEL and GC need of a configuration: what cannot be set up can still be torn down.
#[derive(Debug, Deserialize)]
pub struct Teardown {
    #[serde(rename = "ipMasq", default)]
    masquerade: bool,
    #[serde(default)]
    ipam: Ipam,
}

impl Teardown {
    /// (DEL, and an ADD that failed) Removes everything of this attachment. The addresses last: nobody may get one that still
    /// answers here.
    pub fn del(&self, call: &Call) -> Result<()> {
        let host = RouteSocket::open().map_err(Error::from);
        all([
            host.and_then(|mut host| mark::remove(&mut host, call, &host_name(call))),
            pod::remove(call, &call.ifname),
            if self.masquerade { masquerade::remove(call) } else { Ok(()) },
            self.ipam.call(call, Verb::Del).map(drop),
        ])
    }

    /// (GC) Removes everything of this network that is of no valid attachment.
    pub fn gc(&self, call: &Call) -> Result<()> {
        let host = RouteSocket::open().map_err(Error::from);
        all([
            host.and_then(|mut host| mark::remove_stale(&mut host, call)),
            if self.masquerade { masquerade::remove_stale(call) } else { Ok(()) },
            self.ipam.call(call, Verb::Gc).map(drop),
        ])
    }
}
