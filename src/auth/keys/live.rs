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
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

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
/// Look-ups at once of keys that memory does not know: fewer than there are connections, so that whoever shows made-up keys
/// does not keep this node from hearing of those that are revoked.
const LOOK_UPS: usize = 1;
/// How long somebody waits for his turn.
const TURN: Duration = Duration::from_secs(3);
/// How long it is remembered that there is no such key, and of how many.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);
const UNKNOWN: u64 = 10_000;
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
    // moka: one look-up for all who wait, bounded, and forgets by itself.
    known: Cache<KeyId, Arc<Key>>,
    /// Apart from those that there are, which they must not push out.
    unknown: Cache<KeyId, ()>,
    look_ups: Semaphore,
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

/// Why there is nothing to remember of a key.
#[derive(Debug, Clone, Copy)]
enum Miss {
    Unknown,
    Unavailable,
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
        node: String,
        tasks: &Tasks,
    ) -> Self {
        let keys = Self(Arc::new(Inner {
            store,
            hash,
            clock,
            grace,
            node,
            known: Cache::builder().max_capacity(KEYS).time_to_idle(IDLE.max(grace)).build(),
            unknown: Cache::builder().max_capacity(UNKNOWN).time_to_live(UNKNOWN_FOR).build(),
            look_ups: Semaphore::new(LOOK_UPS),
            generation: AtomicU64::new(0),
            seen: AtomicI64::new(0),
            heard: Mutex::new(Instant::now()),
            uses: Mutex::default(),
        }));
        let (listening, draining) = (keys.clone(), tasks.clone());
        tasks.spawn("keys", async move { listening.listen(draining).await });
        let (counting, draining) = (keys.clone(), tasks.clone());
        tasks.spawn("key-uses", async move { counting.count(draining).await });
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
        if silent_for > self.0.grace.max(LOOK * 10) {
            return Err(Unavailable);
        }
        if let Some(known) = self.0.known.get(id).await {
            return Ok(Some(known));
        }
        if self.0.unknown.get(id).await.is_some() {
            return Ok(None);
        }
        loop {
            let generation = self.0.generation.load(Ordering::Acquire);
            let found = match self.0.known.try_get_with_by_ref(id, self.look_up(id)).await {
                Ok(key) => Some(key),
                Err(miss) => match &*miss {
                    Miss::Unknown => None,
                    Miss::Unavailable => return Err(Unavailable),
                },
            };
            // A change that came between the reading and the keeping has not been forgotten.
            if self.0.generation.load(Ordering::Acquire) == generation {
                return Ok(found);
            }
            self.forget(id).await;
        }
    }

    async fn look_up(&self, id: &KeyId) -> Result<Arc<Key>, Miss> {
        let Ok(_turn) = timeout(TURN, self.0.look_ups.acquire()).await else {
            return Err(Miss::Unavailable);
        };
        match self.0.store.find(id).await {
            Ok(Some(key)) => Ok(Arc::new(key)),
            Ok(None) => {
                self.0.unknown.insert(id.clone(), ()).await;
                Err(Miss::Unknown)
            }
            Err(error) => {
                tracing::warn!(%error, "a key cannot be looked up");
                Err(Miss::Unavailable)
            }
        }
    }

    async fn forget(&self, id: &KeyId) {
        self.0.known.invalidate(id).await;
        self.0.unknown.invalidate(id).await;
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
        let mut complained: Option<Instant> = None;
        loop {
            match self.look(&mut said).await {
                Ok(()) => complained = None,
                Err(error) => {
                    // It may be another when it answers again, from a backup or a replica.
                    said = None;
                    if complained.is_none_or(|at| at.elapsed() > COMPLAIN) {
                        tracing::warn!(%error, "the database does not say which keys have changed; those that are known go on working");
                        complained = Some(Instant::now());
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = tasks.draining() => break,
            }
        }
        // Whoever waits for this node to notice something need not.
        let _ = self.0.store.remove_node(&self.0.node).await;
    }

    /// Forgets the keys that have changed, and says up to when this node knows them; `said` is when it last did, to a
    /// database that has answered ever since.
    async fn look(&self, said: &mut Option<Instant>) -> Result<(), sqlx::Error> {
        let inner = &self.0;
        let asked = Instant::now();
        let (seen, newest) = (inner.seen.load(Ordering::Relaxed), inner.store.revision().await?);
        if said.is_none() || newest < seen {
            inner.generation.fetch_add(1, Ordering::AcqRel);
            inner.known.invalidate_all();
            inner.unknown.invalidate_all();
        } else if newest > seen {
            let changed = inner.store.changed_since(seen).await?;
            // First: what is read from here on is as new as that.
            inner.generation.fetch_add(1, Ordering::AcqRel);
            for id in changed.iter().filter_map(|id| id.parse().ok()) {
                self.forget(&id).await;
            }
        }
        inner.seen.store(newest, Ordering::Relaxed);
        *inner.heard.lock().unwrap_or_else(PoisonError::into_inner) = asked;
        // Where there have never been any keys, nothing is written for them.
        let is_time = newest > 0 && said.is_some_and(|at| at.elapsed() > HEARTBEAT);
        if newest != seen || said.is_none() || is_time {
            inner.store.note_node(&inner.node, newest).await?;
            *said = Some(asked);
        }
        Ok(())
    }

    /// Counts uses in the database from time to time, and at the end.
    async fn count(&self, tasks: Tasks) {
        loop {
            let is_draining = tokio::select! {
                () = tokio::time::sleep(COUNT) => false,
                () = tasks.draining() => true,
            };
            let uses = std::mem::take(&mut *self.0.uses.lock().unwrap_or_else(PoisonError::into_inner));
            let uses: Vec<_> = uses.into_iter().map(|(id, Use { count, last })| (id, count, last)).collect();
            if !uses.is_empty()
                && let Err(error) = self.0.store.note_uses(&uses).await
            {
                tracing::debug!(%error, keys = uses.len(), "uses of keys could not be counted");
            }
            if is_draining {
                return;
            }
        }
    }
}
