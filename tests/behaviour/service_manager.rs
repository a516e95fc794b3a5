//! What systemd hears from the process, on a real notification socket.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixDatagram as Socket};
use tokio::time::{Instant, timeout};

use crate::support::edge::{Edge, Prepared, UPSTREAM};
use crate::support::http;
use crate::support::origin::{Fault, Gate, Origin};
use crate::{MIB, blob};

const PATIENCE: Duration = Duration::from_secs(20);
const WATCHDOG: Duration = Duration::from_millis(400);

/// A service manager's end of the socket.
struct Manager {
    socket: Socket,
    _directory: TempDir,
}

impl Manager {
    fn new() -> (Self, PathBuf) {
        let directory = tempfile::tempdir().expect("there is room for temporary files");
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a free path");
        socket.set_nonblocking(true).expect("a socket of our own");
        (Self { socket: Socket::from_std(socket).expect("a runtime"), _directory: directory }, path)
    }

    async fn next(&self, within: Duration) -> Option<String> {
        let mut buffer = [0; 4096];
        let received =
            timeout(within, self.socket.recv(&mut buffer)).await.ok()?.expect("a socket of our own");
        Some(String::from_utf8_lossy(&buffer[..received]).into_owned())
    }

    /// The first message with this text.
    async fn until(&self, text: &str) -> String {
        let limit = Instant::now() + PATIENCE;
        loop {
            let message = self.next(limit - Instant::now()).await;
            let message = message.unwrap_or_else(|| panic!("{text} was never said"));
            if message.contains(text) {
                return message;
            }
        }
    }

    /// Takes what has been said until nothing comes for several times the watchdog's interval.
    async fn silence(&self) {
        let limit = Instant::now() + PATIENCE;
        while self.next(4 * WATCHDOG).await.is_some() {
            assert!(Instant::now() < limit, "the watchdog is still fed");
        }
    }
}

/// An edge that has a service manager, in front of this origin.
fn managed(origin: &Origin) -> (Prepared, Manager) {
    let (manager, path) = Manager::new();
    let prepared = Edge::builder()
        .upstream(UPSTREAM, &origin.url(), "")
        .env("NOTIFY_SOCKET", &path.display().to_string())
        .env("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string())
        .prepare();
    (prepared, manager)
}

fn signal(edge: &Edge, signal: Signal) {
    kill_process(edge.pid(), signal).expect("the process lives");
}

#[tokio::test]
async fn readiness_comes_with_sockets_that_accept_and_the_status_says_where() {
    let origin = Origin::start().await;
    let (prepared, manager) = managed(&origin);
    let edge = prepared.start();
    let (message, edge) = tokio::join!(manager.until("READY=1"), edge);
    assert!(TcpStream::connect(edge.addr()).await.is_ok());
    assert!(message.contains(&format!("STATUS=Serves on http://{}", edge.addr())), "{message}");
}

#[tokio::test]
async fn the_watchdog_is_fed_until_the_process_hangs_and_again_after() {
    let origin = Origin::start().await;
    let (prepared, manager) = managed(&origin);
    let edge = prepared.start().await;
    for _ in 0..3 {
        manager.until("WATCHDOG=1").await;
    }
    signal(&edge, Signal::STOP);
    manager.silence().await;
    signal(&edge, Signal::CONT);
    manager.until("WATCHDOG=1").await;
}

#[tokio::test]
async fn a_reload_is_announced_and_ends() {
    let origin = Origin::start().await;
    let (prepared, manager) = managed(&origin);
    let edge = prepared.start().await;
    manager.until("READY=1").await;
    signal(&edge, Signal::HUP);
    assert!(manager.until("RELOADING=1").await.contains("MONOTONIC_USEC="));
    manager.until("READY=1").await;
}

#[tokio::test]
async fn a_drain_asks_for_time_and_says_what_it_waits_for() {
    const SIZE: u64 = 8 * MIB;
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, 1);
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).gate_at(SIZE / 2, &gate));
    let (prepared, manager) = managed(&origin);
    let mut edge = prepared.start().await;
    let mut client = http::open(edge.addr(), &blob("app", &digest), &[]).await;
    client.read(1 << 20).await;
    manager.until("fetches under way 1").await;
    edge.terminate();
    manager.until("STOPPING=1").await;
    let message = manager.until("EXTEND_TIMEOUT_USEC=").await;
    assert!(message.contains("STATUS=Drains") && message.contains("fetches under way 1"), "{message}");
    gate.open();
    assert!(client.drain().await.complete);
    assert!(edge.ended().await.success());
}
