//! What a cache of a given size makes of a trace.

use clawhub_edge::store::eviction::{Object, Policy, Slot};

use crate::trace::Trace;

const ABSENT: Slot = Slot::MAX;

/// What was asked for after the warm-up, and what of it was a hit.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Outcome {
    pub(crate) requests: f64,
    pub(crate) hits: f64,
    pub(crate) bytes: f64,
    pub(crate) hit_bytes: f64,
    /// Seconds of the upstreams that the misses took.
    pub(crate) cost: f64,
}

impl Outcome {
    pub(crate) fn count(&mut self, trace: &Trace, content: u32, hit: bool) {
        let content = &trace.contents[content as usize];
        self.requests += 1.0;
        self.bytes += content.bytes as f64;
        if hit {
            self.hits += 1.0;
            self.hit_bytes += content.bytes as f64;
        } else {
            self.cost += f64::from(content.cost);
        }
    }

    pub(crate) fn object_ratio(&self) -> f64 {
        self.hits / self.requests
    }

    pub(crate) fn byte_ratio(&self) -> f64 {
        self.hit_bytes / self.bytes
    }
}

/// The cache in front of a policy: what is where, and how full it is.
struct Cache<'a> {
    trace: &'a Trace,
    capacity: u64,
    used: u64,
    /// Content by slot, and slot by content.
    contents: Vec<u32>,
    slots: Vec<Slot>,
    free: Vec<Slot>,
    dependents: Vec<u16>,
}

/// Runs the requests; those before `warm` fill the cache and are not counted.
pub(crate) fn run(trace: &Trace, capacity: u64, policy: &mut dyn Policy, warm: usize) -> Outcome {
    let mut cache = Cache {
        trace,
        capacity,
        used: 0,
        contents: Vec::new(),
        slots: vec![ABSENT; trace.contents.len()],
        free: Vec::new(),
        dependents: vec![0; trace.contents.len()],
    };
    let mut outcome = Outcome::default();
    for (at, request) in trace.requests.iter().enumerate() {
        let slot = cache.slots[request.content as usize];
        let hit = slot != ABSENT;
        if hit {
            policy.touch(slot, request.time);
        } else {
            cache.fill(policy, request.content, request.time);
        }
        if at >= warm {
            outcome.count(trace, request.content, hit);
        }
    }
    outcome
}

impl Cache<'_> {
    fn fill(&mut self, policy: &mut dyn Policy, content: u32, now: u32) {
        let bytes = self.trace.contents[content as usize].bytes;
        if bytes > self.capacity {
            return;
        }
        while self.used + bytes > self.capacity {
            let victim = policy.victim(now, &mut |_| true).expect("nothing is pinned, so something may go");
            policy.remove(victim);
            self.evict(policy, victim);
        }
        let slot = self.free.pop().unwrap_or(self.contents.len() as Slot);
        if slot as usize == self.contents.len() {
            self.contents.push(content);
        }
        self.contents[slot as usize] = content;
        self.slots[content as usize] = slot;
        self.used += bytes;
        assert!(self.used <= self.capacity, "the cache keeps to its size");
        policy.insert(slot, &self.object(content), None, now);
        self.depend(policy, content, 1);
    }

    fn evict(&mut self, policy: &mut dyn Policy, slot: Slot) {
        let content = self.contents[slot as usize];
        self.slots[content as usize] = ABSENT;
        self.free.push(slot);
        self.used -= self.trace.contents[content as usize].bytes;
        self.depend(policy, content, -1);
    }

    /// A manifest came or left: what it needs is needed by one image more or less.
    fn depend(&mut self, policy: &mut dyn Policy, manifest: u32, change: i16) {
        for need in &self.trace.needs[manifest as usize] {
            let dependents = &mut self.dependents[*need as usize];
            *dependents = dependents.saturating_add_signed(change);
            let slot = self.slots[*need as usize];
            if slot != ABSENT {
                policy.update(slot, &self.object(*need));
            }
        }
    }

    fn object(&self, content: u32) -> Object {
        let dependents = self.dependents[content as usize];
        let content = &self.trace.contents[content as usize];
        Object {
            key: content.key,
            bytes: content.bytes,
            class: content.class,
            cost: content.cost,
            dependents,
        }
    }
}
