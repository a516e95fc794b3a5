//! The memory tier: what is small and asked for often.
//!
//! S3-FIFO in bytes: what is new goes through a queue that takes a tenth of the budget, and only what is asked for again
//! while it is there moves on to the rest. So a scan (an image that is pulled once, a CI run) washes out other new
//! things and nothing that is hot. An object may take no more than that tenth: one alone cannot wash out the queue.

use bytes::Bytes;
use foyer_memory::{Cache, CacheBuilder, S3FifoConfig};

use crate::oci::Digest;

/// What an entry costs besides its bytes: digest, handle, hash table and queue nodes.
const ENTRY_OVERHEAD: usize = 256;

/// The share of the budget that new objects get, one part in so many.
const NEW_PART: u8 = 10;

/// Parts with a lock and a tenth of their own: more of them contend less, fewer take larger objects.
const MOST_SHARDS: usize = 8;

/// Whole small objects by digest, within a byte budget. Large blobs live in the page cache.
#[derive(Debug)]
pub(super) struct MemoryTier {
    cache: Cache<Digest, Bytes>,
    largest: u64,
}

impl MemoryTier {
    /// A tier of `budget` bytes that admits objects of up to `largest` bytes, or fewer where the budget is small.
    pub(super) fn new(budget: usize, largest: u64) -> Self {
        let wanted = usize::try_from(largest).unwrap_or(usize::MAX).saturating_add(ENTRY_OVERHEAD);
        let shards = (budget / usize::from(NEW_PART) / wanted).clamp(1, MOST_SHARDS);
        let room = (budget / shards / usize::from(NEW_PART)).saturating_sub(ENTRY_OVERHEAD);
        let cache = CacheBuilder::new(budget)
            .with_name("memory")
            .with_shards(shards)
            .with_eviction_config(S3FifoConfig {
                small_queue_capacity_ratio: 1.0 / f64::from(NEW_PART),
                ..S3FifoConfig::default()
            })
            .with_weighter(|_: &Digest, bytes: &Bytes| bytes.len() + ENTRY_OVERHEAD)
            .build();
        Self { cache, largest: largest.min(room as u64) }
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.cache.get(digest).map(|entry| entry.value().clone())
    }

    pub(super) fn admits(&self, size: u64) -> bool {
        size <= self.largest
    }

    pub(super) fn insert(&self, digest: Digest, bytes: &Bytes) {
        if self.admits(bytes.len() as u64) {
            // A copy of its own: a slice would keep the whole buffer that it was read into, which nobody counts.
            self.cache.insert(digest, Bytes::copy_from_slice(bytes));
        }
    }

    pub(super) fn remove(&self, digest: &Digest) {
        self.cache.remove(digest);
    }

    pub(super) fn usage(&self) -> usize {
        self.cache.usage()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    const MIB: usize = 1 << 20;

    fn digest(of: &str, index: usize) -> Digest {
        Digest::of(Algorithm::Sha256, format!("{of} {index}").as_bytes())
    }

    #[test]
    fn a_scan_of_large_objects_washes_out_nothing_that_is_hot() {
        let tier = MemoryTier::new(16 * MIB, 256 << 10);
        let manifest = Bytes::from(vec![b'm'; 2048]);
        let hot: Vec<Digest> = (0..500).map(|index| digest("hot", index)).collect();
        for digest in &hot {
            tier.insert(*digest, &manifest);
        }
        // Asked for again, as hot things are.
        assert!(hot.iter().all(|digest| tier.get(digest).is_some()));
        let large = Bytes::from(vec![b'l'; 128 << 10]);
        for index in 0..4 * 16 * MIB / large.len() {
            tier.insert(digest("scan", index), &large);
        }
        let left = hot.iter().filter(|digest| tier.get(digest).is_some()).count();
        assert_eq!(left, hot.len());
    }

    #[test]
    fn the_budget_holds_whatever_comes() {
        for (budget, largest) in [(64 * MIB, 256 << 10), (MIB, 256 << 10), (64 << 10, MIB as u64), (1, 1)] {
            let tier = MemoryTier::new(budget, largest);
            for index in 0..2000 {
                let size = 1 + (index * 7919) % (300 << 10);
                tier.insert(digest("any", index), &Bytes::from(vec![0; size]));
                tier.get(&digest("any", index / 2));
                assert!(tier.usage() <= budget, "{} of {budget} after {index}", tier.usage());
            }
        }
    }

    #[test]
    fn what_is_kept_holds_no_buffer_of_others() {
        let tier = MemoryTier::new(MIB, 4096);
        let buffer = Bytes::from(vec![b'x'; 64 << 10]);
        tier.insert(digest("slice", 0), &buffer.slice(..100));
        let kept = tier.get(&digest("slice", 0)).expect("it was just kept");
        assert_eq!(kept, buffer.slice(..100));
        assert_ne!(kept.as_ptr(), buffer.as_ptr());
    }
}
