//! `metav1.Status`: how every failure is told to a client, in Kubernetes' words.

use std::fmt;

use http::StatusCode;
use serde_json::{Value, json};

use crate::kinds::Kind;

/// A failure of one request. Its JSON form is a `metav1.Status`.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// HTTP status code.
    pub code: StatusCode,
    /// Machine-readable reason, as `metav1.StatusReason`.
    pub reason: &'static str,
    /// What a user reads.
    pub message: String,
    details: Value,
}

/// What is wrong with one field: `metav1.StatusCause`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    reason: &'static str,
    message: String,
    field: String,
}

impl Cause {
    /// The field's value is not allowed. `value` is shown as JSON.
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, why: impl fmt::Display) -> Cause {
        let message = format!("Invalid value: {}: {why}", value.into());
        Cause { reason: "FieldValueInvalid", message, field: field.into() }
    }

    /// The field must be given.
    pub fn required(field: impl Into<String>, why: &str) -> Cause {
        let message = if why.is_empty() { "Required value".to_owned() } else { format!("Required value: {why}") };
        Cause { reason: "FieldValueRequired", message, field: field.into() }
    }

    /// The value occurs twice.
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Cause {
        Cause {
            reason: "FieldValueDuplicate",
            message: format!("Duplicate value: {}", value.into()),
            field: field.into(),
        }
    }

    /// The value is not one of `supported`.
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Cause {
        let supported = supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
        let message = format!("Unsupported value: {}: supported values: {supported}", value.into());
        Cause { reason: "FieldValueNotSupported", message, field: field.into() }
    }

    /// The field refers to something that is not there.
    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Cause {
        Cause { reason: "FieldValueNotFound", message: format!("Not found: {}", value.into()), field: field.into() }
    }

    /// The field may not be set, or not changed.
    pub fn forbidden(field: impl Into<String>, why: &str) -> Cause {
        Cause { reason: "FieldValueForbidden", message: format!("Forbidden: {why}"), field: field.into() }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl Status {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Status {
        Status { code, reason, message: message.into(), details: Value::Null }
    }

    fn about(mut self, kind: &Kind, name: &str) -> Status {
        self.details = json!({"name": name, "kind": kind.plural});
        if !kind.group.is_empty() {
            self.details["group"] = kind.group.into();
        }
        self
    }

    /// 404: there is no such object.
    pub fn not_found(kind: &Kind, name: &str) -> Status {
        Status::new(StatusCode::NOT_FOUND, "NotFound", format!("{} {name:?} not found", kind.group_resource()))
            .about(kind, name)
    }

    /// 404: no such path.
    pub fn no_such_path() -> Status {
        let message = "the server could not find the requested resource";
        let mut status = Status::new(StatusCode::NOT_FOUND, "NotFound", message);
        // `kubectl debug` reads the name in the details and does not look whether there are any.
        status.details = json!({});
        status
    }

    /// 409: the name is taken.
    pub fn already_exists(kind: &Kind, name: &str) -> Status {
        Status::new(StatusCode::CONFLICT, "AlreadyExists", format!("{} {name:?} already exists", kind.group_resource()))
            .about(kind, name)
    }

    /// 409: the object changed since the caller read it, or is not the one the caller meant.
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Status {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", kind.group_resource());
        Status::new(StatusCode::CONFLICT, "Conflict", message).about(kind, name)
    }

    /// 403: the object's state does not allow it.
    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Status {
        let message = format!("{} {name:?} is forbidden: {why}", kind.group_resource());
        Status::new(StatusCode::FORBIDDEN, "Forbidden", message).about(kind, name)
    }

    /// 422: the object breaks the rules of its kind; one cause a field.
    pub fn invalid(kind: &Kind, name: &str, causes: &[Cause]) -> Status {
        let list = match causes {
            [one] => one.to_string(),
            many => format!("[{}]", many.iter().map(Cause::to_string).collect::<Vec<_>>().join(", ")),
        };
        let full = if kind.group.is_empty() { kind.kind.to_owned() } else { format!("{}.{}", kind.kind, kind.group) };
        let message = format!("{full} {name:?} is invalid: {list}");
        let mut status = Status::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message).about(kind, name);
        status.details["kind"] = kind.kind.into();
        status.details["causes"] =
            causes.iter().map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field})).collect();
        status
    }

    /// 422: the request is understood but cannot be carried out on this object.
    pub fn unprocessable(message: impl Into<String>) -> Status {
        Status::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Status {
        Status::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 401: no valid token.
    pub fn unauthorized() -> Status {
        Status::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// 405: the resource has no such verb.
    pub fn method_not_allowed() -> Status {
        let message = "the server does not allow this method on the requested resource";
        Status::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    /// 410: the history no longer reaches back to the revision asked for; list again.
    pub fn expired(revision: u64, oldest: u64) -> Status {
        Status::new(StatusCode::GONE, "Expired", format!("too old resource version: {revision} ({oldest})"))
    }

    /// 413: the body is larger than the server reads.
    pub fn too_large(limit: usize) -> Status {
        let message = format!("the request body is larger than {limit} bytes");
        Status::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    /// 415: the body is of a type the server does not read.
    pub fn unsupported_media_type(message: impl Into<String>) -> Status {
        Status::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    /// 500: the server, or the node it asked, failed.
    pub fn internal(message: impl Into<String>) -> Status {
        Status::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    /// The `metav1.Status` object.
    pub fn to_value(&self) -> Value {
        let mut value = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
        });
        if !self.details.is_null() {
            value["details"] = self.details.clone();
        }
        value
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}
