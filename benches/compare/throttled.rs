//! Hits of a manifest while a large file is read from a slow disk.
//!
//! What a cold read holds up shows only if the requests do not wait for it: they are sent at a fixed pace, and one that
//! could not be sent in time counts from when it was due.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};
use serde_json::json;

use crate::bench::Bench;
use crate::cell::{Idle, order, quantiles};
use crate::load::{parse_head, request, verify};
use crate::origin::{Blob, Manifest};
use crate::plot::{Panel, draw};
use crate::report::{Section, Table};
use crate::stats::{Ratio, Spread};
use crate::subject::{Kind, Setup, Subject};
use crate::support::clock::{now, pause};
use crate::support::usage::tree;
use crate::throttle::{Throttle, forget_large_files};

const SIZE: u64 = 4 << 30;
const QUICK_SIZE: u64 = 1 << 30;
/// Bytes per second of the disk: a hard disk's.
const DISK: u64 = 100_000_000;
const WINDOW: Duration = Duration::from_secs(10);
const QUICK_WINDOW: Duration = Duration::from_secs(3);
/// Far from what any of them can answer, so that waiting is the disk's doing.
const PER_SECOND: u32 = 2000;
const CONNECTIONS: u32 = 16;
/// From the beginning of the read until it is the throttle that sets its pace, and from its end until nothing of it
/// is left.
const SETTLE: Duration = Duration::from_millis(500);
const TITLE: &str = "Hits beside a cold read";
const WINDOWS: [&str; 2] = ["alone", "beside the read"];

/// One cache and what was measured of it, round by round.
struct Row {
    name: &'static str,
    subject: Subject,
    /// p50, p99 and p99.9 in microseconds, alone and beside the read.
    latency: [Vec<[f64; 3]>; 2],
    /// Bytes per second that the disk gave meanwhile.
    disk: Vec<f64>,
}

impl Row {
    fn values(&self, window: usize, quantile: usize) -> Vec<f64> {
        self.latency[window].iter().map(|quantiles| quantiles[quantile]).collect()
    }

    fn ratio(&self, quantile: usize) -> Ratio {
        Ratio::paired(&self.values(1, quantile), &self.values(0, quantile))
    }
}

pub(crate) fn run(bench: &Bench) -> Section {
    let throttle = match Throttle::new(&bench.ground, &bench.ground.directory("throttled"), DISK) {
        Ok(throttle) => throttle,
        Err(why) => {
            let markdown = format!("Not measured: no disk can be throttled on this machine, since {why}.");
            return Section { title: TITLE, markdown, plot: None, figures: json!({ "not_measured": why }) };
        }
    };
    let blob = Blob::new(1, if bench.options.quick { QUICK_SIZE } else { SIZE });
    let manifest = Manifest::new("stable", 2048);
    let (path, digest) = (manifest.path_by_tag(), manifest.digest.clone());
    let origin = bench.origin(std::slice::from_ref(&blob), &[manifest], None);
    let threads = Setup { nginx_directives: "aio threads;", ..Setup::default() };
    let mut rows = [
        ("ClawHub Edge", Kind::Edge, Setup::default()),
        ("nginx", Kind::Nginx, Setup::default()),
        ("nginx, aio threads", Kind::Nginx, threads),
    ]
    .map(|(name, kind, setup)| {
        let subject = bench.subject(kind, origin.address, &setup);
        verify(subject.address, &path, &digest);
        verify(subject.address, &blob.path(), &blob.digest);
        throttle.add(&tree(&subject.pids()));
        Row { name, subject, latency: [Vec::new(), Vec::new()], disk: Vec::new() }
    });
    // Gigabytes on their way to the disk would be in the way of everyone.
    rustix::fs::sync();
    let window = if bench.options.quick { QUICK_WINDOW } else { WINDOW };
    let mut idle = Idle::default();
    for round in 0..bench.options.runs {
        idle.measure();
        for at in order(&[0, 1, 2], round) {
            let row = &mut rows[*at];
            for beside in order(&[false, true], round) {
                let mut hits = Hits::connect(row.subject.address, &path);
                if *beside {
                    let (latency, rate) = beside_a_read(&row.subject, &blob, &throttle, || hits.run(window));
                    row.latency[1].push(latency);
                    row.disk.push(rate);
                } else {
                    row.latency[0].push(hits.run(window));
                }
            }
        }
        bench.say(&format!("throttled: round {} of {}", round + 1, bench.options.runs));
    }
    report(&rows, blob.size, window, &idle)
}

/// The clients that ask for the manifest. They are connected before anything is read: a server in several processes
/// would have those that come later answered by one that is not busy.
struct Hits {
    request: Vec<u8>,
    connections: Vec<TcpStream>,
}

impl Hits {
    fn connect(address: SocketAddr, path: &str) -> Self {
        let request = request(address, path);
        let connect = |_| {
            let mut stream = TcpStream::connect(address).expect("the server listens");
            stream.set_nodelay(true).expect("a TCP socket");
            hit(&mut stream, &request);
            stream
        };
        let connections = (0..CONNECTIONS).map(connect).collect();
        Self { request, connections }
    }

    /// Asks at a fixed pace; p50, p99 and p99.9 of the latencies in microseconds.
    fn run(&mut self, window: Duration) -> [f64; 3] {
        let interval = Duration::from_secs(1) / PER_SECOND;
        let start = now();
        let request = &self.request;
        let mut latencies: Vec<f64> = std::thread::scope(|scope| {
            let clients = self.connections.iter_mut().zip(0..).map(|(stream, at)| {
                let due = start + interval * at;
                scope.spawn(move || keep_pace(stream, request, due, interval * CONNECTIONS, start + window))
            });
            let clients: Vec<_> = clients.collect();
            clients.into_iter().flat_map(|client| client.join().expect("every hit")).collect()
        });
        latencies.sort_by(f64::total_cmp);
        quantiles(&latencies)
    }
}

/// Asks when it is due, until the end; the latencies in microseconds.
fn keep_pace(
    stream: &mut TcpStream,
    request: &[u8],
    mut due: Instant,
    interval: Duration,
    end: Instant,
) -> Vec<f64> {
    let mut latencies = Vec::new();
    while due < end {
        // That this thread wakes up a little late is not the server's doing; that an answer came too late is.
        let wait = due.saturating_duration_since(now());
        let from = if wait.is_zero() {
            due
        } else {
            pause(wait);
            now()
        };
        hit(stream, request);
        latencies.push(from.elapsed().as_secs_f64() * 1e6);
        due += interval;
    }
    latencies
}

/// One request and its whole answer.
fn hit(stream: &mut TcpStream, request: &[u8]) {
    stream.write_all(request).expect("the request is sent");
    let (mut answer, mut length) = ([0; 16 << 10], 0);
    while parse_head(&answer[..length]).is_none_or(|(head, body)| (length as u64) < head as u64 + body) {
        let read = stream.read(&mut answer[length..]).expect("an answer");
        assert!(read > 0, "the answer breaks off");
        length += read;
    }
}

/// Runs something while a client reads the blob, nothing of which is in memory at first; with it how many bytes per
/// second the disk gave.
fn beside_a_read<T>(
    subject: &Subject,
    blob: &Blob,
    throttle: &Throttle,
    run: impl FnOnce() -> T,
) -> (T, f64) {
    assert!(forget_large_files(&subject.directory, blob.size) > 0, "the blob is on the disk");
    let is_over = AtomicBool::new(false);
    let (came, rate) = std::thread::scope(|scope| {
        scope.spawn(|| read_until(subject.address, blob, &is_over));
        pause(SETTLE);
        let (before, started) = (throttle.bytes_read(), now());
        let came = run();
        let rate = (throttle.bytes_read() - before) as f64 / started.elapsed().as_secs_f64();
        is_over.store(true, Ordering::Relaxed);
        (came, rate)
    });
    pause(SETTLE);
    (came, rate)
}

/// Reads the blob until it is over.
fn read_until(address: SocketAddr, blob: &Blob, is_over: &AtomicBool) {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.write_all(&request(address, &blob.path())).expect("the request is sent");
    stream.set_read_timeout(Some(SETTLE / 10)).expect("a socket");
    let (mut buffer, mut bytes) = (vec![0; 1 << 20], 0);
    while !is_over.load(Ordering::Relaxed) && bytes < blob.size {
        match recv(&stream, &mut buffer[..], RecvFlags::TRUNC) {
            Ok((0, _)) => panic!("the body breaks off"),
            Ok((read, _)) => bytes += read as u64,
            Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => panic!("the body breaks off: {error}"),
        }
    }
}

fn report(rows: &[Row], size: u64, window: Duration, idle: &Idle) -> Section {
    let mut ratios = Table::new(&["beside the read ÷ alone", "p50", "p99", "p99.9"]);
    let mut table =
        Table::new(&["subject", "hits", "p50, µs", "p99, µs", "p99.9, µs", "read from the disk, MB/s"]);
    let mut figures = Vec::new();
    for row in rows {
        let found = [0, 1, 2].map(|quantile| row.ratio(quantile));
        ratios.row(&[row.name.to_owned(), found[0].show(), found[1].show(), found[2].show()]);
        let disk = Spread::of(row.disk.iter().map(|rate| rate / 1e6));
        for (at, name) in WINDOWS.into_iter().enumerate() {
            let latency = [0, 1, 2].map(|quantile| Spread::of(row.values(at, quantile)));
            table.row(&[
                row.name.to_owned(),
                name.to_owned(),
                latency[0].show(0),
                latency[1].show(0),
                latency[2].show(0),
                if at == 0 { "–".to_owned() } else { disk.show(1) },
            ]);
            figures.push(json!({
                "subject": row.name,
                "hits": name,
                "latency_us": latency.map(|spread| spread.json()),
            }));
        }
        figures.push(json!({
            "subject": row.name,
            "ratios": found.map(|ratio| ratio.json()),
            "disk_mb_per_s": disk.json(),
        }));
    }
    let markdown = format!(
        "A manifest of 2 KiB is asked for {PER_SECOND} times a second over {CONNECTIONS} connections for {} s, alone and \
         while another\nclient reads a cached blob of {} GiB, no page of which is in memory, from a disk that gives \
         {} MB/s\n(`blkio.throttle.read_bps_device`; what it gave is what the kernel counted). A request that could not \
         be sent in time,\nbecause the answer before it was late, counts from when it was due. nginx is shown as it is \
         compared elsewhere and with\n`aio threads`. {}\n\n{}\n{}",
        window.as_secs(),
        size >> 30,
        DISK / 1_000_000,
        idle.note(),
        ratios.finish(),
        table.finish()
    );
    let plot = draw(&[Panel {
        title: "Manifest hits, p99 in µs (less is better)".to_owned(),
        groups: WINDOWS.map(str::to_owned).to_vec(),
        series: rows
            .iter()
            .map(|row| (row.name, [0, 1].map(|at| Some(Spread::of(row.values(at, 1)))).to_vec()))
            .collect(),
    }]);
    Section { title: TITLE, markdown, plot: Some(plot), figures: json!(figures) }
}
