//! Which repository may see which digest.
//!
//! Seeing a digest is a right of its own: a repository has it once *its* upstream has answered for
//! the digest. A manifest that merely names a digest grants nothing, or anyone could publish one
//! that names another tenant's private layer. The bytes are shared, the right is not. An upstream
//! that is declared public shares the right among its repositories too.

use futures_util::StreamExt;

use super::{Error, Puller, key};
use crate::oci::{Descriptor, Digest, Manifest, Reference};
use crate::routing::{Access, Route};
use crate::store::Scope;

/// Proofs that run at once for the layers of one manifest: enough to hide the latency, few enough
/// not to look like an attack.
const CONCURRENT_PROOFS: usize = 4;

impl Puller {
    /// Whether the route's repository may see the digest without asking its upstream again.
    pub(super) async fn is_visible(&self, route: &Route, digest: &Digest) -> bool {
        let metadata = self.store().metadata();
        metadata.is_visible(route.upstream.name.as_str(), scope(route), digest).await
    }

    /// Notes that the upstream has answered for the digest in this repository.
    pub(super) fn set_visible(&self, route: &Route, digest: &Digest) {
        let now = self.0.clock.now();
        self.store().metadata().set_visible(route.upstream.name.as_str(), scope(route), digest, now);
    }

    /// The scope of the route as one text: flights of the same scope share their proof.
    pub(super) fn scope_key(route: &Route) -> String {
        match scope(route) {
            Scope::Repository(_) => key(route, ""),
            Scope::Upstream => format!("{}\0*", route.upstream.name),
        }
    }

    /// The key under which it is remembered that this repository does not have this blob.
    pub(super) fn blob_key(route: &Route, digest: &Digest) -> String {
        Kind::Blob.key(route, digest)
    }

    /// Asks the upstream whether this repository has this blob, once for all who wonder. Returns
    /// its size where the upstream says it.
    pub(super) async fn prove_blob(&self, route: &Route, digest: &Digest) -> Result<Option<u64>, Error> {
        self.prove(route, *digest, Kind::Blob).await
    }

    /// As [`Puller::prove_blob`], for a manifest.
    pub(super) async fn prove_manifest(&self, route: &Route, digest: &Digest) -> Result<(), Error> {
        self.prove(route, *digest, Kind::Manifest).await.map(|_| ())
    }

    async fn prove(&self, route: &Route, digest: Digest, kind: Kind) -> Result<Option<u64>, Error> {
        let key = kind.key(route, &digest);
        self.check_negative(&key)?;
        let (puller, route, negative) = (self.clone(), route.clone(), key.clone());
        let (outcome, _) = self.0.proofs.run(key, || async move {
            if puller.is_visible(&route, &digest).await
                && let Some(size) = puller.store().size_of(&digest)
            {
                // Proven since the caller looked.
                return Ok(Some(size));
            }
            let outcome = puller.ask(&route, &digest, kind).await;
            puller.note_negative(&negative, &outcome);
            if outcome.is_ok() {
                puller.set_visible(&route, &digest);
            }
            outcome
        });
        outcome.await.unwrap_or(Err(Error::Internal))
    }

    async fn ask(&self, route: &Route, digest: &Digest, kind: Kind) -> Result<Option<u64>, Error> {
        let client = self.client();
        match kind {
            Kind::Blob => Ok(client.head_blob(&route.upstream, &route.repository, digest).await?.size),
            Kind::Manifest => {
                let reference = Reference::Digest(*digest);
                Ok(client.head_manifest(&route.upstream, &route.repository, &reference).await?.size)
            }
        }
    }

    /// Proves behind the client's back what a manifest names and the store already has, so that a
    /// layer shared with another repository is a hit, and the pull complete when the upstream is
    /// down. What is not here needs no proof of its own: fetching it is one.
    pub(super) fn prove_children(&self, route: &Route, manifest: &Manifest) {
        let here: Vec<Descriptor> =
            manifest.children().filter(|child| self.store().contains(&child.digest)).cloned().collect();
        if here.is_empty() {
            return;
        }
        let (puller, route) = (self.clone(), route.clone());
        self.0.tasks.spawn("prove", async move {
            let (puller, route) = (&puller, &route);
            futures_util::stream::iter(here)
                .for_each_concurrent(CONCURRENT_PROOFS, |child| async move {
                    if puller.is_visible(route, &child.digest).await {
                        return;
                    }
                    let kind = if child.is_manifest() { Kind::Manifest } else { Kind::Blob };
                    if let Err(error) = puller.prove(route, child.digest, kind).await {
                        tracing::debug!(digest = %child.digest, %error, "not proven; the pull will ask");
                    }
                })
                .await;
        });
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Blob,
    Manifest,
}

impl Kind {
    fn key(self, route: &Route, digest: &Digest) -> String {
        key(route, format_args!("{self:?} {digest}"))
    }
}

fn scope(route: &Route) -> Scope<'_> {
    match route.upstream.access {
        Access::Edge => Scope::Repository(&route.repository),
        Access::Open => Scope::Upstream,
    }
}
