//! What no policy can beat, and what one that knows the future achieves.
//!
//! - [`belady`]: furthest next use goes first, and what is not used again, or later than all that is
//!   held, is not taken in. With sizes that differ this is not optimal any more (that would be
//!   NP-hard), so it is an achievable mark, not a bound.
//! - [`upper`]: a bound. An object that is to be hit must stay for the interval between two of its
//!   requests; the intervals in the cache never take more than capacity × time together. The best
//!   choice under that one constraint – the intervals of most value per byte and unit of time, the
//!   last one in part – is at least as good as any real cache, which must hold the constraint at
//!   every moment. This is PFOO-L of Berger, Beckmann and Harchol-Balter, "Practical Bounds on
//!   Optimal Caching with Variable Object Sizes" (SIGMETRICS '18): a lower bound of misses.
//! - [`infinite`]: a disk without end, which misses only what comes for the first time.

use std::collections::BinaryHeap;

use crate::simulate::Outcome;
use crate::trace::Trace;

const NEVER: u32 = u32::MAX;

/// For every request, which request is the next for the same content.
fn next_uses(trace: &Trace) -> Vec<u32> {
    let mut next = vec![NEVER; trace.requests.len()];
    let mut seen = vec![NEVER; trace.contents.len()];
    for (at, request) in trace.requests.iter().enumerate().rev() {
        next[at] = std::mem::replace(&mut seen[request.content as usize], at as u32);
    }
    next
}

/// The furthest next use goes first.
pub(crate) fn belady(trace: &Trace, capacity: u64, warm: usize) -> Outcome {
    let next = next_uses(trace);
    let mut outcome = Outcome::default();
    let mut used = 0;
    // The next use of what is held; entries of the heap that say otherwise are out of date.
    let mut held = vec![NEVER; trace.contents.len()];
    let mut furthest: BinaryHeap<(u32, u32)> = BinaryHeap::new();
    for (at, request) in trace.requests.iter().enumerate() {
        let content = request.content as usize;
        let bytes = trace.contents[content].bytes;
        let hit = held[content] != NEVER;
        if at >= warm {
            outcome.count(trace, request.content, hit);
        }
        if hit {
            used -= bytes;
        }
        held[content] = NEVER;
        if next[at] == NEVER || bytes > capacity {
            continue;
        }
        held[content] = next[at];
        used += bytes;
        furthest.push((next[at], request.content));
        while used > capacity {
            let (when, victim) = furthest.pop().expect("what is held is in the heap");
            if held[victim as usize] == when {
                held[victim as usize] = NEVER;
                used -= trace.contents[victim as usize].bytes;
            }
        }
    }
    outcome
}

/// What is to be maximised.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value {
    Objects,
    Bytes,
    Cost,
}

/// Bounds for several capacities: the most value of hits after the warm-up.
pub(crate) fn upper(trace: &Trace, capacities: &[u64], warm: usize, value: Value) -> Vec<f64> {
    let next = next_uses(trace);
    // (value, bytes × requests it has to stay for), of the part after the warm-up.
    let mut intervals: Vec<(f64, f64)> = Vec::new();
    for (at, request) in trace.requests.iter().enumerate() {
        if next[at] == NEVER || (next[at] as usize) < warm {
            continue;
        }
        let content = &trace.contents[request.content as usize];
        let worth = match value {
            Value::Objects => 1.0,
            Value::Bytes => content.bytes as f64,
            Value::Cost => f64::from(content.cost),
        };
        let stay = next[at] as usize - at.max(warm);
        intervals.push((worth, content.bytes as f64 * stay as f64));
    }
    intervals.sort_unstable_by(|a, b| (b.0 * a.1).total_cmp(&(a.0 * b.1)));
    let window = (trace.requests.len() - warm) as f64;
    capacities
        .iter()
        .map(|capacity| {
            let mut left = *capacity as f64 * window;
            let mut sum = 0.0;
            for (worth, space) in &intervals {
                if *space > left {
                    sum += worth * left / space;
                    break;
                }
                left -= space;
                sum += worth;
            }
            sum
        })
        .collect()
}

/// A disk without end.
pub(crate) fn infinite(trace: &Trace, warm: usize) -> Outcome {
    let mut seen = vec![false; trace.contents.len()];
    let mut outcome = Outcome::default();
    for (at, request) in trace.requests.iter().enumerate() {
        let hit = std::mem::replace(&mut seen[request.content as usize], true);
        if at >= warm {
            outcome.count(trace, request.content, hit);
        }
    }
    outcome
}
