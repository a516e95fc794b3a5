//! Errors become answers here, and nowhere else.
//!
//! Every match is exhaustive: a new error does not compile until somebody decides what a client
//! sees of it. The client gets a code of the distribution specification and a message without
//! internals; the operator finds the cause in the log under the request id.

use std::time::Duration;

use arrayvec::ArrayString;
use hyper::StatusCode;

use crate::auth::keys::Refused;
use crate::auth::{Denial, Who};
use crate::oci::{ErrorCode, RequestError, concat};
use crate::pull::{self, Freshness, Served};
use crate::routing::RoutingError;
use crate::upstream::{self, Whose};

/// The name of this cache in `Cache-Status`.
const CACHE_NAME: &str = "clawhub-edge";
/// When a client may come back after a failure that says nothing about it.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(10);

/// An answer without the thing that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: ErrorCode,
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
    /// What is wrong with the token that came (RFC 6750, section 3.1).
    pub(super) token_error: Option<&'static str>,
    /// Whom it was refused to, and why, as the access log says it; without, the code is said.
    pub(super) decision: Decision,
}

/// What was decided about somebody, as the access log says it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// `None` for anybody.
    pub(super) who: Option<Who>,
    /// Why it was no yes.
    pub(super) reason: Option<&'static str>,
}

impl Refusal {
    fn new(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            retry_after: None,
            token_error: None,
            decision: Decision::default(),
        }
    }

    fn retry(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Whoever does not say who he is, or is not believed.
    fn unauthenticated(upstream: &str) -> Self {
        let message = format!("{upstream} wants a login, or another one");
        Self::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message)
    }

    fn bad_token(error: &'static str, message: &str) -> Self {
        let refusal = Self::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
        Self { token_error: Some(error), ..refusal }
    }

    /// Whoever may not have what he asks for.
    pub(super) fn of_denial(denial: &Denial, upstream: &str) -> Self {
        let decision = Decision { who: denial.who(), reason: Some(denial.reason()) };
        Self { decision, ..Self::answer_to(denial, upstream) }
    }

    fn answer_to(denial: &Denial, upstream: &str) -> Self {
        match denial {
            Denial::Unusable | Denial::Unauthenticated => Self::unauthenticated(upstream),
            Denial::InvalidToken => {
                Self::bad_token("invalid_token", "the token is not valid, or not any more")
            }
            Denial::InsufficientScope => {
                Self::bad_token("insufficient_scope", "the token does not name what is asked for")
            }
            Denial::Forbidden => Self::forbidden(upstream),
            Denial::Unknown(code) => {
                Self::new(StatusCode::NOT_FOUND, *code, format!("{upstream} does not have it"))
            }
            Denial::Unavailable(error) => Self::from(&**error),
            Denial::Key(_, Refused::Scope) => {
                Self::new(StatusCode::FORBIDDEN, ErrorCode::Denied, "the key is not for this image")
            }
            Denial::Key(_, Refused::Network) => {
                Self::new(StatusCode::FORBIDDEN, ErrorCode::Denied, "the key is not for this network")
            }
            Denial::Key(_, refused) => {
                let message = match refused {
                    Refused::Revoked => "the key was revoked",
                    Refused::Expired => "the key has expired",
                    Refused::NotYet => "the key is not valid yet",
                    _ => "there is no such key, or its secret is another",
                };
                // It may be that of a token, which is then not to be shown again.
                Self::bad_token("invalid_token", message)
            }
            Denial::NoDatabase => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorCode::Unavailable,
                "the key cannot be looked up now",
            )
            .retry(DEFAULT_RETRY_AFTER),
            Denial::Busy => Self::overload(),
            Denial::Internal => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, "an internal error")
            }
        }
    }

    fn forbidden(upstream: &str) -> Self {
        let message = format!("{upstream} does not give this to the caller");
        Self::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message)
    }

    /// A write, or any other method that a pull-only registry has no answer to.
    pub(super) fn unsupported_method() -> Self {
        let message = "this registry is pull-only: push to the upstream instead";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, message)
    }

    /// The catalogue of an upstream that has none.
    pub(super) fn no_catalog() -> Self {
        let message = "the upstream does not list its repositories";
        Self::new(StatusCode::NOT_FOUND, ErrorCode::Unsupported, message)
    }

    /// A request that has been here before.
    pub(super) fn request_loop() -> Self {
        let message = "this request has come through this edge already: its upstreams lead in a circle";
        Self::new(StatusCode::LOOP_DETECTED, ErrorCode::Unavailable, message)
    }

    /// More requests at once than there are seats for.
    pub(super) fn overload() -> Self {
        let message = "the edge has no seat for this request now; come back later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::TooManyRequests, message)
            .retry(DEFAULT_RETRY_AFTER)
    }

    /// A range that lies outside of the blob.
    pub(super) fn unsatisfiable_range(size: u64) -> Self {
        let message = format!("the blob has {size} bytes");
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::RangeInvalid, message)
    }
}

impl From<&RequestError> for Refusal {
    fn from(error: &RequestError) -> Self {
        let status = match error {
            RequestError::NotFound => StatusCode::NOT_FOUND,
            RequestError::PathInvalid { .. }
            | RequestError::NameInvalid(_)
            | RequestError::TagInvalid(_)
            | RequestError::DigestInvalid(_)
            | RequestError::QueryInvalid { .. }
            | RequestError::PaginationNumberInvalid => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.code(), error.to_string())
    }
}

impl From<&RoutingError> for Refusal {
    fn from(error: &RoutingError) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorCode::NameUnknown, error.to_string())
    }
}

impl From<&pull::Error> for Refusal {
    fn from(error: &pull::Error) -> Self {
        let unavailable = |message: &str| Self::new(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, message);
        match error {
            pull::Error::Unknown(code) => {
                Self::new(StatusCode::NOT_FOUND, *code, "the upstream does not have it")
            }
            pull::Error::Upstream(error) => Self::from(&**error),
            pull::Error::Manifest(error) => {
                let message = format!("the upstream's manifest is refused: {error}");
                Self::new(StatusCode::BAD_GATEWAY, ErrorCode::ManifestInvalid, message)
            }
            pull::Error::Corrupt(_) => unavailable("the upstream sent wrong bytes"),
            pull::Error::TooLarge(limit) => {
                let message = format!("the blob is too large: this edge accepts {limit} bytes");
                Self::new(StatusCode::BAD_GATEWAY, ErrorCode::SizeInvalid, message)
            }
            pull::Error::Deadline(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorCode::Unavailable,
                "the wanted bytes have not arrived yet; come back later",
            )
            .retry(DEFAULT_RETRY_AFTER),
            pull::Error::Store(_) | pull::Error::Read(_) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                ErrorCode::Unavailable,
                "the cache's disk failed",
            ),
            pull::Error::PassedBy => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorCode::Unavailable,
                "the cache has no room, and the wanted bytes have passed by; ask again",
            )
            .retry(DEFAULT_RETRY_AFTER),
            pull::Error::Unverifiable => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorCode::Unavailable,
                "the cache has no room to verify this range; ask for the whole blob, or for one range of at most 2 MiB",
            )
            .retry(DEFAULT_RETRY_AFTER),
            pull::Error::Abandoned => unavailable("the fetch was stopped; ask again"),
            pull::Error::Internal => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, "an internal error")
            }
        }
    }
}

impl From<&upstream::Error> for Refusal {
    fn from(error: &upstream::Error) -> Self {
        use upstream::Error as E;
        let name = &error.place().upstream;
        let bad_gateway =
            |message: String| Self::new(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, message);
        match error {
            E::NotFound { code, .. } => {
                Self::new(StatusCode::NOT_FOUND, *code, format!("{name} does not have it"))
            }
            E::Unauthorized { whose: Whose::Caller, .. } => Self::unauthenticated(name.as_str()),
            E::Forbidden { whose: Whose::Caller, .. } => Self::forbidden(name.as_str()),
            E::Unauthorized { whose: Whose::Edge, .. } | E::Forbidden { whose: Whose::Edge, .. } => {
                bad_gateway(format!("{name} refuses this edge's credential"))
            }
            // Registries say the same of what is private and of what does not exist.
            E::Unauthorized { whose: Whose::Nobody, .. } | E::Forbidden { whose: Whose::Nobody, .. } => {
                Self::new(
                    StatusCode::FORBIDDEN,
                    ErrorCode::Denied,
                    format!(
                        "{name} does not give this to anonymous callers: it does not exist, or the edge needs a credential"
                    ),
                )
            }
            E::RateLimited { retry_after, .. } => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorCode::TooManyRequests,
                format!("{name} limits the rate of requests"),
            )
            .retry(retry_after.unwrap_or(DEFAULT_RETRY_AFTER)),
            E::TimedOut { .. } => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                ErrorCode::Unavailable,
                format!("{name} does not answer in time"),
            ),
            E::Unreachable { .. } => bad_gateway(format!("{name} cannot be reached")),
            E::NotARegistry { .. } => bad_gateway(format!("{name} does not answer like a registry")),
            E::Corrupt { .. } => bad_gateway(format!("{name} sends corrupt content")),
            E::RealmRefused { .. } => {
                bad_gateway(format!("{name} names a token service that is not allowed here"))
            }
            E::Refused { status, .. } => {
                bad_gateway(format!("{name} refuses the request with status {status}"))
            }
            E::Misconfigured { .. } => bad_gateway(format!("{name} is not configured rightly on this edge")),
        }
    }
}

/// The value of `Cache-Status` (RFC 9211).
pub(super) fn cache_status(freshness: &Freshness) -> ArrayString<96> {
    let served = match freshness.served {
        Served::Hit | Served::Stale => "; hit",
        Served::Revalidated => "; fwd=stale; fwd-status=200",
        Served::Miss => "; fwd=uri-miss; stored",
        Served::Forwarded => "; fwd=uri-miss",
        Served::Collapsed => "; fwd=uri-miss; collapsed",
    };
    let mut digits = itoa::Buffer::new();
    let ttl = freshness.ttl.map_or(["", ""], |ttl| ["; ttl=", digits.format(ttl)]);
    let detail = if freshness.served == Served::Stale { "; detail=stale" } else { "" };
    // At most 80 characters.
    concat(&[CACHE_NAME, served, ttl[0], ttl[1], detail])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_status_says_how_the_answer_came_about() {
        let freshness = |served, ttl| Freshness { served, age: Duration::ZERO, ttl };
        for (served, ttl, expected) in [
            (Served::Hit, None, "clawhub-edge; hit"),
            (Served::Hit, Some(12), "clawhub-edge; hit; ttl=12"),
            (Served::Stale, Some(-7), "clawhub-edge; hit; ttl=-7; detail=stale"),
            (Served::Stale, Some(i64::MIN), "clawhub-edge; hit; ttl=-9223372036854775808; detail=stale"),
            (Served::Miss, None, "clawhub-edge; fwd=uri-miss; stored"),
            (Served::Forwarded, None, "clawhub-edge; fwd=uri-miss"),
            (Served::Collapsed, None, "clawhub-edge; fwd=uri-miss; collapsed"),
            (Served::Revalidated, None, "clawhub-edge; fwd=stale; fwd-status=200"),
        ] {
            assert_eq!(cache_status(&freshness(served, ttl)).as_str(), expected);
        }
    }

    #[test]
    fn unknown_content_while_a_fetch_fails_is_never_called_absent() {
        for error in [pull::Error::Abandoned, pull::Error::Internal, pull::Error::Deadline(Duration::ZERO)] {
            assert!(Refusal::from(&error).status.is_server_error(), "{error}");
        }
        let unknown = Refusal::from(&pull::Error::Unknown(ErrorCode::BlobUnknown));
        assert_eq!((unknown.status, unknown.code), (StatusCode::NOT_FOUND, ErrorCode::BlobUnknown));
    }
}
