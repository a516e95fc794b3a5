//! The open streams of one connection, and the executor that runs them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::delivery::Delivery;
use crate::frontend::requests::{Open, Requests};
use crate::runtime::Tasks;

/// Requests taken back before their answer has begun: more than this many, and more than half of all, ends the
/// connection. It is Envoy's rule: clients that change their mind have other requests too.
const PREMATURE_RESETS: u64 = 100;

tokio::task_local! {
    /// The stream that a task runs. hyper hands a stream's future to the executor and the request to the service, with
    /// nothing that says that they belong together, but it polls the one within the other.
    pub(super) static STREAM: Arc<StreamState>;
}

/// What is known of one stream.
#[derive(Debug, Default)]
pub(super) struct StreamState {
    pub(super) delivery: Arc<Delivery>,
    /// Whether its answer has begun.
    pub(super) is_answered: AtomicBool,
}

/// The streams of one connection.
#[derive(Debug)]
pub(super) struct Streams {
    tasks: Tasks,
    write_timeout: Duration,
    pub(super) requests: Arc<Requests>,
    // Short sections of arithmetic, never across an await.
    counts: Mutex<Counts>,
    flooded: Notify,
}

#[derive(Debug, Default)]
struct Counts {
    all: u64,
    premature: u64,
}

impl Streams {
    pub(super) fn new(tasks: Tasks, write_timeout: Duration) -> Self {
        let requests = Arc::new(Requests::new());
        Self { tasks, write_timeout, requests, counts: Mutex::default(), flooded: Notify::new() }
    }

    /// Resolves when the client opens streams only to reset them. Cancel safe.
    pub(super) async fn flooded(&self) {
        self.flooded.notified().await;
    }

    fn begin(&self) -> Open {
        self.counts().all += 1;
        self.requests.begin()
    }

    fn end(&self, was_answered: bool) {
        let mut counts = self.counts();
        counts.premature += u64::from(!was_answered);
        if counts.premature > PREMATURE_RESETS && counts.premature * 2 > counts.all {
            self.flooded.notify_one();
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a stream out, however it ends.
struct Running {
    streams: Arc<Streams>,
    state: Arc<StreamState>,
    _open: Open,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.streams.end(self.state.is_answered.load(Ordering::Relaxed));
    }
}

/// Runs the streams of one connection as tasks. One whose client accepts nothing in time is dropped, by which hyper
/// and h2 reset it; the others go on.
#[derive(Clone)]
pub(super) struct Executor(pub(super) Arc<Streams>);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let streams = Arc::clone(&self.0);
        let running = Running { _open: streams.begin(), streams, state: Arc::default() };
        self.0.tasks.spawn("stream", async move {
            let (state, limit) = (&running.state, running.streams.write_timeout);
            tokio::select! {
                biased;
                () = STREAM.scope(Arc::clone(state), stream) => {}
                () = state.delivery.stalled(limit) => tracing::debug!("an HTTP/2 client accepts nothing of an answer"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_takes_everything_back_floods_and_one_that_waits_does_not() {
        let streams = |answered: &dyn Fn(u64) -> bool| {
            let streams = Streams::new(Tasks::new(), Duration::MAX);
            for request in 0..1000 {
                let _open = streams.begin();
                streams.end(answered(request));
            }
            streams
        };
        let soon = Duration::from_millis(10);
        let patient = streams(&|request| request % 2 == 0);
        assert!(tokio::time::timeout(soon, patient.flooded()).await.is_err());
        let rapid = streams(&|_| false);
        assert!(tokio::time::timeout(soon, rapid.flooded()).await.is_ok());
    }
}
