//! Space that the file system sets aside for the next bytes of a fill.
//!
//! Blocks that are there already make the writes cheaper (ext4: 0.18 in place of 0.22 CPU-seconds for 600 MiB in blocks
//! of 1 MiB) and lie together. They come in steps, so that a fill that breaks off holds little that it has not brought.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate};

use crate::oci::ByteRange;

/// What is set aside at once; 8 MiB gain as much as the whole file does.
const STEP: u64 = 32 << 20;

/// The next space is asked for while there is so much left, and none for less.
const LEAST: u64 = 2 << 20;

/// Up to where a file has its space.
#[derive(Debug, Clone, Default)]
pub(super) struct Ahead(Arc<AtomicU64>);

impl Ahead {
    /// Up to which byte of the file there is space; zero where none was set aside.
    pub(super) fn end(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// For which bytes space is due, once all before `position` are written of a file that is to have `size`.
    pub(super) fn due(&self, position: u64, size: u64) -> Option<ByteRange> {
        let is_due = self.end() < position + LEAST && position + LEAST < size;
        is_due.then(|| ByteRange::new(position, size.min(position + STEP)))
    }

    /// Sets space aside. A file system that cannot, or has none, leaves it to the writes, one of which may fail.
    /// Blocking.
    pub(super) fn reserve(&self, file: &File, bytes: ByteRange) {
        if fallocate(file, FallocateFlags::KEEP_SIZE, bytes.start, bytes.len()).is_ok() {
            self.0.store(bytes.end, Ordering::Relaxed);
        }
    }
}

/// Gives back what was set aside behind the end of the file, be it by an earlier process. Blocking.
///
/// # Errors
/// The disk's.
pub(super) fn release(file: &File) -> io::Result<()> {
    // Truncated to what it has: no byte of it changes, which somebody may be reading.
    file.set_len(file.metadata()?.len())
}
