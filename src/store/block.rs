//! Gathering bytes into blocks and writing them at their place, one write at a time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use tokio::task::JoinHandle;

use super::read::{Buffer, BufferPool};
use crate::oci::ByteRange;

/// Writes a run of bytes into a file: what comes while one block is written gathers in the next.
#[derive(Debug)]
pub(super) struct BlockWriter {
    file: Arc<File>,
    pool: BufferPool,
    gathering: Buffer,
    /// Where the next byte goes; what is gathered ends here.
    position: u64,
    write: Option<JoinHandle<Written>>,
    /// The block whose write has failed.
    failed: Option<Buffer>,
}

/// A block comes back from its write, so that nothing is lost when the disk refuses it.
type Written = (Buffer, ByteRange, io::Result<()>);

impl BlockWriter {
    /// Writes from `position` on, in blocks of the pool's size.
    pub(super) fn new(file: Arc<File>, pool: BufferPool, position: u64) -> Self {
        Self { file, gathering: pool.take(), pool, position, write: None, failed: None }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Goes on at another place. Nothing may be gathered or being written.
    pub(super) fn move_to(&mut self, position: u64) {
        debug_assert!(self.is_idle(), "moved with bytes under way");
        self.position = position;
    }

    /// How many bytes wait for the next write.
    pub(super) fn gathered(&self) -> usize {
        self.gathering.len()
    }

    pub(super) fn has_room(&self) -> bool {
        self.gathering.room() > 0
    }

    /// Whether a write is under way.
    pub(super) fn is_writing(&self) -> bool {
        self.write.is_some()
    }

    /// Whether everything that was taken is in the file.
    pub(super) fn is_idle(&self) -> bool {
        self.gathered() == 0 && !self.is_writing()
    }

    /// Takes as many bytes from the front of `frame` as there is room for, and returns them.
    pub(super) fn take(&mut self, frame: &mut Bytes) -> Bytes {
        let taken = frame.slice(..frame.len().min(self.gathering.room()));
        self.gathering.extend(&taken);
        self.position += taken.len() as u64;
        frame.advance(taken.len());
        taken
    }

    /// Starts to write what was gathered, and then to do what `then` does on the same blocking thread.
    /// Nothing may be being written.
    pub(super) fn start_write(&mut self, then: impl FnOnce() -> io::Result<()> + Send + 'static) {
        debug_assert!(!self.is_writing(), "two writes at once");
        let block = std::mem::replace(&mut self.gathering, self.pool.take());
        let (file, end) = (Arc::clone(&self.file), self.position);
        self.write = Some(tokio::task::spawn_blocking(move || {
            let start = end - block.len() as u64;
            let written = file.write_all_at(block.as_ref(), start).and_then(|()| then());
            (block, ByteRange::new(start, end), written)
        }));
    }

    /// Waits for the write under way and returns what it has written. Cancel safe; never resolves while no
    /// write is under way.
    pub(super) async fn written(&mut self) -> io::Result<ByteRange> {
        let Some(write) = &mut self.write else { return std::future::pending().await };
        let ended = write.await;
        self.write = None;
        let (block, range, written) = ended.map_err(io::Error::other)?;
        if written.is_err() {
            self.failed = Some(block);
        }
        written.map(|()| range)
    }

    /// What was taken and is not in the file, in its order; it ends at the position. No write may be under way.
    pub(super) fn into_unwritten(self) -> Vec<Bytes> {
        debug_assert!(!self.is_writing(), "given up with a write under way");
        let blocks = self.failed.into_iter().chain([self.gathering]);
        blocks.filter(|block| block.len() > 0).map(Buffer::into_bytes).collect()
    }
}
