//! Hits of large blobs over TLS 1.3, HTTP/1.1 and HTTP/2, beside nginx with the same cipher.

use serde_json::json;

use crate::bench::Bench;
use crate::cell::{Cell, GIB, Idle, MIB, Sample, measured, order};
use crate::origin::Blob;
use crate::plot::{Panel, draw};
use crate::report::{Section, Table};
use crate::secure::{Identity, SecureLoad, Version, verify};
use crate::subject::{Kind, Setup, Subject};

const KINDS: [Kind; 2] = [Kind::Edge, Kind::Nginx];
const SIZE: u64 = 64 << 20;
/// Name, version, connections, streams of each.
const SHAPES: [(&str, Version, usize, usize); 4] = [
    ("HTTP/1.1, 1 connection", Version::Http1, 1, 1),
    ("HTTP/1.1, 8 connections", Version::Http1, 8, 1),
    ("HTTP/2, 8 connections", Version::Http2, 8, 1),
    ("HTTP/2, 1 connection, 8 streams", Version::Http2, 1, 8),
];

pub(crate) fn run(bench: &Bench) -> Section {
    let identity = Identity::new(&bench.ground.directory("tls"));
    let setup = Setup { tls: Some((identity.certificate.clone(), identity.key.clone())), ..Setup::default() };
    let blob = Blob::new(1, SIZE);
    let path = blob.path();
    let origin = bench.origin(std::slice::from_ref(&blob), &[], None);
    let subjects: Vec<Subject> =
        KINDS.iter().map(|kind| bench.subject(*kind, origin.address, &setup)).collect();
    for subject in &subjects {
        for version in [Version::Http1, Version::Http2] {
            verify(subject.address, &identity, version, &path, &blob.digest);
        }
    }
    let mut cells: Vec<Cell> = SHAPES.iter().map(|shape| Cell::new(shape.0.to_owned(), &KINDS)).collect();
    let mut idle = Idle::default();
    for round in 0..bench.options.runs {
        let baseline = idle.measure();
        for (cell, (_, version, connections, streams)) in cells.iter_mut().zip(SHAPES) {
            for subject in order(&subjects, round) {
                let load = SecureLoad {
                    address: subject.address,
                    identity: &identity,
                    path: &path,
                    version,
                    connections,
                    streams,
                    requests: if bench.options.quick { 8 } else { 32 },
                };
                cell.push(subject.kind, measured(subject, || load.run(), baseline));
            }
        }
        bench.say(&format!("tls: round {} of {}", round + 1, bench.options.runs));
    }
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

fn report(cells: &[Cell], idle: &Idle) -> Section {
    let peers = [Kind::Nginx];
    let mut ratios = Table::new(&["edge ÷ nginx", "server CPU per GiB", "machine CPU per GiB", "throughput"]);
    let mut table = Table::new(&[
        "cell",
        "subject",
        "server CPU-s/GiB",
        "machine CPU-s/GiB",
        "GiB/s",
        "first byte p50, ms",
        "peak resident, MiB",
        "client busy",
    ]);
    let mut figures = Vec::new();
    for cell in cells {
        let found = [
            cell.ratio(&peers, false, server),
            cell.ratio(&peers, false, machine),
            cell.ratio(&peers, true, throughput),
        ];
        ratios.row(&[cell.name.clone(), found[0].show(), found[1].show(), found[2].show()]);
        figures.push(json!({
            "cell": cell.name,
            "server_ratio": found[0].json(),
            "machine_ratio": found[1].json(),
            "throughput_ratio": found[2].json(),
        }));
        for kind in KINDS {
            let spread = |value: fn(&Sample) -> f64| cell.spread(kind, value);
            table.row(&[
                cell.name.clone(),
                kind.name().to_owned(),
                spread(server).show(3),
                spread(machine).show(3),
                spread(throughput).show(2),
                spread(|sample| sample.first_byte[0] / 1e3).show(2),
                format!("{:.0}", spread(|sample| sample.peak / MIB).median),
                format!("{:.0} %", spread(|sample| 100.0 * sample.client / sample.seconds).median),
            ]);
            figures.push(json!({
                "cell": cell.name,
                "subject": kind.name(),
                "server_cpu_s_per_gib": spread(server).json(),
                "machine_cpu_s_per_gib": spread(machine).json(),
                "gib_per_s": spread(throughput).json(),
            }));
        }
    }
    let markdown = format!(
        "64 MiB blobs, 2 GiB per cell and round, TLS 1.3 with TLS_AES_128_GCM_SHA256 and ECDSA P-256. The client is \
         rustls (and h2) on one\nthread and decrypts everything: its cost is in the machine's figure of both, and it is \
         what limits the throughput, so the\nserver's CPU is what to compare. {}\n\n{}\n{}",
        idle.note(),
        ratios.finish(),
        table.finish()
    );
    let plot = draw(&[Panel {
        title: "TLS 1.3 hits, CPU-seconds of the server per GiB (less is better)".to_owned(),
        groups: cells.iter().map(|cell| cell.name.clone()).collect(),
        series: KINDS
            .iter()
            .map(|kind| (kind.name(), cells.iter().map(|cell| Some(cell.spread(*kind, server))).collect()))
            .collect(),
    }]);
    Section { title: "Hits over TLS", markdown, plot: Some(plot), figures: json!(figures) }
}
