//! Bytes of a file that can be sent without being read.

use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::{Advice, fadvise, sendfile};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::partial::PartialFile;
use super::sealed::Blob;

/// What one `sendfile` is asked for: at 256 KiB it costs 6–24 % more of the machine per byte, and much more would let
/// one fast client keep a worker from the others (0.2 ms).
const SEND: u64 = 1 << 20;
/// What is asked of a disk ahead of a reader whose file is cold: a few milliseconds of a fast one.
const AHEAD: u64 = 2 << 20;
/// What such a reader waits for, and gets at once: with 2 MiB, p99 of hits of manifests beside it was twice as long.
const STEP: u64 = 256 << 10;

/// A part of a sealed or growing file. Held, it keeps the blob from being evicted.
#[derive(Debug, Clone)]
pub struct FileSlice {
    source: Source,
    start: u64,
    end: u64,
}

#[derive(Debug, Clone)]
enum Source {
    Sealed(Arc<Blob>),
    Partial(PartialFile),
}

impl FileSlice {
    pub(super) fn of_blob(blob: &Arc<Blob>, start: u64, len: u64) -> Self {
        Self { source: Source::Sealed(Arc::clone(blob)), start, end: start + len }
    }

    pub(super) fn of_partial(file: &PartialFile, start: u64, len: u64) -> Self {
        Self { source: Source::Partial(file.clone()), start, end: start + len }
    }

    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Sends up to 1 MiB of these bytes of it to a socket, in the kernel (`sendfile(2)`), and returns how many it took, and
    /// whether those were all: if not, the socket is probably full.
    ///
    /// # Errors
    /// `WouldBlock`, what is wrong with the socket or the file, or `UnexpectedEof` where the file is shorter than
    /// it was. A file that is at fault is not served again.
    pub fn send(&self, socket: BorrowedFd<'_>, bytes: Range<u64>) -> io::Result<(usize, bool)> {
        let mut offset = self.start + bytes.start;
        let len = (bytes.end.min(self.len()) - bytes.start).min(SEND);
        loop {
            match sendfile(socket, self.file(), Some(&mut offset), usize::try_from(len).unwrap_or(usize::MAX))
            {
                Ok(0) => {
                    self.distrust();
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(sent) => return Ok((sent, sent as u64 == len)),
                Err(Errno::INTR) => {}
                Err(error) => {
                    if error == Errno::IO {
                        self.distrust();
                    }
                    return Err(error.into());
                }
            }
        }
    }

    /// Up to which of its bytes, from the `at`th on, a [`send`](Self::send) waits for no disk: the next MiB, or `at`
    /// itself where it would.
    ///
    /// One call of 0.75 µs, which looks at the last page: what lies before it was read before it. (A look at every 512 KiB
    /// was 1.5 % of a hit by 64 clients.) Where it is cold, the kernel begins to read it, and another look would find an
    /// island; so [`read_ahead`](Self::read_ahead) is then to read them all.
    pub fn resident_to(&self, at: u64) -> u64 {
        let end = (self.start + at + SEND).min(self.end);
        if end > self.start + at && self.is_page_resident(end - 1) { end - self.start } else { at }
    }

    /// Whether the bytes up to `warm` are as many as one [`send`](Self::send) from the `at`th on takes.
    pub fn is_enough(&self, at: u64, warm: u64) -> bool {
        warm >= (at + SEND).min(self.len())
    }

    fn is_page_resident(&self, offset: u64) -> bool {
        let mut byte = [0];
        loop {
            match preadv2(self.file(), &mut [IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT) {
                Err(Errno::INTR) => {}
                // An end that comes too early is for `send` to notice.
                Ok(_) => return true,
                // EAGAIN: cold, and on its way. EOPNOTSUPP: the file system cannot say, so that reading is done elsewhere.
                Err(_) => return false,
            }
        }
    }

    /// Has the bytes from the `at`th on read into the page cache, and returns up to which they are there: the next
    /// 256 KiB, with more on their way. Not on a worker. Cancel safe.
    ///
    /// # Errors
    /// The disk's; the file is then not served again.
    pub async fn read_ahead(self, at: u64) -> io::Result<u64> {
        let pool = match &self.source {
            Source::Sealed(blob) => blob.pool().clone(),
            Source::Partial(file) => file.pool().clone(),
        };
        let _turn = pool.cold_turn().await;
        let read = tokio::task::spawn_blocking(move || {
            let (mut offset, end) = (self.start + at, (self.start + at + STEP).min(self.end));
            let ahead = NonZeroU64::new(AHEAD.min(self.end - offset));
            // A hint: what the kernel makes of it is its own business.
            let _ = fadvise(self.file(), offset, ahead, Advice::WillNeed);
            let mut buffer = pool.take();
            // The pages are wanted and not the bytes, but nothing else says that every one is there.
            while offset < end {
                let len = usize::try_from(end - offset).unwrap_or(usize::MAX);
                match self.file().read_at(buffer.whole(len), offset) {
                    Ok(0) => break,
                    Ok(read) => offset += read as u64,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        self.distrust();
                        return Err(error);
                    }
                }
            }
            Ok(end - self.start)
        });
        read.await.map_err(io::Error::other)?
    }

    fn file(&self) -> &std::fs::File {
        match &self.source {
            Source::Sealed(blob) => blob.file(),
            Source::Partial(file) => file.file(),
        }
    }

    fn distrust(&self) {
        if let Source::Sealed(blob) = &self.source {
            blob.distrust();
        }
    }
}
