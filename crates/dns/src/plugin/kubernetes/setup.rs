//! The directive's options.

use super::{Kubernetes, PodMode, answer::is_reverse};
use crate::{
    corefile::{CorefileError, Directive},
    program::{ClusterNeeds, SiteBuilder, zones},
};

/// CoreDNS's default TTL, seconds.
const DEFAULT_TTL: u32 = 5;
/// CoreDNS's longest TTL, seconds.
const MAX_TTL: u64 = 3600;

/// `kubernetes [ZONES…] { pods MODE; ttl SECONDS; fallthrough [ZONES…]; namespaces NAMESPACE…; kubeconfig FILE }`
pub(in crate::plugin) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let own = site.zones_or_own(&directive.args)?;
    let primary = own.iter().find(|zone| !is_reverse(zone)).cloned();
    let mut plugin = Kubernetes {
        cluster: site.environment.cluster.clone(),
        primary: primary.ok_or_else(|| directive.error("kubernetes needs a zone that is not a reverse zone"))?,
        zones: own,
        pods: PodMode::default(),
        ttl: DEFAULT_TTL,
        namespaces: Vec::new(),
        fallthrough: None,
    };
    let mut needs = site.program.cluster.take().unwrap_or_default();
    for option in &directive.body {
        set(option, &mut plugin, &mut needs)?;
    }
    needs.pods |= plugin.pods == PodMode::Verified;
    site.program.cluster = Some(needs);
    site.add(plugin);
    Ok(())
}

fn set(option: &Directive, plugin: &mut Kubernetes, needs: &mut ClusterNeeds) -> Result<(), CorefileError> {
    match option.name() {
        "pods" => {
            let [mode] = option.plain(1, 1)? else { return Ok(()) };
            plugin.pods = match mode.text.as_str() {
                "disabled" => PodMode::Disabled,
                "insecure" => PodMode::Insecure,
                "verified" => PodMode::Verified,
                other => return Err(mode.error(format!("pods: {other:?} is not one of disabled, insecure, verified"))),
            };
        }
        "ttl" => {
            let [ttl] = option.plain(1, 1)? else { return Ok(()) };
            plugin.ttl = u32::try_from(ttl.number(MAX_TTL)?).unwrap_or(DEFAULT_TTL);
        }
        "fallthrough" => {
            plugin.fallthrough = Some(match option.plain(0, usize::MAX)? {
                [] => vec![crate::message::DnsName::root_bytes()],
                words => zones(words)?,
            });
        }
        "namespaces" => {
            let words = option.plain(1, usize::MAX)?;
            plugin.namespaces.extend(words.iter().map(|word| word.text.clone()));
        }
        "kubeconfig" => {
            if let Some(context) = option.plain(1, 2)?.get(1) {
                return Err(context.error("kubeconfig: a context is not supported yet, the current one is used"));
            }
            needs.kubeconfig = option.args.first().map(|word| word.text.clone().into());
        }
        "endpoint"
        | "tls"
        | "labels"
        | "namespace_labels"
        | "endpoint_pod_names"
        | "noendpoints"
        | "ignore"
        | "zonal"
        | "multicluster"
        | "startup_timeout"
        | "apiserver_qps"
        | "apiserver_burst"
        | "apiserver_max_inflight" => {
            return Err(option.unsupported_option("kubernetes"));
        }
        // CoreDNS: deprecated, does nothing.
        "upstream" | "resyncperiod" => {}
        _ => return Err(option.unknown_option("kubernetes")),
    }
    Ok(())
}
