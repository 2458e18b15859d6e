//! delete and deletecollection.

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{
    Context,
    body::{self, Body, json},
    page::{self, Page},
    path::Target,
    query::Query,
    read::{Selection, render},
    shape::{self, Include, Shape},
};
use crate::{
    kinds::Kind,
    object::{name, number, text},
    registry::{DeleteOptions, Deleted},
    status::Status,
};

/// DELETE of an object.
pub(super) async fn one(
    context: &Context,
    target: &Target,
    request: &mut Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let options = options(&context.query, request).await?;
    let text = match context.api.delete(target.kind, &target.key(), &options)? {
        Deleted::Pending(object) => render(context, target.kind, &object),
        Deleted::Gone(object) => success(target.kind, object.value()).to_string().into(),
    };
    Ok(json(StatusCode::OK, text))
}

/// DELETE of all selected objects of a collection.
pub(super) async fn collection(
    context: &Context,
    target: &Target,
    request: &mut Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let selection = Selection::of(target, &context.query)?;
    let options = options(&context.query, request).await?;
    let page = Page::of(&*context.api.store, target, &context.query, |object| selection.takes(object))?;
    for object in &page.items {
        match context.api.delete(target.kind, &page::key(object), &options) {
            Ok(_) => {}
            // Someone else was faster.
            Err(status) if status.code == StatusCode::NOT_FOUND => {}
            Err(status) => return Err(status),
        }
    }
    Ok(json(StatusCode::OK, shape::many(target.kind, &page, (Shape::Plain, Include::None))))
}

fn success(kind: &Kind, object: &Value) -> Value {
    let mut details = json!({"name": name(object), "kind": kind.plural, "uid": object["metadata"]["uid"]});
    if !kind.group.is_empty() {
        details["group"] = kind.group.into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// `DeleteOptions` come in the body or in the query.
pub(super) async fn options(query: &Query, request: &mut Request<Incoming>) -> Result<DeleteOptions, Status> {
    of_value(query, &body::read_object(request).await?)
}

/// The same from a body that has been read.
pub(super) fn of_value(query: &Query, sent: &Value) -> Result<DeleteOptions, Status> {
    let pick = |pointer: &str, parameter: &str| {
        [text(sent, pointer), query.text(parameter)].into_iter().find(|t| !t.is_empty()).map(str::to_owned)
    };
    let mut propagation = pick("/propagationPolicy", "propagationPolicy");
    if sent["orphanDependents"] == true || query.flag("orphanDependents") {
        propagation = Some("Orphan".to_owned());
    }
    if let Some(other) = propagation.as_deref().filter(|p| !matches!(*p, "Foreground" | "Background" | "Orphan")) {
        return Err(Status::bad_request(format!(
            "propagationPolicy: {other:?} is none of Foreground, Background, Orphan"
        )));
    }
    Ok(DeleteOptions {
        dry_run: query.dry_run()? || sent["dryRun"] == json!(["All"]),
        grace: match number(sent, "/gracePeriodSeconds") {
            Some(seconds) => Some(seconds),
            None => query.number("gracePeriodSeconds")?,
        },
        propagation,
        uid: pick("/preconditions/uid", ""),
        revision: pick("/preconditions/resourceVersion", ""),
    })
}
