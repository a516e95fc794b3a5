//! One line per request, written when its answer has left or broken.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::{Method, StatusCode, Uri, Version};
use tokio::time::Instant;

use super::accounts::Accounts;
use super::client::{Secured, Source};
use super::respond::{Decision, cache_status};
use crate::pull::{self, Freshness};
use crate::telemetry::Line;

/// The outcome of an answer that has left as a whole.
pub(super) const COMPLETE: &str = "complete";

/// Ties an answer to its lines in the logs of everybody it has come through.
#[derive(Debug)]
pub(super) enum RequestId {
    /// As the client says.
    Given(HeaderValue),
    /// 64 random bits in hexadecimal.
    Made([u8; 16]),
}

impl RequestId {
    pub(super) fn random() -> Self {
        let mut id = [0; 16];
        let mut bits = fastrand::u64(..);
        for digit in &mut id {
            *digit = b"0123456789abcdef"[(bits & 0xf) as usize];
            bits >>= 4;
        }
        Self::Made(id)
    }

    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Given(id) => text(id),
            Self::Made(id) => str::from_utf8(id).ok(),
        }
        .unwrap_or_default()
    }
}

/// What is known of a request before it is answered. The values are those of its head, held rather than copied.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: RequestId,
    /// Whom it comes from, behind trusted proxies.
    pub(super) client: Source,
    pub(super) version: Version,
    pub(super) tls: Option<Arc<Secured>>,
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) range: Option<HeaderValue>,
    pub(super) user_agent: Option<HeaderValue>,
    pub(super) started: Instant,
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) freshness: Option<Freshness>,
    pub(super) decision: Decision,
    /// The length of the body that the answer announces.
    pub(super) promised: u64,
    /// From the head of the request to the head of the answer.
    pub(super) head_after: Duration,
}

/// A request with its answer, logged when dropped: when the body and every frame of it are gone.
#[derive(Debug)]
pub(super) struct Record {
    request: Request,
    answered: Answered,
    sent: AtomicU64,
    broken: OnceLock<pull::Error>,
    accounts: Arc<Accounts>,
}

impl Record {
    pub(super) fn new(request: Request, answered: Answered, accounts: Arc<Accounts>) -> Self {
        Self { request, answered, sent: AtomicU64::new(0), broken: OnceLock::new(), accounts }
    }

    /// Counts bytes of the body that have been written to the connection.
    pub(super) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.accounts.sent_bytes.inc_by(bytes as u64);
    }

    /// Notes why the body ends early; the first reason counts.
    pub(super) fn broken(&self, error: &pull::Error) {
        self.broken.get_or_init(|| error.clone());
    }

    fn outcome(&self) -> &'static str {
        if self.broken.get().is_some() {
            "broken"
        } else if self.sent.load(Ordering::Relaxed) < self.answered.promised {
            "client left"
        } else {
            COMPLETE
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Request { id, client, version, tls, method, uri, range, user_agent, started } = &self.request;
        let sent = self.sent.load(Ordering::Relaxed);
        if let Some(error) = self.broken.get() {
            let (request_id, path) = (id.as_str(), uri.path());
            tracing::warn!(request_id, path, %error, sent_bytes = sent, "an answer was broken");
        }
        let entry = Entry {
            id: id.as_str(),
            client: *client,
            version: *version,
            tls: tls.as_deref(),
            method: method.as_str(),
            path: uri.path(),
            query: uri.query(),
            range: range.as_ref().and_then(text),
            user_agent: user_agent.as_ref().and_then(text),
            started: *started,
            answered: &self.answered,
            sent,
            outcome: self.outcome(),
        };
        entry.write(&self.accounts);
    }
}

/// A request with its answer, as a line shows them.
pub(super) struct Entry<'a> {
    pub(super) id: &'a str,
    pub(super) client: Source,
    pub(super) version: Version,
    pub(super) tls: Option<&'a Secured>,
    pub(super) method: &'a str,
    /// The path alone is shown: a query may carry what is nobody's business.
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    pub(super) range: Option<&'a str>,
    pub(super) user_agent: Option<&'a str>,
    pub(super) started: Instant,
    pub(super) answered: &'a Answered,
    pub(super) sent: u64,
    pub(super) outcome: &'static str,
}

impl Entry<'_> {
    pub(super) fn write(&self, accounts: &Accounts) {
        let Answered { status, freshness, decision, head_after, .. } = self.answered;
        accounts.log.write(|line| {
            line.quoted("request_id", self.id);
            match self.client {
                Source::Socket(address) => line.address("client", address),
                Source::Forwarded(_) | Source::Unix => line.word("client", &self.client.to_string()),
            }
            line.word("protocol", protocol(self.version));
            if let Some(tls) = self.tls {
                line.quoted("tls", tls.version);
                if let Some(certificate) = &tls.certificate {
                    line.quoted("client_certificate", certificate);
                }
            }
            line.word("method", self.method);
            line.quoted("path", self.path);
            optional(line, "ns", self.query.and_then(namespace));
            optional(line, "range", self.range);
            line.number("status", status.as_u16().into());
            line.number("sent_bytes", self.sent);
            line.number("head_ms", millis(*head_after));
            line.number("total_ms", millis(self.started.elapsed()));
            optional(line, "cache", freshness.as_ref().map(cache_status).as_deref());
            line.quoted("outcome", self.outcome);
            if let Some(who) = &decision.who {
                line.quoted("who", &who.to_string());
            }
            optional(line, "reason", decision.reason);
            optional(line, "user_agent", self.user_agent);
        });
    }
}

fn optional(line: &mut Line<'_>, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        line.quoted(name, value);
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        // There are no others, but the type is open.
        _ => "HTTP/1.1",
    }
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok()
}

/// The upstream that the client named, as it wrote it.
fn namespace(query: &str) -> Option<&str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, _)| *name == "ns").map(|(_, value)| value)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
