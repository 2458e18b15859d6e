//! The objects that no cluster is without.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use futures_util::future::select_all;
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;

use crate::{
    Error,
    http::stopped,
    kinds::by_kind,
    object::name,
    registry::{Api, WriteOptions},
    status::Status,
    store::Key,
};

/// Where Service `kubernetes` is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Own {
    /// Its address.
    pub address: IpAddr,
    /// The server behind it, if pods can reach it.
    pub endpoint: Option<SocketAddr>,
}

/// Makes these objects again when somebody has deleted them, until the server stops.
pub(crate) async fn keep(api: Arc<Api>, own: Own, mut stopping: Receiver<bool>) {
    let collections = ["namespaces", "services", "endpoints", "discovery.k8s.io/endpointslices"];
    let mut changes = collections.map(|collection| api.store.subscribe(collection));
    loop {
        if let Err(error) = populate(&api, own) {
            tracing::warn!(%error, "something that every cluster has was deleted");
        }
        let changed = select_all(changes.iter_mut().map(|change| Box::pin(change.changed())));
        tokio::select! {
            (Ok(()), ..) = changed => {}
            () = stopped(&mut stopping) => return,
            else => return,
        }
    }
}

/// Creates what is missing of the four system namespaces, and of Service `kubernetes` and what is behind it.
pub(crate) fn populate(api: &Api, Own { address, endpoint }: Own) -> Result<(), Error> {
    let create = |group: &str, kind: &str, namespace: &str, object: Value| -> Result<(), Error> {
        let row = by_kind(group, kind).ok_or_else(|| Error::Bootstrap(Status::internal(format!("no kind {kind}"))))?;
        let key = Key { namespace: namespace.to_owned(), name: name(&object).to_owned() };
        if api.get(row, &key).is_ok() {
            return Ok(());
        }
        match api.create(row, namespace, object, WriteOptions::default()) {
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
