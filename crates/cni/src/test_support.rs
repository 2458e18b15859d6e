//! What the tests of this crate share.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;

use crate::{Call, Result, Verb};

/// A folder that goes with the value.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("podwire-cni-unit-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// A call for `eth0` of `container`, whose namespace is gone.
pub fn call(verb: Verb, container: &str, config: &Value) -> Result<Call> {
    let variable = |name: &str| {
        Some(match name {
            "CNI_COMMAND" => verb.as_str().to_owned(),
            "CNI_CONTAINERID" => container.to_owned(),
            "CNI_NETNS" => "/nonexistent".to_owned(),
            "CNI_IFNAME" => "eth0".to_owned(),
            "CNI_PATH" => "/nonexistent".to_owned(),
            _ => return None,
        })
    };
    Call::parse(&variable, config.to_string().as_bytes())
}
