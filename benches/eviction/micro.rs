//! Memory per entry and time per call with a million entries.

use std::hint::black_box;
use std::time::Instant;

use clawhub_edge::store::eviction::{Algorithm, Class, Object, Policy, Slot};
use fastrand::Rng;

const ENTRIES: u32 = 1_000_000;
const TOUCHES: u32 = 2_000_000;
const VICTIMS: u32 = 200_000;

/// Of one policy.
pub(crate) struct Micro {
    pub(crate) algorithm: Algorithm,
    pub(crate) bytes: usize,
    /// Nanoseconds of one call.
    pub(crate) touch: f64,
    /// Nanoseconds of a victim, its removal and the entry that takes its place.
    pub(crate) replace: f64,
    /// The longest of them, in microseconds.
    pub(crate) longest: f64,
}

/// Every policy.
pub(crate) fn measure() -> Vec<Micro> {
    Algorithm::ALL.map(of).into()
}

fn of(algorithm: Algorithm) -> Micro {
    let mut rng = Rng::with_seed(1);
    let mut policy = algorithm.policy();
    for slot in 0..ENTRIES {
        policy.insert(slot, &object(&mut rng), None, slot / 10);
    }
    let mut now = ENTRIES / 10;
    let slots: Vec<Slot> = (0..TOUCHES).map(|_| rng.u32(..ENTRIES)).collect();
    let start = Instant::now();
    for slot in &slots {
        policy.touch(black_box(*slot), now);
    }
    let touch = start.elapsed().as_nanos() as f64 / f64::from(TOUCHES);
    let objects: Vec<Object> = (0..VICTIMS).map(|_| object(&mut rng)).collect();
    let mut longest = 0;
    let start = Instant::now();
    for object in &objects {
        now += 1;
        let this = Instant::now();
        replace(&mut *policy, object, now);
        longest = longest.max(this.elapsed().as_nanos());
    }
    let replace = start.elapsed().as_nanos() as f64 / f64::from(VICTIMS);
    Micro { algorithm, bytes: policy.bytes_per_slot(), touch, replace, longest: longest as f64 / 1e3 }
}

fn replace(policy: &mut dyn Policy, object: &Object, now: u32) {
    if let Some(victim) = policy.victim(now, &mut |_| true) {
        policy.remove(victim);
        policy.insert(victim, object, None, now);
    }
}

fn object(rng: &mut Rng) -> Object {
    let bytes = rng.u64(1_000..50_000_000);
    Object { key: rng.u64(..), bytes, class: Class::Layer, cost: 0.2 + bytes as f32 / 40e6, dependents: 1 }
}
