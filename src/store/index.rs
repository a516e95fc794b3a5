//! What is sealed in one directory, in memory.
//!
//! A table of slot numbers over a vector of entries: a lookup is one probe and one comparison, an eviction touches
//! one slot, and a blob costs the entry, the policy's state and ten bytes of table. Hits are noted through a shared
//! reference, so that they do not wait for each other.

use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU8, Ordering};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::eviction::{Class, History, METADATA_BYTES, Object, Policy, Slot};
use crate::oci::Digest;

/// Where nothing is known of what it takes to fetch a blob again: a round trip, and 10 MB/s.
const LATENCY: f32 = 0.1;
const SPEED: f32 = 1e7;

/// Nothing is known of its bytes: it is hashed before it is served.
const SUSPECT: u8 = 1;
/// This process has hashed the bytes, when they arrived or later.
const VERIFIED: u8 = 2;
/// It has been used since its record was written.
const USED: u8 = 4;
/// The slot is free.
const VACANT: u8 = 8;

/// How far the bytes of a file can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// They are those that were sealed, unless a power loss took them.
    Sealed,
    /// Hashed by this process.
    Verified,
    /// A file of which no record speaks.
    None,
}

/// What is known of a sealed blob.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sealed {
    /// Its size in bytes.
    pub(super) size: u64,
    /// What the file takes of the budget.
    pub(super) charge: u64,
    /// What it takes to fetch it again, in seconds of its upstream; `None` where nobody has measured.
    pub(super) cost: Option<f32>,
    /// Cached images that need it.
    pub(super) dependents: u16,
}

#[derive(Debug)]
struct Entry {
    digest: Digest,
    flags: AtomicU8,
    dependents: u16,
    cost: f32,
    size: u64,
    charge: u64,
}

/// The sealed blobs of one directory.
#[derive(Debug)]
pub(super) struct Index {
    table: HashTable<Slot>,
    hasher: DefaultHashBuilder,
    entries: Vec<Entry>,
    vacant: Vec<Slot>,
    policy: Box<dyn Policy>,
    bytes: u64,
}

impl Index {
    pub(super) fn new(policy: Box<dyn Policy>) -> Self {
        Self {
            table: HashTable::new(),
            // Seeded by chance: whoever can publish blobs chooses their digests.
            hasher: DefaultHashBuilder::default(),
            entries: Vec::new(),
            vacant: Vec::new(),
            policy,
            bytes: 0,
        }
    }

    /// How many blobs there are.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// The sum of their sizes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn slot(&self, digest: &Digest) -> Option<Slot> {
        let hash = self.hasher.hash_one(digest);
        self.table.find(hash, |slot| self.entries[*slot as usize].digest == *digest).copied()
    }

    pub(super) fn size(&self, digest: &Digest) -> Option<u64> {
        Some(self.entries[self.slot(digest)? as usize].size)
    }

    /// Its size, and how far its bytes can be trusted.
    pub(super) fn look(&self, digest: &Digest) -> Option<(u64, Trust)> {
        let entry = &self.entries[self.slot(digest)? as usize];
        let trust = match entry.flags.load(Ordering::Relaxed) {
            flags if flags & VERIFIED != 0 => Trust::Verified,
            flags if flags & SUSPECT != 0 => Trust::None,
            _ => Trust::Sealed,
        };
        Some((entry.size, trust))
    }

    /// Notes a hit; whether the blob is here.
    pub(super) fn touch(&self, digest: &Digest, now: u32) -> bool {
        let Some(slot) = self.slot(digest) else { return false };
        self.policy.touch(slot, now);
        let flags = &self.entries[slot as usize].flags;
        // Read first: a hot entry stays in the caches of all processors.
        if flags.load(Ordering::Relaxed) & USED == 0 {
            flags.fetch_or(USED, Ordering::Relaxed);
        }
        true
    }

    /// Adds a blob; returns what was known of it before.
    pub(super) fn insert(
        &mut self,
        digest: Digest,
        sealed: &Sealed,
        trust: Trust,
        history: Option<History>,
        now: u32,
    ) -> Option<Sealed> {
        let before = self.remove(&digest);
        let flags = match trust {
            Trust::Sealed => 0,
            Trust::Verified => VERIFIED,
            Trust::None => SUSPECT,
        };
        let entry = Entry {
            digest,
            flags: AtomicU8::new(flags),
            dependents: sealed.dependents,
            cost: sealed.cost.unwrap_or(f32::NAN),
            size: sealed.size,
            charge: sealed.charge,
        };
        let object = entry.object();
        let slot = match self.vacant.pop() {
            Some(slot) => {
                self.entries[slot as usize] = entry;
                slot
            }
            None => {
                let slot =
                    Slot::try_from(self.entries.len()).expect("fewer than four thousand million blobs");
                self.entries.push(entry);
                slot
            }
        };
        let (entries, hasher) = (&self.entries, &self.hasher);
        let rehash = |slot: &Slot| hasher.hash_one(entries[*slot as usize].digest);
        self.table.insert_unique(hasher.hash_one(digest), slot, rehash);
        self.policy.insert(slot, &object, history, now);
        self.bytes += sealed.size;
        before
    }

    pub(super) fn remove(&mut self, digest: &Digest) -> Option<Sealed> {
        let slot = self.slot(digest)?;
        Some(self.remove_slot(slot).1)
    }

    /// Takes out what is to go next, among what `may_go`.
    pub(super) fn evict(
        &mut self,
        now: u32,
        mut may_go: impl FnMut(&Digest) -> bool,
    ) -> Option<(Digest, Sealed)> {
        let entries = &self.entries;
        let victim = self.policy.victim(now, &mut |slot| may_go(&entries[slot as usize].digest))?;
        Some(self.remove_slot(victim))
    }

    /// Notes that the bytes were hashed and are right.
    pub(super) fn verified(&self, digest: &Digest) {
        if let Some(slot) = self.slot(digest) {
            self.entries[slot as usize].flags.fetch_or(VERIFIED, Ordering::Relaxed);
        }
    }

    /// Counts one more cached image that needs this blob, or one less. Whether it is here.
    pub(super) fn depend(&mut self, digest: &Digest, more: bool) -> bool {
        let Some(slot) = self.slot(digest) else { return false };
        let entry = &mut self.entries[slot as usize];
        let dependents = entry.dependents;
        entry.dependents = if more { dependents.saturating_add(1) } else { dependents.saturating_sub(1) };
        entry.flags.fetch_or(USED, Ordering::Relaxed);
        self.policy.update(slot, &entry.object());
        true
    }

    /// What there is to record of a blob.
    pub(super) fn record(&self, digest: &Digest) -> Option<(Sealed, History)> {
        let slot = self.slot(digest)?;
        Some((self.entries[slot as usize].sealed(), self.policy.history(slot)))
    }

    /// The blobs in a run of slots, with what is known of them; those of which no record speaks are left out
    /// where only `used` ones are asked for. `None` behind the last slot.
    pub(super) fn run(&self, from: usize, len: usize, used: bool) -> Option<Vec<Digest>> {
        let entries = self.entries.get(from..)?;
        if entries.is_empty() {
            return None;
        }
        let wanted = entries.iter().take(len).filter(|entry| {
            let flags = entry.flags.load(Ordering::Relaxed);
            let is_known = flags & SUSPECT == 0 || flags & VERIFIED != 0;
            flags & VACANT == 0 && (!used || (flags & USED != 0 && is_known))
        });
        Some(wanted.map(|entry| entry.digest).collect())
    }

    /// Notes that its record has been written.
    pub(super) fn recorded(&self, digest: &Digest) {
        if let Some(slot) = self.slot(digest) {
            self.entries[slot as usize].flags.fetch_and(!USED, Ordering::Relaxed);
        }
    }

    fn remove_slot(&mut self, slot: Slot) -> (Digest, Sealed) {
        self.policy.remove(slot);
        let entry = &mut self.entries[slot as usize];
        *entry.flags.get_mut() = VACANT;
        let (digest, sealed) = (entry.digest, entry.sealed());
        if let Ok(occupied) = self.table.find_entry(self.hasher.hash_one(digest), |other| *other == slot) {
            occupied.remove();
        }
        self.vacant.push(slot);
        self.bytes -= sealed.size;
        (digest, sealed)
    }
}

impl Entry {
    fn sealed(&self) -> Sealed {
        let cost = (!self.cost.is_nan()).then_some(self.cost);
        Sealed { size: self.size, charge: self.charge, cost, dependents: self.dependents }
    }

    fn object(&self) -> Object {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let guess = || LATENCY + self.size as f32 / SPEED;
        Object {
            key: self.digest.prefix(),
            bytes: self.charge,
            class: if self.size <= METADATA_BYTES { Class::Metadata } else { Class::Layer },
            cost: if self.cost.is_nan() { guess() } else { self.cost },
            dependents: self.dependents,
        }
    }
}
