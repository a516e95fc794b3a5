//! The registry client: how this edge asks an upstream.
//!
//! One [`Client`] serves the whole process. Each endpoint of each upstream is a `Remote` with its own
//! connections, credential, tokens and health; a call asks the endpoints in order, in rounds with a jittered
//! backoff between them, and a [`Download`] resumes at the exact byte, at the same endpoint or the next.
//!
//! ```text
//! Client ── Plan (which endpoint next?) ── Remote ── Health and Budget (may it be asked?)
//!                                            ├── Auth (challenge, token, credential)
//!                                            └── exchange (headers, redirects, deadline) ── hyper
//! ```
//!
//! Invariants:
//! - A credential goes to the endpoint it is configured for (a caller's, to those of the upstream he names) and to the
//!   token services that the configuration allows for it, and nowhere else: not after a redirect, not to a realm that
//!   only a challenge names. What one credential was given is never sent for another.
//! - Nothing waits for ever: connecting, response heads, bodies, resuming and queueing have each their limit.
//! - "Not found" means that every endpoint said so. While one could not be asked, the answer is its failure.
//! - A download never yields a byte twice and never ends cleanly before its declared size.
//!
//! Left out: whether the bytes are right. A blob's digest is computed by whoever stores it; manifests, which
//! are small, are checked here.

mod auth;
mod body;
mod budget;
mod client;
mod config;
mod connect;
mod download;
mod error;
mod exchange;
mod health;
mod metrics;
mod plan;
mod proxy;
mod quota;
mod redirect;
mod remote;
mod response;

pub use budget::Purpose;
pub use client::{BlobHead, CatalogPage, Client, FetchedManifest, ManifestHead, TagPage};
pub use config::FetchConfig;
pub use connect::ClientError;
pub use download::Download;
pub use error::{Blame, Error, Place, Stage, Whose};
pub use metrics::Metrics;
pub use proxy::ProxyConfig;
