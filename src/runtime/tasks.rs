//! Background tasks with a name, an owner and an end.

use std::future::Future;
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
}

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
        self.tracker
            .spawn(future.instrument(tracing::debug_span!("task", name)))
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
        self.shutdown.is_cancelled()
    }

    /// Tells every task to end and waits for them, `deadline` at most.
    /// Returns how many were still running then.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.shutdown.cancel();
        self.tracker.close();
        // Elapsed is not a failure of its own: the number of stragglers says the same.
        let _ = tokio::time::timeout(deadline, self.tracker.wait()).await;
        self.tracker.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_the_obedient_and_counts_the_rest() {
        let tasks = Tasks::new();
        let obedient = tasks.clone();
        tasks.spawn("obedient", async move { obedient.draining().await });
        tasks.spawn("stubborn", std::future::pending::<()>());
        assert_eq!(tasks.drain(Duration::from_secs(1)).await, 1);
    }
}
