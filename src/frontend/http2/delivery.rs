//! How much of a stream's answer its client has accepted.
//!
//! A frame that hyper takes from a body may wait in h2 for the client's window as long as the client likes. So the
//! frames count their own bytes as h2 writes them to the connection: a stream of which some bytes wait and none move is
//! the client's doing; one of which none wait is ours, or the upstream's.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

use super::streams::STREAM;
use crate::frontend::access_log::Record;
use crate::frontend::body::ResponseBody;
use crate::pull::{self, Chunk};

/// The bytes of one stream that are on their way to its client.
#[derive(Debug)]
pub(super) struct Delivery {
    // The stream's task and the connection's meet here, for a few instructions per frame.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    waiting: usize,
    /// When bytes last moved, or the first began to wait.
    since: Instant,
    /// The stream's task, if it waits for the last byte to leave.
    flushed: Option<Waker>,
}

impl Default for Delivery {
    fn default() -> Self {
        Self { state: Mutex::new(State { waiting: 0, since: Instant::now(), flushed: None }) }
    }
}

impl Delivery {
    /// Resolves when bytes have waited for this long and none has moved. Cancel safe.
    pub(super) async fn stalled(&self, limit: Duration) {
        loop {
            let now = Instant::now();
            let until = {
                let state = self.state();
                match (state.waiting, state.since + limit) {
                    (0, _) => now + limit,
                    (_, until) if until <= now => return,
                    (_, until) => until,
                }
            };
            sleep_until(until).await;
        }
    }

    fn handed(&self, bytes: usize) {
        let mut state = self.state();
        if state.waiting == 0 {
            state.since = Instant::now();
        }
        state.waiting += bytes;
    }

    fn left(&self, bytes: usize) {
        let mut state = self.state();
        state.waiting = state.waiting.saturating_sub(bytes);
        state.since = Instant::now();
        if state.waiting == 0
            && let Some(waker) = state.flushed.take()
        {
            drop(state);
            waker.wake();
        }
    }

    fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.waiting == 0 {
            return Poll::Ready(());
        }
        state.flushed = Some(cx.waker().clone());
        Poll::Pending
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A frame that tells how much of it has left. It copies nothing.
#[derive(Debug)]
pub(super) struct Portion {
    bytes: Bytes,
    delivery: Arc<Delivery>,
    record: Option<Arc<Record>>,
}

impl Buf for Portion {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.delivery.left(count);
        if let Some(record) = &self.record {
            record.sent(count);
        }
    }
}

/// The body of an answer on a stream, with the seat that the stream has beside its connection's.
pub(super) struct StreamBody {
    body: ResponseBody,
    delivery: Arc<Delivery>,
    _seat: Option<OwnedSemaphorePermit>,
    is_read: bool,
}

impl StreamBody {
    /// To be made on the task of the stream.
    pub(super) fn new(mut body: ResponseBody, seat: Option<OwnedSemaphorePermit>) -> Self {
        let delivery = STREAM.try_with(|stream| {
            stream.is_answered.store(true, Ordering::Relaxed);
            Arc::clone(&stream.delivery)
        });
        body.open(false);
        // Without a stream nobody watches, and nothing else changes.
        Self { body, delivery: delivery.unwrap_or_default(), _seat: seat, is_read: false }
    }
}

impl Body for StreamBody {
    type Data = Portion;
    type Error = pull::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Portion>, pull::Error>>> {
        if self.is_read {
            // The stream is over for hyper when its body is; it must not be as long as its client can stall it.
            return self.delivery.poll_flushed(cx).map(|()| None);
        }
        match self.body.poll_chunk(cx) {
            Poll::Ready(Some(Ok(Chunk::Memory(bytes)))) => {
                let (delivery, record) = (Arc::clone(&self.delivery), self.body.record());
                delivery.handed(bytes.len());
                Poll::Ready(Some(Ok(Frame::data(Portion { bytes, delivery, record }))))
            }
            // It was opened without files: h2 copies what it sends.
            Poll::Ready(Some(Ok(Chunk::File(_)))) => Poll::Ready(Some(Err(pull::Error::Internal))),
            Poll::Ready(None) => {
                self.is_read = true;
                self.poll_frame(cx)
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Small answers, which are in memory anyhow, end with their last frame; what is streamed ends when it has left.
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_bytes_that_wait_and_do_not_move_are_a_stall() {
        let delivery = Arc::new(Delivery::default());
        let limit = Duration::from_mins(1);
        let stalls = async |within| tokio::time::timeout(within, delivery.stalled(limit)).await.is_ok();
        assert!(!stalls(limit * 3).await, "the upstream may take its time");
        delivery.handed(1000);
        let bytes = Bytes::from_static(&[0; 1000]);
        let mut portion = Portion { bytes, delivery: Arc::clone(&delivery), record: None };
        for _ in 0..5 {
            assert!(!stalls(limit / 2).await, "slow is not stalled");
            portion.advance(100);
        }
        assert!(stalls(limit + Duration::from_millis(1)).await);
        portion.advance(500);
        assert!(!stalls(limit * 3).await, "all has left");
    }
}
