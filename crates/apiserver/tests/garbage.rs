//! Whatever comes in, the server goes on.

#![allow(clippy::unwrap_used, reason = "a failure in a test's own helpers is a failed test")]

mod common;

use std::sync::Arc;

use common::Lab;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, pki_types::ServerName},
};

/// Sends bytes inside TLS; what comes back until the server closes or says nothing for a while.
async fn send(lab: &Lab, bytes: &[u8], protocol: &[u8]) -> Vec<u8> {
    let mut roots = RootCertStore::empty();
    let pem = lab.server.ca_pem().as_bytes();
    let ca = <tokio_rustls::rustls::pki_types::CertificateDer as tokio_rustls::rustls::pki_types::pem::PemObject>::from_pem_slice(pem);
    roots.add(ca.unwrap()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let socket = TcpStream::connect(lab.address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut back = Vec::new();
    let reading = stream.read_to_end(&mut back);
    // Some garbage is a request that is not finished: the server waits for the rest.
    let _ = tokio::time::timeout(std::time::Duration::from_millis(300), reading).await;
    back
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_does_not_stop_the_server() {
    let lab = Lab::start().await;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], b"\x16\x03\x01\xff\xff"] {
        let mut socket = TcpStream::connect(lab.address).await.unwrap();
        let _ = socket.write_all(bytes).await;
    }
    for (bytes, protocol) in [
        (&b"\0\0\0\0\r\n\r\n"[..], &b"http/1.1"[..]),
        (b"GET /api/v1/pods HTTP/9.9\r\n\r\n", b"http/1.1"),
        (b"POST /api/v1/pods HTTP/1.1\r\ncontent-length: -1\r\n\r\n", b"http/1.1"),
        (b"GET / HTTP/1.1\r\nhost: x\r\n", b"http/1.1"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"h2"),
        (&[0xff; 4096], b"h2"),
    ] {
        send(&lab, bytes, protocol).await;
    }
    let answer = send(&lab, b"GET /api/v1/pods HTTP/1.1\r\nhost: x\r\n\r\n", b"http/1.1").await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 401") && answer.contains(r#""kind":"Status""#), "{answer}");
    let answer = send(&lab, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", b"http/1.1").await;
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    assert_eq!(lab.get("/api/v1/namespaces").await["items"].as_array().unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_is_a_status() {
    let lab = Lab::start().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let large = format!(r#"{{"data":{{"a":"{}"}}}}"#, "x".repeat(4 << 20));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let wrong_path = format!("{maps}/x/y");
    for (method, path, kind, body, code) in [
        ("GET", "/nothing", "", "", 404),
        ("GET", "/api/v1/things", "", "", 404),
        ("GET", "/apis/apps/v2/deployments", "", "", 404),
        ("GET", "/api/v1/namespaces/default/pods/x/portforward", "", "", 404),
        ("PUT", maps, "application/json", "{}", 405),
        ("DELETE", "/api", "", "", 405),
        ("POST", maps, "application/json", "{", 400),
        ("POST", maps, "application/json", "[]", 400),
        ("POST", maps, "application/json", "", 400),
        ("POST", maps, "application/json", &deep, 400),
        ("POST", maps, "application/json", r#"{"metadata": 1}"#, 400),
        ("POST", maps, "application/json", r#"{"metadata": {"name": "a"}, "kind": "Pod"}"#, 400),
        ("POST", maps, "application/json", r#"{"metadata": {"name": "a", "namespace": "other"}}"#, 400),
        ("POST", maps, "application/json", r#"{"metadata": {}}"#, 422),
        ("POST", maps, "application/json", &large, 413),
        // A client that is still sending gets its answer too.
        ("POST", &wrong_path, "application/json", &large, 404),
        ("PUT", maps, "application/json", &large, 405),
        ("POST", maps, "application/yaml", "a: b", 415),
        ("POST", maps, "application/vnd.kubernetes.protobuf", "k8s", 400),
        ("POST", "/api/v1/namespaces/default/pods?dryRun=Some", "application/json", "{}", 400),
        ("PATCH", &format!("{maps}/x"), "application/merge-patch+json", "{}", 404),
        ("PATCH", &format!("{maps}/x"), "text/plain", "{}", 415),
        ("GET", &format!("{maps}?labelSelector=a%20b"), "", "", 400),
        ("GET", &format!("{maps}?watch=true&resourceVersion=x"), "", "", 400),
        ("POST", "/api/v1/namespaces/default/serviceaccounts/none/token", "application/json", "{}", 404),
        ("GET", "/api/v1/namespaces/default/pods/x/exec?command=a", "", "", 400),
    ] {
        let (got, value) = lab.send(method, path, kind, body).await;
        assert_eq!(got, code, "{method} {path} {:.60}: {value}", body);
        assert_eq!((&value["kind"], &value["code"]), (&json!("Status"), &json!(code)), "{method} {path}: {value}");
        assert!(!value["message"].as_str().unwrap().is_empty(), "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_made_at_once_share_no_address_and_no_port() {
    let lab = Lab::start_with(podwire_apiserver::Server::builder().service_range("10.9.0.0/27".parse().unwrap())).await;
    let services = "/api/v1/namespaces/default/services";
    // 30 addresses, one of them for Service kubernetes.
    let made = (0..29).map(|n| {
        let service =
            json!({"metadata": {"name": format!("s{n}")}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        let lab = &lab;
        async move { lab.post(services, &service).await }
    });
    let made = futures_util::future::join_all(made).await;
    let distinct = |pointer: &str| {
        let all: std::collections::HashSet<_> =
            made.iter().map(|(_, s)| s.pointer(pointer).unwrap().to_string()).collect();
        all.len()
    };
    assert_eq!((distinct("/spec/clusterIP"), distinct("/spec/ports/0/nodePort")), (29, 29));
    let (code, status) =
        lab.post(services, &json!({"metadata": {"name": "more"}, "spec": {"ports": [{"port": 80}]}})).await;
    assert!(code == 422 && status["message"].as_str().unwrap().contains("10.9.0.0/27 is full"), "{status}");
    lab.delete(&format!("{services}/s0"), &json!({})).await;
    let (code, _) = lab.post(services, &json!({"metadata": {"name": "more"}, "spec": {"ports": [{"port": 80}]}})).await;
    assert_eq!(code, 201, "what was given back can be given again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_cluster_is_without_stays() {
    let builder = podwire_apiserver::Server::builder().advertise("172.25.2.254:6443".parse().unwrap());
    let lab = Lab::start_with(builder).await;
    let (code, status) = lab.delete("/api/v1/namespaces/default", &json!({})).await;
    assert_eq!(
        (code, &status["message"]),
        (403, &json!(r#"namespaces "default" is forbidden: this namespace may not be deleted"#))
    );
    for path in [
        "/api/v1/namespaces/default/services/kubernetes",
        "/api/v1/namespaces/default/endpoints/kubernetes",
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
    ] {
        let before = lab.get(path).await;
        lab.delete(path, &json!({})).await;
        let back = async {
            while lab.send("GET", path, "", "").await.1["metadata"]["uid"]
                .as_str()
                .is_none_or(|uid| before["metadata"]["uid"] == uid)
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(common::PATIENCE, back).await.unwrap();
        assert_eq!(lab.get(path).await["spec"], before["spec"], "{path}");
    }
}
