//! The kernel's own IPVS.

use super::{
    Ipvs,
    types::{Change, Found, Info, Service, ServiceKey, Timeouts},
    wire::{self, command},
};
use crate::{
    Error, Result,
    netlink::{Messages, Protocol, Socket, flags, generic, push_message},
};

/// How many changes go into one system call: far below what the receive queue holds, should all be refused.
const BATCH: usize = 1024;

/// IPVS of the network namespace that the opening thread was in.
#[derive(Debug)]
pub struct Kernel {
    socket: Socket,
    family: u16,
}

impl Kernel {
    /// Opens the netlink socket and looks IPVS up.
    ///
    /// # Errors
    /// Not found ([`Error::is_not_found`]) when the kernel has no IPVS: module `ip_vs` is not loaded.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::open(Protocol::Generic)?;
        let what = format_args!("find IPVS in the kernel (is the module ip_vs loaded?)");
        let family = socket.family("IPVS", what)?;
        Ok(Self { socket, family })
    }

    fn get<T>(&mut self, command: u8, decode: fn(&[u8]) -> Option<T>, what: &str) -> Result<T> {
        let answer: Messages =
            self.socket.request(self.family, 0, &generic::header(command, 1), format_args!("{what}"))?;
        let decoded = answer.first().and_then(|message| decode(message.payload));
        decoded.ok_or_else(|| Error::malformed(what, "no such answer"))
    }
}

impl Ipvs for Kernel {
    fn info(&mut self) -> Result<Info> {
        self.get(command::GET_INFO, wire::info, "ask IPVS for its version")
    }

    fn timeouts(&mut self) -> Result<Timeouts> {
        self.get(command::GET_CONFIG, wire::timeouts, "read IPVS timeouts")
    }

    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()> {
        let what = format_args!("set IPVS timeouts {timeouts:?}");
        self.socket.request(self.family, 0, &wire::set_timeouts(timeouts), what).map(drop)
    }

    fn services(&mut self) -> Result<Vec<Service>> {
        let request = generic::header(command::GET_SERVICE, 1);
        let listed = self.socket.dump(self.family, 0, &request, format_args!("list virtual services"))?;
        Ok(listed.iter().filter_map(|message| wire::service(message.payload)).collect())
    }

    fn destinations(&mut self, service: &ServiceKey) -> Result<Vec<Found>> {
        let what = format_args!("list destinations of virtual service {service}");
        let listed = self.socket.dump(self.family, 0, &wire::get_destinations(service), what)?;
        Ok(listed.iter().filter_map(|message| wire::destination(message.payload, service.family())).collect())
    }

    fn change(&mut self, changes: &[Change]) -> Result<()> {
        let mut failed = None;
        for batch in changes.chunks(BATCH) {
            let (mut bytes, mut sequences) = (Vec::with_capacity(batch.len() * 160), Vec::with_capacity(batch.len()));
            for (number, change) in batch.iter().enumerate() {
                // Refusals are reported in any case; that the last one is done says that all were looked at.
                let acknowledge = if number + 1 == batch.len() { flags::ACK } else { 0 };
                let sequence = self.socket.next_sequence();
                push_message(&mut bytes, self.family, flags::REQUEST | acknowledge, sequence, &wire::encode(change));
                sequences.push(sequence);
            }
            let answer = self.socket.batch(&bytes, format_args!("change IPVS"))?;
            let last = sequences.last().copied().unwrap_or_default();
            let heard = answer.acknowledged.contains(&last) || answer.refused.iter().any(|r| r.sequence == last);
            if !heard {
                return Err(Error::Overrun { what: "change IPVS".to_owned() });
            }
            if let (None, Some(mut refusal)) = (&failed, answer.refused.into_iter().next()) {
                let at = sequences.iter().position(|sequence| *sequence == refusal.sequence);
                failed = Some(match at.and_then(|at| batch.get(at)) {
                    Some(change) => {
                        refusal.message = refusal.message.or_else(|| change.explain(refusal.errno));
                        refusal.into_error(format_args!("{change}"))
                    }
                    None => refusal.into_error(format_args!("change IPVS")),
                });
            }
        }
        failed.map_or(Ok(()), Err)
    }
}
