use std::{fmt, net::SocketAddr, time::Duration};

use podwire_model::{Family, Name, Protocol};

/// The schedulers that Linux has, each a module `ip_vs_NAME`.
pub const SCHEDULERS: [&str; 14] =
    ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "mh", "dh", "sed", "nq", "fo", "ovf", "twos"];

/// What the kernel says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Major, minor and patch version, for example (1, 2, 1).
    pub version: (u8, u8, u8),
    /// How many chains the hash table of connections has.
    pub table_size: u32,
}

/// How long connections are remembered when nothing is seen of them, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// Established TCP connections; 900 s by default.
    pub tcp: Duration,
    /// TCP connections after a FIN; 120 s by default.
    pub tcp_fin: Duration,
    /// UDP; 300 s by default.
    pub udp: Duration,
}

/// What tells virtual services apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceKey {
    /// Traffic to an address and port.
    Address(Protocol, SocketAddr),
    /// Traffic with exactly this packet mark, whatever its protocol and port. It comes before the other kind.
    Mark(Family, u32),
}

impl ServiceKey {
    /// The address family.
    pub const fn family(&self) -> Family {
        match self {
            Self::Address(_, SocketAddr::V4(_)) => Family::V4,
            Self::Address(_, SocketAddr::V6(_)) => Family::V6,
            Self::Mark(family, _) => *family,
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(protocol, address) => write!(f, "{protocol} {address}"),
            Self::Mark(_, mark) => write!(f, "FWM {mark:#x}"),
        }
    }
}

/// Bits that schedulers and services take (`IP_VS_SVC_F_*`).
pub mod flags {
    /// The first flag of the scheduler: `sh-fallback`, `mh-fallback`.
    pub const SCHEDULER_1: u32 = 0x8;
    /// The second flag of the scheduler: `sh-port`, `mh-port`.
    pub const SCHEDULER_2: u32 = 0x10;
}

/// A client keeps its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Persistence {
    /// How long after its last connection, in whole seconds.
    pub timeout: Duration,
    /// How many leading bits of its address make a client: 32 or 128 for one address each.
    pub prefix: u8,
}

/// A virtual service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// What traffic it takes.
    pub key: ServiceKey,
    /// The scheduler's name, one of [`SCHEDULERS`].
    pub scheduler: Name,
    /// [`flags`] of the scheduler.
    pub flags: u32,
    /// Whether clients keep their destinations.
    pub persistence: Option<Persistence>,
}

impl Service {
    /// A service without persistence.
    pub fn new(key: ServiceKey, scheduler: impl Into<Name>) -> Self {
        Self { key, scheduler: scheduler.into(), flags: 0, persistence: None }
    }
}

/// A real server of a virtual service, reached by translating addresses (`Masq` in `ipvsadm -ln`) unless it was found
/// to be reached otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// Its address and port, of the service's family.
    pub address: SocketAddr,
    /// Its share of new connections; zero: none.
    pub weight: u32,
    /// `IP_VS_CONN_F_*` forwarding method; zero is masquerading.
    pub method: u32,
    /// No new connections above so many; zero: no limit.
    pub upper_threshold: u32,
    /// New connections again below so many.
    pub lower_threshold: u32,
}

impl Destination {
    /// One that is masqueraded and has no limits.
    pub const fn new(address: SocketAddr, weight: u32) -> Self {
        Self { address, weight, method: 0, upper_threshold: 0, lower_threshold: 0 }
    }
}

/// How many connections a destination has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Connections {
    /// Established ones.
    pub active: u32,
    /// Ones that close or do not say (UDP).
    pub inactive: u32,
    /// Clients that are kept at it.
    pub persistent: u32,
}

/// A destination as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The destination.
    pub destination: Destination,
    /// Its connections.
    pub connections: Connections,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds a service without destinations.
    AddService(Service),
    /// Changes everything about a service but its key; its destinations stay.
    SetService(Service),
    /// Deletes a service with its destinations.
    DeleteService(ServiceKey),
    /// Adds a destination to a service.
    AddDestination(ServiceKey, Destination),
    /// Changes the destination with this address and port.
    SetDestination(ServiceKey, Destination),
    /// Deletes the destination with this address and port. Connections to it end.
    DeleteDestination(ServiceKey, SocketAddr),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddService(service) => write!(f, "add virtual service {} {}", service.key, service.scheduler),
            Self::SetService(service) => write!(f, "change virtual service {} {}", service.key, service.scheduler),
            Self::DeleteService(key) => write!(f, "delete virtual service {key}"),
            Self::AddDestination(key, to) => write!(f, "add destination {} to virtual service {key}", to.address),
            Self::SetDestination(key, to) => {
                write!(f, "change destination {} of virtual service {key} to weight {}", to.address, to.weight)
            }
            Self::DeleteDestination(key, to) => write!(f, "delete destination {to} of virtual service {key}"),
        }
    }
}

impl Change {
    /// Why the kernel refused it, where that is plain and the kernel does not say so.
    pub(super) fn explain(&self, errno: i32) -> Option<String> {
        match self {
            Self::AddService(Service { scheduler, .. }) | Self::SetService(Service { scheduler, .. })
                if errno == libc::ENOENT =>
            {
                Some(format!("there is no scheduler {scheduler} (is the module ip_vs_{scheduler} loaded?)"))
            }
            _ => None,
        }
    }
}
