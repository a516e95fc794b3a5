//! Least recently used, exact to the second, without moving anything on a hit.
//!
//! A hit stores the time in the entry. The queue is a radix heap over the time at which an entry was
//! *queued*: 33 lists, the list of an entry being the highest bit in which its time differs from the
//! time the queue has reached. Only when an entry comes up is its last use compared with the time it
//! was queued at; if it was used since, it is queued again at that time (lazy promotion). Times in
//! the queue never run backwards, so an entry moves down at most 32 lists between two uses, and
//! every requeue is paid for by a hit.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::lists::{Linked, Links, List, newer};
use super::slots::Slots;
use super::{History, Object, Policy, Slot, TRIES};

#[derive(Debug, Default)]
struct Entry {
    used: AtomicU32,
    /// The time it is queued at.
    queued: u32,
    links: Links,
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

/// Least recently used.
#[derive(Debug)]
pub struct Lru {
    slots: Slots<Entry>,
    /// By the highest bit that differs from `reached`; the first holds equal times.
    lists: [List; 33],
    /// The time of the last entry that came up.
    reached: u32,
}

impl Lru {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "made in one place, by name")]
    pub fn new() -> Self {
        Self { slots: Slots::new(), lists: [List::EMPTY; 33], reached: 0 }
    }

    fn list_of(&self, time: u32) -> usize {
        (u32::BITS - (time ^ self.reached).leading_zeros()) as usize
    }

    fn queue(&mut self, slot: Slot, time: u32) {
        let time = time.max(self.reached);
        self.slots[slot].queued = time;
        let list = self.list_of(time);
        self.lists[list].push(&mut self.slots, slot);
    }

    fn unqueue(&mut self, slot: Slot) {
        let list = self.list_of(self.slots[slot].queued);
        self.lists[list].unlink(&mut self.slots, slot);
    }

    /// The entry queued at the earliest time.
    fn first(&mut self) -> Option<Slot> {
        if let Some(slot) = self.lists[0].tail() {
            return Some(slot);
        }
        let mut list = self.lists.iter_mut().find(|list| list.tail().is_some())?;
        // Its entries share all bits above; with the earliest of them as the time reached, each
        // goes to a list further down.
        let mut waiting = std::mem::replace(list, List::EMPTY);
        let mut earliest = u32::MAX;
        let mut next = waiting.tail();
        while let Some(slot) = next {
            earliest = earliest.min(self.slots[slot].queued);
            next = newer(&self.slots, slot);
        }
        self.reached = earliest;
        while let Some(slot) = waiting.tail() {
            waiting.unlink(&mut self.slots, slot);
            let at = self.list_of(self.slots[slot].queued);
            list = &mut self.lists[at];
            list.push(&mut self.slots, slot);
        }
        self.lists[0].tail()
    }
}

impl Policy for Lru {
    fn insert(&mut self, slot: Slot, _object: &Object, history: Option<History>, now: u32) {
        self.remove(slot);
        let used = history.map_or(now, |history| history.last_used);
        let entry = self.slots.reach(slot);
        entry.present = true;
        entry.used = AtomicU32::new(used);
        self.queue(slot, used);
    }

    fn touch(&self, slot: Slot, now: u32) {
        if let Some(entry) = self.slots.peek(slot) {
            entry.used.store(now, Relaxed);
        }
    }

    fn update(&mut self, _slot: Slot, _object: &Object) {}

    fn remove(&mut self, slot: Slot) {
        if self.slots.peek(slot).is_some_and(|entry| entry.present) {
            self.unqueue(slot);
            self.slots[slot].present = false;
        }
    }

    fn victim(&mut self, now: u32, may_go: &mut dyn FnMut(Slot) -> bool) -> Option<Slot> {
        let mut tries = 0;
        while tries < TRIES {
            let slot = self.first()?;
            let entry = &self.slots[slot];
            let used = entry.used.load(Relaxed);
            let requeue = if used > entry.queued {
                used
            } else if may_go(slot) {
                return Some(slot);
            } else {
                // What may not go is in use: as if used now.
                tries += 1;
                now
            };
            self.unqueue(slot);
            self.queue(slot, requeue);
        }
        None
    }

    fn history(&self, slot: Slot) -> History {
        let last_used = self.slots.peek(slot).map_or(0, |entry| entry.used.load(Relaxed));
        History { frequency: 1, last_used }
    }

    fn bytes_per_slot(&self) -> usize {
        size_of::<Entry>()
    }
}
