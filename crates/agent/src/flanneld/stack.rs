//! The overlay of one address family, and what its peers have to do with it.

use std::collections::BTreeMap;

use podwire_kernel::route::{Change, RouteSocket};
use podwire_model::{Family, Lease, Name};
use podwire_overlay::{Effect, Error, Outcome, Overlay, Site, backend::Backend};
use tracing::{error, info, warn};

use super::metrics::{self, Metrics};
use crate::events::Recorder;

/// Why nothing new is planned for a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trouble {
    /// It runs another backend than this node, as some do while the backend changes: it is reached as before.
    Elsewhere(String),
    /// Its lease cannot be used.
    Refused(String),
}

/// Peers' troubles, counted as they come and go: there may be thousands, and each change is told in metrics.
#[derive(Debug, Default)]
struct Troubles {
    of: BTreeMap<Name, Trouble>,
    /// How many are [`Trouble::Elsewhere`].
    elsewhere: usize,
}

impl Troubles {
    fn set(&mut self, node: &Name, trouble: Option<Trouble>) {
        let is_elsewhere = |trouble: &Option<Trouble>| usize::from(matches!(trouble, Some(Trouble::Elsewhere(_))));
        self.elsewhere += is_elsewhere(&trouble);
        let before = match trouble {
            Some(trouble) => self.of.insert(node.clone(), trouble),
            None => self.of.remove(node),
        };
        self.elsewhere -= is_elsewhere(&before);
    }

    fn keep(&mut self, is_kept: impl Fn(&Name) -> bool) {
        self.of.retain(|node, _| is_kept(node));
        self.elsewhere = self.of.values().filter(|trouble| matches!(trouble, Trouble::Elsewhere(_))).count();
    }
}

/// An [`Overlay`] with what is told about it.
#[derive(Debug)]
pub(super) struct Stack {
    pub(super) overlay: Overlay,
    troubles: Troubles,
    recorder: Recorder,
    metrics: Metrics,
}

/// As metrics have it.
pub(super) const fn label(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

impl Stack {
    /// An overlay without peers; what an earlier run left of another backend is kept until [`Overlay::release`].
    pub(super) fn new(
        backend: Box<dyn Backend>,
        site: Site,
        (recorder, metrics): (Recorder, Metrics),
    ) -> Result<Self, Error> {
        let mut overlay = Overlay::new(backend, site)?;
        overlay.hold();
        Ok(Self { overlay, troubles: Troubles::default(), recorder, metrics })
    }

    pub(super) fn family(&self) -> Family {
        self.overlay.site().family()
    }

    /// Takes in what a node publishes; `None` when it takes no part.
    pub(super) fn set_peer(&mut self, node: &Name, lease: Option<&Lease>) {
        let error = match lease {
            Some(lease) => self.overlay.set_peer(lease).err(),
            None => {
                self.overlay.remove_peer(node);
                None
            }
        };
        self.note(node, error);
    }

    /// Takes in what all nodes publish.
    pub(super) fn set_peers(&mut self, leases: &BTreeMap<Name, Lease>) {
        let errors = self.overlay.set_peers(leases.values().cloned());
        self.note_all(errors);
    }

    /// See [`Overlay::switch`]. `prepared` is for [`Site::prepared`].
    pub(super) fn switch(&mut self, backend: Box<dyn Backend>, prepared: Option<Name>) -> Result<(), Error> {
        if self.overlay.site().prepared != prepared {
            self.overlay.relocate(Site { prepared, ..self.overlay.site().clone() })?;
        }
        let errors = self.overlay.switch(backend)?;
        self.note_all(errors);
        Ok(())
    }

    /// See [`Overlay::relocate`].
    pub(super) fn relocate(&mut self, site: Site) -> Result<(), Error> {
        let errors = self.overlay.relocate(site)?;
        self.note_all(errors);
        Ok(())
    }

    /// Takes in changes in the kernel.
    pub(super) fn changed(&mut self, change: &Change) -> Effect {
        self.overlay.changed(change)
    }

    /// One attempt to bring the kernel up to date. Says what it did; `None` when the kernel could not be read.
    pub(super) fn apply(&mut self, kernel: &mut RouteSocket) -> Option<Outcome> {
        let mut outcome = match self.overlay.apply(kernel) {
            Ok(outcome) => outcome,
            Err(error) => {
                error!(%error, "reading the kernel's state");
                self.metrics.errors.inc();
                return None;
            }
        };
        let repaired = outcome.repaired.len();
        if outcome.done > 0 {
            let (peers, backend) = (self.overlay.peer_count(), self.overlay.backend());
            info!(operations = outcome.done, repaired, peers, backend, "programmed");
        }
        if repaired > 0 {
            let kinds: BTreeMap<_, _> = outcome.repaired.iter().map(|key| (key.kind(), ())).collect();
            let kinds = kinds.into_keys().collect::<Vec<_>>().join(", ");
            warn!(repaired, "someone else removed or changed parts of the overlay ({kinds}): put right");
        }
        outcome.errors.iter().for_each(|error| error!(%error, "programming the overlay"));
        for key in &outcome.repaired {
            self.metrics.repaired(key.kind(), 1);
        }
        self.metrics.operations.inc_by(outcome.done as u64);
        self.metrics.errors.inc_by(outcome.errors.len() as u64);
        for error in std::mem::take(&mut outcome.refused) {
            if let Some(node) = node_of(&error) {
                self.note(&node, Some(error));
            }
        }
        self.count();
        Some(outcome)
    }

    fn note_all(&mut self, errors: Vec<Error>) {
        let mut now = BTreeMap::new();
        for error in errors {
            if let Some(node) = node_of(&error) {
                now.insert(node, error);
            }
        }
        self.troubles.keep(|node| now.contains_key(node));
        for (node, error) in now {
            self.note(&node, Some(error));
        }
        self.count();
    }

    /// Tells of a peer's trouble, once.
    fn note(&mut self, node: &Name, error: Option<Error>) {
        let Some(error) = error else {
            self.troubles.set(node, None);
            return;
        };
        let text = error.to_string();
        let trouble = match error {
            Error::OtherBackend { .. } => Trouble::Elsewhere(text.clone()),
            _ => Trouble::Refused(text.clone()),
        };
        if self.troubles.of.get(node) == Some(&trouble) {
            return;
        }
        match trouble {
            Trouble::Elsewhere(_) => info!("{text}: reached as before, if it was, until both run the same"),
            Trouble::Refused(_) => {
                warn!("peer left out: {text}");
                self.recorder.node("PeerLeftOut", text);
            }
        }
        self.troubles.set(node, Some(trouble));
    }

    fn count(&self) {
        let family = [("family", label(self.family()))];
        let set = |gauge: &crate::metrics::Gauges, count| gauge.get_or_create(&family).set(metrics::count(count));
        set(&self.metrics.peers, self.overlay.peer_count());
        set(&self.metrics.trailing_peers, self.troubles.elsewhere);
        set(&self.metrics.refused_peers, self.troubles.of.len() - self.troubles.elsewhere);
    }
}

/// The node that an error is about.
fn node_of(error: &Error) -> Option<Name> {
    match error {
        Error::Lease { node, .. } | Error::OtherBackend { node, .. } => Some(node.as_str().into()),
        _ => None,
    }
}
