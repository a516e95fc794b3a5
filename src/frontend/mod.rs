//! What clients see: listeners, TLS, HTTP/1.1 and HTTP/2, the pull API, limits and the access log.
//!
//! [`respond`] is the only place that knows which error is which status. A body that cannot be
//! completed is broken (the connection closes before `Content-Length`, the stream is reset), never ended cleanly.

mod access_log;
mod accounts;
mod address;
mod appetite;
mod bind;
mod body;
mod client;
mod config;
mod connection;
mod express;
mod file_writer;
mod head;
mod headers;
mod http1;
mod http2;
mod listener;
mod multipart;
mod opening;
mod outbox;
mod paced;
mod partial_list;
mod passed;
mod proxy_protocol;
mod referrers;
mod requests;
mod respond;
mod service;
mod tls;
mod tokens;

pub use accounts::Accounts;
pub use address::{Endpoint, ListenAddress};
pub use bind::BindError;
pub use config::{FileMode, FrontendConfig, Limits, ListenConfig, ProxyProtocol};
pub use listener::Listeners;
pub use passed::{PassedError, PassedSockets};
pub use service::Service;
pub use tls::{CertificateFiles, ClientCertificates, TlsConfig, TlsError, leaf_names};
