//! Reading the head of a response: what it claims, and whether a registry would say it.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{
    AsHeaderName, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LINK,
    RETRY_AFTER, TRANSFER_ENCODING,
};
use hyper::{Response, StatusCode, Version};

use crate::oci::{ContentRange, Digest, essence};
use crate::runtime::Timestamp;

/// A time to come back is believed up to this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(1);

const DIGEST_HEADER: &str = "docker-content-digest";

/// A response whose status has been looked at.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    /// It comes from another site than the endpoint, after a redirect.
    pub(super) is_from_elsewhere: bool,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(super) fn header(&self, name: impl AsHeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    pub(super) fn length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH)?.trim().parse().ok()
    }

    /// Whether the body's end is marked by something else than the end of the connection or a length.
    pub(super) fn is_framed(&self) -> bool {
        self.response.version() == Version::HTTP_2 || self.headers().contains_key(TRANSFER_ENCODING)
    }

    pub(super) fn content_type(&self) -> Option<&str> {
        self.header(CONTENT_TYPE)
    }

    pub(super) fn content_range(&self) -> Option<ContentRange> {
        self.header(CONTENT_RANGE)?.parse().ok()
    }

    pub(super) fn link(&self) -> Option<&str> {
        self.header(LINK)
    }

    /// The digest the upstream claims; one of an unknown algorithm says nothing to us.
    pub(super) fn digest(&self) -> Option<Digest> {
        self.header(DIGEST_HEADER)?.trim().parse().ok()
    }

    /// What is odd about the head of a manifest or list, if anything.
    pub(super) fn oddity(&self) -> Option<String> {
        self.encoding_oddity().or_else(|| {
            let content_type = self.content_type()?;
            is_html(content_type)
                .then(|| format!("a page of type {content_type:?} instead of a manifest or list"))
        })
    }

    /// What is odd about the head of the blob `wanted`, if anything. Pages and error documents of a 200 are
    /// told from blobs of the same type by the digest header, which only a registry sends. Storage that a
    /// registry redirects to sends whatever type it was given, so only HTML is odd there.
    pub(super) fn blob_oddity(&self, wanted: &Digest) -> Option<String> {
        self.encoding_oddity().or_else(|| {
            let content_type = self.content_type()?;
            let is_vouched_for = self.digest() == Some(*wanted);
            let is_page = is_html(content_type) || (!self.is_from_elsewhere && is_document(content_type));
            (is_page && !is_vouched_for).then(|| format!("a page of type {content_type:?} instead of a blob"))
        })
    }

    /// What contradicts `wanted`, if anything.
    pub(super) fn contradiction(&self, wanted: &Digest) -> Option<String> {
        let claimed = self.digest().filter(|claimed| claimed.algorithm() == wanted.algorithm())?;
        (claimed != *wanted).then(|| format!("asked for {wanted}, it claims to send {claimed}"))
    }

    fn encoding_oddity(&self) -> Option<String> {
        let encoding = self.header(CONTENT_ENCODING)?.trim();
        let is_plain = encoding.is_empty() || encoding.eq_ignore_ascii_case("identity");
        (!is_plain).then(|| format!("content encoded as {encoding:?} although identity was asked for"))
    }
}

fn is_html(content_type: &str) -> bool {
    matches!(media(content_type).as_str(), "text/html" | "application/xhtml+xml")
}

fn is_document(content_type: &str) -> bool {
    let media = media(content_type);
    media.starts_with("text/") || matches!(media.as_str(), "application/json" | "application/problem+json")
}

fn media(content_type: &str) -> String {
    essence(content_type).to_ascii_lowercase()
}

/// `Retry-After` in either form (RFC 9110 §10.2.3), at most an hour.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if let Ok(seconds) = text.parse::<u64>() {
        Duration::from_secs(seconds)
    } else {
        let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
        let date = Timestamp::from_millis(u64::try_from(date.as_millisecond()).ok()?);
        date.since(now).unwrap_or_default()
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_come_back_is_read_in_both_forms_and_bounded() {
        let now = Timestamp::from_millis(784_111_777_000); // Sun, 06 Nov 1994 08:49:37 GMT
        let seconds = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            retry_after(&headers, now).map(|wait| wait.as_secs())
        };
        assert_eq!(seconds("120"), Some(120));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(seconds("999999999"), Some(3600));
        assert_eq!(seconds("soon"), None);
        assert_eq!(seconds("-1"), None);
    }

    #[test]
    fn pages_are_told_from_content() {
        assert!(is_html("Text/HTML; charset=utf-8"));
        assert!(!is_html("application/octet-stream"));
        assert!(is_document("application/json") && is_document("text/plain"));
        assert!(!is_document("application/vnd.oci.image.config.v1+json"));
    }
}
