//! A blob in flight: a sparse file, the ranges that have arrived, and the hash of its front.
//!
//! One task owns a [`Partial`] and is the only writer of its files; readers get the file
//! ([`PartialFile`]) and are told by that task what they may read. Data is hashed as it arrives,
//! gathered in a block, written on the blocking pool with one write under way, and only then
//! counted as arrived, so that what is announced is in the file.
//!
//! Frames are copied into blocks instead of being kept until they are written. The copy costs
//! 0.05 CPU-seconds per GiB and saves more: the receive buffer below is used again at once and
//! stays in the processor's cache, a small frame does not keep a large buffer alive, and the write
//! reads page-aligned memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf, Bytes};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::journal::{Checkpoint, Journal};
use super::layout::private_file;
use super::ranges::RangeSet;
use super::read::{Buffer, BufferPool, read_chunk};
use super::sealed::{Blob, hash_file};
use super::{Error, Store};
use crate::oci::{Digest, Hasher, Mismatch};

/// What is written at once: amortises the hop to the blocking pool. A fill holds two blocks, one
/// that is written and one that gathers.
pub(super) const BLOCK: usize = 1 << 20;
/// How much of a fill a `kill -9` may cost: this much time or this many bytes, whichever is less.
/// A checkpoint is one small `pwrite`.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
const CHECKPOINT_BYTES: u64 = 1 << 20;

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
    /// Data and journal.
    paths: [PathBuf; 2],
    size: Option<u64>,
    file: Arc<File>,
    hasher: Hasher,
    /// Where the next byte goes; everything before it went into `hasher`.
    position: u64,
    arrived: RangeSet,
    /// What was pushed and is not being written yet.
    gathering: Buffer,
    write: Option<JoinHandle<(Journal, io::Result<u64>)>>,
    /// Taken by the write under way.
    journal: Option<Journal>,
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
    /// Opens the partial of `digest` from this upstream, where the last fill left it if it can be
    /// resumed. Blocking.
    pub(super) fn open(store: Store, digest: Digest, upstream: &str) -> Result<Self, Error> {
        let path = store.layout().partial(&digest, upstream);
        let journal = store.layout().journal(&digest, upstream);
        let paths = [path.clone(), journal.clone()];
        let disk = |source| Error::file(&path, source);
        let file = private_file().read(true).truncate(false).open(&path).map_err(disk)?;
        let (journal, checkpoint) = Journal::open(journal).map_err(disk)?;
        let resumed = checkpoint.and_then(|checkpoint| resume(&file, checkpoint, &digest, store.boot_id()));
        let (hasher, position, size) = match resumed {
            Some((hasher, checkpoint)) => (hasher, checkpoint.hashed, checkpoint.size),
            None => (Hasher::new(digest.algorithm()), 0, None),
        };
        // What lies behind the last checkpoint is not hashed, and may be more than is to come.
        file.set_len(position).map_err(disk)?;
        Ok(Self {
            gathering: store.blocks().take(),
            store,
            digest,
            paths,
            size,
            file: Arc::new(file),
            hasher,
            position,
            arrived: RangeSet::prefix(position),
            write: None,
            journal: Some(journal),
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

    /// Notes the total size. This is where room for it will be made and admission decided.
    pub fn expect_size(&mut self, size: u64) {
        self.size = Some(size);
    }

    /// The offset of the next byte to push; at the start, where a resumed fill goes on.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Forgets everything that has arrived. Nothing may have been pushed yet.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn restart(&mut self) -> Result<(), Error> {
        debug_assert!(self.gathered() == 0 && !self.is_writing(), "restarted with bytes under way");
        let (file, journal) = (Arc::clone(&self.file), self.paths[1].clone());
        let emptied = blocking(move || {
            remove_files(&[journal])?;
            file.set_len(0)
        });
        emptied.await.map_err(|source| self.error(source))?;
        self.journal = Some(Journal::new(self.paths[1].clone()));
        self.hasher = Hasher::new(self.digest.algorithm());
        (self.position, self.bytes_at_checkpoint, self.size) = (0, 0, None);
        self.arrived = RangeSet::new();
        Ok(())
    }

    /// What has arrived in the file.
    pub fn arrived(&self) -> &RangeSet {
        &self.arrived
    }

    /// How many bytes wait for the next write.
    pub fn gathered(&self) -> usize {
        self.gathering.len()
    }

    /// Whether more can be pushed before the next write starts.
    pub fn has_room(&self) -> bool {
        self.gathering.room() > 0
    }

    /// Hashes and takes as many bytes from the front of `frame` as there is room for.
    pub fn push(&mut self, frame: &mut Bytes) {
        let taken = frame.len().min(self.gathering.room());
        self.hasher.update(&frame[..taken]);
        self.gathering.extend(&frame[..taken]);
        self.position += taken as u64;
        frame.advance(taken);
    }

    /// Whether a write is under way.
    pub fn is_writing(&self) -> bool {
        self.write.is_some()
    }

    /// Starts to write what was gathered, unless a write is under way or there is nothing.
    pub fn start_write(&mut self) {
        if self.gathered() == 0 {
            return;
        }
        let Some(mut journal) = self.journal.take() else { return };
        let block = std::mem::replace(&mut self.gathering, self.store.blocks().take());
        let (file, end) = (Arc::clone(&self.file), self.position);
        let due = self.last_checkpoint.elapsed() >= CHECKPOINT_INTERVAL
            || end - self.bytes_at_checkpoint >= CHECKPOINT_BYTES;
        let checkpoint = due.then(|| {
            (self.last_checkpoint, self.bytes_at_checkpoint) = (Instant::now(), end);
            self.checkpoint(end)
        });
        self.write = Some(tokio::task::spawn_blocking(move || {
            let written = file
                .write_all_at(block.as_ref(), end - block.len() as u64)
                .and_then(|()| checkpoint.map_or(Ok(()), |checkpoint| journal.save(checkpoint)));
            (journal, written.map(|()| end))
        }));
    }

    /// Waits for the write under way and counts its bytes as arrived. Cancel safe; never resolves
    /// while no write is under way.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn written(&mut self) -> Result<(), Error> {
        let Some(write) = &mut self.write else { return std::future::pending().await };
        let ended = write.await;
        self.write = None;
        let (journal, written) = ended.map_err(|error| self.error(io::Error::other(error)))?;
        self.journal = Some(journal);
        let end = written.map_err(|source| self.error(source))?;
        self.arrived.insert(0, end);
        Ok(())
    }

    /// Pushes and writes all of `bytes`.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn write_all(&mut self, mut bytes: Bytes) -> Result<(), Error> {
        while !bytes.is_empty() {
            self.push(&mut bytes);
            self.start_write();
            self.written().await?;
        }
        Ok(())
    }

    /// Compares the digest and moves the file to its final place. Everything must be written.
    ///
    /// # Errors
    /// [`SealError::Mismatch`] when the bytes are wrong: nothing of them is kept.
    pub async fn seal(self) -> Result<Arc<Blob>, SealError> {
        debug_assert!(self.gathered() == 0 && !self.is_writing(), "sealed with bytes under way");
        let actual = self.hasher.clone().finish();
        if actual != self.digest {
            let expected = self.digest;
            self.discard().await;
            return Err(Mismatch { expected, actual }.into());
        }
        Ok(self.store.adopt(self.digest, self.position, self.file, self.paths).await?)
    }

    /// Writes what was gathered and leaves the files for a later fill to resume.
    pub async fn park(mut self) {
        if self.position == 0 {
            self.discard().await;
            return;
        }
        let parked = self.try_park().await;
        if let Err(error) = parked {
            // The last checkpoint stands, which claims less.
            tracing::warn!(digest = %self.digest, %error, "the end of a partial blob could not be kept");
        }
    }

    async fn try_park(&mut self) -> Result<(), Error> {
        while self.is_writing() || self.gathered() > 0 {
            self.start_write();
            self.written().await?;
        }
        let Some(mut journal) = self.journal.take() else { return Ok(()) };
        let checkpoint = self.checkpoint(self.position);
        let saved = blocking(move || journal.save(checkpoint)).await;
        saved.map_err(|source| self.error(source))
    }

    /// Throws the files away.
    pub async fn discard(mut self) {
        if let Some(write) = self.write.take() {
            // The outcome of a write to a file that goes away does not matter; its end does.
            let _ = write.await;
        }
        let [data, journal] = self.paths;
        if let Err(error) = blocking(move || remove_files(&[journal, data])).await {
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
            sequence: 0,
        }
    }

    fn error(&self, source: io::Error) -> Error {
        Error::file(&self.paths[0], source)
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

/// The hash state that a new fill can go on from, or `None` to begin anew. Blocking.
fn resume(
    file: &File,
    checkpoint: Checkpoint,
    digest: &Digest,
    boot_id: &str,
) -> Option<(Hasher, Checkpoint)> {
    if checkpoint.digest != *digest || file.metadata().ok()?.len() < checkpoint.hashed {
        tracing::warn!(%digest, "partial data does not fit its journal, the fill starts over");
        return None;
    }
    let hasher = if checkpoint.boot_id == boot_id {
        let state = BASE64.decode(&checkpoint.state).ok()?;
        Hasher::resume(digest.algorithm(), &state).ok()?
    } else {
        // Another boot: a power loss may have left holes, which hash as zeros and fail at the seal.
        let mut hasher = Hasher::new(digest.algorithm());
        hash_file(file, &mut hasher, 0, checkpoint.hashed).ok()?;
        hasher
    };
    (hasher.hashed() == checkpoint.hashed).then_some((hasher, checkpoint))
}
