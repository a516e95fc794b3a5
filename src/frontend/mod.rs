//! What clients see: listeners, HTTP/1.1, the pull API, limits and the access log.
//!
//! [`respond`] is the only place that knows which error is which status. A body that cannot be
//! completed is broken (the connection closes before `Content-Length`), never ended cleanly.

mod access_log;
mod body;
mod config;
mod connection;
mod listener;
mod multipart;
mod referrers;
mod respond;
mod service;

pub use config::{FrontendConfig, Limits, ListenConfig};
pub use listener::Listeners;
pub use service::{Metrics, Service};
