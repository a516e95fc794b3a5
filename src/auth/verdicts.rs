//! What upstreams have said about their callers.
//!
//! A yes is about a login, a repository and a class of rights; a no is about the one thing that was asked for, since some
//! registries say it of what does not exist. Each is asked for once for all who wait for it. A yes is also kept on disk,
//! under a keyed hash, for the time in which the upstream cannot be asked.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use equivalent::Equivalent;
use quick_cache::sync::Cache as HotCache;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::Denial;
use super::config::AuthConfig;
use super::keyed_hash::KeyedHash;
use super::metrics::Metrics;
use super::proof::{Class, Proof, Wanted};
use crate::oci::ErrorCode;
use crate::routing::{Caller, CallerId, Route};
use crate::runtime::{Clock, Coalesce, Tasks, Timestamp};
use crate::store::Store;
use crate::upstream::{self, Client, Whose};

/// Verdicts in memory: what falls out is asked for again. Each takes some 300 bytes.
const VERDICTS: usize = 100_000;

/// How long an upstream that could not be asked is not asked again about a caller within the grace.
const RETRY: Duration = Duration::from_secs(10);

/// Proofs that are asked for at once; logins cost those who try them nothing. Who finds no place within the time is told to
/// come back.
const CONCURRENT_PROOFS: usize = 64;
const PLACE: Duration = Duration::from_secs(10);

/// Clones share everything.
#[derive(Debug, Clone)]
pub(super) struct Verdicts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: AuthConfig,
    hash: Arc<KeyedHash>,
    client: Client,
    store: Store,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    // Every hit asks it. Nothing in it expires by itself: a verdict says how long it lasts.
    known: HotCache<OwnKey, Verdict>,
    proofs: Coalesce<OwnKey, Result<(), Denial>>,
    places: Semaphore,
}

/// What is known of one caller's right.
#[derive(Debug, Clone, Copy)]
struct Verdict {
    word: Word,
    asked_at: Timestamp,
    asked: Instant,
    lasts: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Granted,
    Unauthenticated,
    Forbidden,
}

impl Verdict {
    /// Of the two clocks the less favourable counts: the machine's may have been set, the process's stands still while the
    /// machine sleeps.
    fn is_live(&self, now: Timestamp) -> bool {
        let by_the_clock = now.since(self.asked_at).is_some_and(|age| age < self.lasts);
        by_the_clock && self.asked.elapsed() < self.lasts
    }
}

impl Word {
    fn outcome(self) -> Result<(), Denial> {
        match self {
            Self::Granted => Ok(()),
            Self::Unauthenticated => Err(Denial::Unauthenticated),
            Self::Forbidden => Err(Denial::Forbidden),
        }
    }
}

impl Verdicts {
    pub(super) fn new(
        config: AuthConfig,
        hash: Arc<KeyedHash>,
        client: Client,
        store: Store,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (known, proofs) = (HotCache::new(VERDICTS), Coalesce::new("caller-proof", tasks));
        let places = Semaphore::new(CONCURRENT_PROOFS);
        let oldest = clock.now().before(config.grace);
        let (forgetting, metadata) = (tasks.clone(), store.metadata().clone());
        forgetting.spawn("grants", async move {
            // Nobody waits for it.
            let _ = tokio::task::spawn_blocking(move || metadata.forget_grants(oldest)).await;
        });
        Self(Arc::new(Inner { config, hash, client, store, clock, metrics, known, proofs, places }))
    }

    /// Whether memory has a live yes to this.
    pub(super) fn is_granted(&self, route: &Route, wanted: Wanted<'_>) -> bool {
        self.live(&Key::of_class(route, wanted)) == Some(Word::Granted)
    }

    /// Whether the route's caller may have what he wants of its repository. The upstream is asked for it, if it has not
    /// lately said yes to one like it, or no to this.
    pub(super) async fn judge(&self, route: &Route, wanted: Wanted<'_>) -> Result<(), Denial> {
        if let Some(word) = self.known(route, wanted) {
            return word.outcome();
        }
        let Some((granted_at, left)) = self.granted_within_grace(route, wanted).await else {
            return self.ask(route, wanted).await;
        };
        match timeout(self.0.config.patience, self.ask(route, wanted)).await {
            Ok(Err(Denial::Unavailable(error))) if error.is_retryable() => {}
            Err(_late) => {}
            Ok(outcome) => return outcome,
        }
        // It may have said so meanwhile.
        if let Some(word) = self.known(route, wanted) {
            return word.outcome();
        }
        self.be_graceful(route, wanted, granted_at, left);
        Ok(())
    }

    fn known(&self, route: &Route, wanted: Wanted<'_>) -> Option<Word> {
        self.live(&Key::of_class(route, wanted)).or_else(|| self.live(&Key::of_thing(route, wanted)))
    }

    fn live(&self, key: &Key<'_>) -> Option<Word> {
        let verdict = self.0.known.get(key)?;
        verdict.is_live(self.0.clock.now()).then_some(verdict.word)
    }

    /// When the upstream has last said yes, and how much of the grace is left. A clock that was set back tells nothing, and
    /// nothing is given for it.
    async fn granted_within_grace(&self, route: &Route, wanted: Wanted<'_>) -> Option<(Timestamp, Duration)> {
        let granted_at = self.0.store.metadata().grant(&self.grant(route, wanted.class())).await?;
        let age = self.0.clock.now().since(granted_at)?;
        let left = self.0.config.grace.checked_sub(age).filter(|left| !left.is_zero())?;
        Some((granted_at, left))
    }

    fn be_graceful(&self, route: &Route, wanted: Wanted<'_>, granted_at: Timestamp, left: Duration) {
        tracing::warn!(
            upstream = %route.upstream.name,
            repository = %route.repository,
            caller = %caller(route).id(),
            %granted_at,
            "the upstream cannot be asked about a caller; its last word counts, within the grace"
        );
        self.0.metrics.count(&route.upstream.name, "grace");
        let lasts = RETRY.min(self.0.config.verdict_ttl).min(left);
        self.note(&Key::of_class(route, wanted), Word::Granted, self.0.clock.now(), Instant::now(), lasts);
    }

    /// Asks the upstream, once for all who wait for its word about this caller and this thing.
    async fn ask(&self, route: &Route, wanted: Wanted<'_>) -> Result<(), Denial> {
        let (class, thing) = (Key::of_class(route, wanted).own(), Key::of_thing(route, wanted).own());
        let (proven, _joined) = self.0.proofs.run(thing.clone(), || {
            let (verdicts, route, proof) = (self.clone(), route.clone(), Proof::from(wanted));
            let grant = self.grant(&route, wanted.class());
            async move { verdicts.prove(&route, &proof, [class, thing], &grant).await }
        });
        proven.await.unwrap_or(Err(Denial::Internal))
    }

    async fn prove(
        &self,
        route: &Route,
        proof: &Proof,
        [class, thing]: [OwnKey; 2],
        grant: &str,
    ) -> Result<(), Denial> {
        let Ok(_place) = timeout(PLACE, self.0.places.acquire()).await else {
            return Err(Denial::Busy);
        };
        if let Some(word) = self.live(&class.borrowed()) {
            // It was said since the caller looked.
            return word.outcome();
        }
        let (asked_at, asked) = (self.0.clock.now(), Instant::now());
        let outcome = self.judgement(route, proof.ask(&self.0.client, route).await);
        let config = &self.0.config;
        match &outcome {
            Ok(()) => {
                self.note(&class.borrowed(), Word::Granted, asked_at, asked, config.verdict_ttl);
                self.0.store.metadata().set_grant(grant, asked_at);
            }
            Err(denial) => {
                let thing = thing.borrowed();
                match denial {
                    Denial::Unauthenticated => {
                        self.note(&thing, Word::Unauthenticated, asked_at, asked, config.denial_ttl);
                    }
                    Denial::Forbidden => {
                        self.note(&thing, Word::Forbidden, asked_at, asked, config.denial_ttl);
                    }
                    // Some registries say so in place of a no.
                    Denial::Unknown(ErrorCode::NameUnknown) => {}
                    Denial::Unknown(_)
                    | Denial::Unavailable(_)
                    | Denial::Unusable
                    | Denial::InvalidToken
                    | Denial::InsufficientScope
                    | Denial::Key(..)
                    | Denial::NoDatabase
                    | Denial::Busy
                    | Denial::Internal => return outcome,
                }
                self.0.store.metadata().remove_grant(grant);
            }
        }
        outcome
    }

    fn judgement(&self, route: &Route, answer: Result<(), upstream::Error>) -> Result<(), Denial> {
        let upstream = &route.upstream.name;
        let (verdict, outcome) = match answer {
            Ok(()) => ("granted", Ok(())),
            Err(upstream::Error::NotFound { code, .. }) => ("unknown", Err(Denial::Unknown(code))),
            Err(upstream::Error::Unauthorized { whose: Whose::Caller, detail, .. }) => {
                log_denial(route, &detail);
                ("denied", Err(Denial::Unauthenticated))
            }
            Err(upstream::Error::Forbidden { whose: Whose::Caller, detail, .. }) => {
                log_denial(route, &detail);
                ("denied", Err(Denial::Forbidden))
            }
            Err(error) => ("unavailable", Err(Denial::Unavailable(Arc::new(error)))),
        };
        self.0.metrics.count(upstream, verdict);
        outcome
    }

    fn note(&self, key: &Key<'_>, word: Word, asked_at: Timestamp, asked: Instant, lasts: Duration) {
        self.0.known.insert(key.own(), Verdict { word, asked_at, asked, lasts });
    }

    fn grant(&self, route: &Route, class: Class) -> String {
        self.0.hash.grant(caller(route).id(), &route.upstream.name, &route.repository, class.as_str())
    }
}

fn log_denial(route: &Route, detail: &str) {
    tracing::info!(
        upstream = %route.upstream.name,
        repository = %route.repository,
        caller = %caller(route).id(),
        detail,
        "the upstream does not let a caller pull"
    );
}

/// Routes without one do not come here; as anybody, they would see what everybody sees.
fn caller(route: &Route) -> &Caller {
    const ANONYMOUS: &Caller = &Caller::anonymous();
    route.caller.as_ref().unwrap_or(ANONYMOUS)
}

/// Whose right to what, as it is looked up: without copying anything.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key<'a> {
    caller: CallerId,
    upstream: &'a str,
    repository: &'a str,
    about: About,
}

/// What a verdict is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum About {
    Class(Class),
    /// One thing, by its hash: should two be the same, one is denied for as long as the other.
    Thing(u64),
}

/// The same, as it is kept. Texts hash like what they are borrowed as.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct OwnKey {
    caller: CallerId,
    upstream: Arc<str>,
    repository: Arc<str>,
    about: About,
}

impl<'a> Key<'a> {
    fn of(route: &'a Route, about: About) -> Self {
        let (upstream, repository) = (route.upstream.name.as_str(), route.repository.as_str());
        Self { caller: caller(route).id(), upstream, repository, about }
    }

    fn of_class(route: &'a Route, wanted: Wanted<'_>) -> Self {
        Self::of(route, About::Class(wanted.class()))
    }

    fn of_thing(route: &'a Route, wanted: Wanted<'_>) -> Self {
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self::of(route, About::Thing(HASHER.hash_one(wanted)))
    }

    fn own(&self) -> OwnKey {
        let (upstream, repository) = (self.upstream.into(), self.repository.into());
        OwnKey { caller: self.caller, upstream, repository, about: self.about }
    }
}

impl OwnKey {
    fn borrowed(&self) -> Key<'_> {
        let (upstream, repository) = (&*self.upstream, &*self.repository);
        Key { caller: self.caller, upstream, repository, about: self.about }
    }
}

impl Equivalent<OwnKey> for Key<'_> {
    fn equivalent(&self, own: &OwnKey) -> bool {
        self.caller == own.caller
            && self.about == own.about
            && *self.repository == *own.repository
            && *self.upstream == *own.upstream
    }
}
