//! A thousand clients that read slowly: what they cost in memory, and what they take from one that reads fast.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;

use crate::bench::Bench;
use crate::cell::{GIB, Idle, MIB, order};
use crate::crowd::{Crowd, RATE};
use crate::load::{Load, verify};
use crate::origin::{Blob, bytes_sent};
use crate::plot::{Panel, draw};
use crate::report::{Section, Table};
use crate::stats::{Ratio, Spread};
use crate::subject::{Kind, Setup, Subject};
use crate::support::clock::{now, pause};
use crate::watch::{Peaks, Watch, metric};

const KINDS: [Kind; 2] = [Kind::Edge, Kind::Nginx];
const FAST: u64 = 64 << 20;
/// What the edge may have of its own, in MiB.
const LIMIT: f64 = 200.0;
/// Until every slow reader has filled its buffers and takes from then on what it reads.
const SETTLING: Duration = Duration::from_secs(4);
/// A fill that takes longer than this does not come to its end.
const PATIENCE: Duration = Duration::from_mins(10);

/// How much is done.
struct Scale {
    readers: usize,
    blobs: u64,
    size: u64,
    /// How long the fast reader reads.
    window: Duration,
}

impl Scale {
    fn of(bench: &Bench) -> Self {
        if bench.options.quick {
            Self { readers: 100, blobs: 20, size: 10_000_000, window: Duration::from_secs(1) }
        } else {
            Self { readers: 1000, blobs: 200, size: 50_000_000, window: Duration::from_secs(5) }
        }
    }
}

/// The fills behind slow readers.
struct Cold {
    before: f64,
    peaks: Peaks,
    /// Seconds until every reader had something, and until everything was in the cache.
    served: f64,
    filled: f64,
    pace: f64,
    /// What left the origin, as a share of the blobs.
    fetched: f64,
}

/// One round of one subject.
struct Pair {
    peaks: Peaks,
    pace: f64,
    /// GiB/s of the fast reader, alone and beside the slow ones.
    alone: f64,
    beside: f64,
}

pub(crate) fn run(bench: &Bench) -> Section {
    let scale = Scale::of(bench);
    let blobs: Vec<Blob> = (1..=scale.blobs).map(|number| Blob::new(number, scale.size)).collect();
    let fast = Blob::new(0, FAST);
    let all: Vec<Blob> = blobs.iter().chain([&fast]).cloned().collect();
    let paths: Vec<String> = blobs.iter().map(Blob::path).collect();
    let origin = bench.origin(&all, &[], None);
    let setup = Setup { edge_cache: Some(bench.ground.directory("slow-cache")), ..Setup::default() };
    let edge = bench.subject(Kind::Edge, origin.address, &setup);
    let mut cold = fill(&edge, &scale, &paths);
    cold.fetched = bytes_sent(origin.address) as f64 / (scale.blobs * scale.size) as f64;
    bench.say("slow: filled behind slow readers");
    // Started again, it has no memory of the fills.
    drop(edge);
    let subjects = KINDS.map(|kind| bench.subject(kind, origin.address, &setup));
    let before: Vec<f64> = subjects.iter().map(|subject| subject.rss_anon() as f64).collect();
    for subject in &subjects {
        warm(subject, &blobs, &paths);
        verify(subject.address, &fast.path(), &fast.digest);
    }
    rustix::fs::sync();
    let mut rounds: HashMap<Kind, Vec<Pair>> = HashMap::new();
    let mut idle = Idle::default();
    for round in 0..bench.options.runs {
        idle.measure();
        for subject in order(&subjects, round) {
            let pair = pair(subject, &scale, &paths, &fast.path(), round);
            rounds.entry(subject.kind).or_default().push(pair);
        }
        bench.say(&format!("slow: round {} of {}", round + 1, bench.options.runs));
    }
    report(&scale, &cold, &before, &rounds, &idle)
}

/// Has the edge fetch everything for readers that are slower than it.
fn fill(edge: &Subject, scale: &Scale, paths: &[String]) -> Cold {
    let (before, watch, started) = (edge.rss_anon() as f64, Watch::start(edge), now());
    let crowd = Crowd::start(edge.address, paths, scale.readers);
    let elapsed = || started.elapsed().as_secs_f64();
    let (mut served, mut filled) = (None, None);
    while served.is_none() || filled.is_none() {
        pause(Duration::from_millis(100));
        assert!(started.elapsed() < PATIENCE, "the fills behind slow readers do not end");
        if served.is_none() && crowd.all_served() {
            served = Some(elapsed());
        }
        if filled.is_none() && metric(edge.address, "store_blobs") >= scale.blobs as f64 {
            filled = Some(elapsed());
        }
    }
    pause(SETTLING);
    let (pace, peaks) = (crowd.pace(), watch.end());
    Cold { before, peaks, served: served.unwrap_or(0.0), filled: filled.unwrap_or(0.0), pace, fetched: 0.0 }
}

/// Has everything in the cache, and looks at the bytes of some of it.
fn warm(subject: &Subject, blobs: &[Blob], paths: &[String]) {
    let load = Load {
        address: subject.address,
        paths,
        connections: 4,
        requests: paths.len(),
        copy: false,
        limit: None,
    };
    load.run();
    for blob in blobs.iter().step_by(20) {
        verify(subject.address, &blob.path(), &blob.digest);
    }
}

/// The fast reader alone and beside the slow ones, in an order that changes from round to round.
fn pair(subject: &Subject, scale: &Scale, paths: &[String], fast: &str, round: usize) -> Pair {
    let alone = || read_fast(subject, scale, fast);
    let beside = || {
        let watch = Watch::start(subject);
        let crowd = Crowd::start(subject.address, paths, scale.readers);
        pause(SETTLING);
        // What they take at first goes into their buffers.
        let rate = read_fast(subject, scale, fast);
        assert!(crowd.all_served(), "a slow reader has got nothing");
        let pace = crowd.pace();
        drop(crowd);
        let peaks = watch.end();
        // The connections are closed on both sides.
        pause(SETTLING / 4);
        (rate, pace, peaks)
    };
    let (alone, (beside, pace, peaks)) = if round.is_multiple_of(2) {
        let alone = alone();
        (alone, beside())
    } else {
        let beside = beside();
        (alone(), beside)
    };
    Pair { peaks, pace, alone, beside }
}

fn read_fast(subject: &Subject, scale: &Scale, path: &str) -> f64 {
    let load = Load {
        address: subject.address,
        paths: &[path.to_owned()],
        connections: 1,
        requests: usize::MAX,
        copy: false,
        limit: Some(scale.window),
    };
    let moved = load.run();
    moved.bytes as f64 / GIB / moved.seconds
}

fn report(
    scale: &Scale,
    cold: &Cold,
    before: &[f64],
    rounds: &HashMap<Kind, Vec<Pair>>,
    idle: &Idle,
) -> Section {
    let spread = |kind: Kind, value: fn(&Pair) -> f64| Spread::of(rounds[&kind].iter().map(value));
    let mut speeds = Table::new(&["subject", "alone, GiB/s", "beside slow readers, GiB/s", "beside ÷ alone"]);
    let mut memory = Table::new(&[
        "case",
        "anonymous before, MiB",
        "anonymous, highest, MiB",
        "TCP buffers of the machine, highest, MiB",
        "pace of the slow readers",
    ]);
    memory.row(&[
        "ClawHub Edge, cold".to_owned(),
        format!("{:.0}", cold.before / MIB),
        format!("{:.0}", cold.peaks.anonymous / MIB),
        format!("{:.0}", cold.peaks.sockets / MIB),
        format!("{:.0} %", cold.pace * 100.0),
    ]);
    let mut figures = vec![json!({
        "case": "cold",
        "anonymous_bytes": cold.peaks.anonymous,
        "socket_bytes": cold.peaks.sockets,
        "all_served_s": cold.served,
        "all_filled_s": cold.filled,
        "fetched_share": cold.fetched,
    })];
    for (kind, before) in KINDS.into_iter().zip(before) {
        let values = |value: fn(&Pair) -> f64| rounds[&kind].iter().map(value).collect::<Vec<_>>();
        let ratio = Ratio::paired(&values(|pair| pair.beside), &values(|pair| pair.alone));
        let (alone, beside) = (spread(kind, |pair| pair.alone), spread(kind, |pair| pair.beside));
        speeds.row(&[kind.name().to_owned(), alone.show(2), beside.show(2), ratio.show()]);
        let anonymous = spread(kind, |pair| pair.peaks.anonymous / MIB);
        memory.row(&[
            format!("{}, warm", kind.name()),
            format!("{:.0}", before / MIB),
            format!("{:.0}", anonymous.most),
            format!("{:.0}", spread(kind, |pair| pair.peaks.sockets / MIB).most),
            format!("{:.0} %", spread(kind, |pair| pair.pace * 100.0).median),
        ]);
        figures.push(json!({
            "case": "warm",
            "subject": kind.name(),
            "anonymous_bytes": anonymous.most * MIB,
            "alone_gib_per_s": alone.json(),
            "beside_gib_per_s": beside.json(),
            "beside_ratio": ratio.json(),
        }));
    }
    let Scale { readers, blobs, size, window } = scale;
    let markdown = format!(
        "{readers} readers of {blobs} blobs of {} MB, {} KiB/s each; one reader of 64 MiB hits at full speed for {} s, \
         alone and beside\nthem in the same round. Cold, every blob came from the origin behind its slow readers, the \
         last of whom had its first\nbyte after {:.1} s; everything was in the cache after {:.1} s, and the origin had \
         sent {:.2} times what there is. Pace is\nwhat the slow readers got of what they would have taken; cold, they \
         wait for their first byte before. Their segments are\nthose of Ethernet, since the kernel makes send buffers \
         for a number of segments. The limit is {LIMIT} MiB of anonymous\nmemory. {}\n\n{}\n{}",
        size / 1_000_000,
        RATE >> 10,
        window.as_secs(),
        cold.served,
        cold.filled,
        cold.fetched,
        idle.note(),
        speeds.finish(),
        memory.finish()
    );
    let bars = |value: fn(&Pair) -> f64| KINDS.map(|kind| Some(spread(kind, value))).to_vec();
    let plot = draw(&[
        Panel {
            title: format!("A fast reader, GiB/s alone and beside {readers} slow ones (more is better)"),
            groups: KINDS.map(|kind| kind.name().to_owned()).to_vec(),
            series: vec![
                ("alone", bars(|pair| pair.alone)),
                ("beside slow readers", bars(|pair| pair.beside)),
            ],
        },
        Panel {
            title: format!("Anonymous memory with {readers} slow readers, MiB (the limit is {LIMIT})"),
            groups: vec!["cold".to_owned(), "warm".to_owned()],
            series: KINDS.map(|kind| (kind.name(), memory_bars(cold, kind, &rounds[&kind]))).to_vec(),
        },
    ]);
    Section { title: "Slow readers", markdown, plot: Some(plot), figures: json!(figures) }
}

/// Cold and warm; only the edge was filled behind slow readers.
fn memory_bars(cold: &Cold, kind: Kind, rounds: &[Pair]) -> Vec<Option<Spread>> {
    let cold = (kind == Kind::Edge).then(|| Spread::of([cold.peaks.anonymous / MIB]));
    vec![cold, Some(Spread::of(rounds.iter().map(|pair| pair.peaks.anonymous / MIB)))]
}
