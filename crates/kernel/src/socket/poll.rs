use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{
        EventfdFlags, Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
        eventfd,
    },
    io::Errno,
};

use crate::{Result, process::tried};

/// What to be told about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// As long as there is something to read.
    Reading,
    /// Once each time it becomes readable or writable: remember it until "would block".
    Edges,
    /// Nothing for now.
    Nothing,
}

impl Interest {
    const fn flags(self) -> EventFlags {
        match self {
            Self::Reading => EventFlags::IN,
            Self::Edges => EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET),
            Self::Nothing => EventFlags::empty(),
        }
    }
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// The number that the file was added with.
    pub token: u64,
    /// A read finds something: data, an end or an error.
    pub readable: bool,
    /// A write finds room or an error.
    pub writable: bool,
}

/// Waits for many files at once (epoll).
#[derive(Debug)]
pub struct Poller(OwnedFd);

impl Poller {
    /// Makes one that waits for nothing.
    ///
    /// # Errors
    /// No more files can be opened.
    pub fn new() -> Result<Self> {
        epoll::create(CreateFlags::CLOEXEC).map(Self).map_err(tried("make an epoll set"))
    }

    /// Begins to watch a file; closing it ends that.
    ///
    /// # Errors
    /// It is watched already, or memory is short.
    pub fn add(&self, file: impl AsFd, token: u64, interest: Interest) -> Result<()> {
        epoll::add(&self.0, file, EventData::new_u64(token), interest.flags()).map_err(tried("watch a file"))
    }

    /// Changes what to be told about a file.
    ///
    /// # Errors
    /// It is not watched.
    pub fn modify(&self, file: impl AsFd, token: u64, interest: Interest) -> Result<()> {
        epoll::modify(&self.0, file, EventData::new_u64(token), interest.flags()).map_err(tried("watch a file"))
    }

    /// Waits until something happens or `timeout` has passed (`None`: for ever), and puts what happened into `ready`.
    ///
    /// # Errors
    /// None in practice; an interruption by a signal is a wait without events.
    pub fn wait(&self, ready: &mut Vec<Ready>, timeout: Option<Duration>) -> Result<()> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut events = [MaybeUninit::<Event>::uninit(); 256];
        ready.clear();
        match epoll::wait(&self.0, events.as_mut_slice(), timeout.as_ref()) {
            Ok((events, _)) => ready.extend(events.iter().map(decode)),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(tried("wait for files")(errno)),
        }
        Ok(())
    }
}

fn decode(event: &Event) -> Ready {
    let flags = event.flags;
    let ended = flags.intersects(EventFlags::ERR | EventFlags::HUP);
    Ready {
        token: event.data.u64(),
        readable: ended || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
        writable: ended || flags.contains(EventFlags::OUT),
    }
}

/// Wakes a thread that waits in [`Poller::wait`].
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// Makes one and lets `poller` watch it.
    ///
    /// # Errors
    /// No more files can be opened.
    pub fn new(poller: &Poller, token: u64) -> Result<Self> {
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(tried("make an eventfd"))?;
        poller.add(&waker, token, Interest::Edges)?;
        Ok(Self(waker))
    }

    /// Wakes it.
    pub fn wake(&self) {
        // It fails only when the counter is full: the thread is being woken then.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}
