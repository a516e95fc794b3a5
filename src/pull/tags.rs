//! Tags: what they stand for, and for how long that is believed.

use std::sync::Arc;
use std::time::Duration;

use super::config::{TagPolicy, Ttl};
use super::manifests::{ManifestAnswer, Want};
use super::{Error, Freshness, Puller, Served, key};
use crate::oci::{Digest, Reference, Tag};
use crate::routing::Route;
use crate::store::TagRecord;
use crate::upstream::Purpose;

/// What a tag's age means under its policy.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Answer; this many seconds of the TTL are left, for a tag that ever expires.
    Fresh(Option<i64>),
    /// Answer, and ask the upstream behind the client's back.
    WhileRevalidating(i64),
    /// Ask the upstream; answer with the record if it cannot be asked.
    OrOnError(i64),
    /// Ask the upstream; without it there is no answer.
    Expired,
}

/// `age` is `None` when the clock was set back: then nothing is known of the age, and the upstream
/// is asked.
pub(super) fn judge(policy: &TagPolicy, age: Option<Duration>) -> Verdict {
    let Ttl::For(ttl) = policy.ttl else {
        return Verdict::Fresh(None);
    };
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let Some(age) = age else {
        return Verdict::OrOnError(0);
    };
    let left = seconds(ttl).saturating_sub(seconds(age));
    let past = age.saturating_sub(ttl);
    if age < ttl {
        Verdict::Fresh(Some(left))
    } else if past < policy.stale_while_revalidate {
        Verdict::WhileRevalidating(left)
    } else if past < policy.stale_if_error {
        Verdict::OrOnError(left)
    } else {
        Verdict::Expired
    }
}

impl Puller {
    /// What memory knows of a tag, and how fresh that is, if the upstream need not be asked about it.
    pub(super) fn hot_tag(&self, route: &Route, tag: &Tag) -> Option<(Digest, Freshness)> {
        let upstream = route.upstream.name.as_str();
        let record = self.store().metadata().recent_tag(upstream, &route.repository, tag)?;
        let age = self.age(&record);
        let Verdict::Fresh(ttl) = self.verdict(route, tag, age) else { return None };
        Some((record.digest, Freshness { served: Served::Hit, age: age.unwrap_or_default(), ttl }))
    }

    /// How long ago the upstream was asked; `None` when the clock was set back.
    pub(super) fn age(&self, record: &TagRecord) -> Option<Duration> {
        self.0.clock.now().since(record.checked_at)
    }

    /// What this age means for this tag.
    fn verdict(&self, route: &Route, tag: &Tag, age: Option<Duration>) -> Verdict {
        judge(&self.0.tag_config.policy(&route.upstream.name, &route.repository, tag), age)
    }

    pub(super) async fn manifest_by_tag(
        &self,
        route: &Route,
        tag: &Tag,
        want: Want,
    ) -> Result<ManifestAnswer, Error> {
        let upstream = route.upstream.name.as_str();
        let Some(record) = self.store().metadata().tag(upstream, &route.repository, tag).await else {
            return Box::pin(self.unknown_tag(route, tag, want)).await;
        };
        match self.verdict(route, tag, self.age(&record)) {
            Verdict::Fresh(left) => {
                let answer = self.manifest_of_record(route, &record, want, Served::Hit, left).await;
                match answer {
                    // The upstream has dropped the manifest: the tag must have moved.
                    Err(Error::Unknown(_)) => {
                        self.store().metadata().remove_tag(upstream, &route.repository, tag);
                        Box::pin(self.unknown_tag(route, tag, want)).await
                    }
                    answer => answer,
                }
            }
            Verdict::WhileRevalidating(left) => {
                drop(self.check_tag(route, tag));
                self.manifest_of_record(route, &record, want, Served::Stale, Some(left)).await
            }
            Verdict::OrOnError(left) => {
                let patience = self.0.tag_config.revalidate_timeout;
                match Box::pin(tokio::time::timeout(patience, self.check_tag(route, tag))).await {
                    Ok(Ok(current)) => {
                        self.manifest_of_record(route, &current, want, Served::Revalidated, None).await
                    }
                    Ok(Err(error)) if !error.is_unavailability() => Err(error),
                    Ok(Err(_)) | Err(_) => {
                        self.manifest_of_record(route, &record, want, Served::Stale, Some(left)).await
                    }
                }
            }
            Verdict::Expired => {
                let current = Box::pin(self.check_tag(route, tag)).await?;
                self.manifest_of_record(route, &current, want, Served::Revalidated, None).await
            }
        }
    }

    /// A tag that nobody has asked for yet: one HEAD for a HEAD, one GET for a GET.
    async fn unknown_tag(&self, route: &Route, tag: &Tag, want: Want) -> Result<ManifestAnswer, Error> {
        if want == Want::Body {
            return self.fetch_manifest(route, &Reference::Tag(tag.clone())).await;
        }
        let record = self.check_tag(route, tag).await?;
        self.manifest_of_record(route, &record, want, Served::Miss, None).await
    }

    /// Asks the upstream with one HEAD what a tag stands for, once for all who wonder. The asking
    /// begins at once and goes on without the caller.
    fn check_tag(&self, route: &Route, tag: &Tag) -> impl Future<Output = Result<TagRecord, Error>> + use<> {
        let (checked, joined) = self.join_check(route, tag);
        let again = joined && self.always_asks(route, tag);
        let (puller, route, tag) = (self.clone(), route.clone(), tag.clone());
        async move {
            let outcome = checked.await;
            let is_others = joined && outcome.as_ref().is_err_and(Error::is_of_caller);
            if !again && !is_others {
                return outcome;
            }
            // The question that was joined may have left before the push that this one is about, or was asked on behalf of
            // somebody who may not.
            loop {
                let (checked, joined) = puller.join_check(&route, &tag);
                match checked.await {
                    Err(error) if joined && error.is_of_caller() => {}
                    outcome => return outcome,
                }
            }
        }
    }

    /// The check of a tag that is under way, or a new one; and whether it was under way.
    fn join_check(
        &self,
        route: &Route,
        tag: &Tag,
    ) -> (impl Future<Output = Result<TagRecord, Error>> + use<>, bool) {
        let key = key(route, tag);
        let (checked, joined) = match self.check_negative(&key) {
            Err(error) => (Err(error), false),
            Ok(()) => {
                let (puller, route, tag, negative) = (self.clone(), route.clone(), tag.clone(), key.clone());
                let (checked, joined) = self.0.tag_checks.run(key, move || async move {
                    if let Some(record) = puller.fresh_record(&route, &tag).await {
                        // Another check has landed since the caller looked.
                        return Ok((*record).clone());
                    }
                    let outcome = puller.check_tag_now(&route, &tag).await;
                    puller.note_negative(&negative, &outcome);
                    outcome
                });
                (Ok(checked), joined)
            }
        };
        (async move { checked?.await.unwrap_or(Err(Error::Internal)) }, joined)
    }

    /// Whether the tag is declared to be asked for every time.
    fn always_asks(&self, route: &Route, tag: &Tag) -> bool {
        let policy = self.0.tag_config.policy(&route.upstream.name, &route.repository, tag);
        policy.ttl == Ttl::For(Duration::ZERO)
    }

    /// What is known of a tag, if the upstream need not be asked about it.
    pub(super) async fn fresh_record(&self, route: &Route, tag: &Tag) -> Option<Arc<TagRecord>> {
        let upstream = route.upstream.name.as_str();
        let record = self.store().metadata().tag(upstream, &route.repository, tag).await?;
        let verdict = self.verdict(route, tag, self.age(&record));
        matches!(verdict, Verdict::Fresh(_)).then_some(record)
    }

    /// Whether there is something stale to give if the upstream is not asked.
    async fn purpose_of_check(&self, route: &Route, tag: &Tag) -> Purpose {
        let upstream = route.upstream.name.as_str();
        let Some(record) = self.store().metadata().tag(upstream, &route.repository, tag).await else {
            return Purpose::Pull;
        };
        match self.verdict(route, tag, self.age(&record)) {
            Verdict::Fresh(_) | Verdict::WhileRevalidating(_) | Verdict::OrOnError(_) => {
                Purpose::Revalidation
            }
            Verdict::Expired => Purpose::Pull,
        }
    }

    async fn check_tag_now(&self, route: &Route, tag: &Tag) -> Result<TagRecord, Error> {
        let metadata = self.store().metadata();
        let upstream = route.upstream.name.as_str();
        let reference = Reference::Tag(tag.clone());
        let checked_at = self.0.clock.now();
        let purpose = self.purpose_of_check(route, tag).await;
        let head = match self.client().head_manifest(route, &reference, purpose).await {
            Ok(head) => head,
            Err(error) => {
                let error = Error::from(error);
                if matches!(error, Error::Unknown(_)) {
                    metadata.remove_tag(upstream, &route.repository, tag);
                }
                return Err(error);
            }
        };
        let Some(digest) = head.digest else {
            // An upstream whose HEAD names no digest: only the body tells.
            self.fetch_manifest(route, &reference).await?;
            let record = metadata.tag(upstream, &route.repository, tag).await.ok_or(Error::Internal)?;
            return Ok((*record).clone());
        };
        let record = TagRecord { digest, size: head.size, media_type: head.media_type, checked_at };
        metadata.set_tag(upstream, &route.repository, tag, record.clone(), self.0.clock.now());
        self.set_visible(route, &digest);
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_tags_age_decides_whether_the_upstream_is_asked_before_or_after_the_answer() {
        let policy = TagPolicy {
            ttl: Ttl::For(seconds(300)),
            stale_while_revalidate: seconds(60),
            stale_if_error: seconds(3600),
            keep: false,
        };
        for (age, verdict) in [
            (Some(0), Verdict::Fresh(Some(300))),
            (Some(299), Verdict::Fresh(Some(1))),
            (Some(300), Verdict::WhileRevalidating(0)),
            (Some(359), Verdict::WhileRevalidating(-59)),
            (Some(360), Verdict::OrOnError(-60)),
            (Some(3899), Verdict::OrOnError(-3599)),
            (Some(3900), Verdict::Expired),
            (None, Verdict::OrOnError(0)),
        ] {
            assert_eq!(judge(&policy, age.map(seconds)), verdict, "{age:?}");
        }
    }

    #[test]
    fn a_ttl_of_zero_always_asks_and_an_immutable_tag_never_does() {
        let policy = |ttl| TagPolicy {
            ttl,
            stale_while_revalidate: seconds(0),
            stale_if_error: seconds(10),
            keep: false,
        };
        assert_eq!(judge(&policy(Ttl::For(seconds(0))), Some(seconds(0))), Verdict::OrOnError(0));
        assert_eq!(judge(&policy(Ttl::Forever), Some(seconds(u64::MAX))), Verdict::Fresh(None));
        assert_eq!(judge(&policy(Ttl::Forever), None), Verdict::Fresh(None));
    }
}
