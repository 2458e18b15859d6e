//! When a lab counts as up: every node is Ready, and cluster DNS answers on its Service address on each of them.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    pin::pin,
    time::Duration,
};

use futures_util::StreamExt;
use podwire_k8s::{
    Client, Event,
    k8s_openapi::api::core::v1::Node,
    kube::{Api, runtime::watcher},
    watch,
};
use podwire_kernel::ns::Namespace;
use tokio::time;

use crate::{
    error::{Error, Result},
    topology::CLUSTER_DOMAIN,
};

/// How long to wait for one answer, and at least how long between questions.
const DNS_PAUSE: Duration = Duration::from_millis(20);

/// Waits until `count` nodes have the condition Ready.
///
/// # Errors
/// The watch ended.
pub async fn nodes(client: &Client, count: usize) -> Result<()> {
    let mut events = pin!(watch::<Node>(Api::all(client.kube()), watcher::Config::default()));
    let mut ready = std::collections::BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Snapshot(nodes) => ready = nodes.iter().filter(|node| is_ready(node)).filter_map(name).collect(),
            Event::Applied(node) if is_ready(&node) => ready.extend(name(&node)),
            Event::Applied(node) | Event::Deleted(node) => {
                name(&node).map(|name| ready.remove(&name));
            }
        }
        if ready.len() >= count {
            return Ok(());
        }
    }
    Err(Error::Failed("the watch of the nodes ended".to_owned()))
}

/// Whether the node's condition Ready is True.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn name(node: &Node) -> Option<String> {
    node.metadata.name.clone()
}

/// Asks the nameserver `server` from inside `network` until it knows the Service `kubernetes`.
///
/// # Errors
/// No socket could be made in `network`.
pub async fn dns(network: &Namespace, server: Ipv4Addr) -> io::Result<()> {
    let mut id = 1;
    loop {
        let started = time::Instant::now();
        if let Ok(true) = time::timeout(DNS_PAUSE, ask(network, server, id)).await.unwrap_or(Ok(false)) {
            return Ok(());
        }
        time::sleep_until(started + DNS_PAUSE).await;
        id = id.wrapping_add(1);
    }
}

/// One question from a port of its own: the kernel remembers where it sent the packets of a flow, even to nowhere.
async fn ask(network: &Namespace, server: Ipv4Addr, id: u16) -> io::Result<bool> {
    let socket = network
        .run(|| {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
                .map_err(|error| podwire_kernel::Error::io("open a socket", error))
        })
        .map_err(io::Error::other)?;
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    socket.connect((server, 53)).await?;
    socket.send(&question(id)).await?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).await?;
    Ok(answers(&answer[..length], id))
}

/// A DNS query (RFC 1035 section 4) for the address of the Service `kubernetes`.
fn question(id: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in "kubernetes.default.svc".split('.').chain(CLUSTER_DOMAIN.split('.')) {
        message.extend(u8::try_from(label.len()));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// Whether `message` is a successful response to question `id` with at least one answer.
fn answers(message: &[u8], id: u16) -> bool {
    let Some(header) = message.first_chunk::<12>() else { return false };
    let is_response = header[2] & 0x80 != 0;
    let is_success = header[3] & 0x0f == 0;
    header[..2] == id.to_be_bytes() && is_response && is_success && header[6..8] != [0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_what_rfc_1035_says() {
        let expected =
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x0akubernetes\x07default\x03svc\x07cluster\x05local\0\0\x01\0\x01";
        assert_eq!(question(0x1234), expected);
    }

    #[test]
    fn only_a_successful_answer_counts() {
        let answer = |flags: [u8; 2], count: u8| [&[0, 7], &flags[..], &[0, 1, 0, count, 0, 0, 0, 0]].concat();
        assert!(answers(&answer([0x85, 0], 1), 7));
        assert!(!answers(&answer([0x85, 0], 1), 8), "another question's");
        assert!(!answers(&answer([0x85, 0], 0), 7), "no records");
        assert!(!answers(&answer([0x85, 3], 1), 7), "NXDOMAIN");
        assert!(!answers(&answer([0x01, 0], 1), 7), "a query");
        assert!(!answers(&[0; 11], 0));
    }
}
