//! Which repository may see which digest.
//!
//! Seeing a digest is a right of its own: a repository has it once *its* upstream has answered for
//! the digest. A manifest that merely names a digest grants nothing, or anyone could publish one
//! that names another tenant's private layer. The bytes are shared, the right is not. An upstream
//! that is declared public shares the right among its repositories too. Who may pull from the repository at all was decided
//! before (`auth`).

use futures_util::StreamExt;

use super::{Error, Puller, ask_once, caller_key, key};
use crate::oci::{Descriptor, Digest, Manifest};
use crate::routing::{Access, Route};
use crate::store::Scope;
use crate::upstream::Purpose;

/// Proofs that run at once for the layers of one manifest: enough to hide the latency, few enough
/// not to look like an attack.
const CONCURRENT_PROOFS: usize = 4;

impl Puller {
    /// Whether memory knows that the route's repository may see the digest.
    pub(super) fn is_known_visible(&self, route: &Route, digest: &Digest) -> bool {
        self.store().metadata().is_known_visible(route.upstream.name.as_str(), scope(route), digest)
    }

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

    /// The scope of the route as one text: flights of the same scope share their proof. What is fetched as one caller
    /// proves nothing to another.
    pub(super) fn scope_key(route: &Route) -> String {
        match scope(route) {
            Scope::Repository(_) => caller_key(route, ""),
            Scope::Upstream => format!("{}\0*", route.upstream.name),
        }
    }

    /// The key under which it is remembered that this repository does not have this blob.
    pub(super) fn blob_key(route: &Route, digest: &Digest) -> String {
        key(route, format_args!("blob {digest}"))
    }

    /// Asks the upstream whether this repository has this blob, once for all who wonder. Returns
    /// its size where the upstream says it.
    pub(super) async fn prove_blob(
        &self,
        route: &Route,
        digest: &Digest,
        purpose: Purpose,
    ) -> Result<Option<u64>, Error> {
        let key = Self::blob_key(route, digest);
        self.check_negative(&key)?;
        let prove = || {
            let (puller, route, digest, negative) = (self.clone(), route.clone(), *digest, key.clone());
            async move {
                if puller.is_visible(&route, &digest).await
                    && let Some(size) = puller.store().size_of(&digest).await
                {
                    // Proven since the caller looked.
                    return Ok(Some(size));
                }
                let head = puller.client().head_blob(&route, &digest, purpose).await;
                let size = head.map(|head| head.size).map_err(Error::from);
                puller.note_negative(&negative, &size);
                if size.is_ok() {
                    puller.set_visible(&route, &digest);
                }
                size
            }
        };
        ask_once(&self.0.proofs, &key, purpose, prove).await
    }

    /// Proves behind the client's back what a manifest names and the store already has, so that a
    /// layer shared with another repository is a hit, and the pull complete when the upstream is
    /// down. What is not here needs no proof of its own: fetching it is one.
    pub(super) fn prove_children(&self, route: &Route, manifest: &Manifest) {
        let children: Vec<Descriptor> = manifest.children().cloned().collect();
        let (puller, route) = (self.clone(), route.clone());
        self.0.tasks.spawn("prove", async move {
            let (puller, route) = (&puller, &route);
            futures_util::stream::iter(children)
                .for_each_concurrent(CONCURRENT_PROOFS, |child| async move {
                    let is_here = puller.store().contains(&child.digest).await;
                    if !is_here || puller.is_visible(route, &child.digest).await {
                        return;
                    }
                    let purpose = Purpose::Background;
                    let proof = if child.is_manifest() {
                        puller.manifest_head(route, &child.digest, purpose).await.map(|_| ())
                    } else {
                        puller.prove_blob(route, &child.digest, purpose).await.map(|_| ())
                    };
                    if let Err(error) = proof {
                        tracing::debug!(digest = %child.digest, %error, "not proven; the pull will ask");
                    }
                })
                .await;
        });
    }
}

fn scope(route: &Route) -> Scope<'_> {
    match route.upstream.access {
        Access::Edge | Access::Caller => Scope::Repository(&route.repository),
        Access::Open => Scope::Upstream,
    }
}
