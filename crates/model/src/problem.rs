use std::fmt;

use crate::ObjectName;

/// Something about one object of the API that cannot be done as written. All other objects are served, and so is the
/// rest of this one unless [`Problem::done`] says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    /// `Service`, `EndpointSlice` or `Node`.
    pub kind: &'static str,
    /// Which one; without a namespace for a Node.
    pub object: ObjectName,
    /// The field's path, for example `spec.clusterIPs`.
    pub field: &'static str,
    /// What is wrong with its value.
    pub what: String,
    /// What was done instead, for example `it is left out`.
    pub done: &'static str,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, object, field, what, done } = self;
        write!(f, "{kind} ")?;
        if !object.namespace.is_empty() {
            write!(f, "{}/", object.namespace)?;
        }
        write!(f, "{}: {field}: {what}; {done}", object.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_the_object_the_field_and_what_was_done() {
        let mut problem = Problem {
            kind: "Service",
            object: ObjectName::new("default", "web"),
            field: "spec.externalIPs",
            what: "\"x\" is no address".to_owned(),
            done: "it is left out",
        };
        assert_eq!(problem.to_string(), "Service default/web: spec.externalIPs: \"x\" is no address; it is left out");
        problem.kind = "Node";
        problem.object = ObjectName::new("", "node1");
        assert!(problem.to_string().starts_with("Node node1: "));
    }
}
