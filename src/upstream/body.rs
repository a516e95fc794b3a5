//! Reading bodies: never without a limit in bytes, never without a minimum speed.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as _, Incoming};
use tokio::time::{Instant, Sleep, sleep};

use super::config::FetchConfig;

/// What is read of a body that nobody wants, so that its connection can be used again.
const DRAIN_LIMIT: usize = 64 << 10;

/// Watches that a body keeps the minimum speed, at the cost of one timer per window.
///
/// Only time spent waiting for the upstream counts: a reader that comes back after a minute at its disk finds
/// no fault with the sender. Frames that are ready cost an addition and no look at the clock.
#[derive(Debug)]
pub(super) struct Pace {
    window: Duration,
    /// Bytes that a window must bring.
    least: u64,
    alarm: Pin<Box<Sleep>>,
    received: u64,
    waited: Duration,
    waiting_since: Option<Instant>,
}

impl Pace {
    pub(super) fn new(config: &FetchConfig) -> Self {
        let window = config.stall_window;
        let least = u128::from(config.minimum_speed.as_u64()) * window.as_millis() / 1000;
        Self {
            window,
            // A minimum speed of nothing still wants something: silence is never progress.
            least: u64::try_from(least).unwrap_or(u64::MAX).max(1),
            alarm: Box::pin(sleep(window)),
            received: 0,
            waited: Duration::ZERO,
            waiting_since: None,
        }
    }

    /// Bytes have come.
    pub(super) fn received(&mut self, bytes: usize) {
        self.received += bytes as u64;
        if let Some(since) = self.waiting_since.take() {
            self.waited += since.elapsed();
        }
    }

    /// Called while nothing comes; ready once it has been too slow for a window.
    pub(super) fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        loop {
            ready!(self.alarm.as_mut().poll(cx));
            let now = Instant::now();
            let waited = self.waited + now.duration_since(since);
            if waited < self.window {
                self.alarm.as_mut().reset(now + self.window.saturating_sub(waited));
                continue;
            }
            if self.received < self.least {
                return Poll::Ready(());
            }
            self.received = 0;
            self.waited = Duration::ZERO;
            self.waiting_since = Some(now);
            self.alarm.as_mut().reset(now + self.window);
            return self.alarm.as_mut().poll(cx);
        }
    }
}

/// What became of waiting for the next frame.
#[derive(Debug)]
pub(super) enum Frame {
    Data(Bytes),
    End,
    Broken(String),
    TooSlow,
}

/// The next frame with data, as hyper hands it out.
pub(super) fn poll_frame(body: &mut Incoming, pace: &mut Pace, cx: &mut Context<'_>) -> Poll<Frame> {
    loop {
        match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                // Trailers say nothing that a registry's client needs.
                let Ok(data) = frame.into_data() else { continue };
                pace.received(data.len());
                if !data.is_empty() {
                    return Poll::Ready(Frame::Data(data));
                }
            }
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Frame::Broken(chain(&error))),
            Poll::Ready(None) => return Poll::Ready(Frame::End),
            Poll::Pending => return pace.poll_too_slow(cx).map(|()| Frame::TooSlow),
        }
    }
}

/// Why a small body could not be read.
#[derive(Debug)]
pub(super) enum ReadError {
    TooLong,
    Broken(String),
    TooSlow,
}

/// Reads a whole body of at most `limit` bytes.
pub(super) async fn read_all(mut body: Incoming, limit: usize, mut pace: Pace) -> Result<Bytes, ReadError> {
    let mut whole: Option<BytesMut> = None;
    let mut first = Bytes::new();
    loop {
        match poll_fn(|cx| poll_frame(&mut body, &mut pace, cx)).await {
            Frame::Data(data) => {
                let length = whole.as_ref().map_or(first.len(), BytesMut::len) + data.len();
                if length > limit {
                    return Err(ReadError::TooLong);
                }
                // Most manifests are one frame, which needs no copy.
                match &mut whole {
                    Some(whole) => whole.extend_from_slice(&data),
                    None if first.is_empty() => first = data,
                    None => {
                        let mut both = BytesMut::from(first.as_ref());
                        both.extend_from_slice(&data);
                        whole = Some(both);
                    }
                }
            }
            Frame::End => return Ok(whole.map_or(first, BytesMut::freeze)),
            Frame::Broken(reason) => return Err(ReadError::Broken(reason)),
            Frame::TooSlow => return Err(ReadError::TooSlow),
        }
    }
}

/// The first bytes of a body whose answer is decided already. Its caller has a deadline around it.
pub(super) async fn drain(mut body: Incoming, config: &FetchConfig) -> Bytes {
    let mut pace = Pace::new(config);
    let mut start = BytesMut::new();
    while let Frame::Data(data) = poll_fn(|cx| poll_frame(&mut body, &mut pace, cx)).await {
        start.extend_from_slice(&data);
        if start.len() > DRAIN_LIMIT {
            break;
        }
    }
    start.freeze()
}

/// An error and everything that it is caused by, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Wrappers often repeat what they wrap.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Bytes as Size;
    use tokio::time::advance;

    fn pace() -> Pace {
        let config = FetchConfig {
            minimum_speed: Size::new(100),
            stall_window: Duration::from_secs(10),
            ..FetchConfig::default()
        };
        Pace::new(&config)
    }

    async fn is_too_slow(pace: &mut Pace) -> bool {
        poll_fn(|cx| Poll::Ready(pace.poll_too_slow(cx).is_ready())).await
    }

    #[tokio::test(start_paused = true)]
    async fn silence_for_a_window_is_too_slow() {
        let mut pace = pace();
        assert!(!is_too_slow(&mut pace).await);
        advance(Duration::from_millis(9_990)).await;
        assert!(!is_too_slow(&mut pace).await);
        advance(Duration::from_millis(20)).await;
        assert!(is_too_slow(&mut pace).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_below_the_minimum_is_too_slow_and_one_above_is_not() {
        for (bytes, expected) in [(80, true), (120, false)] {
            let mut pace = pace();
            let mut is_slow = false;
            for _ in 0..25 {
                is_slow |= is_too_slow(&mut pace).await;
                advance(Duration::from_secs(1)).await;
                is_slow |= is_too_slow(&mut pace).await;
                pace.received(bytes);
            }
            assert_eq!(is_slow, expected, "{bytes} bytes per second");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_was_away_finds_no_fault_with_the_sender() {
        let mut pace = pace();
        assert!(!is_too_slow(&mut pace).await);
        pace.received(1);
        advance(Duration::from_mins(1)).await;
        assert!(!is_too_slow(&mut pace).await, "a minute at the disk");
        advance(Duration::from_secs(9)).await;
        assert!(!is_too_slow(&mut pace).await);
        advance(Duration::from_millis(1_010)).await;
        assert!(is_too_slow(&mut pace).await);
    }
}
