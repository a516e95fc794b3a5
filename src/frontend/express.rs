//! Hot manifests on HTTP/1.1, answered below hyper.
//!
//! Most requests of a busy edge ask for a small manifest that memory has. What hyper does around such an answer costs
//! more than the answer, so that what is ordinary has an express lane: one whole head without a body, which memory alone
//! can answer. The answer is the one that [`Service`] gives through hyper, made of the same parts. Everything else goes
//! up to hyper untouched, and hyper never learns of what was answered here.
//!
//! Invariants: nothing overtakes an answer of hyper's, and no byte of a body is ever read as a request. So the lane is
//! open between answers only: when every head that went up has been answered in full and hyper has flushed, which it
//! does only after it has written everything. It closes for good as soon as anything goes up that is not exactly one
//! whole head without a body.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use hyper::Version;
use hyper::header::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::access_log::{COMPLETE, Entry, Record, Request};
use super::client::Client;
use super::head::{Arrived, Head};
use super::headers::WireHead;
use super::requests::{Open, Requests};
use super::service::{AtOnce, Service};

/// What stands between hyper and the socket of one connection.
pub(super) struct Express<I> {
    io: I,
    /// `None` once it is closed for good.
    lane: Option<Lane>,
    unsent: Option<Unsent>,
}

/// Who answers, and whether it may now.
pub(super) struct Lane {
    service: Arc<Service>,
    client: Arc<Client>,
    requests: Arc<Requests>,
    /// Requests that have come so far.
    arrived: u64,
    /// Whether hyper has one of them.
    is_above: bool,
}

/// What the socket has not taken yet of an answer.
struct Unsent {
    head: Bytes,
    body: Bytes,
    record: Record,
    _open: Open,
}

impl Lane {
    pub(super) fn new(service: Arc<Service>, client: Arc<Client>, requests: Arc<Requests>) -> Self {
        Self { service, client, requests, arrived: 0, is_above: false }
    }

    /// Notes that hyper has written everything that it has.
    fn flushed(&mut self) {
        if self.is_above && self.requests.answered() == Some(self.arrived) {
            self.is_above = false;
        }
    }

    /// Logs an answer that has left as a whole.
    fn complete(&self, asked: &Head<'_>, answer: &AtOnce) {
        let accounts = self.service.accounts();
        accounts.sent_bytes.inc_by(answer.answered.promised);
        let entry = Entry {
            id: answer.id.as_str(),
            client: self.client.source,
            version: Version::HTTP_11,
            tls: self.client.tls.as_deref(),
            method: asked.method.as_str(),
            path: asked.path,
            query: asked.query,
            range: None,
            user_agent: asked.user_agent,
            started: answer.started,
            answered: &answer.answered,
            sent: answer.answered.promised,
            outcome: COMPLETE,
        };
        entry.write(accounts);
    }

    /// What logs an answer later.
    fn record(&self, asked: &Head<'_>, answer: AtOnce) -> Record {
        let request = Request {
            id: answer.id,
            client: self.client.source,
            version: Version::HTTP_11,
            tls: self.client.tls.clone(),
            method: asked.method.clone(),
            // What was answered is one.
            uri: target(asked).parse().unwrap_or_default(),
            range: None,
            user_agent: asked.user_agent.and_then(|agent| HeaderValue::from_str(agent).ok()),
            started: answer.started,
        };
        Record::new(request, answer.answered, Arc::clone(self.service.accounts()))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Express<I> {
    pub(super) fn new(io: I, lane: Lane) -> Self {
        Self { io, lane: Some(lane), unsent: None }
    }

    /// Answers what has arrived, if it is for the lane; whether it was.
    fn answer(&mut self, cx: &mut Context<'_>, arrived: &[u8]) -> io::Result<bool> {
        let Some(lane) = &mut self.lane else {
            return Ok(false);
        };
        let asked = match Arrived::read(arrived) {
            Arrived::Ordinary(head) if !lane.is_above => Some(head),
            Arrived::Whole if !lane.is_above => None,
            Arrived::Ordinary(_) | Arrived::Whole | Arrived::Other => {
                self.lane = None;
                return Ok(false);
            }
        };
        lane.arrived += 1;
        let mut wire = WireHead::new();
        let answer = asked.as_ref().and_then(|asked| lane.service.at_once(asked, &mut wire));
        let (Some(asked), Some(answer)) = (asked, answer) else {
            lane.is_above = true;
            return Ok(false);
        };
        let head = wire.bytes().len();
        let whole = head + answer.body.len();
        let written = if wire.append(&answer.body) {
            Pin::new(&mut self.io).poll_write(cx, wire.bytes())
        } else {
            let bufs = [IoSlice::new(wire.bytes()), IoSlice::new(&answer.body)];
            Pin::new(&mut self.io).poll_write_vectored(cx, &bufs)
        };
        let sent = match written {
            Poll::Ready(sent) => sent?,
            Poll::Pending => 0,
        };
        if sent == whole {
            lane.requests.passed(answer.started);
            lane.complete(&asked, &answer);
        } else {
            let (head, body) = (Bytes::copy_from_slice(&wire.bytes()[..head]), answer.body.clone());
            let open = lane.requests.begin();
            let mut unsent = Unsent { head, body, record: lane.record(&asked, answer), _open: open };
            unsent.advance(sent);
            self.unsent = Some(unsent);
        }
        Ok(true)
    }

    /// Writes what the socket did not take before.
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(unsent) = &mut self.unsent {
            let bufs = [IoSlice::new(&unsent.head), IoSlice::new(&unsent.body)];
            let sent = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &bufs))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            unsent.advance(sent);
            if unsent.head.is_empty() && unsent.body.is_empty() {
                self.unsent = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Path and query as they came.
fn target(asked: &Head<'_>) -> String {
    match asked.query {
        Some(query) => format!("{}?{query}", asked.path),
        None => asked.path.to_owned(),
    }
}

impl Unsent {
    fn advance(&mut self, sent: usize) {
        let of_head = sent.min(self.head.len());
        self.head.advance(of_head);
        self.body.advance(sent - of_head);
        self.record.sent(sent - of_head);
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Express<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        loop {
            ready!(this.poll_unsent(cx))?;
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let arrived = &buf.filled()[before..];
            // Nothing is the end.
            if arrived.is_empty() || !this.answer(cx, arrived)? {
                return Poll::Ready(Ok(()));
            }
            buf.set_filled(before);
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Express<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_unsent(cx))?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_unsent(cx))?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        if let Some(lane) = &mut self.lane {
            lane.flushed();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
