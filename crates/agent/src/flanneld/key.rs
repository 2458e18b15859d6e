//! net-conf.json, for a node that keeps a key: backend `wireguard` needs one.

use std::{ffi::OsString, path::PathBuf};

use podwire_overlay::{
    Error,
    backend::wireguard::key_file,
    config::{self, Config},
};

/// flannel's variable for where the key is.
const VARIABLE: &str = "WIREGUARD_KEY_FILE";

/// Reads net-conf.json; a backend that needs the node's key gets it from its file, which is made if it is not there.
///
/// # Errors
/// As [`config::parse_with_key`].
pub(super) fn parse(text: &str) -> Result<Config, Error> {
    config::parse_with_key(text, &|| key_file::load_or_create(&path(std::env::var_os(VARIABLE))))
}

fn path(variable: Option<OsString>) -> PathBuf {
    variable.filter(|path| !path.is_empty()).map_or_else(|| key_file::DEFAULT.into(), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_where_flannel_has_it() {
        assert_eq!(path(None).to_str(), Some("/run/flannel/wgkey"));
        assert_eq!(path(Some("".into())).to_str(), Some("/run/flannel/wgkey"));
        assert_eq!(path(Some("/etc/wg/key".into())).to_str(), Some("/etc/wg/key"));
    }

    #[test]
    fn a_backend_without_a_key_asks_for_none() {
        let text = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;
        assert_eq!(parse(text).unwrap().backend.name(), "vxlan");
    }
}
