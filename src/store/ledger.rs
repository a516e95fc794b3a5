//! The byte budget of one directory: what is taken, what is promised, and how much there may be.
//!
//! Invariant: nothing is written that was not reserved before, and what is reserved never exceeds the limit. A
//! reservation becomes the charge of the file that was written under it, or comes back when it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a file takes beside its blocks: its entry in a directory, whose blocks only grow, and its row in the
/// catalogue. Names are 64 bytes; ext4 and XFS keep directories about three quarters full.
const FILE_OVERHEAD: u64 = 256;

/// File systems give space in pages.
const BLOCK: u64 = 4096;

/// The accounts of one directory.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    // Atomics: read by every admission and every scrape, written a few times per blob.
    limit: AtomicU64,
    /// Charged and reserved bytes.
    used: AtomicU64,
    /// The part of the reservations that is not in the file system yet.
    unwritten: AtomicU64,
    /// What those who found no room wait for.
    awaited: AtomicU64,
}

/// Bytes that may be written. They come back when this is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    ledger: Arc<Ledger>,
    bytes: u64,
    written: u64,
}

/// Bytes that somebody waits for, for as long as this lives.
#[derive(Debug)]
pub(super) struct Awaiting<'l> {
    ledger: &'l Ledger,
    bytes: u64,
}

/// What a file of `size` bytes may take at most.
pub(super) fn estimate(size: u64) -> u64 {
    size.saturating_add(BLOCK - 1) / BLOCK * BLOCK + FILE_OVERHEAD
}

/// What a file takes whose blocks are `allocated` bytes.
pub(super) fn charge_of(allocated: u64) -> u64 {
    allocated + FILE_OVERHEAD
}

impl Ledger {
    /// How much there may be.
    pub(super) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// How much is charged and reserved.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// How much is promised and not in the file system yet.
    pub(super) fn unwritten(&self) -> u64 {
        self.unwritten.load(Ordering::Relaxed)
    }

    /// How much somebody waits for.
    pub(super) fn awaited(&self) -> u64 {
        self.awaited.load(Ordering::Relaxed)
    }

    pub(super) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Takes `bytes`, if they fit.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        self.take(bytes).then(|| {
            self.unwritten.fetch_add(bytes, Ordering::Relaxed);
            Reservation { ledger: Arc::clone(self), bytes, written: 0 }
        })
    }

    /// A reservation of what is charged already, for a file that is written on.
    pub(super) fn reopen(self: &Arc<Self>, charge: u64) -> Reservation {
        Reservation { ledger: Arc::clone(self), bytes: charge, written: charge }
    }

    /// Notes what is there, fit or not.
    pub(super) fn charge(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives back what was charged.
    pub(super) fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Says that `bytes` would be taken if there were room.
    pub(super) fn await_room(&self, bytes: u64) -> Awaiting<'_> {
        self.awaited.fetch_add(bytes, Ordering::Relaxed);
        Awaiting { ledger: self, bytes }
    }

    fn take(&self, bytes: u64) -> bool {
        let limit = self.limit();
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

impl Reservation {
    /// How much it is.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Grows to `bytes`, if that fits.
    pub(super) fn grow_to(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 {
            if !self.ledger.take(more) {
                return false;
            }
            self.ledger.unwritten.fetch_add(more, Ordering::Relaxed);
            self.bytes += more;
        }
        true
    }

    /// Notes that so much of it is in the file system.
    pub(super) fn note_written(&mut self, bytes: u64) {
        let bytes = bytes.clamp(self.written, self.bytes);
        self.ledger.unwritten.fetch_sub(bytes - self.written, Ordering::Relaxed);
        self.written = bytes;
    }

    /// Notes that nothing of it is in the file system any more.
    pub(super) fn note_emptied(&mut self) {
        self.ledger.unwritten.fetch_add(self.written, Ordering::Relaxed);
        self.written = 0;
    }

    /// Gives back what is more than `bytes`; all of those are in the file system.
    pub(super) fn shrink_to(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.ledger.release(self.bytes - bytes);
        self.ledger.unwritten.fetch_sub(self.bytes - self.written, Ordering::Relaxed);
        (self.bytes, self.written) = (bytes, bytes);
    }

    /// Leaves `charge` in place of the reservation, for as long as the file is there.
    pub(super) fn settle(mut self, charge: u64) {
        self.ledger.charge(charge);
        self.give_back();
    }

    fn give_back(&mut self) {
        self.ledger.release(self.bytes);
        self.ledger.unwritten.fetch_sub(self.bytes - self.written, Ordering::Relaxed);
        (self.bytes, self.written) = (0, 0);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        self.ledger.awaited.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ledger(limit: u64) -> Arc<Ledger> {
        let ledger = Arc::new(Ledger::default());
        ledger.set_limit(limit);
        ledger
    }

    #[test]
    fn a_reservation_becomes_a_charge_or_comes_back() {
        let ledger = ledger(100);
        let mut first = ledger.reserve(60).unwrap();
        assert!(ledger.reserve(41).is_none());
        assert!(!first.grow_to(101));
        assert!(first.grow_to(70));
        first.note_written(50);
        first.note_emptied();
        assert_eq!((ledger.used(), ledger.unwritten()), (70, 70));
        first.note_written(30);
        assert_eq!((ledger.used(), ledger.unwritten()), (70, 40));
        first.settle(50);
        assert_eq!((ledger.used(), ledger.unwritten()), (50, 0));
        drop(ledger.reserve(50).unwrap());
        assert_eq!((ledger.used(), ledger.unwritten()), (50, 0));
        let reopened = ledger.reopen(50);
        assert_eq!((ledger.used(), ledger.unwritten()), (50, 0));
        drop(reopened);
        assert_eq!(ledger.used(), 0);
        let mut left = ledger.reserve(60).unwrap();
        left.note_written(30);
        left.shrink_to(40);
        assert_eq!((ledger.used(), ledger.unwritten()), (40, 0));
        drop(left);
        assert_eq!((ledger.used(), ledger.unwritten()), (0, 0));
    }

    proptest! {
        #[test]
        fn what_is_taken_never_exceeds_the_limit(limit in 0u64..1000, wishes in prop::collection::vec((0u64..300, 0u64..300), 0..50)) {
            let ledger = ledger(limit);
            let mut held = Vec::new();
            for (first, grown) in wishes {
                if let Some(mut reservation) = ledger.reserve(first) {
                    reservation.grow_to(grown);
                    held.push(reservation);
                } else {
                    held.pop();
                }
                prop_assert!(ledger.used() <= limit);
                prop_assert_eq!(ledger.used(), held.iter().map(Reservation::bytes).sum::<u64>());
            }
            drop(held);
            prop_assert_eq!((ledger.used(), ledger.unwritten()), (0, 0));
        }
    }
}
