//! Podwire agent.
