//! The volumes of a pod: directories of the node that its containers see.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, Pod, PodSpec, Secret, Volume,
    VolumeProjection,
};

use super::env::{Sources, expand};
use crate::container::Mount;

/// Where every container finds its service account's token.
pub const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The name of the volume for [`SERVICE_ACCOUNT_DIR`] where the pod declares none.
const IMPLICIT_VOLUME: &str = "kube-api-access";
/// The ConfigMap of the cluster's CA certificate, which the node knows anyway.
const CA_CONFIG_MAP: &str = "kube-root-ca.crt";
/// How long a token of the implicit volume lives, as the kubelet asks for it.
const TOKEN_SECONDS: i64 = 3607;

/// Which token a volume holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenKind {
    /// Whom it is for; the API server itself where empty.
    pub audience: String,
    /// How long it lives, in seconds.
    pub seconds: i64,
}

/// What the node provides to volumes besides the pod's own objects.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// The cluster's CA certificates, PEM.
    pub ca: Vec<u8>,
    /// Tokens of the pod's service account.
    pub tokens: BTreeMap<TokenKind, String>,
}

/// The content of a volume that is made of files: relative path → bytes and permission bits.
pub type Files = BTreeMap<PathBuf, (Vec<u8>, u32)>;

/// Names of ConfigMaps, and of Secrets, that `spec` refers to.
pub fn referenced(spec: &PodSpec) -> (Vec<String>, Vec<String>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    for volume in spec.volumes.iter().flatten() {
        maps.extend(volume.config_map.iter().map(|m| m.name.clone()));
        secrets.extend(volume.secret.iter().filter_map(|s| s.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            maps.extend(source.config_map.iter().map(|m| m.name.clone()));
            secrets.extend(source.secret.iter().map(|s| s.name.clone()));
        }
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        for source in container.env_from.iter().flatten() {
            maps.extend(source.config_map_ref.iter().map(|m| m.name.clone()));
            secrets.extend(source.secret_ref.iter().map(|s| s.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            maps.extend(source.config_map_key_ref.iter().map(|m| m.name.clone()));
            secrets.extend(source.secret_key_ref.iter().map(|s| s.name.clone()));
        }
    }
    for names in [&mut maps, &mut secrets] {
        names.sort_unstable();
        names.dedup();
    }
    (maps, secrets)
}

/// The pod's volumes, with one more for the service account's token where a container lacks it.
pub fn all(spec: &PodSpec) -> Vec<Volume> {
    let mut volumes = spec.volumes.clone().unwrap_or_default();
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    if spec.automount_service_account_token != Some(false) && containers.into_iter().any(|c| !mounts_token(c)) {
        volumes.push(implicit_volume());
    }
    volumes
}

fn mounts_token(container: &Container) -> bool {
    container.volume_mounts.iter().flatten().any(|m| m.mount_path.trim_end_matches('/') == SERVICE_ACCOUNT_DIR)
}

fn implicit_volume() -> Volume {
    use k8s_openapi::api::core::v1::{
        ConfigMapProjection, DownwardAPIProjection, ObjectFieldSelector, ProjectedVolumeSource,
        ServiceAccountTokenProjection,
    };
    let token = ServiceAccountTokenProjection {
        path: "token".into(),
        expiration_seconds: Some(TOKEN_SECONDS),
        ..Default::default()
    };
    let ca = KeyToPath { key: "ca.crt".into(), path: "ca.crt".into(), mode: None };
    let ca = ConfigMapProjection { name: CA_CONFIG_MAP.into(), items: Some(vec![ca]), optional: None };
    let field = ObjectFieldSelector { field_path: "metadata.namespace".into(), ..Default::default() };
    let namespace = DownwardAPIVolumeFile { path: "namespace".into(), field_ref: Some(field), ..Default::default() };
    let namespace = DownwardAPIProjection { items: Some(vec![namespace]) };
    let sources = vec![
        VolumeProjection { service_account_token: Some(token), ..Default::default() },
        VolumeProjection { config_map: Some(ca), ..Default::default() },
        VolumeProjection { downward_api: Some(namespace), ..Default::default() },
    ];
    Volume {
        name: IMPLICIT_VOLUME.into(),
        projected: Some(ProjectedVolumeSource { default_mode: None, sources: Some(sources) }),
        ..Default::default()
    }
}

/// The tokens that the volumes of `spec` hold.
pub fn tokens(spec: &PodSpec) -> Vec<TokenKind> {
    let volumes = all(spec);
    let sources = volumes.iter().flat_map(|v| v.projected.iter()).flat_map(|p| p.sources.iter().flatten());
    let mut kinds: Vec<_> = sources
        .filter_map(|s| s.service_account_token.as_ref())
        .map(|t| TokenKind {
            audience: t.audience.clone().unwrap_or_default(),
            seconds: t.expiration_seconds.unwrap_or(3600),
        })
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

/// When tokens are to be renewed: at four fifths of the shortest life.
pub fn token_refresh(kinds: &[TokenKind]) -> Option<Duration> {
    let shortest = kinds.iter().map(|k| k.seconds).min()?;
    u64::try_from(shortest / 5 * 4).ok().map(Duration::from_secs)
}

/// The files of a volume that is made of files; `None` for `emptyDir` and `hostPath`.
///
/// # Errors
/// Why the pod has to wait, as the kubelet words it, or which kind of volume a lab does not have.
pub fn files(volume: &Volume, sources: Sources<'_>, credentials: &Credentials) -> Result<Option<Files>, String> {
    let mut files = Files::new();
    if let Some(wanted) = &volume.config_map {
        let items =
            Items { items: wanted.items.as_deref(), mode: mode(wanted.default_mode), optional: wanted.optional };
        items.take("configmap", &wanted.name, config_map(&wanted.name, sources, credentials), &mut files)?;
    } else if let Some(wanted) = &volume.secret {
        let name = wanted.secret_name.as_deref().unwrap_or_default();
        let items =
            Items { items: wanted.items.as_deref(), mode: mode(wanted.default_mode), optional: wanted.optional };
        items.take("secret", name, sources.objects.secrets.get(name).map(secret_data), &mut files)?;
    } else if let Some(wanted) = &volume.downward_api {
        downward(wanted.items.as_deref(), mode(wanted.default_mode), sources, &mut files)?;
    } else if let Some(wanted) = &volume.projected {
        for source in wanted.sources.iter().flatten() {
            projection(source, mode(wanted.default_mode), (sources, credentials), &mut files)?;
        }
    } else if volume.empty_dir.is_some() || volume.host_path.is_some() {
        return Ok(None);
    } else {
        return Err(format!(
            "volume {:?}: only configMap, secret, downwardAPI, projected, emptyDir and hostPath are supported",
            volume.name
        ));
    }
    Ok(Some(files))
}

fn projection(
    source: &VolumeProjection,
    mode: u32,
    (sources, credentials): (Sources<'_>, &Credentials),
    files: &mut Files,
) -> Result<(), String> {
    if let Some(token) = &source.service_account_token {
        let kind = TokenKind {
            audience: token.audience.clone().unwrap_or_default(),
            seconds: token.expiration_seconds.unwrap_or(3600),
        };
        let text = credentials.tokens.get(&kind).ok_or("the service account token has not been issued")?;
        files.insert(inside(&token.path)?, (text.clone().into_bytes(), mode));
    }
    if let Some(wanted) = &source.config_map {
        let items = Items { items: wanted.items.as_deref(), mode, optional: wanted.optional };
        items.take("configmap", &wanted.name, config_map(&wanted.name, sources, credentials), files)?;
    }
    if let Some(wanted) = &source.secret {
        let items = Items { items: wanted.items.as_deref(), mode, optional: wanted.optional };
        items.take("secret", &wanted.name, sources.objects.secrets.get(&wanted.name).map(secret_data), files)?;
    }
    match &source.downward_api {
        Some(wanted) => downward(wanted.items.as_deref(), mode, sources, files),
        None => Ok(()),
    }
}

type Data = BTreeMap<String, Vec<u8>>;

fn config_map(name: &str, sources: Sources<'_>, credentials: &Credentials) -> Option<Data> {
    let found = sources.objects.config_maps.get(name).map(config_map_data);
    let own = || (name == CA_CONFIG_MAP).then(|| Data::from([("ca.crt".to_owned(), credentials.ca.clone())]));
    found.or_else(own)
}

fn config_map_data(map: &ConfigMap) -> Data {
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}

fn secret_data(secret: &Secret) -> Data {
    secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect()
}

/// Which keys of an object become files.
struct Items<'a> {
    items: Option<&'a [KeyToPath]>,
    mode: u32,
    optional: Option<bool>,
}

impl Items<'_> {
    fn take(&self, kind: &str, name: &str, data: Option<Data>, files: &mut Files) -> Result<(), String> {
        let optional = self.optional == Some(true);
        let Some(data) = data else {
            return if optional { Ok(()) } else { Err(format!("{kind} {name:?} not found")) };
        };
        let Some(items) = self.items.filter(|items| !items.is_empty()) else {
            for (key, bytes) in data {
                files.insert(inside(&key)?, (bytes, self.mode));
            }
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(bytes) => {
                    let mode = item.mode.map_or(self.mode, |m| m.cast_unsigned() & 0o777);
                    files.insert(inside(&item.path)?, (bytes.clone(), mode));
                }
                None if optional => {}
                None => return Err(format!("{kind} {name:?} references non-existent key: {}", item.key)),
            }
        }
        Ok(())
    }
}

fn downward(
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: u32,
    sources: Sources<'_>,
    files: &mut Files,
) -> Result<(), String> {
    for item in items.unwrap_or_default() {
        let field = item.field_ref.as_ref().ok_or("downwardAPI: only fieldRef is supported")?;
        let mode = item.mode.map_or(mode, |m| m.cast_unsigned() & 0o777);
        files.insert(inside(&item.path)?, (sources.field(field)?.into_bytes(), mode));
    }
    Ok(())
}

fn mode(default: Option<i32>) -> u32 {
    default.map_or(0o644, |m| m.cast_unsigned() & 0o777)
}

/// A path that stays inside its volume.
fn inside(path: &str) -> Result<PathBuf, String> {
    let path = Path::new(path);
    let stays = path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if stays && path.file_name().is_some() {
        Ok(path.to_owned())
    } else {
        Err(format!("path {:?} leads out of its volume", path.display().to_string()))
    }
}

/// Makes `files` the content of `dir`, in one step for whoever reads them: a new directory, and the symlink `..data`
/// renamed to it (the kubelet's scheme). Does nothing when they are there already.
///
/// # Errors
/// The file system refuses.
pub fn publish(dir: &Path, files: &Files) -> io::Result<()> {
    let data = dir.join("..data");
    let old = fs::read_link(&data).ok();
    if old.as_ref().is_some_and(|old| holds(&dir.join(old), files)) {
        return Ok(());
    }
    let number = old.as_ref().and_then(|o| o.to_str()?.strip_prefix("..v")?.parse::<u64>().ok()).unwrap_or(0) + 1;
    let name = format!("..v{number}");
    let fresh = dir.join(&name);
    fs::create_dir_all(&fresh)?;
    for (path, (bytes, mode)) in files {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, bytes)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(*mode))?;
    }
    let next = dir.join("..data_tmp");
    remove_link(&next)?;
    symlink(&name, &next)?;
    fs::rename(&next, &data)?;
    let tops: Vec<_> = files.keys().filter_map(|path| path.components().next()).collect();
    for top in &tops {
        let link = dir.join(top);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(top), &link)?;
        }
    }
    for entry in fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        let ours = name.to_string_lossy().starts_with("..");
        if !ours && !tops.iter().any(|top| top.as_os_str() == name) {
            remove_link(&entry.path())?;
        }
    }
    match old {
        Some(old) => fs::remove_dir_all(dir.join(old)),
        None => Ok(()),
    }
}

fn holds(dir: &Path, files: &Files) -> bool {
    let count = |dir: &Path| fs::read_dir(dir).map_or(0, Iterator::count);
    let flat = files.keys().all(|path| path.components().count() == 1);
    flat && count(dir) == files.len()
        && files.iter().all(|(p, (b, _))| fs::read(dir.join(p)).is_ok_and(|old| old == *b))
}

fn remove_link(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes sure that a `hostPath` is what its type says, creating it where the type says so.
///
/// # Errors
/// It is not, worded as the kubelet does.
pub fn check_host_path(wanted: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&wanted.path);
    let failed = |e: io::Error| format!("hostPath {}: {e}", wanted.path);
    let kind = wanted.type_.as_deref().unwrap_or_default();
    let is = |what: &str, holds: bool| {
        if holds { Ok(()) } else { Err(format!("hostPath type check failed: {} is not {what}", wanted.path)) }
    };
    match kind {
        "DirectoryOrCreate" => fs::create_dir_all(path).map_err(failed),
        "FileOrCreate" => fs::OpenOptions::new().create(true).append(true).open(path).map(drop).map_err(failed),
        "Directory" => is("a directory", path.is_dir()),
        "File" => is("a file", path.is_file()),
        // Docker's behaviour, which the empty type keeps: what is missing becomes a directory.
        "" if !path.exists() => fs::create_dir_all(path).map_err(failed),
        _ => Ok(()),
    }
}

/// What `container` mounts, given where each volume is. Sources of a `subPath` are created where they are missing.
///
/// # Errors
/// A mount names no volume, or leads out of it.
pub fn mounts(
    container: &Container,
    volumes: &BTreeMap<String, PathBuf>,
    env: &[(String, String)],
) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for wanted in container.volume_mounts.iter().flatten() {
        let volume = volumes.get(&wanted.name);
        let mut source = volume.ok_or_else(|| format!("the pod has no volume {:?}", wanted.name))?.clone();
        let sub_path = wanted.sub_path.clone().or_else(|| wanted.sub_path_expr.as_ref().map(|e| expand(e, env)));
        if let Some(sub_path) = sub_path.filter(|p| !p.is_empty()) {
            source.push(inside(&sub_path)?);
            if !source.exists() {
                fs::create_dir_all(&source).map_err(|e| format!("subPath {}: {e}", source.display()))?;
            }
        }
        mounts.push(Mount {
            source,
            target: wanted.mount_path.clone().into(),
            read_only: wanted.read_only.unwrap_or(false),
        });
    }
    if let Some(source) = volumes.get(IMPLICIT_VOLUME).filter(|_| !mounts_token(container)) {
        mounts.push(Mount { source: source.clone(), target: SERVICE_ACCOUNT_DIR.into(), read_only: true });
    }
    Ok(mounts)
}

/// Makes every volume of `pod` in `dir` and says where each one is. May be called again to bring files up to date.
///
/// # Errors
/// Why the pod has to wait.
pub fn set_up(
    pod: &Pod,
    dir: &Path,
    sources: Sources<'_>,
    credentials: &Credentials,
) -> Result<BTreeMap<String, PathBuf>, String> {
    let mut paths = BTreeMap::new();
    for volume in pod.spec.iter().flat_map(all) {
        let place = dir.join(&volume.name);
        let failed = |e: io::Error| format!("volume {:?}: cannot write {}: {e}", volume.name, place.display());
        if let Some(host_path) = &volume.host_path {
            check_host_path(host_path)?;
            paths.insert(volume.name.clone(), PathBuf::from(&host_path.path));
            continue;
        }
        let files = files(&volume, sources, credentials).map_err(|e| format!("MountVolume.SetUp failed: {e}"))?;
        if !place.is_dir() {
            fs::create_dir_all(&place).map_err(failed)?;
            let mode = if files.is_some() { 0o755 } else { 0o777 };
            fs::set_permissions(&place, fs::Permissions::from_mode(mode)).map_err(failed)?;
        }
        if let Some(files) = files {
            publish(&place, &files).map_err(failed)?;
        }
        paths.insert(volume.name, place);
    }
    Ok(paths)
}

#[cfg(test)]
#[path = "volumes_tests.rs"]
mod tests;
