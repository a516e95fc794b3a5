//! ClawHub Edge: a pull-through caching edge proxy for container registries.
//!
//! The rooms below stand in order: a module may use only those above it. `tests/layers.rs` reads
//! this list and rejects upward paths.

pub mod oci;
pub mod runtime;
pub mod telemetry;
pub mod database;
pub mod routing;
pub mod upstream;
pub mod store;
pub mod auth;
pub mod pull;
pub mod frontend;
pub mod config;
pub mod app;
pub mod cli;
