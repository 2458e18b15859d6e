use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
};

use super::udp::{
    BATCH, CONTROL, EMPTY_VECTOR, LocalEnd, UdpListener, empty_header, empty_name, encode_local_end, encode_name,
};

/// Datagrams to different clients, collected to be sent by one system call. Their memory is used again.
#[derive(Debug, Default)]
pub struct Answers {
    waiting: Vec<(Vec<u8>, SocketAddr, LocalEnd)>,
    spare: Vec<Vec<u8>>,
}

impl Answers {
    /// A buffer to write an answer into; what it holds is of no interest.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Adds a datagram for `client` that leaves from the address that the client used.
    pub fn push(&mut self, bytes: Vec<u8>, client: SocketAddr, from: LocalEnd) {
        self.waiting.push((bytes, client, from));
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends all of them (sendmmsg). One that cannot be sent does not keep the others: it is lost, as datagrams may be.
    ///
    /// # Errors
    /// The last thing that went wrong, once all were tried.
    pub fn send(&mut self, listener: &UdpListener) -> io::Result<()> {
        let (mut done, mut outcome) = (0, Ok(()));
        while done < self.waiting.len() {
            match self.send_some(done, listener) {
                Ok(sent) => done += sent.max(1),
                Err(error) => {
                    outcome = Err(error);
                    done += 1;
                }
            }
        }
        self.spare.extend(self.waiting.drain(..).map(|(bytes, ..)| bytes));
        self.spare.truncate(BATCH);
        outcome
    }

    fn send_some(&self, first: usize, listener: &UdpListener) -> io::Result<usize> {
        let mut names = [empty_name(); BATCH];
        let mut controls = [[0_u64; CONTROL]; BATCH];
        let mut vectors: [libc::iovec; BATCH] = std::array::from_fn(|_| EMPTY_VECTOR);
        let mut headers: [libc::mmsghdr; BATCH] = std::array::from_fn(|_| empty_header());
        let mut count = 0;
        for (((((bytes, client, from), header), vector), name), control) in
            self.waiting[first..].iter().zip(&mut headers).zip(&mut vectors).zip(&mut names).zip(&mut controls)
        {
            // The kernel only reads what a sent vector points to.
            *vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_namelen = encode_name(*client, name);
            header.msg_hdr.msg_name = (&raw mut *name).cast();
            header.msg_hdr.msg_controllen = encode_local_end(*from, control);
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            count += 1;
        }
        // SAFETY: the first `count` headers point to vectors, names and control buffers of their own, of the lengths that
        // they say, all alive until after the call, and the vectors to bytes of `self`, which the kernel only reads.
        #[allow(unsafe_code)]
        let sent =
            unsafe { libc::sendmmsg(listener.as_fd().as_raw_fd(), headers.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}
