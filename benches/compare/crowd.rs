//! Clients that read slowly: one thread that takes a little from each connection in turn.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};
use socket2::{Domain, Socket, Type};

use crate::load::request;
use crate::support::clock::{now, pause};

/// What each of them takes in a second.
pub(crate) const RATE: usize = 64 << 10;
/// How often it takes something.
const TURN: Duration = Duration::from_millis(250);
const PIECE: usize = RATE / 4;
/// A turn in parts, so that not all take at the same moment.
const PARTS: usize = 50;
/// Room for two pieces, so that the server feels how slowly they are taken; the kernel doubles it.
const BUFFER: usize = 2 * PIECE;
/// What a segment holds over Ethernet. The kernel makes send buffers for a number of segments, so that those of
/// loopback, of 64 KiB, would have every slow reader hold 4 MiB of them, and a thousand all that TCP may have.
const SEGMENT: u32 = 1460;

/// A crowd of slow readers, gone when it is dropped.
pub(crate) struct Crowd {
    shared: Arc<Shared>,
    started: Instant,
    readers: usize,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    bytes: AtomicU64,
    /// How many have got something.
    served: AtomicUsize,
}

impl Crowd {
    /// So many readers of these paths, in turn.
    pub(crate) fn start(address: SocketAddr, paths: &[String], readers: usize) -> Self {
        let connections: Vec<_> = (0..readers).map(|at| connect(address, &paths[at % paths.len()])).collect();
        let (shared, started) = (Arc::new(Shared::default()), now());
        let sharing = Arc::clone(&shared);
        let thread = std::thread::spawn(move || sharing.read(&connections));
        Self { shared, started, readers, thread: Some(thread) }
    }

    /// Whether each of them has got something.
    pub(crate) fn all_served(&self) -> bool {
        self.shared.served.load(Ordering::Relaxed) == self.readers
    }

    /// What they have got so far, as a share of what they would have taken.
    pub(crate) fn pace(&self) -> f64 {
        let wanted = self.started.elapsed().as_secs_f64() * (RATE * self.readers) as f64;
        self.shared.bytes.load(Ordering::Relaxed) as f64 / wanted
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || !matches!(ended, Some(Err(_))), "a slow reader was let down");
    }
}

fn connect(address: SocketAddr, path: &str) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    // Before the connection, whose window scale follows from it.
    socket.set_recv_buffer_size(BUFFER).expect("a buffer");
    socket.set_tcp_mss(SEGMENT).expect("a TCP socket");
    socket.connect(&address.into()).expect("the server listens");
    let mut stream = TcpStream::from(socket);
    stream.write_all(&request(address, path)).expect("the request is sent");
    stream.set_nonblocking(true).expect("a socket");
    stream
}

impl Shared {
    fn read(&self, connections: &[TcpStream]) {
        let mut got_something = vec![false; connections.len()];
        let mut buffer = vec![0; PIECE];
        let mut due = now();
        for part in (0..PARTS).cycle() {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            for at in (part..connections.len()).step_by(PARTS) {
                let read = take(&connections[at], got_something[at], &mut buffer);
                if read > 0 && !got_something[at] {
                    got_something[at] = true;
                    self.served.fetch_add(1, Ordering::Relaxed);
                }
                self.bytes.fetch_add(read as u64, Ordering::Relaxed);
            }
            due += TURN / PARTS as u32;
            pause(due.saturating_duration_since(now()));
        }
    }
}

/// Takes a piece, if there is one. Panics where the answer is not one, or ends before its reader has gone.
fn take(stream: &TcpStream, has_head: bool, buffer: &mut [u8]) -> usize {
    let flags = if has_head { RecvFlags::TRUNC } else { RecvFlags::empty() };
    let read = match recv(stream, &mut *buffer, flags) {
        Err(rustix::io::Errno::AGAIN) => return 0,
        result => result.map(|(read, _)| read).map_err(io::Error::from).expect("the body arrives"),
    };
    assert!(read > 0, "the body breaks off");
    assert!(has_head || buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..read]));
    read
}
