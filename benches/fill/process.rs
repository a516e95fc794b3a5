//! The processes of one measurement, and what they use.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::origin::Blob;

const ROLE: &str = "CLAWHUB_BENCH_ROLE";
const PREFIX: &str = "CLAWHUB_BENCH_";
/// `USER_HZ`, fixed on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a child of the benchmark does.
pub(crate) enum Role {
    Origin,
    Bare,
}

/// The role that this process was started in, if it is a child.
pub(crate) fn role() -> Option<Role> {
    match std::env::var(ROLE).ok()?.as_str() {
        "origin" => Some(Role::Origin),
        "bare" => Some(Role::Bare),
        _ => None,
    }
}

/// A value that the parent has handed down; empty where it has none.
pub(crate) fn setting(name: &str) -> String {
    std::env::var(format!("{PREFIX}{}", name.to_uppercase())).unwrap_or_default()
}

/// A child that serves, killed when dropped.
pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
    /// Lives as long as the child that fills it.
    cache: Option<tempfile::TempDir>,
}

impl Server {
    pub(crate) fn origin(blob: &Blob, rate: Option<u64>) -> Self {
        let rate = rate.map_or_else(String::new, |rate| rate.to_string());
        Self::own("origin", &[("SIZE", &blob.size.to_string()), ("DIGEST", &blob.digest), ("RATE", &rate)])
    }

    pub(crate) fn bare(blob: &Blob, origin: SocketAddr) -> Self {
        let (size, origin) = (blob.size.to_string(), origin.to_string());
        Self::own("bare", &[("SIZE", &size), ("ORIGIN", &origin), ("PATH", &blob.path())])
    }

    pub(crate) fn edge(origin: SocketAddr) -> Self {
        let cache = tempfile::tempdir().expect("a directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_clawhub-edge"));
        command
            .args(["--log-level", "warn", "--listen", "127.0.0.1:0", "--cache-dir"])
            .arg(cache.path())
            .env("CLAWHUB_EDGE_UPSTREAMS_DOCKER_IO_URL", format!("http://{origin}"));
        let mut server = Self::start(command);
        server.cache = Some(cache);
        server
    }

    fn own(role: &str, settings: &[(&str, &str)]) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("a path"));
        command.env(ROLE, role).envs(settings.iter().map(|(name, value)| (format!("{PREFIX}{name}"), value)));
        Self::start(command)
    }

    /// Starts the child; its first line ends with its address.
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the child starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let address = line.trim().rsplit(['/', ' ']).next().and_then(|text| text.parse().ok());
        Self { child, address: address.unwrap_or_else(|| panic!("no address in {line:?}")), cache: None }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A child that has ended by itself is as gone as one that was killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.cache = None;
    }
}

/// CPU-seconds spent so far.
pub(crate) struct Usage {
    pub(crate) process: f64,
    pub(crate) machine: f64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Self {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // utime and stime are fields 14 and 15; the name, field 2, may hold spaces.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        let machine = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let busy: f64 = machine
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .enumerate()
            // user, nice, system, irq, softirq; not idle (3) and iowait (4), nor what follows.
            .filter(|(at, _)| matches!(at, 0..=2 | 5 | 6))
            .filter_map(|(_, field)| field.parse::<f64>().ok())
            .sum();
        Self { process: (ticks(11) + ticks(12)) / TICKS_PER_SECOND, machine: busy / TICKS_PER_SECOND }
    }

    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self { process: self.process - earlier.process, machine: self.machine - earlier.machine }
    }
}

/// Anonymous resident memory in bytes.
pub(crate) fn rss_anon(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures the real clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "plain threads, no runtime to block")]
pub(crate) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
