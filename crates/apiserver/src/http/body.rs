//! Bodies, in and out.

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use serde_json::Value;

use crate::{protobuf, status::Status};

/// A response body.
pub(super) type Body = UnsyncBoxBody<Bytes, BoxError>;
/// What may break a body half way.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The largest request body read, as in kube-apiserver.
const LIMIT: usize = 3 << 20;
/// How much is read of what a refused request still sends.
const DRAINED: usize = 16 << 20;

/// A response of JSON text.
pub(super) fn json(code: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    whole(code, "application/json", text)
}

/// A response of text.
pub(super) fn plain(text: &'static str) -> Response<Body> {
    whole(StatusCode::OK, "text/plain; charset=utf-8", text)
}

/// A response of bytes that are all there.
pub(super) fn whole(code: StatusCode, kind: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync();
    with_type(code, kind, body)
}

/// A response whose bytes come over time.
pub(super) fn streamed<S>(kind: &'static str, stream: S) -> Response<Body>
where
    S: Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
{
    with_type(StatusCode::OK, kind, StreamBody::new(stream.map(|chunk| chunk.map(Frame::data))).boxed_unsync())
}

fn with_type(code: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// The response that tells a failure.
pub(super) fn error(status: &Status) -> Response<Body> {
    json(status.code, status.to_value().to_string())
}

/// Adds `Warning` headers, which kubectl prints.
pub(super) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// Content type of a request, without parameters.
pub(super) fn content_type(request: &Request<Incoming>) -> String {
    let value = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Reads a whole body.
pub(super) async fn read(request: &mut Request<Incoming>) -> Result<Bytes, Status> {
    match Limited::new(request.body_mut(), LIMIT).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Status::too_large(LIMIT)),
        Err(error) => Err(Status::bad_request(format!("the request body cannot be read: {error}"))),
    }
}

/// Reads what is left of a body, within bounds. Answering before would close the connection on a client that is still
/// sending, and the client would see a broken connection instead of the answer.
pub(super) async fn drain(body: &mut Incoming) {
    let mut left = DRAINED;
    while let Some(Ok(frame)) = body.frame().await {
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// Reads a body as an object, whichever way it is encoded. `null` when there is none.
pub(super) async fn read_object(request: &mut Request<Incoming>) -> Result<Value, Status> {
    let kind = content_type(request);
    let bytes = read(request).await?;
    match kind.as_str() {
        _ if bytes.is_empty() => Ok(Value::Null),
        "" | "application/json" => parse(&bytes),
        protobuf::CONTENT_TYPE => protobuf::decode(&bytes).map_err(Status::bad_request),
        other => Err(Status::unsupported_media_type(format!(
            "the body of the request was in an unknown format ({other}) - accepted media types include: \
             application/json, {}",
            protobuf::CONTENT_TYPE
        ))),
    }
}

/// Parses JSON text.
fn parse(text: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(text)
        .map_err(|error| Status::bad_request(format!("the request body is not valid JSON: {error}")))
}
