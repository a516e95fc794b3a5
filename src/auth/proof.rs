//! What an upstream is asked, so that its answer proves a caller's right.

use crate::oci::{Digest, Page, Reference};
use crate::routing::Route;
use crate::upstream::{Client, Error, Purpose};

/// What a request wants of a repository.
#[derive(Debug, Clone, Copy)]
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

/// The same, to be asked as the caller. That the upstream gives it to him is the proof; that its token service has issued
/// a token is none, since it may hold less than was asked for (distribution `docs/spec/auth/token.md`).
#[derive(Debug, Clone)]
pub(super) enum Proof {
    Manifest(Reference),
    Blob(Digest),
    Tags,
    Referrers(Digest),
}

impl From<Wanted<'_>> for Proof {
    fn from(wanted: Wanted<'_>) -> Self {
        match wanted {
            Wanted::Manifest(reference) => Self::Manifest(reference.clone()),
            Wanted::Blob(digest) => Self::Blob(*digest),
            Wanted::Tags => Self::Tags,
            Wanted::Referrers(digest) => Self::Referrers(*digest),
        }
    }
}

impl Proof {
    /// Asks; nothing is fetched but what a HEAD or a page of one tag brings.
    ///
    /// # Errors
    /// The upstream's answer, where it is no yes.
    pub(super) async fn ask(&self, client: &Client, route: &Route) -> Result<(), Error> {
        let manifest = async |reference: &Reference| {
            client.head_manifest(route, reference, Purpose::Proof).await.map(|_| ())
        };
        let tags = async || {
            let page = Page { n: Some(1), last: None };
            client.tags(route, &page, Purpose::Proof).await.map(|_| ())
        };
        match self {
            Self::Manifest(reference) => manifest(reference).await,
            Self::Blob(digest) => client.head_blob(route, digest, Purpose::Proof).await.map(|_| ()),
            Self::Tags => tags().await,
            Self::Referrers(digest) => match manifest(&Reference::Digest(*digest)).await {
                // What is referred to need not be there.
                Err(Error::NotFound { .. }) => tags().await,
                answer => answer,
            },
        }
    }
}
