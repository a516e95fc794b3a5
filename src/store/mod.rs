//! Bytes by digest: what has arrived, what is arriving, and what is known about it.
//!
//! ```text
//! <directory>/            0700, one process owns it; there may be several, on several disks
//! ├── LOCK                held by the owner, with its pid
//! ├── VERSION             of this layout
//! ├── BOOT                boot id of the last use, or "clean"
//! ├── blobs/sha256/ab/…   sealed: complete, verified, immutable
//! │                       0600 until synced, 0400 from then on: the durable mark
//! ├── partial/            one sparse <alg>-<hex>.data per blob in flight,
//! │                       and its .journal: arrived ranges and hash state
//! ├── quarantine/         what did not belong; emptied when room is needed
//! ├── catalogue.redb      of the sealed blobs: size, charge, how often and when they were used
//! └── metadata.redb       tags, visibility, lists; only in the first directory
//! ```
//!
//! Invariants: a file reaches `blobs/` only by rename and only after its digest was compared; a sealed file is never
//! written again; bytes count as arrived only once they are in the file; nothing is written that the [ledger] of its
//! directory has no room for; what is open, in flight or part of a kept image is not evicted.
//! Small objects are also held in memory; large ones leave that to the page cache.

mod ahead;
mod block;
mod config;
mod disk;
mod durable;
pub mod eviction;
mod health;
mod housekeeping;
mod images;
mod index;
mod journal;
mod layout;
mod ledger;
mod memory;
mod metadata;
mod partial;
mod ranges;
mod read;
mod records;
mod recover;
mod sealed;
mod slice;

use std::collections::HashSet;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prometheus::{IntCounter, IntGauge, IntGaugeVec};
use tokio::sync::Semaphore;

pub use config::{Amount, DiskConfig, StoreConfig};
pub use metadata::{ListRecord, Metadata, ReferrersRecord, Scope, TagRecord};
pub use partial::{Arrived, Partial, PartialFile, Piece, Salvage, SealError};
use partial::{BLOCK, LARGE_BLOCKS, PIECE_BLOCK};
pub use ranges::RangeSet;
pub use sealed::Blob;
pub use slice::FileSlice;

use crate::oci::{Digest, Verified};
use crate::runtime::{Clock, Coalesce, Tasks};
use crate::telemetry;
use disk::{Disk, Shared};
use durable::DurabilityQueue;
use images::Images;
use journal::Journal;
use memory::MemoryTier;
use read::BufferPool;

/// How long a stop waits for blobs to be synced; the rest is verified after a power loss.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long nothing is written again after a disk has refused it.
const REWRITE_PAUSE: Duration = Duration::from_secs(2);

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the directory.
    #[error("{} is in use by process {owner}: stop it, or choose another store.directory", directory.display())]
    Owned {
        /// The cache directory.
        directory: PathBuf,
        /// The pid in the lock file.
        owner: String,
    },
    /// The directory was written by a version with another layout.
    #[error("{} has layout {found}, this version reads {expected}: choose another store.directory or remove it", directory.display())]
    Layout {
        /// The cache directory.
        directory: PathBuf,
        /// The version that it has.
        found: String,
        /// The version that is understood.
        expected: &'static str,
    },
    /// The disk refused. Whether a retry helps depends on the disk.
    #[error("{}: {source}", path.display())]
    Disk {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no room for a blob, and none can be made.
    #[error("no room for {needed} bytes within the budget of the cache")]
    NoRoom {
        /// What the blob would take in all.
        needed: u64,
    },
    /// The metadata file cannot be opened or created.
    #[error("{}: {source}", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// What the database said.
        source: Box<redb::Error>,
    },
}

impl Error {
    fn directory(path: &Path, source: io::Error) -> Self {
        Self::Disk { path: path.to_owned(), source }
    }

    fn file(path: &Path, source: io::Error) -> Self {
        Self::Disk { path: path.to_owned(), source }
    }

    fn metadata(path: &Path, source: redb::Error) -> Self {
        Self::Metadata { path: path.to_owned(), source: Box::new(source) }
    }
}

/// What the store counts.
#[derive(Debug)]
pub struct Metrics {
    /// Lookups of whole objects, by the tier that answered. Found once: a hot manifest is looked up thousands of
    /// times a second.
    from_memory: IntCounter,
    from_disk: IntCounter,
    missed: IntCounter,
    /// Sealed blobs on disk.
    blobs: IntGauge,
    /// Their bytes.
    bytes: IntGauge,
    /// Bytes in the memory tier.
    memory_bytes: IntGauge,
    /// Rows of metadata that did not fit the write queue.
    metadata_dropped: IntCounter,
    /// Blobs found damaged on disk.
    corrupt: IntCounter,
    /// Blobs evicted.
    evictions: IntCounter,
    /// Their bytes.
    evicted_bytes: IntCounter,
    /// Blobs for which no room could be made.
    refused: IntCounter,
    /// Rows of the catalogue that did not fit the write queue.
    records_dropped: IntCounter,
    /// What a directory may take, in bytes.
    capacity: IntGaugeVec,
    /// What it takes, promised bytes included.
    used: IntGaugeVec,
    /// Whether it can be written to.
    healthy: IntGaugeVec,
}

impl Metrics {
    /// Registers the counters.
    pub fn register(metrics: &telemetry::Metrics) -> Self {
        use telemetry::{counter, counters, gauge, gauges};
        let lookups =
            counters(metrics, "store_lookups_total", "Lookups by the tier that answered.", &["tier"]);
        Self {
            from_memory: lookups.with_label_values(&["memory"]),
            from_disk: lookups.with_label_values(&["disk"]),
            missed: lookups.with_label_values(&["miss"]),
            blobs: gauge(metrics, "store_blobs", "Sealed blobs on disk."),
            bytes: gauge(metrics, "store_bytes", "Bytes of the sealed blobs on disk."),
            memory_bytes: gauge(metrics, "store_memory_bytes", "Bytes held by the memory tier."),
            metadata_dropped: counter(
                metrics,
                "store_metadata_dropped_total",
                "Metadata rows that were not persisted because the write queue was full.",
            ),
            corrupt: counter(
                metrics,
                "store_corrupt_total",
                "Blobs found damaged on disk and put in quarantine.",
            ),
            evictions: counter(metrics, "store_evictions_total", "Blobs evicted to make room."),
            evicted_bytes: counter(metrics, "store_evicted_bytes_total", "Bytes of the blobs evicted."),
            refused: counter(
                metrics,
                "store_refused_total",
                "Blobs that were not cached because no room could be made for them.",
            ),
            records_dropped: counter(
                metrics,
                "store_records_dropped_total",
                "Rows of the catalogue that were not persisted because the write queue was full.",
            ),
            capacity: gauges(
                metrics,
                "store_capacity_bytes",
                "Bytes that the cache may take in a directory, as far as the file system has room.",
                &["directory"],
            ),
            used: gauges(
                metrics,
                "store_used_bytes",
                "Bytes that it takes there, with those promised to blobs in flight.",
                &["directory"],
            ),
            healthy: gauges(
                metrics,
                "store_disk_healthy",
                "1 while a directory can be written to, 0 while it cannot.",
                &["directory"],
            ),
        }
    }
}

/// An object that is whole.
#[derive(Debug, Clone)]
pub enum Content {
    /// From the memory tier.
    Memory(Bytes),
    /// From the disk.
    Disk(Arc<Blob>),
}

impl Content {
    /// All the bytes; the caller has looked at the size. Cancel safe.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn into_bytes(self) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => Ok(bytes),
            Self::Disk(blob) => read_whole(&blob).await,
        }
    }

    /// How many bytes there are.
    pub fn size(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Disk(blob) => blob.size(),
        }
    }
}

/// The store. Clones share it.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    boot_id: Arc<str>,
    memory: Arc<MemoryTier>,
    pool: BufferPool,
    blocks: BufferPool,
    piece_blocks: BufferPool,
    metadata: Metadata,
    images: Arc<Images>,
    durability: DurabilityQueue,
    /// At least one; the first has the metadata.
    disks: Vec<Arc<Disk>>,
    /// Directories whose blobs have not all been verified.
    doubtful: AtomicUsize,
    opens: Coalesce<Digest, Option<Arc<Blob>>>,
    /// One permit: for writing what only the memory tier has.
    rewriting: Arc<Semaphore>,
    /// The store's own tasks: they outlive the pulls whose rows and blobs they write.
    background: Tasks,
    metrics: Arc<Metrics>,
}

impl Store {
    /// Opens the directories and starts the background work, which also reads what is in them: pulls wait for it
    /// only where they have to. Blocking.
    ///
    /// # Errors
    /// When the first directory belongs to another process or cannot be used at all. What is damaged inside it is
    /// no error; another directory that cannot be used is left out with a log line.
    pub fn open(config: &StoreConfig, clock: Arc<dyn Clock>, metrics: Metrics) -> Result<Self, Error> {
        let background = Tasks::new();
        let metrics = Arc::new(metrics);
        let boot_id: Arc<str> = boot_id().into();
        let shared = Shared {
            boot_id: Arc::clone(&boot_id),
            clock,
            pool: BufferPool::for_reading(),
            memory: Arc::new(MemoryTier::new(config.memory.as_usize(), config.memory_max_object.as_u64())),
            images: Arc::default(),
            durability: DurabilityQueue::start(&background),
            metrics: Arc::clone(&metrics),
        };
        let first = Disk::open(config.disks[0].clone(), &shared)?;
        let metadata = Metadata::open(&first.layout, &background, Arc::clone(&metrics))?;
        for (name, digests) in metadata.kept() {
            shared.images.keep(&name, digests);
        }
        let mut disks = vec![Arc::new(first)];
        for further in &config.disks[1..] {
            match Disk::open(further.clone(), &shared) {
                Ok(disk) => disks.push(Arc::new(disk)),
                Err(error) => tracing::error!(%error, "a directory of the cache is left out"),
            }
        }
        let store = Self(Arc::new(Inner {
            boot_id,
            memory: shared.memory,
            pool: shared.pool,
            blocks: BufferPool::new(BLOCK),
            piece_blocks: BufferPool::new(PIECE_BLOCK),
            metadata,
            images: shared.images,
            durability: shared.durability,
            doubtful: AtomicUsize::new(disks.len()),
            disks,
            opens: Coalesce::new("open", &background),
            rewriting: Arc::new(Semaphore::new(1)),
            background,
            metrics,
        }));
        for disk in &store.0.disks {
            store.keep_house(disk);
        }
        Ok(store)
    }

    /// Tags, visibility and tag lists.
    pub fn metadata(&self) -> &Metadata {
        &self.0.metadata
    }

    /// The first cache directory.
    pub fn directory(&self) -> &Path {
        self.0.disks[0].layout.root()
    }

    /// The directories that cannot be written to, and why.
    pub fn degraded(&self) -> Vec<(PathBuf, String)> {
        let disks = self.0.disks.iter();
        disks.filter_map(|disk| Some((disk.layout.root().to_owned(), disk.health.reason()?))).collect()
    }

    /// The object of this digest, if memory has it.
    pub fn hot(&self, digest: &Digest) -> Option<Bytes> {
        let bytes = self.0.memory.get(digest)?;
        self.0.metrics.from_memory.inc();
        if !self.touch(digest) {
            self.write_again(*digest, &bytes);
        }
        Some(bytes)
    }

    /// The object of this digest, if it is here as a whole. Cancel safe.
    pub async fn get(&self, digest: &Digest) -> Option<Content> {
        if let Some(bytes) = self.hot(digest) {
            return Some(Content::Memory(bytes));
        }
        let metrics = &self.0.metrics;
        let Some(blob) = self.blob(digest).await else {
            metrics.missed.inc();
            return None;
        };
        metrics.from_disk.inc();
        if !self.0.memory.admits(blob.size()) {
            return Some(Content::Disk(blob));
        }
        match read_whole(&blob).await {
            Ok(bytes) => {
                self.remember(*digest, &bytes);
                Some(Content::Memory(bytes))
            }
            Err(error) => {
                tracing::warn!(%digest, %error, "a cached object cannot be read; it is fetched again");
                self.distrust(&blob).await;
                None
            }
        }
    }

    /// Whether the object is here as a whole. Cancel safe.
    pub async fn contains(&self, digest: &Digest) -> bool {
        self.find(digest).await.is_some()
    }

    /// The size of an object that is here as a whole. Asks the disk only while the index is being loaded. Cancel safe.
    pub async fn size_of(&self, digest: &Digest) -> Option<u64> {
        self.find(digest).await.map(|(_, size)| size)
    }

    async fn find(&self, digest: &Digest) -> Option<(&Arc<Disk>, u64)> {
        for disk in &self.0.disks {
            if let Some(size) = disk.find(digest).await {
                return Some((disk, size));
            }
        }
        None
    }

    /// Notes that an object was asked for; whether a disk has it.
    fn touch(&self, digest: &Digest) -> bool {
        self.0.disks.iter().any(|disk| disk.touch(digest))
    }

    /// The sealed file of this digest, if there is one. Cancel safe.
    pub async fn blob(&self, digest: &Digest) -> Option<Arc<Blob>> {
        for disk in &self.0.disks {
            if let Some(blob) = disk.opened(digest) {
                if blob.is_damaged() {
                    self.distrust(&blob).await;
                    return None;
                }
                disk.touch(digest);
                return Some(blob);
            }
        }
        let (disk, _) = self.find(digest).await?;
        let (disk, digest) = (Arc::clone(disk), *digest);
        disk.touch(&digest);
        // Once for all who ask: a suspect is hashed here, which takes seconds for a large blob.
        let (opened, _) = self.0.opens.run(digest, move || async move {
            tokio::task::spawn_blocking(move || disk.open_blob(digest)).await.ok().flatten()
        });
        opened.await.flatten()
    }

    /// Keeps a small object whose digest was compared, in memory and on disk. `cost` is what it took to fetch it.
    ///
    /// # Errors
    /// The disk's error, or that there is no room; the memory tier has the object all the same.
    pub async fn put(&self, verified: Verified, cost: Duration) -> Result<(), Error> {
        self.remember(verified.digest(), verified.bytes());
        self.write(verified, Some(cost.as_secs_f32())).await
    }

    /// Writes to a disk what only the memory tier has, because no disk took it when it came. One object at a time, and none
    /// for a moment after a failure: whoever asks for it again tries again.
    fn write_again(&self, digest: Digest, bytes: &Bytes) {
        if self.choose_disk(None).is_err() {
            return;
        }
        let Ok(turn) = Arc::clone(&self.0.rewriting).try_acquire_owned() else { return };
        let (store, bytes) = (self.clone(), bytes.clone());
        self.0.background.spawn("rewrite", async move {
            let Ok(verified) = digest.verify(bytes) else { return };
            if let Err(error) = store.write(verified, None).await {
                tracing::debug!(%digest, %error, "what is in memory alone could not be written");
                tokio::select! {
                    () = tokio::time::sleep(REWRITE_PAUSE) => {}
                    () = store.0.background.draining() => {}
                }
            }
            drop(turn);
        });
    }

    /// Writes an object to a disk, unless one has it.
    async fn write(&self, verified: Verified, cost: Option<f32>) -> Result<(), Error> {
        let digest = verified.digest();
        if self.contains(&digest).await {
            return Ok(());
        }
        let size = verified.bytes().len() as u64;
        let disk = Arc::clone(self.choose_disk(None)?);
        let reservation = disk.room_for(size).await?;
        // A file of its own: a fill of the same digest may be under way, and its file is its alone.
        let writer = Arc::clone(&disk);
        let written = tokio::task::spawn_blocking(move || {
            let temporary = writer.layout.temporary(&digest);
            let written =
                layout::private_file().create_new(true).read(true).open(&temporary).and_then(|mut file| {
                    file.write_all(verified.bytes())?;
                    writer.seal(digest, size, Arc::new(file), &temporary, reservation, cost)
                });
            written.inspect_err(|_| {
                // What could not be written takes no room; where it cannot be removed, the next start does.
                let _ = std::fs::remove_file(&temporary);
            })
        });
        let written = written.await.map_err(io::Error::other).flatten();
        written.map(|_| ()).map_err(|source| {
            disk.failed(&source);
            Error::file(&disk.layout.blob(&digest), source)
        })
    }

    /// The writing end of a blob that is not here yet, resumed where an earlier fill from this
    /// upstream stopped. The caller sees to it that there is one at a time.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn partial(&self, digest: Digest, upstream: &str) -> Result<Partial, Error> {
        let parked = |disk: &Arc<Disk>| disk.has_parked(&disk.layout.partial(&digest, upstream));
        let mut disk = match self.0.disks.iter().find(|disk| parked(disk)) {
            Some(disk) => disk,
            None => self.choose_disk(None)?,
        };
        loop {
            let (store, place) = (self.clone(), disk.place(disk.layout.partial(&digest, upstream)));
            let opened = tokio::task::spawn_blocking(move || Partial::open(store, place, digest));
            let opened = opened
                .await
                .unwrap_or_else(|error| Err(Error::file(&disk.layout.partials(), io::Error::other(error))));
            match (opened, disk.health.is_degraded()) {
                // It has just turned out to be broken: another one may do.
                (Err(Error::Disk { .. }), true) => disk = self.choose_disk(None)?,
                (opened, _) => return opened,
            }
        }
    }

    /// What an earlier fill from this upstream has left of a blob, and the blob's size. Cancel safe.
    pub async fn parked(&self, digest: &Digest, upstream: &str) -> Option<(u64, RangeSet)> {
        let parked = |disk: &Arc<Disk>| {
            let data = disk.layout.partial(digest, upstream);
            disk.has_parked(&data).then_some(data)
        };
        let data = self.0.disks.iter().find_map(parked)?;
        let read = tokio::task::spawn_blocking(move || Journal::read(&layout::journal_of(&data)));
        let checkpoint = read.await.ok()?.ok()?;
        Some((checkpoint.size?, checkpoint.arrived))
    }

    /// The same blob in flight on another disk.
    async fn elsewhere(&self, digest: Digest, place: &disk::Place) -> Result<Partial, Error> {
        let disk = self.choose_disk(Some(place.disk()))?;
        let data = disk.layout.partials().join(place.data().file_name().unwrap_or_default());
        let (store, place, partials) = (self.clone(), disk.place(data), disk.layout.partials());
        tokio::task::spawn_blocking(move || Partial::open(store, place, digest))
            .await
            .unwrap_or_else(|error| Err(Error::file(&partials, io::Error::other(error))))
    }

    /// The disk with the largest share of its budget free, among those that can be written to; not `other`.
    fn choose_disk(&self, other: Option<&Arc<Disk>>) -> Result<&Arc<Disk>, Error> {
        let is_other = |disk: &Arc<Disk>| other.is_some_and(|other| Arc::ptr_eq(other, disk));
        let disks = self.0.disks.iter().filter(|disk| !disk.health.is_degraded() && !is_other(disk));
        disks.max_by_key(|disk| disk.freedom()).ok_or_else(|| {
            let reason = self.0.disks[0].health.reason().unwrap_or_default();
            Error::directory(self.directory(), io::Error::other(reason))
        })
    }

    /// Takes a blob out of service whose file could not be read, so that it is fetched again. A
    /// file that has taken its place since is left alone.
    pub async fn distrust(&self, blob: &Arc<Blob>) {
        let (store, blob) = (self.clone(), Arc::clone(blob));
        let set_aside = tokio::task::spawn_blocking(move || {
            for disk in &store.0.disks {
                if blob.is_at(&disk.layout.blob(blob.digest())) {
                    disk.set_aside(blob.digest(), "unreadable");
                }
            }
        });
        if let Err(error) = set_aside.await {
            tracing::warn!(%error, "an unreadable blob could not be set aside");
        }
    }

    /// Notes that a manifest has been cached that names `children`, so that they are worth more.
    pub fn note_image(&self, children: impl Iterator<Item = Digest>) {
        for child in children {
            let mut disks = self.0.disks.iter();
            if !disks.any(|disk| disk.depend(&child, true)) {
                self.0.images.expect(child);
            }
        }
    }

    /// Keeps everything of the image called `name` from being evicted; what else it consisted of before goes free.
    pub fn keep_image(&self, name: &str, digests: &HashSet<Digest>) {
        if self.0.images.keep(name, digests.clone()) {
            self.0.metadata.set_kept(name, digests);
        }
    }

    /// Keeps more of an image that is kept.
    pub fn keep_more(&self, name: &str, digests: impl Iterator<Item = Digest>) {
        if let Some(all) = self.0.images.keep_more(name, digests) {
            self.0.metadata.set_kept(name, &all);
        }
    }

    /// The kept images that a blob belongs to.
    pub fn kept_by(&self, digest: &Digest) -> Vec<String> {
        self.0.images.kept_by(digest)
    }

    /// Ends orderly, once nobody uses the store any more: writes what is still queued, and notes
    /// that nothing needs to be verified at the next start, if that is so.
    pub async fn close(&self) {
        let disks = self.0.disks.clone();
        let recorded = tokio::task::spawn_blocking(move || disks.iter().for_each(|disk| disk.record_use()));
        if let Err(error) = recorded.await {
            tracing::debug!(%error, "the use of the last minute is not recorded");
        }
        let unfinished = self.0.background.drain(CLOSE_TIMEOUT).await;
        let verified = self.0.doubtful.load(Ordering::Acquire) == 0;
        if unfinished > 0 || !verified || !self.0.durability.is_settled() {
            tracing::info!("closed with blobs that are verified after a power loss");
            return;
        }
        let disks = self.0.disks.clone();
        let left = tokio::task::spawn_blocking(move || {
            for disk in &disks {
                recover::leave_clean(&disk.layout);
            }
        });
        if let Err(error) = left.await {
            tracing::debug!(%error, "the clean mark could not be written");
        }
    }

    fn remember(&self, digest: Digest, bytes: &Bytes) {
        self.0.memory.insert(digest, bytes);
        self.0.metrics.memory_bytes.set(gauge_value(self.0.memory.usage() as u64));
    }

    fn boot_id(&self) -> &str {
        &self.0.boot_id
    }

    fn pool(&self) -> &BufferPool {
        &self.0.pool
    }

    /// Where a fill takes its blocks from: small ones where many fill at once, since memory then counts for more than
    /// hops to the disk.
    fn blocks(&self) -> &BufferPool {
        if self.0.blocks.in_use() < LARGE_BLOCKS { &self.0.blocks } else { &self.0.piece_blocks }
    }

    fn piece_blocks(&self) -> &BufferPool {
        &self.0.piece_blocks
    }
}

async fn read_whole(blob: &Blob) -> io::Result<Bytes> {
    let mut whole = Vec::with_capacity(usize::try_from(blob.size()).unwrap_or_default());
    while (whole.len() as u64) < blob.size() {
        let offset = whole.len() as u64;
        whole.extend_from_slice(&blob.read(offset, blob.size() - offset).await?);
    }
    Ok(whole.into())
}

fn gauge_value(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The id of this boot of the machine; a fresh one where the system has none, so that nothing of
/// an earlier process is trusted without a look.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| format!("{:032x}", fastrand::u128(..)), |id| id.trim().to_owned())
}

#[cfg(test)]
mod tests;
