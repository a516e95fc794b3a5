//! A blob in flight: a sparse file, the ranges that have arrived, and the hash of its front.
//!
//! One task owns a [`Partial`] and is the only writer of its files; readers get the file
//! ([`PartialFile`]) and are told by that task what they may read. Data is hashed as it arrives,
//! written a block at a time on the blocking pool with one write under way, and only then counted
//! as arrived, so that what is announced is in the file.

use std::fs::File;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, pwritev};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::journal::Checkpoint;
use super::layout::private_file;
use super::ranges::RangeSet;
use super::read::{BufferPool, read_chunk};
use super::sealed::{Blob, hash_file};
use super::{Error, Store};
use crate::oci::{Digest, Hasher, Mismatch};

/// A block this large is written at once; 1 MiB amortises the hop to the blocking pool.
pub const BLOCK: usize = 1 << 20;
/// What may wait for the write under way: with that write, a fill holds 2 MiB and one frame.
const QUEUE: usize = BLOCK;
/// `IOV_MAX` on Linux.
const MAX_SLICES: usize = 1024;
/// How much of a fill a `kill -9` may cost: this much time or this many bytes, whichever is less.
/// A checkpoint takes about 60 µs, which is 1 % of the time that 4 MiB take to hash and write.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
const CHECKPOINT_BYTES: u64 = 4 << 20;

/// The file of a blob in flight, for reading.
#[derive(Debug, Clone)]
pub struct PartialFile {
    file: Arc<File>,
    pool: BufferPool,
}

impl PartialFile {
    /// Up to `len` bytes from `offset`, at most 256 KiB; the caller knows that they have arrived.
    /// Cancel safe.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn read(&self, offset: u64, len: u64) -> io::Result<Bytes> {
        read_chunk(&self.file, &self.pool, offset, len).await
    }
}

/// The writing end of a blob in flight.
#[derive(Debug)]
pub struct Partial {
    store: Store,
    digest: Digest,
    size: Option<u64>,
    file: Arc<File>,
    hasher: Hasher,
    /// Where the next frame goes; everything before it went into `hasher`.
    position: u64,
    arrived: RangeSet,
    queue: Vec<Bytes>,
    queued: usize,
    write: Option<JoinHandle<io::Result<u64>>>,
    last_checkpoint: Instant,
    bytes_at_checkpoint: u64,
}

/// Why a complete blob could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The bytes are not those of the digest; the partial file is gone.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The disk refused.
    #[error(transparent)]
    Store(#[from] Error),
}

impl Partial {
    /// Opens the partial of `digest`, where the last process left it if it can be resumed. Blocking.
    pub(super) fn open(store: Store, digest: Digest) -> Result<Self, Error> {
        let path = store.layout().partial(&digest);
        let journal = store.layout().journal(&digest);
        let open = || private_file().read(true).truncate(false).open(&path);
        let file = open().map_err(|source| Error::file(&path, source))?;
        let (hasher, checkpoint) = match resume(&file, &journal, &digest, store.boot_id()) {
            Some(resumed) => resumed,
            None => {
                file.set_len(0).map_err(|source| Error::file(&path, source))?;
                (Hasher::new(digest.algorithm()), None)
            }
        };
        let position = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.hashed);
        Ok(Self {
            store,
            digest,
            size: checkpoint.and_then(|checkpoint| checkpoint.size),
            file: Arc::new(file),
            hasher,
            position,
            arrived: RangeSet::prefix(position),
            queue: Vec::new(),
            queued: 0,
            write: None,
            last_checkpoint: Instant::now(),
            bytes_at_checkpoint: position,
        })
    }

    /// The file for readers.
    pub fn file(&self) -> PartialFile {
        PartialFile { file: Arc::clone(&self.file), pool: self.store.pool().clone() }
    }

    /// The total size, where it is known.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// The offset of the next byte to push; at the start, where a resumed fill goes on.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// What has arrived in the file.
    pub fn arrived(&self) -> &RangeSet {
        &self.arrived
    }

    /// Notes the total size and reserves the space, so that a disk that is too full says so now.
    ///
    /// # Errors
    /// The disk's error, `StorageFull` above all.
    pub async fn reserve(&mut self, size: u64) -> Result<(), Error> {
        self.size = Some(size);
        if size == 0 {
            return Ok(());
        }
        let file = Arc::clone(&self.file);
        let reserved = blocking(move || match fallocate(&*file, FallocateFlags::empty(), 0, size) {
            // A file system that cannot reserve still stores.
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(errno.into()),
        });
        reserved.await.map_err(|source| self.error(source))
    }

    /// Whether another frame may be pushed without exceeding the memory of one fill.
    pub fn has_room(&self) -> bool {
        self.queued < QUEUE
    }

    /// How many bytes wait for the next write.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Hashes a frame and queues it for the next write.
    pub fn push(&mut self, frame: Bytes) {
        self.hasher.update(&frame);
        self.position += frame.len() as u64;
        self.queued += frame.len();
        self.queue.push(frame);
    }

    /// Whether a write is under way.
    pub fn is_writing(&self) -> bool {
        self.write.is_some()
    }

    /// Starts to write what is queued, unless a write is under way or nothing is queued.
    pub fn start_write(&mut self) {
        if self.is_writing() || self.queue.is_empty() {
            return;
        }
        let frames = std::mem::take(&mut self.queue);
        let start = self.position - self.queued as u64;
        self.queued = 0;
        let (file, end) = (Arc::clone(&self.file), self.position);
        let due = self.last_checkpoint.elapsed() >= CHECKPOINT_INTERVAL
            || end - self.bytes_at_checkpoint >= CHECKPOINT_BYTES;
        let checkpoint = due.then(|| {
            (self.last_checkpoint, self.bytes_at_checkpoint) = (Instant::now(), end);
            (self.checkpoint(end), self.store.layout().journal(&self.digest))
        });
        self.write = Some(tokio::task::spawn_blocking(move || {
            write_all_at(&file, &frames, start)?;
            if let Some((checkpoint, path)) = checkpoint {
                checkpoint.save(&path)?;
            }
            Ok(end)
        }));
    }

    /// Waits for the write under way and counts its bytes as arrived. Cancel safe; never resolves
    /// while no write is under way.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn written(&mut self) -> Result<(), Error> {
        let Some(write) = &mut self.write else {
            return std::future::pending().await;
        };
        let result = write.await.map_err(io::Error::other);
        self.write = None;
        let end = result.flatten().map_err(|source| self.error(source))?;
        self.arrived.insert(0, end);
        Ok(())
    }

    /// Compares the digest and moves the file to its final place. Everything must be written.
    ///
    /// # Errors
    /// [`SealError::Mismatch`] when the bytes are wrong: nothing of them is kept.
    pub async fn seal(self) -> Result<Arc<Blob>, SealError> {
        debug_assert!(self.queue.is_empty() && self.write.is_none(), "sealed with bytes under way");
        let actual = self.hasher.clone().finish();
        if actual != self.digest {
            let expected = self.digest;
            self.discard().await;
            return Err(Mismatch { expected, actual }.into());
        }
        Ok(self.store.clone().adopt(self.digest, self.position, self.file).await?)
    }

    /// Leaves the files for a later fill to resume.
    pub async fn park(mut self) {
        if self.write.is_some() && self.written().await.is_err() {
            // What did not reach the file is not in the last checkpoint either.
            return;
        }
        let kept = self.arrived.contiguous_end(0);
        if self.position == 0 {
            self.discard().await;
            return;
        }
        if self.position != kept {
            // Frames that never reached the file are in the hash: the last checkpoint stands.
            return;
        }
        let (checkpoint, path) = (self.checkpoint(kept), self.store.layout().journal(&self.digest));
        let file = Arc::clone(&self.file);
        let parked = blocking(move || {
            // Gives back the reserved space that was not needed.
            file.set_len(kept)?;
            checkpoint.save(&path)
        });
        if let Err(error) = parked.await {
            tracing::warn!(digest = %self.digest, %error, "a partial blob could not be kept for later");
        }
    }

    /// Throws the files away.
    pub async fn discard(mut self) {
        if let Some(write) = self.write.take() {
            // The outcome of a write to a file that goes away does not matter; its end does.
            let _ = write.await;
        }
        let paths = [self.store.layout().journal(&self.digest), self.store.layout().partial(&self.digest)];
        let removed = blocking(move || remove_files(&paths));
        if let Err(error) = removed.await {
            tracing::warn!(digest = %self.digest, %error, "a partial blob could not be removed");
        }
    }

    fn checkpoint(&self, hashed: u64) -> Checkpoint {
        let mut arrived = self.arrived.clone();
        arrived.insert(0, hashed);
        Checkpoint {
            digest: self.digest,
            size: self.size,
            arrived,
            hashed,
            state: BASE64.encode(self.hasher.state()),
            boot_id: self.store.boot_id().to_owned(),
        }
    }

    fn error(&self, source: io::Error) -> Error {
        Error::file(&self.store.layout().partial(&self.digest), source)
    }
}

async fn blocking<R: Send + 'static>(work: impl FnOnce() -> io::Result<R> + Send + 'static) -> io::Result<R> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Removes what is there of `paths`, the journal before the data it speaks of.
pub(super) fn remove_files(paths: &[PathBuf]) -> io::Result<()> {
    for path in paths {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The hash state and checkpoint that a new fill can go on from, or `None` to begin anew. Blocking.
fn resume(
    file: &File,
    journal: &std::path::Path,
    digest: &Digest,
    boot_id: &str,
) -> Option<(Hasher, Option<Checkpoint>)> {
    let checkpoint = match Checkpoint::load(journal) {
        Ok(checkpoint) if checkpoint.digest == *digest => checkpoint,
        Ok(_) => return None,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %journal.display(), %error, "journal unreadable, the fill starts over");
            }
            return None;
        }
    };
    if file.metadata().ok()?.len() < checkpoint.hashed {
        tracing::warn!(%digest, "partial data shorter than its journal, the fill starts over");
        return None;
    }
    let hasher = if checkpoint.boot_id == boot_id {
        let state = BASE64.decode(&checkpoint.state).ok()?;
        Hasher::resume(digest.algorithm(), &state).ok()?
    } else {
        // Another boot: only what is in the file now counts.
        let mut hasher = Hasher::new(digest.algorithm());
        hash_file(file, &mut hasher, 0, checkpoint.hashed).ok()?;
        hasher
    };
    Some((hasher, Some(checkpoint)))
}

fn write_all_at(file: &File, frames: &[Bytes], mut offset: u64) -> io::Result<()> {
    for batch in frames.chunks(MAX_SLICES) {
        let mut slices: Vec<_> = batch.iter().map(|frame| IoSlice::new(frame)).collect();
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            let written = match pwritev(file, rest, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            offset += written as u64;
            IoSlice::advance_slices(&mut rest, written);
        }
    }
    Ok(())
}
