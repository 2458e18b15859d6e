//! Namespaces: a `default` ServiceAccount and the cluster's CA in each; all contents deleted before a namespace goes.

use podwire_k8s::k8s_openapi::{
    api::core::v1::{ConfigMap, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    Context,
    action::{self, Deletion, Plan, Write},
    world::{Change, Id, Kind, Object, World},
};

const CA: &str = "kube-root-ca.crt";

/// Namespaces, and namespaces of contents that are gone or that every namespace must have.
pub(super) fn concerns(world: &World, change: &Change) -> Vec<Id> {
    let mut ids = Vec::new();
    for object in change.states() {
        let terminating = |name: &str| {
            world.namespaces.get("", name).is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some())
        };
        match object {
            Object::Namespace(namespace) => ids.push(action::id(Kind::Namespace, &namespace.metadata)),
            _ => {
                let name = object.meta().namespace.as_deref().unwrap_or_default();
                let must_be = matches!(object, Object::ServiceAccount(_) | Object::ConfigMap(_));
                if !name.is_empty() && (must_be || terminating(name)) {
                    ids.push(Id::new(Kind::Namespace, "", name));
                }
            }
        }
    }
    ids
}

/// Keeps a living namespace furnished; empties a dying one, then lets it go.
pub(super) fn plan(world: &World, id: &Id, context: &Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(namespace) = world.namespaces.get("", &id.name) else { return plan };
    if namespace.metadata.deletion_timestamp.is_none() {
        furnish(world, &id.name, context, &mut plan);
        return plan;
    }
    let contents = Kind::ALL.iter().filter(|kind| kind.namespaced());
    let contents: Vec<Object> = contents.flat_map(|kind| world.in_namespace(*kind, &id.name)).collect();
    let held = namespace.spec.as_ref().is_some_and(|spec| spec.finalizers.as_ref().is_some_and(|f| !f.is_empty()));
    if contents.is_empty() && held {
        plan.push(Write::Finalize { namespace: id.name.clone() });
    }
    for object in contents.iter().filter(|object| object.meta().deletion_timestamp.is_none()) {
        plan.push(action::delete(object.kind(), object.meta(), Deletion::Background));
    }
    plan
}

fn furnish(world: &World, namespace: &str, context: &Context<'_>, plan: &mut Plan) {
    let named = |name: &str| ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..ObjectMeta::default()
    };
    if world.service_accounts.get(namespace, "default").is_none() {
        let account = ServiceAccount { metadata: named("default"), ..ServiceAccount::default() };
        plan.push(action::create(Kind::ServiceAccount, &account));
    }
    let Some(ca) = &context.config.root_ca else { return };
    let data = Some([("ca.crt".to_owned(), ca.clone())].into());
    match world.config_maps.get(namespace, CA) {
        None => {
            let map = ConfigMap { metadata: named(CA), data, ..ConfigMap::default() };
            plan.push(action::create(Kind::ConfigMap, &map));
        }
        Some(found) => {
            let wanted = ConfigMap { data, ..ConfigMap::clone(found) };
            plan.actions.extend(action::update(Kind::ConfigMap, found.as_ref(), &wanted).map(Into::into));
        }
    }
}
