//! The pull API's request grammar: a path and a query become a [`Target`], or an error with its code.
//!
//! Source: distribution-spec v1.1.1 "Endpoints"; containerd `docs/hosts.md` for `ns`. A repository may have
//! components named like an endpoint (`a/blobs/b`), so the path is read from its end.
//!
//! Each segment is decoded by itself, and a segment that decodes to a slash or a control character is refused:
//! nothing behind this parser ever sees another structure than the one that was on the wire.

use std::borrow::Cow;

use super::digest::{Digest, DigestError};
use super::error::ErrorCode;
use super::name::{NameError, Reference, ReferenceError, Repository};
use super::percent::{decode, decode_form, encode};

/// Longest path in bytes: a repository and a tag at their limits, every byte escaped, and the rest.
const MAX_PATH: usize = 2048;

/// Longest query in bytes.
const MAX_QUERY: usize = 4096;

/// Longest value of a query parameter in bytes: as long as a repository name, which `last` may be.
const MAX_VALUE: usize = 255;

/// A request of the pull API, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiRequest {
    /// What is asked for.
    pub target: Target,
    /// The upstream's host as containerd names it when it talks to a mirror. It is looked up, never dialled.
    pub ns: Option<String>,
}

/// What a request asks for.
///
/// The repository is the one on the wire: an upstream's name may still be its first component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `/v2/`: is this a registry, and may I use it?
    Base,
    /// `/v2/<name>/manifests/<reference>`
    Manifest {
        /// Where.
        repository: Repository,
        /// Which.
        reference: Reference,
    },
    /// `/v2/<name>/blobs/<digest>`
    Blob {
        /// Where.
        repository: Repository,
        /// Which.
        digest: Digest,
    },
    /// `/v2/<name>/tags/list`
    Tags {
        /// Where.
        repository: Repository,
        /// Which part of the list.
        page: Page,
    },
    /// `/v2/<name>/referrers/<digest>`
    Referrers {
        /// Where.
        repository: Repository,
        /// What is referred to.
        digest: Digest,
        /// Only artifacts of this type.
        artifact_type: Option<String>,
        /// Which part of the list; `last` is the digest of an entry.
        page: Page,
    },
    /// `/v2/_catalog`
    Catalog {
        /// Which part of the list.
        page: Page,
    },
    /// `/v2/<name>/blobs/uploads/…`: a push, which is not offered.
    Upload {
        /// Where.
        repository: Repository,
    },
}

impl Target {
    /// The repository it lies in; none for the base and the catalogue.
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Self::Base | Self::Catalog { .. } => None,
            Self::Manifest { repository, .. }
            | Self::Blob { repository, .. }
            | Self::Tags { repository, .. }
            | Self::Referrers { repository, .. }
            | Self::Upload { repository } => Some(repository),
        }
    }

    /// The same in another repository, as routing strips a prefix or puts one on.
    #[must_use]
    pub fn with_repository(mut self, name: Repository) -> Self {
        match &mut self {
            Self::Base | Self::Catalog { .. } => {}
            Self::Manifest { repository, .. }
            | Self::Blob { repository, .. }
            | Self::Tags { repository, .. }
            | Self::Referrers { repository, .. }
            | Self::Upload { repository } => *repository = name,
        }
        self
    }

    /// The same list from another page on; what is no list stays as it is.
    #[must_use]
    pub fn with_page(mut self, next: Page) -> Self {
        match &mut self {
            Self::Tags { page, .. } | Self::Referrers { page, .. } | Self::Catalog { page } => *page = next,
            Self::Base | Self::Manifest { .. } | Self::Blob { .. } | Self::Upload { .. } => {}
        }
        self
    }

    /// Path and query of the request for it, as it is sent to an upstream; parses back to the same target.
    pub fn path_and_query(&self) -> String {
        match self {
            Self::Base => "/v2/".to_owned(),
            Self::Manifest { repository, reference } => format!("/v2/{repository}/manifests/{reference}"),
            Self::Blob { repository, digest } => format!("/v2/{repository}/blobs/{digest}"),
            Self::Tags { repository, page } => {
                with_query(format!("/v2/{repository}/tags/list"), &page.to_query())
            }
            Self::Referrers { repository, digest, artifact_type, page } => {
                let filter = artifact_type.as_ref().map(|wanted| format!("artifactType={}", encode(wanted)));
                let query = [filter, Some(page.to_query())].into_iter().flatten();
                let query = query.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("&");
                with_query(format!("/v2/{repository}/referrers/{digest}"), &query)
            }
            Self::Catalog { page } => with_query("/v2/_catalog".to_owned(), &page.to_query()),
            Self::Upload { repository } => format!("/v2/{repository}/blobs/uploads/"),
        }
    }
}

/// Which part of a sorted list is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Most entries; the server's choice if absent. Zero asks for none.
    pub n: Option<u32>,
    /// Only entries after this one, which need not exist.
    pub last: Option<String>,
}

impl Page {
    /// As a query, perhaps empty, without the question mark.
    pub fn to_query(&self) -> String {
        let n = self.n.map(|n| format!("n={n}"));
        let last = self.last.as_ref().map(|last| format!("last={}", encode(last)));
        [n, last].into_iter().flatten().collect::<Vec<_>>().join("&")
    }
}

impl ApiRequest {
    /// Reads path and query as they stand in the request line.
    ///
    /// Parameters that are not known are ignored.
    ///
    /// # Errors
    /// [`RequestError`], whose [`code`](RequestError::code) is for the client.
    pub fn parse(path: &str, query: Option<&str>) -> Result<Self, RequestError> {
        if path.len() > MAX_PATH {
            return Err(RequestError::PathInvalid { reason: "it is too long" });
        }
        let rest = path.strip_prefix("/v2").ok_or(RequestError::NotFound)?;
        let parameters = query.map_or_else(|| Ok(Parameters::default()), Parameters::parse)?;
        let ns = parameters.ns.clone();
        let target = match rest.strip_prefix('/') {
            None if rest.is_empty() => Target::Base,
            None => return Err(RequestError::NotFound),
            Some("") => Target::Base,
            Some(rest) => parse_target(rest, parameters)?,
        };
        Ok(Self { target, ns })
    }
}

/// Why a request is none of the pull API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The path is not one of a registry.
    #[error("not a path of the registry API")]
    NotFound,
    /// The path's encoding or form is broken.
    #[error("invalid path: {reason}")]
    PathInvalid {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The repository is outside of its grammar.
    #[error("invalid repository: {0}")]
    NameInvalid(#[source] NameError),
    /// The reference is no tag.
    #[error("{0}")]
    TagInvalid(#[source] NameError),
    /// The reference, or the address of a blob, is no digest.
    #[error("invalid digest: {0}")]
    DigestInvalid(#[source] DigestError),
    /// `n` is no number of entries.
    #[error("invalid number of entries: n is a whole number from 0 to 4294967295")]
    PaginationNumberInvalid,
    /// Another parameter is broken.
    #[error("invalid query parameter {parameter}: {reason}")]
    QueryInvalid {
        /// Which one.
        parameter: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl RequestError {
    /// The code for the client. A malformed tag is `MANIFEST_INVALID`: the specification has no code for tags.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound | Self::QueryInvalid { .. } => ErrorCode::Unsupported,
            Self::PathInvalid { .. } | Self::NameInvalid(_) => ErrorCode::NameInvalid,
            Self::TagInvalid(_) => ErrorCode::ManifestInvalid,
            Self::DigestInvalid(_) => ErrorCode::DigestInvalid,
            Self::PaginationNumberInvalid => ErrorCode::PaginationNumberInvalid,
        }
    }
}

impl From<ReferenceError> for RequestError {
    fn from(error: ReferenceError) -> Self {
        match error {
            ReferenceError::Tag(error) => Self::TagInvalid(error),
            ReferenceError::Digest(error) => Self::DigestInvalid(error),
        }
    }
}

/// What follows `/v2/`.
fn parse_target(rest: &str, parameters: Parameters) -> Result<Target, RequestError> {
    let path = decode_path(rest)?;
    let Some((name, last)) = path.rsplit_once('/') else {
        return match &*path {
            "_catalog" => Ok(Target::Catalog { page: parameters.page()? }),
            _ => Err(RequestError::NotFound),
        };
    };
    let (name, kind) = name.rsplit_once('/').unwrap_or(("", name));
    let repository = |name: &str| name.parse::<Repository>().map_err(RequestError::NameInvalid);
    match (kind, last) {
        ("manifests", reference) => {
            Ok(Target::Manifest { repository: repository(name)?, reference: reference.parse::<Reference>()? })
        }
        ("blobs", "uploads") => Ok(Target::Upload { repository: repository(name)? }),
        ("uploads", _) => match name.rsplit_once('/').unwrap_or(("", name)) {
            (name, "blobs") => Ok(Target::Upload { repository: repository(name)? }),
            _ => Err(RequestError::NotFound),
        },
        ("blobs", address) => Ok(Target::Blob { repository: repository(name)?, digest: digest(address)? }),
        ("tags", "list") => Ok(Target::Tags { repository: repository(name)?, page: parameters.page()? }),
        ("referrers", subject) => Ok(Target::Referrers {
            repository: repository(name)?,
            digest: digest(subject)?,
            artifact_type: parameters.artifact_type.clone(),
            page: parameters.page()?,
        }),
        _ => Err(RequestError::NotFound),
    }
}

/// Each segment decoded by itself; the slashes between them are those of the wire.
fn decode_path(path: &str) -> Result<Cow<'_, str>, RequestError> {
    // Looked at to its end, so that the compiler can look at many bytes at once.
    let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'%';
    if path.bytes().fold(true, |all, byte| all & is_plain(byte)) {
        return Ok(Cow::Borrowed(path));
    }
    let segments = path.split('/').map(decode_segment).collect::<Result<Vec<_>, _>>()?;
    Ok(Cow::Owned(segments.join("/")))
}

fn decode_segment(segment: &str) -> Result<Cow<'_, str>, RequestError> {
    let decoded = decode(segment).ok_or(RequestError::PathInvalid { reason: "broken percent-encoding" })?;
    if decoded.chars().any(|c| c == '/' || c.is_control()) {
        return Err(RequestError::PathInvalid { reason: "an encoded slash or control character" });
    }
    Ok(decoded)
}

fn digest(address: &str) -> Result<Digest, RequestError> {
    address.parse().map_err(RequestError::DigestInvalid)
}

/// The query's known parameters. An empty value is an absent one, except for `n`.
#[derive(Default)]
struct Parameters {
    ns: Option<String>,
    n: Option<String>,
    last: Option<String>,
    artifact_type: Option<String>,
}

impl Parameters {
    fn parse(query: &str) -> Result<Self, RequestError> {
        if query.len() > MAX_QUERY {
            return Err(RequestError::QueryInvalid { parameter: "query", reason: "it is too long" });
        }
        let mut parameters = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (parameter, slot) = match decode_form(name).as_deref() {
                Some("ns") => ("ns", &mut parameters.ns),
                Some("n") => ("n", &mut parameters.n),
                Some("last") => ("last", &mut parameters.last),
                Some("artifactType") => ("artifactType", &mut parameters.artifact_type),
                _ => continue,
            };
            let invalid = |reason| RequestError::QueryInvalid { parameter, reason };
            let value = decode_form(value).ok_or_else(|| invalid("broken percent-encoding"))?;
            if value.len() > MAX_VALUE || value.chars().any(char::is_control) {
                return Err(invalid("it is too long or has a control character"));
            }
            // Two different values would let a filter in front of the edge read another one than the edge.
            if slot.as_ref().is_some_and(|earlier| *earlier != value) {
                return Err(invalid("it is given twice"));
            }
            *slot = Some(value);
        }
        parameters.ns = present(parameters.ns);
        parameters.last = present(parameters.last);
        parameters.artifact_type = present(parameters.artifact_type);
        if parameters.ns.as_deref().is_some_and(|ns| !is_namespace(ns)) {
            return Err(RequestError::QueryInvalid { parameter: "ns", reason: "it is no host name" });
        }
        Ok(parameters)
    }

    fn page(self) -> Result<Page, RequestError> {
        let n = match self.n {
            None => None,
            Some(n) if n.bytes().all(|b| b.is_ascii_digit()) => {
                Some(n.parse().map_err(|_| RequestError::PaginationNumberInvalid)?)
            }
            Some(_) => return Err(RequestError::PaginationNumberInvalid),
        };
        Ok(Page { n, last: self.last })
    }
}

fn present(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

/// What a host with a port is made of; whether it names an upstream, routing knows.
fn is_namespace(ns: &str) -> bool {
    ns.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']'))
}

fn with_query(path: String, query: &str) -> String {
    if query.is_empty() { path } else { format!("{path}?{query}") }
}

#[cfg(test)]
mod tests {
    use super::super::Algorithm;
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(target: &str) -> Result<ApiRequest, RequestError> {
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        ApiRequest::parse(path, query)
    }

    fn code(target: &str) -> ErrorCode {
        parse(target).expect_err(target).code()
    }

    fn name(text: &str) -> Repository {
        text.parse().unwrap()
    }

    #[test]
    fn every_endpoint_of_the_pull_api_is_understood() {
        let digest: Digest = DIGEST.parse().unwrap();
        let latest: Reference = "latest".parse().unwrap();
        let page = Page { n: Some(5), last: Some("a".to_owned()) };
        for (path, target) in [
            ("/v2".to_owned(), Target::Base),
            ("/v2/".to_owned(), Target::Base),
            (
                "/v2/library/nginx/manifests/latest".to_owned(),
                Target::Manifest { repository: name("library/nginx"), reference: latest },
            ),
            (
                format!("/v2/a/manifests/{DIGEST}"),
                Target::Manifest { repository: name("a"), reference: digest.into() },
            ),
            (format!("/v2/a/blobs/{DIGEST}"), Target::Blob { repository: name("a"), digest }),
            (
                "/v2/a/b/tags/list?n=5&last=a".to_owned(),
                Target::Tags { repository: name("a/b"), page: page.clone() },
            ),
            ("/v2/_catalog?last=a&n=5".to_owned(), Target::Catalog { page }),
            (
                format!("/v2/a/referrers/{DIGEST}?artifactType=application%2Fx+y"),
                Target::Referrers {
                    page: Page::default(),
                    repository: name("a"),
                    digest,
                    artifact_type: Some("application/x y".to_owned()),
                },
            ),
            ("/v2/a/blobs/uploads/".to_owned(), Target::Upload { repository: name("a") }),
            ("/v2/a/blobs/uploads".to_owned(), Target::Upload { repository: name("a") }),
            ("/v2/a/blobs/uploads/7f-x".to_owned(), Target::Upload { repository: name("a") }),
        ] {
            assert_eq!(parse(&path), Ok(ApiRequest { target, ns: None }), "{path}");
        }
    }

    #[test]
    fn the_last_endpoint_keyword_of_a_path_decides() {
        for (path, repository) in [
            ("/v2/a/manifests/b/manifests/c", "a/manifests/b"),
            ("/v2/manifests/manifests/manifests", "manifests"),
            ("/v2/a/blobs/uploads/manifests/x", "a/blobs/uploads"),
            ("/v2/a/tags/list/manifests/x", "a/tags/list"),
            ("/v2/a/blobs/tags/list", "a/blobs"),
            ("/v2/a/blobs/blobs/uploads/", "a/blobs"),
        ] {
            assert_eq!(parse(path).unwrap().target.repository().unwrap().as_str(), repository, "{path}");
        }
    }

    #[test]
    fn the_namespace_is_kept_as_it_was_sent() {
        assert_eq!(parse("/v2/?ns=docker.io").unwrap().ns.as_deref(), Some("docker.io"));
        assert_eq!(parse("/v2/?ns=localhost%3A5000&x=%zz").unwrap().ns.as_deref(), Some("localhost:5000"));
        assert_eq!(parse("/v2/?ns=").unwrap().ns, None);
        assert_eq!(parse("/v2/?ns=a&ns=a").unwrap().ns.as_deref(), Some("a"));
        for query in ["ns=a&ns=b", "ns=http://a/b", "ns=%00", "ns=%ff", "ns=a%0d%0ab"] {
            assert_eq!(code(&format!("/v2/?{query}")), ErrorCode::Unsupported, "{query}");
        }
    }

    #[test]
    fn a_broken_request_has_the_code_that_says_so() {
        for (target, wanted) in [
            ("/", ErrorCode::Unsupported),
            ("/v2x", ErrorCode::Unsupported),
            ("/v1/a/manifests/b", ErrorCode::Unsupported),
            ("/v2/a", ErrorCode::Unsupported),
            ("/v2/_catalog/", ErrorCode::Unsupported),
            ("/v2/manifests/latest", ErrorCode::NameInvalid),
            ("/v2//manifests/latest", ErrorCode::NameInvalid),
            ("/v2/a//b/manifests/latest", ErrorCode::NameInvalid),
            ("/v2/A/manifests/latest", ErrorCode::NameInvalid),
            ("/v2/../a/manifests/latest", ErrorCode::NameInvalid),
            ("/v2/%2e%2e/a/manifests/latest", ErrorCode::NameInvalid),
            ("/v2/a%2fb/manifests/latest", ErrorCode::NameInvalid),
            ("/v2/a%00/manifests/latest", ErrorCode::NameInvalid),
            ("/v2/a%/manifests/latest", ErrorCode::NameInvalid),
            ("/v2/localhost:5000/a/manifests/latest", ErrorCode::NameInvalid),
            ("/v2/a/manifests/", ErrorCode::ManifestInvalid),
            ("/v2/a/manifests/-x", ErrorCode::ManifestInvalid),
            ("/v2/a/manifests/sha256:beef", ErrorCode::DigestInvalid),
            ("/v2/a/blobs/latest", ErrorCode::DigestInvalid),
            ("/v2/a/blobs/md5:beef", ErrorCode::DigestInvalid),
            ("/v2/a/referrers/latest", ErrorCode::DigestInvalid),
            ("/v2/a/tags/list?n=-1", ErrorCode::PaginationNumberInvalid),
            ("/v2/a/tags/list?n=", ErrorCode::PaginationNumberInvalid),
            ("/v2/a/tags/list?n=%2B1", ErrorCode::PaginationNumberInvalid),
            ("/v2/_catalog?n=4294967296", ErrorCode::PaginationNumberInvalid),
        ] {
            assert_eq!(code(target), wanted, "{target}");
        }
        assert_eq!(code(&format!("/v2/{}", "a".repeat(MAX_PATH))), ErrorCode::NameInvalid);
        assert_eq!(code(&format!("/v2/?last={}", "a".repeat(MAX_VALUE + 1))), ErrorCode::Unsupported);
        assert_eq!(code(&format!("/v2/?{}", "a".repeat(MAX_QUERY + 1))), ErrorCode::Unsupported);
    }

    #[test]
    fn an_encoded_digest_is_the_same_digest() {
        let encoded = DIGEST.replace(':', "%3A");
        assert_eq!(parse(&format!("/v2/a/blobs/{encoded}")), parse(&format!("/v2/a/blobs/{DIGEST}")));
    }

    fn targets() -> impl Strategy<Value = Target> {
        let repositories = || {
            let component = prop_oneof![
                "[a-z0-9]{1,5}",
                Just("blobs".to_owned()),
                Just("manifests".to_owned()),
                Just("tags".to_owned()),
                Just("uploads".to_owned())
            ];
            prop::collection::vec(component, 1..4).prop_map(|parts| name(&parts.join("/")))
        };
        let digests = || any::<[u8; 4]>().prop_map(|seed| Digest::of(Algorithm::Sha256, &seed));
        let pages =
            || (any::<Option<u32>>(), prop::option::of("\\PC{1,10}")).prop_map(|(n, last)| Page { n, last });
        let references = prop_oneof![
            "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,9}".prop_map(|tag| tag.parse::<Reference>().unwrap()),
            digests().prop_map(Reference::Digest),
        ];
        prop_oneof![
            Just(Target::Base),
            (repositories(), references)
                .prop_map(|(repository, reference)| Target::Manifest { repository, reference }),
            (repositories(), digests()).prop_map(|(repository, digest)| Target::Blob { repository, digest }),
            (repositories(), pages()).prop_map(|(repository, page)| Target::Tags { repository, page }),
            (repositories(), digests(), prop::option::of("\\PC{1,10}"), pages()).prop_map(
                |(repository, digest, artifact_type, page)| Target::Referrers {
                    repository,
                    digest,
                    artifact_type,
                    page
                }
            ),
            pages().prop_map(|page| Target::Catalog { page }),
            repositories().prop_map(|repository| Target::Upload { repository }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_sent_upstream_parses_to_what_was_meant(target in targets()) {
            prop_assert_eq!(parse(&target.path_and_query()).map(|request| request.target), Ok(target));
        }

        #[test]
        fn any_request_line_is_read_without_panic(
            path in "/v2/([a-z.%0-9A-F:]{0,6}/){0,3}(manifests|blobs|tags|referrers|_catalog)?/\\PC{0,10}",
            query in prop::option::of("[a-z=&%+0-9\\PC]{0,24}"),
        ) {
            if let Ok(request) = ApiRequest::parse(&path, query.as_deref())
                && let Some(repository) = request.target.repository()
            {
                prop_assert!(repository.components().all(|part| !part.is_empty() && part != ".."));
            }
        }
    }
}
