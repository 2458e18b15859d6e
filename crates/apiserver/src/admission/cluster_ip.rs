//! Families and cluster addresses of Services, with the words and rules of kube-apiserver (KEP-563 for two families).

use std::{collections::HashSet, net::IpAddr};

use ipnet::IpNet;
use serde_json::{Value, json};

use super::Causes;
use crate::{
    object::{items, text},
    random,
    status::Cause,
};

/// Decides the families of a Service that is not an ExternalName, and gives it the addresses it still lacks.
///
/// `ranges` has one range, or one of each family, the preferred one first; `taken` is what other Services hold.
pub(super) fn claim(spec: &mut Value, ranges: &[IpNet], taken: &HashSet<IpAddr>, causes: &mut Causes) {
    let asked = asked(spec, causes);
    let Some(chosen) = families(spec, ranges, &asked, causes) else { return };
    spec["ipFamilies"] = chosen.iter().map(|range| family(*range)).collect();
    if asked.first().is_some_and(|first| first == "None") {
        spec["clusterIPs"] = json!(["None"]);
        spec["clusterIP"] = "None".into();
        return;
    }
    let mut given = Vec::new();
    for (index, range) in chosen.into_iter().enumerate() {
        let address = match asked.get(index) {
            None => free_address(range, taken).ok_or_else(|| {
                let why = format!("failed to allocate an address: the service range {range} is full");
                Cause::invalid("spec.clusterIPs", Value::Null, why)
            }),
            Some(text) => check(text, index, range, taken),
        };
        match address {
            Ok(address) => given.push(address.to_string()),
            Err(cause) => return causes.push(cause),
        }
    }
    spec["clusterIP"] = given.first().cloned().into();
    spec["clusterIPs"] = given.into();
}

/// What a Service has of a second family goes when an update asks for one only.
pub(super) fn keep_one_family(old: &Value, new: &mut Value) {
    if new["ipFamilyPolicy"] != "SingleStack" || old["ipFamilyPolicy"] == "SingleStack" {
        return;
    }
    for field in ["clusterIPs", "ipFamilies"] {
        if new[field] == old[field]
            && let Some(values) = new[field].as_array_mut()
        {
            values.truncate(1);
        }
    }
}

/// The addresses that the client asks for, or `None` alone.
fn asked(spec: &Value, causes: &mut Causes) -> Vec<String> {
    let mut asked: Vec<String> =
        items(spec, "/clusterIPs").iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let first = text(spec, "/clusterIP");
    match asked.first() {
        None if !first.is_empty() => asked.push(first.to_owned()),
        Some(other) if !first.is_empty() && other != first => {
            let why = "first value must match `clusterIP`";
            causes.push(Cause::invalid("spec.clusterIPs", spec["clusterIPs"].clone(), why));
            first.clone_into(&mut asked[0]);
        }
        _ => {}
    }
    asked
}

/// The ranges of the Service's families, in its order; writes the policy if there is none.
fn families(spec: &mut Value, ranges: &[IpNet], asked: &[String], causes: &mut Causes) -> Option<Vec<IpNet>> {
    let wanted = items(spec, "/ipFamilies").to_vec();
    if spec["ipFamilyPolicy"].is_null() {
        let two = wanted.len() > 1 || asked.len() > 1;
        spec["ipFamilyPolicy"] = if two { "RequireDualStack" } else { "SingleStack" }.into();
    }
    let policy = text(spec, "/ipFamilyPolicy");
    if policy == "RequireDualStack" && ranges.len() < 2 {
        let why = "this cluster is not configured for dual-stack services";
        causes.push(Cause::invalid("spec.ipFamilyPolicy", policy, why));
    }
    let mut chosen = Vec::new();
    for (index, name) in wanted.iter().enumerate() {
        match ranges.iter().find(|range| name == family(**range)) {
            Some(range) if !chosen.contains(range) => chosen.push(*range),
            Some(_) => causes.push(Cause::invalid(format!("spec.ipFamilies[{index}]"), name.clone(), "is there twice")),
            None => {
                let all: Vec<String> = ranges.iter().map(ToString::to_string).collect();
                let why = format!("not configured on this cluster (its service range is {})", all.join(", "));
                causes.push(Cause::invalid(format!("spec.ipFamilies[{index}]"), name.clone(), why));
            }
        }
    }
    // An address says its family where the list of families does not.
    for address in asked.iter().skip(chosen.len()).filter_map(|text| text.parse::<IpAddr>().ok()) {
        let range = ranges.iter().find(|range| range.addr().is_ipv4() == address.is_ipv4());
        chosen.extend(range.filter(|range| !chosen.contains(range)).copied().as_slice());
    }
    if chosen.is_empty() {
        chosen.extend(ranges.first());
    }
    if policy == "SingleStack" && chosen.len() > 1 {
        let why = "may not be SingleStack with more than one address or family";
        causes.push(Cause::invalid("spec.ipFamilyPolicy", policy, why));
    }
    if policy != "SingleStack" {
        let other = ranges.iter().find(|range| !chosen.contains(range)).copied();
        chosen.extend(other);
    }
    if asked.len() > chosen.len() {
        let why = "more addresses than the Service has families";
        causes.push(Cause::invalid("spec.clusterIPs", json!(asked), why));
        return None;
    }
    Some(chosen)
}

fn family(range: IpNet) -> &'static str {
    if range.addr().is_ipv4() { "IPv4" } else { "IPv6" }
}

/// An address that the client asks for, if it may have it.
fn check(asked: &str, index: usize, range: IpNet, taken: &HashSet<IpAddr>) -> Result<IpAddr, Cause> {
    let Ok(address) = asked.parse::<IpAddr>() else {
        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        return Err(Cause::invalid(format!("spec.clusterIPs[{index}]"), asked, why));
    };
    let refused = |why: &str| {
        let why = format!("failed to allocate IP {address}: {why}");
        Err(Cause::invalid("spec.clusterIPs", json!([asked]), why))
    };
    if !range.contains(&address) || address == range.network() || address == range.broadcast() {
        let why = format!("the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}");
        refused(&why)
    } else if taken.contains(&address) {
        refused("provided IP is already allocated")
    } else {
        Ok(address)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const RANGES: [&str; 2] = ["10.96.0.0/12", "fd00:10:96::/112"];

    fn admit(mut spec: Value, ranges: &[&str]) -> (Value, Vec<String>) {
        let ranges: Vec<IpNet> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let mut causes = Causes::new();
        claim(&mut spec, &ranges, &HashSet::new(), &mut causes);
        (spec, causes.iter().map(Cause::to_string).collect())
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
    fn a_service_gets_the_families_that_its_policy_asks_for() {
        // What the client says, the policy and the families that come of it.
        let rows = [
            (json!({}), "SingleStack", json!(["IPv4"])),
            (json!({"ipFamilies": ["IPv6"]}), "SingleStack", json!(["IPv6"])),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack", json!(["IPv4", "IPv6"])),
            (json!({"ipFamilies": ["IPv6", "IPv4"]}), "RequireDualStack", json!(["IPv6", "IPv4"])),
            (
                json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
                "RequireDualStack",
                json!(["IPv6", "IPv4"]),
            ),
            (json!({"clusterIP": "fd00:10:96::a"}), "SingleStack", json!(["IPv6"])),
            (json!({"clusterIPs": ["10.96.0.10", "fd00:10:96::a"]}), "RequireDualStack", json!(["IPv4", "IPv6"])),
        ];
        for (asked, policy, families) in rows {
            let (spec, causes) = admit(asked.clone(), &RANGES);
            assert!(causes.is_empty(), "{asked}: {causes:?}");
            assert_eq!((&spec["ipFamilyPolicy"], &spec["ipFamilies"]), (&json!(policy), &families), "{asked}");
            let given = items(&spec, "/clusterIPs");
            let of = |address: &Value| if address.as_str().unwrap().contains(':') { "IPv6" } else { "IPv4" };
            assert_eq!(given.iter().map(of).collect::<Value>(), families, "{asked}: {spec}");
            assert_eq!(given[0], spec["clusterIP"]);
        }
        let (spec, _) = admit(json!({"clusterIP": "None", "ipFamilyPolicy": "PreferDualStack"}), &RANGES);
        assert_eq!((&spec["clusterIPs"], &spec["ipFamilies"]), (&json!(["None"]), &json!(["IPv4", "IPv6"])));
        let (spec, _) = admit(json!({"ipFamilyPolicy": "PreferDualStack"}), &RANGES[..1]);
        assert_eq!(spec["ipFamilies"], json!(["IPv4"]), "as far as the cluster has them");
    }

    #[test]
    fn what_no_service_can_have_is_refused() {
        let rows = [
            (json!({"ipFamilyPolicy": "RequireDualStack"}), 1, "not configured for dual-stack services"),
            (json!({"ipFamilies": ["IPv6"]}), 1, "not configured on this cluster (its service range is 10.96.0.0/12)"),
            (json!({"ipFamilies": ["IPv4", "IPv4"]}), 2, "spec.ipFamilies[1]"),
            (json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4", "IPv6"]}), 2, "may not be SingleStack"),
            (json!({"clusterIPs": ["10.96.0.10", "10.96.0.11"]}), 2, "is not in the valid range"),
            (json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.10"]}), 2, "first value must match"),
            (json!({"clusterIP": "10.96.0"}), 2, "must be a valid IP address"),
            (json!({"clusterIPs": ["10.96.0.1", "fd00:10:96::1", "10.96.0.2"]}), 2, "more addresses"),
        ];
        for (asked, ranges, expected) in rows {
            let (_, causes) = admit(asked.clone(), &RANGES[..ranges]);
            assert!(causes.iter().any(|cause| cause.contains(expected)), "{asked}: {causes:?}");
        }
    }

    #[test]
    fn a_family_can_be_added_and_taken_away() {
        let (old, _) = admit(json!({}), &RANGES);
        let mut more = old.clone();
        more["ipFamilyPolicy"] = "PreferDualStack".into();
        let (both, causes) = admit(more, &RANGES);
        assert!(causes.is_empty(), "{causes:?}");
        assert_eq!((&both["clusterIP"], items(&both, "/clusterIPs").len()), (&old["clusterIP"], 2));
        let mut fewer = both.clone();
        fewer["ipFamilyPolicy"] = "SingleStack".into();
        keep_one_family(&both, &mut fewer);
        let (one, causes) = admit(fewer, &RANGES);
        assert!(causes.is_empty(), "{causes:?}");
        assert_eq!(one, old);
    }
}
