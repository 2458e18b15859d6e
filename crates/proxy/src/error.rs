/// What this crate's operations return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why Services are not as they should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a change or a listing. Nothing is half done: the next [`apply`](crate::mode::Mode::apply)
    /// reads the kernel's state again and does what is missing.
    #[error("cannot bring Services into the kernel ({mode} mode): {source}")]
    Kernel {
        /// Which mode tried it.
        mode: &'static str,
        /// What was tried, on what.
        source: podwire_kernel::Error,
    },

    /// The kernel does not have what the mode needs.
    #[error("{mode} mode cannot run here: {what}: {remedy} ({source})")]
    Missing {
        /// Which mode needs it.
        mode: &'static str,
        /// What there is not.
        what: &'static str,
        /// How to bring it.
        remedy: &'static str,
        /// What was tried, on what.
        source: podwire_kernel::Error,
    },

    /// `mode:` of the configuration names none of [`mode::MODES`](crate::mode::MODES).
    #[error("proxy mode {name:?} is not supported; supported: {supported}")]
    UnknownMode {
        /// What was asked for.
        name: String,
        /// The names that would do.
        supported: String,
    },
}
