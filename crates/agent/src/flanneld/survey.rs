//! Whether what the backend sends gets through to each peer: how large packets may be, and whether checksums arrive.
//!
//! Both are tried out with real packets, on a thread of its own, one peer after the other: again after a change and from
//! time to time. What is found is told once, in the log, as an Event and as metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use podwire_kernel::{
    ethtool::Ethtool,
    path::{Fate, Probe},
};
use podwire_model::{Family, Lease, Name};
use podwire_overlay::plan::{Tunnel, TunnelKind};
use tracing::{debug, warn};

use super::{
    args::Own,
    checksum::{self, Found, Offload},
    metrics::{self, Metrics},
    nodes::Nodes,
    stack::Stack,
};
use crate::events::Recorder;

/// After this time a peer is tried again: as long as the kernel remembers what it learned about a path.
const AGAIN: Duration = Duration::from_secs(600);
/// How long to wait for the answer to a datagram.
const PATIENCE: Duration = Duration::from_millis(500);
/// A packet that gets through everywhere: the least that every IPv4 router must carry.
const SMALL: u32 = 68;
/// So many peers are named in a warning.
const NAMED: usize = 3;
/// So many peers are asked whether checksums arrive: what loses them is this node's own.
const WITNESSES: usize = 3;

/// What is to be tried out, for one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The backend at work.
    pub(super) backend: &'static str,
    /// The uplink's name.
    pub(super) uplink: Name,
    /// Its address.
    pub(super) from: IpAddr,
    /// Size of the largest packet that the backend sends, in bytes.
    pub(super) size: u32,
    /// MTU of pods, in bytes.
    pub(super) mtu: u32,
    /// The device whose checksums are to be tried out, and turned off if need be.
    pub(super) tunnel: Option<Name>,
    /// Whether to try out how wide paths are.
    pub(super) probe: bool,
    /// Each peer's address, and its end of the tunnel.
    pub(super) peers: BTreeMap<Name, (IpAddr, IpAddr)>,
}

/// A path to be tried out.
struct Path {
    from: IpAddr,
    to: IpAddr,
    size: u32,
}

impl Wanted {
    fn paths(&self) -> impl Iterator<Item = Path> {
        self.peers.values().filter(|_| self.probe).map(|(to, _)| Path { from: self.from, to: *to, size: self.size })
    }
}

/// How wide the path to a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    /// Wide enough, or nobody answers.
    Enough,
    /// It carries at most so many bytes.
    AtMost(u32),
    /// Large packets get lost without a word.
    Hole,
}

impl fmt::Display for Width {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enough => f.write_str("enough"),
            Self::AtMost(bytes) => write!(f, "at most {bytes}"),
            Self::Hole => f.write_str("less, and large packets vanish without a word"),
        }
    }
}

impl Wanted {
    /// What is to be tried out for `stack`.
    pub(super) fn new(stack: &Stack, nodes: &Nodes) -> Self {
        let (overlay, site) = (&stack.overlay, stack.overlay.site());
        let peers = nodes.leases(stack.family()).values().filter(|lease| lease.node != site.node);
        let ends = |lease: &Lease| (lease.node.clone(), (lease.public_ip, lease.subnet.network()));
        // UDP over IPv6 has a checksum in any case: there is nothing to compare with.
        let tunnel = vxlan(stack).filter(|_| stack.family() == Family::V4);
        Self {
            backend: overlay.backend(),
            uplink: site.uplink.name.clone(),
            from: site.uplink.address,
            size: overlay.outer_mtu(),
            mtu: overlay.mtu(),
            tunnel: tunnel.cloned(),
            probe: true,
            peers: peers.map(ends).collect(),
        }
    }
}

/// The stack's vxlan device.
fn vxlan(stack: &Stack) -> Option<&Name> {
    let is_vxlan = |tunnel: &&Tunnel| matches!(tunnel.kind, TunnelKind::Vxlan(_));
    stack.overlay.tunnels().find(is_vxlan).map(|tunnel| &tunnel.device)
}

/// What the rest of flanneld has of the survey. The thread ends when it is dropped.
#[derive(Debug)]
pub(super) struct Survey {
    /// Absent when there is nothing to try out.
    wanted: Option<mpsc::Sender<Vec<Wanted>>>,
    offload: Offload,
    probe_path_mtu: bool,
    /// Checksums that were left to hardware got lost.
    lost: Arc<AtomicBool>,
}

impl Survey {
    /// Begins, on a thread of its own.
    pub(super) fn start(own: &Own, metrics: Metrics, recorder: Recorder) -> anyhow::Result<Self> {
        let lost = Arc::new(AtomicBool::new(false));
        let (offload, probe_path_mtu) = (own.vxlan_tx_checksum, own.probe_path_mtu);
        let mut wanted = None;
        if probe_path_mtu || offload == Offload::Auto {
            let (sender, news) = mpsc::channel();
            let lost = lost.clone();
            let surveyor =
                Surveyor { metrics, recorder, lost, known: BTreeMap::new(), told: String::new(), checked: None };
            std::thread::Builder::new().name("survey".to_owned()).spawn(move || surveyor.run(&news))?;
            wanted = Some(sender);
        }
        Ok(Self { wanted, offload, probe_path_mtu, lost })
    }

    /// Has this tried out, in place of what was wanted before.
    pub(super) fn want(&self, mut wanted: Vec<Wanted>) {
        for family in &mut wanted {
            family.tunnel.take_if(|_| self.offload != Offload::Auto);
            family.probe = self.probe_path_mtu;
        }
        if let Some(sender) = &self.wanted {
            // The thread ends only when this does.
            let _ = sender.send(wanted);
        }
    }

    /// Says who makes the checksums of each vxlan device, as the flag says or as it turned out: a device may be new.
    pub(super) fn settle_checksums(&self, stacks: &[Stack]) -> anyhow::Result<()> {
        let on = match self.offload {
            Offload::On => true,
            Offload::Off => false,
            Offload::Auto if self.lost.load(Ordering::Relaxed) => false,
            Offload::Auto => return Ok(()),
        };
        for device in stacks.iter().filter_map(vxlan) {
            Ethtool::open()?.set_tx_checksum(device, on)?;
        }
        Ok(())
    }
}

struct Surveyor {
    metrics: Metrics,
    recorder: Recorder,
    /// See [`Survey::lost`].
    lost: Arc<AtomicBool>,
    /// What is known of the path to a peer's address for packets of this size, and since when.
    known: BTreeMap<(IpAddr, u32), (Width, Instant)>,
    /// The warning that was given last.
    told: String,
    /// The tunnel whose checksums were tried out.
    checked: Option<Name>,
}

impl Surveyor {
    fn run(mut self, news: &mpsc::Receiver<Vec<Wanted>>) {
        let mut wanted = Vec::new();
        loop {
            match news.recv_timeout(AGAIN) {
                Ok(newest) => wanted = newest,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Some(newer) = self.round(&wanted, news) {
                let Some(newer) = newer else { return };
                wanted = newer;
            }
        }
    }

    /// Tries out what is due. Something newer ends it early: `Some(None)` when nothing more will come.
    fn round(&mut self, wanted: &[Wanted], news: &mpsc::Receiver<Vec<Wanted>>) -> Option<Option<Vec<Wanted>>> {
        self.forget(wanted);
        let due: Vec<_> = wanted.iter().flat_map(Wanted::paths).filter(|path| self.is_due(path)).collect();
        for Path { from, to, size } in due {
            match news.try_recv() {
                Ok(newer) => return Some(Some(newer)),
                Err(TryRecvError::Disconnected) => return Some(None),
                Err(TryRecvError::Empty) => {}
            }
            self.known.insert((to, size), (width(from, to, size), Instant::now()));
        }
        self.tell(wanted);
        wanted.iter().for_each(|family| self.checksums(family));
        None
    }

    fn is_due(&self, path: &Path) -> bool {
        self.known.get(&(path.to, path.size)).is_none_or(|(_, since)| since.elapsed() >= AGAIN)
    }

    fn forget(&mut self, wanted: &[Wanted]) {
        let wanted: BTreeSet<_> = wanted.iter().flat_map(Wanted::paths).map(|path| (path.to, path.size)).collect();
        self.known.retain(|key, _| wanted.contains(key));
    }

    /// Gives the one warning about paths, when it is not what it was.
    fn tell(&mut self, wanted: &[Wanted]) {
        let mut count = 0;
        let mut text = String::new();
        for family in wanted {
            let width = |to: &IpAddr| self.known.get(&(*to, family.size)).map(|(width, _)| *width);
            let peers = family.peers.iter().filter_map(|(name, (to, _))| Some((name, to, width(to)?)));
            let narrow: Vec<_> = peers.filter(|(.., width)| *width != Width::Enough).collect();
            count += narrow.len();
            if !narrow.is_empty() {
                text.push_str(&warning(family, &narrow));
            }
        }
        self.metrics.narrow_paths.set(metrics::count(count));
        if text != self.told {
            if !text.is_empty() {
                warn!("{text}");
                self.recorder.node("PathMTUTooSmall", text.clone());
            }
            self.told = text;
        }
    }

    /// Sees whether checksums arrive at the first peers that answer at all.
    fn checksums(&mut self, family: &Wanted) {
        let Some(device) = family.tunnel.as_ref().filter(|device| self.checked.as_ref() != Some(device)) else {
            return;
        };
        let attempt = |to| {
            let mut tunnel = Vxlan { device, ethtool: Ethtool::open()? };
            // Off already: by an earlier run, or by hand.
            if tunnel.ethtool.tx_checksum(device)? { checksum::check(&mut tunnel, to).map(Some) } else { Ok(None) }
        };
        for (name, (_, end)) in family.peers.iter().take(WITNESSES) {
            match attempt(*end) {
                Ok(Some(Found::Unknown)) => continue,
                Ok(None) => {
                    self.metrics.checksum_workaround.set(1);
                }
                Ok(Some(Found::Fine)) => {}
                Ok(Some(found)) => {
                    self.lost.store(found == Found::TurnedOff, Ordering::Relaxed);
                    self.metrics.checksum_workaround.set((found == Found::TurnedOff).into());
                    let text = format!("{device}, to {name}: {found}");
                    warn!("{text}");
                    self.recorder.node("ChecksumsLost", text);
                }
                Err(error) => {
                    debug!("whether checksums arrive is not known: {error:#}");
                    continue;
                }
            }
            self.checked = Some(device.clone());
            return;
        }
    }
}

struct Vxlan<'a> {
    device: &'a Name,
    ethtool: Ethtool,
}

impl checksum::Tunnel for Vxlan<'_> {
    fn probe(&mut self, probe: Probe) -> anyhow::Result<Fate> {
        Ok(probe.send(PATIENCE)?)
    }

    fn set_offload(&mut self, on: bool) -> anyhow::Result<()> {
        Ok(self.ethtool.set_tx_checksum(self.device, on)?)
    }
}

/// How wide the path is, as far as `size`.
fn width(from: IpAddr, to: IpAddr, size: u32) -> Width {
    let send = |size| Probe { from: Some(from), to, size, checksum: true }.send(PATIENCE);
    for _ in 0..2 {
        match send(size) {
            Ok(Fate::TooLarge(bytes)) => return Width::AtMost(bytes),
            Ok(Fate::Lost) => {}
            Ok(Fate::Arrived | Fate::Refused) => return Width::Enough,
            Err(error) => {
                debug!("how wide the path to {to} is, is not known: {error}");
                return Width::Enough;
            }
        }
    }
    if matches!(send(SMALL), Ok(Fate::Arrived)) { Width::Hole } else { Width::Enough }
}

fn warning(family: &Wanted, narrow: &[(&Name, &IpAddr, Width)]) -> String {
    let Wanted { backend, uplink, size, mtu, .. } = family;
    let named = narrow.iter().take(NAMED).map(|(name, to, width)| format!("{name} ({to}): {width}"));
    let named = named.collect::<Vec<_>>().join("; ");
    let more = narrow.len().saturating_sub(NAMED);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let least = narrow.iter().filter_map(|(_, _, width)| match width {
        Width::AtMost(bytes) => Some(*bytes),
        Width::Enough | Width::Hole => None,
    });
    let to = least.min().map_or_else(String::new, |bytes| format!(" to {bytes}"));
    let or =
        if *backend == "vxlan" { format!(", or \"MTU\" of the backend in net-conf.json{to}") } else { String::new() };
    format!(
        "paths carry less than the {size} bytes that {backend} sends for pods with an MTU of {mtu}: {named}{more}. Large \
         packets between pods get lost. Set the MTU of {uplink}{to}{or}, and make the pods anew"
    )
}
