//! SIEVE (Zhang et al., "SIEVE is Simpler than LRU", NSDI '24).
//!
//! One queue in order of arrival and a hand that walks from old to new and round again: what was
//! used since the hand passed is let live, what was not goes. New entries come in at the head, far
//! ahead of the hand, so what is never used again is met before what proved itself is met twice.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use super::lists::{Linked, Links, List, NONE, newer};
use super::slots::Slots;
use super::{History, Object, Policy, Slot, TRIES};

/// How many used entries one call lets live. Each was paid for by a hit, but a million hits at once
/// must not make one call long; after that many, what comes next goes, used or not.
const SPARED: usize = 4096;

#[derive(Debug, Default)]
struct Entry {
    last_used: AtomicU32,
    links: Links,
    used: AtomicBool,
    present: bool,
}

impl Linked for Entry {
    fn links(&self) -> Links {
        self.links
    }

    fn links_mut(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// A queue and a hand.
#[derive(Debug)]
pub struct Sieve {
    slots: Slots<Entry>,
    list: List,
    /// What is looked at next; [`NONE`]: the tail.
    hand: Slot,
}

impl Sieve {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "made in one place, by name")]
    pub fn new() -> Self {
        Self { slots: Slots::new(), list: List::EMPTY, hand: NONE }
    }
}

impl Policy for Sieve {
    fn insert(&mut self, slot: Slot, _object: &Object, history: Option<History>, now: u32) {
        self.remove(slot);
        let entry = self.slots.reach(slot);
        entry.present = true;
        entry.used = AtomicBool::new(history.is_some_and(|history| history.frequency > 0));
        entry.last_used = AtomicU32::new(history.map_or(now, |history| history.last_used));
        self.list.push(&mut self.slots, slot);
    }

    fn touch(&self, slot: Slot, now: u32) {
        if let Some(entry) = self.slots.peek(slot) {
            entry.last_used.store(now, Relaxed);
            entry.used.store(true, Relaxed);
        }
    }

    fn update(&mut self, _slot: Slot, _object: &Object) {}

    fn remove(&mut self, slot: Slot) {
        if self.slots.peek(slot).is_some_and(|entry| entry.present) {
            if self.hand == slot {
                self.hand = newer(&self.slots, slot).unwrap_or(NONE);
            }
            self.list.unlink(&mut self.slots, slot);
            self.slots[slot].present = false;
        }
    }

    fn victim(&mut self, _now: u32, may_go: &mut dyn FnMut(Slot) -> bool) -> Option<Slot> {
        let (mut tries, mut spared) = (0, 0);
        while tries < TRIES {
            let slot = if self.hand == NONE { self.list.tail()? } else { self.hand };
            let used = &self.slots[slot].used;
            if used.load(Relaxed) && spared < SPARED {
                used.store(false, Relaxed);
                spared += 1;
            } else if may_go(slot) {
                self.hand = slot;
                return Some(slot);
            } else {
                tries += 1;
            }
            self.hand = newer(&self.slots, slot).unwrap_or(NONE);
        }
        None
    }

    fn history(&self, slot: Slot) -> History {
        self.slots.peek(slot).map_or_else(History::default, |entry| History {
            frequency: u8::from(entry.used.load(Relaxed)),
            last_used: entry.last_used.load(Relaxed),
        })
    }

    fn bytes_per_slot(&self) -> usize {
        size_of::<Entry>()
    }
}
