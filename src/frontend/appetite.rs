//! How much the kernel may hold for a client that is sent a file.

use std::time::Duration;

use tokio::time::Instant;

use super::bind::UNSENT;

/// The most that the kernel holds for a fast client beyond what is on its way, so that each time there is room again, there
/// is much. Beside 256 KiB, hits of 64 MiB take 0.92 of the machine's CPU with 1 MiB and 0.88 with 2 MiB (64 connections).
pub(super) const MOST_UNSENT: u32 = 4 << 20;

/// How fast a client takes what is sent, and so how much the kernel may hold for it beyond what is on its way.
pub(super) struct Appetite {
    allowed: u32,
    /// How much it has taken since when.
    taken: u64,
    since: Instant,
}

impl Appetite {
    /// What the kernel may hold is what the client takes in so much time. All clients together then hold what the machine
    /// sends in that time, and [`UNSENT`] for each.
    const AHEAD: Duration = Duration::from_millis(16);

    /// A part begins with no more, whatever the one before has shown: many are too short to show that it is too much.
    const AT_FIRST: u32 = 1 << 20;

    pub(super) fn new(now: Instant) -> Self {
        Self { allowed: UNSENT, taken: 0, since: now }
    }

    /// Begins a part, and tells what the kernel may hold where that has changed. What was waited for before was not the
    /// client.
    pub(super) fn begin(&mut self, now: Instant) -> Option<u32> {
        (self.taken, self.since) = (0, now);
        let is_much = self.allowed > Self::AT_FIRST;
        self.allowed = self.allowed.min(Self::AT_FIRST);
        is_much.then_some(self.allowed)
    }

    /// How much it takes to tell: several times what the kernel takes at once, which says nothing of the client.
    fn portion(&self) -> u64 {
        u64::from(self.allowed) * 4
    }

    /// Notes that so many bytes were taken, and tells what the kernel may hold where that has changed: twice as much or
    /// half. The clock is looked at only once for every portion.
    pub(super) fn takes(&mut self, bytes: u64, now: impl FnOnce() -> Instant) -> Option<u32> {
        self.taken += bytes;
        if self.taken < self.portion() {
            return None;
        }
        let now = now();
        let took = now.duration_since(self.since);
        let (is_faster, is_slower) = (took < Self::AHEAD * 2, took > Self::AHEAD * 6);
        (self.taken, self.since) = (0, now);
        let before = self.allowed;
        if is_faster {
            self.allowed = (self.allowed * 2).min(MOST_UNSENT);
        } else if is_slower {
            self.allowed = (self.allowed / 2).max(UNSENT);
        }
        (self.allowed != before).then_some(self.allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_holds_follows_the_speed_of_the_client() {
        let start = Instant::now();
        let mut appetite = Appetite::new(start);
        let (mut at, mut allowed) = (start, UNSENT);
        // Of bytes per second, for long enough to settle.
        let mut held = |speed: u64| {
            let pause = Duration::from_nanos((64 << 10) * 1_000_000_000 / speed);
            for _ in 0..2000 {
                at += pause;
                allowed = appetite.takes(64 << 10, || at).unwrap_or(allowed);
            }
            for _ in 0..2000 {
                at += pause;
                let next = appetite.takes(64 << 10, || at);
                assert_eq!(next, None, "it has settled");
            }
            allowed
        };
        assert_eq!(held(64 << 10), UNSENT);
        assert_eq!(held(100 << 20), 1 << 20);
        assert_eq!(held(10 << 30), MOST_UNSENT);
        assert_eq!(held(100 << 20), 2 << 20);
        assert_eq!(held(30 << 20), 512 << 10);
        assert_eq!(held(64 << 10), UNSENT);
    }

    #[test]
    fn a_wait_for_something_else_is_not_the_clients() {
        let start = Instant::now();
        let mut appetite = Appetite::new(start);
        let portion = appetite.portion();
        assert_eq!(appetite.takes(portion, || start), Some(UNSENT * 2));
        let later = start + Duration::from_mins(1);
        assert_eq!(appetite.begin(later), None);
        assert_eq!(appetite.takes(portion * 2, || later), Some(UNSENT * 4));
        assert_eq!(appetite.takes(portion * 4, || later), Some(UNSENT * 8));
        assert_eq!(appetite.begin(later), Some(UNSENT * 4), "every part has to show it again");
        assert_eq!(appetite.takes(portion * 4, || start + Duration::from_mins(2)), Some(UNSENT * 2));
    }
}
