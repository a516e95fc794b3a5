//! What refers to a manifest: its signatures, attestations and SBOMs.
//!
//! The upstream's referrers API is asked first; where it has none, the tag that takes its place is read
//! (distribution-spec v1.1.1 "Referrers Tag Schema"). Either way the whole list is kept, and filtered and paged
//! here. It is believed for as long as that tag would be, so that one rule speaks of both.
//!
//! A list that cannot be had is an error, never an empty list: whoever verifies signatures must not take an
//! outage for their absence. What is in a list grants nothing; each manifest is proven when it is pulled.

use std::sync::Arc;
use std::time::Duration;

use super::manifests::Want;
use super::tags::{Verdict, judge};
use super::{Error, Freshness, Puller, Served, key};
use crate::oci::{Descriptor, Digest, Manifest, Tag};
use crate::routing::Route;
use crate::store::ReferrersRecord;
use crate::upstream;

/// Everything that refers to a digest.
#[derive(Debug, Clone)]
pub struct ReferrersAnswer {
    record: Arc<ReferrersRecord>,
    /// How fresh it is.
    pub freshness: Freshness,
}

impl ReferrersAnswer {
    /// Their descriptors, in the upstream's order.
    pub fn manifests(&self) -> &[Descriptor] {
        &self.record.manifests
    }
}

impl Puller {
    /// What refers to a digest.
    ///
    /// # Errors
    /// The upstream's, where nothing was kept that may be used instead.
    pub async fn referrers(&self, route: &Route, digest: &Digest) -> Result<ReferrersAnswer, Error> {
        let upstream = route.upstream.name.as_str();
        let kept = self.store().metadata().referrers(upstream, &route.repository, digest).await;
        let verdict = kept.as_ref().map(|kept| {
            let policy = self.0.tag_config.policy(upstream, &route.repository, &Tag::referrers_of(digest));
            judge(&policy, self.0.clock.now().since(kept.fetched_at))
        });
        let answer = match (kept, verdict) {
            (Some(kept), Some(Verdict::Fresh(left))) => self.referrers_answer(kept, Served::Hit, left),
            (Some(kept), Some(Verdict::WhileRevalidating(left))) => {
                drop(self.fetch_referrers(route, digest));
                self.referrers_answer(kept, Served::Stale, Some(left))
            }
            (Some(kept), Some(Verdict::OrOnError(left))) => {
                let patience = self.0.tag_config.revalidate_timeout;
                match tokio::time::timeout(patience, self.fetch_referrers(route, digest)).await {
                    Ok(Ok((record, _))) => self.referrers_answer(record, Served::Revalidated, None),
                    Ok(Err(error)) if !error.is_unavailability() => return Err(error),
                    Ok(Err(_)) | Err(_) => self.referrers_answer(kept, Served::Stale, Some(left)),
                }
            }
            (_, Some(Verdict::Expired) | None) | (None, _) => {
                let (record, joined) = self.fetch_referrers(route, digest).await?;
                let served = if joined { Served::Collapsed } else { Served::Miss };
                self.referrers_answer(record, served, None)
            }
        };
        self.metrics().count_answer("referrers", answer.freshness.served);
        Ok(answer)
    }

    fn referrers_answer(
        &self,
        record: Arc<ReferrersRecord>,
        served: Served,
        ttl: Option<i64>,
    ) -> ReferrersAnswer {
        let age = self.0.clock.now().since(record.fetched_at).unwrap_or(Duration::ZERO);
        ReferrersAnswer { record, freshness: Freshness { served, age, ttl } }
    }

    /// Asks the upstream, once for all who wonder. The asking begins at once and goes on without the caller.
    /// The flag says whether somebody else had begun it.
    fn fetch_referrers(
        &self,
        route: &Route,
        digest: &Digest,
    ) -> impl Future<Output = Result<(Arc<ReferrersRecord>, bool), Error>> + use<> {
        let (puller, route, digest) = (self.clone(), route.clone(), *digest);
        let key = key(&route, format_args!("referrers {digest}"));
        let (fetched, joined) = self
            .0
            .referrers_fetches
            .run(key, move || async move { puller.fetch_referrers_now(&route, &digest).await });
        async move { Ok((fetched.await.unwrap_or(Err(Error::Internal))?, joined)) }
    }

    async fn fetch_referrers_now(
        &self,
        route: &Route,
        digest: &Digest,
    ) -> Result<Arc<ReferrersRecord>, Error> {
        let fetched_at = self.0.clock.now();
        let manifests = match self.client().referrers(route, digest).await {
            Ok(manifests) => manifests,
            Err(error) if has_no_api(&error) => self.tagged_referrers(route, digest).await?,
            Err(error) => return Err(error.into()),
        };
        let record = Arc::new(ReferrersRecord { manifests, fetched_at });
        let upstream = route.upstream.name.as_str();
        self.store().metadata().set_referrers(upstream, &route.repository, digest, Arc::clone(&record));
        Ok(record)
    }

    /// What the referrers tag lists; nothing where there is no such tag, or none that lists anything.
    async fn tagged_referrers(&self, route: &Route, digest: &Digest) -> Result<Vec<Descriptor>, Error> {
        match self.manifest_by_tag(route, &Tag::referrers_of(digest), Want::Body).await {
            Ok(answer) => match Manifest::parse(&answer.body.unwrap_or_default(), None)? {
                Manifest::Index(index) => Ok(index.manifests),
                Manifest::Image(_) => Ok(Vec::new()),
            },
            Err(Error::Unknown(_)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// Whether an upstream answers like one without a referrers API: 404 by the specification, and anything else
/// that is no registry's answer in practice.
fn has_no_api(error: &upstream::Error) -> bool {
    matches!(
        error,
        upstream::Error::NotFound { .. }
            | upstream::Error::Refused { .. }
            | upstream::Error::NotARegistry { .. }
    )
}
