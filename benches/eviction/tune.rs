//! How much each constant of the default matters, on the seeds that tuning may look at.

use clawhub_edge::store::eviction::{Algorithm, Tuning, Worth};

use crate::report::median;
use crate::simulate;
use crate::trace::{self, Trace};
use crate::{MAIN, SHARES, WARM_UP};

struct Case {
    trace: Trace,
    capacity: u64,
    lru: simulate::Outcome,
}

/// Prints what becomes of byte hits and cost as one constant at a time is varied.
pub(crate) fn run() {
    let mut cases = Vec::new();
    for site in trace::sites() {
        for seed in 1..=10 {
            let trace = Trace::generate(&site, seed);
            let capacity = (trace.footprint() as f64 * SHARES[MAIN]) as u64;
            let warm = trace.requests.len() / WARM_UP;
            let lru = simulate::run(&trace, capacity, &mut *Algorithm::Lru.policy(), warm);
            cases.push(Case { trace, capacity, lru });
        }
    }
    let base = Tuning::default();
    println!(
        "| constant | value | byte hits − LRU's, points: median | least | cost ÷ LRU's: median | most |"
    );
    println!("|---|---|---|---|---|---|");
    let row = |name: &str, value: f32, tuning: Tuning| {
        let (mut gains, mut costs) = (Vec::new(), Vec::new());
        for Case { trace, capacity, lru } in &cases {
            let warm = trace.requests.len() / WARM_UP;
            let outcome = simulate::run(trace, *capacity, &mut Worth::new(tuning), warm);
            gains.push(100.0 * (outcome.byte_ratio() - lru.byte_ratio()));
            costs.push(outcome.cost / lru.cost);
        }
        let [gain, least, _] = median(&gains);
        let [cost, _, most] = median(&costs);
        println!("| {name} | {value} | {gain:+.2} | {least:+.2} | {cost:.3} | {most:.3} |");
    };
    row("(as they are)", 0.0, base);
    for value in [1.0, 1.5, 3.0] {
        row("power", value, Tuning { power: value, ..base });
    }
    for value in [1.0, 4.0, 8.0] {
        row("half_life", value, Tuning { half_life: value, ..base });
    }
    for value in [8.0, 32.0, 1e6] {
        row("most", value, Tuning { most: value, ..base });
    }
    for value in [0.01, 0.03, 0.3, 1.0] {
        row("patience", value, Tuning { patience: value, ..base });
    }
    for value in [0.03, 0.3, 1.0] {
        row("unproven", value, Tuning { unproven: value, ..base });
    }
    for value in [0.0, 0.2, 0.4, 0.6, 1.0] {
        row("thrift", value, Tuning { thrift: value, ..base });
    }
    for value in [0.0, 0.25, 1.0] {
        row("dependents", value, Tuning { dependents: value, ..base });
    }
    for value in [1.0, 16.0, 256.0] {
        row("metadata", value, Tuning { metadata: value, ..base });
    }
}
