//! All controllers together: on a simulated cluster in any order of events, and against the real API server.

mod cluster;
mod fixtures;
mod rollout;
mod server;
mod sim;
