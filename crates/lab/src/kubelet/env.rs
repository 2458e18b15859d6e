//! The environment of a container: values, references, and `$(VAR)` in values, commands and arguments.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, ObjectFieldSelector, Pod, Secret};

/// The ConfigMaps and Secrets that a pod refers to, as far as they exist.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Objects {
    /// By name, in the pod's namespace.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// By name, in the pod's namespace.
    pub secrets: BTreeMap<String, Secret>,
}

/// What the node knows about a pod beyond its spec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The node's addresses, first the one of `status.hostIP`.
    pub host_ips: Vec<String>,
    /// The pod's addresses, first the one of its `status.podIP`.
    pub pod_ips: Vec<String>,
    /// Address of the Service `default/kubernetes`.
    pub api_host: String,
    /// Port of the Service `default/kubernetes`.
    pub api_port: u16,
}

/// Everything that an environment is made from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// What it refers to.
    pub objects: &'a Objects,
    /// What the node adds.
    pub facts: &'a Facts,
}

impl Sources<'_> {
    /// The environment of `container`, in the order of its definition; later names override earlier ones.
    ///
    /// # Errors
    /// Why the container cannot be made, as the kubelet words it (`CreateContainerConfigError`).
    pub fn environment(&self, container: &Container) -> Result<Vec<(String, String)>, String> {
        let mut env = Environment::default();
        env.set("KUBERNETES_SERVICE_HOST", self.facts.api_host.clone());
        env.set("KUBERNETES_SERVICE_PORT", self.facts.api_port.to_string());
        env.set("KUBERNETES_SERVICE_PORT_HTTPS", self.facts.api_port.to_string());
        self.env_from(container, &mut env)?;
        for var in container.env.iter().flatten() {
            let value = match (&var.value, &var.value_from) {
                (Some(value), _) => Some(env.expand(value)),
                (None, Some(source)) => self.reference(source)?,
                (None, None) => Some(String::new()),
            };
            if let Some(value) = value {
                env.set(&var.name, value);
            }
        }
        Ok(env.0)
    }

    fn env_from(&self, container: &Container, env: &mut Environment) -> Result<(), String> {
        for source in container.env_from.iter().flatten() {
            let prefix = source.prefix.as_deref().unwrap_or_default();
            if let Some(wanted) = &source.config_map_ref {
                match self.objects.config_maps.get(&wanted.name) {
                    Some(map) => {
                        for (key, value) in map.data.iter().flatten() {
                            env.set(&format!("{prefix}{key}"), value.clone());
                        }
                    }
                    None if wanted.optional == Some(true) => {}
                    None => return Err(format!("configmap {:?} not found", wanted.name)),
                }
            }
            if let Some(wanted) = &source.secret_ref {
                match self.objects.secrets.get(&wanted.name) {
                    Some(secret) => {
                        for (key, value) in secret.data.iter().flatten() {
                            env.set(&format!("{prefix}{key}"), text(&value.0));
                        }
                    }
                    None if wanted.optional == Some(true) => {}
                    None => return Err(format!("secret {:?} not found", wanted.name)),
                }
            }
        }
        Ok(())
    }

    fn reference(&self, source: &EnvVarSource) -> Result<Option<String>, String> {
        if let Some(field) = &source.field_ref {
            return self.field(field).map(Some);
        }
        if let Some(wanted) = &source.config_map_key_ref {
            let map = self.objects.config_maps.get(&wanted.name);
            let value = map.and_then(|m| m.data.as_ref()?.get(&wanted.key)).cloned();
            let missing = || missing("configmap", "ConfigMap", map.is_some(), (&wanted.name, &wanted.key), self.pod);
            return found(value, wanted.optional, missing);
        }
        if let Some(wanted) = &source.secret_key_ref {
            let secret = self.objects.secrets.get(&wanted.name);
            let value = secret.and_then(|s| s.data.as_ref()?.get(&wanted.key)).map(|v| text(&v.0));
            let missing = || missing("secret", "Secret", secret.is_some(), (&wanted.name, &wanted.key), self.pod);
            return found(value, wanted.optional, missing);
        }
        Err("env valueFrom: only fieldRef, configMapKeyRef and secretKeyRef are supported".to_owned())
    }

    /// The value of a `fieldRef`.
    ///
    /// # Errors
    /// The path names no field that a lab knows.
    pub fn field(&self, field: &ObjectFieldSelector) -> Result<String, String> {
        let meta = &self.pod.metadata;
        let spec = self.pod.spec.as_ref();
        let path = field.field_path.as_str();
        let value = match path {
            "metadata.name" => meta.name.clone(),
            "metadata.namespace" => meta.namespace.clone(),
            "metadata.uid" => meta.uid.clone(),
            "metadata.labels" => Some(pairs(meta.labels.as_ref())),
            "metadata.annotations" => Some(pairs(meta.annotations.as_ref())),
            "spec.nodeName" => spec.and_then(|s| s.node_name.clone()),
            "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()),
            "status.hostIP" => self.facts.host_ips.first().cloned(),
            "status.hostIPs" => Some(self.facts.host_ips.join(",")),
            "status.podIP" => self.facts.pod_ips.first().cloned(),
            "status.podIPs" => Some(self.facts.pod_ips.join(",")),
            _ => match subscript(path) {
                Some(("metadata.labels", key)) => meta.labels.as_ref().and_then(|l| l.get(key)).cloned(),
                Some(("metadata.annotations", key)) => meta.annotations.as_ref().and_then(|a| a.get(key)).cloned(),
                _ => return Err(format!("unsupported fieldPath: {path}")),
            },
        };
        Ok(value.unwrap_or_default())
    }
}

/// Replaces `$(NAME)` by the value of a variable in `env`, `$$` by `$`; what names no variable stays as it is.
pub fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match env.iter().rev().find(|(n, _)| n == name) {
                Some((_, value)) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[derive(Debug, Default)]
struct Environment(Vec<(String, String)>);

impl Environment {
    fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    fn expand(&self, text: &str) -> String {
        expand(text, &self.0)
    }
}

fn found(
    value: Option<String>,
    optional: Option<bool>,
    missing: impl FnOnce() -> String,
) -> Result<Option<String>, String> {
    match value {
        None if optional != Some(true) => Err(missing()),
        value => Ok(value),
    }
}

fn missing(lower: &str, kind: &str, object_exists: bool, (name, key): (&str, &str), pod: &Pod) -> String {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    match object_exists {
        true => format!("couldn't find key {key} in {kind} {namespace}/{name}"),
        false => format!("{lower} {name:?} not found"),
    }
}

/// `metadata.labels['app']` → (`metadata.labels`, `app`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (field, key) = path.strip_suffix("']")?.split_once("['")?;
    Some((field, key))
}

/// Labels or annotations as the downward API writes them: `key="value"` lines in key order.
fn pairs(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
    lines.join("\n")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1", "labels": {"app": "web", "tier": "a\"b"}},
            "spec": {"nodeName": "node1", "serviceAccountName": "default", "containers": []},
        }))
        .unwrap()
    }

    fn objects() -> Objects {
        let map: ConfigMap = serde_json::from_value(json!({"data": {"LEVEL": "debug", "SIZE": "3"}})).unwrap();
        let secret: Secret = serde_json::from_value(json!({"data": {"KEY": "czNjcmV0"}})).unwrap();
        Objects { config_maps: [("cm".into(), map)].into(), secrets: [("sec".into(), secret)].into() }
    }

    fn environment(container: serde_json::Value) -> Result<BTreeMap<String, String>, String> {
        let facts = Facts {
            host_ips: vec!["172.25.2.1".into()],
            pod_ips: vec!["10.244.0.5".into(), "fd00::5".into()],
            api_host: "10.96.0.1".into(),
            api_port: 443,
        };
        let container: Container = serde_json::from_value(container).unwrap();
        let (pod, objects) = (pod(), objects());
        let sources = Sources { pod: &pod, objects: &objects, facts: &facts };
        sources.environment(&container).map(|env| env.into_iter().collect())
    }

    #[test]
    fn expansion() {
        let env = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())];
        let rows = [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(A)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(NONE)", "$(NONE)"),
            ("$(A", "$(A"),
            ("$A $", "$A $"),
            ("", ""),
        ];
        for (text, expected) in rows {
            assert_eq!(expand(text, &env), expected, "{text}");
        }
    }

    #[test]
    fn references_and_order() {
        let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
        let env = environment(json!({
            "name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "sec"}},
                        {"configMapRef": {"name": "none", "optional": true}}],
            "env": [
                {"name": "NAME", "valueFrom": field("metadata.name")},
                {"name": "URL", "value": "http://$(NAME).$(NS)/"},
                {"name": "NS", "valueFrom": field("metadata.namespace")},
                {"name": "IP", "valueFrom": field("status.podIP")},
                {"name": "IPS", "valueFrom": field("status.podIPs")},
                {"name": "HOST", "valueFrom": field("status.hostIP")},
                {"name": "NODE", "valueFrom": field("spec.nodeName")},
                {"name": "APP", "valueFrom": field("metadata.labels['app']")},
                {"name": "LABELS", "valueFrom": field("metadata.labels")},
                {"name": "P_SIZE", "value": "4"},
                {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "KEY"}}},
                {"name": "GONE", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "NO", "optional": true}}},
                {"name": "KUBERNETES_SERVICE_HOST", "value": "172.25.2.254"},
                {"name": "EMPTY"},
            ],
        }))
        .unwrap();
        let expected = [
            ("APP", "web"),
            ("EMPTY", ""),
            ("HOST", "172.25.2.1"),
            ("IP", "10.244.0.5"),
            ("IPS", "10.244.0.5,fd00::5"),
            ("KEY", "s3cret"),
            ("KUBERNETES_SERVICE_HOST", "172.25.2.254"),
            ("KUBERNETES_SERVICE_PORT", "443"),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
            ("LABELS", "app=\"web\"\ntier=\"a\\\"b\""),
            ("NAME", "web-1"),
            ("NODE", "node1"),
            ("NS", "shop"),
            ("P_LEVEL", "debug"),
            ("P_SIZE", "4"),
            ("SECRET", "s3cret"),
            ("URL", "http://web-1.$(NS)/"),
        ];
        assert_eq!(env, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }

    #[test]
    fn what_is_missing_is_named() {
        let one = |source: serde_json::Value| {
            environment(json!({"name": "c", "env": [{"name": "X", "valueFrom": source}]})).unwrap_err()
        };
        assert_eq!(one(json!({"configMapKeyRef": {"name": "no", "key": "k"}})), "configmap \"no\" not found");
        assert_eq!(one(json!({"secretKeyRef": {"name": "sec", "key": "k"}})), "couldn't find key k in Secret shop/sec");
        assert_eq!(one(json!({"fieldRef": {"fieldPath": "spec.nope"}})), "unsupported fieldPath: spec.nope");
        let whole = environment(json!({"name": "c", "envFrom": [{"secretRef": {"name": "no"}}]}));
        assert_eq!(whole.unwrap_err(), "secret \"no\" not found");
    }
}
