//! Addresses and node ports of Services. What is taken is read from the stored Services; there is no second book.

use std::{collections::HashSet, net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Causes, cluster_ip};
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
        cluster_ip::keep_one_family(old, new);
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
/// `ranges` has one range, or one of each family; `others` is what all other Services hold.
pub(crate) fn allocate(service: &mut Value, ranges: &[IpNet], others: &mut Taken, causes: &mut Causes) {
    let Some(spec) = service.get_mut("spec") else { return };
    let kind = text(spec, "/type").to_owned();
    if kind == "ExternalName" {
        return;
    }
    cluster_ip::claim(spec, ranges, &others.addresses, causes);
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
        allocate(&mut service, &[RANGE.parse().unwrap()], &mut Taken::by(others.iter()), &mut causes);
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
