//! Kernel parameters that kube-proxy sets. A node that does not let us (a container's read-only `/proc/sys`, or a
//! network namespace that is not the first) is told of, and served all the same.

use std::{fs, io, time::Duration};

use podwire_kernel::sysctl::Sysctl;
use tracing::{debug, info, warn};

use super::config::Conntrack;

/// Sets what the section `conntrack` asks for. Says what could not be set.
pub fn conntrack(section: &Conntrack, processors: u32, sysctl: &mut dyn Sysctl) -> Vec<String> {
    let seconds = |time: Duration| time.as_secs();
    let max = match section.max_per_core {
        0 => 0,
        each => each.saturating_mul(processors).max(section.min),
    };
    let values = [
        ("nf_conntrack_max", u64::from(max)),
        ("nf_conntrack_tcp_timeout_established", seconds(section.tcp_established)),
        ("nf_conntrack_tcp_timeout_close_wait", seconds(section.tcp_close_wait)),
        ("nf_conntrack_tcp_be_liberal", u64::from(section.tcp_be_liberal)),
        ("nf_conntrack_udp_timeout", seconds(section.udp)),
        ("nf_conntrack_udp_timeout_stream", seconds(section.udp_stream)),
    ];
    let mut failures = Vec::new();
    for (name, value) in values.into_iter().filter(|(_, value)| *value != 0) {
        let key = format!("net/netfilter/{name}");
        match sysctl.ensure(&key, &value.to_string()) {
            Ok(()) => debug!("{key} is {value}"),
            // The limit belongs to the whole machine; whoever owns the first namespace sets it.
            Err(error) if name == "nf_conntrack_max" => info!("{key} stays as it is: {error}"),
            Err(error) => failures.push(error.to_string()),
        }
    }
    failures
}

/// Packets between pods on one bridge must pass the rules too, or answers of a Service come back untranslated.
pub fn pass_bridged_packets(sysctl: &mut dyn Sysctl) {
    for key in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        match sysctl.ensure(key, "1") {
            Ok(()) => debug!("{key} is 1"),
            Err(error) => warn!("pods may not reach Services with endpoints on their own node: {error}"),
        }
    }
}

/// Asks the kernel to spare this process (or not) when memory runs out.
pub fn set_oom_score_adj(score: i32) {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        debug!("oom_score_adj stays as it is: {error}");
    }
}

/// How many processors are online; those of the machine, not those that this process may use.
pub fn processors() -> u32 {
    let listed = fs::read_to_string("/sys/devices/system/cpu/online").and_then(|list| {
        count(list.trim()).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no list of processors"))
    });
    listed.unwrap_or_else(|error| {
        debug!("counting processors: {error}");
        1
    })
}

/// Counts the members of a list like `0-3,8`.
fn count(list: &str) -> Option<u32> {
    let part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
    };
    list.split(',').map(part).sum()
}

#[cfg(test)]
mod tests {
    use podwire_kernel::sysctl::FakeSysctl;

    use super::*;

    fn kernel(max: &str) -> FakeSysctl {
        FakeSysctl::new([
            ("net/netfilter/nf_conntrack_max", max),
            ("net/netfilter/nf_conntrack_tcp_timeout_established", "432000"),
            ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", "60"),
            ("net/netfilter/nf_conntrack_tcp_be_liberal", "0"),
            ("net/netfilter/nf_conntrack_udp_timeout", "30"),
        ])
    }

    #[test]
    fn what_is_zero_stays_and_what_cannot_be_set_is_told() {
        let section = Conntrack {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established: Duration::from_secs(86_400),
            tcp_be_liberal: true,
            udp_stream: Duration::from_secs(120),
            ..Conntrack::default()
        };
        let mut sysctl = kernel("1");
        let failures = conntrack(&section, 2, &mut sysctl);
        assert_eq!(failures.len(), 1);
        assert!(failures[0].contains("nf_conntrack_udp_timeout_stream"), "{failures:?}");
        let read = |sysctl: &FakeSysctl, name: &str| sysctl.read(&format!("net/netfilter/{name}")).unwrap();
        assert_eq!(read(&sysctl, "nf_conntrack_max"), "131072", "the minimum");
        assert_eq!(read(&sysctl, "nf_conntrack_tcp_timeout_established"), "86400");
        assert_eq!(read(&sysctl, "nf_conntrack_tcp_timeout_close_wait"), "60");
        assert_eq!(read(&sysctl, "nf_conntrack_tcp_be_liberal"), "1");
        let mut many = kernel("1");
        conntrack(&section, 8, &mut many);
        assert_eq!(read(&many, "nf_conntrack_max"), "262144", "by processor");
        let mut as_is = kernel("1");
        assert_eq!(conntrack(&Conntrack { min: 7, ..Conntrack::default() }, 8, &mut as_is), [""; 0]);
        assert_eq!(as_is, kernel("1"));
        assert_eq!(
            conntrack(&Conntrack { max_per_core: 1, ..Conntrack::default() }, 8, &mut FakeSysctl::new([])),
            [""; 0]
        );
    }

    #[test]
    fn processors_are_counted() {
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("0-3,8,10-11"), Some(7));
        assert_eq!(count("3-1"), None);
        assert_eq!(count(""), None);
        assert!(processors() >= 1);
    }
}
