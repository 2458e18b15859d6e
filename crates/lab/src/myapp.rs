//! The built-in web app: what the images `myapp:v1` and `myapp:v2` run.
//!
//! Ready as soon as it listens. On SIGTERM it goes on serving for a moment, because clients of its Services learn of
//! its end a little later, and then exits with code 0.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use k8s_openapi::jiff::Timestamp;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

/// How long it serves after SIGTERM.
const LAME_DUCK: Duration = Duration::from_millis(1500);

/// The arguments of the hidden subcommand.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The version to call itself, `v1` or `v2`.
    #[arg(long, default_value = "v2")]
    version: String,
    /// The TCP port to listen on, on every address.
    #[arg(long, default_value_t = 80)]
    port: u16,
}

/// Serves until SIGTERM.
///
/// # Errors
/// The port cannot be listened on.
pub fn run(args: Args) -> io::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let listener = listen(args.port)
            .map_err(|e| io::Error::new(e.kind(), format!("cannot listen on TCP port {}: {e}", args.port)))?;
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        serve(listener, App { version: args.version, hostname }, &mut terminate).await;
        Ok(())
    })
}

/// Listens on every address, of both families where the machine has both.
fn listen(port: u16) -> io::Result<TcpListener> {
    let listener =
        std::net::TcpListener::bind(("::", port)).or_else(|_| std::net::TcpListener::bind(("0.0.0.0", port)))?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// What the app says.
#[derive(Debug, Clone)]
struct App {
    version: String,
    hostname: String,
}

impl App {
    /// Status and body for a request.
    fn answer(&self, path: &str) -> (StatusCode, String) {
        match path {
            "/" => {
                let link = r#"<a href="hostname.html">Pod Name</a>"#;
                (StatusCode::OK, format!("Hello MyApp | Version: {} | {link}\n", self.version))
            }
            "/hostname.html" => (StatusCode::OK, format!("{}\n", self.hostname)),
            _ => (StatusCode::NOT_FOUND, "404 Not Found\n".to_owned()),
        }
    }
}

async fn serve(listener: TcpListener, app: App, terminate: &mut Signal) {
    let (leaving, is_leaving) = watch::channel(false);
    let accept = async {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(connection(TokioIo::new(stream), peer, app.clone(), is_leaving.clone()));
                }
                // Out of descriptors, or the client has gone already: the next one may fare better.
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let end = async {
        terminate.recv().await;
        leaving.send_replace(true);
        tokio::time::sleep(LAME_DUCK).await;
    };
    tokio::select! {
        () = accept => {}
        () = end => {}
    }
}

async fn connection(io: TokioIo<tokio::net::TcpStream>, peer: SocketAddr, app: App, leaving: watch::Receiver<bool>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (status, body) = app.answer(request.uri().path());
        println!("{}", access_log(peer, &request, status, body.len()));
        let mut response = Response::builder().status(status).header(header::CONTENT_TYPE, "text/html");
        if *leaving.borrow() {
            // Clients that keep connections are told to open their next one, elsewhere.
            response = response.header(header::CONNECTION, "close");
        }
        let response = response.body(Full::new(Bytes::from(body)));
        async move { Ok::<_, Infallible>(response.unwrap_or_default()) }
    });
    // A client that hangs up or speaks nonsense concerns nobody else.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
}

/// One line in the "combined" format of web servers.
fn access_log(peer: SocketAddr, request: &Request<Incoming>, status: StatusCode, length: usize) -> String {
    let agent = request.headers().get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("-");
    let now = Timestamp::now().strftime("%d/%b/%Y:%H:%M:%S +0000");
    let (method, uri) = (request.method(), request.uri());
    let ip = peer.ip().to_canonical();
    format!("{ip} - - [{now}] \"{method} {uri} {:?}\" {} {length} \"-\" {agent:?}", request.version(), status.as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    #[test]
    fn answers() {
        let app = App { version: "v2".into(), hostname: "demo2-abc".into() };
        let home = "Hello MyApp | Version: v2 | <a href=\"hostname.html\">Pod Name</a>\n";
        assert_eq!(app.answer("/"), (StatusCode::OK, home.to_owned()));
        assert_eq!(app.answer("/hostname.html"), (StatusCode::OK, "demo2-abc\n".to_owned()));
        assert_eq!(app.answer("/other").0, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn keeps_connections_until_it_leaves() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (leaving, is_leaving) = watch::channel(false);
        let server = tokio::spawn(async move {
            let (stream, peer) = listener.accept().await.unwrap();
            let app = App { version: "v1".into(), hostname: "h".into() };
            connection(TokioIo::new(stream), peer, app, is_leaving).await;
        });
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut buffer = vec![0; 4096];
        for path in ["/", "/hostname.html"] {
            client.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
            let n = client.read(&mut buffer).await.unwrap();
            let text = String::from_utf8_lossy(&buffer[..n]);
            assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && !text.contains("close"), "{text}");
        }
        leaving.send_replace(true);
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        assert!(text.contains("connection: close") && text.contains("Version: v1"), "{text}");
        server.await.unwrap();
    }
}
