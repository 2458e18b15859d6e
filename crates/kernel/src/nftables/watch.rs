//! Telling what others change.

use super::{Table, decode, uapi};
use crate::{
    Error, Result,
    netlink::{Protocol, Socket},
};

/// Notifications of changes of nf_tables, in one network namespace.
#[derive(Debug)]
pub(super) struct Watch {
    socket: Socket,
    /// Notifications were lost, or others changed something while nobody watched.
    missed: bool,
}

impl Watch {
    /// Watches the network namespace that the calling thread is in, from now on.
    pub fn open() -> Result<Self> {
        let socket = Socket::open(Protocol::Netfilter)?;
        socket.join(uapi::GROUP)?;
        Ok(Self { socket, missed: false })
    }

    /// Does not watch while `change` is made by `own`, a socket: as long as anybody watches, the kernel writes a
    /// notification of every element. Whether somebody else changed something meanwhile is found by counting:
    /// `change` is one transaction if it succeeds.
    pub fn pause_for<T>(&mut self, own: &mut Socket, change: impl FnOnce(&mut Socket) -> Result<T>) -> Result<T> {
        self.socket.leave(uapi::GROUP)?;
        let before = generation(own);
        let changed = change(own);
        self.socket.join(uapi::GROUP)?;
        let expected = before?.wrapping_add(u32::from(changed.is_ok()));
        self.missed |= generation(own)? != expected;
        changed
    }

    /// Whether any notification since the last call is about one of `tables` and not of what socket `own` did.
    pub fn changed(&mut self, own: u32, tables: &[Table]) -> Result<bool> {
        let mut changed = std::mem::take(&mut self.missed);
        loop {
            match self.socket.receive(Some(std::time::Duration::ZERO), format_args!("wait for changes of nftables")) {
                Ok(messages) if messages.is_empty() => return Ok(changed),
                Ok(messages) => {
                    let foreign = messages.iter().filter(|message| message.port != own);
                    changed |= foreign.filter(is_news).any(|message| decode::is_about(message.payload, tables));
                }
                Err(Error::Overrun { .. }) => changed = true,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether a message tells of a change of an object, not of the transaction as a whole.
fn is_news(message: &crate::netlink::Message<'_>) -> bool {
    message.kind != uapi::SUBSYSTEM << 8 | uapi::msg::NEW_GENERATION
}

/// The number of the ruleset's state; every transaction adds one.
pub(super) fn generation(socket: &mut Socket) -> Result<u32> {
    let what = format_args!("ask for the generation of nftables");
    let kind = uapi::SUBSYSTEM << 8 | uapi::msg::GET_GENERATION;
    let messages = socket.request(kind, 0, &[0; 4], what)?;
    let payload = messages.first().map(|message| message.payload.to_vec()).unwrap_or_default();
    decode::generation(&payload).ok_or_else(|| Error::malformed(what, "no number"))
}
