//! Who may still ask an endpoint whose quota runs out.
//!
//! A registry counts requests per account or address and answers 429 when they are used up, to pulls that need an
//! answer as to checks that do not. So the quota that its answers state is spent by purpose: near its end proofs
//! and other background work go without first, then revalidations, whose callers have something stale to give, and
//! pulls go on until the registry itself refuses. Who goes without gets the error of a 429, without a request.
//!
//! Whether a HEAD is counted is learnt, not assumed: Docker Hub does not count it, others do. A HEAD that was the
//! only request between two statements and has left the number as it was is free.
//!
//! A 429 with `Retry-After` closes manifests for that long: they are what registries count.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::time::Instant;

use crate::runtime::Percent;

use super::metrics::Kind;
use super::quota::Quota;

/// For quotas that name no window.
const USUAL_WINDOW: Duration = Duration::from_hours(1);

/// Who goes without looks again whether there is more after the time in which a window brings one request, within
/// these bounds: one look in ten minutes is nothing to any quota, and more than one in half a minute helps nobody.
const SOONEST_LOOK: Duration = Duration::from_secs(30);
const LATEST_LOOK: Duration = Duration::from_mins(10);

/// How many observations more must speak for a HEAD being free than against it. Others may use the same quota, so
/// a single one can mislead.
const CONVINCED: i8 = 2;

/// Why an upstream is asked, which decides who goes without when its quota runs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A client waits, and there is nothing else to give it.
    Pull,
    /// Whether a caller may pull at all. Asked with his own login, whatever credential the edge has, and with a token
    /// that is as fresh as the question.
    Proof,
    /// Something stale can be given instead.
    Revalidation,
    /// Nobody waits.
    Background,
}

impl Purpose {
    /// The purpose as a label of metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Proof => "proof",
            Self::Revalidation => "revalidation",
            Self::Background => "background",
        }
    }
}

/// The quota of one endpoint, which is that of its one credential.
#[derive(Debug)]
pub(super) struct Budget {
    /// The share of the limit that is kept for those who are less easily refused.
    reserve: Percent,
    limit: IntGauge,
    remaining: IntGauge,
    /// Held for a few instructions, never across an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    quiet_until: Option<Instant>,
    ledger: Option<Ledger>,
    manifest_head: Evidence,
    blob_head: Evidence,
    /// Questions that have begun, and those among them that have not ended.
    begun: u64,
    under_way: u64,
}

/// What was stated last.
#[derive(Debug, Clone, Copy)]
struct Ledger {
    limit: u64,
    remaining: u64,
    window: Duration,
    ends_at: Instant,
    /// Whether the answer itself said when it ends.
    is_end_stated: bool,
    look_again_at: Instant,
}

/// How much speaks for a HEAD being free.
#[derive(Debug, Clone, Copy, Default)]
struct Evidence(i8);

impl Evidence {
    fn add(&mut self, is_free: bool) {
        let step = if is_free { 1 } else { -1 };
        self.0 = (self.0 + step).clamp(-CONVINCED, CONVINCED);
    }

    fn is_convincing(self) -> bool {
        self.0 >= CONVINCED
    }
}

impl Budget {
    pub(super) fn new(reserve: Percent, limit: IntGauge, remaining: IntGauge) -> Self {
        Self { reserve, limit, remaining, state: Mutex::default() }
    }

    /// Lets a question through, or says when to come back.
    pub(super) fn admit(&self, kind: Kind, purpose: Purpose) -> Result<Ticket<'_>, Duration> {
        let now = Instant::now();
        let mut state = self.lock();
        if let Some(wait) = state.refusal(kind, purpose, self.reserve, now) {
            return Err(wait);
        }
        state.begun += 1;
        state.under_way += 1;
        let before = state.ledger.map(|ledger| ledger.remaining).filter(|_| state.under_way == 1);
        Ok(Ticket { budget: self, kind, number: state.begun, before })
    }

    /// For how much of a window one question stands: how long it takes to earn another one. Nothing where no quota is
    /// known.
    pub(super) fn price(&self) -> Duration {
        let ledger = self.lock().ledger;
        ledger.map_or(Duration::ZERO, |ledger| {
            ledger.window / u32::try_from(ledger.limit.max(1)).unwrap_or(u32::MAX)
        })
    }

    /// Remembers a 429.
    pub(super) fn keep_quiet(&self, wait: Duration) {
        self.lock().quiet_until = Some(Instant::now() + wait);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves a whole state behind, so a panicked holder does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn refusal(&mut self, kind: Kind, purpose: Purpose, reserve: Percent, now: Instant) -> Option<Duration> {
        let is_free = match kind {
            Kind::ManifestHead => self.manifest_head.is_convincing(),
            Kind::BlobHead => self.blob_head.is_convincing(),
            Kind::Manifest => false,
            // Content that was asked for, and lists: no registry counts the one, and the others are rare.
            Kind::Blob | Kind::Tags | Kind::Referrers | Kind::Catalog => return None,
        };
        if kind != Kind::BlobHead
            && let Some(until) = self.quiet_until.filter(|until| *until > now)
        {
            return Some(until - now);
        }
        let ledger = self.ledger.as_mut().filter(|ledger| ledger.ends_at > now && !is_free)?;
        let reserve = reserve.of(ledger.limit);
        let floor = match purpose {
            Purpose::Pull | Purpose::Proof => 0,
            Purpose::Revalidation => reserve,
            Purpose::Background => reserve.saturating_mul(2),
        };
        if ledger.remaining.saturating_sub(self.under_way) > floor {
            return None;
        }
        match purpose {
            Purpose::Pull | Purpose::Proof if ledger.remaining == 0 && ledger.is_end_stated => {
                Some(ledger.ends_at - now)
            }
            // The registry has the last word.
            Purpose::Pull | Purpose::Proof => None,
            Purpose::Revalidation | Purpose::Background if ledger.look_again_at <= now => {
                ledger.look_again_at = now + ledger.pause();
                None
            }
            Purpose::Revalidation | Purpose::Background => {
                Some(ledger.look_again_at.min(ledger.ends_at) - now)
            }
        }
    }
}

impl Ledger {
    fn of(quota: Quota, before: Option<Self>, now: Instant) -> Self {
        let window = quota.window.unwrap_or(USUAL_WINDOW);
        let known = before.map_or(0, |before| before.limit);
        let limit = quota.limit.unwrap_or_else(|| known.max(quota.remaining));
        let ends_at = now + quota.resets_in.unwrap_or(window);
        let is_end_stated = quota.resets_in.is_some();
        let mut ledger =
            Self { limit, remaining: quota.remaining, window, ends_at, is_end_stated, look_again_at: now };
        ledger.look_again_at = now + ledger.pause();
        ledger
    }

    /// Until one more request should be there.
    fn pause(&self) -> Duration {
        let share = u32::try_from(self.limit.max(1)).unwrap_or(u32::MAX);
        (self.window / share).clamp(SOONEST_LOOK, LATEST_LOOK)
    }
}

/// One question that was let through.
#[derive(Debug)]
pub(super) struct Ticket<'b> {
    budget: &'b Budget,
    kind: Kind,
    number: u64,
    /// What was left when it began, if it began alone.
    before: Option<u64>,
}

impl Ticket<'_> {
    /// The endpoint has answered, with this quota.
    pub(super) fn answered(&self, quota: Option<Quota>) {
        let mut state = self.budget.lock();
        let was_alone = state.begun == self.number && state.under_way == 1;
        let is_free = match (self.before.filter(|_| was_alone), quota) {
            (Some(before), Some(quota)) => Some(quota.remaining >= before),
            // What is counted elsewhere and says nothing of it here is not counted here.
            (Some(_), None) => Some(true),
            (None, _) => None,
        };
        match (self.kind, is_free) {
            (Kind::ManifestHead, Some(is_free)) => state.manifest_head.add(is_free),
            (Kind::BlobHead, Some(is_free)) => state.blob_head.add(is_free),
            _ => {}
        }
        if let Some(quota) = quota {
            let ledger = Ledger::of(quota, state.ledger, Instant::now());
            state.ledger = Some(ledger);
            self.budget.limit.set(i64::try_from(ledger.limit).unwrap_or(i64::MAX));
            self.budget.remaining.set(i64::try_from(ledger.remaining).unwrap_or(i64::MAX));
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.budget.lock().under_way -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn budget() -> Budget {
        let gauge = || IntGauge::new("a", "b").unwrap();
        Budget::new(Percent::new(10), gauge(), gauge())
    }

    fn hub(remaining: u64) -> Quota {
        let window = Some(Duration::from_hours(6));
        Quota { remaining, limit: Some(100), window, resets_in: None }
    }

    fn answer(budget: &Budget, kind: Kind, quota: impl Into<Option<Quota>>) {
        budget.admit(kind, Purpose::Pull).unwrap().answered(quota.into());
    }

    fn allowed(budget: &Budget, kind: Kind) -> [bool; 3] {
        [Purpose::Pull, Purpose::Revalidation, Purpose::Background]
            .map(|purpose| budget.admit(kind, purpose).is_ok())
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_quota_is_kept_for_pulls_and_then_for_nobody_but_them() {
        let budget = budget();
        assert_eq!(allowed(&budget, Kind::ManifestHead), [true; 3], "nothing is known");
        for (remaining, expected) in [
            (21, [true; 3]),
            (20, [true, true, false]),
            (10, [true, false, false]),
            (0, [true, false, false]),
        ] {
            answer(&budget, Kind::Manifest, hub(remaining));
            assert_eq!(allowed(&budget, Kind::ManifestHead), expected, "{remaining} left");
            assert_eq!(allowed(&budget, Kind::Blob), [true; 3]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn questions_on_their_way_are_spent_already() {
        let budget = budget();
        answer(&budget, Kind::Manifest, hub(12));
        let first = budget.admit(Kind::ManifestHead, Purpose::Revalidation).unwrap();
        let second = budget.admit(Kind::ManifestHead, Purpose::Revalidation).unwrap();
        assert!(budget.admit(Kind::ManifestHead, Purpose::Revalidation).is_err());
        drop((first, second));
        assert!(budget.admit(Kind::ManifestHead, Purpose::Revalidation).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_leaves_the_number_as_it_was_is_free_and_is_asked_to_the_end() {
        let budget = budget();
        answer(&budget, Kind::Manifest, hub(5));
        assert!(!allowed(&budget, Kind::ManifestHead)[1]);
        answer(&budget, Kind::ManifestHead, hub(5));
        assert!(!allowed(&budget, Kind::ManifestHead)[1], "once may be chance");
        answer(&budget, Kind::ManifestHead, hub(5));
        assert_eq!(allowed(&budget, Kind::ManifestHead), [true; 3]);
        assert!(!allowed(&budget, Kind::Manifest)[1], "a GET is counted all the same");
        assert!(!allowed(&budget, Kind::BlobHead)[1]);
        answer(&budget, Kind::BlobHead, None);
        answer(&budget, Kind::BlobHead, None);
        assert_eq!(allowed(&budget, Kind::BlobHead), [true; 3], "where nothing is said, nothing is counted");
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_is_counted_or_was_not_alone_is_not_taken_for_free() {
        let budget = budget();
        for remaining in (5..30).rev() {
            answer(&budget, Kind::ManifestHead, hub(remaining));
        }
        assert!(!allowed(&budget, Kind::ManifestHead)[1]);
        for _ in 0..5 {
            let head = budget.admit(Kind::ManifestHead, Purpose::Pull).unwrap();
            let other = budget.admit(Kind::Manifest, Purpose::Pull).unwrap();
            head.answered(Some(hub(5)));
            other.answered(Some(hub(5)));
        }
        assert!(!allowed(&budget, Kind::ManifestHead)[1]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_without_looks_again_now_and_then_and_starts_over_in_the_next_window() {
        let budget = budget();
        answer(&budget, Kind::Manifest, hub(3));
        let wait = budget.admit(Kind::ManifestHead, Purpose::Revalidation).unwrap_err();
        assert_eq!(wait, Duration::from_secs(216));
        advance(wait).await;
        assert!(budget.admit(Kind::ManifestHead, Purpose::Revalidation).is_ok());
        assert!(budget.admit(Kind::ManifestHead, Purpose::Revalidation).is_err(), "one look");
        let resets_in = Some(Duration::from_secs(50));
        answer(&budget, Kind::Manifest, Quota { resets_in, ..hub(0) });
        assert_eq!(budget.admit(Kind::Manifest, Purpose::Pull).unwrap_err(), Duration::from_secs(50));
        advance(Duration::from_secs(50)).await;
        assert_eq!(allowed(&budget, Kind::Manifest), [true; 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_is_not_stated_is_the_most_that_was_ever_left() {
        let budget = budget();
        answer(&budget, Kind::Manifest, Quota { remaining: 50, ..Quota::default() });
        answer(&budget, Kind::Manifest, Quota { remaining: 5, ..Quota::default() });
        assert_eq!(allowed(&budget, Kind::Manifest), [true, false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_limit_closes_manifests_and_ends_by_itself() {
        let budget = budget();
        budget.keep_quiet(Duration::from_secs(10));
        advance(Duration::from_secs(4)).await;
        assert_eq!(budget.admit(Kind::ManifestHead, Purpose::Pull).unwrap_err(), Duration::from_secs(6));
        assert!(budget.admit(Kind::BlobHead, Purpose::Background).is_ok());
        advance(Duration::from_secs(6)).await;
        assert!(budget.admit(Kind::Manifest, Purpose::Pull).is_ok());
    }
}
