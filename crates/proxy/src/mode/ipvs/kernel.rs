//! The parts of the kernel that the mode writes to, as one value: the real ones or the fakes.

use podwire_kernel::{
    Result, ipset,
    ipset::Ipset,
    iptables,
    iptables::Iptables,
    ipvs,
    ipvs::Ipvs,
    ns,
    route::{AddressWatch, FakeRoute, Route, RouteSocket},
    sysctl::{FakeSysctl, ProcSys, Sysctl},
};

/// One network namespace.
pub trait Kernel: Send {
    /// Virtual services.
    fn ipvs(&mut self) -> &mut dyn Ipvs;
    /// Sets for rules.
    fn ipset(&mut self) -> &mut dyn Ipset;
    /// Links and addresses.
    fn route(&mut self) -> &mut dyn Route;
    /// Rules.
    fn iptables(&mut self) -> &mut dyn Iptables;
    /// Kernel parameters.
    fn sysctl(&mut self) -> &mut dyn Sysctl;

    /// Whether addresses may have come or gone since the last call. Does not wait.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn addresses_touched(&mut self) -> Result<bool>;
}

/// The network namespace that the opening thread was in.
#[derive(Debug)]
pub struct Real {
    ipvs: ipvs::Kernel,
    ipset: ipset::Kernel,
    route: RouteSocket,
    iptables: iptables::Real,
    sysctl: NamespaceSysctl,
    watch: AddressWatch,
}

impl Real {
    /// Opens everything.
    ///
    /// # Errors
    /// What is missing.
    pub fn open() -> Result<Self> {
        Ok(Self {
            ipvs: ipvs::Kernel::open()?,
            ipset: ipset::Kernel::open()?,
            route: RouteSocket::open()?,
            iptables: iptables::Real::open(None)?,
            sysctl: NamespaceSysctl(ns::Namespace::current(ns::Kind::Net)?),
            watch: AddressWatch::open()?,
        })
    }
}

impl Kernel for Real {
    fn ipvs(&mut self) -> &mut dyn Ipvs {
        &mut self.ipvs
    }

    fn ipset(&mut self) -> &mut dyn Ipset {
        &mut self.ipset
    }

    fn route(&mut self) -> &mut dyn Route {
        &mut self.route
    }

    fn iptables(&mut self) -> &mut dyn Iptables {
        &mut self.iptables
    }

    fn sysctl(&mut self) -> &mut dyn Sysctl {
        &mut self.sysctl
    }

    fn addresses_touched(&mut self) -> Result<bool> {
        self.watch.touched()
    }
}

/// Parameters of a namespace, whichever the calling thread is in.
#[derive(Debug)]
struct NamespaceSysctl(ns::Namespace);

impl Sysctl for NamespaceSysctl {
    fn read(&self, key: &str) -> Result<String> {
        self.0.run(|| ProcSys.read(key))
    }

    fn write(&mut self, key: &str, value: &str) -> Result<()> {
        self.0.run(|| ProcSys.write(key, value))
    }
}

/// A network namespace in memory, with the parameters of Linux 6.1.
#[derive(Debug, Clone)]
pub struct Fake {
    /// Virtual services.
    pub ipvs: ipvs::Fake,
    /// Sets.
    pub ipset: ipset::Fake,
    /// Links and addresses.
    pub route: FakeRoute,
    /// Rules.
    pub iptables: iptables::Fake,
    /// Kernel parameters.
    pub sysctl: FakeSysctl,
}

impl Default for Fake {
    fn default() -> Self {
        let parameters = [
            ("kernel/osrelease", "6.1.0-9-amd64"),
            ("net/ipv4/ip_forward", "0"),
            ("net/ipv4/conf/all/arp_ignore", "0"),
            ("net/ipv4/conf/all/arp_announce", "0"),
            ("net/ipv4/vs/conntrack", "0"),
            ("net/ipv4/vs/conn_reuse_mode", "1"),
            ("net/ipv4/vs/expire_nodest_conn", "0"),
            ("net/ipv4/vs/expire_quiescent_template", "0"),
        ];
        Self {
            ipvs: ipvs::Fake::new(),
            ipset: ipset::Fake::new(),
            route: FakeRoute::new(),
            iptables: iptables::Fake::new(),
            sysctl: FakeSysctl::new(parameters),
        }
    }
}

impl Fake {
    /// Nothing but `lo`.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on one in `n` operations fails.
    pub fn fail_one_in(&mut self, n: u64) {
        let every = n as usize;
        self.ipvs.fail_every(every);
        self.ipset.fail_every(every);
        self.route.fail_every(every);
        self.iptables = std::mem::take(&mut self.iptables).failing_one_in(n);
    }

    /// Ends the failures.
    pub fn heal(&mut self) {
        self.ipvs.fail_every(0);
        self.ipset.fail_every(0);
        self.route.fail_every(0);
        self.iptables.heal();
    }
}

impl Kernel for Fake {
    fn ipvs(&mut self) -> &mut dyn Ipvs {
        &mut self.ipvs
    }

    fn ipset(&mut self) -> &mut dyn Ipset {
        &mut self.ipset
    }

    fn route(&mut self) -> &mut dyn Route {
        &mut self.route
    }

    fn iptables(&mut self) -> &mut dyn Iptables {
        &mut self.iptables
    }

    fn sysctl(&mut self) -> &mut dyn Sysctl {
        &mut self.sysctl
    }

    fn addresses_touched(&mut self) -> Result<bool> {
        Ok(true)
    }
}
