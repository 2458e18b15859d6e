use std::{fmt, io};

/// What this crate's operations return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the kernel did not do something. `what` says what was tried and on what, in the form "create bridge cni0".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel answered a netlink request or a system call with an error.
    #[error("cannot {what}: {}{}", Errno(*errno), Reason(message.as_deref()))]
    Refused {
        /// What was tried, on what.
        what: String,
        /// The positive error number, as in `libc::EEXIST`.
        errno: i32,
        /// The kernel's own explanation (netlink extended ack), where it gave one.
        message: Option<String>,
    },

    /// Messages were lost since the reader was too slow or the answer too large. What is known of the kernel's state is
    /// stale: dump it again.
    #[error(
        "cannot {what}: the netlink socket's receive buffer overran and messages were lost; the state must be read again"
    )]
    Overrun {
        /// What was tried, on what.
        what: String,
    },

    /// Bytes from the kernel could not be understood.
    #[error("cannot {what}: the kernel's answer is not understood: {detail}")]
    Malformed {
        /// What was tried, on what.
        what: String,
        /// What is wrong with the bytes.
        detail: String,
    },

    /// The arguments can never work; the kernel was not asked.
    #[error("cannot {what}: {detail}")]
    Invalid {
        /// What was tried, on what.
        what: String,
        /// What is wrong with the arguments.
        detail: String,
    },

    /// A program that had to be run did not do it.
    #[error("cannot {what}: {message}")]
    Program {
        /// Which program, and how it was called.
        what: String,
        /// What it said, and the line of its input that it said it about.
        message: String,
    },

    /// A file operation failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// The failure.
        source: io::Error,
    },
}

impl Error {
    /// A refusal without an explanation from the kernel.
    pub fn refused(what: impl fmt::Display, errno: i32) -> Self {
        Self::Refused { what: what.to_string(), errno, message: None }
    }

    /// The failure of a system call or a file operation.
    pub fn io(what: impl fmt::Display, source: io::Error) -> Self {
        Self::Io { what: what.to_string(), source }
    }

    /// The calling thread's last system call failed (reads `errno`).
    pub(crate) fn last(what: impl fmt::Display) -> Self {
        Self::io(what, io::Error::last_os_error())
    }

    /// Arguments that can never work.
    pub fn invalid(what: impl fmt::Display, detail: impl fmt::Display) -> Self {
        Self::Invalid { what: what.to_string(), detail: detail.to_string() }
    }

    /// Bytes from the kernel that make no sense.
    pub fn malformed(what: impl fmt::Display, detail: impl fmt::Display) -> Self {
        Self::Malformed { what: what.to_string(), detail: detail.to_string() }
    }

    /// The error number, as in `libc::EEXIST`, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Overrun { .. } => Some(libc::ENOBUFS),
            Self::Io { source, .. } => source.raw_os_error(),
            Self::Malformed { .. } | Self::Invalid { .. } | Self::Program { .. } => None,
        }
    }

    /// The object is not there: ENOENT, ENODEV (links), ESRCH (routes), EADDRNOTAVAIL (addresses).
    pub fn is_not_found(&self) -> bool {
        matches!(self.errno(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::ESRCH | libc::EADDRNOTAVAIL))
    }

    /// A set of nftables has no room for an element: ENFILE.
    pub fn set_is_full(&self) -> bool {
        self.errno() == Some(libc::ENFILE)
    }

    /// The object is there already: EEXIST.
    pub fn already_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// The caller lacks a capability: EPERM or EACCES.
    pub fn is_not_permitted(&self) -> bool {
        matches!(self.errno(), Some(libc::EPERM | libc::EACCES))
    }

    /// The kernel cannot make sense of an argument: EINVAL.
    pub fn is_invalid_argument(&self) -> bool {
        self.errno() == Some(libc::EINVAL)
    }

    /// The kernel does not have this: EOPNOTSUPP.
    pub fn is_unsupported(&self) -> bool {
        self.errno() == Some(libc::EOPNOTSUPP)
    }

    /// The same operation may succeed when tried again: EAGAIN, EBUSY, EINTR, or messages were lost.
    pub fn is_transient(&self) -> bool {
        matches!(self.errno(), Some(libc::EAGAIN | libc::EBUSY | libc::EINTR | libc::ENOBUFS))
    }
}

/// Helpers for teardown, where an object that is gone already is as good as deleted.
pub trait ResultExt {
    /// Turns "not found" into success.
    ///
    /// # Errors
    /// Every other error, unchanged.
    fn or_gone(self) -> Result<()>;

    /// Turns "already exists" into success.
    ///
    /// # Errors
    /// Every other error, unchanged.
    fn or_exists(self) -> Result<()>;
}

impl ResultExt for Result<()> {
    fn or_gone(self) -> Result<()> {
        self.or_else(|error| if error.is_not_found() { Ok(()) } else { Err(error) })
    }

    fn or_exists(self) -> Result<()> {
        self.or_else(|error| if error.already_exists() { Ok(()) } else { Err(error) })
    }
}

/// Prints an error number as the C library words it.
struct Errno(i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

/// Prints the kernel's explanation, if any, after a colon.
struct Reason<'a>(Option<&'a str>);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |reason| write!(f, ": {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_tried_and_why_it_failed() {
        let error = Error::Refused {
            what: "create vxlan flannel.1".to_owned(),
            errno: libc::EEXIST,
            message: Some("A VXLAN device with the specified VNI already exists".to_owned()),
        };
        assert_eq!(
            error.to_string(),
            "cannot create vxlan flannel.1: File exists (os error 17): A VXLAN device with the specified VNI already exists"
        );
        assert!(error.already_exists());
        assert!(!error.is_not_found());
    }

    #[test]
    fn teardown_takes_gone_for_deleted() {
        assert!(Err(Error::refused("delete link x", libc::ENODEV)).or_gone().is_ok());
        assert!(Err(Error::refused("delete link x", libc::EPERM)).or_gone().is_err());
    }
}
