//! What is remembered of objects that left.
//!
//! A table of four-way sets of one word each: 32 bits of the key, 24 of the time, 8 of the frequency.
//! Fixed work, no allocation on the way; a set that is full forgets its oldest. Two keys that share
//! 32 bits take one another's history about once in a thousand million lookups per entry of a set,
//! which costs an estimate, not a byte.

#![allow(clippy::cast_possible_truncation, reason = "keys and times are cut to the bits that are kept")]

use super::History;

const WAYS: usize = 4;
/// A time is kept in units of this many seconds, so that 24 bits last for 34 years.
const UNIT: u32 = 64;
/// The smallest table.
const MINIMUM: usize = 1 << 8;

/// Histories of objects that are gone.
#[derive(Debug)]
pub(super) struct Ghost {
    entries: Vec<u64>,
}

impl Ghost {
    /// Memory per live entry: there are at most as many ghosts as the capacity's power of two.
    pub(super) const BYTES: usize = size_of::<u64>();

    pub(super) fn new() -> Self {
        Self { entries: vec![0; MINIMUM] }
    }

    /// Makes room for about as many ghosts as there are live entries, between half and all of them.
    pub(super) fn fit(&mut self, live: usize) {
        if live >= self.entries.len() * 2 {
            let old = std::mem::take(&mut self.entries);
            self.entries = vec![0; old.len() * 2];
            for word in old.into_iter().filter(|word| *word != 0) {
                self.store(word);
            }
        }
    }

    pub(super) fn put(&mut self, key: u32, history: History) {
        let when = u64::from((history.last_used / UNIT) & 0x00ff_ffff);
        self.store(u64::from(key) << 32 | when << 8 | u64::from(history.frequency));
    }

    /// What was known of the object, which is forgotten here: it is back.
    pub(super) fn take(&mut self, key: u32) -> Option<History> {
        let set = self.set(key);
        let word =
            self.entries[set..set + WAYS].iter_mut().find(|word| **word != 0 && key_of(**word) == key)?;
        let [.., b2, b1, b0, frequency] = std::mem::take(word).to_be_bytes();
        Some(History { frequency, last_used: u32::from_be_bytes([0, b2, b1, b0]).saturating_mul(UNIT) })
    }

    fn store(&mut self, word: u64) {
        let set = self.set(key_of(word));
        let ways = &mut self.entries[set..set + WAYS];
        let at = ways
            .iter()
            .position(|old| *old != 0 && key_of(*old) == key_of(word))
            .or_else(|| (0..WAYS).min_by_key(|way| ways[*way] as u32 >> 8));
        if let Some(at) = at {
            ways[at] = word;
        }
    }

    fn set(&self, key: u32) -> usize {
        (key as usize & (self.entries.len() - 1)) & !(WAYS - 1)
    }
}

/// The part of a key that is remembered.
pub(super) fn short(key: u64) -> u32 {
    (key >> 32) as u32 ^ key as u32
}

fn key_of(word: u64) -> u32 {
    (word >> 32) as u32
}
