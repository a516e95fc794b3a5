//! HTTP/1.1 by hand, because hyper cannot stop at byte N: reading requests, and writing answers piece by piece so that
//! every gate, rate and break happens at its exact byte.

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};

use super::fault::{End, Fault};
use super::log::Entry;
use super::port::drained;
use super::registry::Answer;
use super::server::Ending;
use super::{Shared, lock};

/// A request head beyond this is no registry client's.
const HEAD_LIMIT: usize = 64 << 10;
/// Large enough for gigabytes per second, small enough that a break is never far.
const PIECE: usize = 256 << 10;
/// Pieces of a limited transfer are at most this long, so that it flows instead of hopping.
const PIECE_TIME: Duration = Duration::from_millis(5);
/// How much lateness is caught up, so that a rate also holds on a busy machine; also the burst after a pause in the
/// middle of a transfer. The first body after an idle time begins without one.
const SLACK: Duration = Duration::from_millis(50);

/// One request head, as sent.
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
    persistent: bool,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// Path and query as sent.
    pub(super) fn target(&self) -> String {
        if self.query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, self.query) }
    }

    pub(super) fn decoded_path(&self) -> String {
        decode(&self.path)
    }

    pub(super) fn parameter(&self, name: &str) -> Option<String> {
        self.parameters(name).next()
    }

    /// A decoded field of a posted form.
    pub(super) fn field(&self, name: &str) -> Option<String> {
        values(&self.body, name).next()
    }

    /// The decoded values of a query parameter that may repeat.
    pub(super) fn parameters(&self, name: &str) -> impl Iterator<Item = String> {
        values(&self.query, name)
    }

    fn parse(head: &str) -> Option<Self> {
        let mut lines = head.split("\r\n");
        let mut start = lines.next()?.split(' ');
        let (method, target, version) = (start.next()?, start.next()?, start.next()?);
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let close = find(&headers, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        Some(Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            persistent: version == "HTTP/1.1" && !close,
            headers,
            body: String::new(),
        })
    }
}

/// The decoded values of a name in a query or a form.
fn values(encoded: &str, name: &str) -> impl Iterator<Item = String> {
    encoded
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(move |(key, _)| *key == name)
        .map(|(_, value)| decode(&value.replace('+', " ")))
}

/// The first header of this name.
pub(super) fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// Undoes percent-encoding; what is malformed stays as it is.
fn decode(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = (byte == b'%')
            .then(|| {
                tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok())
            })
            .flatten();
        decoded.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// A rate shared by whoever reserves from it: a token bucket kept as the time at which the next byte is due.
pub(super) struct Pacer(Mutex<Pace>);

struct Pace {
    bytes_per_second: Option<u64>,
    due: Instant,
    /// Bodies that are being sent.
    bodies: usize,
}

/// A body that is being sent.
struct Paced<'a>(&'a Pacer);

impl Drop for Paced<'_> {
    fn drop(&mut self) {
        lock(&self.0.0).bodies -= 1;
    }
}

impl Pacer {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self(Mutex::new(Pace { bytes_per_second: rate, due: Instant::now(), bodies: 0 }))
    }

    pub(super) fn set(&self, rate: Option<u64>) {
        let mut pace = lock(&self.0);
        pace.bytes_per_second = rate;
        pace.due = Instant::now();
    }

    /// Joins whoever sends; the first finds no saved-up time.
    fn body(&self) -> Paced<'_> {
        let mut pace = lock(&self.0);
        if pace.bodies == 0 {
            pace.due = pace.due.max(Instant::now());
        }
        pace.bodies += 1;
        Paced(self)
    }

    /// The largest piece that still flows smoothly.
    fn piece(&self) -> usize {
        lock(&self.0).bytes_per_second.map_or(PIECE, |rate| {
            let bytes = u128::from(rate) * PIECE_TIME.as_micros() / 1_000_000;
            usize::try_from(bytes).unwrap_or(PIECE).clamp(1, PIECE)
        })
    }

    /// Returns when `bytes` may go.
    async fn wait(&self, bytes: usize) {
        let now = Instant::now();
        let due = lock(&self.0).reserve(bytes, now);
        if due > now {
            sleep_until(due).await;
        }
    }
}

impl Pace {
    /// When these bytes may go; the next ones may a little later.
    fn reserve(&mut self, bytes: usize, now: Instant) -> Instant {
        let Some(rate) = self.bytes_per_second else {
            return now;
        };
        let due = self.due.max(now.checked_sub(SLACK).unwrap_or(self.due));
        let nanos = u128::from(bytes as u64) * 1_000_000_000 / u128::from(rate.max(1));
        self.due = due + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        due
    }
}

/// Answers request after request until either side has enough.
pub(super) async fn serve(stream: &mut TcpStream, shared: &Shared) -> Ending {
    let mut connection = Connection { stream, shared, inbox: BytesMut::new(), piece: Vec::new() };
    loop {
        match connection.exchange().await {
            Ok(None) => {}
            Ok(Some(ending)) => return ending,
            // The client is gone, or speaks something else: nobody is left to tell.
            Err(_) => return Ending::Close,
        }
    }
}

struct Connection<'a> {
    stream: &'a mut TcpStream,
    shared: &'a Shared,
    inbox: BytesMut,
    /// One buffer for all bodies of this connection; empty until the first.
    piece: Vec<u8>,
}

impl Connection<'_> {
    /// One request and its answer; `Some` when the connection ends here.
    async fn exchange(&mut self) -> io::Result<Option<Ending>> {
        let Some(request) = self.read_request().await? else {
            return Ok(Some(Ending::Close));
        };
        let entry = self.shared.log.record(&request);
        self.or_gone(self.shared.out_of_black_hole()).await?;
        let fault = self.shared.fault_for(&request);
        if let Some(gate) = &fault.header_gate {
            self.or_gone(gate.pass()).await?;
        }
        if let Some(delay) = fault.delay {
            self.or_gone(sleep(delay)).await?;
        }
        if fault.reset_unanswered {
            return Ok(Some(Ending::Reset));
        }
        let response = Response::plan(&request, self.shared.answer(&request, &fault), fault);
        entry.answered(response.answer.status);
        self.stream.write_all(response.head().as_bytes()).await?;
        if request.method != "HEAD"
            && let Some(ending) = self.send_body(&response, &entry).await?
        {
            return Ok(Some(ending));
        }
        Ok(response.close.then_some(Ending::Close))
    }

    async fn read_request(&mut self) -> io::Result<Option<Request>> {
        let end = loop {
            if let Some(end) = self.inbox.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            if self.inbox.len() > HEAD_LIMIT || self.stream.read_buf(&mut self.inbox).await? == 0 {
                return Ok(None);
            }
        };
        let head = self.inbox.split_to(end + 4);
        let mut request = std::str::from_utf8(&head[..end]).ok().and_then(Request::parse);
        if let Some(request) = &mut request {
            let length = request.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
            while self.inbox.len() < length {
                if self.stream.read_buf(&mut self.inbox).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            request.body = String::from_utf8_lossy(&self.inbox.split_to(length)).into_owned();
        }
        Ok(request)
    }

    async fn send_body(&mut self, response: &Response, entry: &Entry) -> io::Result<Option<Ending>> {
        let fault = &response.fault;
        let pacer = Pacer::new(fault.rate);
        let _sending = (pacer.body(), self.shared.pacer.body());
        let mut sent = 0;
        loop {
            if let Some((_, gate)) = fault.gate.as_ref().filter(|(at, _)| *at == sent) {
                self.or_gone(gate.pass()).await?;
            }
            if let Some((_, end)) = fault.end.filter(|(at, _)| *at == sent) {
                return self.end(end).await.map(Some);
            }
            if sent == response.len {
                break;
            }
            let stops = [fault.gate.as_ref().map(|(at, _)| *at), fault.end.map(|(at, _)| at)];
            let stop = stops.into_iter().flatten().filter(|at| *at > sent).fold(response.len, u64::min);
            let smooth = pacer.piece().min(self.shared.pacer.piece());
            let piece = usize::try_from(stop - sent).map_or(smooth, |left| left.min(smooth));
            pacer.wait(piece).await;
            self.shared.pacer.wait(piece).await;
            self.or_gone(self.shared.out_of_black_hole()).await?;
            self.send_piece(response, sent, piece, entry).await?;
            sent += piece as u64;
        }
        if response.chunked {
            self.stream.write_all(b"0\r\n\r\n").await?;
        }
        Ok(None)
    }

    async fn send_piece(
        &mut self,
        response: &Response,
        at: u64,
        piece: usize,
        entry: &Entry,
    ) -> io::Result<()> {
        self.piece.resize(PIECE, 0);
        response.answer.body.read_at(response.start + at, &mut self.piece[..piece]);
        if response.chunked {
            self.stream.write_all(format!("{piece:x}\r\n").as_bytes()).await?;
        }
        let mut rest = &self.piece[..piece];
        while !rest.is_empty() {
            let taken = self.stream.write(rest).await?;
            entry.sent(taken);
            rest = &rest[taken..];
        }
        if response.chunked {
            self.stream.write_all(b"\r\n").await?;
        }
        Ok(())
    }

    async fn end(&mut self, end: End) -> io::Result<Ending> {
        match end {
            End::Cut => Ok(Ending::Close),
            End::Reset => {
                drained(self.stream).await;
                Ok(Ending::Reset)
            }
            End::Stall => self.or_gone(std::future::pending()).await,
        }
    }

    /// Waits, but not for a client that has left.
    async fn or_gone<T>(&self, wait: impl Future<Output = T>) -> io::Result<T> {
        tokio::select! {
            biased;
            done = wait => Ok(done),
            () = gone(self.stream) => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

/// Returns when the peer has closed its side.
async fn gone(stream: &TcpStream) {
    match stream.peek(&mut [0]).await {
        Ok(0) | Err(_) => {}
        // A pipelined request hides whatever comes behind it.
        Ok(_) => std::future::pending().await,
    }
}

/// An answer with all its faults decided.
struct Response {
    answer: Answer,
    fault: Fault,
    /// The part of the body to send.
    start: u64,
    len: u64,
    chunked: bool,
    close: bool,
}

impl Response {
    fn plan(request: &Request, mut answer: Answer, fault: Fault) -> Self {
        let body = &mut answer.body;
        body.len = fault.truncate.map_or(body.len, |n| body.len.min(n)) + fault.extend;
        body.flipped = fault.flip;
        let (mut start, mut len) = (0, answer.body.len);
        if answer.ranged && !fault.ignore_range {
            let total = len;
            match range(request, &answer, total) {
                Wanted::Everything => {}
                Wanted::Part { first, last } => {
                    answer.status = 206;
                    answer.set("Content-Range", &format!("bytes {first}-{last}/{total}"));
                    (start, len) = (first, last - first + 1);
                }
                Wanted::Nothing => {
                    answer = Answer::error(416, "UNSUPPORTED", "range not satisfiable")
                        .with("Content-Range", &format!("bytes */{total}"));
                    len = answer.body.len;
                }
            }
        }
        if fault.drop_digest {
            answer.remove("Docker-Content-Digest");
        }
        for (name, value) in &fault.headers {
            answer.set(name, value);
        }
        let close = fault.close || !request.persistent;
        Self { chunked: fault.chunked, close, answer, fault, start, len }
    }

    fn head(&self) -> String {
        let status = self.answer.status;
        let mut head = format!("HTTP/1.1 {status} {}\r\n", reason(status));
        for (name, value) in &self.answer.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if self.chunked {
            head += "Transfer-Encoding: chunked\r\n";
        } else if !matches!(status, 204 | 304) {
            head += &format!("Content-Length: {}\r\n", self.len);
        }
        if self.close {
            head += "Connection: close\r\n";
        }
        head + "\r\n"
    }
}

enum Wanted {
    Everything,
    Part { first: u64, last: u64 },
    Nothing,
}

/// A single range (RFC 9110, 14.2); several, or one under an `If-Range` that no longer holds, get the whole.
fn range(request: &Request, answer: &Answer, total: u64) -> Wanted {
    let Some(spec) = request.header("range").and_then(|value| value.strip_prefix("bytes=")) else {
        return Wanted::Everything;
    };
    if request.header("if-range").is_some_and(|tag| Some(tag) != answer.header("etag")) {
        return Wanted::Everything;
    }
    let Some((first, last)) = spec.split_once('-').filter(|_| !spec.contains(',')) else {
        return Wanted::Everything;
    };
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), _) if first >= total => Wanted::Nothing,
        (Ok(first), Ok(last)) if first <= last => Wanted::Part { first, last: last.min(total - 1) },
        (Ok(first), Err(_)) if last.is_empty() => Wanted::Part { first, last: total - 1 },
        (Err(_), Ok(0)) if first.is_empty() => Wanted::Nothing,
        (Err(_), Ok(suffix)) if first.is_empty() && total > 0 => {
            Wanted::Part { first: total.saturating_sub(suffix), last: total - 1 }
        }
        _ => Wanted::Everything,
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        307 => "Temporary Redirect",
        401 => "Unauthorized",
        404 => "Not Found",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        503 => "Service Unavailable",
        _ => "Whatever",
    }
}
