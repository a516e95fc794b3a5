//! Manifests: fetched whole, compared with their digest, parsed, and only then answered.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Error, Freshness, Puller, Served, key};
use crate::oci::{Algorithm, Digest, ErrorCode, MAX_MANIFEST_SIZE, Manifest, Reference};
use crate::routing::Route;
use crate::store::TagRecord;

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
    pub media_type: String,
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
            media_type: self.media_type.to_owned(),
            body: Some(self.body.clone()),
            freshness,
        }
    }
}

impl Puller {
    /// The manifest of a tag or digest.
    ///
    /// # Errors
    /// Why it cannot be had; nothing unverified is ever in an answer.
    pub async fn manifest(
        &self,
        route: &Route,
        reference: &Reference,
        want: Want,
    ) -> Result<ManifestAnswer, Error> {
        let asked = Instant::now();
        let answer = match reference {
            Reference::Digest(digest) => self.manifest_by_digest(route, digest, want, asked).await,
            Reference::Tag(tag) => self.manifest_by_tag(route, tag, want, asked).await,
        }?;
        self.metrics().count_answer("manifest", answer.freshness.served);
        Ok(answer)
    }

    pub(super) async fn manifest_by_digest(
        &self,
        route: &Route,
        digest: &Digest,
        want: Want,
        asked: Instant,
    ) -> Result<ManifestAnswer, Error> {
        let visible = self.is_visible(route, digest).await;
        if !visible && self.store().contains(digest) {
            self.prove_manifest(route, digest).await?;
        }
        if (visible || self.store().contains(digest))
            && let Some(manifest) = self.stored_manifest(digest).await?
        {
            let served = if visible { Served::Hit } else { Served::Revalidated };
            return Ok(manifest.answer(Freshness::of(served)));
        }
        let reference = Reference::Digest(*digest);
        match want {
            Want::Body => self.fetch_manifest(route, &reference, asked).await,
            Want::Head => self.head_by_digest(route, &reference, asked).await,
        }
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

    async fn head_by_digest(
        &self,
        route: &Route,
        reference: &Reference,
        asked: Instant,
    ) -> Result<ManifestAnswer, Error> {
        let key = key(route, reference);
        self.check_negative(&key)?;
        let head = self.client().head_manifest(&route.upstream, &route.repository, reference).await;
        let head = head.map_err(Error::from);
        self.note_negative(&key, &head);
        let head = head?;
        match (reference.digest(), head.size, head.media_type) {
            (Some(digest), Some(size), Some(media_type)) if head.digest.is_none_or(|said| said == digest) => {
                self.set_visible(route, &digest);
                let freshness = Freshness::of(Served::Miss);
                Ok(ManifestAnswer { digest, size, media_type, body: None, freshness })
            }
            // An upstream whose HEAD says too little.
            _ => self.fetch_manifest(route, reference, asked).await,
        }
    }

    /// Fetches, checks and keeps a manifest, once for all who want it.
    pub(super) async fn fetch_manifest(
        &self,
        route: &Route,
        reference: &Reference,
        asked: Instant,
    ) -> Result<ManifestAnswer, Error> {
        let key = key(route, reference);
        self.check_negative(&key)?;
        let (puller, route, reference, negative) =
            (self.clone(), route.clone(), reference.clone(), key.clone());
        let (fetched, joined) = self.0.manifest_fetches.run(key, move || async move {
            if let Some(landed) = puller.landed(&route, &reference, asked).await? {
                return Ok(Arc::new(landed));
            }
            let outcome = puller.fetch_manifest_now(&route, &reference).await;
            puller.note_negative(&negative, &outcome);
            outcome
        });
        let manifest = fetched.await.unwrap_or(Err(Error::Internal))?;
        let served = if joined { Served::Collapsed } else { Served::Miss };
        Ok(manifest.answer(Freshness::of(served)))
    }

    /// What another fetch has brought since `asked`: whoever looked before it landed and leaps after
    /// that must not fetch again.
    async fn landed(
        &self,
        route: &Route,
        reference: &Reference,
        asked: Instant,
    ) -> Result<Option<StoredManifest>, Error> {
        let digest = match reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(tag) => match self.tag_checked_after(route, tag, asked) {
                Some(record) => record.digest,
                None => return Ok(None),
            },
        };
        if self.store().contains(&digest) && self.is_visible(route, &digest).await {
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
        let fetched = self.client().manifest(&route.upstream, &route.repository, reference).await?;
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
        if let Err(error) = self.store().put(verified).await {
            // The memory tier has it: a full disk must not fail a pull.
            tracing::warn!(%digest, %error, "a manifest could not be written to the cache");
        }
        self.set_visible(route, &digest);
        self.prove_children(route, &manifest);
        if let Reference::Tag(tag) = reference {
            let record = TagRecord {
                digest,
                size: Some(stored.body.len() as u64),
                media_type: Some(stored.media_type.to_owned()),
                checked_at: self.0.clock.now(),
            };
            self.store().metadata().set_tag(route.upstream.name.as_str(), &route.repository, tag, record);
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
        asked: Instant,
    ) -> Result<ManifestAnswer, Error> {
        let age = self.0.clock.now().since(record.checked_at).unwrap_or(Duration::ZERO);
        let freshness = Freshness { served, age, ttl };
        if let (Want::Head, Some(size), Some(media_type)) = (want, record.size, &record.media_type) {
            let (digest, media_type) = (record.digest, media_type.clone());
            return Ok(ManifestAnswer { digest, size, media_type, body: None, freshness });
        }
        let answer = self.manifest_by_digest(route, &record.digest, want, asked).await?;
        // A body that had to be fetched is a miss, however well the tag was known.
        let freshness = match answer.freshness.served {
            Served::Hit | Served::Revalidated | Served::Stale => freshness,
            Served::Miss | Served::Collapsed => answer.freshness,
        };
        Ok(ManifestAnswer { freshness, ..answer })
    }
}
