//! What is looked at while something runs: the memory of a subject, the buffers of the machine, the edge's metrics.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::subject::Subject;
use crate::support::clock::pause;
use crate::support::usage;

/// Short enough for a peak that lasts, long enough to cost nothing.
const LOOK: Duration = Duration::from_millis(50);
const PAGE: f64 = 4096.0;

/// The highest figures of a stretch of time.
#[derive(Clone, Copy, Default)]
pub(crate) struct Peaks {
    /// Anonymous memory of the subject, in bytes.
    pub(crate) anonymous: f64,
    /// What the kernel holds for all TCP sockets of the machine, those of the clients included, in bytes.
    pub(crate) sockets: f64,
}

/// Looks at the figures of a subject until it is asked for them.
pub(crate) struct Watch {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Peaks>,
}

impl Watch {
    pub(crate) fn start(subject: &Subject) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, pids) = (Arc::clone(&is_over), usage::tree(&subject.pids()));
        let thread = std::thread::spawn(move || {
            let mut peaks = Peaks::default();
            while !over.load(Ordering::Relaxed) {
                let anonymous: u64 = pids.iter().map(|pid| usage::rss_anon(*pid)).sum();
                peaks.anonymous = peaks.anonymous.max(anonymous as f64);
                peaks.sockets = peaks.sockets.max(socket_memory());
                pause(LOOK);
            }
            peaks
        });
        Self { is_over, thread }
    }

    pub(crate) fn end(self) -> Peaks {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("it only reads files")
    }
}

fn socket_memory() -> f64 {
    let sockets = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let tcp = sockets.lines().find_map(|line| line.strip_prefix("TCP:")).unwrap_or_default();
    let pages = tcp.split_once("mem ").and_then(|(_, pages)| pages.trim().parse::<f64>().ok());
    pages.unwrap_or(0.0) * PAGE
}

/// The sum of the edge's metrics of this name, whatever their labels.
pub(crate) fn metric(edge: SocketAddr, name: &str) -> f64 {
    let mut stream = TcpStream::connect(edge).expect("the edge listens");
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {edge}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("the request is sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the metrics");
    let of_name = |line: &str| {
        let rest = line.strip_prefix("clawhub_edge_")?.strip_prefix(name)?;
        rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    };
    text.lines().filter_map(of_name).sum()
}
