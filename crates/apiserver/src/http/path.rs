//! Paths of resources.

use crate::{
    kinds::{self, Kind},
    store::Key,
};

/// What a path names.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub kind: &'static Kind,
    /// `None` for all namespaces, and for kinds without.
    pub namespace: Option<String>,
    /// `None` for the collection.
    pub name: Option<String>,
    pub subresource: Option<String>,
    /// The old `/watch/` prefix.
    pub watch: bool,
}

impl Target {
    /// The key of the object named.
    pub fn key(&self) -> Key {
        Key { namespace: self.namespace.clone().unwrap_or_default(), name: self.name.clone().unwrap_or_default() }
    }
}

/// Parses `/api/v1/…` and `/apis/GROUP/VERSION/…`. `None` when nothing is there.
pub(super) fn parse(path: &str) -> Option<Target> {
    let mut parts = path.split('/').filter(|p| !p.is_empty()).map(decode);
    let (group, version) = match parts.next()??.as_str() {
        "api" => (String::new(), parts.next()??),
        "apis" => (parts.next()??, parts.next()??),
        _ => return None,
    };
    let mut rest = parts.collect::<Option<Vec<String>>>()?;
    let watch = rest.first().is_some_and(|p| p == "watch");
    if watch {
        rest.remove(0);
    }
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    let (namespace, plural, name, subresource) = match rest.as_slice() {
        // Below a namespace, unless these are subresources of the Namespace itself.
        ["namespaces", namespace, plural, tail @ ..] if kinds::by_resource(&group, &version, plural).is_some() => {
            (Some(*namespace), *plural, tail.first().copied(), tail.get(1).copied())
        }
        [plural, tail @ ..] => (None, *plural, tail.first().copied(), tail.get(1).copied()),
        [] => return None,
    };
    let longest = if namespace.is_some() { 5 } else { 3 };
    let kind = kinds::by_resource(&group, &version, plural)?;
    // A namespace only for kinds that have one; and there every object is named with it.
    if rest.len() > longest || (namespace.is_some() && !kind.namespaced) {
        return None;
    }
    if kind.namespaced && namespace.is_none() && name.is_some() {
        return None;
    }
    let own = |part: Option<&str>| part.map(str::to_owned);
    Some(Target { kind, namespace: own(namespace), name: own(name), subresource: own(subresource), watch })
}

/// Undoes percent-encoding. `None` when it is broken or not UTF-8.
fn decode(part: &str) -> Option<String> {
    if !part.contains('%') {
        return Some(part.to_owned());
    }
    let (mut bytes, mut out) = (part.bytes(), Vec::with_capacity(part.len()));
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(path: &str) -> Option<String> {
        let t = parse(path)?;
        let part = |p: Option<String>| p.unwrap_or_else(|| "-".into());
        Some(format!("{} {} {} {}", t.kind.plural, part(t.namespace), part(t.name), part(t.subresource)))
    }

    #[test]
    fn paths_name_things() {
        for (path, expected) in [
            ("/api/v1/pods", Some("pods - - -")),
            ("/api/v1/namespaces/a/pods/b/log", Some("pods a b log")),
            ("/api/v1/namespaces/a/pods", Some("pods a - -")),
            ("/api/v1/namespaces/a", Some("namespaces - a -")),
            ("/api/v1/namespaces/a/finalize", Some("namespaces - a finalize")),
            ("/api/v1/nodes/n1/status", Some("nodes - n1 status")),
            ("/apis/apps/v1/namespaces/a/deployments/b/scale", Some("deployments a b scale")),
            ("/api/v1/watch/namespaces/a/pods", Some("pods a - -")),
            ("/api/v1/namespaces/a/nodes/b", None),
            ("/api/v1/pods/x", None),
            ("/api/v2/pods", None),
            ("/apis/apps/v1", None),
            ("/api/v1/namespaces/a/pods/b/log/c", None),
        ] {
            assert_eq!(told(path).as_deref(), expected, "{path}");
        }
        assert_eq!(parse("/api/v1/namespaces/a%2Db/pods").unwrap().namespace.as_deref(), Some("a-b"));
    }

    proptest! {
        #[test]
        fn any_path_is_parsed_or_refused(path in "(/(api|apis|v1|apps|namespaces|pods|watch|%[0-9a-f]{0,2}|.{0,3})){0,8}") {
            let _ = parse(&path);
        }
    }
}
