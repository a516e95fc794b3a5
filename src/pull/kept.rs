//! Images that are declared to be kept: whatever of them has arrived is not evicted.
//!
//! What belongs to an image is found in the manifests that are here. One that arrives later, as that of a platform
//! behind its index, adds what it names. When the tag moves, what belonged to the old image alone goes free.

use std::collections::HashSet;

use super::Puller;
use crate::oci::{Digest, MAX_MANIFEST_SIZE, Manifest, Tag};
use crate::routing::Route;

/// Manifests of one image that are read at most: an index of every platform, with a few levels below it.
const MAX_MANIFESTS: usize = 1000;

impl Puller {
    /// Keeps the image that a tag stands for, if a rule says so. Reads its manifests behind the client's back.
    pub(super) fn keep_if_declared(&self, route: &Route, tag: &Tag, digest: &Digest) {
        if !self.0.keeps_any {
            return;
        }
        let policy = self.0.tag_config.policy(&route.upstream.name, &route.repository, tag);
        let name = format!("{}/{}:{tag}", route.upstream.name, route.repository);
        if !policy.keep || self.store().kept_by(digest).contains(&name) {
            return;
        }
        let (puller, digest) = (self.clone(), *digest);
        self.0.tasks.spawn("keep", async move {
            // Of a tag that has moved the old image stays until something of the new one is here.
            if puller.store().contains(&digest).await {
                let digests = puller.image(digest).await;
                puller.store().keep_image(&name, &digests);
            }
        });
    }

    /// Keeps what a manifest names that belongs to a kept image itself.
    pub(super) fn keep_more(&self, digest: &Digest, manifest: &Manifest) {
        for name in self.store().kept_by(digest) {
            self.store().keep_more(&name, manifest.children().map(|child| child.digest));
        }
    }

    /// Everything that belongs to an image, as far as its manifests are here.
    async fn image(&self, digest: Digest) -> HashSet<Digest> {
        let (mut found, mut manifests) = (HashSet::from([digest]), vec![digest]);
        let mut read = 0;
        while let Some(digest) = manifests.pop() {
            read += 1;
            let size = self.store().size_of(&digest).await;
            if read > MAX_MANIFESTS || size.is_none_or(|size| size > MAX_MANIFEST_SIZE as u64) {
                continue;
            }
            let Some(content) = self.store().get(&digest).await else { continue };
            let Ok(body) = content.into_bytes().await else { continue };
            let Ok(manifest) = Manifest::parse(&body, None) else { continue };
            for child in manifest.children() {
                if found.insert(child.digest) && child.is_manifest() {
                    manifests.push(child.digest);
                }
            }
        }
        found
    }
}
