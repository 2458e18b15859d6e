//! Addresses and node ports of Services. What is taken is read from the stored Services; there is no second book.

use std::{collections::HashSet, net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;
use serde_json::{Value, json};

use super::Causes;
use crate::{
    object::{items, items_mut, number, remove, text},
    random,
    status::Cause,
};

/// `--service-node-port-range`.
const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;

/// What Services hold.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    addresses: HashSet<IpAddr>,
    ports: HashSet<(u16, String)>,
}

impl Taken {
    /// What all these Services hold.
    pub fn by<'a>(services: impl Iterator<Item = &'a Value>) -> Taken {
        let mut taken = Taken::default();
        for service in services {
            taken.addresses.extend(items(service, "/spec/clusterIPs").iter().filter_map(address));
            for port in items(service, "/spec/ports") {
                if let Some(number) = node_port(port) {
                    taken.ports.insert((number, text(port, "/protocol").to_owned()));
                }
            }
            if let Some(port) = number(service, "/spec/healthCheckNodePort").and_then(|p| u16::try_from(p).ok()) {
                taken.ports.insert((port, "TCP".to_owned()));
            }
        }
        taken
    }
}

fn address(value: &Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}

fn node_port(port: &Value) -> Option<u16> {
    number(port, "/nodePort").and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0)
}

/// Keeps what `old` was given where the client left it out, and drops what the new type does not have.
pub(crate) fn carry_over(old: &Value, new: &mut Value) {
    let (old, Some(new)) = (&old["spec"], new.get_mut("spec")) else { return };
    let (was, is) = (text(old, "/type").to_owned(), text(new, "/type").to_owned());
    if was != "ExternalName" && is != "ExternalName" {
        if text(new, "/clusterIP").is_empty() && items(new, "/clusterIPs").is_empty() {
            for field in ["clusterIP", "clusterIPs"] {
                crate::object::carry(old, new, field);
            }
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if new[field].is_null() {
                crate::object::carry(old, new, field);
            }
        }
    }
    let old_ports: Vec<Value> = items(old, "/ports").to_vec();
    for port in items_mut(new, "ports") {
        let same = |p: &&Value| p["port"] == port["port"] && p["protocol"] == port["protocol"];
        let Some(old_port) = old_ports.iter().find(same) else { continue };
        if has_node_ports(&is) && node_port(port).is_none() && has_node_ports(&was) {
            crate::object::carry(old_port, port, "nodePort");
        } else if is == "ClusterIP" && has_node_ports(&was) && node_port(port) == node_port(old_port) {
            remove(port, "nodePort");
        }
    }
    if is == "ExternalName" && was != is {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if new[field] == old[field] {
                remove(new, field);
            }
        }
    }
    if is != "LoadBalancer" || text(new, "/externalTrafficPolicy") != "Local" {
        remove(new, "healthCheckNodePort");
    } else if new["healthCheckNodePort"].is_null() {
        crate::object::carry(old, new, "healthCheckNodePort");
    }
    if is == "ClusterIP" && items(new, "/externalIPs").is_empty() {
        remove(new, "externalTrafficPolicy");
    }
}

fn has_node_ports(kind: &str) -> bool {
    matches!(kind, "NodePort" | "LoadBalancer")
}

/// Gives a Service the addresses and ports it still lacks; finds the ones it may not have.
///
/// `others` is what all other Services hold.
pub(crate) fn allocate(service: &mut Value, range: IpNet, others: &mut Taken, causes: &mut Causes) {
    let Some(spec) = service.get_mut("spec") else { return };
    let kind = text(spec, "/type").to_owned();
    if kind == "ExternalName" {
        return;
    }
    cluster_ip(spec, range, others, causes);
    if has_node_ports(&kind) {
        let automatic = kind == "NodePort" || spec["allocateLoadBalancerNodePorts"] != false;
        for (index, port) in items_mut(spec, "ports").iter_mut().enumerate() {
            claim_node_port(port, &format!("spec.ports[{index}].nodePort"), automatic, others, causes);
        }
        if kind == "LoadBalancer" && text(spec, "/externalTrafficPolicy") == "Local" {
            let mut port = json!({"protocol": "TCP", "nodePort": spec["healthCheckNodePort"]});
            claim_node_port(&mut port, "spec.healthCheckNodePort", true, others, causes);
            spec["healthCheckNodePort"] = port["nodePort"].clone();
        }
    }
}

fn cluster_ip(spec: &mut Value, range: IpNet, others: &mut Taken, causes: &mut Causes) {
    let family = if range.addr().is_ipv4() { "IPv4" } else { "IPv6" };
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = "SingleStack".into();
    }
    if spec["ipFamilyPolicy"] == "RequireDualStack" {
        causes.push(Cause::invalid(
            "spec.ipFamilyPolicy",
            "RequireDualStack",
            "this cluster is not configured for dual-stack services",
        ));
    }
    let families = items(spec, "/ipFamilies");
    if let Some(other) = families.iter().find(|f| *f != family) {
        let why = format!("not configured on this cluster (its service range is {range})");
        causes.push(Cause::invalid("spec.ipFamilies[0]", other.clone(), why));
    }
    spec["ipFamilies"] = json!([family]);
    let asked = match text(spec, "/clusterIP") {
        "" => text(spec, "/clusterIPs/0").to_owned(),
        asked => asked.to_owned(),
    };
    let first = text(spec, "/clusterIPs/0");
    if !first.is_empty() && first != asked {
        causes.push(Cause::invalid(
            "spec.clusterIPs",
            spec["clusterIPs"].clone(),
            "first value must match `clusterIP`",
        ));
    }
    let given = match asked.as_str() {
        "None" => "None".to_owned(),
        "" => match free_address(range, &others.addresses) {
            Some(address) => address.to_string(),
            None => {
                let why = format!("failed to allocate an address: the service range {range} is full");
                return causes.push(Cause::invalid("spec.clusterIPs", Value::Null, why));
            }
        },
        text => match text.parse::<IpAddr>() {
            Err(_) => {
                let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                return causes.push(Cause::invalid("spec.clusterIPs[0]", text, why));
            }
            Ok(address) => {
                let value = json!([text]);
                if !range.contains(&address) || address == range.network() || address == range.broadcast() {
                    let why = format!(
                        "failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
                    );
                    causes.push(Cause::invalid("spec.clusterIPs", value, why));
                } else if others.addresses.contains(&address) {
                    let why = format!("failed to allocate IP {address}: provided IP is already allocated");
                    causes.push(Cause::invalid("spec.clusterIPs", value, why));
                }
                address.to_string()
            }
        },
    };
    spec["clusterIPs"] = json!([given]);
    spec["clusterIP"] = given.into();
}

/// A free address of the range, drawn from its upper part as kube-apiserver does, so that the lower part stays for
/// addresses users choose. The next free one from a random start.
fn free_address(range: IpNet, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
    let (first, last) = (bits(range.network()) + 1, bits(range.broadcast()).saturating_sub(1));
    let size = (last + 1).checked_sub(first).filter(|s| *s > 0)?;
    // min(max(16, size/16), 256), as KEP-3070 has it; nothing for tiny ranges.
    let reserved = if size < 16 { 0 } else { (size / 16).clamp(16, 256).min(size) };
    let upper = (reserved..size, random::below(size - reserved));
    let lower = (0..reserved, random::below(reserved));
    [upper, lower].into_iter().find_map(|(part, start)| {
        let length = part.end - part.start;
        // Among one more addresses than are taken, one is free.
        (0..length.min(taken.len() as u128 + 1))
            .map(|i| from_bits(first + part.start + (start + i) % length, range.addr().is_ipv4()))
            .find(|address| !taken.contains(address))
    })
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn from_bits(bits: u128, v4: bool) -> IpAddr {
    match u32::try_from(bits) {
        Ok(small) if v4 => IpAddr::V4(small.into()),
        _ => IpAddr::V6(bits.into()),
    }
}

fn claim_node_port(port: &mut Value, field: &str, automatic: bool, others: &mut Taken, causes: &mut Causes) {
    let protocol = text(port, "/protocol").to_owned();
    let number = match node_port(port) {
        Some(asked) if !NODE_PORTS.contains(&asked) => {
            let why = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                NODE_PORTS.start(),
                NODE_PORTS.end()
            );
            return causes.push(Cause::invalid(field, asked, why));
        }
        Some(asked) if others.ports.contains(&(asked, protocol.clone())) => {
            return causes.push(Cause::invalid(field, asked, "provided port is already allocated"));
        }
        Some(asked) => asked,
        None if !automatic => return,
        None => {
            let length = NODE_PORTS.end() - NODE_PORTS.start() + 1;
            let start = u16::try_from(random::below(u128::from(length))).unwrap_or(0);
            let mut all = (0..length).map(|i| NODE_PORTS.start() + (start + i) % length);
            let Some(free) =
                all.find(|p| !["TCP", "UDP", "SCTP"].iter().any(|t| others.ports.contains(&(*p, (*t).to_owned()))))
            else {
                return causes.push(Cause::invalid(field, 0, "failed to allocate a nodePort: the range is full"));
            };
            free
        }
    };
    others.ports.insert((number, protocol));
    port["nodePort"] = number.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: &str = "10.96.0.0/12";

    fn admit(spec: Value, others: &[Value]) -> (Value, Vec<String>) {
        let mut service = json!({ "spec": spec });
        super::super::defaults::service(&mut service);
        let mut causes = Causes::new();
        allocate(&mut service, RANGE.parse().unwrap(), &mut Taken::by(others.iter()), &mut causes);
        (service["spec"].take(), causes.iter().map(Cause::to_string).collect())
    }

    #[test]
    fn an_address_is_drawn_from_the_upper_part() {
        for _ in 0..100 {
            let (spec, causes) = admit(json!({"ports": [{"port": 80}]}), &[]);
            assert!(causes.is_empty(), "{causes:?}");
            let address: std::net::Ipv4Addr = text(&spec, "/clusterIP").parse().unwrap();
            assert!(address.octets() > [10, 96, 1, 0] && address.octets() < [10, 111, 255, 255]);
            assert_eq!(spec["clusterIPs"][0], spec["clusterIP"]);
            assert_eq!(spec["ipFamilies"], json!(["IPv4"]));
        }
    }

    #[test]
    fn every_address_of_a_small_range_is_used_and_then_none() {
        let range: IpNet = "10.0.0.0/28".parse().unwrap();
        let mut taken = HashSet::new();
        for _ in 0..14 {
            assert!(taken.insert(free_address(range, &taken).unwrap()));
        }
        assert_eq!(free_address(range, &taken), None);
        assert!(!taken.contains(&"10.0.0.0".parse().unwrap()) && !taken.contains(&"10.0.0.15".parse().unwrap()));
    }

    #[test]
    fn taken_and_foreign_addresses_are_refused() {
        let other = json!({"spec": {"clusterIPs": ["10.96.0.10"], "ports": []}});
        let (_, causes) = admit(json!({"clusterIP": "10.96.0.10"}), std::slice::from_ref(&other));
        assert_eq!(
            causes,
            [
                r#"spec.clusterIPs: Invalid value: ["10.96.0.10"]: failed to allocate IP 10.96.0.10: provided IP is already allocated"#
            ]
        );
        let (_, causes) = admit(json!({"clusterIP": "10.1.0.1"}), &[]);
        assert!(causes[0].contains("The range of valid IPs is 10.96.0.0/12"), "{causes:?}");
        let (spec, causes) = admit(json!({"clusterIP": "None"}), &[]);
        assert!(causes.is_empty());
        assert_eq!(spec["clusterIPs"], json!(["None"]));
    }

    #[test]
    fn node_ports_are_given_kept_and_refused() {
        let (spec, causes) = admit(json!({"type": "NodePort", "ports": [{"port": 80}]}), &[]);
        assert!(causes.is_empty());
        let port = spec["ports"][0]["nodePort"].as_u64().unwrap();
        assert!((30000..=32767).contains(&port));
        let taken = json!({ "spec": spec });
        let (_, causes) =
            admit(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}), std::slice::from_ref(&taken));
        assert_eq!(
            causes,
            [format!("spec.ports[0].nodePort: Invalid value: {port}: provided port is already allocated")]
        );
        let (_, causes) = admit(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}), &[]);
        assert!(causes[0].contains("The range of valid ports is 30000-32767"), "{causes:?}");
        let udp = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port, "protocol": "UDP"}]});
        assert!(admit(udp, &[taken]).1.is_empty());
    }

    #[test]
    fn an_update_keeps_what_was_given() {
        let (spec, _) = admit(json!({"type": "NodePort", "ports": [{"port": 80}]}), &[]);
        let old = json!({ "spec": spec });
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        carry_over(&old, &mut new);
        assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
        assert_eq!(new["spec"]["ports"][0]["nodePort"], old["spec"]["ports"][0]["nodePort"]);
        let mut plain = old.clone();
        plain["spec"]["type"] = "ClusterIP".into();
        carry_over(&old, &mut plain);
        assert_eq!(plain["spec"]["ports"][0]["nodePort"], Value::Null);
    }
}
