//! Request bodies in Kubernetes' protobuf encoding, which typed Go clients send (`kubectl create namespace`, say).
//! They are turned into the JSON that everything else here works on; answers are always JSON, which all clients read.
//!
//! The fields of the messages are in `schema.txt`. A body is the magic `k8s\0` and a `runtime.Unknown` message that
//! names the kind and holds the object.

mod wire;

use std::{collections::HashMap, sync::OnceLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use podwire_k8s::k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value};

use self::wire::{Reader, Wire};

/// The content type of such bodies.
pub(crate) const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

const MAGIC: &[u8] = b"k8s\0";
/// Deeper nesting than any real object has.
const DEPTH: usize = 24;

struct Field {
    number: u64,
    name: &'static str,
    shape: Shape,
    kind: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    One,
    Pointer,
    List,
    Map,
}

type Schema = HashMap<&'static str, Vec<Field>>;

fn schema() -> &'static Schema {
    static SCHEMA: OnceLock<Schema> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let mut schema = Schema::new();
        let mut message = "";
        for line in include_str!("schema.txt").lines().filter(|l| !l.starts_with('#')) {
            match line.strip_prefix('\t').and_then(field) {
                Some(field) => schema.entry(message).or_default().push(field),
                None => {
                    message = line;
                    schema.entry(message).or_default();
                }
            }
        }
        schema
    })
}

fn field(line: &'static str) -> Option<Field> {
    let mut words = line.split(' ');
    let (number, name, kind) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
    let prefixes = [("*", Shape::Pointer), ("[]", Shape::List), ("{}", Shape::Map)];
    let prefixed = prefixes.into_iter().find_map(|(p, shape)| Some((shape, kind.strip_prefix(p)?)));
    let (shape, kind) = prefixed.unwrap_or((Shape::One, kind));
    Some(Field { number, name, shape, kind })
}

/// The JSON of a body.
///
/// # Errors
/// What is wrong with it: not of this encoding, broken, or of a kind that is not known.
pub(crate) fn decode(body: &[u8]) -> Result<Value, String> {
    let unknown = body.strip_prefix(MAGIC).ok_or("the body does not begin with the Kubernetes protobuf prefix")?;
    let (mut version, mut kind, mut raw) = ("", "", &unknown[..0]);
    for part in Reader(unknown) {
        match part? {
            (1, Wire::Bytes(meta)) => {
                for part in Reader(meta) {
                    match part? {
                        (1, Wire::Bytes(bytes)) => version = text(bytes)?,
                        (2, Wire::Bytes(bytes)) => kind = text(bytes)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let group = version.split_once('/').map_or("core", |(group, _)| group.split('.').next().unwrap_or_default());
    // Options of a deletion travel under the group of what is deleted.
    let name = if kind == "DeleteOptions" { "meta.DeleteOptions".to_owned() } else { format!("{group}.{kind}") };
    if !schema().contains_key(name.as_str()) {
        return Err(format!("objects of {version} {kind} are not known in this encoding; send JSON"));
    }
    let mut object = message(&name, raw, DEPTH)?;
    object.insert("apiVersion".to_owned(), version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(object))
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| format!("a text is not UTF-8: {error}"))
}

fn message(name: &str, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, String> {
    let depth = depth.checked_sub(1).ok_or("the object is nested too deeply")?;
    let fields = schema().get(name).map_or(&[][..], Vec::as_slice);
    let mut object = Map::new();
    for part in Reader(bytes) {
        let (number, wire) = part?;
        // Fields that are not known are skipped, as protobuf wants it.
        let Some(field) = fields.iter().find(|f| f.number == number) else { continue };
        match field.shape {
            Shape::Map => {
                let (key, value) = entry(field.kind, wire, depth)?;
                if let Value::Object(map) = object.entry(field.name).or_insert_with(|| Map::new().into()) {
                    map.insert(key, value);
                }
            }
            Shape::List => {
                let value = value(field.kind, wire, depth)?;
                if let Value::Array(list) = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new())) {
                    list.push(value);
                }
            }
            Shape::One | Shape::Pointer => match value(field.kind, wire, depth)? {
                Value::Object(inner) if field.name == "-" => object.extend(inner),
                value if field.shape == Shape::One && is_zero(&value) => {}
                value => drop(object.insert(field.name.to_owned(), value)),
            },
        }
    }
    Ok(object)
}

/// Go writes plain values even when nobody set them.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(set) => !set,
        _ => false,
    }
}

fn entry(kind: &str, wire: Wire, depth: usize) -> Result<(String, Value), String> {
    let Wire::Bytes(bytes) = wire else { return Err("an entry of a map is not a message".to_owned()) };
    let (mut key, mut held) = (String::new(), Wire::Bytes(&[]));
    for part in Reader(bytes) {
        match part? {
            (1, Wire::Bytes(bytes)) => key = text(bytes)?.to_owned(),
            (2, wire) => held = wire,
            _ => {}
        }
    }
    Ok((key, value(kind, held, depth)?))
}

fn value(kind: &str, wire: Wire, depth: usize) -> Result<Value, String> {
    Ok(match (kind, wire) {
        ("int", Wire::Number(number)) => number.cast_signed().into(),
        ("bool", Wire::Number(number)) => (number != 0).into(),
        ("string", Wire::Bytes(bytes)) => text(bytes)?.into(),
        ("bytes", Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        ("time" | "microtime", Wire::Bytes(bytes)) => time(kind, bytes)?,
        ("quantity", Wire::Bytes(bytes)) => match first(bytes, 1)? {
            Some(Wire::Bytes(bytes)) => text(bytes)?.into(),
            _ => Value::Null,
        },
        // Field 1 says which of the other two it is.
        ("intorstring", Wire::Bytes(bytes)) => match (first(bytes, 1)?, first(bytes, 2)?, first(bytes, 3)?) {
            (Some(Wire::Number(1)), _, Some(Wire::Bytes(name))) => text(name)?.into(),
            (_, Some(Wire::Number(number)), _) => number.cast_signed().into(),
            _ => 0.into(),
        },
        ("int" | "bool" | "string" | "bytes", _) => return Err(format!("a field of type {kind} holds something else")),
        (name, Wire::Bytes(bytes)) => message(name, bytes, depth)?.into(),
        (name, Wire::Number(_)) => return Err(format!("a field of type {name} holds a number")),
    })
}

/// The last occurrence of a field.
fn first(bytes: &[u8], wanted: u64) -> Result<Option<Wire<'_>>, String> {
    let mut found = None;
    for part in Reader(bytes) {
        let (number, wire) = part?;
        if number == wanted {
            found = Some(wire);
        }
    }
    Ok(found)
}

/// Seconds and nanoseconds; an empty message is no time.
fn time(kind: &str, bytes: &[u8]) -> Result<Value, String> {
    let number = |field| -> Result<i64, String> {
        Ok(match first(bytes, field)? {
            Some(Wire::Number(number)) => number.cast_signed(),
            _ => 0,
        })
    };
    let (seconds, nanoseconds) = (number(1)?, i32::try_from(number(2)?).unwrap_or(0));
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let time = Timestamp::new(seconds, nanoseconds).map_err(|error| error.to_string())?;
    let format = if kind == "time" { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%.6fZ" };
    Ok(time.strftime(format).to_string().into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn part(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }

    fn body(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [part(1, version.as_bytes()), part(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), part(1, &meta), part(2, raw)].concat()
    }

    #[test]
    fn a_config_map_is_read() {
        let metadata = [part(1, b"a"), part(8, b"")].concat();
        let data = [part(1, b"k"), part(2, b"v")].concat();
        let raw = [part(1, &metadata), part(2, &data), vec![4 << 3, 0]].concat();
        assert_eq!(
            decode(&body("v1", "ConfigMap", &raw)).unwrap(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}, "immutable": false})
        );
    }

    #[test]
    fn special_types_are_read() {
        let named = [vec![1 << 3, 1], vec![2 << 3, 0], part(3, b"http")].concat();
        assert_eq!(value("intorstring", Wire::Bytes(&named), 1).unwrap(), "http");
        assert_eq!(value("intorstring", Wire::Bytes(&[8, 0, 16, 80, 26, 0]), 1).unwrap(), 80);
        assert_eq!(value("quantity", Wire::Bytes(&part(1, b"100m")), 1).unwrap(), "100m");
        assert_eq!(value("time", Wire::Bytes(&[8, 1, 16, 0]), 1).unwrap(), "1970-01-01T00:00:01Z");
        assert_eq!(value("microtime", Wire::Bytes(&[8, 1, 16, 0]), 1).unwrap(), "1970-01-01T00:00:01.000000Z");
    }

    #[test]
    fn inlined_messages_lose_their_level() {
        let probe = [part(1, &part(3, &part(1, &[8, 0, 16, 80]))), vec![2 << 3, 5]].concat();
        let probe = message("core.Probe", &probe, DEPTH).unwrap();
        assert_eq!(Value::from(probe), json!({"tcpSocket": {"port": 80}, "initialDelaySeconds": 5}));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(decode(b"{}").unwrap_err().contains("prefix"));
        assert!(decode(&body("v1", "Nothing", b"")).unwrap_err().contains("v1 Nothing"));
    }

    #[test]
    fn every_message_of_the_schema_is_there() {
        for (name, fields) in schema() {
            for field in fields {
                assert!(!field.kind.contains('.') || schema().contains_key(field.kind), "{name}.{}", field.name);
            }
        }
        for kind in crate::kinds::KINDS {
            let group = kind.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
            assert!(schema().contains_key(format!("{group}.{}", kind.kind).as_str()), "{kind:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            let _ = message("core.Pod", &bytes, DEPTH);
            let _ = decode(&[MAGIC, &bytes].concat());
        }
    }
}
