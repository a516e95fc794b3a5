//! What upstreams have said about their callers.
//!
//! A verdict is about a login and a repository, and is asked for once for all who wait for it. A yes is also kept on
//! disk, under a keyed hash, for the time in which the upstream cannot be asked.

use std::sync::Arc;
use std::time::Duration;

use equivalent::Equivalent;
use quick_cache::sync::Cache as HotCache;
use tokio::time::{Instant, timeout};

use super::Denial;
use super::config::AuthConfig;
use super::keyed_hash::KeyedHash;
use super::metrics::Metrics;
use super::proof::{Proof, Wanted};
use crate::routing::{Caller, CallerId, Route};
use crate::runtime::{Clock, Coalesce, Tasks, Timestamp};
use crate::store::Store;
use crate::upstream::{self, Client, Whose};

/// Verdicts in memory: what falls out is asked for again. Each takes some 300 bytes.
const VERDICTS: usize = 100_000;

/// How long an upstream that could not be asked is not asked again about a caller within the grace.
const RETRY: Duration = Duration::from_secs(10);

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
    metrics: Metrics,
    // Every hit asks it. Nothing in it expires by itself: a verdict says how long it lasts.
    known: HotCache<OwnKey, Verdict>,
    proofs: Coalesce<OwnKey, Result<(), Denial>>,
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
        metrics: Metrics,
    ) -> Self {
        let (known, proofs) = (HotCache::new(VERDICTS), Coalesce::new("caller-proof", tasks));
        Self(Arc::new(Inner { config, hash, client, store, clock, metrics, known, proofs }))
    }

    /// Whether memory has a live yes.
    pub(super) fn is_granted(&self, route: &Route) -> bool {
        self.live(&Key::of(route)) == Some(Word::Granted)
    }

    /// Whether the route's caller may pull from its repository. The upstream is asked for what he wants, if it has not
    /// said so lately.
    pub(super) async fn judge(&self, route: &Route, wanted: Wanted<'_>) -> Result<(), Denial> {
        if let Some(word) = self.live(&Key::of(route)) {
            return word.outcome();
        }
        let Some(granted_at) = self.granted_within_grace(route).await else {
            return self.ask(route, wanted).await;
        };
        match timeout(self.0.config.patience, self.ask(route, wanted)).await {
            Ok(Err(Denial::Unavailable(_) | Denial::Internal)) | Err(_) => {
                self.be_graceful(route, granted_at);
                Ok(())
            }
            Ok(outcome) => outcome,
        }
    }

    fn live(&self, key: &Key<'_>) -> Option<Word> {
        let verdict = self.0.known.get(key)?;
        verdict.is_live(self.0.clock.now()).then_some(verdict.word)
    }

    /// When the upstream has last said yes, if that is not longer ago than the grace. A clock that was set back tells
    /// nothing, and nothing is given for it.
    async fn granted_within_grace(&self, route: &Route) -> Option<Timestamp> {
        let granted_at = self.0.store.metadata().grant(&self.grant(route)).await?;
        let age = self.0.clock.now().since(granted_at)?;
        (age < self.0.config.grace).then_some(granted_at)
    }

    fn be_graceful(&self, route: &Route, granted_at: Timestamp) {
        tracing::warn!(
            upstream = %route.upstream.name,
            repository = %route.repository,
            caller = %caller(route).id(),
            %granted_at,
            "the upstream cannot be asked about a caller; its last word counts, within the grace"
        );
        self.0.metrics.count(&route.upstream.name, "grace");
        self.note(route, Word::Granted, self.0.clock.now(), Instant::now(), RETRY);
    }

    /// Asks the upstream, once for all who wait for its word about this caller and repository.
    async fn ask(&self, route: &Route, wanted: Wanted<'_>) -> Result<(), Denial> {
        let key = Key::of(route);
        loop {
            let (proven, joined) = self.0.proofs.run(key.own(), || {
                let (verdicts, route, proof) = (self.clone(), route.clone(), Proof::from(wanted));
                async move { verdicts.prove(&route, &proof).await }
            });
            match proven.await.unwrap_or(Err(Denial::Internal)) {
                // It was asked for something else, which is not there: that says nothing of this.
                Err(Denial::Unknown(_)) if joined => {}
                outcome => return outcome,
            }
        }
    }

    async fn prove(&self, route: &Route, proof: &Proof) -> Result<(), Denial> {
        if let Some(word) = self.live(&Key::of(route)) {
            // It was said since the caller looked.
            return word.outcome();
        }
        let (asked_at, asked) = (self.0.clock.now(), Instant::now());
        let outcome = self.judgement(route, proof.ask(&self.0.client, route).await);
        let config = &self.0.config;
        match &outcome {
            Ok(()) => {
                self.note(route, Word::Granted, asked_at, asked, config.verdict_ttl);
                self.0.store.metadata().set_grant(&self.grant(route), asked_at);
            }
            Err(denial) => {
                match denial {
                    Denial::Unauthenticated => {
                        self.note(route, Word::Unauthenticated, asked_at, asked, config.denial_ttl);
                    }
                    Denial::Forbidden => {
                        self.note(route, Word::Forbidden, asked_at, asked, config.denial_ttl);
                    }
                    // Some registries say so in place of a no.
                    Denial::Unknown(_) => {}
                    Denial::Unavailable(_)
                    | Denial::Unusable
                    | Denial::InvalidToken
                    | Denial::InsufficientScope
                    | Denial::Internal => return outcome,
                }
                self.0.store.metadata().remove_grant(&self.grant(route));
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
                self.log_denial(route, &detail);
                ("denied", Err(Denial::Unauthenticated))
            }
            Err(upstream::Error::Forbidden { whose: Whose::Caller, detail, .. }) => {
                self.log_denial(route, &detail);
                ("denied", Err(Denial::Forbidden))
            }
            Err(error) => ("unavailable", Err(Denial::Unavailable(Arc::new(error)))),
        };
        self.0.metrics.count(upstream, verdict);
        outcome
    }

    fn log_denial(&self, route: &Route, detail: &str) {
        tracing::info!(
            upstream = %route.upstream.name,
            repository = %route.repository,
            caller = %caller(route).id(),
            detail,
            "the upstream does not let a caller pull"
        );
    }

    fn note(&self, route: &Route, word: Word, asked_at: Timestamp, asked: Instant, lasts: Duration) {
        self.0.known.insert(Key::of(route).own(), Verdict { word, asked_at, asked, lasts });
    }

    fn grant(&self, route: &Route) -> String {
        self.0.hash.grant(caller(route).id(), &route.upstream.name, &route.repository)
    }
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
}

/// The same, as it is kept. Texts hash like what they are borrowed as.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct OwnKey {
    caller: CallerId,
    upstream: Arc<str>,
    repository: Arc<str>,
}

impl<'a> Key<'a> {
    fn of(route: &'a Route) -> Self {
        let (upstream, repository) = (route.upstream.name.as_str(), route.repository.as_str());
        Self { caller: caller(route).id(), upstream, repository }
    }

    fn own(&self) -> OwnKey {
        OwnKey { caller: self.caller, upstream: self.upstream.into(), repository: self.repository.into() }
    }
}

impl Equivalent<OwnKey> for Key<'_> {
    fn equivalent(&self, own: &OwnKey) -> bool {
        self.caller == own.caller && *self.repository == *own.repository && *self.upstream == *own.upstream
    }
}
