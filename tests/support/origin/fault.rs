//! What can go wrong: rules that change how a request is answered.
//!
//! Every action of a rule applies at once, in the order in which a response is made: wait, choose the answer, bend
//! its content, bend its headers, then break its wire.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::watch;

use super::wire::Request;

/// One rule: which requests it takes, how often, and what happens to them. Without an action it does nothing but shield
/// its requests from later rules.
///
/// A HEAD that matches is counted and its head is bent like any other; gates, rates and breaks of bodies pass it by.
#[derive(Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches, not a state")]
pub struct Fault {
    method: String,
    target: String,
    skip: u64,
    left: Option<u64>,
    before_auth: bool,
    pub(super) header_gate: Option<Gate>,
    pub(super) delay: Option<Duration>,
    pub(super) instead: Option<Instead>,
    pub(super) flip: Option<u64>,
    pub(super) truncate: Option<u64>,
    pub(super) extend: u64,
    pub(super) ignore_range: bool,
    pub(super) drop_digest: bool,
    /// Headers that replace the answer's own of the same name.
    pub(super) headers: Vec<(String, String)>,
    pub(super) chunked: bool,
    pub(super) close: bool,
    pub(super) rate: Option<u64>,
    pub(super) gate: Option<(u64, Gate)>,
    pub(super) end: Option<(u64, End)>,
    pub(super) reset_unanswered: bool,
}

/// An answer in place of the registry's own.
#[derive(Clone)]
pub(super) enum Instead {
    Respond { status: u16, headers: Vec<(String, String)>, body: Bytes },
    Redirect { base: String },
}

/// How a body stops before its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Cut,
    Reset,
    Stall,
}

impl Fault {
    /// Takes requests of `method` (`*` for any) whose target, path and query as sent, contains `target`; for ever
    /// unless [`Fault::times`] says otherwise.
    pub fn on(method: &str, target: &str) -> Self {
        Self { method: method.to_owned(), target: target.to_owned(), ..Self::default() }
    }

    /// Acts on `n` requests, then lets them through to the next rule.
    pub fn times(mut self, n: u64) -> Self {
        self.left = Some(n);
        self
    }

    /// Lets the first `n` matching requests through to the next rule.
    pub fn after(mut self, n: u64) -> Self {
        self.skip = n;
        self
    }

    /// Also acts on (and counts) requests that the origin would challenge with a 401, which otherwise pass by.
    pub fn before_auth(mut self) -> Self {
        self.before_auth = true;
        self
    }

    /// Waits before the status line.
    pub fn delay_headers(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Holds the whole answer, status line included, until the gate opens.
    pub fn gate_headers(mut self, gate: &Gate) -> Self {
        self.header_gate = Some(gate.clone());
        self
    }

    /// Holds each response once `n` bytes of its body are with the kernel, until the gate opens.
    pub fn gate_at(mut self, n: u64, gate: &Gate) -> Self {
        self.gate = Some((n, gate.clone()));
        self
    }

    /// Sends each body at this many bytes per second, in pieces of at most 5 ms.
    pub fn throttle(mut self, bytes_per_second: u64) -> Self {
        self.rate = Some(bytes_per_second);
        self
    }

    /// Closes cleanly (FIN) after `n` bytes of this response's body.
    pub fn cut_at(mut self, n: u64) -> Self {
        self.end = Some((n, End::Cut));
        self
    }

    /// Resets (RST) once the client's kernel has `n` bytes of this response's body; the client can read exactly those.
    pub fn reset_at(mut self, n: u64) -> Self {
        self.end = Some((n, End::Reset));
        self
    }

    /// Sends nothing more after `n` bytes of this response's body, and keeps the connection open.
    pub fn stall_at(mut self, n: u64) -> Self {
        self.end = Some((n, End::Stall));
        self
    }

    /// Resets the connection where the status line should come; the log shows status 0.
    pub fn reset_unanswered(mut self) -> Self {
        self.reset_unanswered = true;
        self
    }

    /// Flips the byte at absolute offset `n` of the content, in whole answers and in ranges that hold it.
    pub fn corrupt_at(mut self, n: u64) -> Self {
        self.flip = Some(n);
        self
    }

    /// Behaves as if the content were only its first `n` bytes: Content-Length, ranges and all, ending cleanly.
    pub fn truncate_to(mut self, n: u64) -> Self {
        self.truncate = Some(n);
        self
    }

    /// Behaves as if `n` more bytes followed the content, Content-Length included.
    pub fn extend_by(mut self, n: u64) -> Self {
        self.extend = n;
        self
    }

    /// Sends `Transfer-Encoding: chunked` and no Content-Length.
    pub fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    /// Answers every range with 200 and the whole content.
    pub fn ignore_range(mut self) -> Self {
        self.ignore_range = true;
        self
    }

    /// Answers this instead. Content-Length is added.
    pub fn respond(mut self, status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Self {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.instead = Some(Instead::Respond { status, headers, body: body.into() });
        self
    }

    /// Answers 429 with `Retry-After` and the registry's error document.
    pub fn rate_limit(self, retry_after_secs: u64) -> Self {
        let document =
            json!({ "errors": [{ "code": "TOOMANYREQUESTS", "message": "pull rate limit reached" }] });
        let retry_after = retry_after_secs.to_string();
        let headers = [("Content-Type", "application/json"), ("Retry-After", retry_after.as_str())];
        self.respond(429, &headers, document.to_string())
    }

    /// Answers 307 to the same path at `base`, with `redirected=1` added to the query.
    pub fn redirect_to(mut self, base: &str) -> Self {
        self.instead = Some(Instead::Redirect { base: base.trim_end_matches('/').to_owned() });
        self
    }

    /// Claims this `Docker-Content-Digest`.
    pub fn wrong_digest_header(self, digest: &str) -> Self {
        self.header("Docker-Content-Digest", digest)
    }

    /// Leaves `Docker-Content-Digest` out.
    pub fn drop_digest_header(mut self) -> Self {
        self.drop_digest = true;
        self
    }

    /// Claims this media type.
    pub fn content_type(self, media_type: &str) -> Self {
        self.header("Content-Type", media_type)
    }

    /// Sends this header, instead of the answer's own of that name.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Announces and does `Connection: close` after the response.
    pub fn close_after(mut self) -> Self {
        self.close = true;
        self
    }

    /// Whether the rule acts on this request; counts it if it matches.
    pub(super) fn takes(&mut self, request: &Request, challenged: bool) -> bool {
        let matches = (self.method == "*" || self.method == request.method)
            && request.target().contains(&self.target)
            && (self.before_auth || !challenged);
        if !matches {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        match &mut self.left {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }
}

/// Holds transfers at a known byte until the test lets them go. Clones are the same gate; once open it stays open.
#[derive(Clone)]
pub struct Gate {
    arrived: watch::Sender<usize>,
    opened: watch::Sender<bool>,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self { arrived: watch::Sender::new(0), opened: watch::Sender::new(false) }
    }

    /// Returns once a transfer has arrived here, at once if one already has.
    pub async fn reached(&self) {
        self.reached_by(1).await;
    }

    /// Returns once `n` transfers in all have arrived here.
    pub async fn reached_by(&self, n: usize) {
        let mut arrived = self.arrived.subscribe();
        arrived.wait_for(|count| *count >= n).await.expect("the gate holds the sender");
    }

    /// How many transfers have arrived here so far.
    pub fn arrivals(&self) -> usize {
        *self.arrived.borrow()
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        self.opened.send_replace(true);
    }

    pub(super) async fn pass(&self) {
        self.arrived.send_modify(|count| *count += 1);
        let mut opened = self.opened.subscribe();
        opened.wait_for(|open| *open).await.expect("the gate holds the sender");
    }
}
