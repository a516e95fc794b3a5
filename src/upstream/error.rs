//! What can go wrong with an upstream, by what the caller can do about it.

use std::fmt;
use std::time::Duration;

use crate::oci::ErrorCode;
use crate::routing::{Site, UpstreamName};

/// Which endpoint of which upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The upstream.
    pub upstream: UpstreamName,
    /// The endpoint's scheme, host and port.
    pub endpoint: Site,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.upstream, self.endpoint)
    }
}

/// Whose credential was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// None was sent: the edge has none for this endpoint.
    Nobody,
    /// The edge's.
    Edge,
    /// The caller's own, or that he has none.
    Caller,
}

/// What a time-out was waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// A place among the downloads that run at once.
    Queue,
    /// A connection.
    Connect,
    /// The head of a response.
    Headers,
    /// Bytes of a body, faster than the minimum speed.
    Body,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queue => "too many downloads from it at once, none ended",
            Self::Connect => "no connection",
            Self::Headers => "no response",
            Self::Body => "too few bytes",
        })
    }
}

/// Who has to do something about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The upstream, or the way to it.
    Upstream,
    /// The operator of this edge: its configuration or its credential.
    Edge,
    /// Whoever asked: what they asked for is not there, or not for everybody.
    Request,
}

/// An upstream could not give what was asked for.
///
/// Messages name the upstream and the endpoint, and what an operator can do. They hold no credential and no
/// query of a redirect.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Every endpoint has answered, and none has it.
    #[error("{at} does not have it: {code}")]
    NotFound {
        /// The endpoint that said so (the first of several).
        at: Place,
        /// What exactly it does not have.
        code: ErrorCode,
    },
    /// The upstream wants another credential, or one at all.
    #[error("{at} refuses access ({detail}); {}", credential_advice(*.whose))]
    Unauthorized {
        /// Where.
        at: Place,
        /// Whose credential it was.
        whose: Whose,
        /// The upstream's words.
        detail: String,
    },
    /// The upstream knows who asks and says no.
    #[error("{at} forbids access ({detail}); {}", credential_advice(*.whose))]
    Forbidden {
        /// Where.
        at: Place,
        /// Whose credential it was.
        whose: Whose,
        /// The upstream's words.
        detail: String,
    },
    /// Too many requests.
    #[error("{at} limits the rate of requests; a credential of one's own usually raises the limit")]
    RateLimited {
        /// Where.
        at: Place,
        /// When to come back, if it was said.
        retry_after: Option<Duration>,
    },
    /// Refused, reset, a name that does not resolve, TLS, or an answer of 5xx.
    #[error("{at} cannot be reached: {reason}")]
    Unreachable {
        /// Where.
        at: Place,
        /// What happened.
        reason: String,
        /// When to come back, if it was said.
        retry_after: Option<Duration>,
    },
    /// It is there, perhaps, but does not answer in time.
    #[error("{at} timed out: {stage} within {} ms", .after.as_millis())]
    TimedOut {
        /// Where.
        at: Place,
        /// What was waited for.
        stage: Stage,
        /// How long.
        after: Duration,
    },
    /// The answer is none that a registry gives: a captive portal, a proxy's page, a wrong address.
    #[error("{at} does not answer like a registry: {reason}")]
    NotARegistry {
        /// Where.
        at: Place,
        /// What is odd about the answer.
        reason: String,
    },
    /// The answer contradicts itself, its digest, or what came before.
    #[error("{at} sends corrupt content: {reason}")]
    Corrupt {
        /// Where.
        at: Place,
        /// What contradicts what.
        reason: String,
    },
    /// The upstream names a token service that the configuration does not allow.
    #[error(
        "{at} sends its callers to the token service {realm}, which gets no request: {reason}; \
         if it is right, add its host to `realms` of [upstreams.\"{}\"]", .at.upstream
    )]
    RealmRefused {
        /// Where.
        at: Place,
        /// The token service, without its query.
        realm: String,
        /// Why it is not allowed.
        reason: String,
    },
    /// An answer of 4xx that is none of the above; asking again does not help.
    #[error("{at} refuses the request with status {status} ({detail})")]
    Refused {
        /// Where.
        at: Place,
        /// The HTTP status.
        status: u16,
        /// The upstream's words.
        detail: String,
    },
    /// The configuration of this endpoint does not work.
    #[error("{at} cannot be asked: {reason}")]
    Misconfigured {
        /// Where.
        at: Place,
        /// What has to be mended.
        reason: String,
    },
}

impl Error {
    /// Where it happened.
    pub fn place(&self) -> &Place {
        match self {
            Self::NotFound { at, .. }
            | Self::Unauthorized { at, .. }
            | Self::Forbidden { at, .. }
            | Self::RateLimited { at, .. }
            | Self::Unreachable { at, .. }
            | Self::TimedOut { at, .. }
            | Self::NotARegistry { at, .. }
            | Self::Corrupt { at, .. }
            | Self::RealmRefused { at, .. }
            | Self::Refused { at, .. }
            | Self::Misconfigured { at, .. } => at,
        }
    }

    /// Whether the same request may succeed later without anybody mending anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Unreachable { .. } | Self::TimedOut { .. } => true,
            Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::Forbidden { .. }
            | Self::NotARegistry { .. }
            | Self::Corrupt { .. }
            | Self::RealmRefused { .. }
            | Self::Refused { .. }
            | Self::Misconfigured { .. } => false,
        }
    }

    /// Whether the upstream has refused the caller's own credential, or that he has none.
    pub fn is_of_caller(&self) -> bool {
        matches!(
            self,
            Self::Unauthorized { whose: Whose::Caller, .. } | Self::Forbidden { whose: Whose::Caller, .. }
        )
    }

    /// Who has to do something about it.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Unauthorized { whose: Whose::Edge, .. } | Self::Forbidden { whose: Whose::Edge, .. } => {
                Blame::Edge
            }
            Self::NotFound { .. }
            | Self::Refused { .. }
            | Self::Unauthorized { .. }
            | Self::Forbidden { .. } => Blame::Request,
            Self::RateLimited { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::NotARegistry { .. }
            | Self::Corrupt { .. } => Blame::Upstream,
            Self::RealmRefused { .. } | Self::Misconfigured { .. } => Blame::Edge,
        }
    }

    /// When the upstream wants to be asked again, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Unreachable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The kind as a label of metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Unauthorized { .. } => "unauthorized",
            Self::Forbidden { .. } => "forbidden",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unreachable { .. } => "unreachable",
            Self::TimedOut { .. } => "timed_out",
            Self::NotARegistry { .. } => "not_a_registry",
            Self::Corrupt { .. } => "corrupt",
            Self::RealmRefused { .. } => "realm_refused",
            Self::Refused { .. } => "refused",
            Self::Misconfigured { .. } => "misconfigured",
        }
    }
}

fn credential_advice(whose: Whose) -> &'static str {
    match whose {
        Whose::Nobody => "no credential is configured for this endpoint",
        Whose::Edge => "check the credential of this endpoint",
        Whose::Caller => "the caller has no such right there",
    }
}
