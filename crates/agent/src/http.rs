//! A small HTTP server for the pages that probes and Prometheus read.

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tracing::debug;

/// Connections at once.
const MAX_CONNECTIONS: usize = 100;
/// How long a client may take to ask.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// How long a connection may last: probes open a new one each time.
const CONNECTION_TIME: Duration = Duration::from_secs(60);
/// How long to rest after a connection could not be accepted.
const REST: Duration = Duration::from_millis(10);

/// What is answered.
pub type Page = Response<Full<Bytes>>;

/// A page with a Content-Type, which a browser is told not to guess.
pub fn page(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Page {
    let mut page = Response::new(Full::new(body.into()));
    *page.status_mut() = status;
    let value = header::HeaderValue::from_static;
    page.headers_mut().insert(header::CONTENT_TYPE, value(content_type));
    page.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, value("nosniff"));
    page
}

/// A page of plain text.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Page {
    page(status, "text/plain; charset=utf-8", body)
}

/// Answers requests by their path, until it is aborted.
pub async fn serve(listener: TcpListener, answer: impl Fn(&str) -> Page + Clone + Send + 'static) {
    serve_at(listener, |_| true, answer).await;
}

/// As [`serve`], but only at those addresses of this machine that `admits`.
pub async fn serve_at(
    listener: TcpListener,
    admits: impl Fn(IpAddr) -> bool + Send,
    answer: impl Fn(&str) -> Page + Clone + Send + 'static,
) {
    let limit = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(permit) = limit.clone().acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) if stream.local_addr().is_ok_and(|local| admits(local.ip().to_canonical())) => {
                TokioIo::new(stream)
            }
            Ok(_) => continue,
            Err(error) => {
                debug!("http accept: {error}");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let answer = answer.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let page = answer(request.uri().path());
            async { Ok::<_, Infallible>(page) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME);
        let connection = builder.serve_connection(stream, service);
        tokio::spawn(async move {
            if let Ok(Err(error)) = timeout(CONNECTION_TIME, connection).await {
                debug!("http: {error}");
            }
            drop(permit);
        });
    }
}

#[cfg(test)]
pub mod tests {
    use std::{
        io::{Read, Write},
        net::{SocketAddr, TcpStream},
    };

    use super::*;

    /// The whole answer to a request for `path`, headers included.
    pub fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_path_has_its_page() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, |path| match path {
            "/healthz" => text(StatusCode::OK, "ok"),
            _ => text(StatusCode::NOT_FOUND, "not found"),
        }));
        let found = get(address, "/healthz?verbose");
        assert!(found.starts_with("HTTP/1.1 200") && found.ends_with("\r\n\r\nok"), "{found}");
        assert!(
            found.contains("content-type: text/plain; charset=utf-8\r\nx-content-type-options: nosniff"),
            "{found}"
        );
        assert!(get(address, "/").starts_with("HTTP/1.1 404"));
    }
}
