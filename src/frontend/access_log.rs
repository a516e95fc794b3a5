//! One line per request, written when its answer has left or broken.

use std::sync::Arc;

use hyper::{Method, StatusCode, Version};
use tokio::time::Instant;

use super::client::{Secured, Source};
use super::service::Metrics;
use crate::pull;

/// What is known of a request before it is answered.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: String,
    /// Whom it comes from, behind trusted proxies.
    pub(super) client: Source,
    pub(super) version: Version,
    pub(super) tls: Option<Arc<Secured>>,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) namespace: Option<String>,
    pub(super) range: Option<String>,
    pub(super) user_agent: Option<String>,
    pub(super) started: Instant,
}

/// A request with its answer, logged when dropped.
#[derive(Debug)]
pub(super) struct Record {
    request: Request,
    status: StatusCode,
    cache_status: Option<String>,
    promised: u64,
    sent: u64,
    head_after: std::time::Duration,
    broken: Option<pull::Error>,
    metrics: Arc<Metrics>,
}

impl Record {
    /// `promised` is the length of the body that the answer announces.
    pub(super) fn new(
        request: Request,
        status: StatusCode,
        cache_status: Option<String>,
        promised: u64,
        metrics: Arc<Metrics>,
    ) -> Self {
        let head_after = request.started.elapsed();
        Self { request, status, cache_status, promised, sent: 0, head_after, broken: None, metrics }
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        self.metrics.sent_bytes.inc_by(bytes as u64);
    }

    pub(super) fn broken(&mut self, error: &pull::Error) {
        self.broken = Some(error.clone());
    }

    fn outcome(&self) -> &'static str {
        if self.broken.is_some() {
            "broken"
        } else if self.sent < self.promised {
            "client left"
        } else {
            "complete"
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Request { id, client, version, tls, method, path, namespace, range, user_agent, started } =
            &self.request;
        if let Some(error) = &self.broken {
            tracing::warn!(request_id = id, path, %error, sent_bytes = self.sent, "an answer was broken");
        }
        tracing::info!(
            target: "clawhub_edge::access",
            request_id = id,
            client = %client,
            protocol = ?version,
            tls = tls.as_ref().map(|tls| tls.version),
            client_certificate = tls.as_ref().and_then(|tls| tls.certificate.as_deref()),
            method = %method,
            path,
            ns = namespace,
            range,
            status = self.status.as_u16(),
            sent_bytes = self.sent,
            head_ms = millis(self.head_after),
            total_ms = millis(started.elapsed()),
            cache = self.cache_status,
            outcome = self.outcome(),
            user_agent,
            "request"
        );
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
