//! A loopback port that can stop listening and come back, and what the kernel knows about a socket.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

/// Waiting connections; a hundred clients at once are an ordinary test.
const BACKLOG: u32 = 1024;
/// What one connection may hold in the kernel: a small one keeps "bytes sent" close to "bytes received".
const SEND_BUFFER: u32 = 128 << 10;
/// A client that does not read for this long gets its reset early.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// On loopback a connection that is not made by then is not being made.
const HANDSHAKE: Duration = Duration::from_millis(150);

/// A port of 127.0.0.1 that nobody else gets while this lives, listening or not: the bound socket that never listens
/// keeps the kernel from handing it to a parallel test.
pub(super) struct Port {
    addr: SocketAddr,
    _keeper: TcpSocket,
}

impl Port {
    pub(super) fn reserve() -> io::Result<Self> {
        let keeper = socket(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into())?;
        Ok(Self { addr: keeper.local_addr()?, _keeper: keeper })
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(super) fn listen(&self) -> io::Result<TcpListener> {
        let socket = socket(self.addr)?;
        socket.set_send_buffer_size(SEND_BUFFER)?;
        socket.listen(BACKLOG)
    }
}

fn socket(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

/// An address that swallows connection attempts without a word, like a host behind a dropping firewall: its accept
/// queue is full, so Linux ignores every further SYN. For connect deadlines.
pub struct SilentHost {
    addr: SocketAddr,
    _listener: TcpListener,
    _fillers: Vec<TcpStream>,
}

impl SilentHost {
    /// Occupies a fresh port.
    pub async fn start() -> Self {
        Self::at(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// Occupies the address of an origin that has vanished; drop this before the origin comes back.
    pub async fn at(addr: SocketAddr) -> Self {
        let listener = socket(addr).and_then(|socket| socket.listen(0)).expect("the address is free");
        let addr = listener.local_addr().expect("a listener has an address");
        let mut fillers = Vec::new();
        while let Ok(connected) = timeout(HANDSHAKE, TcpStream::connect(addr)).await {
            fillers.push(connected.expect("loopback connects or hangs"));
            assert!(fillers.len() < 64, "this kernel does not drop SYNs when the accept queue is full");
        }
        Self { addr, _listener: listener, _fillers: fillers }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

/// Returns when the peer's kernel has acknowledged every byte written so far, so that a reset destroys none of them.
///
/// The only place where that is visible without `unsafe` is `/proc/net/tcp`, and there it can only be polled.
pub(super) async fn drained(stream: &TcpStream) {
    let (Ok(SocketAddr::V4(local)), Ok(SocketAddr::V4(peer))) = (stream.local_addr(), stream.peer_addr())
    else {
        return;
    };
    let row = format!(" {} {} ", proc_form(local), proc_form(peer));
    let limit = Instant::now() + DRAIN_LIMIT;
    while Instant::now() < limit && unacknowledged(&row).is_some_and(|bytes| bytes > 0) {
        sleep(Duration::from_millis(1)).await;
    }
}

fn proc_form(addr: SocketAddrV4) -> String {
    format!("{:08X}:{:04X}", u32::from_ne_bytes(addr.ip().octets()), addr.port())
}

/// The transmit queue of the socket with this address pair; `None` where there is no such table or row.
fn unacknowledged(row: &str) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let line = table.lines().find(|line| line.contains(row))?;
    let (transmit, _) = line.split_whitespace().nth(4)?.split_once(':')?;
    u64::from_str_radix(transmit, 16).ok()
}
