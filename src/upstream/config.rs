//! `[fetch]`: how patiently upstreams are asked.

use std::time::Duration;

use crate::runtime::{Bytes, Percent, Section};

use super::proxy::ProxyConfig;

/// Deadlines, retries and limits of the registry client.
#[derive(Debug, Clone)]
pub struct FetchConfig {
    /// Until a connection stands: name, TCP and TLS together.
    pub connect_timeout: Duration,
    /// Until a response's head is there, with everything that it takes: tokens, redirects, connecting.
    pub header_timeout: Duration,
    /// A body that brings fewer bytes per second than this …
    pub minimum_speed: Bytes,
    /// … over this long is a broken transfer.
    pub stall_window: Duration,
    /// How often each endpoint is asked before a call fails; more than once only where that can help.
    pub attempts: u32,
    /// The first wait between two rounds; it doubles.
    pub backoff: Duration,
    /// The longest wait between two rounds.
    pub backoff_cap: Duration,
    /// A download that has got no new byte for this long, however often it was resumed, fails.
    pub give_up_after: Duration,
    /// How many redirects are followed for one request.
    pub max_redirects: usize,
    /// Blob transfers at once from one endpoint; more wait for their turn, `give_up_after` at most.
    pub max_downloads_per_endpoint: usize,
    /// Idle connections that are kept for one host.
    pub idle_connections: usize,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// After which time no further request uses a connection, however busy it is.
    pub connection_max_age: Duration,
    /// The share of an upstream's quota that is kept for pulls.
    pub quota_reserve: Percent,
    /// The proxies between this edge and its upstreams.
    pub proxy: ProxyConfig,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(15),
            minimum_speed: Bytes::kib(1),
            stall_window: Duration::from_secs(30),
            attempts: 3,
            backoff: Duration::from_millis(100),
            backoff_cap: Duration::from_secs(5),
            give_up_after: Duration::from_mins(1),
            max_redirects: 5,
            max_downloads_per_endpoint: 128,
            idle_connections: 32,
            idle_timeout: Duration::from_secs(90),
            connection_max_age: Duration::from_hours(1),
            quota_reserve: Percent::new(10),
            proxy: ProxyConfig::default(),
        }
    }
}

impl FetchConfig {
    /// Reads `[fetch]`.
    pub fn read(section: &Section<'_>) -> Self {
        let default = Self::default();
        let config = Self {
            connect_timeout: section.read("connect_timeout", default.connect_timeout),
            header_timeout: section.read("header_timeout", default.header_timeout),
            minimum_speed: section.read("minimum_speed", default.minimum_speed),
            stall_window: section.read("stall_window", default.stall_window),
            attempts: section.read("attempts", default.attempts),
            backoff: section.read("backoff", default.backoff),
            backoff_cap: section.read("backoff_cap", default.backoff_cap),
            give_up_after: section.read("give_up_after", default.give_up_after),
            max_redirects: section.read("max_redirects", default.max_redirects),
            max_downloads_per_endpoint: section
                .read("max_downloads_per_endpoint", default.max_downloads_per_endpoint),
            idle_connections: section.read("idle_connections", default.idle_connections),
            idle_timeout: section.read("idle_timeout", default.idle_timeout),
            connection_max_age: section.read("connection_max_age", default.connection_max_age),
            quota_reserve: section.read("quota_reserve", default.quota_reserve),
            proxy: ProxyConfig::read(section),
        };
        config.check(section);
        config
    }

    fn check(&self, section: &Section<'_>) {
        let waits = [
            ("connect_timeout", self.connect_timeout),
            ("header_timeout", self.header_timeout),
            ("stall_window", self.stall_window),
            ("backoff", self.backoff),
            ("give_up_after", self.give_up_after),
            ("connection_max_age", self.connection_max_age),
        ];
        for (key, wait) in waits {
            if wait.is_zero() {
                section.mistake(key, "must be longer than nothing");
            }
        }
        if self.attempts == 0 {
            section.mistake("attempts", "must be at least 1");
        }
        if self.max_downloads_per_endpoint == 0 {
            section.mistake("max_downloads_per_endpoint", "must be at least 1");
        }
        if self.backoff_cap < self.backoff {
            section.mistake("backoff_cap", "must not be shorter than `backoff`");
        }
    }
}
