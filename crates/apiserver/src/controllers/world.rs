//! What the controllers know: one typed cache of each kind they watch, and how a change of it looks.
//!
//! Reads see the controllers' own writes: the shell puts the answer of every write here before it plans again, and an
//! older copy that a watch delivers later changes nothing. So a slow watch never leads to a second write.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    fmt,
    sync::Arc,
};

use podwire_k8s::k8s_openapi::{
    Metadata, Resource as ApiResource,
    api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet},
        coordination::v1::Lease,
        core::v1::{ConfigMap, Endpoints, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use podwire_k8s::kube;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Kind, namespace and name of an object; also the key of a unit of work. A key that stands for all objects of a kind
/// (the scheduler has only one) has an empty name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// The object's kind.
    pub kind: Kind,
    /// The object's namespace; empty for a cluster-scoped kind.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

impl Id {
    /// Joins kind, namespace and name.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The key that stands for all objects of `kind`.
    pub fn all(kind: Kind) -> Self {
        Self::new(kind, "", "")
    }

    /// The API path of the object, for example `/api/v1/namespaces/default/pods/web-1`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.kind.collection(&self.namespace), self.name)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Something to be done once for the type of each watched kind.
pub trait KindVisitor {
    /// Does it for one kind.
    fn visit<K>(&mut self, kind: Kind)
    where
        K: kube::Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + 'static,
        Object: From<K>;
}

/// Declares the watched kinds: the kind, its cache in [`World`], and whether it lives in namespaces.
macro_rules! kinds {
    ($($kind:ident $field:ident $namespaced:literal,)*) => {
        /// A kind of object that the controllers watch.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "each is named after its Kubernetes kind")]
        pub enum Kind { $($kind),* }

        impl Kind {
            /// Every watched kind.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// Whether objects of the kind live in namespaces.
            pub const fn namespaced(self) -> bool {
                match self { $(Self::$kind => $namespaced),* }
            }

            /// `apiVersion`, for example `apps/v1`.
            pub const fn api_version(self) -> &'static str {
                match self { $(Self::$kind => <$kind as ApiResource>::API_VERSION),* }
            }

            /// `kind`, for example `ReplicaSet`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => <$kind as ApiResource>::KIND),* }
            }

            /// The plural in paths, for example `replicasets`.
            pub const fn plural(self) -> &'static str {
                match self { $(Self::$kind => <$kind as ApiResource>::URL_PATH_SEGMENT),* }
            }
        }

        /// One object of any watched kind. Cheap to clone.
        #[derive(Clone, Debug)]
        #[allow(missing_docs, reason = "each is named after its Kubernetes kind")]
        pub enum Object { $($kind(Arc<$kind>)),* }

        impl Object {
            /// The object's kind.
            pub const fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind),* }
            }

            /// The object's `metadata`.
            pub fn meta(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => &object.metadata),* }
            }

            /// Reads an object of `kind` from its JSON.
            ///
            /// # Errors
            /// The JSON does not have the shape of that kind.
            pub fn from_json(kind: Kind, json: Value) -> Result<Self, serde_json::Error> {
                Ok(match kind { $(Kind::$kind => Self::$kind(Arc::new(serde_json::from_value(json)?))),* })
            }
        }

        /// Shows every watched kind's type to `visitor`.
        pub fn visit_kinds(visitor: &mut impl KindVisitor) {
            $(visitor.visit::<$kind>(Kind::$kind);)*
        }

        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Arc::new(object))
            }
        })*

        /// The current objects of every watched kind.
        #[derive(Debug, Default)]
        #[allow(missing_docs, reason = "each is named after its Kubernetes kind")]
        pub struct World { $(pub $field: Store<$kind>),* }

        impl World {
            /// Takes in one object. `None` if it is no newer than what is known.
            pub fn apply(&mut self, object: Object) -> Option<Change> {
                match object { $(Object::$kind(object) => self.$field.apply(object).map(|(old, new)| Change {
                    old: old.map(Object::$kind), new: Some(Object::$kind(new)),
                })),* }
            }

            /// Forgets a deleted object if it still is the one with this `uid`. A copy of it that arrives later, from a
            /// slower watch or as the answer to a write, does not bring it back.
            pub fn remove(&mut self, id: &Id, uid: &str) -> Option<Change> {
                match id.kind { $(Kind::$kind => self.$field.bury(id, uid).map(|old| Change {
                    old: Some(Object::$kind(old)), new: None,
                })),* }
            }

            fn drop_unlisted(&mut self, id: &Id, uid: &str) -> Option<Change> {
                match id.kind { $(Kind::$kind => self.$field.remove(id, uid).map(|old| Change {
                    old: Some(Object::$kind(old)), new: None,
                })),* }
            }

            /// The object of this identity.
            pub fn get(&self, id: &Id) -> Option<Object> {
                match id.kind { $(Kind::$kind => self.$field.get(&id.namespace, &id.name).cloned().map(Object::$kind)),* }
            }

            /// Every object of `kind`, ordered by namespace and name.
            pub fn all(&self, kind: Kind) -> Vec<Object> {
                match kind { $(Kind::$kind => self.$field.iter().cloned().map(Object::$kind).collect()),* }
            }

            /// Every object of `kind` in a namespace, ordered by name.
            pub fn in_namespace(&self, kind: Kind, namespace: &str) -> Vec<Object> {
                match kind { $(Kind::$kind => self.$field.in_namespace(namespace).cloned().map(Object::$kind).collect()),* }
            }

            /// Every object that names `uid` in its `ownerReferences`.
            pub fn owned_by(&self, uid: &str) -> Vec<Object> {
                let mut owned = Vec::new();
                $(owned.extend(self.$field.owned_by(uid).cloned().map(Object::$kind));)*
                owned
            }
        }
    };
}

// The one table of watched kinds.
kinds! {
    Namespace namespaces false,
    Node nodes false,
    Pod pods true,
    Service services true,
    Endpoints endpoints true,
    EndpointSlice endpoint_slices true,
    ConfigMap config_maps true,
    Secret secrets true,
    ServiceAccount service_accounts true,
    Event events true,
    Deployment deployments true,
    ReplicaSet replica_sets true,
    DaemonSet daemon_sets true,
    Lease leases true,
}

impl Kind {
    /// The watched kind that an `apiVersion` and `kind` name.
    pub fn named(api_version: &str, kind: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|k| k.api_version() == api_version && k.name() == kind)
    }

    /// The API path of the kind's collection in `namespace` (ignored for a cluster-scoped kind).
    pub fn collection(self, namespace: &str) -> String {
        let root = if self.api_version().contains('/') { "/apis" } else { "/api" };
        let (version, plural) = (self.api_version(), self.plural());
        if self.namespaced() {
            format!("{root}/{version}/namespaces/{namespace}/{plural}")
        } else {
            format!("{root}/{version}/{plural}")
        }
    }
}

impl Object {
    /// Kind, namespace and name.
    pub fn id(&self) -> Id {
        let meta = self.meta();
        Id::new(self.kind(), meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or_default()
    }
}

impl World {
    /// Takes in the complete state of `kind`: what is not in it is gone. (Or it was created after that state was read:
    /// then the watch that follows brings it back.)
    pub fn replace(&mut self, kind: Kind, objects: Vec<Object>) -> Vec<Change> {
        let listed: HashSet<String> = objects.iter().map(|o| o.uid().to_owned()).collect();
        let gone: Vec<Object> = self.all(kind).into_iter().filter(|o| !listed.contains(o.uid())).collect();
        let mut changes: Vec<Change> =
            gone.iter().filter_map(|object| self.drop_unlisted(&object.id(), object.uid())).collect();
        changes.extend(objects.into_iter().filter_map(|object| self.apply(object)));
        changes
    }

    /// Notes that a pod has been assigned to a node; the API will tell the pod's new revision later.
    pub fn bind(&mut self, id: &Id, uid: &str, node: &str) -> Option<Change> {
        let old = self.pods.get(&id.namespace, &id.name)?.clone();
        if old.metadata.uid.as_deref() != Some(uid) {
            return None;
        }
        let mut new = Pod::clone(&old);
        new.spec.get_or_insert_default().node_name = Some(node.to_owned());
        let new = Arc::new(new);
        self.pods.objects.insert((id.namespace.clone(), id.name.clone()), new.clone());
        Some(Change { old: Some(Object::Pod(old)), new: Some(Object::Pod(new)) })
    }
}

/// One step of the known state: created (`new` only), changed, or gone (`old` only).
#[derive(Clone, Debug)]
pub struct Change {
    /// The object before.
    pub old: Option<Object>,
    /// The object after.
    pub new: Option<Object>,
}

impl Change {
    /// The object before and after, as far as there is one.
    pub fn states(&self) -> impl Iterator<Item = &Object> {
        self.old.iter().chain(self.new.iter())
    }
}

/// The cache of one kind.
#[derive(Debug)]
pub struct Store<K> {
    objects: BTreeMap<(String, String), Arc<K>>,
    owned: HashMap<String, BTreeSet<(String, String)>>,
    /// The uids of the last [`GRAVES`] deleted objects.
    buried: HashSet<String>,
    graves: VecDeque<String>,
}

/// How many deleted objects of a kind are remembered: far more than there are writes and watch events under way.
const GRAVES: usize = 4096;

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), owned: HashMap::new(), buried: HashSet::new(), graves: VecDeque::new() }
    }
}

impl<K: Metadata<Ty = ObjectMeta>> Store<K> {
    /// The object of this namespace (empty for a cluster-scoped kind) and name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<K>> {
        self.objects.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Every object, ordered by namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<K>> {
        self.objects.values()
    }

    /// Every object of a namespace, ordered by name.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<K>> {
        let from = (namespace.to_owned(), String::new());
        self.objects.range(from..).take_while(move |((ns, _), _)| ns == namespace).map(|(_, object)| object)
    }

    /// Every object that names `uid` in its `ownerReferences`, ordered by namespace and name.
    pub fn owned_by(&self, uid: &str) -> impl Iterator<Item = &Arc<K>> {
        self.owned.get(uid).into_iter().flatten().filter_map(|key| self.objects.get(key))
    }

    fn apply(&mut self, object: Arc<K>) -> Option<(Option<Arc<K>>, Arc<K>)> {
        let meta = object.metadata();
        let uid = meta.uid.clone().unwrap_or_default();
        if self.buried.contains(&uid) {
            return None;
        }
        let key = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        let old = self.objects.get(&key).cloned();
        if old.as_ref().is_some_and(|old| revision(old.metadata()) >= revision(meta)) {
            return None;
        }
        if let Some(old) = &old {
            self.unlink(&key, old);
        }
        for owner in meta.owner_references.iter().flatten() {
            self.owned.entry(owner.uid.clone()).or_default().insert(key.clone());
        }
        self.objects.insert(key, object.clone());
        Some((old, object))
    }

    fn bury(&mut self, id: &Id, uid: &str) -> Option<Arc<K>> {
        if self.buried.insert(uid.to_owned()) {
            self.graves.push_back(uid.to_owned());
        }
        if self.graves.len() > GRAVES {
            self.graves.pop_front().map(|oldest| self.buried.remove(&oldest));
        }
        self.remove(id, uid)
    }

    fn remove(&mut self, id: &Id, uid: &str) -> Option<Arc<K>> {
        let key = (id.namespace.clone(), id.name.clone());
        if self.objects.get(&key)?.metadata().uid.as_deref() != Some(uid) {
            return None;
        }
        let old = self.objects.remove(&key)?;
        self.unlink(&key, &old);
        Some(old)
    }

    fn unlink(&mut self, key: &(String, String), object: &K) {
        for owner in object.metadata().owner_references.iter().flatten() {
            if let Some(keys) = self.owned.get_mut(&owner.uid) {
                keys.remove(key);
                if keys.is_empty() {
                    self.owned.remove(&owner.uid);
                }
            }
        }
    }
}

/// `resourceVersion` as a number; Kubernetes 1.35 made them comparable. Zero where there is none.
fn revision(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str, revision: u64) -> Object {
        let owners = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "owner"}]);
        let metadata = json!({
            "namespace": "default", "name": name, "uid": uid, "resourceVersion": revision.to_string(),
            "ownerReferences": owners,
        });
        Object::from_json(Kind::Pod, json!({ "metadata": metadata })).unwrap()
    }

    fn names(world: &World) -> Vec<String> {
        world.owned_by("owner").iter().map(|object| object.id().name).collect()
    }

    #[test]
    fn an_older_copy_changes_nothing() {
        let mut world = World::default();
        assert!(world.apply(pod("a", "1", 9)).is_some());
        assert!(world.apply(pod("a", "1", 7)).is_none(), "the watch is behind the answer to a write");
        assert!(world.apply(pod("a", "1", 9)).is_none());
        assert!(world.apply(pod("a", "1", 10)).is_some());
    }

    #[test]
    fn what_is_deleted_does_not_come_back() {
        let mut world = World::default();
        let id = pod("a", "1", 1).id();
        world.apply(pod("a", "1", 1));
        assert!(world.remove(&id, "2").is_none(), "another object of this name was meant");
        assert!(world.remove(&id, "1").is_some());
        assert!(world.apply(pod("a", "1", 5)).is_none(), "an answer that arrives after the deletion");
        assert!(world.apply(pod("a", "3", 6)).is_some(), "a new object of the old name");
        assert_eq!(names(&world), ["a"]);
    }

    #[test]
    fn a_complete_state_replaces_what_is_known() {
        let mut world = World::default();
        for object in [pod("a", "1", 1), pod("b", "2", 2), pod("c", "3", 3)] {
            world.apply(object);
        }
        let changes = world.replace(Kind::Pod, vec![pod("b", "2", 2), pod("c", "4", 5), pod("d", "5", 6)]);
        assert_eq!(names(&world), ["b", "c", "d"]);
        let kinds: Vec<_> = changes.iter().map(|c| (c.old.is_some(), c.new.is_some())).collect();
        assert_eq!(kinds, [(true, false), (true, false), (false, true), (false, true)]);
        assert!(world.apply(pod("a", "1", 7)).is_some(), "it was created after that state was read");
    }
}
