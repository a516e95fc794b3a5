//! Why a pull could not be answered.

use std::sync::Arc;
use std::time::Duration;

use crate::oci::{ErrorCode, ManifestError, Mismatch};
use crate::upstream::Whose;
use crate::{store, upstream};

/// Why a pull could not be answered. Clones share the cause: one failed fetch has many waiters.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Every place that was asked says that it does not exist, or not for this repository.
    #[error("not found upstream")]
    Unknown(ErrorCode),
    /// The upstream could not answer, or refused the edge.
    #[error(transparent)]
    Upstream(Arc<upstream::Error>),
    /// The upstream's manifest cannot be used.
    #[error("the upstream's manifest is refused: {0}")]
    Manifest(Arc<ManifestError>),
    /// The upstream's bytes are not those of the digest.
    #[error("the upstream sent wrong bytes: {0}")]
    Corrupt(Arc<Mismatch>),
    /// The blob is larger than this edge accepts, or than it was said to be.
    #[error("the blob is too large: {0} bytes are accepted")]
    TooLarge(u64),
    /// The cache's disk refused.
    #[error(transparent)]
    Store(Arc<store::Error>),
    /// A cached file could not be read to its end.
    #[error("reading the cache: {0}")]
    Read(Arc<std::io::Error>),
    /// The wanted bytes did not arrive in time; the fill goes on.
    #[error("the wanted bytes did not arrive within {0:?}; the fill goes on")]
    Deadline(Duration),
    /// No disk takes the blob, and the wanted bytes have passed by: they have to be fetched once more.
    #[error("the wanted bytes have passed by, and the cache has no room for them")]
    PassedBy,
    /// A range is to be verified before it is answered, and there is no room for the blob anywhere.
    #[error("no room for the blob, so that the range cannot be verified")]
    Unverifiable,
    /// Nobody waited for the fill any more, and it was stopped.
    #[error("the fill was stopped because nobody waited for it")]
    Abandoned,
    /// A task of ours died; its panic is in the log.
    #[error("an internal task failed")]
    Internal,
}

impl Error {
    /// Whether something stale is better than this: the upstream could not be asked, sends what
    /// cannot be used, or does not accept the edge's credential any more. A "no" is no
    /// unavailability: what does not exist, or is not for everybody any more, is not answered from
    /// the cache.
    pub fn is_unavailability(&self) -> bool {
        match self {
            Self::Unknown(_) => false,
            Self::Upstream(error) => match **error {
                upstream::Error::Unauthorized { whose, .. } | upstream::Error::Forbidden { whose, .. } => {
                    whose == Whose::Edge
                }
                _ => true,
            },
            _ => true,
        }
    }

    /// Whether the upstream has refused the caller on whose behalf it was asked: another may still be given it.
    pub fn is_of_caller(&self) -> bool {
        matches!(self, Self::Upstream(error) if error.is_of_caller())
    }

    /// Whether it says something of the repository or the caller for whom the upstream was asked: another may be given it.
    pub(super) fn is_of_scope(&self) -> bool {
        match self {
            Self::Unknown(_) => true,
            Self::Upstream(error) => {
                matches!(**error, upstream::Error::Unauthorized { .. } | upstream::Error::Forbidden { .. })
            }
            _ => false,
        }
    }

    /// Whether the upstream's quota was the reason, by its word or by ours.
    pub(super) fn is_rate_limit(&self) -> bool {
        matches!(self, Self::Upstream(error) if matches!(**error, upstream::Error::RateLimited { .. }))
    }

    /// Whether what a fill has brought so far is worth nothing to the next one: the upstream has
    /// contradicted it, or the disk does not hold it.
    pub(super) fn spoils_partial(&self) -> bool {
        match self {
            Self::Corrupt(_) | Self::TooLarge(_) | Self::Store(_) | Self::Read(_) => true,
            Self::Upstream(error) => matches!(
                **error,
                upstream::Error::Corrupt { .. }
                    | upstream::Error::NotARegistry { .. }
                    | upstream::Error::Refused { .. }
            ),
            Self::Unknown(_)
            | Self::Manifest(_)
            | Self::Deadline(_)
            | Self::PassedBy
            | Self::Unverifiable
            | Self::Abandoned
            | Self::Internal => false,
        }
    }
}

impl From<upstream::Error> for Error {
    fn from(error: upstream::Error) -> Self {
        match error {
            upstream::Error::NotFound { code, .. } => Self::Unknown(code),
            other => Self::Upstream(Arc::new(other)),
        }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<ManifestError> for Error {
    fn from(error: ManifestError) -> Self {
        Self::Manifest(Arc::new(error))
    }
}

impl From<store::SealError> for Error {
    fn from(error: store::SealError) -> Self {
        match error {
            store::SealError::Mismatch(mismatch) => Self::Corrupt(Arc::new(mismatch)),
            store::SealError::Store(error) => error.into(),
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Read(Arc::new(error))
    }
}
