//! Which blob goes when the disk is full: the policies, and nothing but the policies.
//!
//! Pure code: no I/O, no lock, no clock. Time comes in as whole seconds, what happened comes in as
//! calls, and the answer is a slot; what owns the files, and the index that gives slots out, are
//! elsewhere. `benches/eviction` runs the same code over synthetic traces and says which is best.
//!
//! The hot path is [`Policy::touch`]: relaxed loads and stores of the entry's own words, under the
//! index's read lock. No policy moves a list there; what order a hit deserves is worked
//! out when something has to go. Two hits at the same instant may lose one of the two: an estimate
//! does not mind, and a read-modify-write would.
//!
//! - [`Lru`]: exact to the second, by lazy promotion.
//! - [`Sieve`], [`S3Fifo`]: the queues of their papers, with sizes in bytes.
//! - [`Worth`]: what it would cost to fetch again, how often that is expected, for how many bytes.

mod ghost;
mod lists;
mod lru;
mod s3_fifo;
mod sieve;
mod slots;
mod worth;

#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::str::FromStr;

pub use lru::Lru;
pub use s3_fifo::S3Fifo;
pub use sieve::Sieve;
pub use worth::{Tuning, Worth};

/// An entry of the index; slots are small numbers and are used again.
pub type Slot = u32;

/// Objects of at most this many bytes count as [`Class::Metadata`].
pub const METADATA_BYTES: u64 = 64 << 10;

/// How many entries that may not go one call of [`Policy::victim`] looks at. A call that finds none
/// continues where the one before stopped, so that a few free entries among many pinned ones are
/// found by asking again.
pub const TRIES: usize = 128;

/// What kind of object it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Manifests, configs, and whatever is as small as they are ([`METADATA_BYTES`]).
    Metadata,
    /// Everything else.
    Layer,
}

/// What a policy is told about an object.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Object {
    /// The first eight bytes of its digest: recognises it when it comes back.
    pub key: u64,
    /// Its size on disk.
    pub bytes: u64,
    /// Its kind.
    pub class: Class,
    /// Seconds of the upstream to fetch it again: latency, bytes by speed, and the quota it takes.
    pub cost: f32,
    /// How many cached images need it.
    pub dependents: u16,
}

/// What is known of an entry's use; outlives a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct History {
    /// How often it was used, in the policy's own scale; larger is more often.
    pub frequency: u8,
    /// When it was used last, in the seconds of `now`.
    pub last_used: u32,
}

/// Chooses what goes.
pub trait Policy: Debug + Send + Sync {
    /// Takes an object in: one that was just stored (`history` is `None`: it is used now), or one
    /// found at start. Those may come in any order; the queues keep the order of arrival among
    /// them, so they do better when what was used last comes last.
    fn insert(&mut self, slot: Slot, object: &Object, history: Option<History>, now: u32);
    /// Notes a hit. Never blocks; a slot that is not taken is ignored.
    fn touch(&self, slot: Slot, now: u32);
    /// Takes note that cost, dependents or class have changed.
    fn update(&mut self, slot: Slot, object: &Object);
    /// Lets go of an entry, whether chosen by [`Self::victim`] or not.
    fn remove(&mut self, slot: Slot);
    /// The entry to go next among those that `may_go`; it stays until removed. O(1) amortised, and
    /// `None` after [`TRIES`] refusals.
    fn victim(&mut self, now: u32, may_go: &mut dyn FnMut(Slot) -> bool) -> Option<Slot>;
    /// What to write down for the next start.
    fn history(&self, slot: Slot) -> History;
    /// Memory per entry, ghosts included.
    fn bytes_per_slot(&self) -> usize;
}

/// The policies by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// Least recently used.
    Lru,
    /// A queue and a hand (Zhang et al., NSDI '24).
    Sieve,
    /// Two queues and a ghost (Yang et al., SOSP '23).
    S3Fifo,
    /// Expected use × cost ÷ bytes: the winner of `benches/eviction`.
    #[default]
    Worth,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Lru, Self::Sieve, Self::S3Fifo, Self::Worth];

    /// The name in a configuration file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Sieve => "sieve",
            Self::S3Fifo => "s3-fifo",
            Self::Worth => "worth",
        }
    }

    /// An empty policy.
    pub fn policy(self) -> Box<dyn Policy> {
        match self {
            Self::Lru => Box::new(Lru::new()),
            Self::Sieve => Box::new(Sieve::new()),
            Self::S3Fifo => Box::new(S3Fifo::new()),
            Self::Worth => Box::new(Worth::new(Tuning::default())),
        }
    }
}

impl FromStr for Algorithm {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name).ok_or(())
    }
}
