//! The memory tier: what is small and asked for often.

use bytes::Bytes;
use foyer_memory::{Cache, CacheBuilder, S3FifoConfig};

use crate::oci::Digest;

/// What an entry costs besides its bytes: digest, handle, hash table and queue nodes.
const ENTRY_OVERHEAD: usize = 256;

/// Whole small objects by digest, within a byte budget. Large blobs live in the page cache.
#[derive(Debug)]
pub(super) struct MemoryTier {
    cache: Cache<Digest, Bytes>,
    largest: u64,
}

impl MemoryTier {
    /// A tier of `budget` bytes that admits objects of up to `largest` bytes.
    pub(super) fn new(budget: usize, largest: u64) -> Self {
        let cache = CacheBuilder::new(budget)
            .with_name("memory")
            // S3-FIFO keeps scans (one image pulled once) from washing out the hot set.
            .with_eviction_config(S3FifoConfig::default())
            .with_weighter(|_: &Digest, bytes: &Bytes| bytes.len() + ENTRY_OVERHEAD)
            .build();
        Self { cache, largest }
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.cache.get(digest).map(|entry| entry.value().clone())
    }

    pub(super) fn admits(&self, size: u64) -> bool {
        size <= self.largest
    }

    pub(super) fn insert(&self, digest: Digest, bytes: Bytes) {
        if self.admits(bytes.len() as u64) {
            self.cache.insert(digest, bytes);
        }
    }

    pub(super) fn remove(&self, digest: &Digest) {
        self.cache.remove(digest);
    }

    pub(super) fn usage(&self) -> usize {
        self.cache.usage()
    }
}
