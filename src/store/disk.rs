//! One directory of the cache: its files, its index, its budget and its health.
//!
//! Locks are taken in this order: the index, then the open files. Whoever evicts holds both, so that a blob is
//! either handed out or removed, never both.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use lru::LruCache;
use rustix::fs::statvfs;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::config::DiskConfig;
use super::durable::DurabilityQueue;
use super::health::{self, Health};
use super::images::{self, Images};
use super::index::{Index, Sealed, Trust};
use super::layout::{Layout, Ownership, journal_of, rename_into};
use super::ledger::{Ledger, Reservation, charge_of, estimate};
use super::memory::MemoryTier;
use super::partial::remove_files;
use super::read::BufferPool;
use super::records::Records;
use super::recover::Boot;
use super::{Blob, Error, Metrics};
use crate::oci::Digest;
use crate::runtime::{Clock, Tasks};

/// Open files of idle blobs; an open costs 5 µs and a hop to the blocking pool.
const OPEN_BLOBS: usize = 512;
/// How many blobs are looked at for one that is idle, when a file is to be closed.
const CLOSE_TRIES: usize = 8;
/// How often the policy is asked for one victim: a thousand blobs in use may stand before it.
const EVICTION_CALLS: usize = 8;
/// The journal of a blob in flight: a block for each of its two slots, and some for many ranges.
const JOURNAL: u64 = 16 << 10;
/// What a blob of unknown size reserves at a time.
const STEP: u64 = 16 << 20;
/// How long a fill waits for others to be evicted.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);
/// Directories of a fan-out, at one block each; what they grow by is charged to their files.
const DIRECTORIES: u64 = 260 * 4096;
/// By how much the databases may grow between two looks.
const GROWTH: u64 = 1 << 20;
/// Files that are left for the rest of the machine, where a file system counts them.
const SPARE_INODES: u64 = 64;

/// How much of the index is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Loaded {
    Nothing,
    /// What the records say.
    Records,
    /// What is in the directory.
    Everything,
}

/// What the last round of the evictor has achieved.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    number: u64,
    freed: u64,
}

/// A blob in flight that nobody works on.
#[derive(Debug)]
struct Parked {
    charge: u64,
    since: Instant,
}

/// One directory.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) layout: Layout,
    config: DiskConfig,
    boot: Boot,
    clock: Arc<dyn Clock>,
    pool: BufferPool,
    memory: Arc<MemoryTier>,
    images: Arc<Images>,
    metrics: Arc<Metrics>,
    // A readers-writer lock: hits read it for tens of nanoseconds, a seal or an eviction writes it.
    index: RwLock<Index>,
    // A mutex: a lookup reorders the list. Every blob in use is in it, and some that are not.
    open: Mutex<LruCache<Digest, Arc<Blob>>>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) records: Records,
    durability: DurabilityQueue,
    pub(super) health: Health,
    // A mutex: two operations per fill.
    parked: Mutex<HashMap<PathBuf, Parked>>,
    quarantined: AtomicU64,
    /// Other files of the cache that are to fit into the budget.
    others: Vec<PathBuf>,
    loaded: watch::Sender<Loaded>,
    rounds: watch::Sender<Round>,
    wake: Notify,
    // A mutex: taken again only when the directory was deleted.
    ownership: Mutex<Ownership>,
}

/// What a disk shares with the others.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) boot_id: Arc<str>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) pool: BufferPool,
    pub(super) memory: Arc<MemoryTier>,
    pub(super) images: Arc<Images>,
    pub(super) durability: DurabilityQueue,
    pub(super) metrics: Arc<Metrics>,
}

impl Disk {
    /// Opens the directory; nothing of what is in it is known before [`Disk::start`]. Blocking.
    ///
    /// # Errors
    /// When it belongs to another process or cannot be used.
    pub(super) fn open(config: DiskConfig, shared: &Shared) -> Result<Self, Error> {
        let layout = Layout::create(&config.directory)?;
        let ownership = layout.own()?;
        let directory = layout.root().display().to_string();
        let disk = Self {
            boot: Boot::read(&layout, &shared.boot_id),
            records: Records::new(layout.catalogue()),
            // Where there is none, it takes nothing.
            others: vec![layout.catalogue(), layout.metadata()],
            index: RwLock::new(Index::new(config.eviction.policy())),
            health: Health::new(shared.metrics.healthy.with_label_values(&[&directory])),
            layout,
            config,
            clock: Arc::clone(&shared.clock),
            pool: shared.pool.clone(),
            memory: Arc::clone(&shared.memory),
            images: Arc::clone(&shared.images),
            metrics: Arc::clone(&shared.metrics),
            open: Mutex::new(LruCache::unbounded()),
            ledger: Arc::default(),
            durability: shared.durability.clone(),
            parked: Mutex::default(),
            quarantined: AtomicU64::new(0),
            loaded: watch::Sender::new(Loaded::Nothing),
            rounds: watch::Sender::default(),
            wake: Notify::new(),
            ownership: Mutex::new(ownership),
        };
        disk.recover_partials();
        disk.measure();
        Ok(disk)
    }

    /// Begins to read the records.
    pub(super) fn start(self: &Arc<Self>, tasks: &Tasks) {
        let (disk, read) = (Arc::clone(self), Arc::clone(self));
        self.records.start(
            tasks,
            move |rows| {
                let now = disk.seconds();
                let mut index = disk.index_mut();
                for (digest, sealed, history) in rows {
                    // What has been sealed since the start is newer.
                    if index.slot(&digest).is_none() {
                        index.insert(digest, &sealed, Trust::Sealed, Some(history), now);
                        disk.ledger.charge(sealed.charge);
                        disk.count(None, Some(&sealed));
                    }
                }
            },
            move || {
                read.measure();
                read.loaded.send_replace(Loaded::Records);
            },
        );
    }

    /// Resolves when the records have been read. Cancel safe.
    pub(super) async fn read(&self) {
        let read = |loaded: &Loaded| *loaded >= Loaded::Records;
        // The sender is ours, so it is there.
        let _ = self.loaded.subscribe().wait_for(read).await;
    }

    /// Notes that everything in the directory is known.
    pub(super) fn scanned(&self) {
        self.loaded.send_replace(Loaded::Everything);
    }

    /// Which boot wrote what is in the directory.
    pub(super) fn boot(&self) -> &Boot {
        &self.boot
    }

    /// The size of a blob that is here. Asks the directory only while the index is being loaded. Cancel safe.
    pub(super) async fn find(self: &Arc<Self>, digest: &Digest) -> Option<u64> {
        if let Some(size) = self.size(digest) {
            return Some(size);
        }
        if *self.loaded.borrow() == Loaded::Everything {
            return None;
        }
        self.read().await;
        if let Some(size) = self.size(digest) {
            return Some(size);
        }
        let (disk, digest) = (Arc::clone(self), *digest);
        tokio::task::spawn_blocking(move || disk.meet(digest)).await.ok()?
    }

    /// The size of a blob that the index knows.
    pub(super) fn size(&self, digest: &Digest) -> Option<u64> {
        self.index().size(digest)
    }

    /// Takes a file into the index of which no record speaks, if there is one. Blocking.
    pub(super) fn meet(&self, digest: Digest) -> Option<u64> {
        let metadata = fs::metadata(self.layout.blob(&digest)).ok().filter(fs::Metadata::is_file)?;
        let (size, charge) = (metadata.len(), charge_of(allocated(&metadata)));
        let mut index = self.index_mut();
        if index.slot(&digest).is_none() {
            let sealed = Sealed { size, charge, cost: None, dependents: 0 };
            index.insert(digest, &sealed, Trust::None, None, self.seconds());
            self.count(None, Some(&sealed));
            self.ledger.charge(charge);
        }
        Some(size)
    }

    /// Notes that a blob was asked for; whether it is known here.
    pub(super) fn touch(&self, digest: &Digest) -> bool {
        self.index().touch(digest, self.seconds())
    }

    /// The blob, if its file is open.
    pub(super) fn opened(&self, digest: &Digest) -> Option<Arc<Blob>> {
        self.lock_open().get(digest).cloned()
    }

    /// Opens a blob, hashing it first where its bytes are in doubt. Blocking.
    pub(super) fn open_blob(&self, digest: Digest) -> Option<Arc<Blob>> {
        let (size, trust) = self.index().look(&digest)?;
        let path = self.layout.blob(&digest);
        let (blob, is_durable) = match Blob::open(&path, digest, self.pool.clone()) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a cached blob cannot be opened; it is fetched again");
                // Any other error may pass, as that of too many open files does.
                if error.kind() == io::ErrorKind::NotFound {
                    self.forget(&digest);
                }
                return None;
            }
        };
        let is_doubtful = match trust {
            Trust::Verified => false,
            Trust::Sealed => !is_durable && self.boot == Boot::Other,
            Trust::None => true,
        };
        if blob.size() != size || (is_doubtful && !blob.verify().unwrap_or(false)) {
            self.set_aside(&digest, "not the bytes that were sealed");
            return None;
        }
        if is_doubtful {
            self.index().verified(&digest);
            self.record(&digest);
            if !is_durable {
                self.durability.push(path);
            }
        }
        self.keep_open(blob)
    }

    /// Keeps a blob open for those who ask next, unless it was evicted meanwhile.
    fn keep_open(&self, blob: Blob) -> Option<Arc<Blob>> {
        let blob = Arc::new(blob);
        let index = self.index();
        index.slot(blob.digest())?;
        put(&mut self.lock_open(), &blob);
        Some(blob)
    }

    /// Takes a blob out of service that is damaged. Blocking.
    pub(super) fn set_aside(&self, digest: &Digest, reason: &str) {
        self.metrics.corrupt.inc();
        // Charged twice for a moment rather than not at all.
        self.put_in_quarantine(&self.layout.blob(digest), reason);
        self.forget(digest);
    }

    /// Moves a file to where nothing is served from; what it takes is charged until it is removed. Blocking.
    pub(super) fn put_in_quarantine(&self, path: &Path, reason: &str) {
        let metadata = fs::symlink_metadata(path);
        if self.layout.put_in_quarantine(path, reason)
            && let Ok(metadata) = metadata
        {
            self.found_quarantined(&metadata);
        }
    }

    /// Forgets a blob whose file is gone.
    pub(super) fn forget(&self, digest: &Digest) {
        if let Some(sealed) = self.take_out(digest) {
            self.ledger.release(sealed.charge);
        }
    }

    fn take_out(&self, digest: &Digest) -> Option<Sealed> {
        let sealed = self.index_mut().remove(digest);
        self.lock_open().pop(digest);
        self.memory.remove(digest);
        if sealed.is_some() {
            self.records.remove(*digest);
            self.count(sealed.as_ref(), None);
        }
        sealed
    }

    /// Moves a complete and verified file to its place, with what it took to fetch it in seconds. Blocking.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn seal(
        &self,
        digest: Digest,
        size: u64,
        file: Arc<File>,
        from: &Path,
        reservation: Reservation,
        cost: Option<f32>,
    ) -> io::Result<Arc<Blob>> {
        let to = self.layout.blob(&digest);
        rename_into(from, &to)?;
        let charge = charge_of(allocated(&file.metadata()?));
        reservation.settle(charge);
        let sealed = Sealed { size, charge, cost, dependents: self.images.expected_dependents(&digest) };
        let blob = Blob::new(digest, size, self.clock.now(), file, self.pool.clone());
        let blob = Arc::new(blob);
        {
            let mut index = self.index_mut();
            let before = index.insert(digest, &sealed, Trust::Verified, None, self.seconds());
            if let Some(before) = &before {
                self.ledger.release(before.charge);
            }
            self.count(before.as_ref(), Some(&sealed));
            put(&mut self.lock_open(), &blob);
        }
        self.record(&digest);
        self.durability.push(to);
        if self.is_above_high_watermark() {
            self.wake.notify_one();
        }
        Ok(blob)
    }

    /// Counts one more cached image that needs a blob, or one less. Whether it is here.
    pub(super) fn depend(&self, digest: &Digest, more: bool) -> bool {
        self.index_mut().depend(digest, more)
    }

    /// Has the record of a blob written.
    fn record(&self, digest: &Digest) {
        let index = self.index();
        let Some((sealed, history)) = index.record(digest) else { return };
        if self.records.set(*digest, sealed, history) {
            index.recorded(digest);
        } else {
            self.metrics.records_dropped.inc();
        }
    }

    /// Has the records written of what was used since they were. As many as the queue takes.
    pub(super) fn record_use(&self) {
        const RUN: usize = 4096;
        let mut from = 0;
        while self.records.has_room(RUN) {
            let Some(used) = self.index().run(from, RUN, true) else { return };
            for digest in used {
                self.record(&digest);
            }
            from += RUN;
        }
    }

    /// Walks over the blobs of the index in runs, each of which `visit` gets without the lock.
    pub(super) fn visit(&self, mut visit: impl FnMut(Vec<Digest>)) {
        const RUN: usize = 4096;
        let mut from = 0;
        while let Some(digests) = { self.index().run(from, RUN, false) } {
            visit(digests);
            from += RUN;
        }
    }

    /// The slots of these blobs, for who marks what he has seen.
    pub(super) fn slot(&self, digest: &Digest) -> Option<usize> {
        self.index().slot(digest).map(|slot| slot as usize)
    }

    // --- room ---

    /// The share of the budget that is free, in thousandths.
    pub(super) fn freedom(&self) -> u64 {
        let (limit, used) = (self.ledger.limit(), self.ledger.used());
        limit.saturating_sub(used) * 1000 / limit.max(1)
    }

    /// Room for a file of `size` bytes; waits a moment for others to be evicted.
    ///
    /// # Errors
    /// [`Error::NoRoom`]
    pub(super) async fn room_for(self: &Arc<Self>, size: u64) -> Result<Reservation, Error> {
        let mut reservation = self.ledger.reserve(0).ok_or(Error::NoRoom { needed: size })?;
        self.grow(&mut reservation, estimate(size)).await?;
        Ok(reservation)
    }

    /// Grows a reservation to `bytes`; waits a moment for others to be evicted.
    async fn grow(&self, reservation: &mut Reservation, bytes: u64) -> Result<(), Error> {
        let refusal = || {
            self.metrics.refused.inc();
            Error::NoRoom { needed: bytes }
        };
        if *self.loaded.borrow() < Loaded::Records {
            // What is charged is not known yet.
            self.read().await;
        }
        if bytes <= reservation.bytes() {
            return Ok(());
        }
        if bytes > self.ledger.limit() {
            return Err(refusal());
        }
        if !reservation.grow_to(bytes) {
            let _awaiting = self.ledger.await_room(bytes - reservation.bytes());
            let deadline = Instant::now() + ROOM_TIMEOUT;
            let mut rounds = self.rounds.subscribe();
            loop {
                self.wake.notify_one();
                let round = tokio::time::timeout_at(deadline, rounds.changed()).await;
                if reservation.grow_to(bytes) {
                    break;
                }
                if round.is_err() || rounds.borrow().freed == 0 {
                    return Err(refusal());
                }
            }
        }
        if self.is_above_high_watermark() {
            self.wake.notify_one();
        }
        Ok(())
    }

    fn is_above_high_watermark(&self) -> bool {
        self.ledger.used() > self.config.high_watermark.of(self.ledger.limit())
    }

    /// How many bytes are to be evicted.
    fn excess(&self) -> u64 {
        let (limit, wanted) = (self.ledger.limit(), self.ledger.used() + self.ledger.awaited());
        if wanted > self.config.high_watermark.of(limit) || wanted > limit {
            wanted.saturating_sub(self.config.low_watermark.of(limit))
        } else {
            0
        }
    }

    /// Looks at the file system and says how much there may be. Blocking.
    pub(super) fn measure(&self) {
        let stats = match statvfs(self.layout.root()) {
            Ok(stats) => stats,
            Err(error) => return self.failed(&error.into()),
        };
        let (total, available) = (stats.f_blocks * stats.f_frsize, stats.f_bavail * stats.f_frsize);
        let others =
            DIRECTORIES.min(total / 64) + self.others.iter().map(|path| allocated_at(path)).sum::<u64>();
        let growth = GROWTH.min(total / 64);
        let budget = self.config.capacity.of(total).saturating_sub(others);
        // What the file system can hold beside what is promised already.
        let held = (self.ledger.used() + available)
            .saturating_sub(self.ledger.unwritten() + self.config.reserve.of(total));
        self.ledger.set_limit(budget.min(held).saturating_sub(growth));
        let directory = self.layout.root().display().to_string();
        let set = |gauge: &prometheus::IntGaugeVec, value| {
            gauge.with_label_values(&[&directory]).set(super::gauge_value(value));
        };
        set(&self.metrics.capacity, self.ledger.limit() + others);
        set(&self.metrics.used, self.ledger.used() + others);
    }

    /// Whether the file system is about to run out of files. Blocking.
    fn lacks_inodes(&self) -> bool {
        statvfs(self.layout.root()).is_ok_and(|stats| stats.f_files > 0 && stats.f_favail < SPARE_INODES)
    }

    /// Resolves when somebody wants room. Cancel safe.
    pub(super) async fn wanted(&self) {
        self.wake.notified().await;
    }

    /// Makes room, one round: what was put aside goes first, then what nobody has come back for, then what the
    /// policy says. Returns the blobs that went, or `None` when there is nothing to do. Blocking.
    pub(super) fn evict(&self) -> Option<Vec<Digest>> {
        /// Enough to amortise the wake-ups, few enough for those who wait.
        const ROUND: usize = 64;
        let lacks_inodes = self.lacks_inodes();
        let excess = self.excess().max(u64::from(lacks_inodes));
        if excess == 0 {
            return None;
        }
        let goal = if lacks_inodes { u64::MAX } else { excess };
        let mut freed = self.empty_quarantine();
        if freed < goal {
            freed += self.drop_parked(goal - freed, true);
        }
        let mut gone = Vec::new();
        while freed < goal && gone.len() < ROUND {
            let Some((digest, charge)) = self.evict_one() else { break };
            gone.push(digest);
            freed += charge;
        }
        if freed < goal && gone.is_empty() {
            freed += self.drop_parked(goal - freed, false);
        }
        self.rounds.send_modify(|round| *round = Round { number: round.number + 1, freed });
        (freed > 0).then_some(gone)
    }

    fn evict_one(&self) -> Option<(Digest, u64)> {
        let (digest, sealed) = {
            let mut index = self.index_mut();
            let mut open = self.lock_open();
            let in_use = |digest: &Digest| open.peek(digest).is_some_and(|blob| Arc::strong_count(blob) > 1);
            let may_go = |digest: &Digest| !in_use(digest) && !self.images.is_kept(digest);
            let now = self.seconds();
            // A call gives up after so many that may not go, and the next one goes on behind them.
            let victim = (0..EVICTION_CALLS).find_map(|_| index.evict(now, may_go))?;
            open.pop(&victim.0);
            victim
        };
        self.memory.remove(&digest);
        let path = self.layout.blob(&digest);
        let children = images::children(&path, sealed.size);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                // It still takes its space, and can still be read.
                tracing::warn!(path = %path.display(), %error, "a blob could not be removed");
                self.index_mut().insert(digest, &sealed, Trust::Sealed, None, self.seconds());
                self.failed(&error);
                return None;
            }
        }
        self.records.remove(digest);
        self.ledger.release(sealed.charge);
        self.count(Some(&sealed), None);
        self.metrics.evictions.inc();
        self.metrics.evicted_bytes.inc_by(sealed.size);
        for child in children {
            self.depend(&child, false);
        }
        Some((digest, sealed.charge))
    }

    /// Removes what was put aside: the operator has had his time to look at it.
    fn empty_quarantine(&self) -> u64 {
        let charge = self.quarantined.swap(0, Ordering::Relaxed);
        if charge == 0 {
            return 0;
        }
        let entries = fs::read_dir(self.layout.quarantine());
        let removed =
            entries.and_then(|entries| entries.flatten().try_for_each(|entry| fs::remove_file(entry.path())));
        if let Err(error) = removed {
            tracing::warn!(%error, "the quarantine could not be emptied");
            self.quarantined.fetch_add(charge, Ordering::Relaxed);
            return 0;
        }
        self.ledger.release(charge);
        charge
    }

    /// Removes blobs in flight that nobody works on, the oldest first; only `stale` ones, or all.
    fn drop_parked(&self, goal: u64, stale: bool) -> u64 {
        const STALE: Duration = Duration::from_hours(1);
        let mut freed = 0;
        while freed < goal {
            let (path, parked) = {
                let mut parked = self.lock_parked();
                let oldest = parked
                    .iter()
                    .filter(|(_, parked)| !stale || parked.since.elapsed() > STALE)
                    .min_by_key(|(_, parked)| parked.since);
                let Some(path) = oldest.map(|(path, _)| path.clone()) else { break };
                let Some(taken) = parked.remove(&path) else { break };
                (path, taken)
            };
            if let Err(error) = remove_files(&[journal_of(&path), path.clone()]) {
                tracing::warn!(path = %path.display(), %error, "a partial blob could not be removed");
                self.lock_parked().insert(path, parked);
                break;
            }
            self.ledger.release(parked.charge);
            freed += parked.charge;
        }
        freed
    }

    // --- blobs in flight ---

    /// Notes a blob in flight that an earlier process has left. Blocking.
    pub(super) fn found_partial(&self, data: PathBuf) {
        let charge = charge_of(allocated_at(&data) + allocated_at(&journal_of(&data)));
        self.found_parked(data, charge);
    }

    fn found_parked(&self, data: PathBuf, charge: u64) {
        self.ledger.charge(charge);
        self.lock_parked().insert(data, Parked { charge, since: Instant::now() });
    }

    /// Notes what an earlier process has put aside. Blocking.
    pub(super) fn found_quarantined(&self, metadata: &fs::Metadata) {
        let charge = charge_of(allocated(metadata));
        self.ledger.charge(charge);
        self.quarantined.fetch_add(charge, Ordering::Relaxed);
    }

    /// Whether an earlier fill has left something at this path.
    pub(super) fn has_parked(&self, data: &Path) -> bool {
        self.lock_parked().contains_key(data)
    }

    /// The place of a blob in flight, with what an earlier fill has left there.
    pub(super) fn place(self: &Arc<Self>, data: PathBuf) -> Place {
        let charge = self.lock_parked().remove(&data).map_or(0, |parked| parked.charge);
        let reservation = Some(self.ledger.reopen(charge));
        Place { disk: Arc::clone(self), data, reservation }
    }

    // --- health ---

    /// Takes note of what the disk said to a write. It is tried again at once, and then every few seconds.
    pub(super) fn failed(&self, error: &io::Error) {
        if !self.health.is_degraded() {
            self.health.degrade(&self.layout, &error.to_string());
            self.wake.notify_one();
        }
    }

    /// Tries whether the disk takes writes again. Returns whether the directory was made anew. Blocking.
    pub(super) fn probe(&self) -> bool {
        let is_gone = !self.layout.blobs().exists();
        let revived = Layout::create(self.layout.root()).and_then(|_| {
            if is_gone {
                let owned = self.layout.own()?;
                *self.ownership.lock().unwrap_or_else(PoisonError::into_inner) = owned;
            }
            health::probe(&self.layout).map_err(|source| Error::directory(self.layout.root(), source))
        });
        match revived {
            Ok(()) => self.health.recover(&self.layout),
            Err(error) => tracing::debug!(%error, "the cache still refuses"),
        }
        is_gone && !self.health.is_degraded()
    }

    // --- what there is ---

    /// What is charged and promised, in bytes.
    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.ledger.used()
    }

    /// Counts a blob that has come in place of another, if there was one, or gone.
    fn count(&self, gone: Option<&Sealed>, come: Option<&Sealed>) {
        if let Some(gone) = gone {
            self.metrics.blobs.dec();
            self.metrics.bytes.sub(super::gauge_value(gone.size));
        }
        if let Some(come) = come {
            self.metrics.blobs.inc();
            self.metrics.bytes.add(super::gauge_value(come.size));
        }
    }

    /// How many blobs are here, and their bytes.
    pub(super) fn total(&self) -> (usize, u64) {
        let index = self.index();
        (index.len(), index.bytes())
    }

    fn seconds(&self) -> u32 {
        // Until the year 2106.
        u32::try_from(self.clock.now().as_millis() / 1000).unwrap_or(u32::MAX)
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_open(&self) -> MutexGuard<'_, LruCache<Digest, Arc<Blob>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_parked(&self) -> MutexGuard<'_, HashMap<PathBuf, Parked>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds an open blob, and closes one that nobody uses where there are too many.
fn put(open: &mut LruCache<Digest, Arc<Blob>>, blob: &Arc<Blob>) {
    open.put(*blob.digest(), Arc::clone(blob));
    for _ in 0..CLOSE_TRIES {
        if open.len() <= OPEN_BLOBS {
            break;
        }
        // What is in use stays: eviction has to know of it.
        if let Some((digest, oldest)) = open.pop_lru()
            && Arc::strong_count(&oldest) > 1
        {
            open.put(digest, oldest);
        }
    }
}

/// What the file system has given to a file, in bytes.
fn allocated(metadata: &fs::Metadata) -> u64 {
    // `st_blocks` counts in 512 bytes, whatever the block size is.
    metadata.blocks() * 512
}

/// The same of the file at this path; nothing where there is none. Blocking.
fn allocated_at(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| allocated(&metadata))
}

/// Where a blob in flight lies, and what it may take. Whatever becomes of its fill, what is in the directory stays
/// charged: dropped, it counts as left for a later fill.
#[derive(Debug)]
pub(super) struct Place {
    disk: Arc<Disk>,
    data: PathBuf,
    /// `None` once the file has become something else.
    reservation: Option<Reservation>,
}

impl Place {
    pub(super) fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    pub(super) fn journal(&self) -> PathBuf {
        journal_of(&self.data)
    }

    /// Makes room for a blob of `size` bytes; waits a moment for others to be evicted.
    ///
    /// # Errors
    /// [`Error::NoRoom`]
    pub(super) async fn expect(&mut self, size: u64) -> Result<(), Error> {
        match &mut self.reservation {
            Some(reservation) => self.disk.grow(reservation, estimate(size).saturating_add(JOURNAL)).await,
            None => Ok(()),
        }
    }

    /// Makes room for `bytes` of a blob whose size nobody has said, if there is room at once.
    pub(super) fn grow(&mut self, bytes: u64) -> Result<(), Error> {
        let Some(reservation) = &mut self.reservation else { return Ok(()) };
        let needed = estimate(bytes) + JOURNAL;
        if needed <= reservation.bytes() || reservation.grow_to(needed + STEP) || reservation.grow_to(needed)
        {
            return Ok(());
        }
        self.disk.metrics.refused.inc();
        self.disk.wake.notify_one();
        Err(Error::NoRoom { needed })
    }

    /// Whether room was made for a blob of `size` bytes.
    pub(super) fn has_room_for(&self, size: u64) -> bool {
        self.reservation.as_ref().is_some_and(|reservation| reservation.bytes() >= estimate(size))
    }

    /// Notes that the file has lost what it had.
    pub(super) fn note_emptied(&mut self) {
        if let Some(reservation) = &mut self.reservation {
            reservation.note_emptied();
        }
    }

    /// Notes that so many bytes of the blob are in the file.
    pub(super) fn note_written(&mut self, bytes: u64) {
        if let Some(reservation) = &mut self.reservation {
            reservation.note_written(bytes);
        }
    }

    /// Gives the place up for the sealed blob, whose bytes are in `file`. Blocking.
    ///
    /// # Errors
    /// The disk's; the file is then left for a later fill.
    pub(super) fn seal(
        mut self,
        digest: Digest,
        size: u64,
        file: Arc<File>,
        cost: Option<f32>,
    ) -> io::Result<Arc<Blob>> {
        let left = self.charge(&file)?;
        let Some(reservation) = self.reservation.take() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let sealed = self.disk.seal(digest, size, file, &self.data, reservation, cost);
        let blob = sealed.inspect_err(|_| self.disk.found_parked(self.data.clone(), left))?;
        // A journal without its data is removed by the next start at the latest.
        if let Err(error) = remove_files(&[self.journal()]) {
            tracing::debug!(%error, "a journal was left");
        }
        Ok(blob)
    }

    /// Leaves the files for a later fill; `file` is the data. Blocking.
    ///
    /// # Errors
    /// The disk's; what was reserved then stays charged.
    pub(super) fn park(mut self, file: &File) -> io::Result<()> {
        let charge = self.charge(file)?;
        if let Some(reservation) = self.reservation.take() {
            self.leave(reservation, charge);
        }
        Ok(())
    }

    /// Removes the files. What `file`, the data, still takes until it is closed, is to be held for as long. Blocking.
    ///
    /// # Errors
    /// The disk's; what could not be removed stays charged.
    pub(super) fn discard(mut self, file: &File) -> io::Result<Option<Reservation>> {
        let taken = charge_of(allocated(&file.metadata()?));
        if let Err(error) = remove_files(&[self.journal(), self.data.clone()]) {
            self.park(file)?;
            return Err(error);
        }
        Ok(self.reservation.take().map(|mut held| {
            held.shrink_to(taken);
            held
        }))
    }

    /// What the files take. The data is asked of its open file: its directory may be gone, or hidden by a mount.
    fn charge(&self, data: &File) -> io::Result<u64> {
        Ok(charge_of(allocated(&data.metadata()?) + allocated_at(&self.journal())))
    }

    fn leave(&self, reservation: Reservation, charge: u64) {
        // Charged before it is given back, so that nobody takes it in between.
        reservation.settle(charge);
        let parked = Parked { charge, since: Instant::now() };
        if let Some(before) = self.disk.lock_parked().insert(self.data.clone(), parked) {
            self.disk.ledger.release(before.charge);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(reservation) = self.reservation.take()
            && reservation.bytes() > 0
        {
            let charge = reservation.bytes();
            self.leave(reservation, charge);
        }
    }
}
