//! Pooled, page-aligned buffers, and reading a file into them without blocking a worker.
//!
//! Hot pages are read in place with `preadv2(RWF_NOWAIT)` (0.75 µs to learn that a page is cold);
//! cold ones on the blocking pool. A file is never mapped and read: a failing disk would kill the
//! process with SIGBUS.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes handed out at a time. Between 64 and 256 KiB the CPU time per byte is flat.
const BUFFER_SIZE: usize = 256 << 10;
/// An unaligned copy target costs up to twice the CPU of an aligned one.
const PAGE: usize = 4096;
/// Reads of cold files at once: more than a disk's queue takes, an eighth of the blocking pool's threads.
const COLD_READS: usize = 64;
/// How much memory a pool keeps for the next taker; more is freed when it comes back.
const POOLED: usize = 16 << 20;

/// A source of buffers of one size, shared by all who read or write.
#[derive(Debug, Clone)]
pub(super) struct BufferPool(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    size: usize,
    // A mutex: one uncontended lock per buffer is lost in the copy of its bytes.
    free: Mutex<Vec<Box<[u8]>>>,
    in_use: AtomicUsize,
    /// Reads of cold files at once, so that a thousand cold readers leave threads for everything else.
    cold: Arc<Semaphore>,
}

/// Memory from a pool, which takes it back when it is dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Box<[u8]>,
    start: usize,
    len: usize,
    pool: BufferPool,
}

impl BufferPool {
    /// A pool for reading.
    pub(super) fn for_reading() -> Self {
        Self::new(BUFFER_SIZE)
    }

    /// A pool of buffers of `size` bytes.
    pub(super) fn new(size: usize) -> Self {
        let (free, in_use) = (Mutex::default(), AtomicUsize::new(0));
        Self(Arc::new(Pool { size, free, in_use, cold: Arc::new(Semaphore::new(COLD_READS)) }))
    }

    /// A turn to read what is not in the page cache. Cancel safe.
    pub(super) async fn cold_turn(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        Arc::clone(&self.0.cold).acquire_owned().await.ok()
    }

    /// How many of its buffers are held by somebody.
    pub(super) fn in_use(&self) -> usize {
        self.0.in_use.load(Ordering::Relaxed)
    }

    /// A buffer with nothing in it.
    pub(super) fn take(&self) -> Buffer {
        self.0.in_use.fetch_add(1, Ordering::Relaxed);
        let free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let memory = free.unwrap_or_else(|| vec![0; self.0.size + PAGE].into_boxed_slice());
        let start = memory.as_ptr().align_offset(PAGE);
        Buffer { memory, start, len: 0, pool: self.clone() }
    }

    fn give_back(&self, memory: Box<[u8]>) {
        self.0.in_use.fetch_sub(1, Ordering::Relaxed);
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < (POOLED / self.0.size).max(1) {
            free.push(memory);
        }
    }
}

impl Buffer {
    /// How many bytes are in it.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many more bytes it takes.
    pub(super) fn room(&self) -> usize {
        self.pool.0.size - self.len
    }

    /// Takes `bytes` behind what is there; they must fit.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        self.space(end)[end - bytes.len()..].copy_from_slice(bytes);
        self.len = end;
    }

    /// Its memory, up to `len` bytes of it, to be read into.
    pub(super) fn whole(&mut self, len: usize) -> &mut [u8] {
        self.space(len.min(self.pool.0.size))
    }

    fn space(&mut self, len: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + len]
    }

    /// What is in it, without a copy.
    pub(super) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.memory));
    }
}

/// Reads up to `len` bytes, at most one buffer, at `offset`. The caller knows that the file holds
/// at least one byte there; a file that ends earlier was truncated behind our back.
///
/// Cancel safe.
///
/// # Errors
/// The disk's error, or `UnexpectedEof` for a truncated file.
pub(super) async fn read_chunk(
    file: &Arc<File>,
    pool: &BufferPool,
    offset: u64,
    len: u64,
) -> io::Result<Bytes> {
    let len = usize::try_from(len).unwrap_or(BUFFER_SIZE).min(BUFFER_SIZE);
    let mut buffer = pool.take();
    let read = match read_resident(file, buffer.space(len), offset) {
        Some(read) => read,
        None => {
            let _turn = pool.cold_turn().await;
            let file = Arc::clone(file);
            let blocking = tokio::task::spawn_blocking(move || {
                let read = file.read_at(buffer.space(len), offset);
                (buffer, read)
            });
            let (returned, read) = blocking.await.map_err(io::Error::other)?;
            buffer = returned;
            read?
        }
    };
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    buffer.len = read;
    Ok(buffer.into_bytes())
}

/// What is in the page cache at `offset`, or `None` where the disk would have to be asked (or
/// could not say, as on file systems without `RWF_NOWAIT`).
fn read_resident(file: &File, space: &mut [u8], offset: u64) -> Option<usize> {
    loop {
        match preadv2(file, &mut [IoSliceMut::new(space)], offset, ReadWriteFlags::NOWAIT) {
            Ok(read) if read > 0 => return Some(read),
            Err(Errno::INTR) => {}
            // EAGAIN: cold; EOPNOTSUPP: cannot say; 0 or an error: let the blocking read decide.
            Ok(_) | Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn chunks_are_page_aligned_and_their_buffers_come_back() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 2 * BUFFER_SIZE]).unwrap();
        let (file, pool) = (Arc::new(file), BufferPool::for_reading());
        let chunk = read_chunk(&file, &pool, 100, u64::MAX).await.unwrap();
        assert_eq!(chunk.len(), BUFFER_SIZE);
        assert_eq!(chunk.as_ptr().align_offset(PAGE), 0);
        assert!(chunk.iter().all(|byte| *byte == 7));
        drop(chunk);
        assert_eq!(pool.0.free.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_truncated_file_is_an_error_and_no_empty_chunk() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let error = read_chunk(&file, &BufferPool::for_reading(), 0, 10).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
