//! `pods/NAME/log`.

use futures_util::StreamExt;
use http::Response;

use super::{
    Context,
    body::{Body, streamed},
    path::Target,
    stopped, subresource,
};
use crate::{
    remote::{LogRequest, RemoteError},
    status::Status,
};

/// Streams a container's log from its node.
pub(super) async fn logs(context: &Context, target: &Target) -> Result<Response<Body>, Status> {
    let key = target.key();
    let pod = context.api.get(target.kind, &key)?;
    let query = &context.query;
    let since_time = query.text("sinceTime");
    let request = LogRequest {
        container: subresource::container(target.kind, pod.value(), query.text("container"))?,
        namespace: key.namespace,
        pod: key.name,
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        tail_lines: query.number("tailLines")?,
        since_seconds: query.number("sinceSeconds")?,
        since_time: (!since_time.is_empty()).then(|| since_time.to_owned()),
        limit_bytes: query.number("limitBytes")?,
    };
    let node = subresource::node(pod.value())?;
    let stream = context.api.nodes.logs(&node, request).await.map_err(|e| remote(&e))?;
    let mut stopping = context.stopping.clone();
    let stop = Box::pin(async move { stopped(&mut stopping).await });
    let chunks = stream.map(|chunk| chunk.map_err(Into::into)).take_until(stop);
    Ok(streamed("text/plain", chunks))
}

/// What a node's failure is to a client.
pub(super) fn remote(error: &RemoteError) -> Status {
    match error {
        RemoteError::NotFound(why) | RemoteError::BadRequest(why) => Status::bad_request(why.as_str()),
        RemoteError::Unavailable(why) => Status::internal(why.as_str()),
    }
}
