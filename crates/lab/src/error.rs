use std::{fmt::Display, io};

/// What can go wrong in a lab.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user asked for something that cannot be; the text names the flag or the fact.
    #[error("{0}")]
    Invalid(String),
    /// The machine lacks something; the text says what, and what to do.
    #[error("{0}")]
    Unavailable(String),
    /// A system call or file operation failed.
    #[error("cannot {tried}: {error}")]
    Io {
        /// What was tried, on what.
        tried: String,
        /// Why it failed; part of the text, so not a source to be printed again.
        error: io::Error,
    },
    /// The kernel refused something.
    #[error("{0}")]
    Kernel(podwire_kernel::Error),
    /// The lab's API server, or a client of it, failed.
    #[error("cannot {tried}: {reason}")]
    Api {
        /// What was tried, on what.
        tried: String,
        /// The error with its causes.
        reason: String,
    },
    /// A part of the lab ended or did not come up.
    #[error("{0}")]
    Failed(String),
}

impl From<podwire_kernel::Error> for Error {
    fn from(error: podwire_kernel::Error) -> Self {
        Self::Kernel(error)
    }
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what was tried, where an error of another crate goes up as one of ours.
pub(crate) trait Context<T> {
    /// Adds "cannot `tried`: " in front of the error.
    fn trying<W: Display>(self, tried: impl FnOnce() -> W) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn trying<W: Display>(self, tried: impl FnOnce() -> W) -> Result<T> {
        self.map_err(|error| Error::Io { tried: tried().to_string(), error })
    }
}
