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
use super::{Error, Freshness, Puller, Served, caller_key};
use crate::auth::Admitted;
use crate::oci::{Descriptor, Digest, Manifest, Tag};
use crate::routing::Route;
use crate::runtime::Timestamp;
use crate::store::ReferrersRecord;
use crate::upstream;

/// A list as it was just fetched.
#[derive(Debug, Clone)]
pub(super) struct FetchedReferrers {
    record: Arc<ReferrersRecord>,
    /// It comes from a tag that could not be asked for.
    is_stale: bool,
}

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
    pub async fn referrers(&self, admitted: &Admitted, digest: &Digest) -> Result<ReferrersAnswer, Error> {
        let route = admitted.route();
        let upstream = route.upstream.name.as_str();
        let kept = self.store().metadata().referrers(upstream, &route.repository, digest).await;
        let verdict = kept.as_ref().map(|kept| {
            let policy =
                self.0.tag_config.policy(&route.upstream.name, &route.repository, &Tag::referrers_of(digest));
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
                    Ok(Ok((fetched, _))) => self.fetched_answer(fetched, Served::Revalidated),
                    Ok(Err(error)) if !error.is_unavailability() => return Err(error),
                    Ok(Err(_)) | Err(_) => self.referrers_answer(kept, Served::Stale, Some(left)),
                }
            }
            (_, Some(Verdict::Expired) | None) | (None, _) => {
                let (fetched, joined) = self.fetch_referrers(route, digest).await?;
                self.fetched_answer(fetched, if joined { Served::Collapsed } else { Served::Miss })
            }
        };
        self.metrics().count_answer("referrers", answer.freshness.served);
        Ok(answer)
    }

    /// A list that was just fetched; one by a tag may be as stale as that tag.
    fn fetched_answer(&self, fetched: FetchedReferrers, served: Served) -> ReferrersAnswer {
        let served = if fetched.is_stale { Served::Stale } else { served };
        self.referrers_answer(fetched.record, served, None)
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
    ) -> impl Future<Output = Result<(FetchedReferrers, bool), Error>> + use<> {
        let (puller, route, digest) = (self.clone(), route.clone(), *digest);
        let key = caller_key(&route, format_args!("referrers {digest}"));
        let (fetched, joined) = self
            .0
            .referrers_fetches
            .run(key, move || async move { puller.fetch_referrers_now(&route, &digest).await });
        async move { Ok((fetched.await.unwrap_or(Err(Error::Internal))?, joined)) }
    }

    async fn fetch_referrers_now(&self, route: &Route, digest: &Digest) -> Result<FetchedReferrers, Error> {
        let now = self.0.clock.now();
        let (manifests, freshness) = match self.client().referrers(route, digest).await {
            Ok(manifests) => (manifests, Freshness::of(Served::Miss)),
            Err(error) if has_no_api(&error) => match self.tagged_referrers(route, digest).await? {
                Some(tagged) => tagged,
                // Without such an API a registry says 404 (distribution-spec); of any other answer it is not
                // known whether it means that there is none.
                None if matches!(error, upstream::Error::NotFound { .. }) => {
                    (Vec::new(), Freshness::of(Served::Miss))
                }
                None => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        };
        // A list is as old as the tag that it comes from.
        let age = u64::try_from(freshness.age.as_millis()).unwrap_or(u64::MAX);
        let fetched_at = Timestamp::from_millis(now.as_millis().saturating_sub(age));
        let record = Arc::new(ReferrersRecord { manifests, fetched_at });
        let upstream = route.upstream.name.as_str();
        self.store().metadata().set_referrers(upstream, &route.repository, digest, Arc::clone(&record));
        Ok(FetchedReferrers { record, is_stale: freshness.served == Served::Stale })
    }

    /// What the referrers tag lists, if there is such a tag.
    async fn tagged_referrers(
        &self,
        route: &Route,
        digest: &Digest,
    ) -> Result<Option<(Vec<Descriptor>, Freshness)>, Error> {
        match self.manifest_by_tag(route, &Tag::referrers_of(digest), Want::Body).await {
            Ok(answer) => match Manifest::parse(&answer.body.unwrap_or_default(), None)? {
                Manifest::Index(index) => Ok(Some((index.manifests, answer.freshness))),
                Manifest::Image(_) => Ok(None),
            },
            Err(Error::Unknown(_)) => Ok(None),
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
