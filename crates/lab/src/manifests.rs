//! What every lab runs in `kube-system`: pod network, Service proxy and cluster DNS, as a stock cluster has them.

use podwire_k8s::kube::{
    Api, Client,
    api::{DynamicObject, PostParams},
    core::{ApiResource, GroupVersionKind},
};

use crate::{
    error::{Error, Result},
    topology::{API_PORT, CLUSTER_DOMAIN, GATEWAY, NODE_LOCAL_DNS, Options, POD_CIDR_V6},
};

const FILES: [(&str, &str); 3] = [
    ("kube-flannel.yaml", include_str!("../manifests/kube-flannel.yaml")),
    ("kube-proxy.yaml", include_str!("../manifests/kube-proxy.yaml")),
    ("coredns.yaml", include_str!("../manifests/coredns.yaml")),
];

/// What runs besides in a lab with `--node-local-dns`.
const NODE_LOCAL_DNS_FILE: (&str, &str) = ("node-local-dns.yaml", include_str!("../manifests/node-local-dns.yaml"));

/// The objects, with the lab's addresses filled in, in the order to create them.
///
/// # Errors
/// A manifest that this executable was built with is malformed.
pub fn objects(options: &Options) -> Result<Vec<DynamicObject>> {
    let pods_v6 = options.dual_stack.then_some(POD_CIDR_V6);
    // Lines after the first are indented as deep as the placeholder is.
    let net_conf = options.backend.net_conf(options.pod_cidr, pods_v6).replace('\n', "\n    ");
    let pod_cidrs = [Some(options.pod_cidr.to_string()), pods_v6.map(|range| range.to_string())];
    let values = [
        ("{{net-conf}}", net_conf),
        ("{{pod-cidrs}}", pod_cidrs.into_iter().flatten().collect::<Vec<_>>().join(",")),
        ("{{ip-family-policy}}", if options.dual_stack { "PreferDualStack" } else { "SingleStack" }.to_owned()),
        ("{{api-host}}", GATEWAY.to_string()),
        ("{{api-port}}", API_PORT.to_string()),
        ("{{cluster-dns}}", options.cluster_dns().to_string()),
        ("{{node-local-dns}}", NODE_LOCAL_DNS.to_string()),
        ("{{cluster-domain}}", CLUSTER_DOMAIN.to_owned()),
    ];
    let mut objects = Vec::new();
    for (file, template) in FILES.into_iter().chain(options.node_local_dns.then_some(NODE_LOCAL_DNS_FILE)) {
        let text = values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(name, value));
        for document in text.split("\n---\n").skip(1) {
            let object = serde_saphyr::from_str(document)
                .map_err(|error| Error::Failed(format!("the built-in manifest {file} is malformed: {error}")))?;
            objects.push(object);
        }
    }
    Ok(objects)
}

/// Creates every object of [`objects`].
///
/// # Errors
/// The API refused one: which, and why.
pub async fn create(client: &Client, options: &Options) -> Result<()> {
    for object in objects(options)? {
        let name = object.metadata.name.clone().unwrap_or_default();
        let types = object.types.clone().unwrap_or_default();
        let failed = |reason: String| Error::Api { tried: format!("create {} {name}", types.kind), reason };
        let kind = GroupVersionKind::try_from(&types).map_err(|error| failed(error.to_string()))?;
        let resource = ApiResource::from_gvk(&kind);
        let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
        Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource)
            .create(&PostParams::default(), &object)
            .await
            .map_err(|error| failed(error.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_manifest_is_filled_in() {
        let stock = Options::stock("x");
        let (pod_cidr, service_cidr) = ("10.1.0.0/16".parse().unwrap(), "10.2.0.0/16".parse().unwrap());
        let options = Options { pod_cidr, service_cidr, dual_stack: true, node_local_dns: true, ..stock };
        let objects = objects(&options).unwrap();
        let names: Vec<_> = objects
            .iter()
            .map(|object| format!("{}/{}", object.types.as_ref().unwrap().kind, object.metadata.name.as_ref().unwrap()))
            .collect();
        let expected = [
            "ServiceAccount/flannel",
            "ConfigMap/kube-flannel-cfg",
            "DaemonSet/kube-flannel-ds",
            "ServiceAccount/kube-proxy",
            "ConfigMap/kube-proxy",
            "DaemonSet/kube-proxy",
            "ServiceAccount/coredns",
            "ConfigMap/coredns",
            "Service/kube-dns",
            "Deployment/coredns",
            "ServiceAccount/node-local-dns",
            "ConfigMap/node-local-dns",
            "DaemonSet/node-local-dns",
        ];
        assert_eq!(names, expected);
        assert!(objects.iter().all(|object| object.metadata.namespace.as_deref() == Some("kube-system")));
        assert_eq!(objects[8].data["spec"]["clusterIP"], "10.2.0.10");
        let net = objects[1].data["data"]["net-conf.json"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(net).unwrap()["Network"], "10.1.0.0/16");
        let proxy: serde_json::Value =
            serde_saphyr::from_str(objects[4].data["data"]["config.conf"].as_str().unwrap()).unwrap();
        assert_eq!(proxy["clusterCIDR"], "10.1.0.0/16,fd00:10:244::/56");
        let text = serde_json::to_string(&objects).unwrap();
        assert!(!text.contains("{{"), "a placeholder was left: {text}");
    }
}
