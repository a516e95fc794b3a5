//! A cache of a million blobs: how long until it answers, what an entry takes in memory, what an eviction costs.
//!
//! The blobs are written into a directory in which the edge has pulled one before. The first start finds no record of
//! them and makes the catalogue of all later ones. The origin is gone meanwhile, so that only the cache can answer.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bench::Bench;
use crate::cell::{Idle, MIB};
use crate::fixture::{CHARGE, forget_catalogue, lack, remove, unlink_micros, write_blobs};
use crate::load::{parse_head, request, verify};
use crate::origin::Blob;
use crate::plot::{Panel, draw};
use crate::report::{Section, Table};
use crate::stats::Spread;
use crate::subject::{Kind, Setup, Subject};
use crate::support::clock::{now, pause};
use crate::watch::{Watch, metric};

const BLOBS: [u64; 3] = [10_000, 100_000, 1_000_000];
const EVICTIONS: u64 = 5000;
/// Bytes per second of the origin during evictions: its blob comes too slowly to cost anything itself.
const TRICKLE: u64 = 256 << 10;
/// After everything is known the edge still lets go of what it has used for that.
const SETTLING: Duration = Duration::from_secs(2);
/// To hash a million files takes a minute or two.
const PATIENCE: Duration = Duration::from_mins(20);

/// How the edge was left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Stopped,
    Killed,
    WithoutCatalogue,
}

impl Left {
    const ALL: [Self; 3] = [Self::Stopped, Self::Killed, Self::WithoutCatalogue];

    fn name(self) -> &'static str {
        match self {
            Self::Stopped => "after a stop",
            Self::Killed => "after kill -9",
            Self::WithoutCatalogue => "catalogue lost",
        }
    }
}

/// One start. Times are seconds from the start of the process.
#[derive(Clone, Copy)]
struct Start {
    /// The first right answer.
    answered: f64,
    /// Every blob is in the index.
    indexed: f64,
    /// The directory was walked over.
    recovered: f64,
    /// What no record spoke of was hashed.
    verified: f64,
    /// Anonymous memory at the highest and in the end, in bytes.
    peak: f64,
    anonymous: f64,
}

/// What was found with so many blobs.
struct Size {
    blobs: u64,
    starts: Vec<(Left, Vec<Start>)>,
    /// Anonymous memory of an edge that has one blob.
    empty: f64,
    evictions: Vec<Eviction>,
    lost_records: f64,
}

/// Microseconds of one eviction, of many in a row.
#[derive(Clone, Copy)]
struct Eviction {
    wall: f64,
    cpu: f64,
    /// Of removing a file, without anything else.
    unlink: f64,
}

pub(crate) fn run(bench: &Bench) -> Section {
    let counts = if bench.options.quick { &[2000, 20_000][..] } else { &BLOBS[..] };
    // Every round evicts others, and the smallest cache has enough for all of them.
    let evictions = EVICTIONS.min(counts[0] / (bench.options.runs as u64 + 1));
    let mut idle = Idle::default();
    let (mut sizes, mut lacks) = (Vec::new(), Vec::new());
    for &blobs in counts {
        idle.measure();
        let cache = bench.ground.directory(&format!("scale-{blobs}"));
        match lack(&cache, blobs) {
            Some(lack) => lacks.push(format!("**Not measured with {blobs} blobs: {lack}.**")),
            None => sizes.push(measure(bench, &cache, blobs, evictions)),
        }
        remove(&cache);
    }
    for lack in &lacks {
        bench.say(lack);
    }
    report(&sizes, &lacks, evictions, &idle)
}

fn measure(bench: &Bench, cache: &Path, blobs: u64, evictions: u64) -> Size {
    // Records are read in the order of digests, so this one is among the last to be known.
    let mut blobs_of_1_kib = (1..10_000).map(|number| Blob::new(number, 1024));
    let probe = blobs_of_1_kib.find(|blob| blob.digest.starts_with("ff")).expect("one in 256");
    let setup = Setup { edge_cache: Some(cache.to_owned()), ..Setup::default() };
    let origin = bench.origin(std::slice::from_ref(&probe), &[], None);
    let gone = origin.address;
    let edge = bench.subject(Kind::Edge, gone, &setup);
    verify(edge.address, &probe.path(), &probe.digest);
    edge.stop();
    drop(origin);
    let starting = Starting { bench, cache, setup: &setup, origin: gone, probe: &probe };
    let (empty, edge) = starting.start(1, false);
    edge.stop();

    bench.say(&format!("scale: writing {blobs} blobs"));
    write_blobs(cache, blobs);
    fs::remove_file(cache.join("catalogue.redb")).expect("the edge has left it");
    let all = blobs + 1;
    let (lost, edge) = starting.start(all, true);
    bench.say(&format!("scale: {blobs} blobs hashed in {:.0} s", lost.verified));
    let lost_records = metric(edge.address, "store_records_dropped_total");
    edge.stop();
    let (mut stopped, mut killed) = (Vec::new(), Vec::new());
    for round in 0..bench.options.runs {
        let (start, edge) = starting.start(all, false);
        stopped.push(start);
        // Without an orderly end.
        drop(edge);
        let (start, edge) = starting.start(all, false);
        killed.push(start);
        edge.stop();
        bench.say(&format!("scale: {blobs} blobs, round {} of {}", round + 1, bench.options.runs));
    }
    let found = (0..bench.options.runs).map(|round| evict(bench, cache, evictions, round as u64));
    Size {
        blobs,
        evictions: found.collect(),
        starts: vec![(Left::Stopped, stopped), (Left::Killed, killed), (Left::WithoutCatalogue, vec![lost])],
        empty: empty.anonymous,
        lost_records,
    }
}

/// What a start needs.
struct Starting<'a> {
    bench: &'a Bench,
    cache: &'a Path,
    setup: &'a Setup,
    /// Where the origin was.
    origin: SocketAddr,
    probe: &'a Blob,
}

impl Starting<'_> {
    /// Starts the edge over so many blobs, and waits until nothing is left to do; until all are `hashed`, if they
    /// are to be.
    fn start(&self, blobs: u64, hashed: bool) -> (Start, Subject) {
        forget_catalogue(self.cache);
        let started = now();
        let edge = self.bench.subject(Kind::Edge, self.origin, self.setup);
        let watch = Watch::start(&edge);
        verify(edge.address, &self.probe.path(), &self.probe.digest);
        let answered = started.elapsed().as_secs_f64();
        let indexed = wait(started, || metric(edge.address, "store_blobs") >= blobs as f64);
        let log = edge.directory.join("stderr.log");
        let says = |text: &str| fs::read_to_string(&log).is_ok_and(|log| log.contains(text));
        let recovered = wait(started, || says("cache recovered"));
        let verified =
            if hashed { wait(started, || says("every blob of doubt was verified")) } else { recovered };
        pause(SETTLING);
        let (anonymous, peak) = (edge.rss_anon() as f64, watch.end().anonymous);
        (Start { answered, indexed, recovered, verified, peak, anonymous }, edge)
    }
}

/// Waits until something is so; seconds since the start.
fn wait(started: Instant, is_so: impl Fn() -> bool) -> f64 {
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "the start does not come to its end");
        pause(Duration::from_millis(10));
    }
    started.elapsed().as_secs_f64()
}

/// Pulls a blob for which so many others have to go: its first byte comes once they have.
fn evict(bench: &Bench, cache: &Path, evictions: u64, round: u64) -> Eviction {
    let blob = Blob::new(1_000_000 + round, evictions * CHARGE);
    let origin = bench.origin(std::slice::from_ref(&blob), &[], Some(TRICKLE));
    let start = |capacity: f64| {
        let edge_tables = format!(
            "\n[store.disk]\ncapacity = \"{capacity:.0}\"\nhigh_watermark = \"100%\"\nlow_watermark = \"100%\"\n"
        );
        let setup = Setup { edge_cache: Some(cache.to_owned()), edge_tables, ..Setup::default() };
        let edge = bench.subject(Kind::Edge, origin.address, &setup);
        let log = edge.directory.join("stderr.log");
        wait(now(), || fs::read_to_string(&log).is_ok_and(|log| log.contains("cache recovered")));
        pause(SETTLING);
        edge
    };
    let edge = start(1e15);
    let used = metric(edge.address, "store_used_bytes");
    edge.stop();
    // What the edge leaves for its databases to grow is all that is more.
    let edge = start(used + MIB);
    let evicted = || metric(edge.address, "store_evictions_total");
    let (before, evicted_before) = (edge.usage(), evicted());
    let started = now();
    let mut stream = TcpStream::connect(edge.address).expect("the edge listens");
    stream.write_all(&request(edge.address, &blob.path())).expect("the request is sent");
    let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
    while parse_head(&received).is_none_or(|(end, _)| end == received.len()) {
        let read = stream.read(&mut buffer).expect("an answer");
        assert!(read > 0, "closed before the first byte");
        received.extend_from_slice(&buffer[..read]);
    }
    let seconds = started.elapsed().as_secs_f64();
    let used = edge.usage().since(&before);
    let gone = evicted() - evicted_before;
    assert!(gone >= 0.5 * evictions as f64, "{gone} of {evictions} were evicted");
    let unlink = unlink_micros(&bench.ground.directory("unlink"), evictions);
    Eviction { wall: seconds / gone * 1e6, cpu: used.process / gone * 1e6, unlink }
}

fn report(sizes: &[Size], lacks: &[String], evictions: u64, idle: &Idle) -> Section {
    let mut starts = Table::new(&[
        "blobs",
        "start",
        "first right answer, s",
        "all in the index, s",
        "directory walked over, s",
        "unknown bytes hashed, s",
        "anonymous, highest, MiB",
        "anonymous per blob, bytes",
    ]);
    let mut evicting =
        Table::new(&["blobs", "eviction, µs", "of that the edge's CPU, µs", "only removing a file, µs"]);
    let mut figures = Vec::new();
    for size in sizes {
        for (left, of) in &size.starts {
            let spread = |value: &dyn Fn(&Start) -> f64| Spread::of(of.iter().map(value));
            let per_blob = spread(&|start| (start.anonymous - size.empty) / size.blobs as f64);
            let hashed = *left == Left::WithoutCatalogue;
            starts.row(&[
                size.blobs.to_string(),
                left.name().to_owned(),
                spread(&|start| start.answered).show(2),
                spread(&|start| start.indexed).show(2),
                spread(&|start| start.recovered).show(2),
                if hashed { spread(&|start| start.verified).show(1) } else { "none".to_owned() },
                format!("{:.0}", spread(&|start| start.peak / MIB).most),
                per_blob.show(0),
            ]);
            figures.push(json!({
                "blobs": size.blobs,
                "start": left.name(),
                "answered_s": spread(&|start| start.answered).json(),
                "indexed_s": spread(&|start| start.indexed).json(),
                "recovered_s": spread(&|start| start.recovered).json(),
                "verified_s": spread(&|start| start.verified).json(),
                "peak_bytes": spread(&|start| start.peak).json(),
                "bytes_per_blob": per_blob.json(),
            }));
        }
        let of = |value: fn(&Eviction) -> f64| Spread::of(size.evictions.iter().map(value));
        let (wall, cpu, unlink) =
            (of(|eviction| eviction.wall), of(|eviction| eviction.cpu), of(|eviction| eviction.unlink));
        evicting.row(&[size.blobs.to_string(), wall.show(0), cpu.show(0), unlink.show(0)]);
        figures.push(json!({
            "blobs": size.blobs,
            "eviction_us": wall.json(),
            "eviction_cpu_us": cpu.json(),
            "unlink_us": unlink.json(),
            "records_dropped": size.lost_records,
        }));
    }
    let notes: Vec<String> = std::iter::once(idle.note()).chain(lacks.iter().cloned()).collect();
    let markdown = format!(
        "Blobs of 512 bytes, one file each; the origin is gone, and the first answer is a blob whose record is among the \
         last that\nare read, compared with its digest. The pages of the catalogue are dropped before each start; those \
         of directories and\ninodes are not. After the loss of the catalogue, which is measured once, every blob is \
         hashed before it is served, and\nall of them behind that. Memory per blob is what the edge has more than one \
         with a single blob. An eviction is one of\n{evictions} in a row, which a pull waits for: the file is looked at \
         for the children of a manifest and removed, and its\nrecord queued for removal. Removing alone takes a \
         millisecond where the file system discards the blocks of each file at\nonce (mount option `discard`). What the \
         policy takes of it, and that this does not grow with the cache, is in\n\
         [`eviction/RESULTS.md`](eviction/RESULTS.md). {}\n\n{}\n{}",
        notes.join("\n\n"),
        starts.finish(),
        evicting.finish()
    );
    let groups: Vec<String> = sizes.iter().map(|size| format!("{} blobs", size.blobs)).collect();
    let panel = |title: &str, value: fn(&Start) -> f64| Panel {
        title: title.to_owned(),
        groups: groups.clone(),
        series: Left::ALL
            .iter()
            .map(|left| {
                let of = |size: &Size| {
                    let (_, starts) = size.starts.iter().find(|(of, _)| of == left)?;
                    Some(Spread::of(starts.iter().map(value)))
                };
                (left.name(), sizes.iter().map(of).collect())
            })
            .collect(),
    };
    let evicting = |value: fn(&Eviction) -> f64| {
        sizes.iter().map(|size| Some(Spread::of(size.evictions.iter().map(value)))).collect()
    };
    let plot = draw(&[
        panel("Seconds from the start to the first right answer (less is better)", |start| start.answered),
        panel("Seconds until every blob is in the index (less is better)", |start| start.indexed),
        Panel {
            title: "An eviction, µs (less is better; flat is constant work)".to_owned(),
            groups: groups.clone(),
            series: vec![
                ("elapsed", evicting(|eviction| eviction.wall)),
                ("CPU of the edge", evicting(|eviction| eviction.cpu)),
                ("only removing a file", evicting(|eviction| eviction.unlink)),
            ],
        },
    ]);
    Section { title: "A million blobs", markdown, plot: Some(plot), figures: json!(figures) }
}
