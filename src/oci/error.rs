//! The registry API's error codes and the JSON document they travel in.
//!
//! Source: distribution-spec v1.1.1 "Error Codes"; distribution `registry/api/errcode` for the four it adds.
//! Writing is exact; reading an upstream's document is lenient, because its only use is a better message.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::excerpt::excerpt;

/// Most entries and longest message (in characters) taken from an upstream's document.
const MAX_ENTRIES: usize = 8;
const MAX_MESSAGE: usize = 256;

/// Largest error document read, in bytes; a longer one is not worth parsing.
const MAX_DOCUMENT: usize = 64 * 1024;

/// What went wrong, in the terms of the registry API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The registry does not have this blob.
    BlobUnknown,
    /// A blob upload is broken.
    BlobUploadInvalid,
    /// There is no such blob upload.
    BlobUploadUnknown,
    /// A digest is malformed or does not match its content.
    DigestInvalid,
    /// A manifest names a blob that the registry does not have.
    ManifestBlobUnknown,
    /// A manifest, or the reference that names it, is malformed.
    ManifestInvalid,
    /// The registry does not have this manifest.
    ManifestUnknown,
    /// A repository name is malformed.
    NameInvalid,
    /// The registry does not have this repository.
    NameUnknown,
    /// Content is not as long as it was declared.
    SizeInvalid,
    /// The caller must authenticate.
    Unauthorized,
    /// The caller is known and may not do this.
    Denied,
    /// The operation is not offered.
    Unsupported,
    /// Too many requests; come back later.
    TooManyRequests,
    /// The service, or the upstream behind it, does not answer.
    Unavailable,
    /// A range of bytes cannot be satisfied.
    RangeInvalid,
    /// The `n` of a paged list is no number in bounds.
    PaginationNumberInvalid,
    /// Anything else.
    Unknown,
}

impl ErrorCode {
    /// Every code there is.
    pub const ALL: [Self; 18] = [
        Self::BlobUnknown,
        Self::BlobUploadInvalid,
        Self::BlobUploadUnknown,
        Self::DigestInvalid,
        Self::ManifestBlobUnknown,
        Self::ManifestInvalid,
        Self::ManifestUnknown,
        Self::NameInvalid,
        Self::NameUnknown,
        Self::SizeInvalid,
        Self::Unauthorized,
        Self::Denied,
        Self::Unsupported,
        Self::TooManyRequests,
        Self::Unavailable,
        Self::RangeInvalid,
        Self::PaginationNumberInvalid,
        Self::Unknown,
    ];

    /// The code as it stands in the document.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unavailable => "UNAVAILABLE",
            Self::RangeInvalid => "RANGE_INVALID",
            Self::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            Self::Unknown => "UNKNOWN",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Never fails: a code that is not known is [`ErrorCode::Unknown`].
impl FromStr for ErrorCode {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::ALL.into_iter().find(|code| code.as_str() == text).unwrap_or(Self::Unknown))
    }
}

serde_as_text!(ErrorCode);

/// The body of every error answer: `{"errors":[{"code":…,"message":…,"detail":…}]}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorDocument {
    /// What went wrong; one entry in ours, perhaps none or several in an upstream's.
    pub errors: Vec<ErrorEntry>,
}

/// One error of an [`ErrorDocument`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorEntry {
    /// What a program looks at.
    pub code: ErrorCode,
    /// What a person reads: one sentence, no credentials.
    pub message: String,
    /// Anything more, in a form of the code's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Value>,
}

impl ErrorDocument {
    /// A document with one error.
    pub fn single(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { errors: vec![ErrorEntry { code, message: message.into(), detail: None }] }
    }

    /// The document with this detail on its last error.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<Value>) -> Self {
        if let Some(entry) = self.errors.last_mut() {
            entry.detail = Some(detail.into());
        }
        self
    }

    /// The document as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and JSON values always serialise")
    }

    /// Reads an upstream's error body; `None` if it is none (an HTML page, an empty body).
    ///
    /// Codes that are not known become [`ErrorCode::Unknown`]; messages are cut and freed of control
    /// characters; details are dropped, because they may hold what is not ours to pass on.
    pub fn parse(body: &[u8]) -> Option<Self> {
        if body.len() > MAX_DOCUMENT {
            return None;
        }
        let document: Value = serde_json::from_slice(body).ok()?;
        if let Some(errors) = document.get("errors").and_then(Value::as_array) {
            return Some(Self { errors: errors.iter().take(MAX_ENTRIES).map(read_entry).collect() });
        }
        // A single error without the list, as gateways in front of registries answer.
        let entry = read_entry(&document);
        (!entry.message.is_empty()).then(|| Self { errors: vec![entry] })
    }

    /// The first code and message, as `CODE: message`, for a log line; empty if there is no error.
    pub fn summary(&self) -> String {
        self.errors.first().map(|entry| format!("{}: {}", entry.code, entry.message)).unwrap_or_default()
    }
}

/// A code and a message from whatever an upstream put there.
fn read_entry(entry: &Value) -> ErrorEntry {
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    let code = text("code").map_or(ErrorCode::Unknown, |code| code.parse().unwrap_or(ErrorCode::Unknown));
    let message = ["message", "details", "error"].into_iter().find_map(text).unwrap_or_default();
    ErrorEntry { code, message: excerpt(message, MAX_MESSAGE), detail: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_document_has_the_form_clients_parse() {
        let document = ErrorDocument::single(ErrorCode::ManifestUnknown, "no \"x\"").with_detail("y");
        let json = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no \"x\"","detail":"y"}]}"#;
        assert_eq!(document.to_json(), json);
        assert_eq!(serde_json::from_str::<ErrorDocument>(json).unwrap(), document);
    }

    #[test]
    fn every_code_is_read_back() {
        for code in ErrorCode::ALL {
            assert_eq!(code.as_str().parse(), Ok(code));
        }
    }

    #[test]
    fn what_upstreams_send_becomes_a_message() {
        for (body, summary) in [
            (
                r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow\r\ndown"}]}"#,
                Some("TOOMANYREQUESTS: slow··down"),
            ),
            (r#"{"errors":[{"status":404,"message":"gone"}]}"#, Some("UNKNOWN: gone")),
            (r#"{"errors":[{"code":7}]}"#, Some("UNKNOWN: ")),
            (r#"{"errors":[]}"#, Some("")),
            (r#"{"details":"incorrect username"}"#, Some("UNKNOWN: incorrect username")),
            (r#"{"errors":null}"#, None),
            ("{}", None),
            ("[]", None),
            ("null", None),
            ("<html>", None),
            ("", None),
        ] {
            assert_eq!(
                ErrorDocument::parse(body.as_bytes()).map(|document| document.summary()).as_deref(),
                summary
            );
        }
    }

    proptest! {
        #[test]
        fn our_own_document_is_read_back(message in "[a-zA-Zé0-9\"\\\\ .:]{0,40}", code in prop::sample::select(&ErrorCode::ALL[..])) {
            let document = ErrorDocument::single(code, message);
            prop_assert_eq!(ErrorDocument::parse(document.to_json().as_bytes()), Some(document));
        }

        #[test]
        fn any_body_is_read_without_panic(body: Vec<u8>) {
            let _ = ErrorDocument::parse(&body);
        }
    }
}
