//! One blob on its way, resumed at the exact byte however often it breaks.
//!
//! A transfer that breaks, stalls or ends too early is taken up with `Range: bytes=N-`, at the endpoint it came
//! from or the next one, until no new byte has come for `give_up_after`. What was yielded is never yielded
//! again: a 206 must begin at the asked byte, and of a 200 the first N bytes are thrown away. Sources must agree
//! on the size; one that contradicts itself or the others is not asked again.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use hyper::StatusCode;
use hyper::body::Incoming;
use prometheus::IntCounter;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout_at};

use crate::oci::{ByteRange, Digest, RangeSpec, Target};
use crate::routing::Route;
use crate::runtime::Backoff;

use super::body::{Frame, Pace, poll_frame};
use super::client::Remotes;
use super::error::{Error, Stage};
use super::exchange::Question;
use super::metrics::Kind;
use super::plan::{Plan, Step};
use super::remote::Remote;
use super::response::Answer;

/// New bytes that make a transfer worth resuming at once. An endpoint that breaks earlier, again and again, is
/// asked at growing intervals like one that cannot be reached.
const WORTHWHILE: u64 = 64 << 10;

/// A blob that is being received.
pub struct Download {
    job: Arc<Job>,
    /// The next byte to yield.
    offset: u64,
    /// The blob's size, once a source has said it; all others must agree.
    size: Option<u64>,
    state: State,
    /// `None` only while the reopening has it.
    plan: Option<Plan>,
    /// When the last new byte came.
    progress: Instant,
    /// The source in use, and how many new bytes its present transfer has brought.
    source: usize,
    brought: u64,
}

enum State {
    Streaming(Transfer),
    Reopening(Pin<Box<dyn Future<Output = Reopened> + Send>>),
    Ended,
    Failed(Error),
}

type Reopened = (Option<Plan>, Result<(usize, Opened), Error>);

/// What does not change while a blob is fetched.
#[derive(Debug)]
pub(super) struct Job {
    remotes: Remotes,
    route: Route,
    digest: Digest,
    /// What is wanted of the blob; `u64::MAX` stands for its end.
    bytes: ByteRange,
}

/// One response's body.
struct Transfer {
    body: Incoming,
    pace: Pace,
    /// Bytes before the offset that are still to be thrown away.
    skip: u64,
    /// A range was asked for, and the whole blob comes.
    ignores_range: bool,
    /// Its end is marked on the wire, so that one that comes too early is no accident of the connection.
    is_framed: bool,
    received: IntCounter,
    _permit: OwnedSemaphorePermit,
}

/// A response that continues a blob.
pub(super) struct Opened {
    /// `None` when there is nothing left to send.
    transfer: Option<Transfer>,
    size: Option<u64>,
}

impl Download {
    pub(super) fn begin(remotes: Remotes, route: &Route, digest: Digest, bytes: ByteRange) -> Arc<Job> {
        Arc::new(Job { remotes, route: route.clone(), digest, bytes })
    }

    /// The blob's whole size in bytes, where a source has said it.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// The offset of the byte that [`Download::next`] yields first.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the upstream has answered a question for a range with the whole blob.
    pub fn ignores_range(&self) -> bool {
        matches!(&self.state, State::Streaming(transfer) if transfer.ignores_range)
    }

    /// The next bytes, as large as they came in; `None` at the end of what was asked for. Resumes behind the
    /// scenes.
    ///
    /// Cancel safe: whatever was under way goes on with the next call.
    ///
    /// # Errors
    /// The last failure, once `give_up_after` has passed without a new byte or no source is left. It is
    /// repeated by further calls.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match &mut self.state {
                State::Streaming(transfer) => {
                    let frame = poll_fn(|cx| transfer.poll(cx)).await;
                    if let Some(bytes) = self.take(frame) {
                        return Ok(Some(bytes));
                    }
                }
                State::Reopening(reopening) => {
                    let reopened = reopening.as_mut().await;
                    self.reopened(reopened);
                }
                State::Ended => return Ok(None),
                State::Failed(error) => return Err(error.clone()),
            }
        }
    }

    /// Decides what a frame is: bytes to yield, the end, or a reason to resume.
    fn take(&mut self, frame: Frame) -> Option<Bytes> {
        let State::Streaming(transfer) = &mut self.state else {
            return None;
        };
        let remote = &self.job.remotes[self.source];
        let failure = match frame {
            Frame::Data(mut data) => {
                let skipped = transfer.skip.min(data.len() as u64);
                if skipped > 0 {
                    transfer.skip -= skipped;
                    data.advance(usize::try_from(skipped).unwrap_or(data.len()));
                    if data.is_empty() {
                        return None;
                    }
                }
                // A source that ignored the range sends more than was asked for.
                let wanted = self.job.bytes.end - self.offset;
                data.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
                let end = self.offset + data.len() as u64;
                if self.size.is_none_or(|size| end <= size) {
                    self.progressed(data.len() as u64);
                    self.offset = end;
                    if end == self.job.bytes.end {
                        self.state = State::Ended;
                    }
                    return Some(data);
                }
                remote.corrupt(format!("more bytes than the {} declared", self.size.unwrap_or_default()))
            }
            // A blob that is complete is complete, however its transfer ends.
            _ if self.size == Some(self.offset) => {
                self.state = State::Ended;
                return None;
            }
            Frame::End if transfer.skip > 0 => {
                remote.corrupt(format!("a blob of less than the {} bytes that came before", self.offset))
            }
            Frame::End if self.size.is_none() && self.job.bytes.end == u64::MAX => {
                self.size = Some(self.offset);
                self.state = State::Ended;
                return None;
            }
            Frame::End if transfer.is_framed => {
                remote.corrupt(format!("a blob that ends at byte {}, which is too early", self.offset))
            }
            Frame::End => remote.unreachable(format!("the transfer ended at byte {}", self.offset)),
            Frame::Broken(reason) => {
                remote.unreachable(format!("the transfer broke at byte {}: {reason}", self.offset))
            }
            Frame::TooSlow => remote.timed_out(Stage::Body, remote.config().stall_window),
        };
        self.broke(failure);
        None
    }

    /// Runs for every frame, so it does no more than add and look at the clock.
    fn progressed(&mut self, bytes: u64) {
        self.progress = Instant::now();
        let before = self.brought;
        self.brought += bytes;
        if before < WORTHWHILE
            && self.brought >= WORTHWHILE
            && let Some(plan) = &mut self.plan
        {
            plan.progressed(self.source);
        }
    }

    fn broke(&mut self, failure: Error) {
        let Some(mut plan) = self.plan.take() else {
            self.state = State::Failed(failure);
            return;
        };
        let remote = &self.job.remotes[self.source];
        let upstream = &remote.place().upstream;
        tracing::info!(
            %upstream, digest = %self.job.digest, offset_bytes = self.offset, error = %failure,
            "a blob transfer is resumed"
        );
        remote.metrics().resumed(upstream);
        // A transfer that had got on is worth another try where it was, at once; one that had not counts as an
        // attempt that failed. What was wrong with the content counts in any case.
        if self.brought < WORTHWHILE || !failure.is_retryable() {
            plan.failed(failure.clone());
        }
        let give_up_at = self.progress + remote.config().give_up_after;
        let job = Arc::clone(&self.job);
        let reopening = reopen(job, plan, self.offset, self.size, failure, give_up_at);
        self.state = State::Reopening(Box::pin(reopening));
    }

    fn reopened(&mut self, (plan, result): Reopened) {
        self.plan = plan;
        match result {
            Ok((source, opened)) => {
                self.source = source;
                self.brought = 0;
                self.size = opened.size.or(self.size);
                self.state = opened.transfer.map_or(State::Ended, State::Streaming);
            }
            Err(error) => self.state = State::Failed(error),
        }
    }
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download")
            .field("digest", &self.job.digest)
            .field("offset", &self.offset)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Transfer {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Frame> {
        let frame = poll_frame(&mut self.body, &mut self.pace, cx);
        if let Poll::Ready(Frame::Data(data)) = &frame {
            self.received.inc_by(data.len() as u64);
        }
        frame
    }
}

impl Job {
    /// The download, once its first response is there.
    pub(super) fn streaming(self: Arc<Self>, source: usize, opened: Opened) -> Download {
        let config = self.remotes[source].config();
        let backoff = Backoff::new(config.backoff, config.backoff_cap);
        Download {
            plan: Some(Plan::for_resuming(self.remotes.len(), source, backoff)),
            offset: self.bytes.start,
            size: opened.size,
            state: opened.transfer.map_or(State::Ended, State::Streaming),
            progress: Instant::now(),
            source,
            brought: 0,
            job: self,
        }
    }

    /// Asks one endpoint for everything from `offset` on; the blob must have `size` bytes, where that is known.
    pub(super) async fn open(&self, index: usize, offset: u64, size: Option<u64>) -> Result<Opened, Error> {
        let remote = &self.remotes[index];
        let permit = remote.download_permit().await?;
        let target = Target::Blob { repository: self.route.repository.clone(), digest: self.digest };
        let question =
            Question { range: self.range(offset), ..Question::of(&self.route, Kind::Blob, target) };
        let answer = remote.ask(&question).await?;
        if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return nothing_left(remote, &answer, offset, size);
        }
        if let Some(oddity) = answer.blob_oddity(&self.digest) {
            return Err(remote.not_a_registry(oddity));
        }
        if let Some(contradiction) = answer.contradiction(&self.digest) {
            return Err(remote.corrupt(contradiction));
        }
        let (skip, stated) = match answer.status() {
            StatusCode::PARTIAL_CONTENT => (0, self.partial(remote, &answer, offset)?),
            _ => (offset, answer.length()),
        };
        let agreed = agree(remote, offset, size, stated)?;
        let transfer = Transfer {
            pace: Pace::new(remote.config()),
            skip,
            ignores_range: question.range.is_some() && answer.status() != StatusCode::PARTIAL_CONTENT,
            is_framed: answer.is_framed(),
            received: remote.metrics().received(&remote.place().upstream),
            _permit: permit,
            body: answer.response.into_body(),
        };
        Ok(Opened { transfer: Some(transfer), size: agreed })
    }

    /// What to ask for at `offset`; nothing special for the whole blob.
    fn range(&self, offset: u64) -> Option<RangeSpec> {
        match self.bytes.end {
            u64::MAX if offset == 0 => None,
            u64::MAX => Some(RangeSpec::From { first: offset }),
            end => Some(RangeSpec::Bounded { first: offset, last: end - 1 }),
        }
    }

    /// The size that a 206 states, after its range was found to be the one that was asked for.
    fn partial(&self, remote: &Remote, answer: &Answer, offset: u64) -> Result<Option<u64>, Error> {
        let range = answer.content_range().and_then(|content| Some((content.range?, content.size)));
        let Some((range, size)) = range else {
            return Err(remote.corrupt("a partial answer that does not say which part it is".to_owned()));
        };
        if range.start != offset || range.end > self.bytes.end {
            return Err(remote.corrupt(format!(
                "asked for bytes {}, it sends {range}",
                ByteRange::new(offset, self.bytes.end)
            )));
        }
        match answer.length() {
            Some(length) if length != range.len() => {
                Err(remote.corrupt(format!("a range of {} bytes with a length of {length}", range.len())))
            }
            _ => Ok(size),
        }
    }
}

/// Finds a source that continues at `offset`.
async fn reopen(
    job: Arc<Job>,
    mut plan: Plan,
    offset: u64,
    size: Option<u64>,
    mut last: Error,
    give_up_at: Instant,
) -> Reopened {
    loop {
        match plan.step() {
            // Time that runs out says nothing about the endpoint: the failure before it is the last one.
            Step::Ask(index) => match timeout_at(give_up_at, job.open(index, offset, size)).await {
                Err(_) => return (None, Err(last)),
                Ok(Ok(opened)) => return (Some(plan), Ok((index, opened))),
                Ok(Err(error)) => {
                    tracing::debug!(%error, offset_bytes = offset, "a blob transfer could not be resumed yet");
                    plan.failed(error.clone());
                    last = error;
                }
            },
            Step::Wait(wait) if Instant::now() + wait >= give_up_at => return (None, Err(last)),
            Step::Wait(wait) => sleep(wait).await,
            Step::GiveUp => return (None, Err(plan.verdict().unwrap_or(last))),
        }
        if Instant::now() >= give_up_at {
            return (None, Err(last));
        }
    }
}

/// A 416 is the end of the blob if it says that the blob ends here.
fn nothing_left(remote: &Remote, answer: &Answer, offset: u64, size: Option<u64>) -> Result<Opened, Error> {
    let stated = answer.content_range().and_then(|range| range.size);
    match stated {
        Some(stated) if stated == offset && size.is_none_or(|size| size == stated) => {
            Ok(Opened { transfer: None, size: stated.into() })
        }
        _ => Err(remote.corrupt(format!("no bytes from {offset} on, although there were"))),
    }
}

/// The size that everything said so far agrees on.
fn agree(
    remote: &Remote,
    offset: u64,
    known: Option<u64>,
    stated: Option<u64>,
) -> Result<Option<u64>, Error> {
    match (known, stated) {
        (Some(known), Some(stated)) if known != stated => {
            Err(remote.corrupt(format!("the blob had {known} bytes, now it has {stated}")))
        }
        (None, Some(stated)) if stated < offset => {
            Err(remote.corrupt(format!("the blob has {stated} bytes, {offset} have come already")))
        }
        (known, stated) => Ok(known.or(stated)),
    }
}
