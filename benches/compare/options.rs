//! What the command line says.

use std::path::PathBuf;

use clap::Parser;

use crate::report::Scenario;

/// Runs ClawHub Edge side by side with nginx, Varnish and docker-registry, and writes `benches/RESULTS.md`.
#[derive(Parser, Clone)]
#[command(name = "compare")]
#[expect(clippy::struct_excessive_bools, reason = "one for each flag")]
pub(crate) struct Options {
    /// What is run; everything by default.
    #[arg(long, value_delimiter = ',', value_name = "SCENARIO")]
    pub(crate) only: Vec<Scenario>,
    /// Interleaved runs of each cell.
    #[arg(long, default_value_t = 5)]
    pub(crate) runs: usize,
    /// The figures as one JSON object on standard output; the tables are written all the same.
    #[arg(long)]
    pub(crate) json: bool,
    /// Little work per cell and no change to the results file: to see that everything runs.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Receive bodies into memory, as a real client does, in place of having the kernel drop them.
    #[arg(long)]
    pub(crate) copy: bool,
    /// TCP's congestion control; cubic is what Linux comes with.
    #[arg(long, default_value = "cubic", value_name = "NAME")]
    pub(crate) congestion: String,
    /// The edge that is measured.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_clawhub-edge"))]
    pub(crate) edge: PathBuf,
    /// Where the results go.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/benches"))]
    pub(crate) out: PathBuf,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}

impl Options {
    pub(crate) fn wants(&self, scenario: Scenario) -> bool {
        self.only.is_empty() || self.only.contains(&scenario)
    }
}
