//! What an upstream is asked, so that its answer proves a caller's right.

use crate::oci::{Digest, Page, Reference};
use crate::routing::Route;
use crate::upstream::{Client, Error, Purpose};

/// What a request wants of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wanted<'a> {
    /// A manifest.
    Manifest(&'a Reference),
    /// A blob.
    Blob(&'a Digest),
    /// The list of its tags.
    Tags,
    /// What refers to a manifest.
    Referrers(&'a Digest),
}

impl Wanted<'_> {
    /// Which right it takes.
    pub(super) fn class(self) -> Class {
        match self {
            Self::Manifest(_) | Self::Blob(_) | Self::Referrers(_) => Class::Content,
            Self::Tags => Class::List,
        }
    }
}

/// The rights that registries tell apart: who may list tags may not pull for that (Azure's `metadata/read`), nor the other
/// way around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Class {
    Content,
    List,
}

impl Class {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::List => "list",
        }
    }
}

/// The same, to be asked as the caller. That the upstream gives it to him is the proof; that its token service has issued
/// a token is none, since it may hold less than was asked for (distribution `docs/spec/auth/token.md`).
#[derive(Debug, Clone)]
pub(super) enum Proof {
    Manifest(Reference),
    Blob(Digest),
    Tags,
}

impl From<Wanted<'_>> for Proof {
    fn from(wanted: Wanted<'_>) -> Self {
        match wanted {
            Wanted::Manifest(reference) => Self::Manifest(reference.clone()),
            Wanted::Blob(digest) => Self::Blob(*digest),
            Wanted::Tags => Self::Tags,
            // Who may pull it may know what refers to it.
            Wanted::Referrers(digest) => Self::Manifest(Reference::Digest(*digest)),
        }
    }
}

impl Proof {
    /// Asks; next to nothing is fetched for it.
    ///
    /// # Errors
    /// The upstream's answer, where it is no yes.
    pub(super) async fn ask(&self, client: &Client, route: &Route) -> Result<(), Error> {
        const PURPOSE: Purpose = Purpose::Proof;
        match self {
            Self::Manifest(reference) => {
                let head = client.head_manifest(route, reference, PURPOSE).await?;
                if head.digest.is_none() {
                    // What says so little may be a proxy that answers a HEAD itself.
                    client.manifest(route, reference, PURPOSE).await?;
                }
                Ok(())
            }
            Self::Blob(digest) => client.try_blob(route, digest, PURPOSE).await,
            Self::Tags => {
                let page = Page { n: Some(1), last: None };
                client.tags(route, &page, PURPOSE).await.map(|_| ())
            }
        }
    }
}
