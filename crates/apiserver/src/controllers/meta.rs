//! Labels, owners, references, template hashes: what several controllers read and write in `metadata`.

use std::collections::BTreeMap;

use podwire_k8s::k8s_openapi::{
    Metadata,
    api::core::v1::{NodeSelectorRequirement, ObjectReference, PodTemplateSpec},
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use serde_json::Value;

use super::{
    action::{self, to_json},
    world::{Id, Kind, Store},
};

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// Whether `labels` satisfy a selector. An empty selector matches everything.
pub fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    selector.match_labels.iter().flatten().all(|(key, value)| label(labels, key) == Some(value))
        && selector.match_expressions.iter().flatten().all(|r| requirement(r, labels))
}

/// Whether `labels` contain every pair of an equality selector (of a Service, or a `nodeSelector`).
pub fn contains(labels: Option<&Labels>, selector: &Labels) -> bool {
    selector.iter().all(|(key, value)| label(labels, key) == Some(value))
}

fn label<'a>(labels: Option<&'a Labels>, key: &str) -> Option<&'a String> {
    labels.and_then(|labels| labels.get(key))
}

fn requirement(r: &LabelSelectorRequirement, labels: Option<&Labels>) -> bool {
    operator(&r.operator, label(labels, &r.key).map(String::as_str), r.values.as_deref().unwrap_or_default())
}

/// Whether a node's label (or field, given as `value`) satisfies one requirement of a node selector.
pub fn node_requirement(r: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    operator(&r.operator, value, r.values.as_deref().unwrap_or_default())
}

/// The operators of label and node selectors. Absent labels satisfy `NotIn` and `DoesNotExist`; an unknown operator
/// matches nothing.
fn operator(operator: &str, value: Option<&str>, values: &[String]) -> bool {
    let among = |value: &str| values.iter().any(|v| v == value);
    let compare = |holds: fn(&i64, &i64) -> bool| {
        let bound = values.first().and_then(|v| v.parse::<i64>().ok());
        value.and_then(|v| v.parse::<i64>().ok()).zip(bound).is_some_and(|(v, bound)| holds(&v, &bound))
    };
    match operator {
        "In" => value.is_some_and(among),
        "NotIn" => !value.is_some_and(among),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

/// The `ownerReferences` entry by which `owner` controls another object.
pub fn controller_ref(kind: Kind, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: kind.api_version().to_owned(),
        kind: kind.name().to_owned(),
        name: owner.name.clone().unwrap_or_default(),
        uid: owner.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The owner that controls the object, if there is one.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether `owner` controls the object that `meta` describes.
pub fn controls(owner: &ObjectMeta, meta: &ObjectMeta) -> bool {
    controller_of(meta).is_some_and(|c| Some(&c.uid) == owner.uid.as_ref())
}

/// A reference to an object, for Events and `targetRef`.
pub fn reference(kind: Kind, meta: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some(kind.api_version().to_owned()),
        kind: Some(kind.name().to_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// What an owner makes of the objects whose labels may concern it.
#[derive(Debug)]
pub struct Claim<'a, K> {
    /// What it controls and its selector matches.
    pub owned: Vec<&'a K>,
    /// Matching objects that nobody controls: to be adopted.
    pub adopt: Vec<&'a K>,
    /// Objects it controls although its selector no longer matches: to be released.
    pub release: Vec<&'a K>,
}

/// Sorts `candidates` (all of the owner's namespace) by what `owner` should do with them. An owner that is being
/// deleted neither adopts nor releases.
pub fn claim<'a, K: Metadata<Ty = ObjectMeta>>(
    owner: &ObjectMeta,
    selector: &LabelSelector,
    candidates: impl Iterator<Item = &'a K>,
) -> Claim<'a, K> {
    let mut claim = Claim { owned: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    for candidate in candidates {
        let meta = candidate.metadata();
        let matching = matches(selector, meta.labels.as_ref());
        match controller_of(meta) {
            Some(_) if !controls(owner, meta) => {}
            Some(_) if matching => claim.owned.push(candidate),
            _ if owner.deletion_timestamp.is_some() || meta.deletion_timestamp.is_some() => {}
            Some(_) => claim.release.push(candidate),
            None if matching => claim.adopt.push(candidate),
            None => {}
        }
    }
    claim
}

/// The objects of `kind` that a change of `candidate` concerns: its controller, or all that select it if it has none.
pub fn claimants<K: Metadata<Ty = ObjectMeta>>(
    kind: Kind,
    all: &Store<K>,
    candidate: &ObjectMeta,
    selector: impl Fn(&K) -> Option<&LabelSelector>,
) -> Vec<Id> {
    let namespace = candidate.namespace.as_deref().unwrap_or_default();
    match controller_of(candidate) {
        Some(owner) if owner.kind == kind.name() => vec![Id::new(kind, namespace, &owner.name)],
        Some(_) => Vec::new(),
        None => {
            let selects = |owner: &&_| selector(owner).is_some_and(|s| matches(s, candidate.labels.as_ref()));
            let owners = all.in_namespace(namespace).map(AsRef::as_ref).filter(selects);
            owners.map(|owner: &K| action::id(kind, owner.metadata())).collect()
        }
    }
}

/// The metadata with the owner `owner` added as controller.
pub fn adopted(kind: Kind, owner: &ObjectMeta, meta: &ObjectMeta) -> ObjectMeta {
    let mut meta = meta.clone();
    meta.owner_references.get_or_insert_default().push(controller_ref(kind, owner));
    meta
}

/// The metadata without owner `uid`.
pub fn disowned(uid: &str, meta: &ObjectMeta) -> ObjectMeta {
    let mut meta = meta.clone();
    if let Some(owners) = &mut meta.owner_references {
        owners.retain(|owner| owner.uid != uid);
    }
    meta.owner_references = meta.owner_references.filter(|owners| !owners.is_empty());
    meta
}

/// An annotation's value.
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// A count or a percentage of `total`, not negative. Percentages round up for a surge, down for unavailability.
pub fn scaled(value: Option<&IntOrString>, default: &str, total: i32, round_up: bool) -> i32 {
    let percent = |text: &str| {
        let percent: i64 = text.strip_suffix('%').and_then(|p| p.parse().ok()).unwrap_or_default();
        let product = percent * i64::from(total);
        let scaled = if round_up { (product + 99) / 100 } else { product / 100 };
        i32::try_from(scaled).unwrap_or(i32::MAX)
    };
    let scaled = match value {
        None => percent(default),
        Some(IntOrString::Int(count)) => *count,
        Some(IntOrString::String(text)) => percent(text),
    };
    scaled.max(0)
}

/// A short name for the contents of a pod template, as in `web-5d9c8b7f6`: the same for equal templates; `salt` tells
/// colliding ones apart. The alphabet has no vowels and no digits that look like letters, as upstream's.
pub fn template_hash(template: &PodTemplateSpec, salt: i32) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash = Fnv(0x811c_9dc5);
    hash_json(&to_json(template), &mut hash);
    if salt > 0 {
        hash.write(&salt.to_le_bytes());
    }
    let decimal = hash.0.to_string();
    decimal.bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

/// FNV-1a, 32 bits.
struct Fnv(u32);

impl Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
}

/// Feeds JSON to the hash with its objects' keys in order.
fn hash_json(json: &Value, hash: &mut Fnv) {
    match json {
        Value::Object(fields) => {
            let sorted: BTreeMap<_, _> = fields.iter().collect();
            hash.write(b"{");
            for (key, value) in sorted {
                hash.write(key.as_bytes());
                hash.write(b":");
                hash_json(value, hash);
            }
            hash.write(b"}");
        }
        Value::Array(items) => {
            hash.write(b"[");
            items.iter().for_each(|item| hash_json(item, hash));
            hash.write(b"]");
        }
        leaf => hash.write(leaf.to_string().as_bytes()),
    }
    hash.write(b",");
}

#[cfg(test)]
mod tests {
    use podwire_k8s::k8s_openapi::api::core::v1::Pod;
    use serde_json::{from_value, json};

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn selectors_match_as_the_api_says() {
        let expression = |key: &str, operator: &str, values: &[&str]| {
            let e = json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
            from_value::<LabelSelector>(e).unwrap()
        };
        let web = labels(&[("app", "web"), ("size", "5")]);
        for (selector, expected) in [
            (LabelSelector::default(), true),
            (from_value(json!({"matchLabels": {"app": "web"}})).unwrap(), true),
            (from_value(json!({"matchLabels": {"app": "db"}})).unwrap(), false),
            (from_value(json!({"matchLabels": {"tier": "web"}})).unwrap(), false),
            (expression("app", "In", &["db", "web"]), true),
            (expression("app", "NotIn", &["db", "web"]), false),
            (expression("tier", "NotIn", &["db"]), true),
            (expression("app", "Exists", &[]), true),
            (expression("tier", "DoesNotExist", &[]), true),
            (expression("size", "Gt", &["4"]), true),
            (expression("size", "Lt", &["5"]), false),
            (expression("app", "Like", &["web"]), false),
        ] {
            assert_eq!(matches(&selector, Some(&web)), expected, "{selector:?}");
        }
    }

    #[test]
    fn percentages_round_up_or_down() {
        let text = |t: &str| Some(IntOrString::String(t.to_owned()));
        for (value, total, up, expected) in [
            (None, 3, true, 1),
            (None, 3, false, 0),
            (text("50%"), 3, true, 2),
            (text("50%"), 3, false, 1),
            (text("0%"), 3, true, 0),
            (text("100%"), 7, false, 7),
            (Some(IntOrString::Int(2)), 7, false, 2),
            (Some(IntOrString::Int(-2)), 7, false, 0),
            (text("many"), 7, false, 0),
        ] {
            assert_eq!(scaled(value.as_ref(), "25%", total, up), expected, "{value:?} of {total}");
        }
    }

    #[test]
    fn template_hashes_follow_the_contents() {
        let template = |image: &str| -> PodTemplateSpec {
            from_value(json!({"spec": {"containers": [{"name": "c", "image": image}]}})).unwrap()
        };
        assert_eq!(template_hash(&template("myapp:v1"), 0), template_hash(&template("myapp:v1"), 0));
        assert_ne!(template_hash(&template("myapp:v1"), 0), template_hash(&template("myapp:v2"), 0));
        assert_ne!(template_hash(&template("myapp:v1"), 0), template_hash(&template("myapp:v1"), 1));
    }

    #[test]
    fn an_owner_keeps_adopts_and_releases() {
        let owner = ObjectMeta { uid: Some("1".into()), ..Default::default() };
        let selector = from_value(json!({"matchLabels": {"app": "web"}})).unwrap();
        let pod = |name: &str, app: &str, owner: Option<&str>| -> Pod {
            let owners = owner
                .map(|uid| json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid, "controller": true}]));
            from_value(json!({"metadata": {"name": name, "labels": {"app": app}, "ownerReferences": owners}})).unwrap()
        };
        let pods = [
            pod("owned", "web", Some("1")),
            pod("adopt", "web", None),
            pod("release", "db", Some("1")),
            pod("foreign", "web", Some("2")),
            pod("other", "db", None),
        ];
        let claim = claim(&owner, &selector, pods.iter());
        let names = |of: &[&Pod]| -> Vec<String> { of.iter().filter_map(|p| p.metadata.name.clone()).collect() };
        assert_eq!(names(&claim.owned), ["owned"]);
        assert_eq!(names(&claim.adopt), ["adopt"]);
        assert_eq!(names(&claim.release), ["release"]);
    }
}
