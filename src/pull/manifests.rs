//! Manifests: fetched whole, compared with their digest, parsed, and only then answered.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Error, Freshness, Puller, Served, ask_once, key};
use crate::auth::Admitted;
use crate::oci::{Algorithm, Digest, ErrorCode, MAX_MANIFEST_SIZE, Manifest, Reference};
use crate::routing::Route;
use crate::store::TagRecord;
use crate::upstream::{ManifestHead, Purpose};

/// Whether the body is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Digest, size and media type only; nothing is fetched for them.
    Head,
    /// The whole manifest.
    Body,
}

/// A manifest, or what is known of it.
#[derive(Debug, Clone)]
pub struct ManifestAnswer {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: Cow<'static, str>,
    /// The bytes, where they were wanted or at hand.
    pub body: Option<Bytes>,
    /// How fresh it is.
    pub freshness: Freshness,
}

/// A manifest that has passed every check.
#[derive(Debug)]
pub(super) struct StoredManifest {
    digest: Digest,
    media_type: &'static str,
    body: Bytes,
}

impl StoredManifest {
    fn answer(&self, freshness: Freshness) -> ManifestAnswer {
        ManifestAnswer {
            digest: self.digest,
            size: self.body.len() as u64,
            media_type: self.media_type.into(),
            body: Some(self.body.clone()),
            freshness,
        }
    }
}

impl Puller {
    /// The manifest of a tag or digest, if memory alone can answer: the tag is fresh, the right is proven, the bytes are
    /// hot. Waits for nothing and asks nobody.
    pub fn hot_manifest(&self, admitted: &Admitted, reference: &Reference) -> Option<ManifestAnswer> {
        let route = admitted.route();
        let (digest, freshness) = match reference {
            Reference::Digest(digest) => (*digest, Freshness::of(Served::Hit)),
            Reference::Tag(tag) => self.hot_tag(route, tag)?,
        };
        if !self.is_known_visible(route, &digest) {
            return None;
        }
        let media_type = self.0.media_types.get(&digest)?;
        let body = self.store().hot(&digest)?;
        if let Reference::Tag(tag) = reference {
            self.keep_if_declared(route, tag, &digest);
        }
        self.metrics().count_answer("manifest", Served::Hit);
        Some(StoredManifest { digest, media_type, body }.answer(freshness))
    }

    /// The manifest of a tag or digest.
    ///
    /// Whatever asks an upstream is boxed: hyper moves the future of every request, so that of a hit is to be small.
    ///
    /// # Errors
    /// Why it cannot be had; nothing unverified is ever in an answer.
    pub async fn manifest(
        &self,
        admitted: &Admitted,
        reference: &Reference,
        want: Want,
    ) -> Result<ManifestAnswer, Error> {
        let route = admitted.route();
        let answer = match reference {
            Reference::Digest(digest) => self.manifest_by_digest(route, digest, want).await,
            Reference::Tag(tag) => {
                let answer = self.manifest_by_tag(route, tag, want).await;
                answer.inspect(|answer| self.keep_if_declared(route, tag, &answer.digest))
            }
        }?;
        self.metrics().count_answer("manifest", answer.freshness.served);
        Ok(answer)
    }

    pub(super) async fn manifest_by_digest(
        &self,
        route: &Route,
        digest: &Digest,
        want: Want,
    ) -> Result<ManifestAnswer, Error> {
        let visible = self.is_visible(route, digest).await;
        // One look: what arrives after it is not proven for this repository.
        let proven = if visible {
            true
        } else if self.store().contains(digest).await {
            Box::pin(self.manifest_head(route, digest, Purpose::Pull)).await?;
            true
        } else {
            false
        };
        if proven && let Some(manifest) = self.stored_manifest(digest).await? {
            let served = if visible { Served::Hit } else { Served::Revalidated };
            return Ok(manifest.answer(Freshness::of(served)));
        }
        if want == Want::Head {
            let head = Box::pin(self.manifest_head(route, digest, Purpose::Pull)).await?;
            if let (Some(size), Some(media_type)) = (head.size, head.media_type) {
                let freshness = Freshness::of(Served::Forwarded);
                let media_type = media_type.into();
                return Ok(ManifestAnswer { digest: *digest, size, media_type, body: None, freshness });
            }
            // An upstream whose HEAD says too little.
        }
        Box::pin(self.fetch_manifest(route, &Reference::Digest(*digest))).await
    }

    /// What the store has under this digest, if it is a manifest at all.
    async fn stored_manifest(&self, digest: &Digest) -> Result<Option<StoredManifest>, Error> {
        let Some(content) = self.store().get(digest).await else {
            return Ok(None);
        };
        // A digest of something else is no manifest, whatever its size.
        let unknown = || Error::Unknown(ErrorCode::ManifestUnknown);
        if content.size() > MAX_MANIFEST_SIZE as u64 {
            return Err(unknown());
        }
        let body = content.into_bytes().await?;
        let media_type = match self.0.media_types.get(digest) {
            Some(media_type) => media_type,
            None => {
                let media_type = Manifest::parse(&body, None).map_err(|_| unknown())?.media_type();
                self.0.media_types.insert(*digest, media_type);
                media_type
            }
        };
        Ok(Some(StoredManifest { digest: *digest, media_type, body }))
    }

    /// Asks the upstream with one HEAD whether this repository has this manifest, once for all who
    /// wonder; its answer is the proof.
    pub(super) async fn manifest_head(
        &self,
        route: &Route,
        digest: &Digest,
        purpose: Purpose,
    ) -> Result<ManifestHead, Error> {
        let key = key(route, digest);
        self.check_negative(&key)?;
        let ask = || {
            let (puller, route, digest, negative) = (self.clone(), route.clone(), *digest, key.clone());
            async move {
                let reference = Reference::Digest(digest);
                let head = puller.client().head_manifest(&route, &reference, purpose).await;
                let head = head.map_err(Error::from);
                puller.note_negative(&negative, &head);
                if head.is_ok() {
                    puller.set_visible(&route, &digest);
                }
                head
            }
        };
        ask_once(&self.0.manifest_heads, &key, purpose, ask).await
    }

    /// Fetches, checks and keeps a manifest, once for all who want it.
    pub(super) async fn fetch_manifest(
        &self,
        route: &Route,
        reference: &Reference,
    ) -> Result<ManifestAnswer, Error> {
        let key = key(route, reference);
        self.check_negative(&key)?;
        loop {
            let (puller, route, reference, negative) =
                (self.clone(), route.clone(), reference.clone(), key.clone());
            let (fetched, joined) = self.0.manifest_fetches.run(key.clone(), move || async move {
                if let Some(landed) = puller.landed(&route, &reference).await? {
                    return Ok(Arc::new(landed));
                }
                let outcome = puller.fetch_manifest_now(&route, &reference).await;
                puller.note_negative(&negative, &outcome);
                outcome
            });
            let served = if joined { Served::Collapsed } else { Served::Miss };
            match fetched.await.unwrap_or(Err(Error::Internal)) {
                // It was fetched on behalf of somebody who may not.
                Err(error) if joined && error.is_of_caller() => {}
                fetched => return Ok(fetched?.answer(Freshness::of(served))),
            }
        }
    }

    /// What another fetch has brought since the caller looked: whoever leaps after that fetch has
    /// landed must not fetch again.
    async fn landed(&self, route: &Route, reference: &Reference) -> Result<Option<StoredManifest>, Error> {
        let digest = match reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(tag) => match self.fresh_record(route, tag).await {
                Some(record) => record.digest,
                None => return Ok(None),
            },
        };
        if self.store().contains(&digest).await && self.is_visible(route, &digest).await {
            self.stored_manifest(&digest).await
        } else {
            Ok(None)
        }
    }

    async fn fetch_manifest_now(
        &self,
        route: &Route,
        reference: &Reference,
    ) -> Result<Arc<StoredManifest>, Error> {
        let (checked_at, asked_at) = (self.0.clock.now(), Instant::now());
        let fetched = self.client().manifest(route, reference, Purpose::Pull).await?;
        let digest = reference
            .digest()
            .or(fetched.digest)
            .unwrap_or_else(|| Digest::of(Algorithm::Sha256, &fetched.body));
        let verified = digest.verify(fetched.body).map_err(|mismatch| Error::Corrupt(Arc::new(mismatch)))?;
        let manifest = Manifest::parse(verified.bytes(), fetched.content_type.as_deref())?;
        let stored = Arc::new(StoredManifest {
            digest,
            media_type: manifest.media_type(),
            body: verified.bytes().clone(),
        });
        self.0.media_types.insert(digest, stored.media_type);
        let is_new = !self.store().contains(&digest).await;
        let cost = asked_at.elapsed() + self.client().quota_price(&route.upstream);
        if let Err(error) = self.store().put(verified, cost).await {
            // The memory tier has it: a full disk must not fail a pull.
            tracing::warn!(%digest, %error, "a manifest could not be written to the cache");
        }
        self.set_visible(route, &digest);
        if is_new {
            self.store().note_image(manifest.children().map(|child| child.digest));
        }
        self.keep_more(&digest, &manifest);
        self.prove_children(route, &manifest);
        if let Reference::Tag(tag) = reference {
            let record = TagRecord {
                digest,
                size: Some(stored.body.len() as u64),
                media_type: Some(stored.media_type.to_owned()),
                checked_at,
            };
            let (metadata, now) = (self.store().metadata(), self.0.clock.now());
            metadata.set_tag(route.upstream.name.as_str(), &route.repository, tag, record, now);
        }
        Ok(stored)
    }

    /// The answer to a tag whose manifest is known by its record.
    pub(super) async fn manifest_of_record(
        &self,
        route: &Route,
        record: &TagRecord,
        want: Want,
        served: Served,
        ttl: Option<i64>,
    ) -> Result<ManifestAnswer, Error> {
        let freshness = Freshness { served, age: self.age(record).unwrap_or_default(), ttl };
        if let (Want::Head, Some(size), Some(media_type)) = (want, record.size, &record.media_type) {
            let (digest, media_type) = (record.digest, Cow::Owned(media_type.clone()));
            return Ok(ManifestAnswer { digest, size, media_type, body: None, freshness });
        }
        let answer = self.manifest_by_digest(route, &record.digest, want).await?;
        // A body that had to be fetched is a miss, however well the tag was known.
        let freshness = match answer.freshness.served {
            Served::Hit | Served::Revalidated | Served::Stale => freshness,
            Served::Miss | Served::Forwarded | Served::Collapsed => answer.freshness,
        };
        Ok(ManifestAnswer { freshness, ..answer })
    }
}
