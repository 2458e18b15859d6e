//! The verbs on stored objects, the same for every kind: what a request does once it has been read.

use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::{
    admission::{Causes, defaults, meta, service},
    auth::Tokens,
    kinds::{self, Kind},
    object::{carry, deleting, items, number, remove, text},
    remote::NodeProxy,
    status::Status,
    store::{Key, Object, Store, StoreError},
};

/// How often a change is tried again when others change the object in between.
const RETRIES: usize = 16;
/// Namespaces that no cluster is without.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Everything a request needs.
pub(crate) struct Api {
    /// The objects.
    pub store: Arc<dyn Store>,
    /// Who may ask.
    pub tokens: Tokens,
    /// The way to pods' logs and commands.
    pub nodes: Arc<dyn NodeProxy>,
    /// Where Services get their addresses: one range, or one of each family, the preferred one first.
    pub service_ranges: Vec<IpNet>,
    /// Held from looking what is taken until the Service that takes it is stored.
    pub allocating: Mutex<()>,
}

/// `fieldValidation`: what to do about fields nobody knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    /// Drop them.
    Ignore,
    /// Drop them and warn.
    #[default]
    Warn,
    /// Refuse the object.
    Strict,
}

/// Options of a write.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WriteOptions {
    /// Check everything, store nothing.
    pub dry_run: bool,
    /// About unknown fields.
    pub validation: FieldValidation,
}

/// `metav1.DeleteOptions`.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    pub dry_run: bool,
    /// `gracePeriodSeconds`.
    pub grace: Option<i64>,
    /// `propagationPolicy`, or `orphanDependents` in its words.
    pub propagation: Option<String>,
    /// `preconditions.uid`.
    pub uid: Option<String>,
    /// `preconditions.resourceVersion`.
    pub revision: Option<String>,
}

/// What a write did.
#[derive(Debug)]
pub(crate) struct Written {
    pub object: Arc<Object>,
    /// What the client should be told besides.
    pub warnings: Vec<String>,
}

/// What a deletion did.
#[derive(Debug)]
pub(crate) enum Deleted {
    /// The object is no more; its last state.
    Gone(Arc<Object>),
    /// The object waits for its kubelet or its finalizers.
    Pending(Arc<Object>),
}

/// Which part of an object a write may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All but the status.
    Main,
    /// The status; labels and annotations as well, as flannel and the kubelet expect of Nodes.
    Status,
}

/// Makes the next state of an object from the present one.
pub(crate) type Edit<'a> = &'a mut dyn FnMut(&Value) -> Result<Value, Status>;

impl Api {
    /// The stored object.
    pub fn get(&self, kind: &Kind, key: &Key) -> Result<Arc<Object>, Status> {
        self.store.get(kind.collection, key).ok_or_else(|| Status::not_found(kind, &key.name))
    }

    /// Stores a new object.
    pub fn create(&self, kind: &Kind, namespace: &str, body: Value, options: WriteOptions) -> Result<Written, Status> {
        let (mut object, warnings) = decode(kind, body, options.validation)?;
        if let Some(view) = kind.view {
            (view.store)(&mut object);
        }
        meta::create(kind, &mut object, namespace)?;
        let name = text(&object, "/metadata/name").to_owned();
        if kind.namespaced {
            self.check_namespace(kind, namespace, &name)?;
        }
        (kind.rules.default)(&mut object);
        (kind.rules.create)(&mut object);
        let mut causes = Causes::new();
        meta::validate(kind, &object, &mut causes);
        (kind.rules.validate)(&object, &mut causes);
        let key = Key { namespace: namespace.to_owned(), name: name.clone() };
        let _allocating = self.allocate(kind, &key, None, &mut object, &mut causes);
        if self.store.get(kind.collection, &key).is_some() {
            return Err(Status::already_exists(kind, &name));
        }
        if !causes.is_empty() {
            return Err(Status::invalid(kind, &name, &causes));
        }
        if options.dry_run {
            return Ok(Written { object: Arc::new(Object::new(object, 0)), warnings });
        }
        let created = self.store.create(kind.collection, key, object);
        let object = created.map_err(|_| Status::already_exists(kind, &name))?;
        if kind.kind == "Namespace" {
            self.create_default_account(&name);
        }
        Ok(Written { object, warnings })
    }

    /// Changes an object: `edit` makes the next state from the present one and may be called several times.
    pub fn update(
        &self,
        kind: &Kind,
        key: &Key,
        part: Part,
        options: WriteOptions,
        edit: Edit,
    ) -> Result<Written, Status> {
        retried(kind, key, || {
            let old = self.get(kind, key)?;
            let mut shown = old.value().clone();
            if let Some(view) = kind.view {
                (view.show)(&mut shown);
            }
            let (mut new, warnings) = decode(kind, edit(&shown)?, options.validation)?;
            if let Some(view) = kind.view {
                (view.store)(&mut new);
            }
            let asked = text(&new, "/metadata/resourceVersion");
            if !asked.is_empty() && asked != old.revision().to_string() {
                return Err(modified(kind, key).into());
            }
            meta::update(kind, old.value(), &mut new)?;
            let new = keep_other_part(kind, old.value(), new, part);
            let object = self.replace(kind, key, &old, new, options.dry_run)?;
            Ok(Written { object, warnings })
        })
    }

    fn replace(
        &self,
        kind: &Kind,
        key: &Key,
        old: &Arc<Object>,
        mut new: Value,
        dry_run: bool,
    ) -> Result<Arc<Object>, Failed> {
        (kind.rules.default)(&mut new);
        let mut causes = Causes::new();
        meta::validate(kind, &new, &mut causes);
        let _allocating = self.allocate(kind, key, Some(old.value()), &mut new, &mut causes);
        (kind.rules.validate)(&new, &mut causes);
        (kind.rules.transition)(old.value(), &new, &mut causes);
        if !causes.is_empty() {
            return Err(Status::invalid(kind, &key.name, &causes).into());
        }
        if kind.generation {
            new["metadata"]["generation"] = defaults::generation(old.value(), &new).into();
        }
        new["metadata"]["resourceVersion"] = old.value()["metadata"]["resourceVersion"].clone();
        if new == *old.value() || dry_run {
            return Ok(if dry_run { Arc::new(Object::new(new, old.revision())) } else { old.clone() });
        }
        self.settle(kind, key, old, new)
    }

    /// Stores the next state of an object, or removes it if nothing holds it any more.
    fn settle(&self, kind: &Kind, key: &Key, old: &Object, new: Value) -> Result<Arc<Object>, Failed> {
        let stored = if may_go(kind, &new) {
            self.store.delete(kind.collection, key, old.revision())
        } else {
            self.store.update(kind.collection, key, old.revision(), new)
        };
        stored.map_err(|error| match error {
            StoreError::NotFound => Status::not_found(kind, &key.name).into(),
            StoreError::Modified | StoreError::Exists => Failed::Raced,
        })
    }

    /// Changes an object without the rules that bind clients. For the server's own work.
    pub fn modify(
        &self,
        kind: &Kind,
        key: &Key,
        edit: &mut dyn FnMut(&mut Value) -> Result<(), Status>,
    ) -> Result<Arc<Object>, Status> {
        retried(kind, key, || {
            let old = self.get(kind, key)?;
            let mut new = old.value().clone();
            edit(&mut new)?;
            self.settle(kind, key, &old, new)
        })
    }

    /// Removes an object, or marks it as to be removed.
    pub fn delete(&self, kind: &Kind, key: &Key, options: &DeleteOptions) -> Result<Deleted, Status> {
        retried(kind, key, || {
            let old = self.get(kind, key)?;
            if kind.kind == "Namespace" && IMMORTAL.contains(&key.name.as_str()) {
                return Err(Status::forbidden(kind, &key.name, "this namespace may not be deleted").into());
            }
            preconditions(kind, old.value(), options)?;
            let grace = grace_period(kind, old.value(), options.grace);
            let mut new = old.value().clone();
            propagate(&mut new, options.propagation.as_deref());
            let given = number(&new, "/metadata/deletionGracePeriodSeconds");
            if !deleting(&new) || given.is_some_and(|given| grace < given) {
                meta::mark_deleted(kind, &mut new, grace);
            }
            if kind.kind == "Namespace" {
                new["status"]["phase"] = "Terminating".into();
            }
            if options.dry_run || new == *old.value() {
                return Ok(Deleted::Pending(old));
            }
            let gone = may_go(kind, &new);
            let object = self.settle(kind, key, &old, new)?;
            Ok(if gone { Deleted::Gone(object) } else { Deleted::Pending(object) })
        })
    }

    /// New objects need a namespace that exists and is not going away.
    fn check_namespace(&self, kind: &Kind, namespace: &str, name: &str) -> Result<(), Status> {
        let Some(namespaces) = kinds::by_kind("", "Namespace") else { return Ok(()) };
        let found = self.get(namespaces, &Key { namespace: String::new(), name: namespace.to_owned() })?;
        if deleting(found.value()) {
            let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
            return Err(Status::forbidden(kind, name, &why));
        }
        Ok(())
    }

    fn create_default_account(&self, namespace: &str) {
        let Some(kind) = kinds::by_kind("", "ServiceAccount") else { return };
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        if let Err(status) = self.create(kind, namespace, account, WriteOptions::default()) {
            tracing::warn!(namespace, %status, "cannot create the default service account");
        }
    }

    /// Gives a Service its addresses and ports. What it returns must be held until the Service is stored.
    fn allocate(
        &self,
        kind: &Kind,
        key: &Key,
        old: Option<&Value>,
        object: &mut Value,
        causes: &mut Causes,
    ) -> Option<std::sync::MutexGuard<'_, ()>> {
        if kind.kind != "Service" {
            return None;
        }
        let guard = self.allocating.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.store.list(kind.collection, None).items;
        let others = all
            .iter()
            .map(|o| o.value())
            .filter(|o| text(o, "/metadata/name") != key.name || text(o, "/metadata/namespace") != key.namespace);
        let mut taken = service::Taken::by(others);
        if let Some(old) = old {
            service::carry_over(old, object);
        }
        service::allocate(object, &self.service_ranges, &mut taken, causes);
        Some(guard)
    }
}

/// Why one attempt to change an object failed.
enum Failed {
    Refused(Status),
    /// Someone else changed the object in between.
    Raced,
}

impl From<Status> for Failed {
    fn from(status: Status) -> Failed {
        Failed::Refused(status)
    }
}

/// Tries a change again while others are faster, within bounds.
fn retried<T>(kind: &Kind, key: &Key, mut attempt: impl FnMut() -> Result<T, Failed>) -> Result<T, Status> {
    for _ in 0..RETRIES {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(Failed::Refused(status)) => return Err(status),
            Err(Failed::Raced) => {}
        }
    }
    Err(modified(kind, key))
}

fn modified(kind: &Kind, key: &Key) -> Status {
    Status::conflict(kind, &key.name, &StoreError::Modified.to_string())
}

/// Reads a body as an object of `kind`; what it says besides are warnings.
fn decode(kind: &Kind, mut body: Value, validation: FieldValidation) -> Result<(Value, Vec<String>), Status> {
    if !body.is_object() {
        return Err(Status::bad_request(format!("the body is not a {} object", kind.kind)));
    }
    for (field, expected, what) in
        [("apiVersion", kind.api_version(), "API version"), ("kind", kind.kind.to_owned(), "kind")]
    {
        let given = text(&body, &format!("/{field}"));
        if !given.is_empty() && given != expected {
            return Err(Status::bad_request(format!(
                "the {what} in the data ({given}) does not match the expected {what} ({expected})"
            )));
        }
        body[field] = expected.into();
    }
    if body["metadata"].is_null() {
        body["metadata"] = json!({});
    }
    let decoded = (kind.decode)(&body).map_err(|why| {
        Status::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {why}",
            kind.kind, kind.version, kind.kind
        ))
    })?;
    let unknown: Vec<_> = decoded.unknown.iter().map(|field| format!("unknown field {field:?}")).collect();
    match validation {
        FieldValidation::Strict if !unknown.is_empty() => {
            Err(Status::bad_request(format!("strict decoding error: {}", unknown.join(", "))))
        }
        FieldValidation::Ignore => Ok((decoded.value, Vec::new())),
        _ => Ok((decoded.value, unknown)),
    }
}

fn keep_other_part(kind: &Kind, old: &Value, mut new: Value, part: Part) -> Value {
    match part {
        Part::Main => {
            if kind.has("status") {
                carry(old, &mut new, "status");
            }
            if kind.kind == "Namespace" {
                // The finalize subresource alone changes these.
                new["spec"]["finalizers"] = old["spec"]["finalizers"].clone();
            }
            new
        }
        Part::Status => {
            let mut kept = old.clone();
            carry(&new, &mut kept, "status");
            for field in ["labels", "annotations"] {
                carry(&new["metadata"], &mut kept["metadata"], field);
            }
            kept
        }
    }
}

/// Whether nothing holds an object any more whose deletion was asked for.
fn may_go(kind: &Kind, object: &Value) -> bool {
    deleting(object)
        && items(object, "/metadata/finalizers").is_empty()
        && number(object, "/metadata/deletionGracePeriodSeconds").unwrap_or(0) == 0
        && (kind.kind != "Namespace" || items(object, "/spec/finalizers").is_empty())
}

/// Only Pods that run on a node are given time.
fn grace_period(kind: &Kind, object: &Value, asked: Option<i64>) -> i64 {
    let ended = matches!(text(object, "/status/phase"), "Succeeded" | "Failed");
    if kind.kind != "Pod" || text(object, "/spec/nodeName").is_empty() || ended {
        return 0;
    }
    // A negative period means the shortest one.
    match asked.or_else(|| number(object, "/spec/terminationGracePeriodSeconds")).unwrap_or(30) {
        negative if negative < 0 => 1,
        seconds => seconds,
    }
}

fn preconditions(kind: &Kind, object: &Value, options: &DeleteOptions) -> Result<(), Status> {
    for (what, wanted, field) in
        [("UID", &options.uid, "uid"), ("ResourceVersion", &options.revision, "resourceVersion")]
    {
        let actual = text(&object["metadata"], &format!("/{field}"));
        if let Some(wanted) = wanted.as_deref().filter(|w| *w != actual) {
            let why = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {actual}");
            return Err(Status::conflict(kind, text(object, "/metadata/name"), &why));
        }
    }
    Ok(())
}

/// Says in the finalizers what the garbage collector shall do with the dependents.
fn propagate(object: &mut Value, policy: Option<&str>) {
    let wanted = match policy {
        Some("Foreground") => Some("foregroundDeletion"),
        Some("Orphan") => Some("orphan"),
        Some("Background") => None,
        _ => return,
    };
    let mut finalizers: Vec<Value> = items(object, "/metadata/finalizers").to_vec();
    finalizers.retain(|f| f != "foregroundDeletion" && f != "orphan");
    finalizers.extend(wanted.map(Value::from));
    if finalizers.is_empty() {
        remove(&mut object["metadata"], "finalizers");
    } else {
        object["metadata"]["finalizers"] = finalizers.into();
    }
}
