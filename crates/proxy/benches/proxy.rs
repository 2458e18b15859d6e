//! What carrying Services costs on the running kernel. Prints one JSON object a line, for `cargo xtask bench proxy`.
//!
//! Each case is a process of its own, so that its memory is its own, in a network namespace of its own.
//! `cargo bench -p podwire-proxy --bench proxy -- MODE SERVICES ENDPOINTS_EACH` measures another size.
//! The peer is `nft -f`, which is given the table that the cold sync made, from a file; only the few rules that look a
//! random number up in a concatenation are left out, for which nft's language has no type.

use std::{
    error::Error,
    fs,
    net::{IpAddr, Ipv4Addr},
    process::{Command, id},
    time::{Duration, Instant},
};

use podwire_kernel::ns::{Kind, Namespace, unshare};
use podwire_model::{EndpointSlice, Service};
use podwire_proxy::{
    Tracker,
    mode::{Description, DetectLocal, MODES, Mode, Settings, find},
    plan::Me,
};
use podwire_testkit::{
    bench::{Measured, milliseconds, percentile, resident_memory},
    build,
};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Services, and endpoints of each: small, usual, and a very large cluster.
const SIZES: &[[u32; 2]] = &[[100, 10], [1000, 10], [5006, 50]];
/// How many Services are changed, one after the other.
const CHANGES: u32 = 100;

fn main() -> Result<()> {
    // cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.as_slice() {
        [] => measure_all(),
        [mode, services, each] => {
            unshare(&[Kind::Net])?;
            Case::new(find(mode)?, services.parse()?, each.parse()?)?.measure()
        }
        _ => Err("expected: MODE SERVICES ENDPOINTS_EACH".into()),
    }
}

fn measure_all() -> Result<()> {
    for mode in MODES {
        for size in SIZES {
            let mut case = Command::new(std::env::current_exe()?);
            let status = case.arg(mode.name).args(size.map(|number| number.to_string())).status()?;
            if !status.success() {
                return Err(format!("{case:?}: {status}").into());
            }
        }
    }
    Ok(())
}

struct Case {
    name: String,
    mode: &'static Description,
    settings: Settings,
    services: u32,
    endpoints: u32,
}

/// A proxy: what it knows, and what it did about it.
struct Proxy {
    tracker: Tracker,
    mode: Box<dyn Mode>,
}

impl Proxy {
    fn apply(&mut self) -> Result<usize> {
        let changes = self.tracker.take_changes().ok_or("there is no plan")?;
        Ok(self.mode.apply(changes)?.written)
    }
}

impl Case {
    fn new(mode: &'static Description, services: u32, endpoints: u32) -> Result<Self> {
        let settings =
            Settings { detect_local: DetectLocal::Ranges(vec!["10.128.0.0/9".parse()?]), ..Settings::default() };
        let name = format!("{} {services}x{endpoints}", mode.name);
        Ok(Self { name, mode, settings, services, endpoints })
    }

    fn measure(&self) -> Result<()> {
        let idle = resident_memory()?;
        let (proxy, time) = self.start()?;
        let memory = resident_memory()? - idle;
        self.print("cold sync", milliseconds(time), "ms", Some(("nft -f", milliseconds(by_nft()?))));
        self.print("resident memory after it", memory, "MB", None);
        drop(proxy);
        let (mut proxy, time) = self.start()?;
        self.print("restart, all is in place", milliseconds(time), "ms", None);
        let replaced = self.change(&mut proxy, |_| {})?;
        self.print("one endpoint replaced, median", percentile(&replaced, 50), "ms", None);
        self.print("one endpoint replaced, worst of 100", percentile(&replaced, 100), "ms", None);
        let added = self.change(&mut proxy, |slice| slice.endpoints.push(build::endpoint("10.251.0.0")))?;
        self.print("one endpoint added, median", percentile(&added, 50), "ms", None);
        self.print("one endpoint added, worst of 100", percentile(&added, 100), "ms", None);
        Ok(())
    }

    fn print(&self, metric: &str, value: f64, unit: &str, peer: Option<(&str, f64)>) {
        println!("{}", Measured { bench: "proxy", case: &self.name, metric, value, unit, peer });
    }

    /// A proxy that has brought everything into the kernel; from the first object to the kernel's last answer.
    fn start(&self) -> Result<(Proxy, Duration)> {
        let (services, slices): (Vec<_>, Vec<_>) = (0..self.services).map(|number| self.service(number)).unzip();
        let begin = Instant::now();
        let tracker = Tracker::new(Me { node: "node1".into(), ..Me::default() });
        let mut proxy = Proxy { tracker, mode: (self.mode.open)(&self.settings)? };
        proxy.tracker.set_services(services);
        proxy.tracker.set_slices(slices);
        proxy.apply()?;
        Ok((proxy, begin.elapsed()))
    }

    /// Replaces the first endpoint of Services, one at a time, and does to them what `also` does.
    fn change(&self, proxy: &mut Proxy, also: fn(&mut EndpointSlice)) -> Result<Vec<Duration>> {
        let times = (0..CHANGES.min(self.services)).map(|number| {
            let (_, mut slice) = self.service(number);
            slice.endpoints[0].address = address(250 << 16 | number);
            also(&mut slice);
            let begin = Instant::now();
            proxy.tracker.slice(slice);
            match proxy.apply()? {
                0 => Err("nothing was written".into()),
                _ => Ok(begin.elapsed()),
            }
        });
        times.collect()
    }

    fn service(&self, number: u32) -> (Service, EndpointSlice) {
        let name = format!("service-{number}");
        let service = build::service(&name, &Ipv4Addr::from_bits(0x0a60_0000 + number + 1).to_string());
        let first = number * self.endpoints;
        let addresses: Vec<_> = (first..first + self.endpoints).map(|number| address(number).to_string()).collect();
        let slice = build::slice(&name, 8080, &addresses.iter().map(String::as_str).collect::<Vec<_>>());
        (service, slice)
    }
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a80_0000 | number).into()
}

/// How long nft takes for the tables of this namespace, in another one.
fn by_nft() -> Result<Duration> {
    let listed = Command::new("nft").args(["--stateless", "list", "ruleset"]).output()?;
    if !listed.status.success() {
        return Err(format!("nft list ruleset: {}", String::from_utf8_lossy(&listed.stderr)).into());
    }
    let file = std::env::temp_dir().join(format!("podwire-bench-proxy-{}", id()));
    let listed = String::from_utf8(listed.stdout)?;
    let loadable: Vec<&str> = listed.lines().filter(|line| !line.contains(" map @")).collect();
    fs::write(&file, loadable.join("\n") + "\n")?;
    let mut nft = Command::new("nft");
    nft.arg("-f").arg(&file);
    let timed: Result<_> = Namespace::new_net()?
        .run(|| {
            let begin = Instant::now();
            let loaded = nft.status().map_err(|error| podwire_kernel::Error::io("start nft", error))?;
            Ok::<_, podwire_kernel::Error>((loaded, begin.elapsed()))
        })
        .map_err(Into::into);
    fs::remove_file(&file)?;
    match timed? {
        (status, time) if status.success() => Ok(time),
        (status, _) => Err(format!("{nft:?}: {status}").into()),
    }
}
