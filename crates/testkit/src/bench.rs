//! How benchmarks say what they measured: one JSON object a line, which `cargo xtask bench` turns into a table.

use std::{fmt, fs, io, time::Duration};

/// One measured number. Its texts must be plain ASCII.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured<'a> {
    /// The benchmark's name.
    pub bench: &'a str,
    /// What was measured: the size of the task, for example.
    pub case: &'a str,
    /// Which property of it.
    pub metric: &'a str,
    /// How much, in `unit`.
    pub value: f64,
    /// For example `ms`.
    pub unit: &'a str,
    /// Another program that was given the same task in the same run, and its value.
    pub peer: Option<(&'a str, f64)>,
}

impl fmt::Display for Measured<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bench, case, metric, value, unit, peer } = self;
        write!(f, r#"{{"bench":{bench:?},"case":{case:?},"metric":{metric:?},"value":{value:.4},"unit":{unit:?}"#)?;
        if let Some((peer, peer_value)) = peer {
            write!(f, r#","peer":{peer:?},"peer_value":{peer_value:.4},"ratio":{:.3}"#, value / peer_value)?;
        }
        f.write_str("}")
    }
}

/// In milliseconds.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The time, in milliseconds, that `percent` of `times` do not exceed; 50 for the median. NaN if there are none.
pub fn percentile(times: &[Duration], percent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().saturating_sub(1);
    sorted.get((sorted.len() * percent / 100).min(last)).map_or(f64::NAN, |time| milliseconds(*time))
}

/// The memory of this process that is in use (VmRSS), in MB.
///
/// # Errors
/// `/proc` cannot be read, or says something else.
pub fn resident_memory() -> io::Result<f64> {
    memory("self", "VmRSS")
}

/// A memory count of a process, in MB: `VmRSS` is what it uses, `VmHWM` the most that it used so far (`proc(5)`).
///
/// # Errors
/// There is no such process or no such count.
pub fn memory(process: impl fmt::Display, count: &str) -> io::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(count)?.strip_prefix(':')?.trim().strip_suffix("kB"));
    let kib = line.and_then(|line| line.trim().parse::<f64>().ok());
    kib.map(|kib| kib * 1024.0 / 1e6)
        .ok_or_else(|| io::Error::other(format!("/proc/{process}/status has no {count} in kB")))
}

/// The processor time that all threads of this process and its children that ended used, in user mode and in the
/// kernel. That of children is counted in hundredths of a second.
pub fn processor_time() -> Duration {
    let own = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in brackets, may hold spaces; `cutime` and `cstime` are the 16th and 17th field (proc_pid_stat(5)).
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::new(own.tv_sec.unsigned_abs(), own.tv_nsec.unsigned_abs() as u32) + Duration::from_millis(ticks * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_ratio_where_there_is_a_peer() {
        let alone = Measured { bench: "b", case: "1 x", metric: "time", value: 1.5, unit: "ms", peer: None };
        assert_eq!(alone.to_string(), r#"{"bench":"b","case":"1 x","metric":"time","value":1.5000,"unit":"ms"}"#);
        let compared = Measured { peer: Some(("nft -f", 3.0)), ..alone };
        assert!(compared.to_string().ends_with(r#","peer":"nft -f","peer_value":3.0000,"ratio":0.500}"#), "{compared}");
    }

    #[test]
    fn a_process_uses_memory_and_time() {
        let now = resident_memory().unwrap();
        assert!(now > 0.1 && memory("self", "VmHWM").unwrap() >= now);
        assert!(memory("self", "VmNone").is_err());
        let begin = processor_time();
        while processor_time() == begin {
            std::hint::spin_loop();
        }
        assert!(processor_time() > begin);
    }

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!((percentile(&times, 50), percentile(&times, 99), percentile(&times, 100)), (51.0, 100.0, 100.0));
        assert!(percentile(&[], 50).is_nan());
    }
}
