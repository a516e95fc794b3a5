//! `[[listen]]` and `[limits]`.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::runtime::{Bytes, Section};

/// Where the edge listens without configuration: nobody else can reach it there.
const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5050);

/// One listener.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
}

/// What one client may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Client connections at once, over all listeners for pulls; more wait in the kernel's queue.
    pub max_connections: usize,
    /// How long a client may take to send the head of a request, and how long a connection may
    /// stay idle.
    pub header_timeout: Duration,
    /// The longest head of a request.
    pub max_header_size: Bytes,
    /// How long a client may accept nothing of an answer.
    pub write_timeout: Duration,
    /// How long answers under way may go on after a signal to stop.
    pub drain_timeout: Duration,
}

/// Everything the front needs to know.
#[derive(Debug, Clone)]
pub struct FrontendConfig {
    /// The listeners, at least one.
    pub listen: Vec<ListenConfig>,
    /// What one client may take.
    pub limits: Limits,
    /// Where the metrics are served; `None` is on every listener, at `/metrics`.
    pub metrics_address: Option<SocketAddr>,
}

impl FrontendConfig {
    /// Reads `[[listen]]`, `[limits]` and `[metrics]`. `listen.address` is the flag's way to give
    /// one listener.
    pub fn read(root: &Section<'_>) -> Self {
        let tables = root.sections("listen");
        let mut listen: Vec<_> = tables
            .iter()
            .filter_map(|table| Some(ListenConfig { address: table.required("address")? }))
            .collect();
        if tables.is_empty() {
            listen.push(ListenConfig { address: DEFAULT_ADDRESS });
        }
        if let Some(addresses) = root.list_override::<SocketAddr>("listen") {
            listen = addresses.into_iter().map(|address| ListenConfig { address }).collect();
        }
        let limits = root.section("limits");
        let config = Self {
            listen,
            limits: Limits {
                max_connections: limits.read("max_connections", 10_000),
                header_timeout: limits.read("header_timeout", Duration::from_mins(1)),
                max_header_size: limits.read("max_header_size", Bytes::kib(32)),
                write_timeout: limits.read("write_timeout", Duration::from_mins(1)),
                drain_timeout: limits.read("drain_timeout", Duration::from_secs(30)),
            },
            metrics_address: root.section("metrics").optional("address"),
        };
        if config.limits.max_connections == 0 {
            limits.mistake("max_connections", "must be at least 1");
        }
        if config.limits.max_header_size < Bytes::kib(8) {
            limits.mistake("max_header_size", "must be at least 8KiB: clients send long tokens");
        }
        config
    }
}
