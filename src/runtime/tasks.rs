//! Background tasks with a name, an owner and an end.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// The tasks of one process. Every task is spawned here, so that a drain can wait for all of them.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    shutdown: CancellationToken,
    /// That `shutdown` is cancelled. The token tells under a lock, and this is asked for every hot request.
    is_draining: Arc<AtomicBool>,
    abort: CancellationToken,
    /// A flag of its own, since whoever lost a vital task may be in no state to say so.
    lost: Arc<AtomicBool>,
}

/// How long tasks have to put their things in order once a drain has run out of time.
const ABORT_GRACE: Duration = Duration::from_secs(2);

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `future` as a task whose log lines carry its `name`.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(future.instrument(tracing::debug_span!("task", name)))
    }

    /// Runs a task without which the process is of no use, such as an accept loop. If it ends before
    /// the drain, be it by a panic, [`Tasks::has_lost_a_vital_one`] says so.
    pub fn spawn_vital<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let watch = Vital { name, tasks: self.clone() };
        self.spawn(name, async move {
            let _watch = watch;
            future.await
        })
    }

    /// Whether a vital task has ended although nobody asked it to.
    pub fn has_lost_a_vital_one(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Runs blocking work on tokio's blocking pool, counted like any other task.
    pub fn spawn_blocking<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> JoinHandle<R> {
        self.tracker.spawn_blocking(work)
    }

    /// Resolves when the process begins to drain; long-lived tasks end then. Cancel safe.
    pub async fn draining(&self) {
        self.shutdown.cancelled().await;
    }

    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Resolves when the drain has run out of time: what cannot end now is lost. Cancel safe.
    pub async fn aborting(&self) {
        self.abort.cancelled().await;
    }

    /// Tells every task to end and waits for them, `deadline` at most; then tells them to drop what
    /// they do and waits two seconds more. Returns how many were still running then.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.is_draining.store(true, Ordering::Relaxed);
        self.shutdown.cancel();
        self.tracker.close();
        if tokio::time::timeout(deadline, self.tracker.wait()).await.is_err() {
            self.abort.cancel();
            // Elapsed is not a failure of its own: the number of stragglers says the same.
            let _ = tokio::time::timeout(ABORT_GRACE, self.tracker.wait()).await;
        }
        self.tracker.len()
    }
}

/// Dropped with its task, however that ends.
struct Vital {
    name: &'static str,
    tasks: Tasks,
}

impl Drop for Vital {
    fn drop(&mut self) {
        if !self.tasks.is_draining() {
            tracing::error!(task = self.name, "a task that must not end has ended");
            self.tasks.lost.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_vital_task_is_missed_when_it_ends_too_early_and_only_then() {
        let orderly = Tasks::new();
        let until = orderly.clone();
        orderly.spawn_vital("orderly", async move { until.draining().await });
        assert!(!orderly.has_lost_a_vital_one());
        orderly.drain(Duration::from_secs(1)).await;
        assert!(!orderly.has_lost_a_vital_one());
        let panicking = Tasks::new();
        assert!(panicking.spawn_vital("panicking", async { panic!("for the test") }).await.is_err());
        assert!(panicking.has_lost_a_vital_one());
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_the_obedient_and_counts_the_rest() {
        let tasks = Tasks::new();
        let obedient = tasks.clone();
        tasks.spawn("obedient", async move { obedient.draining().await });
        let late = tasks.clone();
        tasks.spawn("late", async move { late.aborting().await });
        tasks.spawn("stubborn", std::future::pending::<()>());
        assert_eq!(tasks.drain(Duration::from_secs(1)).await, 1);
    }
}
