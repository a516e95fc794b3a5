//! The real binary as a child process, with a cache directory of its own that outlives restarts.
//!
//! ```ignore
//! let origin = Origin::start().await;
//! let mut edge = Edge::with(&origin, "[tags]\nttl = \"0\"").await;
//! let blob = http::get(edge.addr(), &format!("/v2/app/blobs/{digest}"), &[]).await;
//! edge.kill().await; // SIGKILL
//! edge.restart().await; // the same cache, another port
//! ```

#![allow(dead_code, unreachable_pub, reason = "each test crate uses another part of it")]
#![allow(clippy::format_push_string, reason = "a configuration is no hot path")]

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};

use super::http;
use super::origin::Origin;

/// The upstream that [`Edge::start`] and [`Edge::with`] configure, and the default one.
pub const UPSTREAM: &str = "origin.test";

/// A start takes milliseconds; a machine that tests everything at once gets more.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Longer than the longest `drain_timeout` of any test.
const STOP_LIMIT: Duration = Duration::from_secs(40);
/// What [`until`] waits for comes in milliseconds or never.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where `mount` and a shell are.
const SYSTEM_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
const PYTHON: &str = "python3";
const FAULTY_DISK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/faulty_disk.py");
/// What Linux shows CPU times in to every program, whatever the kernel counts in.
const TICKS_PER_SECOND: f64 = 100.0;

/// How an edge is set up.
#[must_use]
pub struct Builder {
    listen: String,
    routing: String,
    upstreams: String,
    toml: String,
    environment: Vec<(String, String)>,
    file_system: Option<Kind>,
}

/// A file system of the cache's own.
enum Kind {
    /// In memory, with these options of its mount.
    Memory(String),
    /// Another directory, with faults on demand.
    Faulty,
}

impl Builder {
    /// An upstream with one endpoint. Plain `key = value` lines may follow in `keys`.
    pub fn upstream(mut self, name: &str, url: &str, keys: &str) -> Self {
        self.upstreams += &format!("[upstreams.\"{name}\"]\nurl = \"{url}\"\n{keys}\n");
        self
    }

    /// An upstream with several endpoints, in the order in which they are tried.
    pub fn endpoints(mut self, name: &str, urls: &[&str]) -> Self {
        for url in urls {
            self.upstreams += &format!("[[upstreams.\"{name}\".endpoints]]\nurl = \"{url}\"\n");
        }
        self
    }

    /// The lines of `[routing]`; without, the default upstream is [`UPSTREAM`] and none is built in.
    pub fn routing(mut self, lines: &str) -> Self {
        lines.clone_into(&mut self.routing);
        self
    }

    /// Further keys of the listener.
    pub fn listen(mut self, keys: &str) -> Self {
        self.listen += &format!("{keys}\n");
        self
    }

    /// No listener in the configuration.
    pub fn without_listen(mut self) -> Self {
        self.listen.clear();
        self
    }

    /// The keys of the listener, its address included.
    pub fn only_listen(mut self, keys: &str) -> Self {
        self.listen = format!("[[listen]]\n{keys}\n");
        self
    }

    /// Further tables of the configuration.
    pub fn toml(mut self, text: &str) -> Self {
        self.toml += &format!("{text}\n");
        self
    }

    /// A variable of the process, which gets no others of the test's.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The cache lies on a file system of its own, in memory, with these options of its mount. Needs user namespaces:
    /// see [`has_namespaces`].
    pub fn file_system(mut self, options: &str) -> Self {
        self.file_system = Some(Kind::Memory(options.to_owned()));
        self
    }

    /// The cache lies on a disk that fails on demand: see [`Edge::fail_disk`] and [`has_faulty_disks`].
    pub fn faulty_disk(mut self) -> Self {
        self.file_system = Some(Kind::Faulty);
        self
    }

    /// Writes the configuration and starts the process.
    pub async fn start(self) -> Edge {
        self.prepare().start().await
    }

    /// Writes the configuration only, for commands and for starts that fail.
    pub fn prepare(self) -> Prepared {
        let directory = tempfile::tempdir().expect("there is room for temporary files");
        let config = directory.path().join("edge.toml");
        let cache = directory.path().join("cache");
        let text = format!(
            "{}[store]\ndirectory = \"{}\"\n[log]\nlevel = \"trace\"\n\
             [routing]\n{}\n{}{}",
            self.listen,
            cache.display(),
            self.routing,
            self.upstreams,
            self.toml
        );
        fs::write(&config, text).expect("there is room for a configuration");
        let file_system = self.file_system.map(|kind| FileSystem { kind, keeper: None });
        Prepared { directory, config, cache, environment: self.environment, file_system }
    }
}

/// A configuration on disk, with the directories of its edge.
pub struct Prepared {
    directory: TempDir,
    config: PathBuf,
    cache: PathBuf,
    environment: Vec<(String, String)>,
    file_system: Option<FileSystem>,
}

/// A file system in a mount namespace of its own.
struct FileSystem {
    kind: Kind,
    /// Holds the namespace, so that the file system outlives the edge; ends when its standard input does.
    keeper: Option<Child>,
}

impl FileSystem {
    async fn mount(&mut self, on: &Path) {
        const SCRIPT: &str =
            r#"mkdir -p "$1" && mount -t tmpfs -o "$2" cache "$1" && echo mounted && exec cat"#;
        let mut command = Command::new("unshare");
        match &self.kind {
            Kind::Memory(options) => command.args(["-Urm", "sh", "-c", SCRIPT, "sh"]).arg(on).arg(options),
            Kind::Faulty => {
                let (backing, control) = (on.with_extension("backing"), on.with_extension("fault"));
                command.args(["-Urm", PYTHON, FAULTY_DISK]).args([on, &backing, &control])
            }
        };
        command.env_clear().env("PATH", SYSTEM_PATH).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut keeper = command.kill_on_drop(true).spawn().expect("has_namespaces was asked");
        let mut line = String::new();
        let mut stdout = BufReader::new(keeper.stdout.take().expect("stdout is piped"));
        let read = timeout(START_LIMIT, stdout.read_line(&mut line)).await;
        assert_eq!(line, "mounted\n", "{read:?}");
        self.keeper = Some(keeper);
    }

    fn pid(&self) -> u32 {
        self.keeper.as_ref().and_then(Child::id).expect("it is mounted")
    }

    /// A program in the namespace. The process is the program's.
    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--preserve-credentials", "-U", "-m", "-t", &self.pid().to_string(), "--"]);
        command.env("PATH", SYSTEM_PATH).kill_on_drop(true);
        command
    }
}

impl Prepared {
    /// The binary with this configuration and these further arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = binary(self.directory.path());
        command.arg("--config").arg(&self.config).args(arguments);
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        command
    }

    /// The same where its own file system is mounted.
    fn command_on(&self, file_system: &FileSystem, arguments: &[&str]) -> Command {
        let inner = self.command(arguments);
        let inner = inner.as_std();
        let mut command = file_system.enter();
        command.arg(inner.get_program()).args(inner.get_args()).env_clear();
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("PATH", SYSTEM_PATH).stdin(Stdio::null());
        command
    }

    /// Starts the process.
    pub async fn start(mut self) -> Edge {
        if let Some(file_system) = &mut self.file_system {
            file_system.mount(&self.cache).await;
        }
        let (child, stdout, endpoints) = self.launch().await;
        Edge { prepared: self, child, stdout, endpoints }
    }

    /// Runs a command to its end.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        finished(self.command(arguments)).await
    }

    /// A file of the test's beside the configuration, for passwords and the like.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    fn log_path(&self) -> PathBuf {
        self.path("edge.log")
    }

    fn log(&self) -> String {
        fs::read(self.log_path())
            .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn launch(&self) -> (Child, BufReader<ChildStdout>, Vec<String>) {
        let log = File::options().create(true).append(true).open(self.log_path());
        let log = log.expect("there is room for a log");
        let mut command = match &self.file_system {
            None => self.command(&["serve"]),
            Some(file_system) => self.command_on(file_system, &["serve"]),
        };
        command.stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().expect("cargo has built the binary");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        let read = timeout(START_LIMIT, stdout.read_line(&mut line)).await;
        let endpoints: Option<Vec<_>> = line
            .trim()
            .strip_prefix("ClawHub Edge listens on ")
            .map(|rest| rest.split(", ").map(str::to_owned).collect());
        let endpoints = endpoints.unwrap_or_else(|| panic!("no start: {read:?} {line:?}\n{}", self.log()));
        (child, stdout, endpoints)
    }
}

/// A running edge. Dropping it kills the process.
pub struct Edge {
    prepared: Prepared,
    child: Child,
    /// Kept open: a process whose standard output is closed is another test.
    stdout: BufReader<ChildStdout>,
    endpoints: Vec<String>,
}

impl Edge {
    /// In front of this origin, with the default settings.
    pub async fn start(origin: &Origin) -> Self {
        Self::with(origin, "").await
    }

    /// In front of this origin, with further tables of the configuration.
    pub async fn with(origin: &Origin, toml: &str) -> Self {
        Self::builder().upstream(UPSTREAM, &origin.url(), "").toml(toml).start().await
    }

    /// Without any upstream yet.
    pub fn builder() -> Builder {
        Builder {
            listen: "[[listen]]\naddress = \"127.0.0.1:0\"\n".to_owned(),
            routing: format!("builtin = false\ndefault_upstream = \"{UPSTREAM}\""),
            upstreams: String::new(),
            toml: String::new(),
            environment: Vec::new(),
            file_system: None,
        }
    }

    /// The first listener that has an address.
    pub fn addr(&self) -> SocketAddr {
        let mut addresses =
            self.endpoints.iter().filter_map(|endpoint| endpoint.split_once("://")?.1.parse().ok());
        addresses.next().expect("a listener with an address")
    }

    /// Every listener for pulls, as the edge introduces itself.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Everything that this edge has logged so far, earlier processes included.
    pub fn log(&self) -> String {
        self.prepared.log()
    }

    /// Configuration and directories.
    pub fn prepared(&self) -> &Prepared {
        &self.prepared
    }

    /// SIGTERM, and waits for the end of the process.
    pub async fn stop(&mut self) -> ExitStatus {
        self.terminate();
        self.ended().await
    }

    /// SIGTERM without waiting.
    pub fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).expect("the process lives");
    }

    /// SIGHUP.
    pub fn hang_up(&self) {
        kill_process(self.pid(), Signal::HUP).expect("the process lives");
    }

    /// Waits for the end of the process.
    pub async fn ended(&mut self) -> ExitStatus {
        let ended = timeout(STOP_LIMIT, self.child.wait()).await;
        ended.expect("the edge ends within its drain time-out").expect("a child can be waited for")
    }

    /// SIGKILL, and waits for the end of the process.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("the process lives");
        let status = self.ended().await;
        assert_eq!(status.signal(), Some(9), "the edge had ended before: {status}");
    }

    /// A new process on the same cache and configuration; the old one is stopped if it still runs. The port changes.
    pub async fn restart(&mut self) {
        if self.child.id().is_some() {
            self.stop().await;
        }
        (self.child, self.stdout, self.endpoints) = self.prepared.launch().await;
    }

    /// Sets a variable of the next process.
    pub fn set_env(&mut self, name: &str, value: &str) {
        let environment = &mut self.prepared.environment;
        environment.retain(|(known, _)| known != name);
        environment.push((name.to_owned(), value.to_owned()));
    }

    /// Anonymous memory in bytes: what the process has allocated, without page cache and code.
    pub fn rss_anon(&self) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        kib.expect("Linux says RssAnon") << 10
    }

    /// CPU time of all threads, in user and kernel mode.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = self.proc("stat");
        // Behind the name, which may hold anything, the fields are numbered from 3.
        let fields: Vec<_> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
        let ticks = |field: usize| fields[field - 3].parse::<f64>().expect("a number");
        (ticks(14) + ticks(15)) / TICKS_PER_SECOND
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> String {
        http::get(self.addr(), "/metrics", &[]).await.text()
    }

    /// The value of one series that counts, as `clawhub_edge_fills_total{outcome="sealed"}`; 0 while it is not there.
    pub async fn metric(&self, series: &str) -> u64 {
        let text = self.metrics().await;
        let mut values = text.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        values.next().map_or(0, |value| value.parse().expect("a whole number"))
    }

    /// The hexadecimal digests of everything sealed.
    pub fn blobs(&self) -> Vec<String> {
        let mut found = Vec::new();
        collect(&self.cache().join("blobs"), &mut found);
        found.iter().filter_map(|path| name(path)).collect()
    }

    /// The cache directory, as the test can reach it.
    pub fn cache(&self) -> PathBuf {
        match &self.prepared.file_system {
            None => self.prepared.cache.clone(),
            Some(file_system) => {
                let root = PathBuf::from(format!("/proc/{}/root", file_system.pid()));
                root.join(self.prepared.cache.strip_prefix("/").expect("an absolute path"))
            }
        }
    }

    /// Runs a shell line where the edge's own file system is mounted; `$1` is the cache directory.
    ///
    /// # Panics
    /// If it fails.
    pub async fn run_inside(&self, line: &str) {
        let file_system = self.prepared.file_system.as_ref().expect("a file system of its own");
        let mut command = file_system.enter();
        command.args(["sh", "-c", line, "sh"]).arg(&self.prepared.cache);
        let output = finished(command).await;
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// From now on whatever would `write` to the disk fails with EIO, or whatever would `read` what was not just
    /// written; with `""` nothing.
    pub fn fail_disk(&self, what: &str) {
        let control = self.prepared.cache.with_extension("fault");
        fs::write(control, what).expect("there is room for a word");
    }

    /// Fills the file system of the cache to its last byte; returns what to remove.
    pub fn fill_disk(&self) -> PathBuf {
        let path = self.cache().join("filler");
        let mut file = File::create(&path).expect("there is an inode left");
        for size in [1 << 20, 4096] {
            let zeros = vec![0; size];
            while std::io::Write::write_all(&mut file, &zeros).is_ok() {}
        }
        path
    }

    /// Whether the digest is sealed in the cache.
    pub fn has_blob(&self, digest: &str) -> bool {
        self.blob_path(digest).exists()
    }

    /// Where a sealed blob lies.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").expect("tests know their algorithm");
        self.cache().join("blobs/sha256").join(&hex[..2]).join(hex)
    }

    /// The files of blobs in flight and parked, as (name, length).
    pub fn partials(&self) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        collect(&self.cache().join("partial"), &mut found);
        found.iter().filter_map(|path| Some((name(path)?, path.metadata().ok()?.len()))).collect()
    }

    fn proc(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.pid().as_raw_nonzero());
        fs::read_to_string(path).expect("the process lives")
    }

    /// The process id.
    pub fn pid(&self) -> Pid {
        let id = self.child.id().expect("the process lives");
        i32::try_from(id).ok().and_then(Pid::from_raw).expect("a process id")
    }
}

/// Whether this machine lets a process mount a file system of its own; says so where it does not.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
pub fn has_namespaces() -> bool {
    let tried = std::process::Command::new("unshare").args(["-Urm", "true"]).output();
    let has = tried.is_ok_and(|output| output.status.success());
    if !has {
        eprintln!("skipped: this machine does not allow user namespaces");
    }
    has
}

/// Whether this machine lets a test have a disk that fails on demand; says so where it does not.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
pub fn has_faulty_disks() -> bool {
    let python = std::process::Command::new(PYTHON).args(["-c", ""]).env("PATH", SYSTEM_PATH).output();
    let has_python = python.is_ok_and(|output| output.status.success());
    let has_fuse = File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !has_python || !has_fuse {
        eprintln!("skipped: a disk that fails on demand needs {PYTHON} and /dev/fuse");
    }
    has_python && has_fuse && has_namespaces()
}

/// The binary without configuration and with an environment of its own.
pub fn binary(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clawhub-edge"));
    command.env_clear().env("HOME", home).env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a command to its end, with what it printed.
pub async fn finished(mut command: Command) -> Output {
    let output = timeout(STOP_LIMIT, command.output()).await;
    output.expect("the command ends").expect("cargo has built the binary")
}

/// Asks again and again until the answer is yes, for states that nobody announces.
///
/// # Panics
/// If that never happens.
pub async fn until<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let limit = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < limit, "in vain waited until {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}
