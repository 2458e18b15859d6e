//! From the configuration and what the API says to what a mode is told.

use std::net::IpAddr;

use podwire_model::{Family, IpNet, Node};
use podwire_proxy::mode::{DetectLocal, Settings};

use super::config::{self, Config};

/// Everything that a mode is told at its start: a change of it means another start.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The mode's name.
    pub mode: String,
    /// Its settings.
    pub settings: Settings,
}

impl Wanted {
    /// What is wanted on `node`, if that is known; `None` as long as the Node object does not say what is asked of it.
    pub fn new(config: &Config, node: Option<&Node>, service_ranges: &[IpNet]) -> Option<Self> {
        let detect_local = match &config.detect_local {
            config::DetectLocal::ClusterCidr(ranges) if ranges.is_empty() => DetectLocal::Unknown,
            config::DetectLocal::ClusterCidr(ranges) => DetectLocal::Ranges(ranges.clone()),
            config::DetectLocal::NodeCidr => {
                let ranges = &node?.pod_cidrs;
                DetectLocal::Ranges(Some(ranges).filter(|ranges| !ranges.is_empty())?.clone())
            }
            config::DetectLocal::BridgeInterface(name) => DetectLocal::Interface(name.clone()),
            config::DetectLocal::InterfaceNamePrefix(prefix) => DetectLocal::InterfacePrefix(prefix.clone()),
        };
        let settings = Settings {
            detect_local,
            node_port_addresses: config.node_port_addresses.clone(),
            node_ips: node_ips(config.bind_address, node.map_or(&[], |node| &node.internal_ips)),
            service_ranges: service_ranges.to_vec(),
            masquerade_mark: config.masquerade_mark,
            drop_invalid: !config.conntrack.tcp_be_liberal,
            localhost_node_ports: config.localhost_node_ports,
            ipvs: config.ipvs.clone(),
        };
        Some(Self { mode: config.mode.clone(), settings })
    }
}

/// Of each family the first.
pub fn primary_ips(node_ips: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let first = |family| node_ips.iter().copied().find(|address| Family::of(address) == family);
    [Family::V4, Family::V6].into_iter().filter_map(first)
}

/// The node's addresses; `primary` comes before those of its family.
fn node_ips(primary: Option<IpAddr>, addresses: &[IpAddr]) -> Vec<IpAddr> {
    let others = addresses.iter().copied().filter(|address| Some(*address) != primary);
    let mut ips: Vec<IpAddr> = primary.into_iter().chain(others).collect();
    // Stable: of each family the first stays the first.
    ips.sort_by_key(|address| {
        Family::of(address) != addresses.first().or(primary.as_ref()).map_or(Family::V4, Family::of)
    });
    ips
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use podwire_proxy::mode::NodePortAddresses;

    use super::{super::schema::Configuration, *};

    fn config(change: impl FnOnce(&mut Configuration)) -> Config {
        let mut file = Configuration::default();
        change(&mut file);
        Config::new(&file.with_defaults()).unwrap()
    }

    fn node(addresses: &[&str], pod_cidrs: &[&str]) -> Node {
        Node {
            name: "node1".into(),
            internal_ips: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            pod_cidrs: pod_cidrs.iter().map(|text| text.parse().unwrap()).collect(),
            zone: None,
            annotations: BTreeMap::new(),
            deleting: false,
        }
    }

    #[test]
    fn pods_are_told_by_what_the_configuration_says() {
        let told = |mode: &str| {
            let mode = mode.to_owned();
            let config = config(|file| {
                file.detect_local_mode = mode;
                file.cluster_cidr = "10.244.0.0/16".to_owned();
                file.detect_local.bridge_interface = "cni0".to_owned();
                file.detect_local.interface_name_prefix = "veth".to_owned();
            });
            let node = node(&["172.25.2.1"], &["10.244.1.0/24", "fd00:1::/64"]);
            Wanted::new(&config, Some(&node), &[]).unwrap().settings.detect_local
        };
        let ranges = |texts: &[&str]| DetectLocal::Ranges(texts.iter().map(|text| text.parse().unwrap()).collect());
        assert_eq!(told("ClusterCIDR"), ranges(&["10.244.0.0/16"]));
        assert_eq!(told("NodeCIDR"), ranges(&["10.244.1.0/24", "fd00:1::/64"]));
        assert_eq!(told("BridgeInterface"), DetectLocal::Interface("cni0".to_owned()));
        assert_eq!(told("InterfaceNamePrefix"), DetectLocal::InterfacePrefix("veth".to_owned()));
        let unknown = Wanted::new(&config(|_| ()), None, &[]).unwrap();
        assert_eq!(unknown.settings.detect_local, DetectLocal::Unknown);
    }

    #[test]
    fn node_ranges_are_waited_for() {
        let config = config(|file| file.detect_local_mode = "NodeCIDR".to_owned());
        assert_eq!(Wanted::new(&config, None, &[]), None);
        assert_eq!(Wanted::new(&config, Some(&node(&["172.25.2.1"], &[])), &[]), None);
        assert!(Wanted::new(&config, Some(&node(&[], &["10.244.1.0/24"])), &[]).is_some());
    }

    #[test]
    fn the_bind_address_is_the_primary_one_of_its_family() {
        let ips = |bind: &str, node: &Node| {
            let config = config(|file| bind.clone_into(&mut file.bind_address));
            let ips = Wanted::new(&config, Some(node), &[]).unwrap().settings.node_ips;
            ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
        };
        let dual = node(&["172.25.2.1", "fd00::1", "172.25.2.2"], &[]);
        assert_eq!(ips("0.0.0.0", &dual), "172.25.2.1 172.25.2.2 fd00::1");
        assert_eq!(ips("172.25.2.2", &dual), "172.25.2.2 172.25.2.1 fd00::1");
        assert_eq!(ips("fd00::9", &dual), "172.25.2.1 172.25.2.2 fd00::9 fd00::1");
        assert_eq!(ips("10.0.0.9", &node(&[], &[])), "10.0.0.9");
    }

    #[test]
    fn only_nftables_serves_node_ports_on_primary_addresses_by_default() {
        let addresses = |mode: &str| config(|file| mode.clone_into(&mut file.mode)).node_port_addresses;
        assert_eq!(addresses("nftables"), NodePortAddresses::Primary);
        assert_eq!(addresses("iptables"), NodePortAddresses::All);
    }
}
