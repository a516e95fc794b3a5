//! A TCP proxy that breaks what passes through it, for connections whose far end is not an origin.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::lock;
use super::port::{Port, drained};
use super::server::{Ending, Server, Service};

const PIECE: usize = 64 << 10;

/// Forwards connections to one upstream address, counts, and cuts. Dropping it closes everything.
pub struct CuttingProxy {
    port: Port,
    wires: Arc<Wires>,
    server: Server,
}

struct Wires {
    upstream: SocketAddr,
    /// Taken by the connection that carries the last byte before the break.
    planned: Mutex<Option<Break>>,
    down: AtomicU64,
    up: AtomicU64,
}

struct Break {
    left: u64,
    reset: bool,
}

impl CuttingProxy {
    /// Listens on a free port of 127.0.0.1.
    pub fn start(upstream: SocketAddr) -> Self {
        let port = Port::reserve().expect("loopback has free ports");
        let wires =
            Wires { upstream, planned: Mutex::default(), down: AtomicU64::new(0), up: AtomicU64::new(0) };
        let proxy = Self { port, wires: Arc::new(wires), server: Server::default() };
        proxy.resume();
        proxy
    }

    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// Closes (FIN) the connection that carries the `n`th byte downstream from now, right after that byte. Bytes of all
    /// connections count, headers included. Happens once; other connections go on.
    pub fn cut_after(&self, n: u64) {
        *lock(&self.wires.planned) = Some(Break { left: n, reset: false });
    }

    /// Like [`CuttingProxy::cut_after`], with a reset (RST) once the client's kernel has the byte.
    pub fn reset_after(&self, n: u64) {
        *lock(&self.wires.planned) = Some(Break { left: n, reset: true });
    }

    /// Resets every open connection and refuses new ones.
    pub async fn refuse(&self) {
        self.server.stop().await;
    }

    /// Listens again on the same port.
    pub fn resume(&self) {
        self.server.start(&self.port, &self.wires);
    }

    /// Bytes handed to clients.
    pub fn bytes_down(&self) -> u64 {
        self.wires.down.load(Ordering::Relaxed)
    }

    /// Bytes handed to the upstream.
    pub fn bytes_up(&self) -> u64 {
        self.wires.up.load(Ordering::Relaxed)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.server.accepted()
    }
}

impl Service for Wires {
    async fn serve(&self, client: &mut TcpStream) -> Ending {
        let Ok(mut upstream) = TcpStream::connect(self.upstream).await else {
            return Ending::Reset;
        };
        let (from_client, to_client) = client.split();
        let (from_upstream, to_upstream) = upstream.split();
        tokio::select! {
            ending = self.carry_down(from_upstream, to_client) => ending.unwrap_or(Ending::Reset),
            _ = self.carry_up(from_client, to_upstream) => Ending::Reset,
        }
    }
}

impl Wires {
    async fn carry_down(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<Ending> {
        let mut buffer = vec![0; PIECE];
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                return Ok(Ending::Close);
            }
            let (allowed, broken) = self.allow(read);
            to.write_all(&buffer[..allowed]).await?;
            self.down.fetch_add(allowed as u64, Ordering::Relaxed);
            match broken {
                None => {}
                Some(Ending::Close) => return Ok(Ending::Close),
                Some(Ending::Reset) => {
                    drained(to.as_ref()).await;
                    return Ok(Ending::Reset);
                }
            }
        }
    }

    /// Ends only with an error: after the client's FIN the answer may still be on its way.
    async fn carry_up(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                to.shutdown().await?;
                std::future::pending::<()>().await;
            }
            to.write_all(&buffer[..read]).await?;
            self.up.fetch_add(read as u64, Ordering::Relaxed);
        }
    }

    /// How many of `wanted` bytes may go down, and what happens behind them.
    fn allow(&self, wanted: usize) -> (usize, Option<Ending>) {
        let mut planned = lock(&self.planned);
        let Some(plan) = planned.as_mut() else {
            return (wanted, None);
        };
        match usize::try_from(plan.left) {
            Ok(left) if left <= wanted => {
                let ending = if plan.reset { Ending::Reset } else { Ending::Close };
                *planned = None;
                (left, Some(ending))
            }
            _ => {
                plan.left -= wanted as u64;
                (wanted, None)
            }
        }
    }
}
