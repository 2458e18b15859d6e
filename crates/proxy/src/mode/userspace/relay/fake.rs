use std::{collections::BTreeMap, sync::Arc};

use podwire_kernel::{Error, Result};
use podwire_model::{Family, Protocol};

use super::{Key, Pool, Ports, Wanted};

/// Too many open files.
const EMFILE: i32 = 24;
/// The port is taken.
const EADDRINUSE: i32 = 98;

/// Ports in memory, for tests. Refuses SCTP, and may fail now and then.
#[derive(Debug, Clone, Default)]
pub struct FakePorts {
    open: BTreeMap<Key, Arc<Pool>>,
    /// Ports of somebody else.
    taken: Vec<u16>,
    count: u64,
    fail_one_in: Option<u64>,
}

impl FakePorts {
    /// Makes one in `n` ports fail to open: the same ones in every run.
    #[must_use]
    pub fn failing_one_in(mut self, n: u64) -> Self {
        self.fail_one_in = Some(n);
        self
    }

    /// Ends the failures.
    pub fn heal(&mut self) {
        self.fail_one_in = None;
    }

    /// Lets somebody else have a port.
    pub fn take(&mut self, port: u16) {
        self.taken.push(port);
    }

    /// What is open, and where it leads.
    pub const fn open_ports(&self) -> &BTreeMap<(Protocol, Family, u16), Arc<Pool>> {
        &self.open
    }

    fn open_one(&mut self, wanted: Wanted) -> Result<u16> {
        let Wanted { protocol, family, port, pool } = wanted;
        self.count += 1;
        let fails = |n: u64| self.count.is_multiple_of(n);
        if protocol == Protocol::Sctp {
            return Err(Error::invalid("listen on an SCTP port", "userspace mode relays TCP and UDP"));
        } else if self.fail_one_in.is_some_and(fails) {
            return Err(Error::refused(format_args!("listen on {protocol}"), EMFILE));
        }
        let is_free = |port: &u16| !self.taken.contains(port) && !self.open.contains_key(&(protocol, family, *port));
        let free = port.into_iter().chain(40_000..=u16::MAX).find(is_free);
        let port = free.ok_or_else(|| Error::refused(format_args!("listen on {protocol}"), EADDRINUSE))?;
        self.open.insert((protocol, family, port), pool);
        Ok(port)
    }
}

impl Ports for FakePorts {
    fn open(&mut self, wanted: Vec<Wanted>) -> Vec<Result<u16>> {
        wanted.into_iter().map(|wanted| self.open_one(wanted)).collect()
    }

    fn close(&mut self, protocol: Protocol, family: Family, port: u16) {
        let was_open = self.open.remove(&(protocol, family, port)).is_some();
        assert!(was_open, "{protocol} {port} is closed and was not open");
    }
}
