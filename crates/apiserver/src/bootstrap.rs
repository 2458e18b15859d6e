//! The objects that every cluster has from the start.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use crate::{
    Error,
    kinds::by_kind,
    registry::{Api, WriteOptions},
    status::Status,
};

/// Creates the four system namespaces and Service `kubernetes` at `address`, with `endpoint` behind it.
pub(crate) fn populate(api: &Api, address: IpAddr, endpoint: Option<SocketAddr>) -> Result<(), Error> {
    let create = |group: &str, kind: &str, namespace: &str, object: Value| -> Result<(), Error> {
        let row = by_kind(group, kind).ok_or_else(|| Error::Bootstrap(Status::internal(format!("no kind {kind}"))))?;
        match api.create(row, namespace, object, WriteOptions::default()) {
            // A store that survives the server has it already.
            Err(status) if status.reason == "AlreadyExists" => Ok(()),
            Err(status) => Err(Error::Bootstrap(status)),
            Ok(_) => Ok(()),
        }
    };
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        create("", "Namespace", "", json!({"metadata": {"name": name}}))?;
    }
    let port = endpoint.map_or(6443, |e| e.port());
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    create(
        "",
        "Service",
        "default",
        json!({
            "metadata": {"name": "kubernetes", "labels": labels},
            "spec": {
                "clusterIP": address,
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
            },
        }),
    )?;
    let Some(endpoint) = endpoint else { return Ok(()) };
    create(
        "",
        "Endpoints",
        "default",
        json!({
            "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": [{
                "addresses": [{"ip": endpoint.ip()}],
                "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
            }],
        }),
    )?;
    create(
        "discovery.k8s.io",
        "EndpointSlice",
        "default",
        json!({
            "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": if endpoint.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": [{"addresses": [endpoint.ip()], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }),
    )
}
