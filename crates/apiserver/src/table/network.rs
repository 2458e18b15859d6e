//! Services and their endpoints.

use serde_json::Value;

use super::{
    Printer,
    cells::{NONE, age, or_none},
    column, name, wide,
};
use crate::object::{entries, items, number, text};

/// Endpoints shown before the rest is only counted.
const SHOWN: usize = 3;

pub(crate) const SERVICE: Printer = Printer {
    columns: &[
        column("Name"),
        column("Type"),
        column("Cluster-IP"),
        column("External-IP"),
        column("Port(s)"),
        column("Age"),
        wide("Selector"),
    ],
    row: |o| {
        let selector = entries(o, "/spec/selector").into_iter().flatten();
        let selector: Vec<_> = selector.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
        vec![
            name(o),
            text(o, "/spec/type").into(),
            or_none(text(o, "/spec/clusterIP")),
            external(o).into(),
            service_ports(o),
            age(o),
            or_none(&selector.join(",")),
        ]
    },
};

/// What a Service is reached by from outside.
fn external(service: &Value) -> String {
    let kind = text(service, "/spec/type");
    if kind == "ExternalName" {
        return text(service, "/spec/externalName").to_owned();
    }
    let mut all: Vec<&str> = Vec::new();
    if kind == "LoadBalancer" {
        for entry in items(service, "/status/loadBalancer/ingress") {
            all.extend([text(entry, "/ip"), text(entry, "/hostname")].into_iter().find(|t| !t.is_empty()));
        }
    }
    all.extend(items(service, "/spec/externalIPs").iter().filter_map(Value::as_str));
    match (all.is_empty(), kind) {
        (true, "LoadBalancer") => "<pending>".to_owned(),
        (true, _) => NONE.to_owned(),
        (false, _) => all.join(","),
    }
}

fn service_ports(service: &Value) -> Value {
    let ports = items(service, "/spec/ports").iter().map(|p| {
        let (port, protocol) = (number(p, "/port").unwrap_or(0), text(p, "/protocol"));
        match number(p, "/nodePort").unwrap_or(0) {
            0 => format!("{port}/{protocol}"),
            node => format!("{port}:{node}/{protocol}"),
        }
    });
    or_none(&ports.collect::<Vec<_>>().join(","))
}

pub(crate) const ENDPOINTS: Printer = Printer {
    columns: &[column("Name"), column("Endpoints"), column("Age")],
    row: |o| {
        let mut all = Vec::new();
        for subset in items(o, "/subsets") {
            let ports = items(subset, "/ports");
            let addresses: Vec<&str> = items(subset, "/addresses").iter().map(|a| text(a, "/ip")).collect();
            if ports.is_empty() {
                all.extend(addresses.iter().map(|ip| (*ip).to_owned()));
            }
            for port in ports {
                let port = number(port, "/port").unwrap_or(0);
                let joined =
                    |ip: &&str| if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
                all.extend(addresses.iter().map(joined));
            }
        }
        vec![name(o), shortened(&all), age(o)]
    },
};

pub(crate) const ENDPOINT_SLICE: Printer = Printer {
    columns: &[column("Name"), column("AddressType"), column("Ports"), column("Endpoints"), column("Age")],
    row: |o| {
        let port = |p: &Value| number(p, "/port").map_or_else(|| "*".to_owned(), |n| n.to_string());
        let ports: Vec<String> = items(o, "/ports").iter().map(port).collect();
        let all = items(o, "/endpoints").iter().flat_map(|e| items(e, "/addresses")).filter_map(Value::as_str);
        let all: Vec<String> = all.map(str::to_owned).collect();
        let unset = |list: &[String]| if list.is_empty() { "<unset>".into() } else { shortened(list) };
        vec![name(o), text(o, "/addressType").into(), unset(&ports), unset(&all), age(o)]
    },
};

fn shortened(all: &[String]) -> Value {
    match all.len() {
        0 => NONE.into(),
        n if n > SHOWN => format!("{} + {} more...", all[..SHOWN].join(","), n - SHOWN).into(),
        _ => all.join(",").into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn services_say_how_they_are_reached() {
        let cells = |spec: Value, status: Value| {
            let row = SERVICE.cells(&json!({"metadata": {"name": "a"}, "spec": spec, "status": status}));
            row[1..5].iter().map(|c| c.as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
        };
        let ports = json!([{"port": 80, "protocol": "TCP"}]);
        let node_ports = json!([{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "nodePort": 30053, "protocol": "UDP"}]);
        for (spec, status, told) in [
            (
                json!({"type": "ClusterIP", "clusterIP": "10.96.0.5", "ports": ports}),
                json!({}),
                "ClusterIP 10.96.0.5 <none> 80/TCP",
            ),
            (json!({"type": "ClusterIP", "clusterIP": "None"}), json!({}), "ClusterIP None <none> <none>"),
            (
                json!({"type": "NodePort", "clusterIP": "10.96.0.5", "ports": node_ports}),
                json!({}),
                "NodePort 10.96.0.5 <none> 80:30080/TCP,53:30053/UDP",
            ),
            (
                json!({"type": "LoadBalancer", "clusterIP": "10.96.0.5", "ports": ports}),
                json!({}),
                "LoadBalancer 10.96.0.5 <pending> 80/TCP",
            ),
            (
                json!({"type": "LoadBalancer", "clusterIP": "10.96.0.5", "ports": ports}),
                json!({"loadBalancer": {"ingress": [{"ip": "172.25.2.101"}]}}),
                "LoadBalancer 10.96.0.5 172.25.2.101 80/TCP",
            ),
            (
                json!({"type": "ClusterIP", "clusterIP": "10.96.0.5", "externalIPs": ["172.25.2.100"], "ports": ports}),
                json!({}),
                "ClusterIP 10.96.0.5 172.25.2.100 80/TCP",
            ),
            (
                json!({"type": "ExternalName", "externalName": "www.westos.org"}),
                json!({}),
                "ExternalName <none> www.westos.org <none>",
            ),
        ] {
            assert_eq!(cells(spec, status), told);
        }
    }

    #[test]
    fn many_endpoints_are_counted() {
        let all: Vec<String> = (1..=5).map(|n| format!("10.244.0.{n}:80")).collect();
        assert_eq!(shortened(&all), "10.244.0.1:80,10.244.0.2:80,10.244.0.3:80 + 2 more...");
        assert_eq!(shortened(&[]), "<none>");
    }
}
