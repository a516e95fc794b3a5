//! `RESULTS.md`: one marked section per scenario, so that a run of one leaves the others as they are.

use std::fs;
use std::path::Path;

use clap::ValueEnum;

use crate::namespace;
use crate::options::Options;
use crate::subject::Kind;

/// What can be measured, in the order of the report.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum Scenario {
    Hits,
    Manifests,
    Tls,
    Fills,
    Slow,
    Scale,
    Throttled,
}

impl Scenario {
    pub(crate) const ALL: [Self; 7] =
        [Self::Hits, Self::Manifests, Self::Tls, Self::Fills, Self::Slow, Self::Scale, Self::Throttled];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hits => "hits",
            Self::Manifests => "manifests",
            Self::Tls => "tls",
            Self::Fills => "fills",
            Self::Slow => "slow",
            Self::Scale => "scale",
            Self::Throttled => "throttled",
        }
    }
}

/// What a scenario has found.
pub(crate) struct Section {
    pub(crate) title: &'static str,
    pub(crate) markdown: String,
    /// The picture beside it, as an SVG document.
    pub(crate) plot: Option<String>,
    pub(crate) figures: serde_json::Value,
}

/// A table of Markdown.
pub(crate) struct Table {
    text: String,
}

impl Table {
    pub(crate) fn new(columns: &[&str]) -> Self {
        let rule = "---|".repeat(columns.len());
        Self { text: format!("| {} |\n|{rule}\n", columns.join(" | ")) }
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        self.text += &format!("| {} |\n", cells.join(" | "));
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }
}

/// Writes the sections into the results file and the plots beside it.
pub(crate) fn write(options: &Options, sections: &[(Scenario, Section)]) -> std::io::Result<()> {
    let path = options.out.join("RESULTS.md");
    let mut known = parse(&fs::read_to_string(&path).unwrap_or_default());
    fs::create_dir_all(options.out.join("plots"))?;
    for (scenario, section) in sections {
        let mut text = format!("## {}\n\n{}", section.title, section.markdown.trim_end());
        if let Some(plot) = &section.plot {
            let name = format!("plots/{}.svg", scenario.name());
            fs::write(options.out.join(&name), plot)?;
            text += &format!("\n\n![{}]({name})", section.title);
        }
        text += &format!("\n\n<sub>{}</sub>\n", machine(&options.edge));
        known.retain(|(name, _)| name != scenario.name());
        known.push((scenario.name().to_owned(), text));
    }
    let mut document = INTRODUCTION.to_owned();
    for scenario in Scenario::ALL {
        if let Some((name, text)) = known.iter().find(|(name, _)| name == scenario.name()) {
            document += &format!("\n<!-- {name} -->\n{}\n<!-- /{name} -->\n", text.trim());
        }
    }
    fs::write(path, document)
}

fn parse(document: &str) -> Vec<(String, String)> {
    let section = |scenario: Scenario| {
        let name = scenario.name();
        let (_, rest) = document.split_once(&format!("<!-- {name} -->\n"))?;
        let (text, _) = rest.split_once(&format!("<!-- /{name} -->"))?;
        Some((name.to_owned(), text.to_owned()))
    };
    Scenario::ALL.into_iter().filter_map(section).collect()
}

/// What it was measured on: processor, cores, memory, kernel, and the versions of all subjects.
fn machine(edge: &Path) -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = meminfo.split_whitespace().nth(1).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let versions = [Kind::Edge, Kind::Nginx, Kind::Varnish, Kind::Registry].map(|kind| kind.version(edge));
    format!(
        "{}, {cores} cores, {:.0} GiB, Linux {}, TCP {}; {}",
        model.trim_start_matches(['\t', ':', ' ']),
        memory / f64::from(1 << 20),
        kernel.trim(),
        namespace::current(),
        versions.join("; ")
    )
}

const INTRODUCTION: &str = "\
# ClawHub Edge beside its peers

Written by `benches/compare/run` (`cargo bench --bench compare`). All subjects stand in front of the same origin on the
same machine, with the configurations in [`compare/peers`](compare/peers): nginx with `proxy_cache`, Varnish with its
objects in memory, docker-registry as a pull-through proxy. They are warmed and their bytes are verified first; then one
is loaded at a time, in rounds that change the order. Cells show the median of the rounds (minimum–maximum). A ratio is
that of the two figures of the same round; shown are the median of those ratios and its 95 % interval (bootstrap).

*Server* is the CPU time of the server's processes, *machine* that of everything (`/proc/stat`, less what the idle
machine uses, measured in the same round): on loopback part of the receiving is charged to whoever sends, so the
server's figure alone misleads. The load client is one thread that lets the kernel drop the bodies (`MSG_TRUNC`) and is
the same for all.
";
