//! The headers of answers, for hyper and for what is written without it.

use std::cell::RefCell;

use arrayvec::{ArrayString, ArrayVec};
use hyper::HeaderMap;
use hyper::header::{self, HeaderName, HeaderValue};

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
            std::borrow::Cow::Borrowed(known) => self.constant(header::CONTENT_TYPE, known),
            std::borrow::Cow::Owned(other) => self.text(header::CONTENT_TYPE, other),
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
    /// Twice what the head of a manifest takes.
    const CAPACITY: usize = 1536;

    pub(super) fn new() -> Self {
        let mut head = Self { text: ArrayVec::new(), is_good: true };
        head.push("HTTP/1.1 200 OK\r\n");
        head
    }

    /// The bytes, with the date and the empty line at their end; `None` if something did not fit or is no text of a
    /// header.
    pub(super) fn end(&mut self) -> Option<&[u8]> {
        date(|date| self.text(header::DATE, date));
        self.push("\r\n");
        self.is_good.then_some(&*self.text)
    }

    fn push(&mut self, text: &str) {
        self.is_good &= self.text.try_extend_from_slice(text.as_bytes()).is_ok();
    }
}

impl Headers for WireHead {
    fn constant(&mut self, name: HeaderName, value: &'static str) {
        self.text(name, value);
    }

    fn text(&mut self, name: HeaderName, value: &str) {
        // Looked at to its end, so that the compiler can look at many bytes at once.
        self.is_good &= value.bytes().fold(true, |all, byte| all & matches!(byte, b' '..=b'~'));
        self.push(name.as_str());
        self.push(": ");
        self.push(value);
        self.push("\r\n");
    }
}

thread_local! {
    /// The date as text, and its second since 1970: it is the same for thousands of answers.
    static DATE: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
}

/// Shows the date as RFC 9110 (section 5.6.7) writes it.
fn date(show: impl FnOnce(&str)) {
    #[expect(clippy::disallowed_methods, reason = "hyper reads the same clock for the same header")]
    let now = std::time::SystemTime::now();
    let second = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    DATE.with_borrow_mut(|(of, text)| {
        if *of != second {
            (*of, *text) = (second, http_date(second));
        }
        show(text);
    });
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
            head.end().is_some()
        };
        assert!(good("application/json"));
        assert!(good(&"x".repeat(1024)));
        assert!(!good(&"x".repeat(2048)));
        assert!(!good("a\r\nb: c"));
    }
}
