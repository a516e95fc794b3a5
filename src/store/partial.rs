//! A blob in flight: a sparse file, the ranges that have arrived, and the hash of its front.
//!
//! One task owns a [`Partial`], which writes and hashes from the front; each [`Piece`] writes a range ahead of
//! it. Readers get the file ([`PartialFile`]) and are told by those tasks what they may read. Bytes are
//! gathered in a block, written on the blocking pool with one write under way, and only then counted as
//! arrived, so that what is announced is in the file. Bytes that a piece has brought are hashed from the file
//! once the front has come to them.
//!
//! Frames are copied into blocks instead of being kept until they are written. The copy costs
//! 0.05 CPU-seconds per GiB and saves more: the receive buffer below is used again at once and
//! stays in the processor's cache, a small frame does not keep a large buffer alive, and the write
//! reads page-aligned memory.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::ahead::{self, Ahead};
use super::block::BlockWriter;
use super::disk::{Disk, Place};
use super::journal::{Checkpoint, Journal, MAX_RANGES};
use super::layout::private_file;
use super::ledger::Reservation;
use super::ranges::RangeSet;
use super::read::{BufferPool, read_chunk};
use super::sealed::{Blob, hash_file};
use super::slice::FileSlice;
use super::{Error, Store};
use crate::oci::{ByteRange, Digest, Hasher, Mismatch};

/// What is written at once: amortises the hop to the blocking pool. A fill holds two blocks, one
/// that is written and one that gathers.
pub(super) const BLOCK: usize = 1 << 20;
/// The same for a piece, of which a fill may have several, and for a fill beside many others.
pub(super) const PIECE_BLOCK: usize = 256 << 10;
/// While so many of the large blocks are in use, a fill that begins takes small ones.
pub(super) const LARGE_BLOCKS: usize = 16;
/// What is hashed from the file at once: long enough to amortise the hop, short enough that a stop
/// does not wait for it (6 ms).
const CATCH_UP: u64 = 8 << 20;
/// How much of a fill a `kill -9` may cost: this much time or this many bytes, whichever is less.
/// A checkpoint is one small `pwrite`.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
const CHECKPOINT_BYTES: u64 = 1 << 20;

/// What has arrived in a file, for all who write into it and all who tell its readers.
#[derive(Debug, Clone, Default)]
pub struct Arrived(
    // A mutex: taken once per block, for nanoseconds.
    Arc<Mutex<RangeSet>>,
);

impl Arrived {
    /// The ranges of this moment.
    pub fn ranges(&self) -> RangeSet {
        self.lock().clone()
    }

    /// How many bytes have arrived.
    pub fn len(&self) -> u64 {
        self.lock().len()
    }

    /// Whether nothing has arrived.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Replaces `ranges` by those of this moment, in its own memory.
    pub fn copy_to(&self, ranges: &mut RangeSet) {
        ranges.clone_from(&self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, RangeSet> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file of a blob in flight, for reading.
#[derive(Debug, Clone)]
pub struct PartialFile {
    file: Arc<File>,
    pool: BufferPool,
    // Dropped behind the file.
    _remains: Remains,
}

/// What a file takes whose name is gone, for as long as somebody has it open.
type Remains = Arc<OnceLock<Reservation>>;

impl PartialFile {
    /// Up to `len` bytes from `offset`, at most 256 KiB; the caller knows that they have arrived.
    /// Cancel safe.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn read(&self, offset: u64, len: u64) -> io::Result<Bytes> {
        read_chunk(&self.file, &self.pool, offset, len).await
    }

    /// Some of the bytes that have arrived, to be sent as they are.
    pub fn slice(&self, offset: u64, len: u64) -> FileSlice {
        FileSlice::of_partial(self, offset, len)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn pool(&self) -> &BufferPool {
        &self.pool
    }
}

/// The writing end of a range ahead of the front.
#[derive(Debug)]
pub struct Piece {
    writer: BlockWriter,
    arrived: Arrived,
    disk: Arc<Disk>,
    path: PathBuf,
}

impl Piece {
    /// The offset of the next byte to push.
    pub fn position(&self) -> u64 {
        self.writer.position()
    }

    /// How many bytes wait for the next write.
    pub fn gathered(&self) -> usize {
        self.writer.gathered()
    }

    /// Whether more can be pushed before the next write starts.
    pub fn has_room(&self) -> bool {
        self.writer.has_room()
    }

    /// Whether a write is under way.
    pub fn is_writing(&self) -> bool {
        self.writer.is_writing()
    }

    /// Takes as many bytes from the front of `frame` as there is room for.
    pub fn push(&mut self, frame: &mut Bytes) {
        self.writer.take(frame);
    }

    /// Whether everything that was pushed is in the file.
    pub fn is_idle(&self) -> bool {
        self.writer.is_idle()
    }

    /// What has arrived in the file, by whoever brought it.
    pub fn arrived(&self) -> &Arrived {
        &self.arrived
    }

    /// Starts to write what was pushed, unless a write is under way or there is nothing.
    pub fn start_write(&mut self) {
        if !self.writer.is_writing() && self.writer.gathered() > 0 {
            self.writer.start_write(|| Ok(()));
        }
    }

    /// Waits for the write under way and counts its bytes as arrived. Cancel safe; never resolves
    /// while no write is under way.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn written(&mut self) -> Result<(), Error> {
        let written = self.writer.written().await.map_err(|source| {
            self.disk.failed(&source);
            Error::file(&self.path, source)
        })?;
        self.arrived.lock().insert(written.start, written.end);
        Ok(())
    }
}

/// The writing end of a blob in flight.
#[derive(Debug)]
pub struct Partial {
    store: Store,
    digest: Digest,
    place: Place,
    size: Option<u64>,
    opened_at: Instant,
    /// What an earlier fill had brought.
    resumed: u64,
    /// Why the last write was not begun.
    refusal: Option<Error>,
    file: Arc<File>,
    remains: Remains,
    /// Everything before the writer's position went into it.
    hasher: Hasher,
    writer: BlockWriter,
    ahead: Ahead,
    arrived: Arrived,
    /// The hashing under way of what pieces have brought.
    catching_up: Option<JoinHandle<(Hasher, io::Result<u64>)>>,
    // A mutex: the write under way saves the checkpoint, and there is one write at a time.
    journal: Arc<Mutex<Journal>>,
    last_checkpoint: Instant,
    bytes_at_checkpoint: u64,
}

/// What a fill goes on with when its file takes no more.
#[derive(Debug)]
pub struct Salvage {
    /// The hash of everything before the position.
    pub hasher: Hasher,
    /// How far the bytes go: the ones that follow were never pushed.
    pub position: u64,
    /// What was pushed and is not in the file, in its order, up to the position.
    pub unwritten: Vec<Bytes>,
    /// The file for those who still read it; its name is gone.
    pub file: PartialFile,
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
    pub(super) fn open(store: Store, place: Place, digest: Digest) -> Result<Self, Error> {
        let disk = |source: io::Error| {
            place.disk().failed(&source);
            Error::file(place.data(), source)
        };
        let file = private_file().read(true).truncate(false).open(place.data()).map_err(disk)?;
        let (journal, checkpoint) = Journal::open(place.journal()).map_err(disk)?;
        let resumed = checkpoint.and_then(|checkpoint| resume(&file, checkpoint, &digest, store.boot_id()));
        let (hasher, position, arrived, size) = match resumed {
            Some((hasher, checkpoint)) => (hasher, checkpoint.hashed, checkpoint.arrived, checkpoint.size),
            None => (Hasher::new(digest.algorithm()), 0, RangeSet::new(), None),
        };
        if arrived.is_empty() {
            file.set_len(0).map_err(disk)?;
        }
        // What lies behind all that has arrived stays until it is written again: to cut a file off overwrites the rest
        // of its last page with zeros, and that page may still be on its way to a client of a fill that was killed.
        let file = Arc::new(file);
        Ok(Self {
            writer: BlockWriter::new(Arc::clone(&file), store.blocks().clone(), position),
            store,
            digest,
            place,
            size,
            opened_at: Instant::now(),
            resumed: arrived.len(),
            refusal: None,
            file,
            remains: Remains::default(),
            hasher,
            ahead: Ahead::default(),
            bytes_at_checkpoint: arrived.len(),
            arrived: Arrived(Arc::new(Mutex::new(arrived))),
            catching_up: None,
            journal: Arc::new(Mutex::new(journal)),
            last_checkpoint: Instant::now(),
        })
    }

    /// The file for readers.
    pub fn file(&self) -> PartialFile {
        PartialFile {
            file: Arc::clone(&self.file),
            pool: self.store.pool().clone(),
            _remains: Arc::clone(&self.remains),
        }
    }

    /// The total size, where it is known.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Notes the total size and makes room for it, on another disk where this one has none and nothing has
    /// arrived yet. Waits a moment for others to be evicted.
    ///
    /// # Errors
    /// [`Error::NoRoom`] when the blob cannot be cached.
    pub async fn expect_size(&mut self, size: u64) -> Result<(), Error> {
        self.size = Some(size);
        let Err(refusal) = self.place.expect(size).await else { return Ok(()) };
        if self.arrived.is_empty()
            && let Ok(mut elsewhere) = self.store.elsewhere(self.digest, &self.place).await
            && elsewhere.place.expect(size).await.is_ok()
        {
            elsewhere.size = Some(size);
            std::mem::replace(self, elsewhere).discard().await;
            return Ok(());
        }
        Err(refusal)
    }

    /// Notes the total size of a blob that has come to its end.
    pub fn note_size(&mut self, size: u64) {
        self.size = Some(size);
    }

    /// The offset of the next byte to push; at the start, where a resumed fill goes on.
    pub fn position(&self) -> u64 {
        self.writer.position()
    }

    /// Forgets everything that has arrived. Nothing may have been pushed yet, and no piece be written.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn restart(&mut self) -> Result<(), Error> {
        debug_assert!(!self.is_working(), "restarted with bytes under way");
        let (file, journal) = (Arc::clone(&self.file), self.place.journal());
        let emptied = blocking(move || {
            remove_files(&[journal])?;
            file.set_len(0)
        });
        emptied.await.map_err(|source| self.error(source))?;
        self.ahead = Ahead::default();
        self.place.note_emptied();
        self.journal = Arc::new(Mutex::new(Journal::new(self.place.journal())));
        self.hasher = Hasher::new(self.digest.algorithm());
        self.writer.move_to(0);
        (self.bytes_at_checkpoint, self.size) = (0, None);
        *self.arrived.lock() = RangeSet::new();
        Ok(())
    }

    /// What has arrived in the file.
    pub fn arrived(&self) -> &Arrived {
        &self.arrived
    }

    /// How many bytes wait for the next write.
    pub fn gathered(&self) -> usize {
        self.writer.gathered()
    }

    /// Whether more can be pushed before the next write starts.
    pub fn has_room(&self) -> bool {
        self.writer.has_room()
    }

    /// Hashes and takes as many bytes from the front of `frame` as there is room for.
    pub fn push(&mut self, frame: &mut Bytes) {
        debug_assert!(self.catching_up.is_none(), "pushed beyond what is hashed");
        let taken = self.writer.take(frame);
        self.hasher.update(&taken);
    }

    /// The writing end of a range that begins at `offset`, ahead of the front. The caller sees to it that
    /// nothing else writes there, and that the piece has ended before this is sealed, parked or discarded.
    pub fn piece(&self, offset: u64) -> Piece {
        Piece {
            writer: BlockWriter::new(Arc::clone(&self.file), self.store.piece_blocks().clone(), offset),
            arrived: self.arrived.clone(),
            disk: Arc::clone(self.place.disk()),
            path: self.place.data().to_owned(),
        }
    }

    /// Whether a write or the hashing of what pieces brought is under way.
    pub fn is_working(&self) -> bool {
        self.writer.is_writing() || self.catching_up.is_some() || self.refusal.is_some()
    }

    /// Whether everything that was pushed is in the file, and nothing that has arrived at the front waits
    /// to be hashed.
    pub fn is_idle(&self) -> bool {
        self.writer.is_idle() && self.catching_up.is_none() && self.is_caught_up()
    }

    /// Starts to write what was pushed, unless there is work under way or nothing to write.
    pub fn start_write(&mut self) {
        if self.is_working() || self.gathered() == 0 {
            return;
        }
        // Room for it was made when its size became known; where nobody has said a size it is made as it grows.
        if let Err(refusal) = self.place.grow(self.arrived.len() + self.gathered() as u64) {
            self.refusal = Some(refusal);
            return;
        }
        let checkpoint = self.due_checkpoint();
        let space = self.due_space();
        let (file, ahead, journal) = (Arc::clone(&self.file), self.ahead.clone(), Arc::clone(&self.journal));
        // Behind the write, since somebody waits for its bytes.
        self.writer.start_write(move || {
            if let Some(bytes) = space {
                ahead.reserve(&file, bytes);
            }
            checkpoint.map_or(Ok(()), |checkpoint| save(&journal, checkpoint))
        });
    }

    /// Starts to hash what pieces have brought to the front, unless there is work under way or nothing to
    /// hash. Saves a checkpoint where the pieces have made one due.
    pub fn start_catch_up(&mut self) {
        if self.is_working() || self.gathered() > 0 {
            return;
        }
        let (start, end) = (self.position(), self.arrived.lock().contiguous_end(self.position()));
        let end = end.min(start + CATCH_UP);
        let checkpoint = self.due_checkpoint();
        if start == end && checkpoint.is_none() {
            return;
        }
        let (file, journal) = (Arc::clone(&self.file), Arc::clone(&self.journal));
        let mut hasher = self.hasher.clone();
        self.catching_up = Some(tokio::task::spawn_blocking(move || {
            let hashed = hash_file(&file, &mut hasher, start, end)
                .and_then(|()| checkpoint.map_or(Ok(()), |checkpoint| save(&journal, checkpoint)));
            (hasher, hashed.map(|()| end))
        }));
    }

    /// Waits for the work under way and takes note of it. Cancel safe; never resolves while none is under
    /// way.
    ///
    /// # Errors
    /// The disk's error, or that there was no room for what was to be written.
    pub async fn worked(&mut self) -> Result<(), Error> {
        if let Some(refusal) = self.refusal.take() {
            return Err(refusal);
        }
        if let Some(catching_up) = &mut self.catching_up {
            let ended = catching_up.await;
            self.catching_up = None;
            let (hasher, hashed) = ended.map_err(|error| self.error(io::Error::other(error)))?;
            let end = hashed.map_err(|source| self.error(source))?;
            self.hasher = hasher;
            self.writer.move_to(end);
            return Ok(());
        }
        let written = self.writer.written().await.map_err(|source| self.error(source))?;
        let arrived = {
            let mut arrived = self.arrived.lock();
            arrived.insert(written.start, written.end);
            arrived.len()
        };
        self.place.note_written(arrived.max(self.ahead.end()));
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
            self.worked().await?;
        }
        Ok(())
    }

    /// Compares the digest and moves the file to its final place. Everything must be written and hashed.
    ///
    /// # Errors
    /// [`SealError::Mismatch`] when the bytes are wrong: nothing of them is kept.
    pub async fn seal(self) -> Result<Arc<Blob>, SealError> {
        debug_assert!(self.is_idle(), "sealed with bytes under way");
        let actual = self.hasher.clone().finish();
        if actual != self.digest {
            let expected = self.digest;
            self.discard().await;
            return Err(Mismatch { expected, actual }.into());
        }
        let (size, cost) = (self.position(), self.cost());
        let (digest, place, file) = (self.digest, self.place, self.file);
        let (disk, path) = (Arc::clone(place.disk()), place.data().to_owned());
        let sealed = blocking(move || {
            // An earlier fill may have been told of more.
            file.set_len(size)?;
            place.seal(digest, size, file, cost)
        })
        .await;
        Ok(sealed.map_err(|source| {
            disk.failed(&source);
            Error::file(&path, source)
        })?)
    }

    /// What it would have taken to fetch all of it, in seconds.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn cost(&self) -> Option<f32> {
        let fetched = self.position().saturating_sub(self.resumed);
        let share = fetched as f32 / self.position().max(1) as f32;
        (share > 0.0).then(|| self.opened_at.elapsed().as_secs_f32() / share)
    }

    /// Writes what was gathered and leaves the files for a later fill to resume.
    pub async fn park(mut self) {
        let parked = self.try_park().await;
        if self.arrived.is_empty() {
            self.discard().await;
            return;
        }
        if let Err(error) = parked {
            // The last checkpoint stands, which claims less.
            tracing::warn!(digest = %self.digest, %error, "the end of a partial blob could not be kept");
        }
        let (place, file) = (self.place, self.file);
        let parked = blocking(move || {
            ahead::release(&file)?;
            place.park(&file)
        });
        if let Err(error) = parked.await {
            tracing::warn!(digest = %self.digest, %error, "a partial blob could not be parked");
        }
    }

    async fn try_park(&mut self) -> Result<(), Error> {
        while self.is_working() || self.gathered() > 0 {
            self.start_write();
            self.worked().await?;
        }
        let (journal, checkpoint) = (Arc::clone(&self.journal), self.checkpoint());
        let saved = blocking(move || save(&journal, checkpoint)).await;
        saved.map_err(|source| self.error(source))
    }

    /// Gives the file up without losing a byte: what was pushed comes back, and what is in the file stays readable
    /// for those who have it open. Nothing where bytes were lost on their way to the disk.
    pub async fn salvage(mut self) -> Option<Salvage> {
        while self.is_working() {
            // What has failed was reported before, or is reported by what is missing.
            let _ = self.worked().await;
        }
        let (file, position, hasher) = (self.file(), self.position(), self.hasher.clone());
        let arrived = self.arrived.ranges();
        let fresh = BlockWriter::new(Arc::clone(&self.file), self.store.blocks().clone(), position);
        let unwritten = std::mem::replace(&mut self.writer, fresh).into_unwritten();
        self.discard().await;
        let start = position - unwritten.iter().map(|bytes| bytes.len() as u64).sum::<u64>();
        (arrived.contiguous_end(0) >= start).then_some(Salvage { hasher, position, unwritten, file })
    }

    /// Throws the files away.
    pub async fn discard(mut self) {
        while self.is_working() {
            // The outcome of work on a file that goes away does not matter; its end does.
            let _ = self.worked().await;
        }
        let (place, file) = (self.place, self.file);
        match blocking(move || place.discard(&file)).await {
            Ok(None) => {}
            Ok(Some(held)) => {
                // Nobody has set it before: a blob is discarded once.
                let _ = self.remains.set(held);
            }
            Err(error) => {
                tracing::warn!(digest = %self.digest, %error, "a partial blob could not be removed");
            }
        }
    }

    /// For which bytes behind the front space is due: where it is reserved, and no piece has come before.
    fn due_space(&self) -> Option<ByteRange> {
        let position = self.position();
        let size = self.size.filter(|size| self.place.has_room_for(*size))?;
        self.ahead.due(position, size).filter(|_| self.arrived.lock().end() <= position)
    }

    fn is_caught_up(&self) -> bool {
        self.arrived.lock().contiguous_end(self.position()) == self.position()
    }

    /// A checkpoint that counts what was gathered as written, if it is time for one.
    fn due_checkpoint(&mut self) -> Option<Checkpoint> {
        let bytes = self.arrived.len() + self.gathered() as u64;
        let new = bytes.saturating_sub(self.bytes_at_checkpoint);
        let is_due = self.last_checkpoint.elapsed() >= CHECKPOINT_INTERVAL || new >= CHECKPOINT_BYTES;
        if new == 0 || !is_due {
            return None;
        }
        (self.last_checkpoint, self.bytes_at_checkpoint) = (Instant::now(), bytes);
        Some(self.checkpoint())
    }

    fn checkpoint(&self) -> Checkpoint {
        let mut arrived = self.arrived.ranges();
        arrived.insert(0, self.position());
        arrived.truncate(MAX_RANGES);
        Checkpoint {
            digest: self.digest,
            size: self.size,
            arrived,
            hashed: self.position(),
            state: BASE64.encode(self.hasher.state()),
            boot_id: self.store.boot_id().to_owned(),
            sequence: 0,
        }
    }

    fn error(&self, source: io::Error) -> Error {
        self.place.disk().failed(&source);
        Error::file(self.place.data(), source)
    }
}

fn save(journal: &Mutex<Journal>, checkpoint: Checkpoint) -> io::Result<()> {
    journal.lock().unwrap_or_else(PoisonError::into_inner).save(checkpoint)
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
    mut checkpoint: Checkpoint,
    digest: &Digest,
    boot_id: &str,
) -> Option<(Hasher, Checkpoint)> {
    if checkpoint.digest != *digest || file.metadata().ok()?.len() < checkpoint.arrived.end() {
        tracing::warn!(%digest, "partial data does not fit its journal, the fill starts over");
        return None;
    }
    let hasher = if checkpoint.boot_id == boot_id {
        let state = BASE64.decode(&checkpoint.state).ok()?;
        Hasher::resume(digest.algorithm(), &state).ok()?
    } else {
        // Another boot: a power loss may have left holes, which hash as zeros and fail at the seal. What no
        // hash covers yet is not believed at all.
        checkpoint.arrived = RangeSet::prefix(checkpoint.hashed);
        let mut hasher = Hasher::new(digest.algorithm());
        hash_file(file, &mut hasher, 0, checkpoint.hashed).ok()?;
        hasher
    };
    (hasher.hashed() == checkpoint.hashed).then_some((hasher, checkpoint))
}
