//! The load client: one thread, one epoll, keep-alive connections that ask again as soon as they are answered.
//!
//! It must never be what is measured. Requests are formatted once; of an answer only the status and the
//! `Content-Length` are looked at; and bodies are received with `MSG_TRUNC`, by which the kernel drops them without
//! copying. That makes the client equally cheap for all, so that what differs is the server. Every byte is counted;
//! what the bytes are is checked by [`verify`], once per subject.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::net::{RecvFlags, recv};
use sha2::{Digest, Sha256};

use crate::support::clock::now;
use crate::support::{content, usage};

/// The most that is received at once.
const PIECE: usize = 1 << 20;
/// The longest head of an answer.
const HEAD: usize = 16 << 10;

/// What is asked for.
pub(crate) struct Load<'a> {
    pub(crate) address: SocketAddr,
    /// Asked for in turn.
    pub(crate) paths: &'a [String],
    pub(crate) connections: usize,
    /// All together.
    pub(crate) requests: usize,
    /// Whether bodies are copied to the client's memory, as a real one would.
    pub(crate) copy: bool,
    /// No request is sent after this long.
    pub(crate) limit: Option<Duration>,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Moved {
    pub(crate) bytes: u64,
    pub(crate) requests: usize,
    pub(crate) seconds: f64,
    /// From the request to the first byte of the answer, in microseconds, sorted.
    pub(crate) first_byte: Vec<f64>,
    /// When the first byte of each body came.
    pub(crate) bodies: Vec<Instant>,
    /// From the request to the last byte, in microseconds, sorted.
    pub(crate) latency: Vec<f64>,
    /// CPU-seconds of the client.
    pub(crate) client: f64,
}

impl Moved {
    /// Counts a whole answer.
    pub(crate) fn count(&mut self, asked: Instant, first_byte: f64, bytes: u64) {
        self.first_byte.push(first_byte);
        self.latency.push(micros(asked.elapsed()));
        self.bytes += bytes;
        self.requests += 1;
    }

    /// Adds what another part of the same load has moved; their times are one.
    pub(crate) fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.requests += other.requests;
        self.first_byte.extend(other.first_byte);
        self.latency.extend(other.latency);
    }

    pub(crate) fn sort(&mut self) {
        self.first_byte.sort_by(f64::total_cmp);
        self.latency.sort_by(f64::total_cmp);
    }
}

struct Connection {
    stream: TcpStream,
    asked: Instant,
    state: State,
    /// Something of the body has come.
    has_body: bool,
}

enum State {
    Head { received: usize },
    Body { left: u64 },
    Idle,
}

/// A request for this path, as it goes over the wire.
pub(crate) fn request(address: SocketAddr, path: &str) -> Vec<u8> {
    const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
                          application/vnd.docker.distribution.manifest.v2+json";
    format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: {ACCEPT}\r\nUser-Agent: compare\r\n\r\n")
        .into_bytes()
}

impl Load<'_> {
    /// Runs to its end. Panics on anything but complete answers of status 200.
    pub(crate) fn run(&self) -> Moved {
        let requests: Vec<Vec<u8>> = self.paths.iter().map(|path| request(self.address, path)).collect();
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
        let mut connections: Vec<Connection> = (0..self.connections).map(|_| self.connect()).collect();
        for (at, connection) in connections.iter().enumerate() {
            let data = epoll::EventData::new_u64(at as u64);
            epoll::add(&poll, &connection.stream, data, epoll::EventFlags::IN).expect("a new descriptor");
        }
        let mut moved = Moved::default();
        let (mut head, mut body) = (vec![0; HEAD], vec![0; PIECE]);
        let own = std::process::id();
        let (before, started) = (usage::process_seconds(own), now());
        let mut sent = 0;
        for connection in connections.iter_mut().take(self.requests) {
            connection.ask(&requests[sent % requests.len()]);
            sent += 1;
        }
        let mut events = Vec::with_capacity(self.connections.max(1));
        while moved.requests < sent {
            events.clear();
            match epoll::wait(&poll, spare_capacity(&mut events), None) {
                Err(rustix::io::Errno::INTR) => continue,
                result => result.expect("an epoll of ours"),
            };
            for event in &events {
                let at = usize::try_from(event.data.u64()).expect("an index");
                let connection = &mut connections[at];
                if connection.receive(self.copy, &mut head, &mut body, &mut moved) {
                    let late = self.limit.is_some_and(|limit| started.elapsed() > limit);
                    if sent < self.requests && !late {
                        connection.ask(&requests[sent % requests.len()]);
                        sent += 1;
                    }
                }
            }
        }
        moved.seconds = started.elapsed().as_secs_f64();
        moved.client = usage::process_seconds(own) - before;
        moved.sort();
        moved
    }

    fn connect(&self) -> Connection {
        let stream = TcpStream::connect(self.address).expect("the server listens");
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_nonblocking(true).expect("a socket");
        Connection { stream, asked: now(), state: State::Idle, has_body: false }
    }
}

impl Connection {
    fn ask(&mut self, request: &[u8]) {
        self.asked = now();
        self.state = State::Head { received: 0 };
        self.has_body = false;
        // Less than the smallest send buffer, and nothing is in it.
        let sent = self.stream.write(request).expect("the request is sent");
        assert_eq!(sent, request.len(), "the request goes out at once");
    }

    /// Receives once; whether that was the end of an answer.
    fn receive(&mut self, copy: bool, head: &mut [u8], body: &mut [u8], moved: &mut Moved) -> bool {
        let before = moved.bytes;
        let left = match self.state {
            State::Idle => panic!("the server closes a kept connection"),
            State::Head { received } => {
                // One answer is read at a time, so a head in two pieces is read from its beginning with the next.
                let Some(read) = self.peek_head(head, received, moved) else { return false };
                read
            }
            State::Body { left } => {
                let piece = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
                let flags = if copy { RecvFlags::empty() } else { RecvFlags::TRUNC };
                let (read, _) = match recv(&self.stream, &mut body[..piece], flags) {
                    Err(rustix::io::Errno::AGAIN) => return false,
                    result => result.expect("the body arrives"),
                };
                assert!(read > 0, "the body breaks off, {left} bytes before its end");
                moved.bytes += read as u64;
                left - read as u64
            }
        };
        if !self.has_body && moved.bytes > before {
            self.has_body = true;
            moved.bodies.push(now());
        }
        if left > 0 {
            self.state = State::Body { left };
            return false;
        }
        self.state = State::Idle;
        moved.latency.push(micros(self.asked.elapsed()));
        moved.requests += 1;
        true
    }

    /// Reads the head and what comes with it of the body; what is left of the body, if the head is complete.
    fn peek_head(&mut self, head: &mut [u8], before: usize, moved: &mut Moved) -> Option<u64> {
        let (peeked, _) = match recv(&self.stream, &mut *head, RecvFlags::PEEK) {
            Err(rustix::io::Errno::AGAIN) => return None,
            result => result.expect("an answer"),
        };
        assert!(peeked > 0, "the server closes before its answer");
        if before == 0 {
            moved.first_byte.push(micros(self.asked.elapsed()));
        }
        self.state = State::Head { received: peeked };
        let (end, length) = parse_head(&head[..peeked])?;
        // Now that the head is known to be whole, it leaves the socket with what is there of the body.
        let take = usize::try_from(length).map_or(peeked, |length| peeked.min(end + length));
        let (read, _) = recv(&self.stream, &mut head[..take], RecvFlags::TRUNC).expect("what was peeked at");
        assert_eq!(read, take, "what was peeked at is there");
        moved.bytes += (take - end) as u64;
        Some(length - (take - end) as u64)
    }
}

/// Where the body begins and how long it is, once the head is complete.
pub(crate) fn parse_head(bytes: &[u8]) -> Option<(usize, u64)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = &bytes[..end];
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(head));
    let name = b"content-length:";
    let length = head.split(|byte| *byte == b'\n').find_map(|line| {
        let (key, value) = line.split_at_checked(name.len())?;
        key.eq_ignore_ascii_case(name).then(|| std::str::from_utf8(value).ok()?.trim().parse().ok())?
    });
    Some((end, length.unwrap_or_else(|| panic!("no length: {}", String::from_utf8_lossy(head)))))
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Pulls once and compares the digest of the whole body. Panics unless it is right.
pub(crate) fn verify(address: SocketAddr, path: &str, digest: &str) {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.write_all(&request(address, path)).expect("the request is sent");
    let (mut received, mut buffer) = (Vec::new(), vec![0; 256 << 10]);
    let (end, length) = loop {
        let read = stream.read(&mut buffer).expect("an answer");
        assert!(read > 0, "{path}: closed before the answer: {}", String::from_utf8_lossy(&received));
        received.extend_from_slice(&buffer[..read]);
        if let Some(found) = parse_head(&received) {
            break found;
        }
    };
    let (mut hasher, mut left) = (Sha256::new(), length - (received.len() - end) as u64);
    hasher.update(&received[end..]);
    while left > 0 {
        let read = match stream.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result.expect("the body arrives"),
        };
        assert!(read > 0, "{path}: the body breaks off {left} bytes before its end");
        hasher.update(&buffer[..read]);
        left -= read as u64;
    }
    assert_eq!(content::hex(&hasher.finalize()), digest, "{path}: the bytes are right");
}
