//! One reconciler for every backend: desired against actual, then the difference.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use podwire_kernel::{
    route::{Change, Link, Removed, Route},
    wireguard::Wireguard,
};
use podwire_model::{Lease, Name, delta::Step};

use crate::{
    Error,
    adopt::Holdings,
    backend::Backend,
    claims::Claims,
    kernel::Devices,
    plan::{self, Command, Entry, Key, Path, Peer, Site, Tunnel, TunnelKind},
};

/// What the reconciler works on: everything that it asks of one network namespace.
pub trait Kernel: Route + Wireguard {
    /// For what takes routes, neighbours and links only.
    fn as_route(&mut self) -> &mut dyn Route;
}

impl<T: Route + Wireguard> Kernel for T {
    fn as_route(&mut self) -> &mut dyn Route {
        self
    }
}

/// Owner of what this node needs whoever its peers are. It sorts before every node's name: no peer can take that.
const LOCAL: &str = "";
/// Owner of the tunnels of the backend before. It sorts after every node's name: it only keeps what nobody else wants.
const BEFORE: &str = "\u{10ffff}";

/// The overlay of one node, of one address family: who the peers are, what should be there and what is.
#[derive(Debug)]
pub struct Overlay {
    backend: Box<dyn Backend>,
    site: Site,
    peers: HashMap<Name, Member>,
    /// How many of them are part of the plan.
    planned: usize,
    claims: Claims,
    devices: Devices,
    /// Peers whose path must be looked up before they can be planned.
    unresolved: BTreeSet<Name>,
    /// Peers of another backend whose entries are still to be found.
    adopting: BTreeSet<Name>,
    /// The tunnels of the backend before stay, though nobody asks for them.
    holding: bool,
    /// Devices, not there when the kernel was read, that entries wait for.
    missing: HashSet<Name>,
    /// What others removed or changed and that is not yet put right.
    damaged: HashSet<Key>,
    state: Knowledge,
}

/// A peer, and what became of it.
#[derive(Debug)]
struct Member {
    lease: Lease,
    path: Option<Path>,
    standing: Standing,
}

impl Member {
    const fn is_planned(&self) -> bool {
        matches!(self.standing, Standing::Planned)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Part of the plan.
    Planned,
    /// Will be, or not, once its path is known.
    Waiting,
    /// Runs another backend: what leads to it stays as it is.
    Kept,
    /// Cannot be used.
    Refused,
}

/// What is known of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    /// Nothing: it was never read.
    None,
    /// It must be read again before the next change: something went wrong, or others may have changed anything.
    Stale,
    /// All of it.
    Current,
}

/// What one [`Overlay::apply`] did, and what it leaves to do for others.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Operations that were carried out, in the kernel and in user space.
    pub done: usize,
    /// What someone else had removed or changed, and is put right.
    pub repaired: Vec<Key>,
    /// What the kernel refused. Not empty: call [`Overlay::apply`] again after a pause.
    pub errors: Vec<podwire_kernel::Error>,
    /// Peers that cannot be used for a reason that only the kernel's routes tell: told once for each.
    pub refused: Vec<Error>,
    /// Lines of the forwarder's table that are different now, in order; `None` for those that are no more.
    pub forwards: Vec<(IpNet, Option<SocketAddr>)>,
    /// Commands to run, in order. They are not told again, whatever becomes of them.
    pub commands: Vec<Command>,
}

/// What a change in the kernel means to the overlay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Effect {
    /// [`Overlay::apply`] has something to do.
    pub work: bool,
    /// The uplink may have another address or MTU now, or is gone: choose it again, and [`Overlay::relocate`].
    pub uplink: bool,
}

impl Overlay {
    /// An overlay without peers. Nothing is written before [`Overlay::apply`].
    ///
    /// # Errors
    /// The facts of the site contradict each other, or the backend cannot work there.
    pub fn new(backend: Box<dyn Backend>, site: Site) -> Result<Self, Error> {
        site.check()?;
        backend.check(&site)?;
        let mut overlay = Self {
            peers: HashMap::new(),
            planned: 0,
            claims: Claims::default(),
            devices: Devices::default(),
            unresolved: BTreeSet::new(),
            adopting: BTreeSet::new(),
            holding: false,
            missing: HashSet::new(),
            damaged: HashSet::new(),
            state: Knowledge::None,
            backend,
            site,
        };
        overlay.plan_local();
        Ok(overlay)
    }

    /// This node's facts.
    pub const fn site(&self) -> &Site {
        &self.site
    }

    /// The backend's name, the value of `Backend.Type`.
    pub fn backend(&self) -> &'static str {
        self.backend.name()
    }

    /// What this node publishes.
    pub fn lease(&self) -> Lease {
        self.site.lease(self.backend.as_ref())
    }

    /// The MTU of pods in bytes.
    pub fn mtu(&self) -> u32 {
        self.backend.mtu(&self.site.uplink)
    }

    /// Size of the largest packet on the uplink that carries a packet of a pod, in bytes.
    pub fn outer_mtu(&self) -> u32 {
        self.mtu() + self.backend.overhead(&self.site.uplink)
    }

    /// Whether [`Overlay::switch`] can go over to this backend.
    ///
    /// # Errors
    /// It cannot work on this node.
    pub fn check(&self, backend: &dyn Backend) -> Result<(), Error> {
        backend.check(&self.site)
    }

    /// Goes over to another backend. What leads to each peer is replaced, not removed and made again, and the tunnels of
    /// the backend before stay until [`Overlay::release`], so that peers can still send by them. Returns what is wrong
    /// with the peers that it cannot use.
    ///
    /// # Errors
    /// It cannot work on this node; all is as before.
    pub fn switch(&mut self, backend: Box<dyn Backend>) -> Result<Vec<Error>, Error> {
        self.check(backend.as_ref())?;
        self.backend = backend;
        self.hold();
        Ok(self.plan_all())
    }

    /// Takes in other facts about this node: another address or MTU of the uplink. The pod range may not change.
    /// Returns what is wrong with the peers that cannot be used from there.
    ///
    /// # Errors
    /// The facts contradict each other, or the backend cannot work there; all is as before.
    pub fn relocate(&mut self, site: Site) -> Result<Vec<Error>, Error> {
        site.check()?;
        self.backend.check(&site)?;
        self.site = site;
        Ok(self.plan_all())
    }

    /// Keeps tunnels that the kernel holds and the backend does not want, until [`Overlay::release`]: peers may still
    /// send by them. To be called before the first [`Overlay::apply`]; [`Overlay::switch`] does so itself.
    pub fn hold(&mut self) {
        self.holding = true;
    }

    /// Lets go of the tunnels of the backend before; the next [`Overlay::apply`] removes those by which no peer of another
    /// backend is reached. To be called some seconds after this node's lease is published: then all peers know it.
    pub fn release(&mut self) {
        self.holding = false;
        self.claims.replace(&BEFORE.into(), Vec::new());
    }

    /// Replaces all peers. This node's own lease may be among them. Returns what is wrong with the peers left out.
    pub fn set_peers(&mut self, leases: impl IntoIterator<Item = Lease>) -> Vec<Error> {
        let mut gone: BTreeSet<Name> = self.peers.keys().cloned().collect();
        let mut errors = Vec::new();
        for lease in leases {
            gone.remove(&lease.node);
            errors.extend(self.set_peer(&lease).err());
        }
        for node in gone {
            self.remove_peer(&node);
        }
        errors
    }

    /// Adds or changes a peer; this node's own lease is ignored.
    ///
    /// # Errors
    /// The lease cannot be used. Whatever the peer had before is dropped, as it is no longer true; except after
    /// [`Error::OtherBackend`]: what leads to the peer's range stays.
    pub fn set_peer(&mut self, lease: &Lease) -> Result<(), Error> {
        if lease.node == self.site.node {
            return Ok(());
        }
        if let Some(known) = self.peers.get(&lease.node).filter(|known| known.lease == *lease) {
            match known.standing {
                Standing::Planned | Standing::Waiting => return Ok(()),
                // What leads there is known already, and may be away from the kernel just now.
                Standing::Kept => plan::check(self.backend.as_ref(), &self.site, lease)?,
                Standing::Refused => {}
            }
        }
        let member = Member { lease: lease.clone(), path: None, standing: Standing::Waiting };
        let before = self.peers.insert(lease.node.clone(), member);
        self.planned -= before.map_or(0, |peer| usize::from(peer.is_planned()));
        self.plan_peer(&lease.node)
    }

    /// Drops a peer.
    pub fn remove_peer(&mut self, node: &Name) {
        if let Some(peer) = self.peers.remove(node) {
            self.planned -= usize::from(peer.is_planned());
            self.unresolved.remove(node);
            self.adopting.remove(node);
            self.claims.replace(node, Vec::new());
        }
    }

    /// Number of peers that are part of the plan.
    pub const fn peer_count(&self) -> usize {
        self.planned
    }

    /// Whether all is as it should be, as far as is known.
    pub fn is_settled(&self) -> bool {
        self.state == Knowledge::Current
            && self.unresolved.is_empty()
            && self.adopting.is_empty()
            && self.claims.delta.is_settled()
    }

    /// The TUN device by which the agent's forwarder sends and receives, and where it listens; `None` when nothing is
    /// carried in user space.
    pub fn forwarder(&self) -> Option<(&Tunnel, SocketAddr)> {
        self.claims.tunnels().find_map(|tunnel| match tunnel.kind {
            // One that an earlier run left does not say where it listened, and nothing is carried by it.
            TunnelKind::Tun { listen } if listen.port() != 0 => Some((tunnel, listen)),
            _ => None,
        })
    }

    /// The tunnel devices that are wanted.
    pub fn tunnels(&self) -> impl Iterator<Item = &Tunnel> {
        self.claims.tunnels()
    }

    /// The whole table of a forwarder that starts anew; [`Outcome::forwards`] tells of changes only.
    pub fn forwards(&self) -> impl Iterator<Item = (IpNet, SocketAddr)> {
        self.claims.delta.all_actual().filter_map(|key| match self.claims.delta.actual(key) {
            Some(Entry::Forward { destination, to }) => Some((*destination, *to)),
            _ => None,
        })
    }

    /// The commands to run when the agent stops for good, which it may as well not: the data path works on without it.
    pub fn farewell(&self) -> impl Iterator<Item = &Command> {
        match self.claims.delta.actual(&Key::Script(LOCAL.into())) {
            Some(Entry::Script(script)) => script.stop.iter(),
            _ => None.iter(),
        }
    }

    fn plan_local(&mut self) {
        self.claims.replace(&LOCAL.into(), self.backend.local(&self.site));
    }

    fn plan_all(&mut self) -> Vec<Error> {
        self.plan_local();
        let mut names: Vec<Name> = self.peers.keys().cloned().collect();
        names.sort_unstable();
        names.iter().filter_map(|name| self.plan_peer(name).err()).collect()
    }

    /// Decides what the peer needs, or leaves that until its path is known.
    fn plan_peer(&mut self, name: &Name) -> Result<(), Error> {
        self.unresolved.remove(name);
        self.adopting.remove(name);
        let Some(peer) = self.peers.get(name) else { return Ok(()) };
        let checked = plan::check(self.backend.as_ref(), &self.site, &peer.lease);
        if checked.is_ok() && self.backend.needs_path() {
            self.stand(name, Standing::Waiting);
            self.unresolved.insert(name.clone());
            return Ok(());
        }
        self.settle_peer(name, checked)
    }

    fn stand(&mut self, name: &Name, standing: Standing) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        let was_planned = usize::from(peer.is_planned());
        peer.standing = standing;
        self.planned = self.planned + usize::from(peer.is_planned()) - was_planned;
    }

    /// Takes over what the backend says of a peer whose path is known, or need not be.
    fn settle_peer(&mut self, name: &Name, checked: Result<(), Error>) -> Result<(), Error> {
        let Some(peer) = self.peers.get(name) else { return Ok(()) };
        let seen = Peer { lease: &peer.lease, path: peer.path.as_ref() };
        match checked.and_then(|()| self.backend.peer(&self.site, seen)) {
            Ok(entries) => {
                self.stand(name, Standing::Planned);
                self.claims.replace(name, entries);
                Ok(())
            }
            Err(error @ Error::OtherBackend { .. }) => {
                self.stand(name, Standing::Kept);
                self.adopting.insert(name.clone());
                Err(error)
            }
            Err(error) => {
                self.stand(name, Standing::Refused);
                self.claims.replace(name, Vec::new());
                Err(error)
            }
        }
    }

    /// Looks up the paths that are needed, and plans their peers.
    fn resolve(&mut self, kernel: &mut dyn Route, outcome: &mut Outcome) -> Result<(), Error> {
        let names: Vec<Name> = self.unresolved.iter().cloned().collect();
        let addresses: Vec<IpAddr> =
            names.iter().filter_map(|name| Some(self.peers.get(name)?.lease.public_ip)).collect();
        if names.is_empty() {
            return Ok(());
        }
        let paths = self.devices.paths(kernel, &addresses)?;
        self.unresolved.clear();
        for (name, path) in names.iter().zip(paths) {
            let Some(peer) = self.peers.get_mut(name) else { continue };
            if peer.standing == Standing::Waiting || peer.path != path {
                peer.path = path;
                let checked = plan::check(self.backend.as_ref(), &self.site, &peer.lease);
                outcome.refused.extend(self.settle_peer(name, checked).err());
            }
        }
        Ok(())
    }
}

mod apply;
mod observe;
