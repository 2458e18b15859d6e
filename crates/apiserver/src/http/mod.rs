//! HTTP: from a request to the verb it means, and from what came of it to a response.

mod body;
mod connection;
mod delete;
mod discovery;
mod exec;
mod logs;
mod openapi;
mod page;
mod path;
mod query;
mod read;
mod shape;
mod subresource;
mod watch;
mod write;

use std::sync::Arc;

use http::{Method, Request, Response, header};
use hyper::body::Incoming;
use tokio::sync::watch::Receiver;

pub(crate) use connection::{Listener, serve};

use self::{
    body::{Body, drain, error, plain},
    path::Target,
    query::Query,
    shape::Shape,
};
use crate::{
    registry::{Api, FieldValidation, WriteOptions},
    status::Status,
};

/// One request on its way through the handlers.
struct Context {
    api: Arc<Api>,
    query: Query,
    /// What the client would like to read.
    shape: Shape,
    /// How unknown fields are treated when the query does not say.
    validation: FieldValidation,
    /// Becomes true when the server stops.
    stopping: Receiver<bool>,
}

impl Context {
    fn write_options(&self) -> Result<WriteOptions, Status> {
        self.query.write_options(self.validation)
    }
}

/// Answers one request. Failures become `metav1.Status` objects.
async fn answer(api: Arc<Api>, stopping: Receiver<bool>, mut request: Request<Incoming>) -> Response<Body> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let started = std::time::Instant::now();
    let response = match route(api, stopping, &mut request).await {
        Ok(response) => response,
        Err(status) => {
            drain(request.body_mut()).await;
            error(&status)
        }
    };
    tracing::debug!(%method, path, code = response.status().as_u16(), elapsed = ?started.elapsed(), "request");
    response
}

async fn route(
    api: Arc<Api>,
    stopping: Receiver<bool>,
    request: &mut Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let path = request.uri().path();
    match path.trim_end_matches('/') {
        "/healthz" | "/livez" | "/readyz" => return Ok(plain("ok")),
        "/version" => return Ok(discovery::version()),
        _ => {}
    }
    if !authenticated(&api, request) {
        return Err(Status::unauthorized());
    }
    let text = |name| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let accept = text(header::ACCEPT);
    if let Some(response) = discovery::answer(request.method(), path, accept) {
        return Ok(response);
    }
    let target = path::parse(path).ok_or_else(Status::no_such_path)?;
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let validation = query::unsaid(text(header::USER_AGENT));
    let context = Context { api, query, shape: shape::of_accept(accept), validation, stopping };
    dispatch(context, target, request).await
}

fn authenticated(api: &Api, request: &Request<Incoming>) -> bool {
    let header = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let token = header.and_then(|h| h.strip_prefix("Bearer "));
    token.is_some_and(|token| api.tokens.user(token.trim()).is_some())
}

async fn dispatch(context: Context, target: Target, request: &mut Request<Incoming>) -> Result<Response<Body>, Status> {
    let method = request.method().clone();
    if let Some(subresource) = target.subresource.clone() {
        return subresource::answer(context, target, &subresource, request).await;
    }
    match (method, target.name.is_some()) {
        (Method::GET, false) if context.query.flag("watch") || target.watch => watch::watch(context, &target),
        (Method::GET, false) => read::list(&context, &target),
        (Method::GET, true) if target.watch => watch::watch(context, &target),
        (Method::GET, true) => read::get(&context, &target),
        (Method::POST, false) => write::create(&context, &target, request).await,
        (Method::PUT, true) => write::replace(&context, &target, request).await,
        (Method::PATCH, true) => write::patch(&context, &target, request).await,
        (Method::DELETE, true) => delete::one(&context, &target, request).await,
        (Method::DELETE, false) => delete::collection(&context, &target, request).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// Returns when the server stops, or is gone.
pub(crate) async fn stopped(stopping: &mut Receiver<bool>) {
    // The value it would return is a lock that must not be held.
    drop(stopping.wait_for(|stopping| *stopping).await);
}
