//! The tests' own HTTP/1.1 client: it tells a body that ended from one that broke, which real clients hide.
//!
//! A transfer in which nothing happens for a minute panics, so that a hanging edge fails its test.

#![allow(dead_code, unreachable_pub, reason = "each test crate uses another part of it")]
#![allow(clippy::format_push_string, reason = "a message head is no hot path")]

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// Longer than every deadline of the edge that a test waits for.
const PATIENCE: Duration = Duration::from_mins(1);
/// A response head beyond this is a bug.
const HEAD_LIMIT: usize = 64 << 10;
const PIECE: usize = 256 << 10;

/// A whole response in memory.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// Without chunk framing; what came, if it broke.
    pub body: Vec<u8>,
    /// False if the connection ended before Content-Length or the last chunk.
    pub complete: bool,
    /// From before the connect to the first byte of the body, or of the head if there is none.
    pub first_byte: Duration,
}

impl Response {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// # Panics
    /// If the body is no JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }
}

/// What is left of a body that was read to its end and thrown away.
#[derive(Debug, PartialEq, Eq)]
pub struct Drained {
    pub bytes: u64,
    pub complete: bool,
}

/// GET with these headers.
///
/// # Panics
/// If no response head arrives; see [`try_request`] where that is what the test expects.
pub async fn get(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Response {
    request("GET", addr, path, headers, b"").await
}

/// HEAD with these headers; panics as [`get`] does.
pub async fn head(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Response {
    request("HEAD", addr, path, headers, b"").await
}

/// Any method, with a body if it is not empty; panics as [`get`] does.
pub async fn request(
    method: &str,
    addr: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let response = try_request(method, addr, path, headers, body).await;
    response.unwrap_or_else(|error| panic!("{method} {path} of {addr}: {error}"))
}

/// Any method, on a connection of its own.
///
/// # Errors
/// If no whole response head arrives. A body that breaks is a response with `complete: false`.
pub async fn try_request(
    method: &str,
    addr: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    let started = Instant::now();
    let connection = Connection::open(addr).await?;
    connection.send(method, path, headers, body, started).await?.collect().await
}

/// GET up to the response head; the body waits in the returned transfer. Panics as [`get`] does.
pub async fn open(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Transfer {
    let opened = try_open(addr, path, headers).await;
    opened.unwrap_or_else(|error| panic!("GET {path} of {addr}: {error}"))
}

/// GET up to the response head.
///
/// # Errors
/// If no whole response head arrives.
pub async fn try_open(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> io::Result<Transfer> {
    let started = Instant::now();
    Connection::open(addr).await?.send("GET", path, headers, b"", started).await
}

/// A kept-alive connection, for tests of what one connection carries in sequence.
pub struct Connection {
    stream: TcpStream,
    addr: SocketAddr,
    inbox: BytesMut,
}

impl Connection {
    /// # Errors
    /// Whatever the connect says.
    pub async fn open(addr: SocketAddr) -> io::Result<Self> {
        let stream = patiently(TcpStream::connect(addr)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, addr, inbox: BytesMut::new() })
    }

    /// GET up to the response head. Get the connection back from [`Transfer::into_connection`].
    ///
    /// # Errors
    /// If no whole response head arrives.
    pub async fn get(self, path: &str, headers: &[(&str, &str)]) -> io::Result<Transfer> {
        self.send("GET", path, headers, b"", Instant::now()).await
    }

    async fn send(
        mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        started: Instant,
    ) -> io::Result<Transfer> {
        let mut message = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            message += &format!("Host: {}\r\n", self.addr);
        }
        for (name, value) in headers {
            message += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            message += &format!("Content-Length: {}\r\n", body.len());
        }
        message += "\r\n";
        let message = [message.as_bytes(), body].concat();
        patiently(self.stream.write_all(&message)).await?;
        let (status, headers) = self.read_head().await?;
        let framing = Framing::of(method, status, &headers)?;
        Ok(Transfer {
            status,
            headers,
            connection: self,
            framing,
            started,
            first_byte: started.elapsed(),
            got: 0,
        })
    }

    /// The first final response head; 1xx are passed over.
    async fn read_head(&mut self) -> io::Result<(u16, Vec<(String, String)>)> {
        loop {
            let end = self.find(b"\r\n\r\n").await?;
            let head = self.inbox.split_to(end + 4);
            let head = String::from_utf8_lossy(&head[..end]).into_owned();
            let mut lines = head.split("\r\n");
            let status =
                lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse::<u16>().ok());
            let status = status.ok_or_else(|| invalid("no status line"))?;
            let headers = lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .collect();
            if status >= 200 {
                return Ok((status, headers));
            }
        }
    }

    /// Reads until the pattern is in the inbox; returns where.
    async fn find(&mut self, pattern: &[u8]) -> io::Result<usize> {
        loop {
            if let Some(at) = self.inbox.windows(pattern.len()).position(|window| window == pattern) {
                return Ok(at);
            }
            if self.inbox.len() > HEAD_LIMIT {
                return Err(invalid("a line or head without end"));
            }
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.inbox.reserve(PIECE);
        patiently(self.stream.read_buf(&mut self.inbox)).await
    }
}

/// A response whose head has arrived and whose body is read as the test likes. Dropping it closes the connection.
pub struct Transfer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// From before the connect to the first byte of the body as far as read, else to the head.
    pub first_byte: Duration,
    connection: Connection,
    framing: Framing,
    started: Instant,
    got: u64,
}

enum Framing {
    /// So many bytes are still to come.
    Length(u64),
    /// So many bytes of the current chunk are still to come; `first` before any chunk.
    Chunk {
        left: u64,
        first: bool,
    },
    UntilClose,
    Ended,
    Broken,
}

impl Framing {
    fn of(method: &str, status: u16, headers: &[(String, String)]) -> io::Result<Self> {
        if method == "HEAD" || matches!(status, 204 | 304) {
            return Ok(Self::Ended);
        }
        if find(headers, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return Ok(Self::Chunk { left: 0, first: true });
        }
        match find(headers, "content-length").map(str::parse) {
            None => Ok(Self::UntilClose),
            Some(Ok(0)) => Ok(Self::Ended),
            Some(Ok(length)) => Ok(Self::Length(length)),
            Some(Err(_)) => Err(invalid("no number as Content-Length")),
        }
    }
}

impl Transfer {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// Body bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.got
    }

    /// Whether the body was read to the end that its framing promised.
    pub fn complete(&self) -> bool {
        matches!(self.framing, Framing::Ended)
    }

    /// The next bytes of the body as they come, empty at its end and where it breaks.
    pub async fn next(&mut self) -> Bytes {
        let piece = match self.try_next(usize::MAX).await {
            Ok(piece) => piece,
            Err(_) => self.broken(),
        };
        self.count(piece)
    }

    /// The next `n` bytes of the body, fewer only where it ends or breaks.
    pub async fn read(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(n);
        while bytes.len() < n {
            let piece = match self.try_next(n - bytes.len()).await {
                Ok(piece) => piece,
                Err(_) => self.broken(),
            };
            let piece = self.count(piece);
            if piece.is_empty() {
                break;
            }
            bytes.extend_from_slice(&piece);
        }
        bytes
    }

    /// The rest of the body in memory.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let piece = self.next().await;
            if piece.is_empty() {
                return bytes;
            }
            bytes.extend_from_slice(&piece);
        }
    }

    /// Counts the rest of the body; the count excludes what was read before.
    pub async fn drain(&mut self) -> Drained {
        let before = self.got;
        while !self.next().await.is_empty() {}
        Drained { bytes: self.got - before, complete: self.complete() }
    }

    /// Counts and hashes the rest of the body: its `sha256:` digest if nothing was read before.
    pub async fn digest(&mut self) -> (String, Drained) {
        let before = self.got;
        let mut hash = Sha256::new();
        loop {
            let piece = self.next().await;
            if piece.is_empty() {
                break;
            }
            hash.update(&piece);
        }
        let hex: Vec<_> = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let drained = Drained { bytes: self.got - before, complete: self.complete() };
        (format!("sha256:{}", hex.concat()), drained)
    }

    /// The connection for its next request, once the body is complete.
    pub fn into_connection(self) -> Option<Connection> {
        self.complete().then_some(self.connection)
    }

    /// The rest of it.
    pub async fn collect(mut self) -> io::Result<Response> {
        let body = self.read_to_end().await;
        let complete = self.complete();
        Ok(Response {
            status: self.status,
            headers: self.headers,
            body,
            complete,
            first_byte: self.first_byte,
        })
    }

    fn broken(&mut self) -> Bytes {
        self.framing = Framing::Broken;
        Bytes::new()
    }

    fn count(&mut self, piece: Bytes) -> Bytes {
        if self.got == 0 && !piece.is_empty() {
            self.first_byte = self.started.elapsed();
        }
        self.got += piece.len() as u64;
        piece
    }

    async fn try_next(&mut self, most: usize) -> io::Result<Bytes> {
        if let Framing::Chunk { left: 0, first } = self.framing {
            self.framing = self.next_chunk(first).await?;
        }
        match self.framing {
            Framing::Ended | Framing::Broken => Ok(Bytes::new()),
            Framing::Length(left) => {
                let piece = self.some(left, most).await?;
                let left = left - piece.len() as u64;
                self.framing = if left == 0 { Framing::Ended } else { Framing::Length(left) };
                Ok(piece)
            }
            Framing::Chunk { left, .. } => {
                let piece = self.some(left, most).await?;
                self.framing = Framing::Chunk { left: left - piece.len() as u64, first: false };
                Ok(piece)
            }
            Framing::UntilClose => match self.some(u64::MAX, most).await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.framing = Framing::Ended;
                    Ok(Bytes::new())
                }
                other => other,
            },
        }
    }

    /// Reads a chunk's head, and the end of the chunk before it.
    async fn next_chunk(&mut self, first: bool) -> io::Result<Framing> {
        if !first && !self.line().await?.is_empty() {
            return Err(invalid("no line end behind a chunk"));
        }
        let line = self.line().await?;
        let size = line.split(';').next().and_then(|size| u64::from_str_radix(size.trim(), 16).ok());
        match size.ok_or_else(|| invalid("no chunk size"))? {
            0 => {
                while !self.line().await?.is_empty() {}
                Ok(Framing::Ended)
            }
            left => Ok(Framing::Chunk { left, first: false }),
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        let end = self.connection.find(b"\r\n").await?;
        let line = self.connection.inbox.split_to(end);
        self.connection.inbox.advance(2);
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// At least one byte, and no more than both limits.
    async fn some(&mut self, left: u64, most: usize) -> io::Result<Bytes> {
        let inbox = &self.connection.inbox;
        if inbox.is_empty() && self.connection.fill().await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let inbox = &mut self.connection.inbox;
        let take = inbox.len().min(most).min(usize::try_from(left).unwrap_or(usize::MAX));
        Ok(inbox.split_to(take).freeze())
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

async fn patiently<T>(wait: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("nothing happened for {PATIENCE:?}"))
}
