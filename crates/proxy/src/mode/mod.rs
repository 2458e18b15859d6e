//! Proxy modes: each spells the same plan in one of the kernel's languages.

pub mod iptables;
pub mod ipvs;
pub mod nftables;
pub mod userspace;

mod settings;
pub mod trace;

use podwire_kernel::conntrack::Filter;
use podwire_model::{Family, Protocol};

use crate::{
    Changes, Error, Result,
    plan::{Backend, Entry, Frontend},
};

pub use settings::{DetectLocal, IpvsSettings, NodePortAddresses, Settings};

/// UDP flows that connection tracking still sends where they should no longer go. Delete them after the rules changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StaleFlows {
    /// Flows that entered at a frontend and go to a backend that it no longer has.
    To(Frontend, Backend),
    /// Flows that entered at a frontend before it had backends, and so go nowhere.
    Untranslated(Frontend),
    /// Flows that entered at a frontend and were redirected to a port of this node that it no longer leads to.
    Redirected(Frontend, u16),
}

impl StaleFlows {
    /// The flows, for connection tracking.
    pub fn filter(&self) -> Filter {
        let (Self::To(frontend, _) | Self::Untranslated(frontend) | Self::Redirected(frontend, _)) = self;
        let address = match frontend.entry {
            Entry::Address(address) => Some(address),
            Entry::NodePort(_) => None,
        };
        let (reply_source, reply_port) = match self {
            Self::To(_, backend) => (Some(backend.address), backend.port),
            Self::Untranslated(_) => (address, frontend.port),
            Self::Redirected(_, port) => (None, *port),
        };
        Filter {
            family: frontend.entry.family(),
            protocol: frontend.protocol.number(),
            original_destination: address,
            original_port: Some(frontend.port),
            reply_source,
            reply_port: Some(reply_port),
        }
    }
}

/// What one [`Mode::apply`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Whether the whole state was compared with the kernel's, not just what changed.
    pub full: bool,
    /// How many objects (chains, elements, …) were written or deleted.
    pub written: usize,
    /// Flows to delete. After a start also those that an earlier run sent to what is gone since.
    pub stale: Vec<StaleFlows>,
    /// Something that nothing uses any more was left, since packets may be on their way through it: call
    /// [`Mode::tidy`] in a second.
    pub untidy: bool,
}

impl Applied {
    /// Notes what a change of backends at a UDP frontend leaves behind.
    fn note_stale(&mut self, frontend: Frontend, old: &[Backend], new: &[Backend]) {
        if frontend.protocol != Protocol::Udp {
            return;
        }
        let gone = old.iter().filter(|backend| !new.contains(backend));
        self.stale.extend(gone.map(|backend| StaleFlows::To(frontend, *backend)));
        if old.is_empty() && !new.is_empty() {
            self.stale.push(StaleFlows::Untranslated(frontend));
        }
    }
}

/// A mode at work.
pub trait Mode: Send {
    /// Brings changes into the kernel. The first call must carry everything: what the kernel holds of an earlier run and
    /// nothing asks for is removed then. After an error call again, with no changes or more of them: nothing that was
    /// handed over is forgotten.
    ///
    /// # Errors
    /// [`Error::Kernel`]; established connections are not harmed by it.
    fn apply(&mut self, changes: Changes) -> Result<Applied>;

    /// Removes what was unused already at the last call and still is. Calls must be far enough apart for every packet
    /// to have passed (a second). Says whether another call is needed.
    ///
    /// # Errors
    /// As [`Mode::apply`]; call that next.
    fn tidy(&mut self) -> Result<bool>;

    /// Whether somebody else changed what this mode made since the last call; if so, the next [`Mode::apply`] reads the
    /// kernel and repairs it. Does not block and is cheap: it is called a few times a second.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn disturbed(&mut self) -> Result<bool>;
}

/// One line of [`MODES`].
pub struct Description {
    /// The value of `mode:` in the configuration.
    pub name: &'static str,
    /// Whether endpoints see the client's address where the plan does not masquerade it.
    pub keeps_sources: bool,
    /// Whether the running kernel has what the mode needs.
    ///
    /// # Errors
    /// What is missing, and what would bring it.
    pub probe: fn() -> Result<()>,
    /// Starts the mode for the network namespace that the calling thread is in.
    pub open: fn(&Settings) -> Result<Box<dyn Mode>>,
    /// Removes everything that the mode ever left in the kernel; nothing to remove is no error. Another mode may be at
    /// work by now: what that one uses as well stays.
    pub cleanup: fn() -> Result<()>,
}

/// Every mode there is.
pub const MODES: &[Description] = &[nftables::MODE, iptables::MODE, ipvs::MODE, userspace::MODE];

/// The mode of that name.
///
/// # Errors
/// [`Error::UnknownMode`] with the names there are.
pub fn find(name: &str) -> Result<&'static Description> {
    MODES.iter().find(|mode| mode.name == name).ok_or_else(|| Error::UnknownMode {
        name: name.to_owned(),
        supported: MODES.iter().map(|mode| mode.name).collect::<Vec<_>>().join(", "),
    })
}

/// Both address families, in the order in which modes handle them.
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
