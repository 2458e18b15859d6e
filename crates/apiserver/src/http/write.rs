//! create, update and patch.

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::Value;

use super::{
    Context,
    body::{self, Body, json, warn},
    path::Target,
    read::render,
};
use crate::{
    kinds::Kind,
    object::text,
    patch::Patch,
    registry::{Part, Written},
    status::Status,
};

/// POST to a collection.
pub(super) async fn create(
    context: &Context,
    target: &Target,
    request: &mut Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let object = body::read_object(request).await?;
    let namespace = match &target.namespace {
        Some(namespace) => namespace.clone(),
        // Some clients leave the namespace to the body.
        None if target.kind.namespaced => text(&object, "/metadata/namespace").to_owned(),
        None => String::new(),
    };
    if target.kind.namespaced && namespace.is_empty() {
        return Err(Status::bad_request("an empty namespace may not be set during creation"));
    }
    let written = context.api.create(target.kind, &namespace, object, context.write_options()?)?;
    Ok(respond(context, target.kind, StatusCode::CREATED, &written))
}

/// PUT of an object.
pub(super) async fn replace(
    context: &Context,
    target: &Target,
    request: &mut Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let new = body::read_object(request).await?;
    update(context, target, Part::Main, &mut |_| Ok(new.clone()))
}

/// PATCH of an object.
pub(super) async fn patch(
    context: &Context,
    target: &Target,
    request: &mut Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let patch = read_patch(request).await?;
    update(context, target, Part::Main, &mut |old| patch.apply(old))
}

/// Reads a patch of any kind.
pub(super) async fn read_patch(request: &mut Request<Incoming>) -> Result<Patch, Status> {
    let kind = body::content_type(request);
    Patch::parse(&kind, &body::read(request).await?)
}

/// Changes an object and answers with it.
pub(super) fn update(
    context: &Context,
    target: &Target,
    part: Part,
    edit: &mut dyn FnMut(&Value) -> Result<Value, Status>,
) -> Result<Response<Body>, Status> {
    let options = context.write_options()?;
    let written = context.api.update(target.kind, &target.key(), part, options, edit)?;
    Ok(respond(context, target.kind, StatusCode::OK, &written))
}

fn respond(context: &Context, kind: &Kind, code: StatusCode, written: &Written) -> Response<Body> {
    let mut response = json(code, render(context, kind, &written.object));
    warn(&mut response, &written.warnings);
    response
}
