//! Roots of nodes and containers, built for real in mount namespaces of test threads.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

use std::{
    fs,
    path::{Path, PathBuf},
    process, thread,
};

use podwire_kernel::ns::{self, Kind};
use podwire_lab::rootfs::{HOST, PODWIRE, Rootfs};

/// Runs `f` on a thread with a mount namespace of its own and a scratch directory, which must be empty afterwards.
fn in_mount_namespace(name: &str, f: impl FnOnce(&Path) + Send + 'static) {
    let scratch = std::env::temp_dir().join(format!("podwire-rootfs-{name}-{}", process::id()));
    let base = scratch.join("base");
    fs::create_dir_all(&base).unwrap();
    let inside = base.clone();
    let outcome = thread::spawn(move || match ns::unshare(&[Kind::Mount]) {
        Err(error) if error.is_not_permitted() && std::env::var_os("CI").is_none() => {
            eprintln!("skipped: {error}");
        }
        result => {
            result.unwrap();
            f(&inside);
        }
    })
    .join();
    assert_eq!(fs::read_dir(&base).unwrap().count(), 0, "the host sees what was mounted");
    fs::remove_dir_all(&scratch).unwrap();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn executable() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn on_host(path: &str) -> PathBuf {
    Path::new(HOST).join(path.trim_start_matches('/'))
}

#[test]
fn a_node_has_the_hosts_files_and_keeps_its_changes_to_itself() {
    in_mount_namespace("node", |base| {
        let passwd = fs::read("/etc/passwd").unwrap();
        Rootfs::node(&executable())
            .file("/etc/hostname", "node7\n")
            .file("/opt/podwire-test/made/file", "x")
            .enter(base)
            .unwrap();
        assert_eq!(fs::read("/etc/passwd").unwrap(), passwd);
        assert_eq!(fs::read_to_string("/etc/hostname").unwrap(), "node7\n");
        assert_ne!(fs::read_to_string(on_host("/etc/hostname")).unwrap_or_default(), "node7\n");
        assert!(Path::new("/usr/bin/env").exists() && Path::new("/bin/sh").exists());
        assert_eq!(
            fs::metadata(PODWIRE).unwrap().len(),
            fs::metadata(on_host(executable().to_str().unwrap())).unwrap().len()
        );
        assert_eq!(fs::read_to_string("/opt/podwire-test/made/file").unwrap(), "x");
        assert!(!on_host("/opt/podwire-test").exists());
        for empty in ["/run", "/tmp", "/etc/cni", "/var/lib/cni"] {
            assert_eq!(fs::read_dir(empty).unwrap().count(), 0, "{empty}");
            fs::write(Path::new(empty).join("podwire-test"), "").unwrap();
            assert!(!on_host(empty).join("podwire-test").exists(), "{empty}");
        }
        fs::write("/var/podwire-test", "").unwrap();
        assert!(!on_host("/var/podwire-test").exists());
        assert_eq!(fs::read_link("/proc/self").unwrap().to_str().unwrap(), process::id().to_string());
    });
}

#[test]
fn a_container_in_a_node_reads_the_hosts_files_and_gets_its_binds() {
    in_mount_namespace("container", |base| {
        Rootfs::node(&executable()).file("/etc/only-on-the-node", "").enter(base).unwrap();
        fs::create_dir_all("/var/lib/kubelet/pod/volume").unwrap();
        fs::write("/var/lib/kubelet/pod/volume/token", "secret").unwrap();
        fs::write("/run/hosts", "1.2.3.4 pod\n").unwrap();
        ns::unshare(&[Kind::Mount]).unwrap();
        Rootfs::container()
            .bind_read_only("/var/lib/kubelet/pod/volume", "/var/run/secrets/kubernetes.io/serviceaccount")
            .bind("/run/hosts", "/etc/hosts")
            .bind("/etc/cni", "/host/etc/cni")
            .bind("/run", "/opt/podwire-test/run")
            .enter(Path::new("/run/podwire-root"))
            .unwrap();
        let account = Path::new("/var/run/secrets/kubernetes.io/serviceaccount");
        assert_eq!(fs::read_to_string(account.join("token")).unwrap(), "secret");
        fs::write(account.join("token"), "").unwrap_err();
        assert_eq!(fs::read_to_string("/etc/hosts").unwrap(), "1.2.3.4 pod\n");
        assert!(Path::new("/opt/podwire-test/run/hosts").exists());
        assert!(Path::new("/host/etc/cni").is_dir());
        assert!(!Path::new("/etc/only-on-the-node").exists(), "a container has the host's files, not the node's");
        assert!(fs::metadata(PODWIRE).unwrap().len() > 0);
        fs::write("/usr/podwire-test", "").unwrap_err();
        fs::write("/etc/podwire-test", "").unwrap();
        assert_eq!(fs::read_dir(HOST).unwrap().count(), 0, "the node's root is out of reach");
    });
}

#[test]
fn a_missing_source_is_named() {
    in_mount_namespace("missing", |base| {
        let error = Rootfs::node(&executable()).bind("/no/such/dir", "/x").enter(base).unwrap_err();
        assert_eq!(error.to_string(), "cannot mount /no/such/dir at /x: No such file or directory (os error 2)");
    });
}
