//! Blobs: from the store, from a flight, or by starting one.

use std::sync::Arc;

use bytes::Bytes;

use super::flight::{TAIL, WHOLE};
use super::reader::{Reader, Source};
use super::refetch::Errand;
use super::window::CAPACITY;
use super::{Error, Freshness, Puller, Served, fill};
use crate::auth::Admitted;
use crate::oci::{ByteRange, Digest, RangeRequest, Resolved};
use crate::routing::Route;
use crate::store::Content;
use crate::upstream::Purpose;

/// What is known of a blob without its bytes.
#[derive(Debug, Clone, Copy)]
pub struct BlobHead {
    /// Its size in bytes, where anybody has said it.
    pub size: Option<u64>,
    /// How fresh this is.
    pub freshness: Freshness,
}

/// A blob that can be read.
#[derive(Debug)]
pub struct BlobAnswer {
    source: Source,
    size: Option<u64>,
    puller: Puller,
    /// How to fetch it once more, should the flight not keep it.
    errand: Option<Errand>,
    /// How fresh it is.
    pub freshness: Freshness,
}

impl BlobAnswer {
    /// Its size in bytes, where the upstream has said it already.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Its size in bytes; waits for the whole blob where the upstream did not say it.
    ///
    /// # Errors
    /// Why the blob could not be completed.
    pub async fn known_size(&mut self) -> Result<u64, Error> {
        if let Some(size) = self.size {
            return Ok(size);
        }
        match (self.sealed().await, &mut self.source) {
            (Err(Error::PassedBy), Source::Flight(follower)) => {
                let wait = self.puller.fill_config().wait_timeout;
                let size = tokio::time::timeout(wait, follower.size()).await;
                self.size = Some(size.unwrap_or(Err(Error::Deadline(wait)))?);
            }
            (sealed, _) => sealed?,
        }
        if let (Some(errand), size) = (&mut self.errand, self.size) {
            errand.size = size;
        }
        self.size.ok_or(Error::Internal)
    }

    /// Everything, from the first byte.
    pub fn whole(self) -> Reader {
        Reader::whole(self.source, self.size, self.puller, self.errand)
    }

    /// Some parts, one after the other; at least one. They are read once the digest is known where the
    /// configuration says so, and where the blob is so small that it is fetched as a whole.
    ///
    /// # Errors
    /// Why the blob could not be completed, where that had to be waited for.
    pub async fn ranges(mut self, ranges: Vec<ByteRange>) -> Result<Reader, Error> {
        if self.size.is_none_or(|size| self.puller.is_verified_first(size)) {
            match self.sealed().await {
                Err(Error::PassedBy) => self.verified_first(&ranges).await?,
                sealed => sealed?,
            }
        }
        Ok(Reader::of(self.source, ranges, self.puller, self.errand))
    }

    /// The ranges are to be verified before they are answered, and the flight keeps nothing: they are fetched with all
    /// the rest, and held in memory.
    async fn verified_first(&mut self, ranges: &[ByteRange]) -> Result<(), Error> {
        let Some(errand) = &mut self.errand else { return Err(Error::Internal) };
        (errand.size, errand.is_verified_first) = (self.size, true);
        let wait = self.puller.fill_config().wait_timeout;
        let small = tokio::time::timeout(wait, errand.fetch_small()).await;
        if let Some(whole) = small.unwrap_or(Err(Error::Deadline(wait)))? {
            self.source = Source::Memory(whole);
            return Ok(());
        }
        let [range] = ranges else { return Err(Error::Unverifiable) };
        if self.size.is_none_or(|size| range.end < size) && range.len() > CAPACITY as u64 {
            return Err(Error::Unverifiable);
        }
        self.source = Source::Refetch(Box::new(errand.fetch(range.start, Some(range.end))));
        Ok(())
    }

    async fn sealed(&mut self) -> Result<(), Error> {
        if let Source::Flight(follower) = &mut self.source {
            let wait = self.puller.fill_config().wait_timeout;
            let blob =
                tokio::time::timeout(wait, follower.sealed()).await.unwrap_or(Err(Error::Deadline(wait)))?;
            self.size = Some(blob.size());
            self.source = Source::Sealed(blob);
        }
        Ok(())
    }
}

impl Puller {
    /// The blob of a digest. Where only a range of it is asked for, only that is fetched.
    ///
    /// # Errors
    /// Why it cannot be had. Once this has succeeded, a failure breaks the reader.
    pub async fn blob(
        &self,
        admitted: &Admitted,
        digest: &Digest,
        range: Option<&RangeRequest>,
    ) -> Result<BlobAnswer, Error> {
        let route = admitted.route();
        let answer = match self.stored_blob(route, digest, range).await? {
            Some(answer) => answer,
            None => self.flying_blob(route, digest, range).await?,
        };
        self.metrics().count_answer("blob", answer.freshness.served);
        Ok(answer)
    }

    async fn stored_blob(
        &self,
        route: &Route,
        digest: &Digest,
        range: Option<&RangeRequest>,
    ) -> Result<Option<BlobAnswer>, Error> {
        if !self.store().contains(digest).await {
            return Ok(None);
        }
        let visible = self.is_visible(route, digest).await;
        if !visible {
            self.prove_blob(route, digest, Purpose::Pull).await?;
        }
        let served = if visible { Served::Hit } else { Served::Revalidated };
        let content = self.store().get(digest).await;
        if let Some(Content::Disk(blob)) = &content
            && let Err(error) = blob.warm(first_wanted(range, blob.size())).await
        {
            tracing::warn!(%digest, %error, "a cached blob cannot be read; it is fetched again");
            self.store().distrust(blob).await;
            return Ok(None);
        }
        Ok(content.map(|content| self.answer_of(content, served)))
    }

    fn answer_of(&self, content: Content, served: Served) -> BlobAnswer {
        let age = match &content {
            Content::Disk(blob) => self.0.clock.now().since(blob.sealed_at()).unwrap_or_default(),
            Content::Memory(_) => std::time::Duration::ZERO,
        };
        BlobAnswer {
            size: Some(content.size()),
            source: content.into(),
            puller: self.clone(),
            errand: None,
            freshness: Freshness { served, age, ttl: None },
        }
    }

    /// Joins the flight of the digest or starts it.
    async fn flying_blob(
        &self,
        route: &Route,
        digest: &Digest,
        range: Option<&RangeRequest>,
    ) -> Result<BlobAnswer, Error> {
        let scope = Self::scope_key(route);
        let negative = Self::blob_key(route, digest);
        self.check_negative(&negative)?;
        loop {
            let flying = self.0.flights.look(&route.upstream.name, digest);
            let foreign = flying.as_ref().is_some_and(|(flying, _)| *flying != scope);
            if foreign && !self.is_visible(route, digest).await {
                // The flight proves another repository's right; ours is asked for beside it.
                self.prove_blob(route, digest, Purpose::Pull).await?;
            }
            // What a range means is known once the size is.
            let size = match (range, flying) {
                (None, _) => None,
                (Some(_), Some((_, Some(size)))) => Some(size),
                (Some(range), _) => self.size_upstream(route, digest, range).await?,
            };
            let wanted = match (range, size) {
                (Some(range), Some(size)) if range.resolve(size) == Resolved::Unsatisfiable => {
                    let nothing = Content::Memory(Bytes::new());
                    return Ok(BlobAnswer { size: Some(size), ..self.answer_of(nothing, Served::Forwarded) });
                }
                (Some(range), Some(size)) => self.wanted(range, size),
                _ => vec![WHOLE],
            };
            let (mut follower, started) =
                self.0.flights.join_or_start(&route.upstream.name, *digest, &scope, wanted);
            let own = follower.scope() == scope;
            if !own && !foreign {
                // Somebody else's flight took off between the look and the leap.
                continue;
            }
            let joined = started.is_none();
            if let Some(flight) = started {
                let (puller, route, digest) = (self.clone(), route.clone(), *digest);
                self.0.tasks.spawn("fill", fill::run(puller, Arc::clone(&flight), route, digest, size));
            }
            let wait = self.fill_config().wait_timeout;
            let answered = tokio::time::timeout(wait, follower.answered()).await;
            match answered.unwrap_or(Err(Error::Deadline(wait))) {
                Ok(size) => {
                    if range.is_some() && size.is_none() {
                        // The transfer under way does not say where it ends; only its end does.
                        follower.want(vec![WHOLE]);
                    }
                    let served = if joined {
                        Served::Collapsed
                    } else if follower.is_kept() {
                        Served::Miss
                    } else {
                        Served::Forwarded
                    };
                    let source = Source::Flight(follower);
                    let errand = Errand {
                        puller: self.clone(),
                        route: route.clone(),
                        digest: *digest,
                        size,
                        is_verified_first: false,
                    };
                    return Ok(BlobAnswer {
                        source,
                        size,
                        puller: self.clone(),
                        errand: Some(errand),
                        freshness: Freshness::of(served),
                    });
                }
                Err(error @ Error::Deadline(_)) => return Err(error),
                // What is refused to another repository may still be given to ours; and a flight that
                // had been given up when this one joined makes room for the next.
                Err(error) if !own && error.is_of_scope() => {}
                Err(Error::Abandoned) if (joined || !own) && !self.is_draining() => {}
                Err(error) => {
                    let outcome = Err::<(), _>(error);
                    self.note_negative(&negative, &outcome);
                    outcome?;
                }
            }
        }
    }

    /// The size of a blob of which `range` is wanted: its upstream is asked for it. Nothing where a HEAD does not
    /// tell; then the whole blob does.
    async fn size_upstream(
        &self,
        route: &Route,
        digest: &Digest,
        range: &RangeRequest,
    ) -> Result<Option<u64>, Error> {
        match self.prove_blob(route, digest, Purpose::Pull).await {
            // Proxies that answer a HEAD themselves say nothing of the length, or zero.
            Ok(Some(0)) if *digest != Digest::of(digest.algorithm(), b"") => Ok(None),
            Ok(size) => Ok(size),
            Err(error @ Error::Unknown(_)) => Err(error),
            // Storage behind a redirect may refuse a HEAD to a URL that was signed for GET.
            Err(error) => {
                let left =
                    if error.is_unavailability() { self.size_left(route, digest, range).await } else { None };
                tracing::debug!(%digest, %error, ?left, "its size cannot be asked for");
                Ok(left)
            }
        }
    }

    /// The size of a blob of which an earlier fill has left all that is wanted: no upstream is needed for that.
    async fn size_left(&self, route: &Route, digest: &Digest, range: &RangeRequest) -> Option<u64> {
        if !self.is_visible(route, digest).await {
            return None;
        }
        let (size, arrived) = self.store().parked(digest, route.upstream.name.as_str()).await?;
        let wanted = self.wanted(range, size);
        let is_left = |want: &ByteRange| arrived.contiguous_end(want.start) >= want.end;
        (!wanted.is_empty() && wanted.iter().all(is_left)).then_some(size)
    }

    /// What has to be fetched so that a range can be answered: of what touches the last byte the end is
    /// withheld until the digest is known, which takes the whole blob.
    fn wanted(&self, range: &RangeRequest, size: u64) -> Vec<ByteRange> {
        let mut ranges = match range.resolve(size) {
            Resolved::Unsatisfiable => Vec::new(),
            _ if self.is_verified_first(size) => vec![WHOLE],
            Resolved::Single(range) => vec![range],
            Resolved::Several(ranges) => ranges,
        };
        if ranges.iter().any(|range| range.end == size) {
            ranges.push(WHOLE);
        }
        ranges
    }

    /// Whether also the inner ranges of a blob of this size are withheld until its digest is known: where the
    /// configuration says so, and where it costs next to nothing.
    fn is_verified_first(&self, size: u64) -> bool {
        size <= TAIL || !self.fill_config().unverified_ranges
    }

    /// What is known of a blob; nothing of it is fetched.
    ///
    /// # Errors
    /// Why the upstream could not say.
    pub async fn head_blob(&self, admitted: &Admitted, digest: &Digest) -> Result<BlobHead, Error> {
        let route = admitted.route();
        let answer = |size, served| BlobHead { size, freshness: Freshness::of(served) };
        let head = match self.store().size_of(digest).await {
            Some(size) if self.is_visible(route, digest).await => answer(Some(size), Served::Hit),
            Some(size) => {
                self.prove_blob(route, digest, Purpose::Pull).await?;
                answer(Some(size), Served::Revalidated)
            }
            None => answer(self.prove_blob(route, digest, Purpose::Pull).await?, Served::Forwarded),
        };
        self.metrics().count_answer("blob", head.freshness.served);
        Ok(head)
    }
}

/// What the answer begins with; nothing where it has no bytes.
fn first_wanted(range: Option<&RangeRequest>, size: u64) -> ByteRange {
    match range.map(|range| range.resolve(size)) {
        None => ByteRange::new(0, size),
        Some(Resolved::Single(range)) => range,
        Some(Resolved::Several(ranges)) => ranges[0],
        Some(Resolved::Unsatisfiable) => ByteRange::new(0, 0),
    }
}
