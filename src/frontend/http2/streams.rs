//! The open streams of one connection, and the executor that runs them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::delivery::Delivery;
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
    // Short sections of arithmetic, never across an await.
    counts: Mutex<Counts>,
    flooded: Notify,
}

#[derive(Debug)]
struct Counts {
    open: usize,
    all: u64,
    premature: u64,
    /// When the last stream ended; of no meaning while one is open.
    idle_since: Instant,
}

impl Streams {
    pub(super) fn new(tasks: Tasks, write_timeout: Duration) -> Self {
        let counts = Counts { open: 0, all: 0, premature: 0, idle_since: Instant::now() };
        Self { tasks, write_timeout, counts: Mutex::new(counts), flooded: Notify::new() }
    }

    /// How many streams are open.
    pub(super) fn open(&self) -> usize {
        self.counts().open
    }

    /// Resolves when no stream has been open for this long. Cancel safe.
    pub(super) async fn idle_for(&self, limit: Duration) {
        loop {
            let until = {
                let counts = self.counts();
                if counts.open == 0 { counts.idle_since + limit } else { Instant::now() + limit }
            };
            sleep_until(until).await;
            let counts = self.counts();
            if counts.open == 0 && counts.idle_since + limit <= Instant::now() {
                return;
            }
        }
    }

    /// Resolves when the client opens streams only to reset them. Cancel safe.
    pub(super) async fn flooded(&self) {
        self.flooded.notified().await;
    }

    fn begin(&self) {
        let mut counts = self.counts();
        counts.open += 1;
        counts.all += 1;
    }

    fn end(&self, was_answered: bool) {
        let mut counts = self.counts();
        counts.open -= 1;
        counts.idle_since = Instant::now();
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
struct Open {
    streams: Arc<Streams>,
    state: Arc<StreamState>,
}

impl Drop for Open {
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
        let state = Arc::new(StreamState::default());
        streams.begin();
        let open = Open { streams, state };
        self.0.tasks.spawn("stream", async move {
            let (state, limit) = (&open.state, open.streams.write_timeout);
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
                streams.begin();
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

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_only_without_streams() {
        let streams = Streams::new(Tasks::new(), Duration::MAX);
        let limit = Duration::from_mins(1);
        streams.begin();
        assert!(tokio::time::timeout(limit * 3, streams.idle_for(limit)).await.is_err());
        streams.end(true);
        let began = Instant::now();
        streams.idle_for(limit).await;
        assert!(began.elapsed() >= limit && began.elapsed() < limit * 2);
    }
}
