//! A miss becomes a hit: one fetch for all, verified, resumed, and fresh enough.
//!
//! Owns the flights ([`flight`], [`fill`]), the freshness of tags ([`tags`]) and the question
//! which repository may see which digest ([`rights`]). Manifests are small and fetched whole
//! before anything is answered; blobs stream to their readers while they arrive.
//!
//! Invariants: one upstream request per thing, however many ask; a repository sees a digest only
//! after its own upstream has answered for it; what is unknown is never called absent while the
//! upstream cannot be asked.

mod blobs;
mod config;
mod error;
mod fill;
mod flight;
mod kept;
mod lists;
mod manifests;
mod metrics;
mod passage;
mod piece;
mod reader;
mod refetch;
mod referrers;
mod rights;
mod schedule;
mod tags;
mod window;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use quick_cache::sync::Cache as HotCache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use blobs::{BlobAnswer, BlobHead};
pub use config::{FillConfig, OnAbandon, TagConfig, TagPolicy, Ttl};
pub use error::Error;
pub use lists::ListAnswer;
pub use manifests::{ManifestAnswer, Want};
pub use metrics::Metrics;
pub use reader::{Chunk, Reader};
pub use referrers::ReferrersAnswer;

use crate::oci::{Digest, ErrorCode};
use crate::routing::{Route, UpstreamName};
use crate::runtime::{Clock, Coalesce, Tasks};
use crate::store::{ListRecord, Store, TagRecord};
use crate::upstream::{Client, ManifestHead, Purpose};
use flight::Flights;
use manifests::StoredManifest;
use referrers::FetchedReferrers;

/// "There is no such thing" is remembered for this many things at most.
const NEGATIVES: u64 = 10_000;
/// Media types of recently used manifests; saves parsing a hot manifest on every hit.
const MEDIA_TYPES: usize = 100_000;

/// How an answer came about, for `Cache-Status` (RFC 9211) and the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// From the cache, without asking anybody.
    Hit,
    /// From the cache, after the upstream confirmed the tag or the right.
    Revalidated,
    /// From the cache although it is past its time: the upstream could not be asked, or is asked
    /// behind the client's back.
    Stale,
    /// From the upstream, and kept.
    Miss,
    /// From the upstream, and not kept: an answer without a body, or for which no disk has room.
    Forwarded,
    /// From the upstream, by a fetch that somebody else had started.
    Collapsed,
}

/// How fresh an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// How it came about.
    pub served: Served,
    /// How long ago the upstream was last asked about a tag, or a blob was completed; zero where
    /// that is not known any more.
    pub age: Duration,
    /// For tags: how much of the TTL is left, in seconds; negative when it is past.
    pub ttl: Option<i64>,
}

impl Freshness {
    fn of(served: Served) -> Self {
        Self { served, age: Duration::ZERO, ttl: None }
    }
}

/// Answers pulls from the store and the upstreams. Clones share everything.
#[derive(Debug, Clone)]
pub struct Puller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    client: Client,
    tag_config: TagConfig,
    keeps_any: bool,
    fill_config: FillConfig,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    flights: Flights,
    // One per upstream, so that a slow one does not take the turns of the others. Those who wait
    // are flights that somebody follows, so the queue is as bounded as the connections.
    turns: Mutex<HashMap<UpstreamName, Arc<Semaphore>>>,
    manifest_fetches: Coalesce<String, Result<Arc<StoredManifest>, Error>>,
    manifest_heads: Coalesce<String, Result<ManifestHead, Error>>,
    tag_checks: Coalesce<String, Result<TagRecord, Error>>,
    proofs: Coalesce<String, Result<Option<u64>, Error>>,
    list_fetches: Coalesce<String, Result<Arc<ListRecord>, Error>>,
    referrers_fetches: Coalesce<String, Result<FetchedReferrers, Error>>,
    // moka: bounded, and entries expire by themselves.
    negatives: Cache<String, ErrorCode>,
    // Nothing in it expires, and every hit on a manifest asks it.
    media_types: HotCache<Digest, &'static str>,
    metrics: Metrics,
}

impl Puller {
    /// Connects the store with the upstreams.
    pub fn new(
        store: Store,
        client: Client,
        tag_config: TagConfig,
        fill_config: FillConfig,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
        metrics: Metrics,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            client,
            clock,
            tasks: tasks.clone(),
            flights: Flights::default(),
            turns: Mutex::default(),
            manifest_fetches: Coalesce::new("manifest", tasks),
            manifest_heads: Coalesce::new("manifest-head", tasks),
            tag_checks: Coalesce::new("tag", tasks),
            proofs: Coalesce::new("proof", tasks),
            list_fetches: Coalesce::new("list", tasks),
            referrers_fetches: Coalesce::new("referrers", tasks),
            negatives: Cache::builder().max_capacity(NEGATIVES).time_to_live(tag_config.negative_ttl).build(),
            media_types: HotCache::new(MEDIA_TYPES),
            keeps_any: tag_config.keeps_any(),
            tag_config,
            fill_config,
            metrics,
        }))
    }

    /// The directories of the cache that cannot be written to, and why.
    pub fn degraded(&self) -> Vec<(PathBuf, String)> {
        self.store().degraded()
    }

    fn store(&self) -> &Store {
        &self.0.store
    }

    fn client(&self) -> &Client {
        &self.0.client
    }

    fn fill_config(&self) -> &FillConfig {
        &self.0.fill_config
    }

    fn flights(&self) -> &Flights {
        &self.0.flights
    }

    fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    fn is_draining(&self) -> bool {
        self.0.tasks.is_draining()
    }

    /// Resolves when the process begins to stop. Cancel safe.
    async fn draining(&self) {
        self.0.tasks.draining().await;
    }

    /// Resolves when the stop waits no longer. Cancel safe.
    async fn aborting(&self) {
        self.0.tasks.aborting().await;
    }

    /// A turn for one fill from this upstream; waits while too many run.
    async fn fill_turn(&self, upstream: &UpstreamName) -> Result<OwnedSemaphorePermit, Error> {
        self.turns(upstream).acquire_owned().await.map_err(|_| Error::Internal)
    }

    /// A turn, if there is one at once.
    fn try_fill_turn(&self, upstream: &UpstreamName) -> Option<OwnedSemaphorePermit> {
        self.turns(upstream).try_acquire_owned().ok()
    }

    fn turns(&self, upstream: &UpstreamName) -> Arc<Semaphore> {
        let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Semaphore::new(self.0.fill_config.max_concurrent));
        Arc::clone(turns.entry(upstream.clone()).or_insert_with(new))
    }

    /// Fails with what the upstream said moments ago, if it said that there is no such thing.
    fn check_negative(&self, key: &str) -> Result<(), Error> {
        self.0.negatives.get(key).map_or(Ok(()), |code| Err(Error::Unknown(code)))
    }

    /// Remembers for seconds that there is no such thing.
    fn note_negative<T>(&self, key: &str, outcome: &Result<T, Error>) {
        if let Err(Error::Unknown(code)) = outcome
            && !self.0.tag_config.negative_ttl.is_zero()
        {
            self.0.negatives.insert(key.to_owned(), *code);
        }
    }
}

/// The answer to a question, asked once for all who wonder. What was joined may have been asked in the
/// background, which goes without first when a quota runs out, or on behalf of somebody who may not; a pull then asks again.
async fn ask_once<V, F>(
    questions: &Coalesce<String, Result<V, Error>>,
    key: &str,
    purpose: Purpose,
    ask: impl Fn() -> F,
) -> Result<V, Error>
where
    V: Clone + Send + Sync + 'static,
    F: Future<Output = Result<V, Error>> + Send + 'static,
{
    loop {
        let (answer, joined) = questions.run(key.to_owned(), &ask);
        match answer.await.unwrap_or(Err(Error::Internal)) {
            Err(error) if joined && purpose == Purpose::Pull && error.is_rate_limit() => {}
            Err(error) if joined && error.is_of_caller() => {}
            answer => return answer,
        }
    }
}

/// The key of a thing that is fetched on behalf of one caller alone.
fn caller_key(route: &Route, thing: impl std::fmt::Display) -> String {
    let caller = route.caller.as_ref().map(|caller| caller.id().0);
    format!("{}\0{caller:?}", key(route, thing))
}

/// The key of a thing in a repository of an upstream. NUL is in none of the parts.
fn key(route: &Route, thing: impl std::fmt::Display) -> String {
    format!("{}\0{}\0{thing}", route.upstream.name, route.repository)
}
