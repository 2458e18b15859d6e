//! Podwire overlay.
