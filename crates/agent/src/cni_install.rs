//! `podwire install-cni`: what flannel's init containers do. Puts the network configuration where the runtime looks,
//! and the plugins where it finds them.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use podwire_cni::PLUGINS;
use podwire_overlay::subnet_env::write_atomically;
use tracing::info;

/// Flags of `podwire install-cni`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The network configuration to install
    #[arg(long, value_name = "FILE", default_value = "/etc/kube-flannel/cni-conf.json")]
    conf_src: PathBuf,
    /// Where the container runtime reads it
    #[arg(long, value_name = "FILE", default_value = "/etc/cni/net.d/10-flannel.conflist")]
    conf_dst: PathBuf,
    /// Also make links to podwire-cni in this folder, one for each plugin
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// What the links lead to [default: podwire-cni in --bin-dir]
    #[arg(long, value_name = "FILE", requires = "bin_dir")]
    plugin: Option<PathBuf>,
}

/// Installs and returns. Plugins first: the runtime takes the configuration as the sign that all is there.
///
/// # Errors
/// The source is missing or no JSON object, or a destination cannot be written.
pub async fn run(args: Args) -> anyhow::Result<()> {
    if let Some(folder) = &args.bin_dir {
        let plugin = args.plugin.clone().unwrap_or_else(|| folder.join("podwire-cni"));
        link_plugins(folder, &plugin)?;
    }
    install(&args.conf_src, &args.conf_dst)?;
    info!(file = %args.conf_dst.display(), "installed");
    Ok(())
}

fn install(source: &Path, destination: &Path) -> anyhow::Result<()> {
    let content = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
    let json: serde_json::Value =
        serde_json::from_slice(&content).with_context(|| format!("{} is not valid JSON", source.display()))?;
    ensure!(json.is_object(), "{} is not a JSON object", source.display());
    Ok(write_atomically(destination, &content)?)
}

fn link_plugins(folder: &Path, plugin: &Path) -> anyhow::Result<()> {
    ensure!(plugin.exists(), "{} does not exist: name the plugin with --plugin", plugin.display());
    for name in PLUGINS {
        let path = folder.join(name);
        let temporary = folder.join(format!(".{name}.{}", std::process::id()));
        let made = symlink(plugin, &temporary).and_then(|()| fs::rename(&temporary, &path));
        made.with_context(|| format!("linking {} to {}", path.display(), plugin.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("podwire-install-cni-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[tokio::test]
    async fn installs_the_configuration_and_the_links() {
        let folder = folder("whole");
        let source = folder.join("cni-conf.json");
        fs::write(&source, r#"{"name": "cbr0"}"#).unwrap();
        let bin = folder.join("bin");
        fs::create_dir(&bin).unwrap();
        fs::write(bin.join("podwire-cni"), "").unwrap();
        fs::write(bin.join("bridge"), "another program").unwrap();
        for _ in 0..2 {
            let conf_dst = folder.join("net.d/10-flannel.conflist");
            run(Args { conf_src: source.clone(), conf_dst, bin_dir: Some(bin.clone()), plugin: None }).await.unwrap();
        }
        assert_eq!(fs::read_to_string(folder.join("net.d/10-flannel.conflist")).unwrap(), r#"{"name": "cbr0"}"#);
        assert_eq!(fs::read_dir(folder.join("net.d")).unwrap().count(), 1);
        for name in PLUGINS {
            assert_eq!(fs::read_link(bin.join(name)).unwrap(), bin.join("podwire-cni"));
        }
        assert_eq!(fs::read_dir(&bin).unwrap().count(), PLUGINS.len() + 1);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn broken_configuration_is_not_installed() {
        let folder = folder("broken");
        let (source, destination) = (folder.join("source"), folder.join("destination"));
        fs::write(&source, r#"{"name": "#).unwrap();
        let message = install(&source, &destination).unwrap_err().to_string();
        assert!(message.ends_with("source is not valid JSON"), "{message}");
        assert!(!destination.exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}
