//! S3-FIFO (Yang et al., "FIFO Queues are All You Need for Cache Eviction", SOSP '23), in bytes.
//!
//! What is new waits in a small queue of a tenth of the bytes. What was used twice there moves to
//! the main queue, what was not leaves and is remembered as a ghost; a ghost that comes back goes to
//! the main queue at once. The main queue gives a used entry another round, up to three.
//!
//! The capacity is not known here: the tenth is of what is held, which is the same once the disk is
//! full, and nothing leaves before that.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use super::ghost::{self, Ghost};
use super::lists::{Linked, Links, List};
use super::slots::Slots;
use super::{History, Object, Policy, Slot, TRIES};

/// The small queue's share of the bytes: one in this many.
const SMALL: u64 = 10;
/// Uses in the small queue that lead to the main one.
const PROVEN: u8 = 2;
/// Uses that are counted at most.
const MOST: u8 = 3;
/// How many entries one call moves or gives another round; each was paid for by a hit.
const MOVED: usize = 4096;
/// Sizes are counted in blocks of this many bytes, so that 32 bits hold any of them.
const BLOCK: u64 = 4096;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Absent,
    Small,
    Main,
}

#[derive(Debug, Default)]
struct Entry {
    last_used: AtomicU32,
    blocks: u32,
    key: u32,
    links: Links,
    uses: AtomicU8,
    place: Place,
}

impl Linked for Entry {
    fn links(&self) -> Links {
        self.links
    }

    fn links_mut(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// A queue and what it holds.
#[derive(Debug)]
struct Queue {
    list: List,
    blocks: u64,
}

/// Two queues and a ghost.
#[derive(Debug)]
pub struct S3Fifo {
    slots: Slots<Entry>,
    small: Queue,
    main: Queue,
    ghost: Ghost,
    live: usize,
}

impl S3Fifo {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "made in one place, by name")]
    pub fn new() -> Self {
        let empty = || Queue { list: List::EMPTY, blocks: 0 };
        Self { slots: Slots::new(), small: empty(), main: empty(), ghost: Ghost::new(), live: 0 }
    }

    fn queue(&mut self, slot: Slot, place: Place) {
        let queue = if place == Place::Small { &mut self.small } else { &mut self.main };
        queue.list.push(&mut self.slots, slot);
        let entry = &mut self.slots[slot];
        queue.blocks += u64::from(entry.blocks);
        entry.place = place;
    }

    fn unqueue(&mut self, slot: Slot) -> Place {
        let entry = &self.slots[slot];
        let (place, blocks) = (entry.place, u64::from(entry.blocks));
        let queue = match place {
            Place::Absent => return place,
            Place::Small => &mut self.small,
            Place::Main => &mut self.main,
        };
        queue.blocks -= blocks;
        queue.list.unlink(&mut self.slots, slot);
        self.slots[slot].place = Place::Absent;
        place
    }

    /// The oldest entry of the queue whose turn it is; of the `other` one where that is asked for.
    fn oldest(&self, other: bool) -> Option<(Slot, Place)> {
        let small = self.small.list.tail().map(|slot| (slot, Place::Small));
        let main = self.main.list.tail().map(|slot| (slot, Place::Main));
        let small_is_full = self.small.blocks * SMALL >= self.small.blocks + self.main.blocks;
        if small_is_full == other { main.or(small) } else { small.or(main) }
    }
}

impl Policy for S3Fifo {
    fn insert(&mut self, slot: Slot, object: &Object, history: Option<History>, now: u32) {
        self.remove(slot);
        let key = ghost::short(object.key);
        let returns = self.ghost.take(key).is_some();
        let entry = self.slots.reach(slot);
        entry.key = key;
        entry.blocks = u32::try_from(object.bytes.div_ceil(BLOCK)).unwrap_or(u32::MAX);
        entry.last_used = AtomicU32::new(history.map_or(now, |history| history.last_used));
        entry.uses = AtomicU8::new(history.map_or(0, |history| history.frequency.min(MOST)));
        let proven = returns || history.is_some_and(|history| history.frequency >= PROVEN);
        self.queue(slot, if proven { Place::Main } else { Place::Small });
        self.live += 1;
        self.ghost.fit(self.live);
    }

    fn touch(&self, slot: Slot, now: u32) {
        if let Some(entry) = self.slots.peek(slot) {
            entry.last_used.store(now, Relaxed);
            let uses = entry.uses.load(Relaxed);
            if uses < MOST {
                entry.uses.store(uses + 1, Relaxed);
            }
        }
    }

    fn update(&mut self, _slot: Slot, _object: &Object) {}

    fn remove(&mut self, slot: Slot) {
        if self.slots.peek(slot).is_none() {
            return;
        }
        let place = self.unqueue(slot);
        if place == Place::Small {
            let history = self.history(slot);
            self.ghost.put(self.slots[slot].key, history);
        }
        self.live -= usize::from(place != Place::Absent);
    }

    fn victim(&mut self, _now: u32, may_go: &mut dyn FnMut(Slot) -> bool) -> Option<Slot> {
        let (mut tries, mut moved) = (0, 0);
        while tries < TRIES {
            // A queue of pinned entries must not hide the other one.
            let (slot, place) = self.oldest(tries >= TRIES / 2)?;
            let uses = self.slots[slot].uses.load(Relaxed);
            let left = match place {
                Place::Small if uses >= PROVEN => 0,
                Place::Main if uses > 0 && moved < MOVED => uses - 1,
                _ if may_go(slot) => return Some(slot),
                _ => {
                    tries += 1;
                    uses
                }
            };
            moved += 1;
            self.slots[slot].uses.store(left, Relaxed);
            self.unqueue(slot);
            self.queue(slot, Place::Main);
        }
        None
    }

    fn history(&self, slot: Slot) -> History {
        self.slots.peek(slot).map_or_else(History::default, |entry| {
            let proven = if entry.place == Place::Main { PROVEN } else { 0 };
            History {
                frequency: entry.uses.load(Relaxed).max(proven),
                last_used: entry.last_used.load(Relaxed),
            }
        })
    }

    fn bytes_per_slot(&self) -> usize {
        size_of::<Entry>() + Ghost::BYTES
    }
}
