//! What the front tells its operator: counters, and the access log.

use std::sync::OnceLock;
use std::time::Duration;

use hyper::StatusCode;
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

use crate::telemetry::{self, AccessLog, Buckets, counter, counters, gauge, histogram};

/// What a request asks for, as the counters call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Base,
    Manifest,
    Blob,
    Tags,
    Referrers,
    Catalog,
    /// Of the token service.
    Token,
    Write,
    /// Nothing of the pull API.
    Invalid,
    /// Anything, of a client that got no seat.
    Refused,
    /// Health and metrics.
    Operator,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Base,
        Self::Manifest,
        Self::Blob,
        Self::Tags,
        Self::Referrers,
        Self::Catalog,
        Self::Token,
        Self::Write,
        Self::Invalid,
        Self::Refused,
        Self::Operator,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Catalog => "catalog",
            Self::Token => "token",
            Self::Write => "write",
            Self::Invalid => "invalid",
            Self::Refused => "refused",
            Self::Operator => "operator",
        }
    }
}

/// The statuses of answers that a busy edge gives.
const USUAL: [StatusCode; 4] =
    [StatusCode::OK, StatusCode::PARTIAL_CONTENT, StatusCode::NOT_MODIFIED, StatusCode::NOT_FOUND];

/// The accounts of all listeners.
#[derive(Debug)]
pub struct Accounts {
    requests: IntCounterVec,
    // Found once: a look-up by labels hashes them and takes a lock that all workers share.
    usual_requests: [[OnceLock<IntCounter>; USUAL.len()]; Kind::ALL.len()],
    head_seconds: Histogram,
    pub(super) sent_bytes: IntCounter,
    pub(super) connections: IntGauge,
    pub(super) log: AccessLog,
}

impl Accounts {
    /// Registers the counters.
    pub fn register(metrics: &telemetry::Metrics, log: AccessLog) -> Self {
        Self {
            requests: counters(
                metrics,
                "http_requests_total",
                "Requests answered, by what was asked for and the status.",
                &["kind", "status"],
            ),
            usual_requests: Default::default(),
            head_seconds: histogram(
                metrics,
                "http_response_head_seconds",
                "Time from the head of a request to the head of its answer.",
                Buckets::Latency,
            ),
            sent_bytes: counter(metrics, "http_sent_bytes_total", "Bytes of bodies handed to clients."),
            connections: gauge(metrics, "http_connections", "Open client connections."),
            log,
        }
    }

    /// Counts an answer whose head is ready.
    pub(super) fn count(&self, kind: Kind, status: StatusCode, head_after: Duration) {
        let find = || self.requests.with_label_values(&[kind.as_str(), status.as_str()]);
        match USUAL.iter().position(|usual| *usual == status) {
            Some(usual) => self.usual_requests[kind as usize][usual].get_or_init(find).inc(),
            None => find().inc(),
        }
        self.head_seconds.observe(head_after.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{LogConfig, LogFormat};

    #[test]
    fn every_kind_has_its_own_counters() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
        let metrics = telemetry::Metrics::new();
        let log = LogConfig { format: LogFormat::Text, level: "off".to_owned() }.start();
        let accounts = Accounts::register(&metrics, log.access().clone());
        for kind in Kind::ALL {
            for status in USUAL.into_iter().chain([StatusCode::BAD_GATEWAY]) {
                accounts.count(kind, status, Duration::ZERO);
                accounts.count(kind, status, Duration::ZERO);
            }
        }
        for kind in Kind::ALL {
            let counted = metrics.sum("http_requests_total", Some(("kind", kind.as_str())));
            assert_eq!(counted.to_string(), "10", "{kind:?}");
        }
        for status in ["200", "304", "502"] {
            let counted = metrics.sum("http_requests_total", Some(("status", status)));
            assert_eq!(counted.to_string(), (2 * Kind::ALL.len()).to_string(), "{status}");
        }
    }
}
