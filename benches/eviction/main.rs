//! What each eviction policy makes of synthetic traces with the shape of real registries.
//!
//! `cargo bench --bench eviction` generates the traces of every kind of site (`trace.rs`) for the
//! hold-out seeds 11–20, runs every policy over them with caches of 1, 3, 10 and 30 % of the
//! footprint, and prints object and byte hit ratio and the upstreams' time for the misses, beside
//! Belady's choice and an upper bound (`bound.rs`). About a minute on one core. The policies are the
//! store's own code; constants were tuned on seeds 1–10 only.
//!
//! Options:
//! - `--seeds A-B`: other seeds than 11–20, one number for a single one.
//! - `--json`: every single figure, for other tools.
//! - `--write`: renews `benches/eviction/RESULTS.md` and the plot beside it.
//! - `--tune`: instead of all that, varies each constant of the default around its value, on seeds
//!   1–10.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    reason = "a report, of figures far below the limits of an f64, that reads the machine's clock"
)]

mod bound;
mod micro;
mod plot;
mod report;
mod simulate;
mod trace;
mod tune;

use std::ops::RangeInclusive;
use std::path::Path;
use std::process::ExitCode;

use clawhub_edge::store::eviction::Algorithm;
use indicatif::{ProgressBar, ProgressStyle};

use bound::Value;
use trace::{Site, Trace};

/// Sizes of the cache, of the footprint.
const SHARES: [f64; 4] = [0.01, 0.03, 0.1, 0.3];
/// The one that the requirements are about.
const MAIN: usize = 2;
/// What is left of the one-off images at a calm site.
const CALM: f64 = 0.2;
/// What fills the cache and is not counted: one request in so many, from the first on.
const WARM_UP: usize = 5;

/// Hit ratios, and the upstreams' seconds for the misses.
#[derive(Debug, Clone, Copy)]
struct Figures {
    objects: f64,
    bytes: f64,
    cost: f64,
}

/// What one trace came to.
struct Run {
    seed: u64,
    shape: Shape,
    infinite: Figures,
    /// By size of the cache.
    sizes: Vec<Size>,
}

/// The policies at the size that counts, at a site that pulls fewer things once.
struct Calm {
    name: &'static str,
    /// By seed, in the order of [`Algorithm::ALL`].
    runs: Vec<Vec<Figures>>,
}

struct Size {
    /// In the order of [`Algorithm::ALL`].
    policies: Vec<Figures>,
    belady: Figures,
    bound: Figures,
}

/// What a trace looks like.
struct Shape {
    requests: usize,
    contents: usize,
    footprint: u64,
    /// Layers under 1 MB and under 10 MB.
    small: f64,
    medium: f64,
    largest: u64,
    /// Contents that were asked for once.
    once: f64,
    /// Requests for the hundredth of the contents that was asked for most.
    top: f64,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut seeds, mut json, mut write, mut tune) = (11..=20, false, false, false);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => json = true,
            "--write" => write = true,
            "--tune" => tune = true,
            // Cargo says so to every benchmark.
            "--bench" => {}
            "--seeds" => match arguments.next().as_deref().and_then(range) {
                Some(range) => seeds = range,
                None => return usage("--seeds takes a number or two with a dash between"),
            },
            other => return usage(&format!("{other} is not an option")),
        }
    }
    if tune {
        tune::run();
        return ExitCode::SUCCESS;
    }
    let (kinds, calm) = measure(&seeds);
    let micro = micro::measure();
    let markdown = report::markdown(&kinds, &calm, &micro, &seeds);
    if json {
        println!("{}", report::json(&kinds, &micro));
    } else {
        println!("{markdown}");
    }
    if write {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/eviction");
        let written = std::fs::write(directory.join("RESULTS.md"), markdown)
            .and_then(|()| std::fs::write(directory.join("results.svg"), plot::svg(&kinds)));
        if let Err(error) = written {
            eprintln!("{}: {error}", directory.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn usage(mistake: &str) -> ExitCode {
    eprintln!("{mistake}; options: --seeds A-B, --json, --write, --tune");
    ExitCode::FAILURE
}

fn range(text: &str) -> Option<RangeInclusive<u64>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

/// Every kind of site with every seed, then the calm ones.
fn measure(seeds: &RangeInclusive<u64>) -> (Vec<(Site, Vec<Run>)>, Vec<Calm>) {
    let sites = trace::sites();
    let total = 2 * sites.len() as u64 * (seeds.end() - seeds.start() + 1);
    let bar = ProgressBar::new(total).with_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} traces, {eta} left  {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let (mut kinds, mut calm) = (Vec::new(), Vec::new());
    for site in sites {
        bar.set_message(site.name);
        let runs = seeds.clone().map(|seed| run(&site, seed)).inspect(|_| bar.inc(1)).collect();
        let fewer = Site { scanned: site.scanned * CALM, ..site.clone() };
        let calm_runs = seeds.clone().map(|seed| run_calm(&fewer, seed)).inspect(|_| bar.inc(1)).collect();
        calm.push(Calm { name: site.name, runs: calm_runs });
        kinds.push((site, runs));
    }
    bar.finish_and_clear();
    (kinds, calm)
}

fn run_calm(site: &Site, seed: u64) -> Vec<Figures> {
    let trace = Trace::generate(site, seed);
    let capacity = (trace.footprint() as f64 * SHARES[MAIN]) as u64;
    policies(&trace, capacity)
}

fn policies(trace: &Trace, capacity: u64) -> Vec<Figures> {
    let warm = trace.requests.len() / WARM_UP;
    let run = |algorithm: Algorithm| simulate::run(trace, capacity, &mut *algorithm.policy(), warm).into();
    Algorithm::ALL.map(run).into()
}

fn run(site: &Site, seed: u64) -> Run {
    let trace = Trace::generate(site, seed);
    let warm = trace.requests.len() / WARM_UP;
    let shape = Shape::of(&trace);
    let capacities = SHARES.map(|share| (shape.footprint as f64 * share) as u64);
    let infinite = bound::infinite(&trace, warm);
    let upper = [Value::Objects, Value::Bytes, Value::Cost]
        .map(|value| bound::upper(&trace, &capacities, warm, value));
    let all_cost: f64 = trace.requests[warm..]
        .iter()
        .map(|request| f64::from(trace.contents[request.content as usize].cost))
        .sum();
    let sizes = capacities.iter().enumerate().map(|(at, capacity)| Size {
        policies: policies(&trace, *capacity),
        belady: bound::belady(&trace, *capacity, warm).into(),
        bound: Figures {
            objects: upper[0][at] / infinite.requests,
            bytes: upper[1][at] / infinite.bytes,
            cost: all_cost - upper[2][at],
        },
    });
    let sizes: Vec<Size> = sizes.collect();
    for size in &sizes {
        let held = |figures: &Figures| {
            figures.objects <= size.bound.objects + 1e-9
                && figures.bytes <= size.bound.bytes + 1e-9
                && figures.cost >= size.bound.cost - 1e-3
        };
        assert!(size.policies.iter().chain([&size.belady]).all(held), "a bound holds for everyone");
    }
    Run { seed, shape, infinite: infinite.into(), sizes }
}

impl From<simulate::Outcome> for Figures {
    fn from(outcome: simulate::Outcome) -> Self {
        Self { objects: outcome.object_ratio(), bytes: outcome.byte_ratio(), cost: outcome.cost }
    }
}

impl Shape {
    fn of(trace: &Trace) -> Self {
        let mut asked = vec![0_u32; trace.contents.len()];
        for request in &trace.requests {
            asked[request.content as usize] += 1;
        }
        let contents = asked.len();
        let once = asked.iter().filter(|count| **count == 1).count();
        asked.sort_unstable_by(|a, b| b.cmp(a));
        let top: u32 = asked[..contents / 100].iter().sum();
        let layers: Vec<_> = trace.contents.iter().filter(|content| content.is_layer).collect();
        let under = |limit| {
            layers.iter().filter(|content| content.bytes < limit).count() as f64 / layers.len() as f64
        };
        Self {
            requests: trace.requests.len(),
            contents,
            footprint: trace.footprint(),
            small: under(1_000_000),
            medium: under(10_000_000),
            largest: layers.iter().map(|content| content.bytes).max().unwrap_or(0),
            once: once as f64 / contents as f64,
            top: f64::from(top) / trace.requests.len() as f64,
        }
    }
}
