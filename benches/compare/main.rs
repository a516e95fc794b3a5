//! ClawHub Edge beside its peers, on one machine, in one go.
//!
//! `cargo bench --bench compare` (or `benches/compare/run`) runs every scenario and writes `benches/RESULTS.md` with its
//! plots. Options: `--only hits,manifests,…`, `--runs N` (5), `--json`, `--quick`, `--copy`,
//! `--congestion NAME` (cubic), `--edge PATH`, `--out DIRECTORY`. Nothing else should run meanwhile.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::format_push_string,
    reason = "a report of figures far below the limits of an f64"
)]

mod bench;
mod cell;
mod children;
mod crowd;
mod fixture;
/// The bare loop of the `fill` benchmark, with what it asks of its surroundings there.
#[path = "../fill"]
mod fill {
    pub(crate) mod bare;
    #[expect(dead_code, reason = "the loop reads heads with it; what pulls is the load client")]
    pub(crate) mod client;
    pub(crate) mod process {
        pub(crate) use crate::children::setting;
        pub(crate) use crate::support::clock::now;
    }
}
mod fills;
mod hits;
mod load;
mod manifests;
mod namespace;
mod options;
mod origin;
mod plot;
mod report;
mod scale;
mod secure;
mod slow;
mod stats;
mod subject;
#[path = "../support/mod.rs"]
mod support;
mod throttle;
mod throttled;
mod tls;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;

use bench::Bench;
use children::Ground;
use options::Options;
use report::{Scenario, Section};
use subject::Kind;

fn main() -> ExitCode {
    match children::role().as_deref() {
        Some("origin") => return origin::run(),
        Some("bare") => return fill::bare::run(),
        Some("keeper") => return children::keep(),
        Some(role) => panic!("no role of this program: {role}"),
        None => {}
    }
    let options = Options::parse();
    if let Err(message) = subject::require(&[Kind::Nginx, Kind::Varnish, Kind::Registry]) {
        eprintln!("{message}");
        return ExitCode::FAILURE;
    }
    if let Err(message) = namespace::enter(&options.congestion) {
        eprintln!("{message}");
        return ExitCode::FAILURE;
    }
    let bench = Bench { options, ground: Ground::new() };
    let mut sections = Vec::new();
    for scenario in Scenario::ALL.into_iter().filter(|scenario| bench.options.wants(*scenario)) {
        sections.push((scenario, run(&bench, scenario)));
        // Hours of measuring are not lost to the scenario behind them.
        if !bench.options.quick
            && let Err(error) = report::write(&bench.options, &sections)
        {
            eprintln!("the results cannot be written: {error}");
            return ExitCode::FAILURE;
        }
    }
    for (_, section) in &sections {
        eprintln!("\n## {}\n\n{}", section.title, section.markdown);
    }
    if bench.options.json {
        let figures = sections.iter().map(|(scenario, section)| (scenario.name(), section.figures.clone()));
        println!("{}", figures.collect::<serde_json::Value>());
    }
    ExitCode::SUCCESS
}

fn run(bench: &Bench, scenario: Scenario) -> Section {
    match scenario {
        Scenario::Hits => hits::run(bench),
        Scenario::Manifests => manifests::run(bench),
        Scenario::Tls => tls::run(bench),
        Scenario::Fills => fills::run(bench),
        Scenario::Slow => slow::run(bench),
        Scenario::Scale => scale::run(bench),
        Scenario::Throttled => throttled::run(bench),
    }
}
