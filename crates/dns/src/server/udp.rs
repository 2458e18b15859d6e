//! The UDP loop.

use std::{sync::Arc, time::Duration};

use tokio::net::UdpSocket;
use tracing::debug;

use super::{Outcome, Service, answer_later};
use crate::message::Transport;

/// Room for a query; longer ones are cut and then malformed. Bytes.
const MAX_QUERY: usize = 4096;
/// How long to rest after the socket reported an error, so that a lasting one does not keep a core busy.
const REST: Duration = Duration::from_millis(10);

/// Answers datagrams until it is aborted. Several may serve one socket.
pub(super) async fn serve(socket: Arc<UdpSocket>, service: Arc<Service>) {
    let mut packet = vec![0; MAX_QUERY];
    let mut buffer = Vec::new();
    loop {
        let (length, client) = match socket.recv_from(&mut packet).await {
            Ok(received) => received,
            Err(error) => {
                debug!("udp receive: {error}");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        match service.handle(&packet[..length], client, Transport::Udp, std::mem::take(&mut buffer)) {
            Outcome::Nothing => {}
            Outcome::Answer(answer) => {
                if let Err(error) = socket.send_to(&answer, client).await {
                    debug!("udp answer to {client}: {error}");
                }
                buffer = answer;
            }
            Outcome::Later(query, reply) => {
                let Ok(permit) = service.waiting.clone().try_acquire_owned() else { continue };
                let socket = socket.clone();
                tokio::spawn(async move {
                    let answer = answer_later(query, reply).await;
                    if let Err(error) = socket.send_to(&answer, client).await {
                        debug!("udp answer to {client}: {error}");
                    }
                    drop(permit);
                });
            }
        }
    }
}
