//! The headers of answers, for hyper and for what is written without it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::time::Duration;

use arrayvec::{ArrayString, ArrayVec};
use hyper::HeaderMap;
use hyper::header::{self, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::access_log::RequestId;
use super::respond::cache_status;
use crate::oci::{Digest, concat};
use crate::pull::{Freshness, ManifestAnswer};

pub(super) const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
pub(super) const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// The longest entity tag: a SHA-512 digest in quotes.
const ETAG: usize = 2 + "sha512:".len() + 128;

/// What takes headers. A value that is none, which can only come from an upstream, is left out.
pub(super) trait Headers {
    fn constant(&mut self, name: HeaderName, value: &'static str);
    fn text(&mut self, name: HeaderName, value: &str);

    fn number(&mut self, name: HeaderName, value: u64) {
        self.text(name, itoa::Buffer::new().format(value));
    }

    /// The entity of this digest.
    fn entity(&mut self, digest: &Digest) {
        self.text(CONTENT_DIGEST, &digest.text());
        self.text(header::ETAG, &etag(digest));
    }

    /// What the answer to a manifest says of it.
    fn manifest(&mut self, manifest: &ManifestAnswer) {
        match &manifest.media_type {
            Cow::Borrowed(known) => self.constant(header::CONTENT_TYPE, known),
            Cow::Owned(other) => self.text(header::CONTENT_TYPE, other),
        }
        self.entity(&manifest.digest);
    }

    /// What every answer says.
    fn common(&mut self, id: &RequestId, freshness: Option<&Freshness>) {
        self.constant(API_VERSION, "registry/2.0");
        self.text(REQUEST_ID, id.as_str());
        if let Some(freshness) = freshness {
            self.number(header::AGE, freshness.age.as_secs());
            self.text(CACHE_STATUS, &cache_status(freshness));
        }
    }
}

impl Headers for HeaderMap {
    fn constant(&mut self, name: HeaderName, value: &'static str) {
        self.insert(name, HeaderValue::from_static(value));
    }

    fn text(&mut self, name: HeaderName, value: &str) {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.insert(name, value);
        }
    }
}

/// Whether a value is made of printable characters. It is looked at to its end, so that the compiler can look at many
/// bytes at once.
pub(super) fn is_printable(value: &[u8]) -> bool {
    value.iter().fold(true, |all, byte| all & matches!(byte, b' '..=b'~'))
}

/// The digest in quotes.
pub(super) fn etag(digest: &Digest) -> ArrayString<ETAG> {
    concat(&["\"", &digest.text(), "\""])
}

/// The head of an answer of status 200 as it goes over the wire, made on the stack.
#[derive(Debug)]
pub(super) struct WireHead {
    text: ArrayVec<u8, { Self::CAPACITY }>,
    is_good: bool,
}

impl WireHead {
    /// A head takes 500 bytes; most manifests fit behind it.
    const CAPACITY: usize = 4096;

    pub(super) fn new() -> Self {
        let mut head = Self { text: ArrayVec::new(), is_good: true };
        head.push("HTTP/1.1 200 OK\r\n");
        head
    }

    /// Writes the date and the empty line at the end; whether everything was the text of a header and did fit.
    pub(super) fn end(&mut self, now: Instant) -> bool {
        date(now, |date| self.known(&header::DATE, date));
        self.push("\r\n");
        self.is_good
    }

    /// Takes a body behind the head, if it fits: one piece leaves more cheaply than two.
    pub(super) fn append(&mut self, body: &[u8]) -> bool {
        self.text.try_extend_from_slice(body).is_ok()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.text
    }

    fn known(&mut self, name: &HeaderName, value: &str) {
        self.push(name.as_str());
        self.push(": ");
        self.push(value);
        self.push("\r\n");
    }

    fn push(&mut self, text: &str) {
        self.is_good &= self.text.try_extend_from_slice(text.as_bytes()).is_ok();
    }
}

impl Headers for WireHead {
    fn constant(&mut self, name: HeaderName, value: &'static str) {
        self.known(&name, value);
    }

    fn text(&mut self, name: HeaderName, value: &str) {
        self.is_good &= is_printable(value.as_bytes());
        self.known(&name, value);
    }
}

thread_local! {
    /// The date as text, and until when it is that: for thousands of answers.
    static DATE: RefCell<Option<(Instant, String)>> = const { RefCell::new(None) };
}

/// Shows the date as RFC 9110 (section 5.6.7) writes it. A clock that is set shows within a second.
fn date(now: Instant, show: impl FnOnce(&str)) {
    DATE.with_borrow_mut(|date| {
        let current = date.take().filter(|(until, _)| now < *until);
        let (_, text) = date.insert(current.unwrap_or_else(|| date_until(now)));
        show(text);
    });
}

/// The date, and when it is another.
fn date_until(now: Instant) -> (Instant, String) {
    #[expect(clippy::disallowed_methods, reason = "hyper reads the same clock for the same header")]
    let clock = std::time::SystemTime::now();
    let since_1970 = clock.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let left = Duration::from_secs(1).saturating_sub(Duration::from_nanos(since_1970.subsec_nanos().into()));
    (now + left, http_date(since_1970.as_secs()))
}

fn http_date(second: u64) -> String {
    let timestamp = jiff::Timestamp::from_second(second.try_into().unwrap_or(i64::MAX)).unwrap_or_default();
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&timestamp).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_that_of_the_rfc() {
        assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn a_head_that_is_too_long_or_broken_is_none() {
        let good = |value: &str| {
            let mut head = WireHead::new();
            head.text(header::CONTENT_TYPE, value);
            head.end(Instant::now())
        };
        assert!(good("application/json"));
        assert!(good(&"x".repeat(1024)));
        assert!(!good(&"x".repeat(WireHead::CAPACITY)));
        assert!(!good("a\r\nb: c"));
    }
}
