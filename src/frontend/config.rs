//! `[[listen]]` and `[limits]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::address::ListenAddress;
use super::tls::TlsConfig;
use crate::runtime::{Bytes, Network, Section, Setting, Timestamp, keyword_setting};

/// Where the edge listens without configuration: nobody else can reach it there.
const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5050);

/// The permissions of a Unix socket's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl Setting for FileMode {
    const EXPECTED: &'static str = "permissions in octal such as \"0660\"";
    fn from_text(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(Self(mode)),
            Ok(_) => Err("more than 0777".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
    fn to_text(&self) -> String {
        format!("{:04o}", self.0)
    }
}

/// Whether connections begin with a PROXY header.
///
/// There is no "optional": whoever may leave the header out may also write one, and be whom he likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// None does.
    Off,
    /// Every one does, version 1 or 2, and comes from a trusted proxy.
    Required,
}

keyword_setting!(ProxyProtocol, "\"off\" or \"required\"",
    "off" => ProxyProtocol::Off,
    "required" => ProxyProtocol::Required,
);

/// One listener.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// Where it is.
    pub address: ListenAddress,
    /// Who may connect to its Unix socket.
    pub mode: FileMode,
    /// `None`: plain.
    pub tls: Option<TlsConfig>,
    /// Whether its connections begin with a PROXY header.
    pub proxy_protocol: ProxyProtocol,
    /// Whose word counts about where a connection or request comes from.
    pub trusted_proxies: Vec<Network>,
}

impl ListenConfig {
    /// A plain listener that trusts nobody.
    pub fn plain(address: impl Into<ListenAddress>) -> Self {
        Self {
            address: address.into(),
            mode: FileMode(0o660),
            tls: None,
            proxy_protocol: ProxyProtocol::Off,
            trusted_proxies: Vec::new(),
        }
    }

    fn read(table: &Section<'_>) -> Option<Self> {
        let address: Option<ListenAddress> = table.required("address");
        let plain = Self::plain(DEFAULT_ADDRESS);
        let mut config = Self {
            mode: table.read("mode", plain.mode),
            tls: TlsConfig::read(table),
            proxy_protocol: table.read("proxy_protocol", plain.proxy_protocol),
            trusted_proxies: table.list("trusted_proxies", plain.trusted_proxies),
            address: plain.address,
        };
        config.address = address?;
        let is_unix = matches!(config.address, ListenAddress::Unix(_));
        if config.mode != plain.mode && !is_unix {
            table.mistake("mode", "only a Unix socket that this process makes has one");
        }
        if config.proxy_protocol == ProxyProtocol::Required && config.trusted_proxies.is_empty() && !is_unix {
            table.mistake("trusted_proxies", "must name the proxies whose PROXY headers are believed");
        }
        Some(config)
    }

    /// Whether others may read what is said on it.
    pub fn is_open_to_ears(&self) -> bool {
        let is_elsewhere = matches!(&self.address, ListenAddress::Tcp(address) if !address.ip().to_canonical().is_loopback());
        is_elsewhere && self.tls.is_none()
    }

    /// Whether somebody who was not asked who he is may reach this listener from elsewhere; `address` is where it
    /// really is. Behind a proxy, its own address says nothing about that.
    pub fn is_exposed_at(&self, address: &ListenAddress) -> bool {
        if self.tls.as_ref().is_some_and(TlsConfig::authenticates) {
            return false;
        }
        let is_proxied = self.proxy_protocol == ProxyProtocol::Required || !self.trusted_proxies.is_empty();
        match address {
            ListenAddress::Tcp(address) => is_proxied || !address.ip().to_canonical().is_loopback(),
            ListenAddress::Unix(_) => is_proxied,
            // Judged once systemd has passed it.
            ListenAddress::Systemd(_) => false,
        }
    }
}

/// What one client may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Client connections at once, over all listeners for pulls; more wait in the kernel's queue. On HTTP/2, each
    /// request beside the first of its connection counts as one.
    pub max_connections: usize,
    /// How long a client may take to say what it speaks, TLS included, and then to send the head of a request; how
    /// long a connection may stay idle.
    pub header_timeout: Duration,
    /// The longest head of a request.
    pub max_header_size: Bytes,
    /// Requests at once on one HTTP/2 connection.
    pub max_streams: u32,
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
    /// Whether nobody said where to listen: sockets that systemd passes then stand in for [`Self::listen`].
    pub is_default: bool,
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
        let mut listen: Vec<_> = tables.iter().filter_map(ListenConfig::read).collect();
        let overridden = root.list_override::<ListenAddress>("listen");
        let is_default = tables.is_empty() && overridden.is_none();
        if tables.is_empty() {
            listen.push(ListenConfig::plain(DEFAULT_ADDRESS));
        }
        if let Some(addresses) = overridden {
            listen = addresses.into_iter().map(ListenConfig::plain).collect();
        }
        let limits = root.section("limits");
        let config = Self {
            listen,
            is_default,
            limits: Limits {
                max_connections: limits.read("max_connections", 10_000),
                header_timeout: limits.read("header_timeout", Duration::from_mins(1)),
                max_header_size: limits.read("max_header_size", Bytes::kib(32)),
                max_streams: limits.read("max_streams", 100),
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
        if config.limits.max_streams == 0 {
            limits.mistake("max_streams", "must be at least 1");
        }
        config
    }

    /// The listeners that others reach without being asked who they are, as far as the configuration tells.
    pub fn exposed(&self) -> Vec<ListenAddress> {
        let exposed = self.listen.iter().filter(|listen| listen.is_exposed_at(&listen.address));
        exposed.map(|listen| listen.address.clone()).collect()
    }

    /// What is odd but keeps nothing from working.
    pub fn warnings(&self, now: Timestamp) -> Vec<String> {
        self.listen
            .iter()
            .filter_map(|listen| listen.tls.as_ref())
            .flat_map(|tls| tls.warnings(now))
            .collect()
    }
}
