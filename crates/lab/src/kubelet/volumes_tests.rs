use super::*;
use crate::kubelet::env::{Facts, Objects};
use serde_json::json;

struct Fixture {
    dir: PathBuf,
    objects: Objects,
    facts: Facts,
    credentials: Credentials,
}

impl Fixture {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("podwire-volumes-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let map: ConfigMap = serde_json::from_value(json!({"data": {"a.conf": "A", "b.conf": "B"}})).unwrap();
        let secret: Secret = serde_json::from_value(json!({"data": {"key": "czNjcmV0"}})).unwrap();
        let kind = TokenKind { audience: String::new(), seconds: TOKEN_SECONDS };
        Self {
            dir,
            objects: Objects { config_maps: [("cm".into(), map)].into(), secrets: [("sec".into(), secret)].into() },
            facts: Facts::default(),
            credentials: Credentials { ca: b"PEM".to_vec(), tokens: [(kind, "tok".into())].into() },
        }
    }

    fn set_up(&self, pod: &Pod) -> Result<BTreeMap<String, PathBuf>, String> {
        let sources = Sources { pod, objects: &self.objects, facts: &self.facts };
        set_up(pod, &self.dir, sources, &self.credentials)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn pod(volumes: serde_json::Value, mounts: serde_json::Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"volumes": volumes, "containers": [{"name": "c", "volumeMounts": mounts}]},
    }))
    .unwrap()
}

#[test]
fn every_kind_of_volume() {
    let fixture = Fixture::new("kinds");
    let host = fixture.dir.join("host/made");
    let pod = pod(
        json!([
            {"name": "cm", "configMap": {"name": "cm"}},
            {"name": "items", "configMap": {"name": "cm", "items": [{"key": "a.conf", "path": "d/x", "mode": 256}]}},
            {"name": "sec", "secret": {"secretName": "sec", "defaultMode": 256}},
            {"name": "none", "secret": {"secretName": "none", "optional": true}},
            {"name": "empty", "emptyDir": {}},
            {"name": "host", "hostPath": {"path": host, "type": "DirectoryOrCreate"}},
            {"name": "down", "downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        ]),
        json!([]),
    );
    let paths = fixture.set_up(&pod).unwrap();
    let read = |volume: &str, file: &str| fs::read_to_string(paths[volume].join(file)).unwrap();
    assert_eq!((read("cm", "a.conf"), read("cm", "b.conf")), ("A".into(), "B".into()));
    assert_eq!(read("items", "d/x"), "A");
    assert_eq!(fs::metadata(paths["items"].join("d/x")).unwrap().permissions().mode() & 0o777, 0o400);
    assert_eq!(read("sec", "key"), "s3cret");
    assert_eq!(read("down", "l"), "app=\"web\"");
    assert!(paths["empty"].is_dir() && host.is_dir());
    assert_eq!(read("kube-api-access", "token"), "tok");
    assert_eq!(read("kube-api-access", "ca.crt"), "PEM");
    assert_eq!(read("kube-api-access", "namespace"), "shop");
}

#[test]
fn changes_come_in_one_step_and_leave_nothing_old() {
    let mut fixture = Fixture::new("update");
    let pod = pod(json!([{"name": "cm", "configMap": {"name": "cm"}}]), json!([]));
    let dir = fixture.set_up(&pod).unwrap()["cm"].clone();
    let version = || fs::read_link(dir.join("..data")).unwrap();
    let first = version();
    fixture.set_up(&pod).unwrap();
    assert_eq!(version(), first, "nothing changed");
    let changed: ConfigMap = serde_json::from_value(json!({"data": {"a.conf": "A2", "c.conf": "C"}})).unwrap();
    fixture.objects.config_maps.insert("cm".into(), changed);
    fixture.set_up(&pod).unwrap();
    assert_ne!(version(), first);
    let mut names: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["..data", "..v2", "a.conf", "c.conf"]);
    assert_eq!(fs::read_to_string(dir.join("a.conf")).unwrap(), "A2");
}

#[test]
fn what_is_wrong_is_said() {
    let fixture = Fixture::new("wrong");
    for (volume, message) in [
        (json!({"name": "v", "configMap": {"name": "no"}}), "configmap \"no\" not found"),
        (
            json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "z", "path": "z"}]}}),
            "references non-existent key: z",
        ),
        (
            json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "a.conf", "path": "../z"}]}}),
            "leads out of its volume",
        ),
        (json!({"name": "v", "nfs": {"server": "s", "path": "/"}}), "only configMap"),
        (json!({"name": "v", "hostPath": {"path": "/proc/version", "type": "Directory"}}), "is not a directory"),
    ] {
        let error = fixture.set_up(&pod(json!([volume]), json!([]))).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn mounts_of_a_container() {
    let fixture = Fixture::new("mounts");
    let pod = pod(
        json!([{"name": "cm", "configMap": {"name": "cm"}}, {"name": "e", "emptyDir": {}}]),
        json!([
            {"name": "cm", "mountPath": "/etc/app/a.conf", "subPath": "a.conf", "readOnly": true},
            {"name": "e", "mountPath": "/data", "subPathExpr": "$(POD)"},
        ]),
    );
    let paths = fixture.set_up(&pod).unwrap();
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let mounts = mounts(container, &paths, &[("POD".into(), "p".into())]).unwrap();
    let expected = [
        (paths["cm"].join("a.conf"), "/etc/app/a.conf", true),
        (paths["e"].join("p"), "/data", false),
        (paths["kube-api-access"].clone(), SERVICE_ACCOUNT_DIR, true),
    ];
    let expected = expected.map(|(source, target, read_only)| Mount { source, target: target.into(), read_only });
    assert_eq!(mounts, expected);
    assert!(paths["e"].join("p").is_dir());
}

#[test]
fn tokens_only_where_wanted() {
    let mut pod = pod(json!([]), json!([]));
    let spec = pod.spec.as_mut().unwrap();
    let kind = TokenKind { audience: String::new(), seconds: TOKEN_SECONDS };
    assert_eq!(tokens(spec), std::slice::from_ref(&kind));
    assert_eq!(token_refresh(&[kind]), Some(Duration::from_secs(2884)));
    spec.automount_service_account_token = Some(false);
    assert!(tokens(spec).is_empty() && all(spec).is_empty());
}

#[test]
fn references_are_found_everywhere() {
    let spec: PodSpec = serde_json::from_value(json!({
        "volumes": [{"name": "a", "configMap": {"name": "m1"}},
                    {"name": "b", "projected": {"sources": [{"secret": {"name": "s1"}}]}}],
        "containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "m2"}}],
                        "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s2", "key": "k"}}}]}],
    }))
    .unwrap();
    let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    assert_eq!(referenced(&spec), (strings(&["m1", "m2"]), strings(&["s1", "s2"])));
}
