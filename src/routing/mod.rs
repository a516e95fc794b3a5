//! From where: the upstreams of this edge, and which of them a request means.
//!
//! Owns the upstream table ([`RoutingConfig`], [`Upstream`], [`Endpoint`]), the lookup ([`Routes`]) and where
//! each endpoint's credential comes from ([`Credential`]).
//!
//! Invariant: the world is closed. What a client sends (`ns`, `Host`, a path prefix) is only ever compared
//! with what the operator configured; no part of it becomes an address to connect to.
//!
//! Left out: connections, health and the use of credentials, which are the registry client's.

mod builtin;
mod caller;
mod config;
mod credential;
mod docker_config;
mod endpoint;
mod helper;
mod pattern;
mod routes;
mod site;

pub use caller::{Caller, CallerId};
pub use config::RoutingConfig;
pub use credential::{Credential, CredentialError, Login};
pub use endpoint::{Access, Endpoint, Rewrite, RewriteError, TlsSettings, Upstream, UpstreamName};
pub use helper::Helper;
pub use pattern::ImagePattern;
pub use routes::{Route, Routes, RoutingError};
pub use site::{Site, SiteError};
