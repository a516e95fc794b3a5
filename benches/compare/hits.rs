//! Hits of large blobs over plaintext HTTP/1.1.

use serde_json::json;

use crate::bench::Bench;
use crate::cell::{Cell, GIB, Idle, MIB, Sample, measure, order};
use crate::load::{Load, verify};
use crate::origin::Blob;
use crate::plot::{Panel, draw};
use crate::report::{Section, Table};
use crate::stats::Spread;
use crate::subject::{Kind, Setup, Subject};

const KINDS: [Kind; 4] = [Kind::Edge, Kind::Nginx, Kind::Varnish, Kind::Registry];
/// The edge is held against the better of these two; docker-registry is far behind.
const PEERS: [Kind; 2] = [Kind::Nginx, Kind::Varnish];
const SIZES: [u64; 2] = [64 << 20, 512 << 20];
const CONNECTIONS: [usize; 3] = [1, 8, 64];

pub(crate) fn run(bench: &Bench) -> Section {
    let blobs: Vec<Blob> = SIZES.iter().zip(1..).map(|(size, number)| Blob::new(number, *size)).collect();
    let origin = bench.origin(&blobs, &[], None);
    let subjects: Vec<Subject> =
        KINDS.iter().map(|kind| bench.subject(*kind, origin.address, &Setup::default())).collect();
    for subject in &subjects {
        for blob in &blobs {
            // Once for the cache, and once for what came of it.
            verify(subject.address, &blob.path(), &blob.digest);
            verify(subject.address, &blob.path(), &blob.digest);
        }
    }
    rustix::fs::sync();
    let mut cells = Vec::new();
    for blob in &blobs {
        for connections in CONNECTIONS {
            let of = if connections == 1 { "connection" } else { "connections" };
            let name = format!("{} MiB, {connections} {of}", blob.size >> 20);
            cells.push((Cell::new(name, &KINDS), blob, connections));
        }
    }
    let mut idle = Idle::default();
    for round in 0..bench.options.runs {
        let baseline = idle.measure();
        for (cell, blob, connections) in &mut cells {
            // About 4 GiB, or once for each connection where that is more than that.
            let total: u64 = if bench.options.quick { 1 << 29 } else { 4 << 30 };
            let fair = usize::try_from(total / blob.size).unwrap_or(1).max(1);
            let load = |address| Load {
                address,
                paths: &[],
                connections: *connections,
                requests: fair.max(if bench.options.quick { 1 } else { *connections }),
                copy: bench.options.copy,
                limit: None,
            };
            for subject in order(&subjects, round) {
                if subject.kind == Kind::Registry && fair < *connections {
                    continue;
                }
                let paths = [blob.path()];
                cell.push(
                    subject.kind,
                    measure(subject, &Load { paths: &paths, ..load(subject.address) }, baseline),
                );
            }
        }
        bench.say(&format!("hits: round {} of {}", round + 1, bench.options.runs));
    }
    let cells: Vec<Cell> = cells.into_iter().map(|(cell, ..)| cell).collect();
    report(&cells, &idle)
}

fn server(sample: &Sample) -> f64 {
    sample.server / (sample.bytes / GIB)
}

fn machine(sample: &Sample) -> f64 {
    sample.machine / (sample.bytes / GIB)
}

fn throughput(sample: &Sample) -> f64 {
    sample.bytes / GIB / sample.seconds
}

/// A bar of the plot, where the subject was measured.
fn bar(cell: &Cell, kind: Kind, value: fn(&Sample) -> f64) -> Option<Spread> {
    let values = cell.values(kind, value);
    (!values.is_empty()).then(|| Spread::of(values))
}

fn report(cells: &[Cell], idle: &Idle) -> Section {
    let mut ratios = Table::new(&[
        "edge ÷ better of nginx and Varnish",
        "machine CPU per GiB",
        "server CPU per GiB",
        "throughput",
    ]);
    let mut table = Table::new(&[
        "cell",
        "subject",
        "machine CPU-s/GiB",
        "server CPU-s/GiB",
        "GiB/s",
        "first byte p50 / p99 / p99.9, ms",
        "peak resident, MiB",
        "anonymous, MiB",
        "client busy",
    ]);
    let mut figures = Vec::new();
    for cell in cells {
        let [by_machine, by_server, by_throughput] = [
            cell.ratio(&PEERS, false, machine),
            cell.ratio(&PEERS, false, server),
            cell.ratio(&PEERS, true, throughput),
        ];
        ratios.row(&[cell.name.clone(), by_machine.show(), by_server.show(), by_throughput.show()]);
        for (kind, _) in cell.rows.iter().filter(|(_, samples)| !samples.is_empty()) {
            let spread = |value: fn(&Sample) -> f64| cell.spread(*kind, value);
            let first_byte = [0, 1, 2].map(|at| cell.spread(*kind, |sample| sample.first_byte[at] / 1e3));
            table.row(&[
                cell.name.clone(),
                kind.name().to_owned(),
                spread(machine).show(3),
                spread(server).show(3),
                spread(throughput).show(2),
                first_byte.map(|spread| format!("{:.2}", spread.median)).join(" / "),
                format!("{:.0}", spread(|sample| sample.peak / MIB).median),
                format!("{:.0}", spread(|sample| sample.anonymous / MIB).median),
                format!("{:.0} %", spread(|sample| 100.0 * sample.client / sample.seconds).median),
            ]);
            figures.push(json!({
                "cell": cell.name,
                "subject": kind.name(),
                "machine_cpu_s_per_gib": spread(machine).json(),
                "server_cpu_s_per_gib": spread(server).json(),
                "gib_per_s": spread(throughput).json(),
                "first_byte_ms": first_byte.map(|spread| spread.json()),
            }));
        }
        figures.push(json!({
            "cell": cell.name,
            "machine_ratio": by_machine.json(),
            "server_ratio": by_server.json(),
            "throughput_ratio": by_throughput.json(),
        }));
    }
    let markdown = format!(
        "4 GiB per cell and round, each blob whole; 64 connections on 512 MiB move 32 GiB \
         (without docker-registry, which\nwould take minutes). The ratio is to whichever of nginx and Varnish was better in \
         that round. p99.9 of few requests is\ntheir slowest. {}\n\n{}\n{}",
        idle.note(),
        ratios.finish(),
        table.finish()
    );
    let panel = |title: &str, value: fn(&Sample) -> f64| Panel {
        title: title.to_owned(),
        groups: cells.iter().map(|cell| cell.name.clone()).collect(),
        series: KINDS
            .iter()
            .map(|kind| (kind.name(), cells.iter().map(|cell| bar(cell, *kind, value)).collect()))
            .collect(),
    };
    let plot = draw(&[
        panel("Hits, CPU-seconds of the whole machine per GiB (less is better)", machine),
        panel("Hits, GiB per second (more is better)", throughput),
    ]);
    Section { title: "Hits of large blobs", markdown, plot: Some(plot), figures: json!(figures) }
}
