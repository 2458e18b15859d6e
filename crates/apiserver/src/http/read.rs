//! get and list.

use http::{Response, StatusCode};

use super::{
    Context,
    body::{Body, json},
    page::Page,
    path::Target,
    query::Query,
    shape,
};
use crate::{
    kinds::Kind,
    object,
    selector::{Fields, Labels},
    status::Status,
    store::Object,
};

/// Which objects of a collection are meant.
#[derive(Debug, Default)]
pub(super) struct Selection {
    pub namespace: Option<String>,
    pub labels: Labels,
    pub fields: Fields,
}

impl Selection {
    /// From the selectors of a query, and the name of a single object where there is one.
    pub fn of(target: &Target, query: &Query) -> Result<Selection, Status> {
        let labels = Labels::parse(query.text("labelSelector")).map_err(Status::bad_request)?;
        let mut fields = query.text("fieldSelector").to_owned();
        if let Some(name) = &target.name {
            fields = format!("{fields},metadata.name={name}");
        }
        let fields = Fields::parse(target.kind, &fields).map_err(Status::bad_request)?;
        Ok(Selection { namespace: target.namespace.clone(), labels, fields })
    }

    /// Whether an object is one of them.
    pub fn takes(&self, object: &Object) -> bool {
        let value = object.value();
        self.namespace.as_deref().is_none_or(|n| n == object::namespace(value))
            && self.labels.matches(&value["metadata"]["labels"])
            && self.fields.matches(value)
    }
}

/// GET of one object.
pub(super) fn get(context: &Context, target: &Target) -> Result<Response<Body>, Status> {
    let object = context.api.get(target.kind, &target.key())?;
    Ok(json(StatusCode::OK, render(context, target.kind, &object)))
}

/// One object as the client wants it.
pub(super) fn render(context: &Context, kind: &Kind, object: &Object) -> bytes::Bytes {
    shape::one(kind, object, context.shape, shape::include(context.query.text("includeObject")))
}

/// GET of a collection, or of a piece of it.
pub(super) fn list(context: &Context, target: &Target) -> Result<Response<Body>, Status> {
    let selection = Selection::of(target, &context.query)?;
    let page = Page::of(&*context.api.store, target, &context.query, |object| selection.takes(object))?;
    let include = shape::include(context.query.text("includeObject"));
    Ok(json(StatusCode::OK, shape::many(target.kind, &page, (context.shape, include))))
}
