//! What a cold pull costs, beside the bare loop that no cache can beat.
//!
//! `cargo bench --bench fill` runs, interleaved, the bare loop (receive + SHA-256 + write + send,
//! nothing else) and the real edge over the same 600 MB blob, each in a process of its own between
//! the same origin and the same client, and prints medians of the server's CPU-seconds per GiB and
//! of the whole machine's, and the time to the first byte beside the origin's own. Then it lets
//! sixteen clients pull one cold blob from an origin limited to 100 MB/s.
//!
//! Options: `--runs N` (default 5), `--size MB` (default 600), `--json`.

#![allow(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a report on standard output, of figures far below the limits of an f64"
)]

mod bare;
mod client;
mod origin;
mod process;

use std::process::ExitCode;
use std::time::Duration;

use process::{Role, Server, Usage};

const GIB: f64 = (1u64 << 30) as f64;
const CLIENTS: usize = 16;
const LIMITED_RATE: u64 = 100_000_000;

fn main() -> ExitCode {
    if let Some(role) = process::role() {
        return match role {
            Role::Origin => origin::run(),
            Role::Bare => bare::run(),
        };
    }
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| arguments.iter().position(|argument| argument == name).map(|at| at + 1);
    let number = |name: &str, default: u64| {
        option(name).and_then(|at| arguments.get(at)).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (runs, size) = (number("--runs", 5), number("--size", 600) * 1_000_000);
    let blob = origin::Blob::synthetic(size);
    let mut bare = Vec::new();
    let mut edge = Vec::new();
    let mut direct = Vec::new();
    for _ in 0..runs {
        direct.push(measure(&blob, Subject::Origin));
        bare.push(measure(&blob, Subject::Bare));
        edge.push(measure(&blob, Subject::Edge));
    }
    let crowd: Vec<_> = (0..runs.min(3)).map(|_| measure_crowd(&blob)).collect();
    let report = Report { size, direct, bare, edge, crowd };
    if option("--json").is_some() {
        report.print_json();
    } else {
        report.print();
    }
    ExitCode::SUCCESS
}

/// Who answers the client.
#[derive(Clone, Copy)]
enum Subject {
    Origin,
    Bare,
    Edge,
}

/// One cold pull by one client.
struct Run {
    cpu: f64,
    machine_cpu: f64,
    first_byte: Duration,
    seconds: f64,
}

fn measure(blob: &origin::Blob, subject: Subject) -> Run {
    // What the run before has left to be written would be charged to this one.
    rustix::fs::sync();
    let origin = Server::origin(blob, None);
    let server = match subject {
        Subject::Origin => None,
        Subject::Bare => Some(Server::bare(blob, origin.address())),
        Subject::Edge => Some(Server::edge(origin.address())),
    };
    let under_test = server.as_ref().unwrap_or(&origin);
    let before = Usage::of(under_test.pid());
    let pulled = client::pull(under_test.address(), &blob.path());
    let used = Usage::of(under_test.pid()).since(&before);
    assert_eq!(pulled.bytes, blob.size, "the pull is complete");
    Run {
        cpu: used.process,
        machine_cpu: used.machine,
        first_byte: pulled.first_byte,
        seconds: pulled.seconds,
    }
}

/// Sixteen clients at once on one cold blob of a slow origin.
struct Crowd {
    origin_bytes: u64,
    last_over_ideal: f64,
    origin_bytes_at_last_first_byte: u64,
    rss_anon: u64,
}

fn measure_crowd(blob: &origin::Blob) -> Crowd {
    let origin = Server::origin(blob, Some(LIMITED_RATE));
    let edge = Server::edge(origin.address());
    let ideal = blob.size as f64 / LIMITED_RATE as f64;
    let (address, path) = (edge.address(), blob.path());
    let pulls: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || client::pull(address, &path))
        })
        .collect();
    let mut rss_anon = 0;
    while pulls.iter().any(|pull| !pull.is_finished()) {
        rss_anon = rss_anon.max(process::rss_anon(edge.pid()));
        process::pause(Duration::from_millis(100));
    }
    let pulled: Vec<_> = pulls.into_iter().map(|pull| pull.join().expect("a client thread")).collect();
    let longest = pulled.iter().map(|pull| pull.seconds).fold(0.0, f64::max);
    let first_byte = pulled.iter().map(|pull| pull.first_byte).max().unwrap_or_default();
    assert!(pulled.iter().all(|pull| pull.bytes == blob.size), "every pull is complete");
    Crowd {
        origin_bytes: origin::bytes_sent(origin.address()),
        last_over_ideal: longest / ideal,
        origin_bytes_at_last_first_byte: (first_byte.as_secs_f64() * LIMITED_RATE as f64) as u64,
        rss_anon,
    }
}

struct Report {
    size: u64,
    direct: Vec<Run>,
    bare: Vec<Run>,
    edge: Vec<Run>,
    crowd: Vec<Crowd>,
}

/// Median, minimum and maximum.
type Spread = [f64; 3];

/// What is reported of one subject.
struct Row {
    name: &'static str,
    cpu: Spread,
    machine_cpu: Spread,
    first_byte_ms: Spread,
    seconds: Spread,
}

fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    [values[values.len() / 2], values[0], values[values.len() - 1]]
}

impl Report {
    fn rows(&self) -> [Row; 3] {
        let gib = self.size as f64 / GIB;
        [("origin alone", &self.direct), ("bare loop", &self.bare), ("clawhub-edge", &self.edge)].map(
            |(name, runs)| Row {
                name,
                cpu: spread(runs.iter().map(|run| run.cpu / gib)),
                machine_cpu: spread(runs.iter().map(|run| run.machine_cpu / gib)),
                first_byte_ms: spread(runs.iter().map(|run| run.first_byte.as_secs_f64() * 1e3)),
                seconds: spread(runs.iter().map(|run| run.seconds)),
            },
        )
    }

    fn print(&self) {
        let shown = |[median, least, most]: Spread| format!("{median:.2} ({least:.2}–{most:.2})");
        let (megabytes, runs) = (self.size / 1_000_000, self.edge.len());
        println!("One cold pull of {megabytes} MB, {runs} runs: median (minimum–maximum)\n");
        println!("| | server CPU-s/GiB | machine CPU-s/GiB | first byte, ms | seconds |");
        println!("|---|---|---|---|---|");
        let rows = self.rows();
        for row in &rows {
            let columns = [row.cpu, row.machine_cpu, row.first_byte_ms, row.seconds].map(shown).join(" | ");
            println!("| {} | {columns} |", row.name);
        }
        println!("\nedge ÷ bare loop: {:.2} by the server's CPU", rows[2].cpu[0] / rows[1].cpu[0]);
        println!("\n{CLIENTS} clients on the same cold blob, origin at {} MB/s:", LIMITED_RATE / 1_000_000);
        let crowd = |value: fn(&Crowd) -> f64| spread(self.crowd.iter().map(value));
        let before_first_byte = crowd(|run| run.origin_bytes_at_last_first_byte as f64 / 1e6);
        println!("- origin bytes ÷ blob: {:.4}", crowd(|run| run.origin_bytes as f64)[0] / self.size as f64);
        println!("- last client ÷ ideal time: {}", shown(crowd(|run| run.last_over_ideal)));
        println!("- origin MB sent before the last client's first byte: {}", shown(before_first_byte));
        println!("- RssAnon, MB: {}", shown(crowd(|run| run.rss_anon as f64 / 1e6)));
    }

    fn print_json(&self) {
        let rows = self.rows().map(|row| {
            serde_json::json!({
                "name": row.name,
                "cpu_s_per_gib": row.cpu,
                "machine_cpu_s_per_gib": row.machine_cpu,
                "first_byte_ms": row.first_byte_ms,
                "seconds": row.seconds,
            })
        });
        let crowd: Vec<_> = self
            .crowd
            .iter()
            .map(|run| {
                serde_json::json!({
                    "origin_bytes": run.origin_bytes,
                    "last_over_ideal": run.last_over_ideal,
                    "origin_bytes_at_last_first_byte": run.origin_bytes_at_last_first_byte,
                    "rss_anon": run.rss_anon,
                })
            })
            .collect();
        println!("{}", serde_json::json!({ "size": self.size, "runs": rows, "crowd": crowd }));
    }
}
