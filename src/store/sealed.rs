//! A complete, verified blob on disk.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::read::{BufferPool, read_chunk};
use super::slice::FileSlice;
use crate::oci::{ByteRange, Digest, Hasher};
use crate::runtime::Timestamp;

/// Mode of a sealed file until its bytes are known to be on the disk.
const SEALED: u32 = 0o600;
/// The durable mark: nobody writes a sealed blob, and this file has survived an `fdatasync`. The
/// mode comes for free with the `fstat` of every open and survives whatever the file survives.
const DURABLE: u32 = 0o400;

/// An open, verified blob. While it is held its bytes stay readable, also after eviction.
#[derive(Debug)]
pub struct Blob {
    digest: Digest,
    size: u64,
    sealed_at: Timestamp,
    file: Arc<File>,
    pool: BufferPool,
    /// Its file could not be read as it should: it is not served again.
    is_damaged: AtomicBool,
}

impl Blob {
    pub(super) fn new(
        digest: Digest,
        size: u64,
        sealed_at: Timestamp,
        file: Arc<File>,
        pool: BufferPool,
    ) -> Self {
        Self { digest, size, sealed_at, file, pool, is_damaged: AtomicBool::new(false) }
    }

    /// Opens the file of `digest`, and says whether it carries the durable mark. Blocking.
    pub(super) fn open(path: &Path, digest: Digest, pool: BufferPool) -> io::Result<(Self, bool)> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let modified = metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let sealed_at = Timestamp::from_millis(u64::try_from(modified.as_millis()).unwrap_or(u64::MAX));
        let is_durable = is_durable(metadata.permissions().mode());
        Ok((Self::new(digest, metadata.len(), sealed_at, Arc::new(file), pool), is_durable))
    }

    /// The digest of the bytes.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// How many bytes there are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// When the last byte arrived.
    pub fn sealed_at(&self) -> Timestamp {
        self.sealed_at
    }

    /// Up to `len` bytes from `offset`, at most 256 KiB. Cancel safe.
    ///
    /// # Errors
    /// The disk's error; the blob cannot be served further.
    pub async fn read(&self, offset: u64, len: u64) -> io::Result<Bytes> {
        read_chunk(&self.file, &self.pool, offset, len).await
    }

    /// Has the first of these bytes read into the page cache, unless they are there; so many as a reader is ahead. Cancel
    /// safe.
    ///
    /// # Errors
    /// The disk's; the blob cannot be served.
    pub async fn warm(self: &Arc<Self>, bytes: ByteRange) -> io::Result<()> {
        let slice = self.slice(bytes.start, bytes.len());
        if slice.is_empty() || slice.resident_to(0) > 0 {
            return Ok(());
        }
        slice.read_ahead(0).await.map(drop)
    }

    /// Some of the bytes, to be sent as they are.
    pub fn slice(self: &Arc<Self>, offset: u64, len: u64) -> FileSlice {
        FileSlice::of_blob(self, offset, len)
    }

    /// Notes that the file could not be read as it should.
    pub(super) fn distrust(&self) {
        self.is_damaged.store(true, Ordering::Relaxed);
    }

    /// Whether the file could not be read as it should: the blob is not served again.
    pub fn is_damaged(&self) -> bool {
        self.is_damaged.load(Ordering::Relaxed)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn pool(&self) -> &BufferPool {
        &self.pool
    }

    /// Whether this is the file at `path`. Blocking.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        match (self.file.metadata(), std::fs::metadata(path)) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }

    /// Hashes the file and compares. Blocking.
    pub(super) fn verify(&self) -> io::Result<bool> {
        let mut hasher = Hasher::new(self.digest.algorithm());
        hash_file(&self.file, &mut hasher, 0, self.size)?;
        Ok(hasher.finish() == self.digest)
    }
}

/// Waits until the bytes of the blob at `path` are on the disk and leaves the durable mark. One that is gone needs
/// none. Blocking.
pub(super) fn make_durable(path: &Path) -> io::Result<()> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    file.sync_data()?;
    if let Some(parent) = path.parent() {
        // The rename itself lives in the directory.
        File::open(parent)?.sync_all()?;
    }
    file.set_permissions(Permissions::from_mode(DURABLE))
}

/// Whether a file of this mode carries the durable mark.
pub(super) fn is_durable(mode: u32) -> bool {
    mode & (SEALED ^ DURABLE) == 0
}

/// Feeds the bytes from `start` to `end` to the hasher. Blocking.
pub(super) fn hash_file(file: &File, hasher: &mut Hasher, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    let mut offset = start;
    while offset < end {
        let want = usize::try_from(end - offset).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact_at(&mut buffer[..want], offset)?;
        hasher.update(&buffer[..want]);
        offset += want as u64;
    }
    Ok(())
}
