//! The one table of what this server serves. A new kind is a new row in [`KINDS`]; nothing else registers it.

mod event;
mod rows;

use serde_json::Value;

use crate::{
    admission::Causes,
    store::Collection,
    strict::{self, Decoder},
    table::{self, Printer},
};

pub(crate) use rows::KINDS;

/// One kind of object: how it is named, read, checked and printed.
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// `kind` of its objects.
    pub kind: &'static str,
    /// Name of the resource, as in paths.
    pub plural: &'static str,
    /// Name of one, for `kubectl`.
    pub singular: &'static str,
    /// Abbreviations that `kubectl` accepts.
    pub short_names: &'static [&'static str],
    /// Groups of resources it belongs to, such as `all`.
    pub categories: &'static [&'static str],
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Names of its subresources.
    pub subresources: &'static [&'static str],
    /// Whether `metadata.generation` counts changes of the specification.
    pub generation: bool,
    pub(crate) collection: Collection,
    pub(crate) fields: &'static [&'static str],
    pub(crate) decode: Decoder,
    pub(crate) rules: Rules,
    pub(crate) printer: Printer,
    pub(crate) view: Option<View>,
}

/// What happens to an object of a kind before it is stored.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    /// Fills in what the client left out.
    pub default: fn(&mut Value),
    /// Sets what a new object starts with, over what the client sent.
    pub create: fn(&mut Value),
    /// Finds what is wrong with an object.
    pub validate: fn(&Value, &mut Causes),
    /// Finds what may not change from the first to the second.
    pub transition: fn(&Value, &Value, &mut Causes),
}

impl Rules {
    pub(crate) const NONE: Rules =
        Rules { default: |_| {}, create: |_| {}, validate: |_, _| {}, transition: |_, _, _| {} };
}

/// A kind whose objects are stored as those of another kind.
#[derive(Clone, Copy)]
pub(crate) struct View {
    /// From the stored form to this kind's.
    pub show: fn(&mut Value),
    /// From this kind's form to the stored one.
    pub store: fn(&mut Value),
}

impl Kind {
    pub(crate) const BASE: Kind = Kind {
        group: "",
        version: "v1",
        kind: "",
        plural: "",
        singular: "",
        short_names: &[],
        categories: &[],
        namespaced: true,
        subresources: &[],
        generation: false,
        collection: "",
        fields: &[],
        decode: strict::decode::<Value>,
        rules: Rules::NONE,
        printer: table::NAME_AND_AGE,
        view: None,
    };

    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods`, `deployments.apps`.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Whether it has that subresource.
    pub fn has(&self, subresource: &str) -> bool {
        self.subresources.contains(&subresource)
    }

    /// The verbs on its objects, as discovery tells them.
    pub fn verbs(&self) -> &'static [&'static str] {
        &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.api_version(), self.kind)
    }
}

/// The kind served under a path.
pub fn by_resource(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.group == group && k.version == version && k.plural == plural)
}

/// The kind of a name that is unique in the table, such as `Pod`. `None` if there is none.
pub(crate) fn by_kind(group: &str, kind: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.group == group && k.kind == kind)
}

/// The groups and versions served, the core group first, each once.
pub(crate) fn group_versions() -> Vec<(&'static str, &'static str)> {
    let mut all = Vec::new();
    for kind in KINDS {
        if !all.contains(&(kind.group, kind.version)) {
            all.push((kind.group, kind.version));
        }
    }
    all
}

/// The rules of one row, spelled shortly.
pub(crate) const fn rules(
    default: fn(&mut Value),
    create: fn(&mut Value),
    validate: fn(&Value, &mut Causes),
    transition: fn(&Value, &Value, &mut Causes),
) -> Rules {
    Rules { default, create, validate, transition }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_whole_and_names_are_unique() {
        let mut names: Vec<&str> = Vec::new();
        for kind in KINDS {
            assert!(!kind.kind.is_empty() && !kind.plural.is_empty() && !kind.collection.is_empty(), "{kind:?}");
            assert_eq!(kind.singular, kind.kind.to_lowercase(), "{kind:?}");
            if kind.view.is_none() {
                names.extend([kind.plural, kind.singular]);
                names.extend(kind.short_names);
            }
        }
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        // `endpoints` is its own singular.
        assert_eq!(unique.len() + 1, names.len());
    }

    #[test]
    fn every_default_is_understood_by_its_type() {
        for kind in KINDS.iter().filter(|k| k.view.is_none()) {
            let mut value = serde_json::json!({"apiVersion": kind.api_version(), "kind": kind.kind,
                "metadata": {"name": "x"}, "spec": {}});
            if !matches!(kind.kind, "ConfigMap" | "Secret" | "Endpoints" | "EndpointSlice" | "Event" | "ServiceAccount")
            {
                (kind.rules.default)(&mut value);
                (kind.rules.create)(&mut value);
                let decoded = (kind.decode)(&value).unwrap();
                assert!(decoded.unknown.is_empty(), "{kind:?}: {:?}", decoded.unknown);
            }
        }
    }
}
