//! Cold pulls of a layer: what a fill costs beside the bare loop, and what it adds to a link that is the bottleneck,
//! for one client and for many.
//!
//! Every pull meets a server that was just started with an empty cache.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bench::{Bench, Origin};
use crate::cell::{Cell, GIB, Idle, MIB, Sample, measured, order};
use crate::children::{Child, own};
use crate::load::{Load, Moved};
use crate::origin::{Blob, bytes_sent};
use crate::plot::{Panel, draw};
use crate::report::{Section, Table};
use crate::stats::{Ratio, Spread};
use crate::subject::{Kind, Setup};
use crate::support::clock::{now, pause};
use crate::support::usage::Usage;

const SIZE: u64 = 600_000_000;
const QUICK_SIZE: u64 = 100_000_000;
/// Bytes per second of the limited link: what the machine can give 64 clients at once without being the bottleneck.
const RATE: u64 = 50_000_000;
const CROWD: usize = 64;
/// How often the origin is asked what it has sent: a quarter of a megabyte of the limited link.
const LOOK: Duration = Duration::from_millis(5);

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    /// The origin itself.
    Direct,
    /// The least that any verifying cache must do.
    Bare,
    Cache(Kind),
}

const EDGE: Server = Server::Cache(Kind::Edge);
const NGINX: Server = Server::Cache(Kind::Nginx);
const VARNISH: Server = Server::Cache(Kind::Varnish);

impl Server {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Bare => "bare loop",
            Self::Cache(kind) => kind.name(),
        }
    }
}

/// One layer, pulled cold by all clients at once.
struct Pull {
    sample: Sample,
    /// Bytes that the origin has sent, over the size of the layer.
    fetched: f64,
    /// Until the slowest client had the first byte of the body, in milliseconds.
    first_body: f64,
    /// What the origin had sent by then; zero where nobody looked.
    ahead: f64,
}

/// What is pulled in one way, by one server after the other.
struct Way {
    cell: Cell<Server, Pull>,
    clients: usize,
    is_limited: bool,
}

impl Way {
    fn new(name: String, clients: usize, is_limited: bool, servers: &[Server]) -> Self {
        Self { cell: Cell::new(name, servers), clients, is_limited }
    }
}

/// One server's figure over another's in the same round.
fn ratio(
    cell: &Cell<Server, Pull>,
    server: Server,
    to: Server,
    value: impl Fn(&Pull) -> f64 + Copy,
) -> Ratio {
    Ratio::paired(&cell.values(server, value), &cell.values(to, value))
}

pub(crate) fn run(bench: &Bench) -> Section {
    let blob = Blob::new(1, if bench.options.quick { QUICK_SIZE } else { SIZE });
    let origin = bench.origin(std::slice::from_ref(&blob), &[], None);
    let limited = bench.origin(std::slice::from_ref(&blob), &[], Some(RATE));
    let mut ways = [
        Way::new("1 client".to_owned(), 1, false, &[Server::Bare, EDGE, NGINX, VARNISH]),
        Way::new("1 client".to_owned(), 1, true, &[Server::Direct, EDGE, NGINX, VARNISH]),
        Way::new(format!("{CROWD} clients"), CROWD, true, &[Server::Direct, EDGE, NGINX, VARNISH]),
    ];
    let mut idle = Idle::default();
    for round in 0..bench.options.runs {
        let baseline = idle.measure();
        for way in &mut ways {
            let origin = if way.is_limited { &limited } else { &origin };
            let servers: Vec<Server> = way.cell.rows.iter().map(|(server, _)| *server).collect();
            for server in order(&servers, round).copied() {
                // A direct download is what one client gets of the link.
                let clients = if server == Server::Direct { 1 } else { way.clients };
                let pulled = pull(bench, origin, &blob, server, clients, way.is_limited, baseline);
                way.cell.push(server, pulled);
            }
        }
        bench.say(&format!("fills: round {} of {}", round + 1, bench.options.runs));
    }
    report(&ways.map(|way| way.cell), &blob, &idle)
}

/// Has all clients pull the blob at once from a server that has nothing of it.
fn pull(
    bench: &Bench,
    origin: &Origin,
    blob: &Blob,
    server: Server,
    clients: usize,
    is_limited: bool,
    idle: f64,
) -> Pull {
    // What the pull before has left to be written would be charged to this one.
    rustix::fs::sync();
    let paths = [blob.path()];
    let before = bytes_sent(origin.address);
    let (mut first_body, mut ahead) = (0.0, 0.0);
    let mut load = |address| {
        let copy = bench.options.copy;
        let load =
            Load { address, paths: &paths, connections: clients, requests: clients, copy, limit: None };
        let started = now();
        let (moved, looks) =
            if is_limited { watched(origin.address, || load.run()) } else { (load.run(), Vec::new()) };
        let last = moved.bodies.iter().max().copied().expect("a blob has bytes");
        first_body = (last - started).as_secs_f64() * 1e3;
        let sent = looks.iter().find(|(when, _)| *when >= last).map_or(before, |(_, sent)| *sent);
        ahead = (sent - before) as f64;
        moved
    };
    let sample = match server {
        Server::Direct => sampled(origin.pid(), || load(origin.address), idle),
        Server::Bare => {
            let (address, child) = bare(bench, origin, blob);
            sampled(child.pid(), || load(address), idle)
        }
        Server::Cache(kind) => {
            let subject = bench.subject(kind, origin.address, &Setup::default());
            measured(&subject, || load(subject.address), idle)
        }
    };
    let fetched = (bytes_sent(origin.address) - before) as f64 / blob.size as f64;
    Pull { sample, fetched, first_body, ahead }
}

/// Starts the bare loop for one pull.
fn bare(bench: &Bench, origin: &Origin, blob: &Blob) -> (SocketAddr, Child) {
    let (size, upstream) = (blob.size.to_string(), origin.address.to_string());
    let mut command = own("bare", &[("size", &size), ("origin", &upstream), ("path", &blob.path())]);
    command.stdout(Stdio::piped());
    let log = bench.ground.directory("bare").join("stderr.log");
    let mut child = bench.ground.spawn(command, &log);
    (child.announced(), child)
}

/// What a load of this process takes.
fn sampled(pid: u32, load: impl FnOnce() -> Moved, idle: f64) -> Sample {
    let before = Usage::of(pid);
    let moved = load();
    Sample::of(&moved, &Usage::of(pid).since(&before), idle)
}

/// Runs the load, and tells what the origin had sent at which time meanwhile and shortly after.
fn watched(origin: SocketAddr, load: impl FnOnce() -> Moved) -> (Moved, Vec<(Instant, u64)>) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let mut looks = Vec::new();
            loop {
                let is_last = is_over.load(Ordering::Relaxed);
                // The count is of some moment after this one.
                let asked = now();
                looks.push((asked, bytes_sent(origin)));
                if is_last {
                    return looks;
                }
                pause(LOOK);
            }
        });
        let moved = load();
        is_over.store(true, Ordering::Relaxed);
        (moved, looks.join().expect("the origin tells"))
    })
}

fn server_cpu(pull: &Pull) -> f64 {
    pull.sample.server / (pull.sample.bytes / GIB)
}

fn machine_cpu(pull: &Pull) -> f64 {
    pull.sample.machine / (pull.sample.bytes / GIB)
}

fn seconds(pull: &Pull) -> f64 {
    pull.sample.seconds
}

fn report(cells: &[Cell<Server, Pull>; 3], blob: &Blob, idle: &Idle) -> Section {
    let (megabytes, rate) = (blob.size / 1_000_000, RATE / 1_000_000);
    let [cost, link, crowd] = cells;
    let mut figures = Vec::new();
    let costs = report_cost(cost, &mut figures);
    let waits = report_links(&[link, crowd], &mut figures);
    let markdown = format!(
        "A layer of {megabytes} MB, pulled from a server just started with an empty cache. The bare loop does the least \
         that a\nverifying cache must: receive, SHA-256, write to a file, send from it. nginx and Varnish verify nothing, \
         and Varnish\nwrites nothing to a disk. {}\n\n### One client, a link that is not the limit\n\n{costs}\n\
         ### A link of {rate} MB/s\n\nEach pull is held against one client's direct download over the same link in the \
         same round. Of {CROWD}\nclients, who ask at once, the last to end and the last to get the first byte of the \
         body are shown, and what the origin had\nsent by then. nginx has its other clients wait for the whole \
         (`proxy_cache_lock`).\n\n{waits}",
        idle.note()
    );
    Section { title: "Cold fills", markdown, plot: Some(plot(cells)), figures: json!(figures) }
}

fn report_cost(cell: &Cell<Server, Pull>, figures: &mut Vec<serde_json::Value>) -> String {
    let mut ratios = Table::new(&["edge ÷", "server CPU per GiB", "machine CPU per GiB", "seconds"]);
    for peer in [Server::Bare, NGINX, VARNISH] {
        let found = [server_cpu, machine_cpu, seconds].map(|value| ratio(cell, EDGE, peer, value));
        ratios.row(&[peer.name().to_owned(), found[0].show(), found[1].show(), found[2].show()]);
        figures.push(json!({
            "cell": cell.name,
            "peer": peer.name(),
            "server_ratio": found[0].json(),
            "machine_ratio": found[1].json(),
            "seconds_ratio": found[2].json(),
        }));
    }
    let mut table = Table::new(&[
        "subject",
        "server CPU-s/GiB",
        "machine CPU-s/GiB",
        "seconds",
        "first byte, ms",
        "peak resident, MiB",
        "client busy",
    ]);
    for (server, _) in &cell.rows {
        let spread = |value: fn(&Pull) -> f64| cell.spread(*server, value);
        table.row(&[
            server.name().to_owned(),
            spread(server_cpu).show(3),
            spread(machine_cpu).show(3),
            spread(seconds).show(2),
            spread(|pull| pull.first_body).show(1),
            memory(cell, *server),
            busy(cell, *server),
        ]);
        figures.push(json!({
            "cell": cell.name,
            "subject": server.name(),
            "server_cpu_s_per_gib": spread(server_cpu).json(),
            "machine_cpu_s_per_gib": spread(machine_cpu).json(),
            "seconds": spread(seconds).json(),
            "first_byte_ms": spread(|pull| pull.first_body).json(),
        }));
    }
    format!("{}\n{}", ratios.finish(), table.finish())
}

fn report_links(cells: &[&Cell<Server, Pull>], figures: &mut Vec<serde_json::Value>) -> String {
    let mut table = Table::new(&[
        "cell",
        "subject",
        "seconds",
        "÷ direct",
        "origin bytes ÷ size",
        "first byte, ms",
        "origin had sent, MiB",
        "peak resident, MiB",
        "client busy",
    ]);
    for cell in cells {
        for (server, _) in &cell.rows {
            let spread = |value: fn(&Pull) -> f64| cell.spread(*server, value);
            let to_direct = ratio(cell, *server, Server::Direct, seconds);
            table.row(&[
                cell.name.clone(),
                server.name().to_owned(),
                spread(seconds).show(2),
                to_direct.show_to(3),
                spread(|pull| pull.fetched).show(3),
                spread(|pull| pull.first_body).show(0),
                spread(|pull| pull.ahead / MIB).show(2),
                memory(cell, *server),
                busy(cell, *server),
            ]);
            figures.push(json!({
                "cell": format!("{}, {} MB/s", cell.name, RATE / 1_000_000),
                "subject": server.name(),
                "seconds": spread(seconds).json(),
                "seconds_to_direct": to_direct.json(),
                "origin_bytes_to_size": spread(|pull| pull.fetched).json(),
                "first_byte_ms": spread(|pull| pull.first_body).json(),
                "origin_bytes_at_first_byte": spread(|pull| pull.ahead).json(),
            }));
        }
    }
    table.finish()
}

/// The highest resident memory of a cache; the others are not looked at.
fn memory(cell: &Cell<Server, Pull>, server: Server) -> String {
    match server {
        Server::Direct | Server::Bare => "–".to_owned(),
        Server::Cache(_) => format!("{:.0}", cell.spread(server, |pull| pull.sample.peak / MIB).median),
    }
}

fn busy(cell: &Cell<Server, Pull>, server: Server) -> String {
    let share = cell.spread(server, |pull| 100.0 * pull.sample.client / pull.sample.seconds);
    format!("{:.0} %", share.median)
}

fn plot([cost, link, crowd]: &[Cell<Server, Pull>; 3]) -> String {
    let costs = Panel {
        title: "Cold fill by one client, CPU-seconds per GiB (less is better)".to_owned(),
        groups: vec!["server".to_owned(), "machine".to_owned()],
        series: [EDGE, NGINX, VARNISH, Server::Bare]
            .into_iter()
            .map(|server| {
                let values = [server_cpu, machine_cpu].map(|value| Some(cost.spread(server, value)));
                (server.name(), values.to_vec())
            })
            .collect(),
    };
    let to_direct = |cell: &Cell<Server, Pull>, server| {
        let (ours, direct) = (cell.values(server, seconds), cell.values(Server::Direct, seconds));
        Some(Spread::of(ours.iter().zip(&direct).map(|(ours, direct)| ours / direct)))
    };
    let waits = Panel {
        title: format!("Cold fill over {} MB/s, last client ÷ direct (less is better)", RATE / 1_000_000),
        groups: vec![link.name.clone(), crowd.name.clone()],
        series: [EDGE, NGINX, VARNISH]
            .into_iter()
            .map(|server| (server.name(), vec![to_direct(link, server), to_direct(crowd, server)]))
            .collect(),
    };
    draw(&[costs, waits])
}
