//! The file that a node's private key is kept in, so that it is the same node to its peers after a restart.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use podwire_kernel::wireguard::PrivateKey;

use crate::Error;

/// Where flannel keeps it, unless `WIREGUARD_KEY_FILE` says otherwise.
pub const DEFAULT: &str = "/run/flannel/wgkey";
/// As flannel's: the owner may read it, nobody else, and nobody writes it by mistake.
const MODE: u32 = 0o400;

/// The key in `path`, as flannel or `wg genkey` wrote it there; a new one, which is then written there, if there is no file.
/// One that others may read, though it is not a link such as a mounted Secret's, is closed to them.
///
/// # Errors
/// The file cannot be read or written, or holds no key: then it is left as it is.
pub fn load_or_create(path: &Path) -> Result<PrivateKey, Error> {
    match read(path) {
        Err(Error::KeyFile { source, .. }) if source.kind() == io::ErrorKind::NotFound => create(path),
        read => read,
    }
}

fn read(path: &Path) -> Result<PrivateKey, Error> {
    let failed = |source| Error::KeyFile { path: PathBuf::from(path), source };
    let text = fs::read_to_string(path).map_err(failed)?;
    let key = text.parse().map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    let found = fs::symlink_metadata(path).map_err(failed)?;
    if found.is_file() && found.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(path, Permissions::from_mode(MODE)).map_err(failed)?;
    }
    Ok(key)
}

/// Writes a new key beside `path` and links it there, which fails if someone else was faster: then theirs counts.
fn create(path: &Path) -> Result<PrivateKey, Error> {
    let key = PrivateKey::generate()?;
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let attempt = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&temporary)?;
        file.write_all(key.to_secret_text().as_bytes())?;
        file.sync_all()?;
        fs::hard_link(&temporary, path)
    };
    let made = attempt();
    // Not there if it could not be made.
    let _ = fs::remove_file(&temporary);
    match made {
        Ok(()) => Ok(key),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read(path),
        Err(source) => Err(Error::KeyFile { path: PathBuf::from(path), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of the test's own, removed at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("podwire-wgkey-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_key_is_made_once_and_nobody_else_may_read_it() {
        let folder = Folder::new("made");
        let path = folder.0.join("run/flannel/wgkey");
        let key = load_or_create(&path).unwrap();
        assert_eq!(mode(&path), 0o400);
        assert_eq!(load_or_create(&path).unwrap(), key);
        assert_eq!(fs::read_to_string(&path).unwrap(), key.to_secret_text());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn all_who_come_at_once_get_one_key() {
        let folder = Folder::new("race");
        let path = folder.0.join("wgkey");
        let first = load_or_create(&path).unwrap();
        // What happens to the slower of two: it found no file, and now there is one.
        assert_eq!(create(&path).unwrap(), first);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_others_may_read_is_closed_to_them() {
        let folder = Folder::new("open");
        let path = folder.0.join("wgkey");
        let key = PrivateKey::from_bytes([7; 32]);
        fs::write(&path, format!("{}\n", key.to_secret_text())).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(load_or_create(&path).unwrap(), key);
        assert_eq!(mode(&path), 0o400);
        // A mounted Secret is a link, and someone else's business.
        let (real, link) = (folder.0.join("data"), folder.0.join("link"));
        fs::write(&real, key.to_secret_text()).unwrap();
        fs::set_permissions(&real, Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(load_or_create(&link).unwrap(), key);
        assert_eq!(mode(&real), 0o644);
    }

    #[test]
    fn a_file_without_a_key_is_named_and_neither_shown_nor_replaced() {
        let folder = Folder::new("broken");
        let path = folder.0.join("wgkey");
        fs::write(&path, "almost a secret").unwrap();
        let message = load_or_create(&path).unwrap_err().to_string();
        assert!(message.contains(&*path.to_string_lossy()) && message.contains("44 characters"), "{message}");
        assert!(!message.contains("almost"), "{message}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "almost a secret");
        let message = load_or_create(Path::new("/proc/podwire/wgkey")).unwrap_err().to_string();
        assert!(message.contains("/proc/podwire/wgkey"), "{message}");
    }
}
