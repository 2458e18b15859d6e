//! Programming: the first sync, single changes, a restart, memory, and a load of changes.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use podwire_model::EndpointSlice;
use podwire_proxy::{
    Tracker,
    mode::{Description, Mode, Settings},
};
use podwire_testkit::bench::{memory, milliseconds, percentile, processor_time};

use super::{
    Result,
    cluster::{self, Cluster},
    peer, print,
};

/// How often each kind of change is measured …
const CHANGES: u32 = 1000;
/// … and for how long at most, where a mode needs long for one.
const CHANGES_TIME: Duration = Duration::from_secs(10);
/// The modes that keep endpoints, and ports for them, in this process.
const IN_MEMORY: &[&str] = &["userspace"];
/// So long their ports linger after a proxy is dropped, for who is on the way; those of a process that ends do not.
const LINGER: Duration = Duration::from_millis(1500);
/// Changes a second of the load.
const RATE: u32 = 100;
/// Pods from here on are in no Service at first.
const NEW_PODS: u32 = 0x40_0000;

/// One mode and one cluster, in the calling thread's network namespace.
pub struct Case {
    name: String,
    mode: &'static Description,
    settings: Settings,
    cluster: Cluster,
}

/// A proxy: what it knows, and what it did about it.
pub struct Proxy {
    tracker: Tracker,
    mode: Box<dyn Mode>,
    /// A change of endpoints must be seen in the kernel.
    must_write: bool,
}

impl Proxy {
    /// Knows nothing, has written nothing.
    pub fn new(description: &Description, settings: &Settings) -> Result<Self> {
        let must_write = !IN_MEMORY.contains(&description.name);
        Ok(Self { tracker: Tracker::new(Cluster::me()), mode: (description.open)(settings)?, must_write })
    }

    /// Hears of everything and brings it into the kernel; returns how much was written.
    pub fn sync(
        &mut self,
        services: impl IntoIterator<Item = podwire_model::Service>,
        slices: impl IntoIterator<Item = EndpointSlice>,
    ) -> Result<usize> {
        self.tracker.set_services(services);
        self.tracker.set_slices(slices);
        self.apply()
    }

    fn apply(&mut self) -> Result<usize> {
        let changes = self.tracker.take_changes().ok_or("there is no plan")?;
        Ok(self.mode.apply(changes)?.written)
    }

    /// One event, from its arrival to the kernel's acknowledgement.
    fn change(&mut self, slice: EndpointSlice) -> Result<Duration> {
        let begin = Instant::now();
        self.tracker.slice(slice);
        match self.apply()? {
            0 if self.must_write => Err("a change wrote nothing".into()),
            _ => Ok(begin.elapsed()),
        }
    }

    /// Removes what is unused, as a proxy does when a second without changes has passed.
    fn tidy(&mut self) -> Result<()> {
        while self.mode.tidy()? {}
        Ok(())
    }
}

impl Case {
    pub fn new(mode: &'static Description, cluster: Cluster) -> Result<Self> {
        let settings = Settings { detect_local: Cluster::detect_local(), ..Settings::default() };
        let Cluster { services, each } = cluster;
        Ok(Self { name: format!("{} {services}x{each}", mode.name), mode, settings, cluster })
    }

    fn print(&self, metric: &str, value: f64, unit: &str) {
        print(&self.name, metric, value, unit, None);
    }

    /// A proxy that has brought everything into the kernel. The objects are there before the clock starts.
    fn start(&self) -> Result<(Proxy, Duration, usize)> {
        let (services, slices): (Vec<_>, Vec<_>) = (self.cluster.services().collect(), self.cluster.slices().collect());
        let begin = Instant::now();
        let mut proxy = Proxy::new(self.mode, &self.settings)?;
        let written = proxy.sync(services, slices)?;
        Ok((proxy, begin.elapsed(), written))
    }

    /// From the first event to the kernel's acknowledgement of the last.
    pub fn cold_sync(&self) -> Result<Duration> {
        Ok(self.start()?.1)
    }

    /// What other tools need for what a cold sync makes: a line each.
    pub fn load_by_peers(&self) -> Result<()> {
        let _proxy = self.start()?;
        for (peer, time) in peer::load_again(self.mode.name)? {
            println!("{peer} {}", time.as_secs_f64());
        }
        Ok(())
    }

    /// A restart, then single changes.
    pub fn measure_changes(&self) -> Result<()> {
        drop(self.start()?);
        if IN_MEMORY.contains(&self.mode.name) {
            std::thread::sleep(LINGER);
        }
        let (mut proxy, time, written) = self.start()?;
        self.print("restart, all is in place", milliseconds(time), "ms");
        self.print("restart, all is in place: writes", written as f64, "objects");
        self.single_changes(&mut proxy)?;
        if written > 0 {
            return Err(format!("{}: a restart wrote {written} objects where all was in place", self.name).into());
        }
        Ok(())
    }

    fn single_changes(&self, proxy: &mut Proxy) -> Result<()> {
        let (mut added, mut replaced, mut removed) = (Vec::new(), Vec::new(), Vec::new());
        let begin = Instant::now();
        for number in 0..CHANGES {
            let service = self.service(number);
            let original = self.cluster.slice(service);
            let mut slice = original.clone();
            slice.endpoints.push(cluster::endpoint(&cluster::name(service), NEW_PODS + number));
            added.push(proxy.change(slice.clone())?);
            slice.endpoints[0] = cluster::endpoint(&cluster::name(service), NEW_PODS + CHANGES + number);
            replaced.push(proxy.change(slice.clone())?);
            slice.endpoints.remove(1);
            removed.push(proxy.change(slice)?);
            if begin.elapsed() > CHANGES_TIME {
                self.print("samples of each change, time being up", f64::from(number + 1), "samples");
                break;
            }
            proxy.change(original)?;
            if number % 100 == 99 {
                proxy.tidy()?;
            }
        }
        for (what, times) in [("added", added), ("removed", removed), ("replaced", replaced)] {
            for (name, percent) in [("median", 50), ("p99", 99)] {
                self.print(&format!("one endpoint {what}, {name}"), percentile(&times, percent) * 1000.0, "us");
            }
        }
        Ok(())
    }

    /// Which Service is changed: all in turn, far from each other.
    fn service(&self, change: u32) -> u32 {
        (u64::from(change) * 7919 % u64::from(self.cluster.services)) as u32
    }

    /// What this process uses with everything in place; and the most that it used until then. The objects are made one
    /// by one while they are taken.
    pub fn measure_memory(&self) -> Result<()> {
        self.print("memory of a process that does nothing yet", memory("self", "VmRSS")?, "MB");
        let mut proxy = Proxy::new(self.mode, &self.settings)?;
        proxy.sync(self.cluster.services(), self.cluster.slices())?;
        self.print("resident memory after a cold sync", memory("self", "VmRSS")?, "MB");
        self.print("most memory during it", memory("self", "VmHWM")?, "MB");
        Ok(())
    }

    /// The share of one processor that [`RATE`] changes a second take, with all that a proxy does besides.
    pub fn measure_load(&self, time: Duration) -> Result<()> {
        let (mut proxy, ..) = self.start()?;
        let (begin, used) = (Instant::now(), processor_time());
        let mut late = Duration::ZERO;
        let mut done = 0;
        for number in 0..RATE * time.as_secs() as u32 {
            let due = begin + Duration::from_secs(1) * number / RATE;
            late = late.max(due.elapsed());
            sleep(due.saturating_duration_since(Instant::now()));
            if begin.elapsed() > time {
                break;
            }
            done += 1;
            let service = self.service(number);
            let mut slice = self.cluster.slice(service);
            let fresh = cluster::endpoint(&cluster::name(service), NEW_PODS + number);
            match number % 3 {
                0 => slice.endpoints.push(fresh),
                1 => slice.endpoints[0] = fresh,
                _ => drop(slice.endpoints.remove(0)),
            }
            proxy.change(slice)?;
            if number % (RATE / 4) == 0 {
                proxy.mode.disturbed()?;
            }
            if number % RATE == 0 {
                proxy.mode.tidy()?;
            }
        }
        sleep((begin + time).saturating_duration_since(Instant::now()));
        let share = (processor_time() - used).as_secs_f64() / begin.elapsed().as_secs_f64();
        let rate = f64::from(done) / time.as_secs_f64();
        let metric = format!("{RATE} changes a second for {} s", time.as_secs());
        self.print(&format!("{metric}: share of one processor"), share * 100.0, "%");
        self.print(&format!("{metric}: changes a second reached"), rate, "1/s");
        self.print(&format!("{metric}: latest start"), milliseconds(late), "ms");
        Ok(())
    }
}
