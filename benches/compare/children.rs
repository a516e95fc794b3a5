//! The processes that a comparison starts, and that none of them outlives it.
//!
//! Each child leads a process group of its own and is killed, with its group, when its [`Child`] is dropped. For the
//! ends that drop nothing (Ctrl-C, SIGKILL) a keeper, started first, reads from a pipe which groups there are and which
//! directory is to be removed, and cleans up once the pipe closes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, ChildStdin, Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::support::clock::{now, pause};

const ROLE: &str = "CLAWHUB_BENCH_ROLE";
const PREFIX: &str = "CLAWHUB_BENCH_";
/// A start takes milliseconds, docker-registry's a second.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The role that this process was started in, if it is a child.
pub(crate) fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// A value that the parent has handed down; empty where it has none.
pub(crate) fn setting(name: &str) -> String {
    std::env::var(format!("{PREFIX}{}", name.to_uppercase())).unwrap_or_default()
}

/// This program in another role.
pub(crate) fn own(role: &str, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.env(ROLE, role);
    command.envs(settings.iter().map(|(name, value)| (format!("{PREFIX}{}", name.to_uppercase()), value)));
    command
}

/// This program with its own arguments, in a network namespace.
pub(crate) fn namespaced() -> Command {
    let mut command = Command::new("unshare");
    command.arg("--net").arg(std::env::current_exe().expect("a path")).args(std::env::args_os().skip(1));
    command.env(format!("{PREFIX}NAMESPACE"), "own");
    command
}

/// The temporary directory of a comparison, and who cleans up after it.
pub(crate) struct Ground {
    directory: PathBuf,
    keeper: Mutex<ChildStdin>,
    keeper_process: process::Child,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("clawhub-compare-").tempdir().expect("a directory");
        let directory = directory.keep();
        let mut keeper_process = own("keeper", &[])
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("this program starts itself");
        let mut keeper = keeper_process.stdin.take().expect("piped");
        writeln!(keeper, "directory {}", directory.display()).expect("the keeper listens");
        Self { directory, keeper: Mutex::new(keeper), keeper_process }
    }

    /// A new directory below the temporary one.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        fs::create_dir_all(&path).expect("a directory");
        path
    }

    /// Has the keeper remove this empty directory once all children have ended.
    pub(crate) fn remove_at_the_end(&self, directory: &Path) {
        self.tell(&format!("empty {}", directory.display()));
    }

    /// Starts a child whose standard error goes to `log`.
    pub(crate) fn spawn(&self, mut command: Command, log: &Path) -> Child {
        let log = fs::File::options().create(true).append(true).open(log).expect("a log file");
        command.stderr(log).stdin(Stdio::null()).process_group(0);
        let program = command.get_program().to_owned();
        let process = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        self.tell(&format!("group {}", process.id()));
        Child { process }
    }

    fn tell(&self, line: &str) {
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(keeper, "{line}").expect("the keeper listens");
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = writeln!(self.keeper.get_mut().unwrap_or_else(PoisonError::into_inner), "end");
        let _ = self.keeper_process.wait();
    }
}

/// The keeper's process.
pub(crate) fn keep() -> ExitCode {
    let (mut groups, mut empties, mut directory) = (Vec::new(), Vec::new(), None);
    for line in std::io::stdin().lines().map_while(Result::ok) {
        match line.split_once(' ') {
            Some(("group", pid)) => groups.extend(pid.parse().ok().and_then(Pid::from_raw)),
            Some(("directory", path)) => directory = Some(PathBuf::from(path)),
            Some(("empty", path)) => empties.push(PathBuf::from(path)),
            _ => break,
        }
    }
    for group in groups {
        // Most have ended before; only this comparison's children had these groups, which no new process of another
        // program can join.
        let _ = kill_process_group(group, Signal::KILL);
    }
    pause(Duration::from_millis(100));
    for path in empties {
        let _ = fs::remove_dir(path);
    }
    if let Some(directory) = directory {
        let _ = fs::remove_dir_all(directory);
    }
    ExitCode::SUCCESS
}

/// A child with its process group, killed when dropped.
pub(crate) struct Child {
    process: process::Child,
}

impl Child {
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The address at the end of the first line on standard output.
    pub(crate) fn announced(&mut self) -> SocketAddr {
        let mut line = String::new();
        let mut stdout = BufReader::new(self.process.stdout.take().expect("piped"));
        stdout.read_line(&mut line).expect("a line");
        // What else it says is read away, so that it never waits for a reader.
        std::thread::spawn(move || std::io::copy(&mut stdout.take(u64::MAX), &mut std::io::sink()));
        let address = line.trim().rsplit(['/', ' ']).next().and_then(|text| text.parse().ok());
        address.unwrap_or_else(|| panic!("no address in {line:?}"))
    }

    /// Has it end in an orderly way, and waits for that.
    pub(crate) fn stop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.process.id().cast_signed()) {
            kill_process(pid, Signal::TERM).expect("a child of ours");
        }
        self.process.wait().expect("a child of ours");
    }

    /// Waits until it accepts connections.
    pub(crate) fn listening(&mut self, address: SocketAddr, log: &Path) {
        let started = now();
        while TcpStream::connect(address).is_err() {
            let ended = self.process.try_wait().expect("a child of ours");
            let may_come = ended.is_none() && started.elapsed() <= START_LIMIT;
            assert!(may_come, "no start: {ended:?}\n{}", fs::read_to_string(log).unwrap_or_default());
            pause(Duration::from_millis(2));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.process.id().cast_signed()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.process.wait();
    }
}

/// An address that nobody listens on.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound address")
}
