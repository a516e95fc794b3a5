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
//!   they save most upstream time and loses byte hits over it; at 0 it counts byte hits alone.
//! - *dependents* raise it, and [`Class::Metadata`] is worth so much more that it outlives layers
//!   many times over, but not for ever.
//!
//! There is no queue. A hit stores one word (last use and uses); the victim is the worst of a random
//! sample and of the worst that earlier samples left behind, by what they are worth *now*. So worth
//! may change with time in ways that no order in a list survives, an entry takes 28 bytes, and an
//! eviction looks at [`SAMPLE`] + [`POOL`] entries, whatever the number there is.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::ghost::{self, Ghost};
use super::slots::Slots;
use super::{Class, History, Object, Policy, Slot, TRIES};

/// Entries drawn for a victim.
const SAMPLE: usize = 32;
/// The worst of earlier samples. With it, 32 + 16 come as close to the worst of all as a few hundred
/// drawn afresh.
const POOL: usize = 16;
/// τ until the first evictions, and the shortest it becomes.
const FIRST_TAU: f32 = 86_400.0;
const SHORTEST_TAU: f32 = 60.0;
/// τ is a mean over about this many victims.
const VICTIMS: f32 = 256.0;
/// Uses from which a victim says something about τ.
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
    /// [`Use`], packed: one store per hit, and never half of it.
    used: AtomicU64,
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
        Self { used: AtomicU64::new(0), weight: 0.0, key: 0, at: ABSENT }
    }
}

/// When an entry was used last, and its uses as of then.
#[derive(Debug, Clone, Copy)]
struct Use {
    last: u32,
    uses: f32,
}

impl Use {
    fn pack(self) -> u64 {
        u64::from(self.last) << 32 | u64::from(self.uses.to_bits())
    }

    fn unpack(word: u64) -> Self {
        Self { last: (word >> 32) as u32, uses: f32::from_bits(word as u32) }
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
    pool: Vec<Slot>,
    /// Where to go on looking when all of a sample may not go.
    hand: usize,
    /// See the head of this file; seconds.
    tau: f32,
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

    /// Logarithm of the uses as of `now`.
    fn uses(&self, used: Use, now: u32) -> f32 {
        used.uses.log2() - now.saturating_sub(used.last) as f32 / (self.tuning.half_life * self.tau)
    }

    /// Logarithm of what the entry is worth now.
    fn worth(&self, slot: Slot, now: u32) -> f32 {
        let entry = &self.slots[slot];
        let used = Use::unpack(entry.used.load(Relaxed));
        let uses = self.uses(used, now);
        let idle = now.saturating_sub(used.last) as f32;
        let proven = if uses > 0.0 { 0.0 } else { self.tuning.unproven.log2() };
        entry.weight + self.tuning.power * uses + proven - (idle + self.tuning.patience * self.tau).log2()
    }

    /// One more use.
    fn again(&self, used: Use, now: u32) -> Use {
        let uses = 1.0 + self.uses(used, now).exp2();
        Use { last: now.max(used.last), uses: uses.min(self.tuning.most) }
    }

    fn present(&self, slot: Slot) -> bool {
        self.slots.peek(slot).is_some_and(|entry| entry.at != ABSENT)
    }

    /// Draws a sample, adds it to the pool, and puts the worst first.
    fn sample(&mut self, now: u32) {
        for _ in 0..SAMPLE {
            let slot = self.live[self.random.usize(..self.live.len())];
            if !self.pool.contains(&slot) {
                self.pool.push(slot);
            }
        }
        let mut pool = std::mem::take(&mut self.pool);
        pool.sort_by_cached_key(|slot| Ordered(self.worth(*slot, now)));
        self.pool = pool;
    }

    /// Takes note of how long a victim that had been used more than once was idle. Were it less than
    /// what τ says, uses would count for too long, and the other way round. Victims used once do not
    /// count: a scan that pushes itself out would make everything else look old.
    fn learn(&mut self, victim: Slot, now: u32) {
        let used = Use::unpack(self.slots[victim].used.load(Relaxed));
        if used.uses >= PROVEN {
            let idle = now.saturating_sub(used.last) as f32;
            self.tau = (self.tau + (idle - self.tau) / VICTIMS).max(SHORTEST_TAU);
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
            (Some(history), _) => Use { last: history.last_used, uses: decode(history.frequency) },
            (None, Some(ghost)) => {
                self.again(Use { last: ghost.last_used, uses: decode(ghost.frequency) }, now)
            }
            (None, None) => Use { last: now, uses: 1.0 },
        };
        let weight = self.weight(object);
        let at = self.live.len() as u32;
        *self.slots.reach(slot) = Entry { used: AtomicU64::new(used.pack()), weight, key, at };
        if self.live.len() == self.live.capacity() {
            self.live.reserve_exact(1 + self.live.len() / 8);
        }
        self.live.push(slot);
        self.ghost.fit(self.live.len());
    }

    fn touch(&self, slot: Slot, now: u32) {
        if let Some(entry) = self.slots.peek(slot) {
            let used = Use::unpack(entry.used.load(Relaxed));
            entry.used.store(self.again(used, now).pack(), Relaxed);
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
        self.pool.retain(|pooled| *pooled != slot);
    }

    fn victim(&mut self, now: u32, may_go: &mut dyn FnMut(Slot) -> bool) -> Option<Slot> {
        if self.live.is_empty() {
            return None;
        }
        self.sample(now);
        let found = self.pool.iter().position(|slot| may_go(*slot));
        // What may not go makes room for others.
        self.pool.drain(..found.unwrap_or(self.pool.len()));
        self.pool.truncate(POOL);
        let victim = match self.pool.first() {
            Some(slot) => *slot,
            None => self.sweep(may_go)?,
        };
        self.learn(victim, now);
        Some(victim)
    }

    fn history(&self, slot: Slot) -> History {
        self.slots.peek(slot).map_or_else(History::default, |entry| {
            let used = Use::unpack(entry.used.load(Relaxed));
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

/// A finite number, for sorting.
#[derive(PartialEq)]
struct Ordered(f32);

impl Eq for Ordered {}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}
