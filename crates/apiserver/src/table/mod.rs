//! What `kubectl get` prints: columns and cells, in the words of kube-apiserver's printers.

mod cells;
mod cluster;
mod network;
mod workload;

use serde_json::{Value, json};

use crate::object::text;

pub(crate) use cluster::{CONFIG_MAP, EVENT, LEASE, NAMESPACE, NODE, SECRET, SERVICE_ACCOUNT};
pub(crate) use network::{ENDPOINT_SLICE, ENDPOINTS, SERVICE};
pub(crate) use workload::{DAEMON_SET, DEPLOYMENT, POD, REPLICA_SET};

/// A column: its name, and whether only `-o wide` shows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    name: &'static str,
    wide: bool,
}

/// Columns, and how an object fills them.
#[derive(Clone, Copy)]
pub(crate) struct Printer {
    columns: &'static [Column],
    row: fn(&Value) -> Vec<Value>,
}

impl Printer {
    /// The cells of an object, one a column.
    pub fn cells(&self, object: &Value) -> Vec<Value> {
        (self.row)(object)
    }
}

const fn column(name: &'static str) -> Column {
    Column { name, wide: false }
}

const fn wide(name: &'static str) -> Column {
    Column { name, wide: true }
}

/// For kinds without columns of their own.
pub(crate) const NAME_AND_AGE: Printer =
    Printer { columns: &[column("Name"), column("Age")], row: |o| vec![name(o), cells::age(o)] };

/// `columnDefinitions` of a Table.
pub(crate) fn definitions(printer: &Printer) -> Value {
    let define = |column: &Column| {
        let integer =
            matches!(column.name, "Desired" | "Current" | "Up-to-date" | "Available" | "Data" | "Secrets" | "Count")
                || column.name == "Ready" && printer.columns.iter().any(|c| c.name == "Desired");
        json!({
            "name": column.name, "type": if integer { "integer" } else { "string" },
            "format": if column.name == "Name" { "name" } else { "" }, "description": "",
            "priority": i32::from(column.wide),
        })
    };
    printer.columns.iter().map(define).collect()
}

fn name(object: &Value) -> Value {
    text(object, "/metadata/name").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::KINDS;

    #[test]
    fn even_an_empty_object_fills_every_column() {
        for kind in KINDS {
            for object in [json!({}), json!({"spec": {}, "status": {}, "metadata": {"name": "x"}}), json!([])] {
                assert_eq!(kind.printer.cells(&object).len(), kind.printer.columns.len(), "{kind:?}");
            }
        }
    }
}
