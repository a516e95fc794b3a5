//! Waiting longer after each failure, never in step with others.

use std::time::Duration;

/// Exponential backoff with full jitter: the n-th wait is uniform in `[base/2, base]·2ⁿ`, capped.
///
/// Jitter keeps many edges that lost the same upstream at the same instant from coming back at
/// the same instant (AWS Architecture Blog, "Exponential Backoff And Jitter").
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    base: Duration,
    cap: Duration,
}

impl Backoff {
    /// Starts at `base` and never waits longer than `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { next: base, base, cap }
    }

    /// The next wait; each call doubles the one after it.
    pub fn next_wait(&mut self) -> Duration {
        let ceiling = self.next.min(self.cap);
        self.next = (ceiling * 2).min(self.cap);
        ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Starts over, after something succeeded.
    pub fn reset(&mut self) {
        self.next = self.base;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_start_over_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<_> = (0..8).map(|_| backoff.next_wait()).collect();
        for (n, wait) in waits.iter().enumerate() {
            let ceiling = Duration::from_millis(100 * (1 << n)).min(Duration::from_secs(1));
            assert!(*wait <= ceiling && *wait >= ceiling / 2, "wait {n} is {wait:?}");
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }
}
