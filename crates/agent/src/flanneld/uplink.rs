//! Which interface the flags mean.

use std::net::IpAddr;

use anyhow::{Context, ensure};
use podwire_kernel::route::{Route, RouteSocket, Scope};
use podwire_model::{Family, Node};
use podwire_overlay::{Uplink, uplink};
use regex::Regex;

use super::Args;

/// Chooses the uplink of `family` by `--iface`, `--iface-regex` and `--iface-can-reach`, in this order, or else as
/// [`uplink::choose`] does without any.
///
/// # Errors
/// None that they name exists, or it has no address of the family. The kernel could not be read.
pub(super) fn choose(kernel: &mut RouteSocket, args: &Args, node: &Node, family: Family) -> anyhow::Result<Uplink> {
    let mut wanted = args.iface.clone();
    for regex in &args.iface_regex {
        wanted.extend(matching(kernel, regex, family)?);
    }
    if let Some(target) = args.iface_can_reach {
        let hop = kernel.next_hops(&[target])?.into_iter().next().flatten();
        let hop = hop.with_context(|| format!("--iface-can-reach {target}: no route leads there"))?;
        wanted.extend(kernel.link_by_index(hop.device)?.map(|link| link.name));
    }
    let patterns: Vec<_> = args.iface_regex.iter().map(Regex::as_str).collect();
    ensure!(
        !wanted.is_empty() || patterns.is_empty(),
        "--iface-regex {}: no interface has such an address or name",
        patterns.join(", ")
    );
    Ok(uplink::choose(kernel, &wanted, node, family)?)
}

/// The first address of the family that `regex` is found in; or else the first interface with such an address of the other
/// family, or such a name.
fn matching(kernel: &mut RouteSocket, regex: &Regex, family: Family) -> anyhow::Result<Option<String>> {
    let links = kernel.links()?;
    let mut addresses = kernel.addresses(None)?;
    addresses.retain(|found| found.scope == Scope::Global);
    addresses.sort_by_key(|found| found.device);
    let is_it = |ip: &IpAddr| regex.is_match(&ip.to_string());
    let all = addresses.iter().map(|found| (found.device, found.net.addr())).filter(|(_, ip)| is_it(ip));
    if let Some((_, ip)) = all.clone().find(|(_, ip)| Family::of(ip) == family) {
        return Ok(Some(ip.to_string()));
    }
    let holder = all.clone().find_map(|(device, _)| links.iter().find(|link| link.index == device));
    let named = || links.iter().find(|link| regex.is_match(&link.name));
    Ok(holder.or_else(named).map(|link| link.name.clone()))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, process::Command};

    use clap::Parser;
    use podwire_kernel::ns::Namespace;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn chosen(flags: &str, family: Family) -> Result<(String, String), String> {
        let args = Cli::parse_from(["flanneld"].into_iter().chain(flags.split_whitespace())).args;
        let node = Node {
            name: "node1".into(),
            internal_ips: vec!["172.25.2.1".parse().unwrap()],
            pod_cidrs: vec![],
            zone: None,
            annotations: BTreeMap::new(),
            deleting: false,
        };
        let uplink = choose(&mut RouteSocket::open().unwrap(), &args, &node, family);
        uplink.map(|uplink| (uplink.name.to_string(), uplink.address.to_string())).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_are_tried_in_flannels_order() {
        let namespace = match Namespace::new_net() {
            Ok(namespace) => namespace,
            Err(error) if std::env::var_os("CI").is_some() => panic!("this test needs a network namespace: {error}"),
            Err(error) => return eprintln!("skipped: {error}"),
        };
        let test = || {
            for line in [
                "link add eth0 type veth peer name other0",
                "link add eth1 type veth peer name other1",
                "link set eth0 up",
                "link set eth1 up",
                "link set other0 up",
                "link set other1 up",
                "addr add 172.25.2.1/24 dev eth0",
                "addr add 192.0.2.7/24 dev eth1",
                "addr add 2001:db8::7/64 dev eth1 nodad",
                "route add 198.51.100.0/24 via 192.0.2.254",
            ] {
                assert!(Command::new("ip").args(line.split(' ')).status().unwrap().success(), "{line}");
            }
            let eth0 = Ok(("eth0".to_owned(), "172.25.2.1".to_owned()));
            let eth1 = Ok(("eth1".to_owned(), "192.0.2.7".to_owned()));
            let rows = [
                ("", &eth0),
                ("--iface-regex=^192\\.0\\.", &eth1),
                ("--iface-regex=^eth1$", &eth1),
                ("--iface-regex=^nothing$ --iface-regex=eth0", &eth0),
                ("--iface-can-reach=198.51.100.9", &eth1),
                ("--iface=eth9 --iface-regex=eth1 --iface-can-reach=172.25.2.9", &eth1),
                ("--iface=eth0 --iface-regex=eth1", &eth0),
                ("--iface-regex=^nothing$ --iface-can-reach=198.51.100.9", &eth1),
            ];
            for (flags, expected) in rows {
                assert_eq!(chosen(flags, Family::V4), *expected, "{flags}");
            }
            let by_v4 = Ok(("eth1".to_owned(), "2001:db8::7".to_owned()));
            assert_eq!(chosen("--iface-regex=^192\\.0\\.", Family::V6), by_v4);
            assert_eq!(chosen("--iface-regex=^2001:db8:", Family::V6), by_v4);
            let message = chosen("--iface-regex=^ens", Family::V4).unwrap_err();
            assert!(message.contains("--iface-regex ^ens"), "{message}");
            let message = chosen("--iface-can-reach=203.0.113.1", Family::V4).unwrap_err();
            assert!(message.contains("--iface-can-reach 203.0.113.1: no route"), "{message}");
            Ok::<_, podwire_kernel::Error>(())
        };
        namespace.run(test).unwrap();
    }
}
