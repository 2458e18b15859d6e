//! Label selectors and field selectors.

use std::fmt;

use serde_json::Value;

use crate::{
    kinds::Kind,
    object::{entries, items, text},
};

/// A parsed label selector: all requirements must hold. The empty one selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
    Above(i64),
    Below(i64),
}

impl Labels {
    /// Parses the text form: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1,m<2`.
    ///
    /// # Errors
    /// What cannot be understood.
    pub fn parse(text: &str) -> Result<Labels, String> {
        let mut requirements = Vec::new();
        for part in split(text)? {
            let part = part.trim();
            if !part.is_empty() {
                requirements
                    .push(Requirement::parse(part).ok_or_else(|| format!("unable to parse requirement: {part:?}"))?);
            }
        }
        Ok(Labels(requirements))
    }

    /// The selector of a `metav1.LabelSelector` object.
    ///
    /// # Errors
    /// An operator that does not exist.
    pub fn of_object(selector: &Value) -> Result<Labels, String> {
        let mut requirements = Vec::new();
        for (key, value) in entries(selector, "/matchLabels").into_iter().flatten() {
            let test = Test::In(vec![value.as_str().unwrap_or_default().to_owned()]);
            requirements.push(Requirement { key: key.clone(), test });
        }
        for expression in items(selector, "/matchExpressions") {
            let values =
                items(expression, "/values").iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
            let test = match text(expression, "/operator") {
                "In" => Test::In(values),
                "NotIn" => Test::NotIn(values),
                "Exists" => Test::Exists,
                "DoesNotExist" => Test::Missing,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            requirements.push(Requirement { key: text(expression, "/key").to_owned(), test });
        }
        Ok(Labels(requirements))
    }

    /// Whether a map of labels (or none) is selected.
    pub fn matches(&self, labels: &Value) -> bool {
        self.0.iter().all(|r| r.test.holds(labels.get(&r.key).and_then(Value::as_str)))
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Requirement { key, test }) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match test {
                Test::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Test::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Test::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Test::Exists => f.write_str(key)?,
                Test::Missing => write!(f, "!{key}")?,
                Test::Above(n) => write!(f, "{key}>{n}")?,
                Test::Below(n) => write!(f, "{key}<{n}")?,
            }
        }
        Ok(())
    }
}

/// Splits at commas outside parentheses.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            '(' if !inside => inside = true,
            ')' if inside => inside = false,
            '(' | ')' => return Err(format!("unbalanced parenthesis in selector {text:?}")),
            ',' if !inside => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(format!("unbalanced parenthesis in selector {text:?}"));
    }
    parts.push(&text[start..]);
    Ok(parts)
}

impl Requirement {
    fn parse(part: &str) -> Option<Requirement> {
        let new = |key: &str, test| {
            let key = key.trim();
            let fine = !key.is_empty() && !key.contains(|c: char| c.is_whitespace() || "()=!<>,".contains(c));
            fine.then(|| Requirement { key: key.to_owned(), test })
        };
        let value = |text: &str| {
            let text = text.trim();
            (!text.contains(|c: char| c.is_whitespace() || "()=!<>,".contains(c))).then(|| text.to_owned())
        };
        if let Some(key) = part.strip_prefix('!') {
            return new(key, Test::Missing);
        }
        if let Some((head, set)) = part.strip_suffix(')').and_then(|p| p.split_once('(')) {
            let values = set.split(',').map(value).collect::<Option<Vec<_>>>()?;
            let (key, operator) = head.trim_end().rsplit_once(char::is_whitespace)?;
            return match operator {
                "in" => new(key, Test::In(values)),
                "notin" => new(key, Test::NotIn(values)),
                _ => None,
            };
        }
        if let Some((key, text)) = part.split_once("!=") {
            return new(key, Test::NotIn(vec![value(text)?]));
        }
        if let Some((key, text)) = part.split_once("==").or_else(|| part.split_once('=')) {
            return new(key, Test::In(vec![value(text)?]));
        }
        if let Some((key, text)) = part.split_once('>') {
            return new(key, Test::Above(text.trim().parse().ok()?));
        }
        if let Some((key, text)) = part.split_once('<') {
            return new(key, Test::Below(text.trim().parse().ok()?));
        }
        new(part, Test::Exists)
    }
}

impl Test {
    fn holds(&self, label: Option<&str>) -> bool {
        let number = || label.and_then(|l| l.parse::<i64>().ok());
        match self {
            Test::In(values) => label.is_some_and(|l| values.iter().any(|v| v == l)),
            Test::NotIn(values) => label.is_none_or(|l| values.iter().all(|v| v != l)),
            Test::Exists => label.is_some(),
            Test::Missing => label.is_none(),
            Test::Above(n) => number().is_some_and(|l| l > *n),
            Test::Below(n) => number().is_some_and(|l| l < *n),
        }
    }
}

/// A parsed field selector: all conditions must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(Vec<(String, bool, String)>);

impl Fields {
    /// Parses `a.b=c,d!=e` for objects of `kind`, of which only some fields can be selected by.
    ///
    /// # Errors
    /// What cannot be understood, or a field that cannot be selected by.
    pub fn parse(kind: &Kind, text: &str) -> Result<Fields, String> {
        let mut conditions = Vec::new();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (field, equal, value) = match part.split_once("!=") {
                Some((field, value)) => (field, false, value),
                None => match part.split_once("==").or_else(|| part.split_once('=')) {
                    Some((field, value)) => (field, true, value),
                    None => return Err(format!("invalid field selector: {part:?}; can't understand it")),
                },
            };
            // The newer Event API has its own names for fields that are stored under the older ones.
            let field = match field.trim().strip_prefix("regarding.") {
                Some(rest) if kind.view.is_some() => format!("involvedObject.{rest}"),
                _ => field.trim().to_owned(),
            };
            let known = kind.fields.contains(&field.as_str())
                || field == "metadata.name"
                || field == "metadata.namespace" && kind.namespaced;
            if !known {
                return Err(format!("field label not supported: {field}"));
            }
            conditions.push((pointer(kind, &field), equal, value.trim().to_owned()));
        }
        Ok(Fields(conditions))
    }

    /// Whether an object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(pointer, equal, wanted)| {
            let text = match object.pointer(pointer) {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(s)) => s.clone(),
                Some(other) => other.to_string(),
            };
            let boolean = pointer.ends_with("/unschedulable") || pointer.ends_with("/hostNetwork");
            let text = if boolean && text.is_empty() { "false".to_owned() } else { text };
            (text == *wanted) == *equal
        })
    }
}

fn pointer(kind: &Kind, field: &str) -> String {
    // An Event's `source` selects by the component alone.
    if kind.kind == "Event" && field == "source" {
        return "/source/component".to_owned();
    }
    format!("/{}", field.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::kinds::by_kind;

    #[test]
    fn selectors_select() {
        let labels = json!({"app": "web", "tier": "front", "n": "5"});
        for (text, selected) in [
            ("", true),
            ("app=web", true),
            ("app == web , tier!=back", true),
            ("app!=web", false),
            ("app in (web, db),tier", true),
            ("app notin (web)", false),
            ("other notin (web)", true),
            ("!other", true),
            ("!app", false),
            ("n>4,n<6", true),
            ("n>5", false),
            ("app=", false),
        ] {
            assert_eq!(Labels::parse(text).unwrap().matches(&labels), selected, "{text}");
        }
        for text in ["a b", "a in", "in (", "a=b=c", "=x", "a in (b))", "a>x"] {
            assert!(Labels::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn object_selectors_select() {
        let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["d"]}]});
        let selector = Labels::of_object(&selector).unwrap();
        assert!(selector.matches(&json!({"a": "b"})));
        assert!(!selector.matches(&json!({"a": "b", "c": "d"})));
        assert!(!selector.matches(&Value::Null));
    }

    #[test]
    fn fields_select() {
        let pod = by_kind("", "Pod").unwrap();
        let object = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}});
        let selected = |text| Fields::parse(pod, text).unwrap().matches(&object);
        assert!(selected("metadata.name=a,spec.nodeName==n1"));
        assert!(selected("status.phase!=Failed,spec.hostNetwork=false"));
        assert!(!selected("spec.nodeName="));
        assert_eq!(Fields::parse(pod, "spec.x=1").unwrap_err(), "field label not supported: spec.x");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,60}") {
            let _ = Labels::parse(&text).map(|l| l.matches(&Value::Null));
            let _ = Fields::parse(by_kind("", "Pod").unwrap(), &text);
        }

        #[test]
        fn set_and_equality_forms_agree(key in "[a-z]{1,4}", wanted in "[a-z]{1,3}", label in "[a-z]{1,3}") {
            let labels = json!({ key.clone(): label });
            let same = |a: String, b: String| Labels::parse(&a).unwrap().matches(&labels) == Labels::parse(&b).unwrap().matches(&labels);
            let equality = same(format!("{key}={wanted}"), format!("{key} in ({wanted})"));
            prop_assert!(equality);
            let inequality = same(format!("{key}!={wanted}"), format!("{key} notin ({wanted})"));
            prop_assert!(inequality);
        }
    }
}
