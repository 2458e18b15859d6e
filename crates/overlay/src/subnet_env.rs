//! `/run/flannel/subnet.env`: how the CNI plugin learns the node's pod range and MTU.

use std::{
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;

use crate::Error;

/// The content of subnet.env. [`fmt::Display`] writes it byte for byte as flannel does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// Of each address family at most one.
    pub ranges: Vec<Range>,
    /// MTU of pods, in bytes: the smaller one, of two families.
    pub mtu: u32,
    /// Whether this daemon masquerades, so that the CNI plugin need not.
    pub ip_masq: bool,
}

/// The pod ranges of one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Of the cluster.
    pub network: IpNet,
    /// Of this node.
    pub subnet: IpNet,
}

impl fmt::Display for SubnetEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Range { network, subnet } in &self.ranges {
            let family = if network.addr().is_ipv6() { "IPV6_" } else { "" };
            writeln!(f, "FLANNEL_{family}NETWORK={network}")?;
            writeln!(f, "FLANNEL_{family}SUBNET={}/{}", first_host(subnet), subnet.prefix_len())?;
        }
        writeln!(f, "FLANNEL_MTU={}", self.mtu)?;
        writeln!(f, "FLANNEL_IPMASQ={}", self.ip_masq)
    }
}

/// The address of the node's bridge: the one after the network's own.
fn first_host(subnet: &IpNet) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(ip) => IpAddr::from(std::net::Ipv4Addr::from_bits(ip.to_bits().saturating_add(1))),
        IpAddr::V6(ip) => IpAddr::from(std::net::Ipv6Addr::from_bits(ip.to_bits().saturating_add(1))),
    }
}

impl SubnetEnv {
    /// Writes the file by rename, so that a reader sees the old content or the new one, never a part.
    ///
    /// # Errors
    /// The folder or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        write_atomically(path, self.to_string().as_bytes())
    }
}

/// Writes `content` beside `path` and renames it into place; makes missing folders.
///
/// # Errors
/// The folder or the file cannot be written.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), Error> {
    let attempt = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // A leading dot: nothing that scans the folder (the CNI configuration's, for example) takes it for a real file.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
        fs::write(&temporary, content).and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })
    };
    attempt().map_err(|source| Error::Write { path: PathBuf::from(path), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> SubnetEnv {
        SubnetEnv {
            ranges: vec![Range { network: "10.244.0.0/16".parse().unwrap(), subnet: "10.244.3.0/24".parse().unwrap() }],
            mtu: 1450,
            ip_masq: true,
        }
    }

    #[test]
    fn looks_as_flannel_writes_it() {
        let expected =
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(env().to_string(), expected);
        let mut both = env();
        both.ranges.push(Range {
            network: "fd00:10:244::/48".parse().unwrap(),
            subnet: "fd00:10:244:3::/64".parse().unwrap(),
        });
        let v6 = "FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:3::1/64\nFLANNEL_MTU";
        assert_eq!(both.to_string(), expected.replace("FLANNEL_MTU", v6));
    }

    #[test]
    fn is_replaced_whole_and_leaves_no_temporary_file() {
        let folder = std::env::temp_dir().join(format!("podwire-subnet-env-{}", std::process::id()));
        let path = folder.join("run/flannel/subnet.env");
        env().write(&path).unwrap();
        let changed = SubnetEnv { mtu: 8950, ..env() };
        changed.write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), changed.to_string());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn an_impossible_path_is_named() {
        let message = env().write(Path::new("/proc/podwire/subnet.env")).unwrap_err().to_string();
        assert!(message.starts_with("writing /proc/podwire/subnet.env: "), "{message}");
    }
}
