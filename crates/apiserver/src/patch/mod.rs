//! The three kinds of patch that clients send. Server-side apply is not among them.

mod strategic;

use serde_json::Value;

use crate::status::Status;

/// A patch that has been read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Patch {
    /// RFC 6902.
    Json(json_patch::Patch),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' own: lists are merged by keys.
    Strategic(Value),
}

impl Patch {
    /// Reads a patch of a content type.
    pub fn parse(content_type: &str, body: &[u8]) -> Result<Patch, Status> {
        let wrong = |error: serde_json::Error| Status::bad_request(format!("the patch cannot be read: {error}"));
        match content_type {
            "application/json-patch+json" => serde_json::from_slice(body).map(Patch::Json).map_err(wrong),
            "application/merge-patch+json" => object(serde_json::from_slice(body).map_err(wrong)?).map(Patch::Merge),
            "application/strategic-merge-patch+json" => {
                object(serde_json::from_slice(body).map_err(wrong)?).map(Patch::Strategic)
            }
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => Err(Status::unsupported_media_type(
                "server-side apply is not supported: use kubectl apply without --server-side",
            )),
            other => Err(Status::unsupported_media_type(format!(
                "the body of the request was in an unknown format ({other}) - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json"
            ))),
        }
    }

    /// The patched object.
    pub fn apply(&self, old: &Value) -> Result<Value, Status> {
        let mut new = old.clone();
        match self {
            Patch::Json(patch) => json_patch::patch(&mut new, patch)
                .map_err(|error| Status::unprocessable(format!("the JSON patch does not fit the object: {error}")))?,
            Patch::Merge(patch) => json_patch::merge(&mut new, patch),
            Patch::Strategic(patch) => strategic::merge(&mut new, patch).map_err(Status::bad_request)?,
        }
        Ok(new)
    }
}

fn object(value: Value) -> Result<Value, Status> {
    if value.is_object() { Ok(value) } else { Err(Status::bad_request("the patch is not a JSON object")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_patches_in_its_way() {
        let old = json!({"spec": {"containers": [{"name": "a", "image": "x"}], "replicas": 1}});
        let patched = |kind: &str, body: &str| Patch::parse(kind, body.as_bytes()).unwrap().apply(&old).unwrap();
        let json = patched("application/json-patch+json", r#"[{"op":"replace","path":"/spec/replicas","value":2}]"#);
        assert_eq!(json["spec"]["replicas"], 2);
        let change = r#"{"spec":{"replicas":null,"containers":[{"name":"b"}]}}"#;
        let merged = patched("application/merge-patch+json", change);
        assert_eq!(merged, json!({"spec": {"containers": [{"name": "b"}]}}));
        let strategic = patched("application/strategic-merge-patch+json", change);
        assert_eq!(strategic, json!({"spec": {"containers": [{"name": "b"}, {"name": "a", "image": "x"}]}}));
    }

    #[test]
    fn what_cannot_be_applied_is_refused() {
        let code = |kind: &str, body: &str| {
            let patch = Patch::parse(kind, body.as_bytes());
            patch.and_then(|p| p.apply(&json!({}))).unwrap_err().code.as_u16()
        };
        assert_eq!(code("application/apply-patch+yaml", "{}"), 415);
        assert_eq!(code("application/yaml", "{}"), 415);
        assert_eq!(code("application/merge-patch+json", "[]"), 400);
        assert_eq!(code("application/json-patch+json", r#"[{"op":"test","path":"/a","value":1}]"#), 422);
    }
}
