//! The keys that are used on this node, by heart.
//!
//! A key is read when it is first shown, and again when the database says that it has changed: it is asked for that every
//! half a second, so that a key that is revoked on one node ends on all. While the database does not answer, keys that are
//! known go on working for the grace.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use moka::future::Cache;
use tokio::time::Instant;

use super::secret::{KeyId, KeySecret};
use super::store::KeyStore;
use super::{Key, Refused};
use crate::auth::keyed_hash::KeyedHash;
use crate::runtime::{Clock, Tasks, Timestamp};

/// Keys in memory.
const KEYS: u64 = 100_000;
/// How long one that nobody shows is remembered.
const IDLE: Duration = Duration::from_hours(1);
/// How often the database is asked what has changed.
const LOOK: Duration = Duration::from_millis(500);
/// How often a node says that it runs, although nothing has changed.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often uses are counted in the database.
const COUNT: Duration = Duration::from_secs(10);
/// What a node has seen that has just begun.
const NOTHING: i64 = -1;
/// How often a database that does not answer is written about.
const COMPLAIN: Duration = Duration::from_mins(1);

/// The keys of this node. Clones share everything.
#[derive(Debug, Clone)]
pub(in crate::auth) struct LiveKeys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: KeyStore,
    hash: Arc<KeyedHash>,
    clock: Arc<dyn Clock>,
    grace: Duration,
    node: String,
    // moka: one look-up for all who wait, bounded, and forgets by itself. `None`: there is no such key.
    known: Cache<KeyId, Option<Arc<Key>>>,
    /// Grows when keys were forgotten because they have changed: what was read before is read again.
    generation: AtomicU64,
    seen: AtomicI64,
    /// When the database last said that nothing else has changed.
    heard: Mutex<Instant>,
    uses: Mutex<HashMap<KeyId, Use>>,
}

#[derive(Debug, Clone, Copy)]
struct Use {
    count: u64,
    last: Timestamp,
}

/// The database cannot say whether there is such a key.
#[derive(Debug, Clone)]
pub(in crate::auth) struct Unavailable;

impl LiveKeys {
    /// Begins to listen to what changes.
    pub(in crate::auth) fn new(
        store: KeyStore,
        hash: Arc<KeyedHash>,
        clock: Arc<dyn Clock>,
        grace: Duration,
        tasks: &Tasks,
    ) -> Self {
        let keys = Self(Arc::new(Inner {
            store,
            hash,
            clock,
            grace,
            node: format!("{:016x}", fastrand::u64(..)),
            known: Cache::builder().max_capacity(KEYS).time_to_idle(IDLE).build(),
            generation: AtomicU64::new(0),
            seen: AtomicI64::new(NOTHING),
            heard: Mutex::new(Instant::now()),
            uses: Mutex::default(),
        }));
        let (listening, draining) = (keys.clone(), tasks.clone());
        tasks.spawn("keys", async move { listening.listen(draining).await });
        keys
    }

    /// The key whose secret this is.
    pub(in crate::auth) async fn of_secret(
        &self,
        secret: &KeySecret,
    ) -> Result<Result<Arc<Key>, Refused>, Unavailable> {
        let Some(key) = self.find(secret.id()).await? else {
            return Ok(Err(Refused::Unknown));
        };
        let hash = self.0.hash.key(secret);
        let is = |known: &str| verify_slices_are_equal(known.as_bytes(), hash.as_bytes()).is_ok();
        let overlaps = key.previous_until.is_some_and(|until| self.0.clock.now() < until);
        let is_previous = key.previous_hash.as_deref().is_some_and(is) && overlaps;
        Ok(if is(&key.hash) || is_previous { Ok(key) } else { Err(Refused::Unknown) })
    }

    /// The key of this id.
    pub(in crate::auth) async fn find(&self, id: &KeyId) -> Result<Option<Arc<Key>>, Unavailable> {
        let silent_for = self.0.heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        if silent_for > self.0.grace {
            return Err(Unavailable);
        }
        if let Some(known) = self.0.known.get(id).await {
            return Ok(known);
        }
        loop {
            let generation = self.0.generation.load(Ordering::Acquire);
            let read = async { self.0.store.find(id).await.map(|key| key.map(Arc::new)) };
            let found = self.0.known.try_get_with_by_ref(id, read).await.map_err(|error| {
                tracing::warn!(%error, "a key cannot be looked up");
                Unavailable
            })?;
            // A change that came between the reading and the keeping has not been forgotten.
            if self.0.generation.load(Ordering::Acquire) == generation {
                return Ok(found);
            }
            self.0.known.invalidate(id).await;
        }
    }

    /// The time by which keys begin and end.
    pub(in crate::auth) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Counts that a key was shown.
    pub(in crate::auth) fn used(&self, key: &Key) {
        let last = self.0.clock.now();
        let mut uses = self.0.uses.lock().unwrap_or_else(PoisonError::into_inner);
        match uses.get_mut(&key.id) {
            Some(known) => *known = Use { count: known.count + 1, last },
            None => drop(uses.insert(key.id.clone(), Use { count: 1, last })),
        }
    }

    async fn listen(&self, tasks: Tasks) {
        let mut said = None;
        let mut counted = Instant::now();
        let mut complained: Option<Instant> = None;
        loop {
            match self.look(&mut said).await {
                Ok(()) => complained = None,
                Err(error) if complained.is_none_or(|at| at.elapsed() > COMPLAIN) => {
                    tracing::warn!(%error, "the database does not say which keys have changed; those that are known go on working");
                    complained = Some(Instant::now());
                }
                Err(_) => {}
            }
            if counted.elapsed() > COUNT {
                counted = Instant::now();
                self.count().await;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = tasks.draining() => break,
            }
        }
        self.count().await;
        // Whoever waits for this node to notice something need not.
        let _ = self.0.store.remove_node(&self.0.node).await;
    }

    /// Forgets the keys that have changed, and says up to when this node knows them.
    async fn look(&self, said: &mut Option<Instant>) -> Result<(), sqlx::Error> {
        let inner = &self.0;
        let asked = Instant::now();
        let (seen, newest) = (inner.seen.load(Ordering::Relaxed), inner.store.revision().await?);
        if newest != seen {
            let changed = if seen == NOTHING { Vec::new() } else { inner.store.changed_since(seen).await? };
            // First: what is read from here on is as new as that.
            inner.generation.fetch_add(1, Ordering::AcqRel);
            if seen == NOTHING {
                inner.known.invalidate_all();
            }
            for id in changed.iter().filter_map(|id| id.parse::<KeyId>().ok()) {
                inner.known.invalidate(&id).await;
            }
            inner.seen.store(newest, Ordering::Relaxed);
        }
        *inner.heard.lock().unwrap_or_else(PoisonError::into_inner) = asked;
        if newest != seen || said.is_none_or(|at| at.elapsed() > HEARTBEAT) {
            inner.store.note_node(&inner.node, newest).await?;
            *said = Some(asked);
        }
        Ok(())
    }

    async fn count(&self) {
        let uses = std::mem::take(&mut *self.0.uses.lock().unwrap_or_else(PoisonError::into_inner));
        for (id, Use { count, last }) in uses {
            if let Err(error) = self.0.store.note_uses(id.as_str(), count, last).await {
                tracing::debug!(%error, key = %id, count, "uses of a key could not be counted");
            }
        }
    }
}
