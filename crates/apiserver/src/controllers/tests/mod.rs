//! All controllers together: on a simulated cluster in any order of events, and against the real API server.

mod cluster;
mod endpoints;
mod fixtures;
mod order;
mod rollout;
mod scheduling;
mod server;
mod sim;
