//! Bytes by digest: what has arrived, what is arriving, and what is known about it.
//!
//! ```text
//! <directory>/            0700, one process owns it
//! ├── LOCK                held by the owner, with its pid
//! ├── VERSION             of this layout
//! ├── BOOT                boot id of the last use, or "clean"
//! ├── blobs/sha256/ab/…   sealed: complete, verified, immutable
//! │                       0600 until synced, 0400 from then on: the durable mark
//! ├── partial/            one sparse <alg>-<hex>.data per blob in flight,
//! │                       and its .journal: arrived ranges and hash state
//! ├── quarantine/         what did not belong
//! └── metadata.redb       tags, visibility, tag lists
//! ```
//!
//! Invariants: a file reaches `blobs/` only by rename and only after its digest was compared; a
//! sealed file is never written again; bytes count as arrived only once they are in the file.
//! Small objects are also held in memory; large ones leave that to the page cache.
//!
//! What is not here yet has its place: the index ([`Store`]'s map of sealed blobs) is where a byte
//! budget and eviction attach, [`Partial::expect_size`] where admission is decided.

mod block;
mod config;
mod durable;
mod journal;
mod layout;
mod memory;
mod metadata;
mod partial;
mod ranges;
mod read;
mod recover;
mod sealed;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use moka::sync::Cache;
use prometheus::{IntCounter, IntCounterVec, IntGauge};

pub use config::StoreConfig;
pub use metadata::{ListRecord, Metadata, ReferrersRecord, Scope, TagRecord};
pub use partial::{Arrived, Partial, PartialFile, Piece, SealError};
use partial::{BLOCK, PIECE_BLOCK};
pub use ranges::RangeSet;
pub use sealed::Blob;

use crate::oci::{Digest, Verified};
use crate::runtime::{Clock, Coalesce, Tasks};
use crate::telemetry;
use durable::DurabilityQueue;
use layout::{Layout, Ownership};
use memory::MemoryTier;
use read::BufferPool;

/// Open files of hot blobs; an open costs 5 µs and a hop to the blocking pool.
const OPEN_BLOBS: u64 = 512;
/// How long a stop waits for blobs to be synced; the rest is verified after a power loss.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// An idle handle keeps the space of a removed file: let go of it soon.
const OPEN_IDLE: Duration = Duration::from_mins(1);

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
    /// Lookups of whole objects, by the tier that answered (`memory`, `disk`, `miss`).
    lookups: IntCounterVec,
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
}

impl Metrics {
    /// Registers the counters.
    pub fn register(metrics: &telemetry::Metrics) -> Self {
        use telemetry::{counter, counters, gauge};
        Self {
            lookups: counters(
                metrics,
                "store_lookups_total",
                "Lookups by the tier that answered.",
                &["tier"],
            ),
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

/// The store of one cache directory. Clones share it.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layout: Layout,
    boot_id: String,
    clock: Arc<dyn Clock>,
    memory: MemoryTier,
    pool: BufferPool,
    blocks: BufferPool,
    piece_blocks: BufferPool,
    metadata: Metadata,
    durability: DurabilityQueue,
    /// The store's own tasks: they outlive the pulls whose rows and blobs they write.
    background: Tasks,
    // A map under a lock: read for nanoseconds per lookup, written once per sealed blob.
    index: RwLock<HashMap<Digest, u64>>,
    suspects: Mutex<HashSet<Digest>>,
    open: Cache<Digest, Arc<Blob>>,
    opens: Coalesce<Digest, Option<Arc<Blob>>>,
    metrics: Arc<Metrics>,
    _ownership: Ownership,
}

impl Store {
    /// Opens the directory, recovers what is in it and starts the background work. Blocking.
    ///
    /// # Errors
    /// When the directory belongs to another process or cannot be used at all. What is damaged
    /// inside it is no error.
    pub fn open(config: &StoreConfig, clock: Arc<dyn Clock>, metrics: Metrics) -> Result<Self, Error> {
        let background = Tasks::new();
        let metrics = Arc::new(metrics);
        let layout = Layout::create(&config.directory)?;
        let ownership = layout.own()?;
        let boot_id = boot_id();
        let metadata = Metadata::open(&layout, &background, Arc::clone(&metrics))?;
        let recovered = recover::recover(&layout, &boot_id, &metadata.blob_sizes())?;
        metrics.blobs.set(gauge_value(recovered.blobs.len() as u64));
        metrics.bytes.set(gauge_value(recovered.blobs.values().sum()));
        let store = Self(Arc::new(Inner {
            boot_id,
            clock,
            memory: MemoryTier::new(config.memory.as_usize(), config.memory_max_object.as_u64()),
            pool: BufferPool::for_reading(),
            blocks: BufferPool::new(BLOCK),
            piece_blocks: BufferPool::new(PIECE_BLOCK),
            metadata,
            durability: DurabilityQueue::start(&background),
            opens: Coalesce::new("open", &background),
            background,
            index: RwLock::new(recovered.blobs),
            suspects: Mutex::new(recovered.suspects),
            open: Cache::builder().max_capacity(OPEN_BLOBS).time_to_idle(OPEN_IDLE).build(),
            metrics,
            _ownership: ownership,
            layout,
        }));
        store.verify_suspects(recovered.unsynced);
        Ok(store)
    }

    /// Tags, visibility and tag lists.
    pub fn metadata(&self) -> &Metadata {
        &self.0.metadata
    }

    /// The cache directory.
    pub fn directory(&self) -> &Path {
        self.0.layout.root()
    }

    /// The object of this digest, if it is here as a whole.
    pub async fn get(&self, digest: &Digest) -> Option<Content> {
        let tier = &self.0.metrics.lookups;
        if let Some(bytes) = self.0.memory.get(digest) {
            tier.with_label_values(&["memory"]).inc();
            return Some(Content::Memory(bytes));
        }
        let Some(blob) = self.blob(digest).await else {
            tier.with_label_values(&["miss"]).inc();
            return None;
        };
        tier.with_label_values(&["disk"]).inc();
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

    /// Whether the object is here as a whole. Asks no disk.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.0.index.read().unwrap_or_else(PoisonError::into_inner).contains_key(digest)
    }

    /// The size of an object that is here as a whole. Asks no disk.
    pub fn size_of(&self, digest: &Digest) -> Option<u64> {
        self.0.index.read().unwrap_or_else(PoisonError::into_inner).get(digest).copied()
    }

    /// Keeps a small object whose digest was compared, in memory and on disk.
    ///
    /// # Errors
    /// The disk's error; the memory tier has the object all the same.
    pub async fn put(&self, verified: Verified) -> Result<(), Error> {
        let digest = verified.digest();
        self.remember(digest, verified.bytes());
        if self.contains(&digest) {
            return Ok(());
        }
        // A file of its own: a fill of the same digest may be under way, and its file is its alone.
        let (store, size) = (self.clone(), verified.bytes().len() as u64);
        let written = tokio::task::spawn_blocking(move || {
            let (temporary, path) = (store.0.layout.temporary(&digest), store.0.layout.blob(&digest));
            let mut file = layout::private_file().create_new(true).read(true).open(&temporary)?;
            file.write_all(verified.bytes())?;
            layout::rename_into(&temporary, &path)?;
            Ok(file)
        });
        let file = written.await.map_err(io::Error::other).flatten();
        let file = file.map_err(|source| Error::file(&self.0.layout.blob(&digest), source))?;
        self.index(digest, size, Arc::new(file));
        Ok(())
    }

    /// The writing end of a blob that is not here yet, resumed where an earlier fill from this
    /// upstream stopped. The caller sees to it that there is one at a time.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn partial(&self, digest: Digest, upstream: &str) -> Result<Partial, Error> {
        let (store, upstream) = (self.clone(), upstream.to_owned());
        tokio::task::spawn_blocking(move || Partial::open(store, digest, &upstream))
            .await
            .unwrap_or_else(|error| Err(Error::file(&self.0.layout.partials(), io::Error::other(error))))
    }

    /// Ends orderly, once nobody uses the store any more: writes what is still queued, and notes
    /// that nothing needs to be verified at the next start, if that is so.
    pub async fn close(&self) {
        let unfinished = self.0.background.drain(CLOSE_TIMEOUT).await;
        let verified = self.0.suspects.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if unfinished > 0 || !verified || !self.0.durability.is_settled() {
            tracing::info!("closed with blobs that are verified after a power loss");
            return;
        }
        let layout = self.0.layout.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || recover::leave_clean(&layout)).await {
            tracing::debug!(%error, "the clean mark could not be written");
        }
    }

    /// Takes a complete and verified partial file as a sealed blob.
    async fn adopt(
        &self,
        digest: Digest,
        size: u64,
        file: Arc<File>,
        [data, journal]: [PathBuf; 2],
    ) -> Result<Arc<Blob>, Error> {
        let path = self.0.layout.blob(&digest);
        let to = path.clone();
        let renamed = tokio::task::spawn_blocking(move || {
            layout::rename_into(&data, &to)?;
            partial::remove_files(&[journal])
        });
        renamed.await.map_err(io::Error::other).flatten().map_err(|source| Error::file(&path, source))?;
        Ok(self.index(digest, size, file))
    }

    /// Makes a file that has reached its place known, and has it synced.
    fn index(&self, digest: Digest, size: u64, file: Arc<File>) -> Arc<Blob> {
        let blob = Arc::new(Blob::new(digest, size, self.0.clock.now(), file, self.0.pool.clone()));
        let before = self.0.index.write().unwrap_or_else(PoisonError::into_inner).insert(digest, size);
        if before.is_none() {
            self.0.metadata.set_blob(&digest, size);
            self.0.metrics.blobs.inc();
            self.0.metrics.bytes.add(gauge_value(size));
        }
        self.0.open.insert(digest, Arc::clone(&blob));
        self.0.durability.push(Arc::clone(&blob), self.0.layout.blob(&digest));
        blob
    }

    /// The sealed file of this digest, if there is one.
    pub async fn blob(&self, digest: &Digest) -> Option<Arc<Blob>> {
        let size = self.size_of(digest)?;
        if let Some(blob) = self.0.open.get(digest) {
            return Some(blob);
        }
        let (store, digest) = (self.clone(), *digest);
        // Once for all who ask: a suspect is hashed here, which takes seconds for a large blob.
        let (opened, _) = self.0.opens.run(digest, move || async move {
            tokio::task::spawn_blocking(move || store.open_blob(digest, size)).await.ok().flatten()
        });
        opened.await.flatten()
    }

    /// Opens a sealed blob, hashing it first where a power loss may have taken bytes. Blocking.
    fn open_blob(&self, digest: Digest, size: u64) -> Option<Arc<Blob>> {
        let path = self.0.layout.blob(&digest);
        let blob = match Blob::open(&path, digest, self.0.pool.clone()) {
            Ok(blob) => blob,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a cached blob cannot be opened; it is fetched again");
                // Any other error may pass, as that of too many open files does.
                if error.kind() == io::ErrorKind::NotFound {
                    self.forget(&digest);
                }
                return None;
            }
        };
        let suspect = self.0.suspects.lock().unwrap_or_else(PoisonError::into_inner).contains(&digest);
        let sound = blob.size() == size && (!suspect || blob.verify().unwrap_or(false));
        if !sound {
            self.set_aside(&digest, "not the bytes that were sealed");
            return None;
        }
        let blob = Arc::new(blob);
        if suspect {
            self.0.metadata.set_blob(&digest, size);
            self.0.suspects.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
            self.0.durability.push(Arc::clone(&blob), path);
        }
        self.0.open.insert(digest, Arc::clone(&blob));
        Some(blob)
    }

    /// Takes a blob out of service whose file could not be read, so that it is fetched again. A
    /// file that has taken its place since is left alone.
    pub async fn distrust(&self, blob: &Arc<Blob>) {
        let (store, blob) = (self.clone(), Arc::clone(blob));
        let set_aside = tokio::task::spawn_blocking(move || {
            if blob.is_at(&store.0.layout.blob(blob.digest())) {
                store.set_aside(blob.digest(), "unreadable");
            }
        });
        if let Err(error) = set_aside.await {
            tracing::warn!(%error, "an unreadable blob could not be set aside");
        }
    }

    /// Blocking.
    fn set_aside(&self, digest: &Digest, reason: &str) {
        self.0.metrics.corrupt.inc();
        self.forget(digest);
        self.0.layout.put_in_quarantine(&self.0.layout.blob(digest), reason);
    }

    fn forget(&self, digest: &Digest) {
        let removed = self.0.index.write().unwrap_or_else(PoisonError::into_inner).remove(digest);
        if let Some(size) = removed {
            self.0.metadata.remove_blob(digest);
            self.0.metrics.blobs.dec();
            self.0.metrics.bytes.sub(gauge_value(size));
        }
        self.0.suspects.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
        self.0.open.invalidate(digest);
        self.0.memory.remove(digest);
    }

    /// In the background, has synced what no sync has reached, and hashes what may have lost bytes,
    /// so that this happens once.
    fn verify_suspects(&self, unsynced: Vec<Digest>) {
        let suspects: Vec<_> = {
            let suspects = self.0.suspects.lock().unwrap_or_else(PoisonError::into_inner);
            suspects.iter().copied().collect()
        };
        let store = self.clone();
        self.0.background.spawn("verify", async move {
            for digest in unsynced {
                if let Some(blob) = store.blob(&digest).await {
                    store.0.durability.push(blob, store.0.layout.blob(&digest));
                }
            }
            if suspects.is_empty() {
                return;
            }
            for digest in suspects {
                if store.0.background.is_draining() {
                    return;
                }
                store.blob(&digest).await;
            }
            if let Err(error) = recover::note_boot(&store.0.layout, &store.0.boot_id) {
                tracing::warn!(%error, "the next start verifies again");
            }
            tracing::info!("every blob of doubt was verified");
        });
    }

    fn remember(&self, digest: Digest, bytes: &Bytes) {
        self.0.memory.insert(digest, bytes);
        self.0.metrics.memory_bytes.set(gauge_value(self.0.memory.usage() as u64));
    }

    fn layout(&self) -> &Layout {
        &self.0.layout
    }

    fn boot_id(&self) -> &str {
        &self.0.boot_id
    }

    fn pool(&self) -> &BufferPool {
        &self.0.pool
    }

    fn blocks(&self) -> &BufferPool {
        &self.0.blocks
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
