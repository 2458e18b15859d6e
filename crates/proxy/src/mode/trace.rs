//! What the tracers of all modes say, and what those over iptables' rules are asked.

use std::net::IpAddr;

use podwire_model::Protocol;

use crate::plan::Backend;

/// The first packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Who sends it.
    pub source: IpAddr,
    /// Where to.
    pub destination: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port it is sent to.
    pub port: u16,
    /// The interface it comes in by; `None` if it is made here.
    pub input: Option<&'a str>,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Goes on as it is.
    Untouched,
    /// Refused with an answer.
    Rejected,
    /// Vanishes.
    Dropped,
    /// Goes to a backend.
    Sent {
        /// Which.
        to: Backend,
        /// Whether the source is replaced.
        masqueraded: bool,
    },
}

/// A rule that this machine cannot evaluate: rules and tracer have gone apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("chain {chain}: {problem}: {rule}")]
pub struct Unknown {
    /// Where.
    pub chain: String,
    /// The rule, as text.
    pub rule: String,
    /// What about it.
    pub problem: String,
}
