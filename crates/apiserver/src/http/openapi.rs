//! The least OpenAPI that `kubectl` needs: that PATCH takes `fieldValidation`, so that it leaves validation to the
//! server. There are no schemas (`kubectl explain` finds nothing).

use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::body::{Body, json as respond, whole};
use crate::kinds::{KINDS, group_versions};

const TITLE: &str = "Podwire";
const VERSION: &str = "v1.36.0";

/// `/openapi/v3`: where the document of each group and version is.
pub(super) fn index() -> Value {
    let paths: Map<String, Value> = group_versions()
        .into_iter()
        .map(|(group, version)| {
            let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            let entry = json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={VERSION}")});
            (path, entry)
        })
        .collect();
    json!({ "paths": paths })
}

/// `/openapi/v3/…` of one group and version.
pub(super) fn v3(group: &str, version: &str) -> Option<Value> {
    let parameter = json!([{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}]);
    let mut paths = Map::new();
    for kind in KINDS.iter().filter(|k| k.group == group && k.version == version) {
        let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
        let operation = |action: &str| {
            json!({
                "x-kubernetes-action": action, "parameters": parameter,
                "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind.kind},
                "responses": {"200": {"description": "OK"}},
            })
        };
        let collection = format!("{root}{scope}/{}", kind.plural);
        paths.insert(format!("{collection}/{{name}}"), json!({"patch": operation("patch"), "put": operation("put")}));
        paths.insert(collection, json!({"post": operation("post")}));
    }
    (!paths.is_empty()).then(|| {
        json!({"openapi": "3.0.0", "info": {"title": TITLE, "version": VERSION}, "paths": paths, "components": {"schemas": {}}})
    })
}

/// `/openapi/v2`: an empty document. Older clients ask for protobuf and read nothing else.
pub(super) fn v2(accept: &str) -> Response<Body> {
    if accept.contains("com.github.proto-openapi.spec.v2") {
        return whole(StatusCode::OK, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf", protobuf());
    }
    let document =
        json!({"swagger": "2.0", "info": {"title": TITLE, "version": VERSION}, "paths": {}, "definitions": {}});
    respond(StatusCode::OK, document.to_string())
}

/// The same as an `openapi.v2.Document` message: `swagger` is field 1, `info` 2 (`title` 1, `version` 2), `paths` 8.
fn protobuf() -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| {
        // Lengths below 128 are one byte; all of these are.
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap_or(0)];
        out.extend_from_slice(bytes);
        out
    };
    let info = [field(1, TITLE.as_bytes()), field(2, VERSION.as_bytes())].concat();
    [field(1, b"2.0"), field(2, &info), field(8, &[])].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_can_be_asked_for_validation() {
        for kind in KINDS {
            let document = v3(kind.group, kind.version).unwrap();
            let found = document["paths"].as_object().unwrap().values().any(|path| {
                path["patch"]["x-kubernetes-group-version-kind"]["kind"] == kind.kind
                    && path["patch"]["parameters"][0]["name"] == "fieldValidation"
            });
            assert!(found, "{kind:?}");
        }
        assert_eq!(index()["paths"].as_object().unwrap().len(), group_versions().len());
    }

    #[test]
    fn the_protobuf_document_is_as_specified() {
        assert_eq!(&protobuf()[..7], b"\x0a\x032.0\x12\x12");
    }
}
