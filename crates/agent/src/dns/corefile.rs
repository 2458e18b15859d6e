//! Where the Corefile comes from.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::node_local::Flags;

/// The Corefile, and what stands for its placeholders.
///
/// Source: `cmd/node-cache/app/configmap.go` of github.com/kubernetes/dns: the manifest of NodeLocal DNSCache mounts its
/// Corefile at the path of `-basecorefile`, with placeholders that are for the program to fill in.
pub struct Source {
    path: PathBuf,
    values: Vec<(&'static str, String)>,
}

impl Source {
    /// The file `conf`; in node-local mode that of `-basecorefile` where there is one.
    pub fn new(conf: PathBuf, flags: &Flags) -> Self {
        if flags.localip.is_empty() {
            return Self { path: conf, values: Vec::new() };
        }
        let path = if flags.basecorefile.exists() { flags.basecorefile.clone() } else { conf };
        Self { path, values: values(flags, |name| std::env::var(name).ok()) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its text now, filled in.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self) -> anyhow::Result<String> {
        let text = fs::read_to_string(&self.path);
        let text =
            text.with_context(|| format!("cannot read {}, name the Corefile with -conf", self.path.display()))?;
        Ok(self.values.iter().fold(text, |text, (name, value)| text.replace(name, value)))
    }
}

fn values(flags: &Flags, variable: impl Fn(&str) -> Option<String>) -> Vec<(&'static str, String)> {
    let service = flags.upstreamsvc.to_uppercase().replace('-', "_");
    let local: Vec<_> = flags.localip.iter().map(ToString::to_string).collect();
    let mut values = vec![
        ("__PILLAR__LOCAL__DNS__", local.join(" ")),
        ("__PILLAR__DNS__SERVER__", String::new()),
        ("__PILLAR__UPSTREAM__SERVERS__", "/etc/resolv.conf".to_owned()),
    ];
    // Where there is none, the directive that uses it is refused, by line and column.
    let cluster_dns = variable(&format!("{service}_SERVICE_HOST"));
    values.extend(cluster_dns.map(|address| ("__PILLAR__CLUSTER__DNS__", address)));
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_in() {
        let variable = |name: &str| (name == "KUBE_DNS_UPSTREAM_SERVICE_HOST").then(|| "10.99.1.2".to_owned());
        let fill = |flags: &str| {
            let flags = Flags::of(&format!("--localip=169.254.20.10,10.96.0.10 {flags}"));
            let text = "bind __PILLAR__LOCAL__DNS__ __PILLAR__DNS__SERVER__\nforward . __PILLAR__CLUSTER__DNS__\n\
                        forward . __PILLAR__UPSTREAM__SERVERS__";
            values(&flags, variable).iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
        };
        let filled = "bind 169.254.20.10 10.96.0.10 \nforward . 10.99.1.2\nforward . /etc/resolv.conf";
        assert_eq!(fill("--upstreamsvc=kube-dns-upstream"), filled);
        assert!(fill("").contains("__PILLAR__CLUSTER__DNS__"), "there is no Service kube-dns");
    }
}
