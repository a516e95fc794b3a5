//! The real clock: a benchmark measures nothing else.

use std::time::{Duration, Instant};

#[expect(clippy::disallowed_methods, reason = "a benchmark measures the real clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "plain threads, no runtime to block")]
pub(crate) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
