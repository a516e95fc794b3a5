//! What an entry is worth: how soon it is expected to be used, times what it would cost to fetch
//! again, for the bytes it takes.
//!
//! ```text
//! worth = uses ^ power ÷ (idle + patience·τ) × (cost ÷ bytes) ^ thrift × class × dependents
//! ```
//!
//! - *uses* decay by half every few τ, so that yesterday's favourite makes room. τ is the time scale
//!   of this very cache, learned from how long proven victims had been idle: a disk that turns over in
//!   a day and one that keeps for a month use the same constants. An object that left keeps its uses
//!   for a while as a ghost.
//! - *idle* is the time since the last use; to have been idle for long means to be idle for longer
//!   (Blankstein et al., "Hyperbolic Caching", ATC '17, divides by the time in the cache).
//! - What was used but once, or not for so long that its uses have decayed below one, is worth a
//!   fraction: most of what scans and builds bring in never comes back.
//! - *thrift* between 0 and 1: at 1 this is frequency × cost ÷ bytes (GDSF), which spends bytes where
//!   they save most upstream time and loses byte hits over it; at 0 it counts byte hits alone. On the
//!   tuning seeds (medians of byte hits beyond LRU's, and of the cost ÷ LRU's): 4.9 points and 0.75
//!   at 1, 6.0 and 0.81 at 0, 6.0 and 0.77 at the default.
//! - *dependents* raise it, and [`Class::Metadata`] is worth so much more that it outlives layers
//!   many times over, but not for ever.
//!
//! There is no queue. A hit stores two words, when and how often; the victim is the worst of a random
//! sample and of the worst that earlier samples left behind, by what they are worth *now*. So worth
//! may change with time in ways that no order in a list survives, an entry takes 24 bytes and its
//! ghost 8, and an eviction looks at [`SAMPLE`] + [`POOL`] entries, however many there are.
//!
//! Ghosts and τ are not kept over a restart; what is found then says what τ is.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "estimates, in ranges that are clamped; slots are 32 bits wide"
)]

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::ghost::{self, Ghost};
use super::slots::Slots;
use super::{Class, History, Object, Policy, Slot, TRIES};

/// Entries drawn for a victim, and the worst of earlier samples that are kept. On the tuning seeds
/// 32 + 16 lose 0.4 points of byte hits to this. They take less than half the time (4.4 µs an
/// eviction at a million entries, not 11), but either is little beside the file that goes and the
/// one that comes.
const SAMPLE: usize = 64;
const POOL: usize = 32;
/// τ before anything is known, which counts as much as so many observations; and the shortest.
const FIRST_TAU: f32 = 86_400.0;
const FIRST_SEEN: u16 = 16;
const SHORTEST_TAU: f32 = 60.0;
/// τ is a mean over about this many observations.
const SEEN: u16 = 256;
/// Uses from which an entry says something about τ.
const PROVEN: f32 = 1.5;
/// The cost per byte that leaves the worth as it is: 40 MB/s.
const USUAL_COST: f32 = 1.0 / 40e6;

/// The constants, as tuned by `benches/eviction` on other seeds than it reports on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuning {
    /// Exponent of uses.
    pub power: f32,
    /// Uses halve in this many τ.
    pub half_life: f32,
    /// Uses that are counted at most: what was hot must be able to cool down.
    pub most: f32,
    /// How many τ of idleness make no great difference yet.
    pub patience: f32,
    /// What is left of the worth of an entry that has not been used twice.
    pub unproven: f32,
    /// Exponent of cost per byte.
    pub thrift: f32,
    /// Exponent of 1 + dependents.
    pub dependents: f32,
    /// By how much metadata is worth more than a layer of the same cost per byte.
    pub metadata: f32,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            power: 2.0,
            half_life: 2.0,
            most: 16.0,
            patience: 0.1,
            unproven: 0.1,
            thrift: 0.3,
            dependents: 0.5,
            metadata: 64.0,
        }
    }
}

#[derive(Debug)]
struct Entry {
    /// [`Use`], in two words: eight bytes at once would take four more to align. A reader may see one
    /// of a hit's two stores without the other, and then judges by a use too many or too few.
    last: AtomicU32,
    uses: AtomicU32,
    /// Logarithm of what does not change with time: cost, class, dependents.
    weight: f32,
    /// For its ghost.
    key: u32,
    /// Where it is in `live`; [`ABSENT`] if nowhere.
    at: u32,
}

const ABSENT: u32 = u32::MAX;

impl Default for Entry {
    fn default() -> Self {
        Self::new(Use { last: 0, uses: 0.0 }, 0.0, 0, ABSENT)
    }
}

impl Entry {
    fn new(used: Use, weight: f32, key: u32, at: u32) -> Self {
        let (last, uses) = (AtomicU32::new(used.last), AtomicU32::new(used.uses.to_bits()));
        Self { last, uses, weight, key, at }
    }

    fn used(&self) -> Use {
        Use { last: self.last.load(Relaxed), uses: f32::from_bits(self.uses.load(Relaxed)) }
    }
}

/// When an entry was used last, and its uses as of then.
#[derive(Debug, Clone, Copy)]
struct Use {
    last: u32,
    uses: f32,
}

impl Use {
    fn idle(self, now: u32) -> f32 {
        now.saturating_sub(self.last) as f32
    }
}

/// Expected use × cost ÷ bytes, with ageing.
#[derive(Debug)]
pub struct Worth {
    tuning: Tuning,
    slots: Slots<Entry>,
    /// The slots that are taken, in no order: what is drawn from.
    live: Vec<Slot>,
    ghost: Ghost,
    /// The worst of earlier samples, with what they were worth at the last one.
    pool: Vec<(f32, Slot)>,
    /// Where to go on looking when all of a sample may not go.
    hand: usize,
    /// See the head of this file; seconds.
    tau: f32,
    /// Observations that τ comes from, up to [`SEEN`].
    seen: u16,
    random: fastrand::Rng,
}

impl Worth {
    /// An empty one.
    pub fn new(tuning: Tuning) -> Self {
        Self {
            tuning,
            slots: Slots::new(),
            live: Vec::new(),
            ghost: Ghost::new(),
            pool: Vec::with_capacity(SAMPLE + POOL),
            hand: 0,
            tau: FIRST_TAU,
            seen: FIRST_SEEN,
            // Only which entries are compared depends on it; the same run twice is worth more.
            random: fastrand::Rng::with_seed(0),
        }
    }

    fn weight(&self, object: &Object) -> f32 {
        let bytes = (object.bytes.max(1)) as f32;
        let cost = if object.cost.is_finite() { object.cost.max(1e-3) } else { 1.0 };
        let class = if object.class == Class::Metadata { self.tuning.metadata } else { 1.0 };
        self.tuning.thrift * (cost / bytes / USUAL_COST).log2()
            + self.tuning.dependents * (1.0 + f32::from(object.dependents)).log2()
            + class.log2()
    }

    /// Logarithm of what the entry is worth now.
    fn worth(&self, slot: Slot, now: u32) -> f32 {
        let entry = &self.slots[slot];
        let used = entry.used();
        let idle = used.idle(now);
        let uses = used.uses.log2() - idle / (self.tuning.half_life * self.tau);
        let proven = if uses > 0.0 { 0.0 } else { self.tuning.unproven.log2() };
        entry.weight + self.tuning.power * uses + proven - (idle + self.tuning.patience * self.tau).log2()
    }

    /// One more use.
    fn again(&self, used: Use, now: u32) -> Use {
        let left = (-used.idle(now) / (self.tuning.half_life * self.tau)).exp2();
        Use { last: now.max(used.last), uses: (1.0 + used.uses * left).min(self.tuning.most) }
    }

    fn present(&self, slot: Slot) -> bool {
        self.slots.peek(slot).is_some_and(|entry| entry.at != ABSENT)
    }

    /// Draws a sample, adds it to the pool, and puts the worst first.
    fn sample(&mut self, now: u32) {
        let mut pool = std::mem::take(&mut self.pool);
        for (worth, slot) in &mut pool {
            *worth = self.worth(*slot, now);
        }
        for _ in 0..SAMPLE {
            let slot = self.live[self.random.usize(..self.live.len())];
            pool.push((self.worth(slot, now), slot));
        }
        // What was drawn twice is worth the same, so it lies side by side.
        pool.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        pool.dedup_by_key(|(_, slot)| *slot);
        self.pool = pool;
    }

    /// Takes note of how long an entry that was used more than once is idle: a victim, or one found
    /// at start. Were it less than what τ says, uses would count for too long, and the other way
    /// round. Victims used once do not count: a scan that pushes itself out would make everything
    /// else look old.
    fn learn(&mut self, used: Use, now: u32) {
        if used.uses >= PROVEN {
            self.seen = SEEN.min(self.seen + 1);
            self.tau += (used.idle(now) - self.tau) / f32::from(self.seen);
            self.tau = self.tau.max(SHORTEST_TAU);
        }
    }

    /// The next in a row that may go.
    fn sweep(&mut self, may_go: &mut dyn FnMut(Slot) -> bool) -> Option<Slot> {
        for _ in 0..TRIES.min(self.live.len()) {
            self.hand = (self.hand + 1) % self.live.len();
            let slot = self.live[self.hand];
            if may_go(slot) {
                return Some(slot);
            }
        }
        None
    }
}

impl Policy for Worth {
    fn insert(&mut self, slot: Slot, object: &Object, history: Option<History>, now: u32) {
        self.remove(slot);
        let key = ghost::short(object.key);
        let used = match (history, self.ghost.take(key)) {
            (Some(history), _) => {
                let used = Use { last: history.last_used, uses: decode(history.frequency) };
                self.learn(used, now);
                used
            }
            (None, Some(ghost)) => {
                self.again(Use { last: ghost.last_used, uses: decode(ghost.frequency) }, now)
            }
            (None, None) => Use { last: now, uses: 1.0 },
        };
        let weight = self.weight(object);
        let at = self.live.len() as u32;
        *self.slots.reach(slot) = Entry::new(used, weight, key, at);
        if self.live.len() == self.live.capacity() {
            self.live.reserve_exact(1 + self.live.len() / 8);
        }
        self.live.push(slot);
        self.ghost.fit(self.live.len());
    }

    fn touch(&self, slot: Slot, now: u32) {
        if let Some(entry) = self.slots.peek(slot) {
            let used = self.again(entry.used(), now);
            entry.last.store(used.last, Relaxed);
            entry.uses.store(used.uses.to_bits(), Relaxed);
        }
    }

    fn update(&mut self, slot: Slot, object: &Object) {
        if self.present(slot) {
            self.slots[slot].weight = self.weight(object);
        }
    }

    fn remove(&mut self, slot: Slot) {
        if !self.present(slot) {
            return;
        }
        self.ghost.put(self.slots[slot].key, self.history(slot));
        let at = std::mem::replace(&mut self.slots[slot].at, ABSENT);
        self.live.swap_remove(at as usize);
        if let Some(moved) = self.live.get(at as usize) {
            self.slots[*moved].at = at;
        }
        self.pool.retain(|(_, pooled)| *pooled != slot);
    }

    fn victim(&mut self, now: u32, may_go: &mut dyn FnMut(Slot) -> bool) -> Option<Slot> {
        if self.live.is_empty() {
            return None;
        }
        self.sample(now);
        let found = self.pool.iter().position(|(_, slot)| may_go(*slot));
        // What may not go makes room for others.
        self.pool.drain(..found.unwrap_or(self.pool.len()));
        self.pool.truncate(POOL);
        let victim = match self.pool.first() {
            Some((_, slot)) => *slot,
            None => self.sweep(may_go)?,
        };
        self.learn(self.slots[victim].used(), now);
        Some(victim)
    }

    fn history(&self, slot: Slot) -> History {
        self.slots.peek(slot).map_or_else(History::default, |entry| {
            let used = entry.used();
            History { frequency: encode(used.uses), last_used: used.last }
        })
    }

    fn bytes_per_slot(&self) -> usize {
        size_of::<Entry>() + size_of::<Slot>() + Ghost::BYTES
    }
}

/// Uses in one byte: sixteen steps to the doubling, from 1/16 up.
fn encode(uses: f32) -> u8 {
    (uses.log2() * 16.0 + 64.0).round().clamp(0.0, 255.0) as u8
}

fn decode(frequency: u8) -> f32 {
    ((f32::from(frequency) - 64.0) / 16.0).exp2()
}
