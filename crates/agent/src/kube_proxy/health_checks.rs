//! What load balancers ask a node about one Service (`healthCheckNodePort`): an HTTP server for each.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use hyper::StatusCode;
use podwire_model::{IpNet, ObjectName};
use podwire_proxy::{
    mode::{NodePortAddresses, Settings},
    plan::HealthCheck,
};
use serde_json::json;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time};
use tracing::{info, warn};

use super::{State, settings};
use crate::{
    events::{About, Recorder},
    http::{self, Page},
};

/// How long to wait before a port that is taken is tried again.
const PAUSE: Duration = Duration::from_secs(2);

/// What shall be served; shared by all servers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted {
    /// By Service.
    pub checks: BTreeMap<ObjectName, HealthCheck>,
    /// Where node ports are served: health checks are served there, too. `None` for everywhere.
    pub addresses: Option<Arc<[IpNet]>>,
}

impl Wanted {
    /// The addresses that `settings` name.
    pub fn addresses(settings: &Settings) -> Option<Arc<[IpNet]>> {
        match &settings.node_port_addresses {
            NodePortAddresses::All => None,
            NodePortAddresses::Primary => Some(settings::primary_ips(&settings.node_ips).map(IpNet::from).collect()),
            NodePortAddresses::Ranges(ranges) => Some(ranges.as_slice().into()),
        }
    }
}

/// Serves what is wanted, until nobody wants anything any more.
pub async fn serve(mut wanted: watch::Receiver<Wanted>, state: State, recorder: Recorder) {
    let mut servers =
        Servers { open: BTreeMap::new(), refused: BTreeMap::new(), wanted: wanted.clone(), state, recorder };
    loop {
        let checks = wanted.borrow_and_update().checks.clone();
        servers.reconcile(&checks).await;
        let retry =
            async { if servers.refused.is_empty() { std::future::pending().await } else { time::sleep(PAUSE).await } };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = retry => {}
        }
    }
}

struct Servers {
    /// By Service: its port, and the task that serves it.
    open: BTreeMap<ObjectName, (u16, Server)>,
    /// The ports that cannot be listened on.
    refused: BTreeMap<ObjectName, u16>,
    wanted: watch::Receiver<Wanted>,
    state: State,
    recorder: Recorder,
}

/// A task; ends with its owner.
struct Server(JoinHandle<()>);

impl Server {
    /// Returns when the port is free again.
    async fn close(mut self) {
        self.0.abort();
        // Nothing but that it was aborted.
        let _ = (&mut self.0).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Servers {
    async fn reconcile(&mut self, checks: &BTreeMap<ObjectName, HealthCheck>) {
        let same = |name: &ObjectName, port: u16| checks.get(name).is_some_and(|check| check.port == port);
        for (_, (_, server)) in self.open.extract_if(.., |name, (port, _)| !same(name, *port)) {
            server.close().await;
        }
        self.refused.retain(|name, port| same(name, *port));
        for (name, check) in checks {
            if !self.open.contains_key(name) {
                self.open(name, check.port).await;
            }
        }
        self.state.metrics.health_check_failures.set(i64::try_from(self.refused.len()).unwrap_or(i64::MAX));
    }

    async fn open(&mut self, name: &ObjectName, port: u16) {
        match listen(port).await {
            Ok(listener) => {
                self.refused.remove(name);
                let (service, wanted, state) = (name.clone(), self.wanted.clone(), self.state.clone());
                let admitted = self.wanted.clone();
                let admits = move |local: IpAddr| {
                    let ranges = admitted.borrow().addresses.clone();
                    ranges.is_none_or(|ranges| ranges.iter().any(|range| range.contains(&local)))
                };
                let task = tokio::spawn(http::serve_at(listener, admits, move |_| {
                    let found = wanted.borrow().checks.get(&service).map_or(0, |check| check.local_endpoints);
                    answer(&service, found, state.is_healthy())
                }));
                self.open.insert(name.clone(), (port, Server(task)));
                info!("health checks of Service {name} are answered on port {port}");
            }
            Err(error) => {
                if self.refused.insert(name.clone(), port).is_none() {
                    let message = format!("cannot listen on healthCheckNodePort {port}, trying again: {error}");
                    warn!("Service {name}: {message}");
                    let about = About { kind: "Service", object: name.clone() };
                    self.recorder.object(about, "FailedToStartServiceHealthcheck", message);
                }
            }
        }
    }
}

/// Every address, of both families where there are two.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    let v6: IpAddr = std::net::Ipv6Addr::UNSPECIFIED.into();
    match TcpListener::bind((v6, port)).await {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            TcpListener::bind((IpAddr::from([0, 0, 0, 0]), port)).await
        }
        bound => bound,
    }
}

/// kube-proxy's answer. The weight lets a load balancer share traffic by the number of endpoints.
fn answer(service: &ObjectName, local_endpoints: usize, healthy: bool) -> Page {
    let body = json!({
        "service": { "namespace": &*service.namespace, "name": &*service.name },
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": healthy,
    });
    let good = local_endpoints > 0 && healthy;
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut page = http::page(status, "application/json", body.to_string());
    page.headers_mut().insert("x-load-balancing-endpoint-weight", local_endpoints.into());
    page
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::{super::Metrics, *};
    use crate::http::tests::get;

    fn checks(entries: &[(&str, u16, usize)]) -> BTreeMap<ObjectName, HealthCheck> {
        let entry = |&(name, port, local_endpoints): &(&str, u16, usize)| {
            (ObjectName::new("default", name), HealthCheck { port, local_endpoints })
        };
        entries.iter().map(entry).collect()
    }

    /// A port that is free now.
    fn free() -> u16 {
        std::net::TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
    }

    async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
        for _ in 0..500 {
            if done() {
                return;
            }
            time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within five seconds: {what}");
    }

    fn at(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn refuses(port: u16) -> bool {
        std::net::TcpStream::connect(at(port)).is_err()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn ports_open_count_and_close_with_their_services() {
        let (sender, receiver) = watch::channel(Wanted::default());
        let state = State::new("nftables", Metrics::new(), Duration::from_secs(60));
        let (recorder, mut reports) = Recorder::new("node1");
        let server = tokio::spawn(serve(receiver, state.clone(), recorder));
        let [first, second] = [free(), free()];
        let want = |entries: &[(&str, u16, usize)]| {
            sender.send_modify(|wanted| wanted.checks = checks(entries));
        };
        want(&[("web", first, 2), ("idle", second, 0)]);
        eventually("both are served", || !refuses(first) && !refuses(second)).await;
        let sick = get(at(first), "/");
        assert!(sick.starts_with("HTTP/1.1 503") && sick.contains("\"serviceProxyHealthy\":false"), "{sick}");
        state.in_sync();
        let found = get(at(first), "/");
        assert!(found.starts_with("HTTP/1.1 200"), "{found}");
        assert!(found.contains("x-load-balancing-endpoint-weight: 2\r\n"), "{found}");
        let body: serde_json::Value = serde_json::from_str(found.split_once("\r\n\r\n").unwrap().1).unwrap();
        let expected = json!({
            "service": { "namespace": "default", "name": "web" },
            "localEndpoints": 2,
            "serviceProxyHealthy": true,
        });
        assert_eq!(body, expected);
        assert!(get(at(second), "/").starts_with("HTTP/1.1 503"));
        want(&[("web", first, 0)]);
        eventually("the other is closed", || refuses(second)).await;
        assert!(get(at(first), "/").starts_with("HTTP/1.1 503"));
        want(&[("web", second, 1)]);
        eventually("it moved", || refuses(first) && !refuses(second)).await;
        sender.send_modify(|wanted| wanted.addresses = Some(["10.0.0.1/32".parse().unwrap()].into()));
        let mut stream = std::net::TcpStream::connect(at(second)).unwrap();
        std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\n\r\n").unwrap_or_default();
        let read = std::io::Read::read_to_string(&mut stream, &mut String::new());
        assert!(matches!(read, Ok(0) | Err(_)), "other addresses of the node are not answered: {read:?}");
        drop(sender);
        server.await.unwrap();
        assert!(reports.recv().await.is_none(), "nothing went wrong");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_port_in_use_is_told_and_tried_again() {
        let taken = std::net::TcpListener::bind("[::]:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let (sender, receiver) = watch::channel(Wanted { checks: checks(&[("web", port, 1)]), addresses: None });
        let state = State::new("nftables", Metrics::new(), Duration::from_secs(60));
        state.in_sync();
        let (recorder, mut reports) = Recorder::new("node1");
        let server = tokio::spawn(serve(receiver, state.clone(), recorder));
        let report = reports.recv().await.unwrap();
        assert_eq!((report.about.kind, report.reason), ("Service", "FailedToStartServiceHealthcheck"));
        assert!(report.message.contains(&format!("healthCheckNodePort {port}")), "{}", report.message);
        assert_eq!(state.metrics.health_check_failures.get(), 1);
        drop(taken);
        eventually("it is served", || state.metrics.health_check_failures.get() == 0).await;
        assert!(get(at(port), "/").starts_with("HTTP/1.1 200"));
        drop(sender);
        server.await.unwrap();
    }
}
