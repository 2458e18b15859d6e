//! Tells when a link goes away: someone may delete the overlay's device by hand.

use podwire_kernel::netlink::{Message, Protocol, Socket, u32_at};
use tokio::sync::mpsc;
use tracing::warn;

/// Links that went away, by index. `None`: some notifications were lost, it may have been any.
pub(super) type Removals = mpsc::UnboundedReceiver<Option<u32>>;

/// Watches the calling thread's network namespace, on a thread of its own that ends with the process.
pub(super) fn removals() -> anyhow::Result<Removals> {
    let mut socket = Socket::open(Protocol::Route)?;
    socket.join(libc::RTNLGRP_LINK)?;
    let (tell, removals) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("links".to_owned()).spawn(move || {
        while !tell.is_closed() {
            match socket.receive(None, format_args!("wait for changes of links")) {
                Ok(messages) => messages.iter().filter_map(|message| removed(&message)).for_each(|index| {
                    let _ = tell.send(Some(index));
                }),
                Err(error) if error.is_transient() => {
                    let _ = tell.send(None);
                }
                Err(error) => {
                    warn!(%error, "links are no longer watched");
                    return;
                }
            }
        }
    })?;
    Ok(removals)
}

/// The link that a message says is gone. Source of the layout: `struct ifinfomsg`, linux/rtnetlink.h.
fn removed(message: &Message<'_>) -> Option<u32> {
    // Family AF_BRIDGE says that a port left its bridge.
    let is_link = message.payload.first().copied() == Some(libc::AF_UNSPEC as u8);
    (message.kind == libc::RTM_DELLINK && is_link).then(|| u32_at(message.payload, 4)).flatten()
}
