//! What an endpoint's silence is remembered for.
//!
//! A host that swallows packets costs every request its whole deadline. After one such time-out the endpoint
//! is left alone for a growing period: requests fail at once with the same error, then one probe goes through
//! and decides. Refused connections and errors are answers, fast ones, and need no such memory.
//!
//! A 429 with `Retry-After` is remembered too, for manifests only: that is what registries count.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::error::Stage;

/// How long a silent endpoint is left alone at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The memory of one endpoint.
#[derive(Debug)]
pub(super) struct Health {
    /// Held for a few instructions, never across an await.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    circuit: Circuit,
    quiet_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum Circuit {
    Closed,
    Open { until: Instant, pause: Duration, silence: Silence },
    Probing { pause: Duration, silence: Silence },
}

/// The time-out that is repeated while an endpoint is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Silence {
    pub(super) stage: Stage,
    pub(super) after: Duration,
}

impl Health {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State { circuit: Circuit::Closed, quiet_until: None }) }
    }

    /// Lets a request through, or says why not. The pass is told how it went.
    pub(super) fn enter(&self) -> Result<Pass<'_>, Silence> {
        let mut state = self.lock();
        match state.circuit {
            Circuit::Closed => Ok(Pass { health: self, settled: false, is_probe: false }),
            Circuit::Open { until, silence, .. } if Instant::now() < until => Err(silence),
            Circuit::Open { pause, silence, .. } => {
                state.circuit = Circuit::Probing { pause, silence };
                Ok(Pass { health: self, settled: false, is_probe: true })
            }
            Circuit::Probing { silence, .. } => Err(silence),
        }
    }

    /// How long manifests must not be asked for.
    pub(super) fn quiet_for(&self) -> Option<Duration> {
        let until = self.lock().quiet_until?;
        until.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())
    }

    /// Remembers a 429.
    pub(super) fn keep_quiet(&self, wait: Duration) {
        self.lock().quiet_until = Some(Instant::now() + wait);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves a whole state behind, so a panicked holder does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request that was let through.
#[derive(Debug)]
pub(super) struct Pass<'h> {
    health: &'h Health,
    settled: bool,
    is_probe: bool,
}

impl Pass<'_> {
    /// It answered, well or badly.
    pub(super) fn answered(mut self) {
        self.settled = true;
        self.health.lock().circuit = Circuit::Closed;
    }

    /// It was silent.
    pub(super) fn was_silent(mut self, silence: Silence) {
        self.settled = true;
        let mut state = self.health.lock();
        let pause = match state.circuit {
            Circuit::Closed => FIRST_PAUSE,
            Circuit::Probing { pause, .. } if self.is_probe => (pause * 2).min(LONGEST_PAUSE),
            // Requests that were on their way already say nothing new.
            Circuit::Open { .. } | Circuit::Probing { .. } => return,
        };
        state.circuit = Circuit::Open { until: Instant::now() + pause, pause, silence };
    }
}

impl Drop for Pass<'_> {
    /// A probe whose caller has left decides nothing: the next one may try.
    fn drop(&mut self) {
        if self.settled || !self.is_probe {
            return;
        }
        let mut state = self.health.lock();
        if let Circuit::Probing { pause, silence } = state.circuit {
            state.circuit = Circuit::Open { until: Instant::now(), pause, silence };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const SILENCE: Silence = Silence { stage: Stage::Connect, after: Duration::from_secs(5) };

    #[tokio::test(start_paused = true)]
    async fn a_silent_endpoint_is_left_alone_for_a_growing_period_with_one_probe_after_each() {
        let health = Health::new();
        health.enter().unwrap().was_silent(SILENCE);
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            advance(Duration::from_millis(seconds * 1000 - 1)).await;
            assert_eq!(health.enter().unwrap_err(), SILENCE, "{seconds} s");
            advance(Duration::from_millis(1)).await;
            let probe = health.enter().unwrap();
            assert!(health.enter().is_err(), "only one probe at a time");
            probe.was_silent(SILENCE);
        }
        advance(LONGEST_PAUSE).await;
        health.enter().unwrap().answered();
        health.enter().unwrap().was_silent(SILENCE);
        advance(FIRST_PAUSE).await;
        assert!(health.enter().is_ok(), "an answer makes it start over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_whose_caller_left_leaves_the_probe_to_the_next() {
        let health = Health::new();
        health.enter().unwrap().was_silent(SILENCE);
        advance(FIRST_PAUSE).await;
        drop(health.enter().unwrap());
        assert!(health.enter().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_limit_ends_by_itself() {
        let health = Health::new();
        assert_eq!(health.quiet_for(), None);
        health.keep_quiet(Duration::from_secs(10));
        advance(Duration::from_secs(4)).await;
        assert_eq!(health.quiet_for(), Some(Duration::from_secs(6)));
        advance(Duration::from_secs(6)).await;
        assert_eq!(health.quiet_for(), None);
    }
}
