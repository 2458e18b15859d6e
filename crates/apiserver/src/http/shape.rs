//! The form in which a client reads objects: as they are, as table rows, or their metadata alone.

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Value, json};

use super::page::Page;
use crate::{kinds::Kind, store::Object, table};

/// `includeObject` of a Table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

/// A form of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// The objects themselves.
    Plain,
    /// `meta.k8s.io/v1 Table`.
    Table,
    /// `meta.k8s.io/v1 PartialObjectMetadata`.
    Metadata,
}

/// The first form in an `Accept` header that this server knows; JSON objects if there is none.
pub(super) fn of_accept(accept: &str) -> Shape {
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        if !matches!(media, "application/json" | "application/*" | "*/*") {
            continue;
        }
        let (mut form, mut version) = ("", "");
        for part in parts {
            match part.split_once('=') {
                Some(("as", value)) => form = value,
                Some(("v", value)) => version = value,
                _ => {}
            }
        }
        match (form, version) {
            ("", _) => return Shape::Plain,
            ("Table", "v1") => return Shape::Table,
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "v1") => return Shape::Metadata,
            _ => {}
        }
    }
    Shape::Plain
}

/// `includeObject` as a query spells it.
pub(super) fn include(text: &str) -> Include {
    match text {
        "None" => Include::None,
        "Object" => Include::Object,
        _ => Include::Metadata,
    }
}

/// The object in the form its kind is served in.
pub(super) fn served(kind: &Kind, object: &Object) -> Bytes {
    match kind.view {
        None => object.json(),
        Some(_) => served_value(kind, object).to_string().into(),
    }
}

fn served_value(kind: &Kind, object: &Object) -> Value {
    let mut value = object.value().clone();
    if let Some(view) = kind.view {
        (view.show)(&mut value);
    }
    value
}

fn metadata_only(object: &Object) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.value()["metadata"]})
}

/// One object.
pub(super) fn one(kind: &Kind, object: &Object, shape: Shape, include: Include) -> Bytes {
    match shape {
        Shape::Plain => served(kind, object),
        Shape::Metadata => metadata_only(object).to_string().into(),
        Shape::Table => {
            let metadata = json!({ "resourceVersion": object.value()["metadata"]["resourceVersion"] });
            table(kind, std::iter::once(object), &metadata, include).to_string().into()
        }
    }
}

/// A list, or a piece of one.
pub(super) fn many(kind: &Kind, page: &Page, (shape, include): (Shape, Include)) -> Bytes {
    let mut metadata = json!({ "resourceVersion": page.revision.to_string() });
    if let Some(next) = &page.next {
        metadata["continue"] = next.to_string().into();
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    let head = |kind: &str, version: &str| {
        format!(r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{metadata},"items":["#)
    };
    let objects = page.items.iter().map(|object| &**object);
    match shape {
        Shape::Plain => {
            joined(head(&format!("{}List", kind.kind), &kind.api_version()), objects.map(|o| served(kind, o)))
        }
        Shape::Metadata => joined(
            head("PartialObjectMetadataList", "meta.k8s.io/v1"),
            objects.map(|o| metadata_only(o).to_string().into()),
        ),
        Shape::Table => table(kind, objects, &metadata, include).to_string().into(),
    }
}

fn joined(head: String, items: impl Iterator<Item = Bytes>) -> Bytes {
    let mut text = BytesMut::from(head.as_bytes());
    for (index, item) in items.enumerate() {
        if index > 0 {
            text.put_u8(b',');
        }
        text.put(item);
    }
    text.put_slice(b"]}");
    text.freeze()
}

fn table<'a>(kind: &Kind, objects: impl Iterator<Item = &'a Object>, metadata: &Value, include: Include) -> Value {
    let rows = objects.map(|object| {
        let mut row = json!({"cells": kind.printer.cells(object.value())});
        match include {
            Include::None => {}
            Include::Metadata => row["object"] = metadata_only(object),
            Include::Object => row["object"] = served_value(kind, object),
        }
        row
    });
    let rows: Vec<Value> = rows.collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": table::definitions(&kind.printer), "rows": rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_headers_choose() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(of_accept(table), Shape::Table);
        assert_eq!(of_accept("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"), Shape::Metadata);
        assert_eq!(of_accept("application/vnd.kubernetes.protobuf,application/json"), Shape::Plain);
        assert_eq!(of_accept("application/vnd.kubernetes.protobuf"), Shape::Plain);
        assert_eq!(of_accept("application/json;as=Table;v=v1beta1;g=meta.k8s.io"), Shape::Plain);
        assert_eq!(of_accept(""), Shape::Plain);
    }
}
