//! When an endpoint is left alone, and for how long.
//!
//! A host that swallows packets costs every request its whole deadline, so one such time-out is enough: requests
//! then fail at once with the same error for a growing period, after which one probe goes through and decides.
//!
//! What fails fast (refused, reset, no such name, TLS, 5xx) is left alone after several failures in a row, and
//! only where there is another endpoint to ask: a dead primary then costs the mirror's clients nothing, and is
//! probed often enough to be the primary again within seconds. A lone endpoint is asked every time: its failure is
//! the honest answer, and the next request the best probe.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::time::Instant;

use super::error::{Error, Place};

/// How long an endpoint is left alone at first, and at most by what its probes cost: a deadline, or next to nothing.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE_OF_FAST: Duration = Duration::from_secs(5);

/// Fast failures in a row that mean more than a hiccup; one call makes `attempts` of them, three by default.
const FAILURES_IN_A_ROW: u32 = 5;

/// The memory of one endpoint.
#[derive(Debug)]
pub(super) struct Health {
    place: Place,
    /// Whether the upstream has other endpoints.
    has_alternatives: bool,
    /// 1 while it is asked, 0 while it is left alone.
    gauge: IntGauge,
    /// Held for a few instructions, never across an await.
    circuit: Mutex<Circuit>,
}

#[derive(Debug, Clone)]
enum Circuit {
    Closed { failures: u32 },
    Open { until: Instant, pause: Duration, trouble: Error },
    Probing { pause: Duration, trouble: Error },
}

/// How a request went, as far as it says something about its endpoint.
#[derive(Debug)]
pub(super) enum Conduct {
    /// It answered, well or badly.
    Answered,
    /// It could not be asked, or says that it cannot answer.
    Failed(Error),
    /// It let its deadline pass.
    Silent(Error),
}

impl Health {
    pub(super) fn new(place: Place, has_alternatives: bool, gauge: IntGauge) -> Self {
        gauge.set(1);
        Self { place, has_alternatives, gauge, circuit: Mutex::new(Circuit::Closed { failures: 0 }) }
    }

    /// Lets a request through, or says why not. The pass is told how it went.
    pub(super) fn enter(&self) -> Result<Pass<'_>, Error> {
        let mut circuit = self.lock();
        let is_probe = match &*circuit {
            Circuit::Closed { .. } => false,
            Circuit::Open { until, trouble, .. } if Instant::now() < *until => {
                return Err(repeated(trouble, *until));
            }
            Circuit::Open { pause, trouble, .. } => {
                *circuit = Circuit::Probing { pause: *pause, trouble: trouble.clone() };
                true
            }
            Circuit::Probing { trouble, .. } => return Err(repeated(trouble, Instant::now())),
        };
        Ok(Pass { health: self, settled: false, is_probe })
    }

    fn answered(&self) {
        let mut circuit = self.lock();
        let was_left_alone = !matches!(*circuit, Circuit::Closed { .. });
        *circuit = Circuit::Closed { failures: 0 };
        drop(circuit);
        if was_left_alone {
            self.gauge.set(1);
            tracing::info!(upstream = %self.place.upstream, endpoint = %self.place.endpoint, "an endpoint answers again");
        }
    }

    fn troubled(&self, trouble: Error, is_probe: bool, is_silent: bool) {
        let mut circuit = self.lock();
        let longest = if is_silent { LONGEST_PAUSE } else { LONGEST_PAUSE_OF_FAST };
        let (pause, is_new) = match &mut *circuit {
            Circuit::Closed { failures } => {
                *failures += 1;
                if !is_silent && (*failures < FAILURES_IN_A_ROW || !self.has_alternatives) {
                    return;
                }
                (FIRST_PAUSE, true)
            }
            Circuit::Probing { pause, .. } if is_probe => ((*pause * 2).min(longest), false),
            // Requests that were on their way already say nothing new.
            Circuit::Open { .. } | Circuit::Probing { .. } => return,
        };
        let until = Instant::now() + pause;
        let (upstream, endpoint) = (&self.place.upstream, &self.place.endpoint);
        if is_new {
            self.gauge.set(0);
            tracing::warn!(%upstream, %endpoint, error = %trouble, "an endpoint is left alone for now");
        }
        *circuit = Circuit::Open { until, pause, trouble };
    }

    fn lock(&self) -> MutexGuard<'_, Circuit> {
        // Every critical section leaves a whole state behind, so a panicked holder does no harm.
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same trouble again, for one who need not come back before `until`.
fn repeated(trouble: &Error, until: Instant) -> Error {
    match trouble.clone() {
        Error::Unreachable { at, reason, .. } => {
            let left = until.saturating_duration_since(Instant::now());
            Error::Unreachable { at, reason, retry_after: Some(left) }
        }
        other => other,
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
    /// How it went.
    pub(super) fn settle(mut self, conduct: Conduct) {
        self.settled = true;
        match conduct {
            Conduct::Answered => self.health.answered(),
            Conduct::Failed(error) => self.health.troubled(error, self.is_probe, false),
            Conduct::Silent(error) => self.health.troubled(error, self.is_probe, true),
        }
    }
}

impl Drop for Pass<'_> {
    /// A probe whose caller has left decides nothing: the next one may try.
    fn drop(&mut self) {
        if self.settled || !self.is_probe {
            return;
        }
        let mut circuit = self.health.lock();
        if let Circuit::Probing { pause, trouble } = &*circuit {
            *circuit = Circuit::Open { until: Instant::now(), pause: *pause, trouble: trouble.clone() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::error::Stage;
    use tokio::time::advance;

    fn place() -> Place {
        Place {
            upstream: "x.example".parse().unwrap(),
            endpoint: "https://registry.example".parse().unwrap(),
        }
    }

    fn health(has_alternatives: bool) -> Health {
        Health::new(place(), has_alternatives, IntGauge::new("up", "up").unwrap())
    }

    fn silent() -> Conduct {
        let after = Duration::from_secs(5);
        Conduct::Silent(Error::TimedOut { at: place(), stage: Stage::Connect, after })
    }

    fn refused() -> Conduct {
        Conduct::Failed(Error::Unreachable { at: place(), reason: "refused".to_owned(), retry_after: None })
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_endpoint_is_left_alone_for_a_growing_period_with_one_probe_after_each() {
        let health = health(false);
        health.enter().unwrap().settle(silent());
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            advance(Duration::from_millis(seconds * 1000 - 1)).await;
            assert_eq!(health.enter().unwrap_err().kind(), "timed_out", "{seconds} s");
            advance(Duration::from_millis(1)).await;
            let probe = health.enter().unwrap();
            assert!(health.enter().is_err(), "only one probe at a time");
            probe.settle(silent());
        }
        advance(LONGEST_PAUSE).await;
        health.enter().unwrap().settle(Conduct::Answered);
        health.enter().unwrap().settle(silent());
        advance(FIRST_PAUSE).await;
        assert!(health.enter().is_ok(), "an answer makes it start over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_primary_that_fails_fast_is_left_alone_after_several_failures_and_probed_every_few_seconds() {
        let health = health(true);
        for _ in 1..FAILURES_IN_A_ROW {
            health.enter().unwrap().settle(refused());
        }
        health.enter().unwrap().settle(Conduct::Answered);
        for _ in 0..FAILURES_IN_A_ROW {
            assert_eq!(health.gauge.get(), 1);
            health.enter().unwrap().settle(refused());
        }
        assert_eq!(health.gauge.get(), 0);
        for seconds in [1, 2, 4, 5, 5] {
            assert_eq!(health.enter().unwrap_err().kind(), "unreachable");
            advance(Duration::from_secs(seconds)).await;
            health.enter().unwrap().settle(refused());
        }
        advance(LONGEST_PAUSE_OF_FAST).await;
        health.enter().unwrap().settle(Conduct::Answered);
        assert_eq!(health.gauge.get(), 1);
        assert!(health.enter().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lone_endpoint_that_fails_fast_is_always_asked() {
        let health = health(false);
        for _ in 0..100 {
            health.enter().unwrap().settle(refused());
        }
        assert!(health.enter().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_whose_caller_left_leaves_the_probe_to_the_next() {
        let health = health(false);
        health.enter().unwrap().settle(silent());
        advance(FIRST_PAUSE).await;
        drop(health.enter().unwrap());
        assert!(health.enter().is_ok());
    }
}
