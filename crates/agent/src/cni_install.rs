//! `podwire cni install`: what flannel's init containers do. Puts the plugins where the container runtime finds them, and
//! the network configuration where it looks for one.
//!
//! Pods may start meanwhile: every file appears whole, by a rename, and the plugins are there before the configuration.

use std::{
    env, fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use podwire_cni::PLUGINS;
use podwire_overlay::subnet_env::write_atomically;
use tracing::{info, warn};

/// The file that all plugins are links to.
const PROGRAM: &str = "podwire-cni";
/// What is appended to the name of another program's plugin that was replaced.
const REPLACED: &str = "before-podwire";

/// Flags of `podwire cni install`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Copy podwire-cni into this folder, with a link for each plugin
    #[arg(long, value_name = "DIR", required_unless_present = "conf_dir")]
    bin_dir: Option<PathBuf>,
    /// Which file to copy [default: podwire-cni beside this program]
    #[arg(long, value_name = "FILE", requires = "bin_dir")]
    plugin: Option<PathBuf>,
    /// Take the place of other programs' plugins of the same names, which are kept as NAME.before-podwire; without it
    /// they stay
    #[arg(long, requires = "bin_dir")]
    drop_in: bool,
    /// Put the network configuration into this folder
    #[arg(long, value_name = "DIR")]
    conf_dir: Option<PathBuf>,
    /// The network configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/kube-flannel/cni-conf.json")]
    conf_src: PathBuf,
    /// Its name in --conf-dir; the runtime takes the first in order
    #[arg(long, value_name = "NAME", default_value = "10-flannel.conflist")]
    conf_name: PathBuf,
}

/// Installs and returns. Plugins first: the runtime takes the configuration as the sign that all is there.
///
/// # Errors
/// A source is missing or no network configuration, or a destination cannot be written.
pub async fn run(args: Args) -> anyhow::Result<()> {
    if let Some(folder) = &args.bin_dir {
        let program = match &args.plugin {
            Some(program) => program.clone(),
            None => env::current_exe().context("finding this program")?.with_file_name(PROGRAM),
        };
        install_plugins(folder, &program, args.drop_in)?;
    }
    if let Some(folder) = &args.conf_dir {
        let name = &args.conf_name;
        ensure!(name.components().count() == 1, "--conf-name {}: expected a name without folders", name.display());
        install_configuration(&args.conf_src, &folder.join(name))?;
    }
    Ok(())
}

/// Copies a network configuration so that readers see all of it or what was there before.
///
/// # Errors
/// The source is missing or no network configuration, or the destination cannot be written.
pub fn install_configuration(source: &Path, destination: &Path) -> anyhow::Result<()> {
    let content = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
    podwire_cni::runtime::NetworkConfig::from_json(&content, &source.display().to_string())?;
    write_atomically(destination, &content)?;
    info!(file = %destination.display(), "installed the network configuration");
    Ok(())
}

fn install_plugins(folder: &Path, program: &Path, drop_in: bool) -> anyhow::Result<()> {
    ensure!(program.is_file(), "{} does not exist: name it with --plugin", program.display());
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    appear(&folder.join(PROGRAM), |temporary| {
        fs::copy(program, temporary)?;
        fs::set_permissions(temporary, fs::Permissions::from_mode(0o755))
    })?;
    for name in PLUGINS {
        let path = folder.join(name);
        if is_of_another(&path) {
            if !drop_in {
                warn!(plugin = %path.display(), "is another program's and stays; --drop-in replaces it");
                continue;
            }
            keep(&path)?;
        }
        // Relative: the folder may have another path where the runtime sees it.
        appear(&path, |temporary| symlink(PROGRAM, temporary))?;
    }
    info!(folder = %folder.display(), "installed the plugins");
    Ok(())
}

/// Whether a plugin is there and no link to our program.
fn is_of_another(path: &Path) -> bool {
    match fs::read_link(path) {
        Ok(target) => target.file_name() != Some(PROGRAM.as_ref()),
        Err(_) => path.exists(),
    }
}

/// Gives a file a second name, unless an earlier run did.
fn keep(path: &Path) -> anyhow::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{REPLACED}"));
    match fs::hard_link(path, path.with_file_name(&name)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("keeping {} as {}", path.display(), name.display()))
        }
        _ => Ok(()),
    }
}

/// Makes a file under a name of its own, then moves it to its place, whatever was there.
fn appear(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> anyhow::Result<()> {
    let name = path.file_name().unwrap_or_default().display().to_string();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    // Of an earlier run with the same process id, in another container.
    _ = fs::remove_file(&temporary);
    let made = make(&temporary).and_then(|()| fs::rename(&temporary, path));
    if made.is_err() {
        _ = fs::remove_file(&temporary);
    }
    made.with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = env::temp_dir().join(format!("podwire-cni-install-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn args(&self) -> Args {
            fs::write(self.0.join("source.json"), CONFLIST).unwrap();
            fs::write(self.0.join("podwire-cni"), "#!/bin/sh\nexit 0\n").unwrap();
            Args {
                bin_dir: Some(self.0.join("bin")),
                plugin: Some(self.0.join("podwire-cni")),
                drop_in: false,
                conf_dir: Some(self.0.join("net.d")),
                conf_src: self.0.join("source.json"),
                conf_name: "10-flannel.conflist".into(),
            }
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            _ = fs::remove_dir_all(&self.0);
        }
    }

    const CONFLIST: &str = r#"{"name": "cbr0", "cniVersion": "1.0.0", "plugins": [{"type": "flannel"}]}"#;

    #[tokio::test]
    async fn installs_the_program_the_links_and_the_configuration() {
        let folder = Folder::new("whole");
        for _ in 0..2 {
            run(folder.args()).await.unwrap();
        }
        assert_eq!(folder.read("net.d/10-flannel.conflist"), CONFLIST);
        assert_eq!(fs::read_dir(folder.0.join("net.d")).unwrap().count(), 1);
        let bin = folder.0.join("bin");
        for name in PLUGINS {
            assert_eq!(fs::read_link(bin.join(name)).unwrap(), Path::new("podwire-cni"));
            assert!(Command::new(bin.join(name)).status().unwrap().success());
        }
        assert_eq!(fs::read_dir(&bin).unwrap().count(), PLUGINS.len() + 1);
    }

    #[tokio::test]
    async fn plugins_of_others_stay_or_are_kept() {
        let folder = Folder::new("drop-in");
        let bin = folder.0.join("bin");
        fs::create_dir(&bin).unwrap();
        fs::write(bin.join("bridge"), "another program").unwrap();
        run(folder.args()).await.unwrap();
        assert_eq!(folder.read("bin/bridge"), "another program");
        for _ in 0..2 {
            run(Args { drop_in: true, ..folder.args() }).await.unwrap();
        }
        assert_eq!(fs::read_link(bin.join("bridge")).unwrap(), Path::new("podwire-cni"));
        assert_eq!(folder.read("bin/bridge.before-podwire"), "another program");
    }

    #[tokio::test]
    async fn plugins_can_be_called_all_the_while() {
        let folder = Folder::new("busy");
        run(folder.args()).await.unwrap();
        // In processes of its own: a file that is open for writing here cannot be executed by a child of ours.
        let calls = format!("for n in $(seq 300); do {}/bin/bridge || exit 1; done", folder.0.display());
        let mut caller = Command::new("sh").args(["-c", &calls]).spawn().unwrap();
        let mut installed = 0;
        while caller.try_wait().unwrap().is_none() {
            run(folder.args()).await.unwrap();
            installed += 1;
        }
        assert!(caller.wait().unwrap().success());
        assert!(installed > 1);
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_not_installed() {
        let folder = Folder::new("broken");
        for (content, complaint) in
            [(r#"{"name": "#, "EOF while parsing"), (r#"{"name": "x", "plugins": []}"#, "\"plugins\" is empty")]
        {
            let args = folder.args();
            fs::write(folder.0.join("source.json"), content).unwrap();
            let error = format!("{:#}", run(args).await.unwrap_err());
            assert!(error.contains(complaint) && error.contains("source.json"), "{error}");
            assert!(!folder.0.join("net.d").exists());
        }
        let args = Args { plugin: Some(folder.0.join("none")), ..folder.args() };
        let error = run(args).await.unwrap_err().to_string();
        assert!(error.ends_with("none does not exist: name it with --plugin"), "{error}");
        assert!(!folder.0.join("net.d").exists());
    }
}
