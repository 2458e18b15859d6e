//! The `/etc/resolv.conf` and `/etc/hosts` of a pod, as the kubelet writes them.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{HostAlias, PodSpec};

/// Name servers, search domains and options of a resolver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Addresses of name servers, first tried first.
    pub nameservers: Vec<String>,
    /// Domains appended to short names.
    pub searches: Vec<String>,
    /// Options as written in the file, for example `ndots:5`.
    pub options: Vec<String>,
}

/// The cluster's side of name resolution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterDns {
    /// The address of the cluster DNS Service.
    pub server: String,
    /// The cluster domain, `cluster.local`.
    pub domain: String,
}

impl Resolver {
    /// Reads a `resolv.conf`; lines it does not know are left out.
    pub fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let keyword = words.next();
            let words = words.map(str::to_owned);
            match keyword {
                Some("nameserver") => resolver.nameservers.extend(words.take(1)),
                Some("search" | "domain") => resolver.searches = words.collect(),
                Some("options") => resolver.options.extend(words),
                _ => {}
            }
        }
        resolver
    }

    /// The resolver of a pod in `namespace`, on a node whose own resolver is `node` (`dnsPolicy`, `dnsConfig`).
    pub fn of_pod(spec: &PodSpec, namespace: &str, cluster: &ClusterDns, node: &Self) -> Self {
        let on_host = spec.host_network.unwrap_or(false);
        let mut resolver = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
            "None" => Self::default(),
            "Default" => node.clone(),
            "ClusterFirst" if on_host => node.clone(),
            _ => Self::cluster_first(namespace, cluster, node),
        };
        if let Some(config) = &spec.dns_config {
            let append = |list: &mut Vec<String>, more: &Option<Vec<String>>| {
                for item in more.iter().flatten() {
                    if !list.contains(item) {
                        list.push(item.clone());
                    }
                }
            };
            append(&mut resolver.nameservers, &config.nameservers);
            append(&mut resolver.searches, &config.searches);
            for option in config.options.iter().flatten() {
                let Some(name) = option.name.as_deref() else { continue };
                resolver.options.retain(|o| o.split(':').next() != Some(name));
                resolver.options.push(match &option.value {
                    Some(value) => format!("{name}:{value}"),
                    None => name.to_owned(),
                });
            }
        }
        resolver.nameservers.truncate(3); // the C library's limit, MAXNS
        resolver
    }

    fn cluster_first(namespace: &str, cluster: &ClusterDns, node: &Self) -> Self {
        let domain = &cluster.domain;
        let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        searches.extend(node.searches.iter().filter(|s| *s != "." && !s.is_empty()).cloned());
        Self { nameservers: vec![cluster.server.clone()], searches, options: vec!["ndots:5".to_owned()] }
    }

    /// The text of `resolv.conf`, in the order that container runtimes write it.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            let _ = writeln!(text, "search {}", self.searches.join(" "));
        }
        for server in &self.nameservers {
            let _ = writeln!(text, "nameserver {server}");
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        text
    }
}

/// The names by which a pod knows itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodNames {
    /// `spec.hostname` or the pod's name, cut to 63 characters.
    pub hostname: String,
    /// `<hostname>.<subdomain>.<namespace>.svc.<domain>`, where the pod has a subdomain.
    pub fqdn: Option<String>,
}

impl PodNames {
    /// The names of a pod called `name` in `namespace`.
    pub fn of_pod(spec: &PodSpec, name: &str, namespace: &str, domain: &str) -> Self {
        let hostname: String = spec.hostname.as_deref().unwrap_or(name).chars().take(63).collect();
        let hostname = hostname.trim_end_matches(['-', '.']).to_owned();
        let fqdn = spec.subdomain.as_ref().map(|sub| format!("{hostname}.{sub}.{namespace}.svc.{domain}"));
        Self { hostname, fqdn }
    }
}

/// `/etc/hosts` of a pod with its own network.
pub fn pod_hosts(names: &PodNames, ips: &[String], aliases: &[HostAlias]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        let _ = match &names.fqdn {
            Some(fqdn) => writeln!(text, "{ip}\t{fqdn}\t{}", names.hostname),
            None => writeln!(text, "{ip}\t{}", names.hostname),
        };
    }
    text + &render_aliases(aliases)
}

/// `/etc/hosts` of a pod on the node's network, made from the node's own.
pub fn host_network_hosts(node_hosts: &str, aliases: &[HostAlias]) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{node_hosts}{}", render_aliases(aliases))
}

fn render_aliases(aliases: &[HostAlias]) -> String {
    let mut text = String::new();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.clone().unwrap_or_default().join("\t"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodDNSConfig, PodDNSConfigOption};

    fn rendered(spec: &PodSpec) -> String {
        let cluster = ClusterDns { server: "10.96.0.10".into(), domain: "cluster.local".into() };
        let node = Resolver::parse("# node\nnameserver 172.25.2.254\nsearch lab.test\noptions timeout:1\n");
        Resolver::of_pod(spec, "shop", &cluster, &node).render()
    }

    #[test]
    fn dns_policies() {
        let cluster_first = "search shop.svc.cluster.local svc.cluster.local cluster.local lab.test\n\
                             nameserver 10.96.0.10\noptions ndots:5\n";
        let node = "search lab.test\nnameserver 172.25.2.254\noptions timeout:1\n";
        let rows = [
            (None, false, cluster_first),
            (Some("ClusterFirst"), false, cluster_first),
            (Some("ClusterFirst"), true, node),
            (Some("ClusterFirstWithHostNet"), true, cluster_first),
            (Some("Default"), false, node),
            (Some("None"), false, ""),
        ];
        for (policy, host_network, expected) in rows {
            let spec =
                PodSpec { dns_policy: policy.map(Into::into), host_network: Some(host_network), ..Default::default() };
            assert_eq!(rendered(&spec), expected, "{policy:?} host_network={host_network}");
        }
    }

    #[test]
    fn dns_config_is_merged_over_the_policy() {
        let option = |name: &str, value: Option<&str>| PodDNSConfigOption {
            name: Some(name.into()),
            value: value.map(Into::into),
        };
        let spec = PodSpec {
            dns_config: Some(PodDNSConfig {
                nameservers: Some(vec!["1.1.1.1".into(), "10.96.0.10".into()]),
                searches: Some(vec!["example.org".into()]),
                options: Some(vec![option("ndots", Some("2")), option("edns0", None)]),
            }),
            ..Default::default()
        };
        assert_eq!(
            rendered(&spec),
            "search shop.svc.cluster.local svc.cluster.local cluster.local lab.test example.org\n\
             nameserver 10.96.0.10\nnameserver 1.1.1.1\noptions ndots:2 edns0\n"
        );
    }

    #[test]
    fn hosts_of_a_pod() {
        let spec = PodSpec { subdomain: Some("web".into()), ..Default::default() };
        let names = PodNames::of_pod(&spec, "a-0", "shop", "cluster.local");
        let aliases =
            [HostAlias { ip: "10.1.2.3".into(), hostnames: Some(vec!["one".into(), "two.example.org".into()]) }];
        assert_eq!(
            pod_hosts(&names, &["10.244.1.5".into()], &aliases),
            "# Kubernetes-managed hosts file.\n\
             127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n\
             10.244.1.5\ta-0.web.shop.svc.cluster.local\ta-0\n\
             \n\
             # Entries added by HostAliases.\n\
             10.1.2.3\tone\ttwo.example.org\n"
        );
    }

    #[test]
    fn hosts_on_the_host_network() {
        assert_eq!(
            host_network_hosts("127.0.0.1 localhost\n", &[]),
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n"
        );
    }

    #[test]
    fn long_names_become_valid_host_names() {
        let name = format!("{}-{}", "a".repeat(62), "tail");
        let names = PodNames::of_pod(&PodSpec::default(), &name, "shop", "cluster.local");
        assert_eq!(names, PodNames { hostname: "a".repeat(62), fqdn: None });
    }
}
