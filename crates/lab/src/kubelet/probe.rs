//! Readiness, liveness and startup probes.

use std::{net::SocketAddr, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How often and how patiently to probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Before the first attempt.
    pub delay: Duration,
    /// Between counted attempts.
    pub period: Duration,
    /// For one attempt.
    pub timeout: Duration,
    failures: u32,
    successes: u32,
}

impl Schedule {
    /// Reads a probe's numbers, with the API's defaults for what is not set.
    pub fn of(probe: &Probe) -> Self {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default))
        };
        let count = |value: Option<i32>, default: u32| {
            value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
        };
        Self {
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            failures: count(probe.failure_threshold, 3),
            successes: count(probe.success_threshold, 1),
        }
    }
}

/// Attempts in a row, and what they amount to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    last: Option<bool>,
    run: u32,
}

impl Tally {
    /// Counts an attempt. `Some(true)` when enough have succeeded in a row, `Some(false)` when enough have failed,
    /// `None` while neither is so.
    pub fn record(&mut self, ok: bool, schedule: &Schedule) -> Option<bool> {
        self.run = if self.last == Some(ok) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(ok);
        let needed = if ok { schedule.successes } else { schedule.failures };
        (self.run >= needed).then_some(ok)
    }
}

/// Asks a pod over the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// `httpGet`: an answer with a status from 200 to 399.
    Http {
        /// Where the server listens.
        address: SocketAddr,
        /// The request, complete.
        request: String,
    },
    /// `tcpSocket`: a connection.
    Tcp(SocketAddr),
    /// `exec`: exit code 0.
    Exec(Vec<String>),
}

impl Check {
    /// What `probe` of `container` asks of a pod at `pod_ip`.
    ///
    /// # Errors
    /// A field that a lab does not support, or a port name that the container does not declare.
    pub fn of(probe: &Probe, container: &Container, pod_ip: &str) -> Result<Self, String> {
        if let Some(exec) = &probe.exec {
            return Ok(Self::Exec(exec.command.clone().unwrap_or_default()));
        }
        if let Some(http) = &probe.http_get {
            return Self::http(http, container, pod_ip);
        }
        match &probe.tcp_socket {
            Some(tcp) => Ok(Self::Tcp(address(tcp.host.as_deref(), &tcp.port, container, pod_ip)?)),
            None => Err("probe: only httpGet, tcpSocket and exec are supported".to_owned()),
        }
    }

    /// What an `httpGet` of a probe or a lifecycle hook asks.
    ///
    /// # Errors
    /// As [`Check::of`].
    pub fn http(http: &HTTPGetAction, container: &Container, pod_ip: &str) -> Result<Self, String> {
        if http.scheme.as_deref() == Some("HTTPS") {
            return Err("httpGet: scheme HTTPS is not supported".to_owned());
        }
        let address = address(http.host.as_deref(), &http.port, container, pod_ip)?;
        let path = http.path.as_deref().unwrap_or("/");
        let slash = if path.starts_with('/') { "" } else { "/" };
        let headers = http.http_headers.as_deref().unwrap_or_default();
        let own = |name: &str| headers.iter().any(|h| h.name.eq_ignore_ascii_case(name));
        let mut request = format!("GET {slash}{path} HTTP/1.1\r\nConnection: close\r\nAccept: */*\r\n");
        if !own("Host") {
            request += &format!("Host: {address}\r\n");
        }
        if !own("User-Agent") {
            request += "User-Agent: kube-probe/1.36\r\n";
        }
        for header in headers {
            request += &format!("{}: {}\r\n", header.name, header.value);
        }
        Ok(Self::Http { address, request: request + "\r\n" })
    }

    /// One attempt over the network from this node.
    ///
    /// # Errors
    /// Why it failed, as the kubelet words it. [`Check::Exec`] is not for the network and fails.
    pub async fn attempt(&self, limit: Duration) -> Result<(), String> {
        let attempt = async {
            match self {
                Self::Http { address, request } => http_attempt(*address, request).await,
                Self::Tcp(address) => {
                    TcpStream::connect(address).await.map(drop).map_err(|e| format!("dial tcp {address}: {e}"))
                }
                Self::Exec(_) => Err("an exec probe runs in its container".to_owned()),
            }
        };
        timeout(limit, attempt).await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
    }
}

async fn http_attempt(address: SocketAddr, request: &str) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("Get \"http://{address}\": {e}");
    let mut stream = TcpStream::connect(address).await.map_err(failed)?;
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut head = Vec::with_capacity(64);
    while !head.contains(&b'\n') && head.len() < 1024 {
        if stream.read_buf(&mut head).await.map_err(failed)? == 0 {
            break;
        }
    }
    match status_code(&head) {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("HTTP probe failed with statuscode: {code}")),
        None => Err(format!("Get \"http://{address}\": malformed HTTP response")),
    }
}

/// The status code of an HTTP/1 response.
fn status_code(head: &[u8]) -> Option<u16> {
    let line = head.split(|b| *b == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    words.next()?.strip_prefix("HTTP/1.")?;
    words.next()?.parse().ok()
}

fn address(host: Option<&str>, port: &IntOrString, container: &Container, pod_ip: &str) -> Result<SocketAddr, String> {
    let host = host.filter(|h| !h.is_empty()).unwrap_or(pod_ip);
    let ip = host.parse().map_err(|_| format!("probe: host {host:?} is not an IP address"))?;
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => {
                let mut ports = container.ports.iter().flatten();
                let port = ports.find(|p| p.name.as_deref() == Some(name));
                port.ok_or_else(|| format!("probe: the container declares no port named {name:?}"))?.container_port
            }
        },
    };
    let port = u16::try_from(number).map_err(|_| format!("probe: port {number} is out of range"))?;
    Ok(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn probe(value: serde_json::Value) -> Probe {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn thresholds_count_attempts_in_a_row() {
        let schedule = Schedule::of(&probe(json!({"failureThreshold": 3, "successThreshold": 2})));
        let attempts = [true, true, false, false, true, false, false, false, true, true, true];
        let mut tally = Tally::default();
        let verdicts: Vec<_> = attempts.iter().map(|ok| tally.record(*ok, &schedule)).collect();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(verdicts, [None, yes, None, None, None, None, None, no, None, yes, yes]);
    }

    #[test]
    fn defaults_are_the_api_s() {
        let expected = Schedule {
            delay: Duration::ZERO,
            period: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            failures: 3,
            successes: 1,
        };
        assert_eq!(Schedule::of(&Probe::default()), expected);
        assert_eq!(Schedule::of(&probe(json!({"periodSeconds": 0, "timeoutSeconds": 0}))), expected);
    }

    #[test]
    fn checks_and_bad_fields() {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]})).unwrap();
        let check = |value| Check::of(&probe(value), &container, "10.244.0.5");
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(check(json!({"tcpSocket": {"port": "web"}})), Ok(Check::Tcp(at("10.244.0.5:8080"))));
        assert_eq!(check(json!({"tcpSocket": {"port": 53, "host": "fd00::1"}})), Ok(Check::Tcp(at("[fd00::1]:53"))));
        assert_eq!(check(json!({"exec": {"command": ["true"]}})), Ok(Check::Exec(vec!["true".into()])));
        let Ok(Check::Http { address, request }) = check(json!({"httpGet": {
            "port": 80, "path": "ready", "httpHeaders": [{"name": "host", "value": "a.test"}]}}))
        else {
            panic!("expected an HTTP check");
        };
        assert_eq!(address, at("10.244.0.5:80"));
        assert!(request.starts_with("GET /ready HTTP/1.1\r\n") && request.ends_with("host: a.test\r\n\r\n"));
        assert!(!request.contains("Host:"));
        for (value, message) in [
            (json!({"tcpSocket": {"port": "db"}}), "no port named \"db\""),
            (json!({"tcpSocket": {"port": 70000}}), "out of range"),
            (json!({"httpGet": {"port": 80, "scheme": "HTTPS"}}), "HTTPS"),
            (json!({"grpc": {"port": 1}}), "only httpGet"),
        ] {
            assert!(check(value.clone()).unwrap_err().contains(message), "{value}");
        }
    }

    #[test]
    fn status_lines() {
        assert_eq!(status_code(b"HTTP/1.1 204 No Content\r\n"), Some(204));
        assert_eq!(status_code(b"HTTP/1.0 500\r\n"), Some(500));
        assert_eq!(status_code(b"SSH-2.0-OpenSSH\r\n"), None);
        assert_eq!(status_code(b""), None);
    }
}
