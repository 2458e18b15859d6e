//! The rules of `metadata`: names, labels, and what only the server sets.

use serde_json::{Value, json};

use super::Causes;
use crate::{
    kinds::Kind,
    object::{carry, deleting, entries, items, now, remove, text, time_after},
    random,
    status::{Cause, Status},
};

/// Gives a new object its name, identity and time of birth.
pub(crate) fn create(kind: &Kind, object: &mut Value, namespace: &str) -> Result<(), Status> {
    let given = text(object, "/metadata/namespace").to_owned();
    if !given.is_empty() && given != namespace {
        return Err(Status::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the request ({given:?} is not {namespace:?})"
        )));
    }
    if !text(object, "/metadata/resourceVersion").is_empty() {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let metadata = &mut object["metadata"];
    if kind.namespaced {
        metadata["namespace"] = namespace.into();
    }
    if text(metadata, "/name").is_empty() && !text(metadata, "/generateName").is_empty() {
        metadata["name"] = format!("{}{}", text(metadata, "/generateName"), random::suffix()).into();
    }
    metadata["uid"] = random::uid().into();
    metadata["creationTimestamp"] = time_after(now(), 0).into();
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "selfLink", "generation"] {
        remove(metadata, field);
    }
    if kind.generation {
        metadata["generation"] = 1.into();
    }
    Ok(())
}

/// Keeps what a client may not change when it replaces `old`.
pub(crate) fn update(kind: &Kind, old: &Value, new: &mut Value) -> Result<(), Status> {
    let name = text(old, "/metadata/name");
    let (old_meta, metadata) = (&old["metadata"], &mut new["metadata"]);
    for field in ["name", "namespace"] {
        let (was, is) = (text(old_meta, &format!("/{field}")), text(metadata, &format!("/{field}")));
        if !is.is_empty() && was != is {
            return Err(Status::bad_request(format!(
                "the {field} of the object ({is}) does not match the {field} on the URL ({was})"
            )));
        }
    }
    let uid = text(metadata, "/uid");
    if !uid.is_empty() && uid != text(old_meta, "/uid") {
        let why =
            format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", text(old_meta, "/uid"));
        return Err(Status::conflict(kind, name, &why));
    }
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
    ] {
        carry(old_meta, metadata, field);
    }
    for field in ["managedFields", "selfLink"] {
        remove(metadata, field);
    }
    if deleting(old) {
        let had = items(old, "/metadata/finalizers");
        if let Some(added) = items(new, "/metadata/finalizers").iter().find(|f| !had.contains(f)) {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers [{added}]"
            );
            return Err(Status::invalid(kind, name, &[Cause::forbidden("metadata.finalizers", &why)]));
        }
    }
    Ok(())
}

/// Checks `metadata` of any object.
pub(crate) fn validate(kind: &Kind, object: &Value, causes: &mut Causes) {
    let name = text(object, "/metadata/name");
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if let Err(why) = check_name(kind, name) {
        causes.push(Cause::invalid("metadata.name", name, why));
    }
    for (key, value) in entries(object, "/metadata/labels").into_iter().flatten() {
        labels("metadata.labels", key, value, causes);
    }
    for (key, _) in entries(object, "/metadata/annotations").into_iter().flatten() {
        if let Err(why) = qualified_name(&key.to_lowercase()) {
            causes.push(Cause::invalid("metadata.annotations", key.as_str(), why));
        }
    }
    for (index, owner) in items(object, "/metadata/ownerReferences").iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, &format!("/{field}")).is_empty() {
                causes.push(Cause::required(format!("metadata.ownerReferences[{index}].{field}"), "must not be empty"));
            }
        }
    }
}

/// Checks one label.
pub(crate) fn labels(field: &str, key: &str, value: &Value, causes: &mut Causes) {
    if let Err(why) = qualified_name(key) {
        causes.push(Cause::invalid(field, key, why));
    }
    if let Err(why) = label_value(value.as_str().unwrap_or_default()) {
        causes.push(Cause::invalid(field, value.clone(), why));
    }
}

fn check_name(kind: &Kind, name: &str) -> Result<(), &'static str> {
    match kind.kind {
        "Namespace" => label(name),
        "Service" => dns_1035_label(name),
        _ => subdomain(name),
    }
}

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// An RFC 1123 label.
pub(crate) fn label(name: &str) -> Result<(), &'static str> {
    let b = name.as_bytes();
    if b.len() > 63 {
        return Err("must be no more than 63 characters");
    }
    let whole = b.iter().all(|b| lower(*b) || *b == b'-');
    let ends = b.first().is_some_and(|b| lower(*b)) && b.last().is_some_and(|b| lower(*b));
    if whole && ends { Ok(()) } else { Err(LABEL) }
}

fn dns_1035_label(name: &str) -> Result<(), &'static str> {
    match label(name) {
        Ok(()) if name.starts_with(|c: char| c.is_ascii_lowercase()) => Ok(()),
        Err(why) if why != LABEL => Err(why),
        _ => Err(DNS_1035),
    }
}

/// An RFC 1123 subdomain.
pub(crate) fn subdomain(name: &str) -> Result<(), &'static str> {
    if name.len() > 253 {
        return Err("must be no more than 253 characters");
    }
    let part = |part: &str| {
        let b = part.as_bytes();
        b.iter().all(|b| lower(*b) || *b == b'-')
            && b.first().is_some_and(|b| lower(*b))
            && b.last().is_some_and(|b| lower(*b))
    };
    if name.split('.').all(part) { Ok(()) } else { Err(SUBDOMAIN) }
}

fn qualified_name(key: &str) -> Result<(), &'static str> {
    let name = match key.split_once('/') {
        Some((prefix, name)) => {
            subdomain(prefix)?;
            name
        }
        None => key,
    };
    if name.len() > 63 {
        return Err("name part must be no more than 63 characters");
    }
    if name.is_empty() { Err("name part must be non-empty") } else { word(name).ok_or(QUALIFIED) }
}

fn label_value(value: &str) -> Result<(), &'static str> {
    if value.len() > 63 {
        return Err("must be no more than 63 characters");
    }
    if value.is_empty() { Ok(()) } else { word(value).ok_or(LABEL_VALUE) }
}

fn word(text: &str) -> Option<()> {
    let b = text.as_bytes();
    let inner = b.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b));
    let ends = b.first()?.is_ascii_alphanumeric() && b.last()?.is_ascii_alphanumeric();
    (inner && ends).then_some(())
}

/// The object that a deletion which must wait leaves behind.
pub(crate) fn mark_deleted(kind: &Kind, object: &mut Value, grace: i64) {
    let metadata = &mut object["metadata"];
    metadata["deletionTimestamp"] = time_after(now(), grace).into();
    metadata["deletionGracePeriodSeconds"] = json!(grace);
    if kind.generation {
        metadata["generation"] = (metadata["generation"].as_i64().unwrap_or(1) + 1).into();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_follow_their_rfc() {
        assert!(label("a-1").is_ok());
        assert!(label("-a").is_err());
        assert!(label("").is_err());
        assert!(label(&"a".repeat(64)).is_err());
        assert!(dns_1035_label("1a").is_err());
        assert!(subdomain("a.b-c.d").is_ok());
        assert!(subdomain("a..b").is_err());
        assert!(qualified_name("app.kubernetes.io/name").is_ok());
        assert!(qualified_name("a/b/c").is_err());
        assert!(label_value("").is_ok());
        assert!(label_value("a b").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in ".{0,80}") {
            let _ = (label(&text), dns_1035_label(&text), subdomain(&text), qualified_name(&text), label_value(&text));
        }
    }
}
