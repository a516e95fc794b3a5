//! Hits of manifests of 2 KiB, by digest and by tag, with the access log on.

use serde_json::json;

use crate::bench::Bench;
use crate::cell::{Cell, Idle, MIB, Sample, measure, order};
use crate::load::{Load, verify};
use crate::origin::Manifest;
use crate::plot::{Panel, draw};
use crate::report::{Section, Table};
use crate::subject::{Kind, Setup, Subject};

const KINDS: [Kind; 5] = [Kind::Edge, Kind::PlainNginx, Kind::Nginx, Kind::Varnish, Kind::Registry];
const SIZE: usize = 2048;
const CONNECTIONS: usize = 64;
const REQUESTS: usize = 100_000;

pub(crate) fn run(bench: &Bench) -> Section {
    let manifest = Manifest::new("stable", SIZE);
    let paths = [("by digest", manifest.path_by_digest()), ("by tag", manifest.path_by_tag())];
    let digest = manifest.digest.clone();
    let origin = bench.origin(&[], &[manifest], None);
    let subjects: Vec<Subject> =
        KINDS.iter().map(|kind| bench.subject(*kind, origin.address, &Setup::default())).collect();
    let mut cells: Vec<Cell> = paths.iter().map(|(name, _)| Cell::new((*name).to_owned(), &KINDS)).collect();
    for subject in &subjects {
        for (_, path) in &paths {
            verify(subject.address, path, &digest);
            verify(subject.address, path, &digest);
        }
    }
    let mut idle = Idle::default();
    for round in 0..bench.options.runs {
        let baseline = idle.measure();
        for (cell, (_, path)) in cells.iter_mut().zip(&paths) {
            for subject in order(&subjects, round) {
                let requests = if subject.kind == Kind::Registry { REQUESTS / 10 } else { REQUESTS };
                let load = Load {
                    address: subject.address,
                    paths: std::slice::from_ref(path),
                    connections: CONNECTIONS,
                    requests: if bench.options.quick { requests / 10 } else { requests },
                    copy: bench.options.copy,
                    limit: None,
                };
                cell.push(subject.kind, measure(subject, &load, baseline));
            }
        }
        bench.say(&format!("manifests: round {} of {}", round + 1, bench.options.runs));
    }
    report(&cells, &idle)
}

fn server(sample: &Sample) -> f64 {
    sample.server / sample.requests * 1e6
}

fn machine(sample: &Sample) -> f64 {
    sample.machine / sample.requests * 1e6
}

fn rate(sample: &Sample) -> f64 {
    sample.requests / sample.seconds
}

fn p99(sample: &Sample) -> f64 {
    sample.latency[1]
}

fn report(cells: &[Cell], idle: &Idle) -> Section {
    let mut ratios = Table::new(&[
        "edge ÷ peer",
        "server CPU per request",
        "machine CPU per request",
        "requests/s",
        "p99",
    ]);
    let mut table = Table::new(&[
        "cell",
        "subject",
        "server CPU-µs/request",
        "machine CPU-µs/request",
        "requests/s",
        "p50, µs",
        "p99, µs",
        "p99.9, µs",
        "peak resident, MiB",
        "client busy",
    ]);
    let mut figures = Vec::new();
    for cell in cells {
        for peer in [Kind::PlainNginx, Kind::Nginx, Kind::Varnish] {
            let peers = [peer];
            let found = [
                cell.ratio(&peers, false, server),
                cell.ratio(&peers, false, machine),
                cell.ratio(&peers, true, rate),
                cell.ratio(&peers, false, p99),
            ];
            let mut row = vec![format!("{}, {}", peer.name(), cell.name)];
            row.extend(found.iter().map(|ratio| ratio.show()));
            ratios.row(&row);
            figures.push(json!({
                "cell": cell.name,
                "peer": peer.name(),
                "server_ratio": found[0].json(),
                "machine_ratio": found[1].json(),
                "rate_ratio": found[2].json(),
                "p99_ratio": found[3].json(),
            }));
        }
        for (kind, _) in &cell.rows {
            let spread = |value: fn(&Sample) -> f64| cell.spread(*kind, value);
            let latency = [0, 1, 2].map(|at| cell.spread(*kind, |sample| sample.latency[at]));
            table.row(&[
                cell.name.clone(),
                kind.name().to_owned(),
                spread(server).show(1),
                spread(machine).show(1),
                spread(rate).show(0),
                latency[0].show(0),
                latency[1].show(0),
                latency[2].show(0),
                format!("{:.0}", spread(|sample| sample.peak / MIB).median),
                format!("{:.0} %", spread(|sample| 100.0 * sample.client / sample.seconds).median),
            ]);
            figures.push(json!({
                "cell": cell.name,
                "subject": kind.name(),
                "server_cpu_us_per_request": spread(server).json(),
                "machine_cpu_us_per_request": spread(machine).json(),
                "requests_per_s": spread(rate).json(),
                "latency_us": latency.map(|spread| spread.json()),
            }));
        }
    }
    let markdown = format!(
        "A manifest of {SIZE} bytes, {CONNECTIONS} kept connections, {REQUESTS} requests per cell and round (a tenth \
         for docker-registry, which\nasks the origin about a tag each time, and before every answer tries an origin that \
         demands no token again: read its\nfigures with that in mind). Everyone writes an access log to a file: nginx \
         buffered, Varnish by varnishncsa, which is\ncounted with it. The edge counts its metrics besides. {}\n\n{}\n{}",
        idle.note(),
        ratios.finish(),
        table.finish()
    );
    // docker-registry would leave the others no room.
    let panel = |title: &str, value: fn(&Sample) -> f64| Panel {
        title: title.to_owned(),
        groups: cells.iter().map(|cell| cell.name.clone()).collect(),
        series: KINDS[..3]
            .iter()
            .map(|kind| (kind.name(), cells.iter().map(|cell| Some(cell.spread(*kind, value))).collect()))
            .collect(),
    };
    let plot = draw(&[
        panel("Manifest hits, CPU-µs of the server per request (less is better)", server),
        panel("Manifest hits, requests per second (more is better)", rate),
        panel("Manifest hits, p99 in µs (less is better)", p99),
    ]);
    Section { title: "Hits of manifests", markdown, plot: Some(plot), figures: json!(figures) }
}
