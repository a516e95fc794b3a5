//! What one connection is busy with, and for how long it has been idle.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// The requests of one connection that are being answered.
#[derive(Debug)]
pub(super) struct Requests {
    // A mutex: the connection's own tasks alone meet here, for a few instructions per request.
    state: Mutex<State>,
    /// Told when the first one comes; kept until somebody waits.
    asked: Notify,
}

#[derive(Debug)]
struct State {
    open: usize,
    /// When the last one ended; of no meaning while one is open.
    idle_since: Instant,
    /// How many there have been.
    begun: u64,
}

impl Requests {
    pub(super) fn new() -> Self {
        let state = State { open: 0, idle_since: Instant::now(), begun: 0 };
        Self { state: Mutex::new(state), asked: Notify::new() }
    }

    /// Counts one in, until what is returned and all its clones are dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Open {
        let mut state = self.state();
        state.open += 1;
        state.begun += 1;
        if state.begun == 1 {
            self.asked.notify_one();
        }
        Open(Arc::clone(self))
    }

    /// Counts one that was answered at once, when it came.
    pub(super) fn passed(&self, came: Instant) {
        let mut state = self.state();
        state.begun += 1;
        state.idle_since = came;
        if state.begun == 1 {
            self.asked.notify_one();
        }
    }

    /// How many there have been, if none is open.
    pub(super) fn answered(&self) -> Option<u64> {
        let state = self.state();
        (state.open == 0).then_some(state.begun)
    }

    /// How many are open.
    pub(super) fn open(&self) -> usize {
        self.state().open
    }

    /// Resolves when there has been one. Cancel safe; for one waiter.
    pub(super) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Resolves when none has been open for this long. Cancel safe. It looks again when that may be, so that a request
    /// sets no timer.
    pub(super) async fn idle_for(&self, limit: Duration) {
        loop {
            let now = Instant::now();
            let until = {
                let state = self.state();
                if state.open == 0 { state.idle_since + limit } else { now + limit }
            };
            if until <= now {
                return;
            }
            sleep_until(until).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Open(Arc<Requests>);

impl Clone for Open {
    fn clone(&self) -> Self {
        self.0.state().open += 1;
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.open -= 1;
        if state.open == 0 {
            state.idle_since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_only_while_nothing_is_answered() {
        let requests = Arc::new(Requests::new());
        let limit = Duration::from_mins(1);
        let open = requests.begin();
        let frame = open.clone();
        drop(open);
        assert!(tokio::time::timeout(limit * 3, requests.idle_for(limit)).await.is_err());
        drop(frame);
        let began = Instant::now();
        requests.idle_for(limit).await;
        assert!(began.elapsed() >= limit && began.elapsed() < limit * 2);
    }
}
