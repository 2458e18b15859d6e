//! Requests whose effect is there long before the kernel acknowledges them.

use std::{
    fmt::Arguments,
    os::fd::{AsRawFd, RawFd},
};

use super::{NLMSG_ERROR, Socket, flags, push_message, refusal, split};
use crate::{Error, Result, netlink::Message};

impl Socket {
    /// Sends a request from a child process, and returns when `group` is told that it is `done`, without waiting for the
    /// acknowledgement: `send` returns only with that.
    ///
    /// The child has no open file but this socket and ends when the kernel has answered. It is for programs that end
    /// soon themselves: until then it stays behind as a zombie.
    ///
    /// # Errors
    /// [`Error::Refused`] with the kernel's explanation; [`Error::Overrun`] or ETIMEDOUT when nobody said that it is
    /// done, which it may be nevertheless.
    pub fn request_behind(
        &mut self,
        (kind, payload): (u16, &[u8]),
        group: u32,
        done: impl Fn(&Message<'_>) -> bool,
        what: Arguments<'_>,
    ) -> Result<()> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::with_capacity(payload.len() + 20);
        push_message(&mut bytes, kind, flags::REQUEST | flags::ACK, sequence, payload);
        self.join(group)?;
        let told = send_from_child(self.fd.as_raw_fd(), &bytes, what).and_then(|()| self.hear(sequence, done, what));
        self.leave(group)?;
        told
    }

    fn hear(&mut self, sequence: u32, done: impl Fn(&Message<'_>) -> bool, what: Arguments<'_>) -> Result<()> {
        loop {
            let Some(datagram) = self.receive_datagram(0, what)? else {
                return Err(Error::refused(what, libc::ETIMEDOUT));
            };
            for message in split(datagram) {
                if message.kind == NLMSG_ERROR && message.sequence == sequence {
                    return refusal(&message).map_or(Ok(()), |refusal| Err(refusal.into_error(what)));
                }
                if done(&message) {
                    return Ok(());
                }
            }
        }
    }
}

/// Forks a process that sends `bytes` through `socket` and ends.
fn send_from_child(socket: RawFd, bytes: &[u8], what: Arguments<'_>) -> Result<()> {
    let number = libc::c_long::from(socket);
    // SAFETY: the child has this thread only. It makes system calls, which take no locks of the program's, on memory
    // that it has a copy of, and never returns from here.
    match unsafe { libc::fork() } {
        child if child < 0 => Err(Error::last(what)),
        0 => {
            // Whoever waits for the end of the caller's output, or for its locks, is not to wait for this.
            // SAFETY: the pointer and the length describe `bytes`.
            unsafe {
                libc::syscall(libc::SYS_close_range, 0, number - 1, 0);
                libc::syscall(libc::SYS_close_range, number + 1, libc::c_long::from(u32::MAX), 0);
                libc::send(socket, bytes.as_ptr().cast(), bytes.len(), 0);
                libc::_exit(0)
            }
        }
        _ => Ok(()),
    }
}
