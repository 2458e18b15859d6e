//! From what a client sent to what the kind's type really holds.
//!
//! Every object passes through its `k8s-openapi` type once: that finds fields of a wrong type, fields nobody knows,
//! and drops nulls and unknown fields, as the Go types do in kube-apiserver.

use serde::{Serialize, de::DeserializeOwned};
use serde_ignored::Path;
use serde_json::Value;

/// An object that passed through its type.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// What the type holds.
    pub value: Value,
    /// Paths of fields that the type does not have.
    pub unknown: Vec<String>,
}

/// Decodes an object as one type, or says which field is wrong and how.
pub(crate) type Decoder = fn(&Value) -> Result<Decoded, String>;

/// The [`Decoder`] of `T`.
pub(crate) fn decode<T: DeserializeOwned + Serialize>(value: &Value) -> Result<Decoded, String> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    let typed: Result<T, _> = serde_ignored::deserialize(deserializer, |path| unknown.push(render(&path)));
    let value = match typed {
        Ok(typed) => serde_json::to_value(typed).map_err(|e| e.to_string())?,
        Err(error) => return Err(format!("{}: {error}", track.path())),
    };
    Ok(Decoded { value, unknown })
}

/// `spec.ports[0].x`.
fn render(path: &Path) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", render(parent)),
        Path::Map { parent, key } => match render(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => render(parent),
    }
}

#[cfg(test)]
mod tests {
    use podwire_k8s::k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_fields_are_named_and_dropped() {
        let value = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "creationTimestamp": null},
            "spec": {"ports": [{"port": 80, "x": 1}], "y": {}}});
        let decoded = decode::<Service>(&value).unwrap();
        assert_eq!(decoded.unknown, ["spec.ports[0].x", "spec.y"]);
        assert_eq!(
            decoded.value,
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}})
        );
    }

    #[test]
    fn a_wrong_type_names_its_field() {
        let value = json!({"apiVersion": "v1", "kind": "Service", "metadata": {}, "spec": {"ports": [{"port": "x"}]}});
        let error = decode::<Service>(&value).unwrap_err();
        assert!(error.starts_with("spec.ports[0].port: invalid type: string \"x\""), "{error}");
    }
}
