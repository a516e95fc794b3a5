//! The figures as a plot: byte hit ratio above, upstream cost below, one column per kind of site.

use std::fmt::Write as _;

use crate::report::{median, subjects};
use crate::trace::Site;
use crate::{Figures, Run, SHARES};

const WIDTH: f64 = 250.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 56.0;
const GAP: f64 = 44.0;
/// In the order of the subjects; distinguishable without colour vision, too.
const COLOURS: [&str; 6] = ["#555555", "#e69f00", "#56b4e9", "#d55e00", "#009e73", "#999999"];
/// Dashes for what knows the future.
const DASHES: [&str; 6] = ["none", "none", "none", "none", "6 3", "2 3"];

/// An SVG that needs no style sheet.
pub(crate) fn svg(kinds: &[(Site, Vec<Run>)]) -> String {
    let width = LEFT + kinds.len() as f64 * (WIDTH + GAP);
    let height = TOP + 2.0 * (HEIGHT + GAP) + 12.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    legend(&mut svg);
    for (column, (site, runs)) in kinds.iter().enumerate() {
        let x = LEFT + column as f64 * (WIDTH + GAP);
        let _ =
            writeln!(svg, "<text x=\"{x}\" y=\"{}\" font-weight=\"bold\">{}</text>", TOP - 8.0, site.name);
        panel(&mut svg, (x, TOP), "byte hits, %", (0.0, 100.0), |figures, _| figures.bytes * 100.0, runs);
        let below = (x, TOP + HEIGHT + GAP);
        panel(&mut svg, below, "cost ÷ LRU's", (0.4, 1.2), |figures, lru| figures.cost / lru.cost, runs);
    }
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String) {
    for (at, (name, _)) in subjects().iter().take(COLOURS.len()).enumerate() {
        let x = LEFT + at as f64 * 110.0;
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" y1=\"16\" x2=\"{}\" y2=\"16\" stroke=\"{}\" stroke-width=\"2\" stroke-dasharray=\"{}\"/>\
             <text x=\"{}\" y=\"20\">{name}</text>",
            x + 24.0,
            COLOURS[at],
            DASHES[at],
            x + 30.0
        );
    }
}

/// One diagram: medians over the seeds by size of the cache, the sizes in the logarithm.
fn panel(
    svg: &mut String,
    (left, top): (f64, f64),
    title: &str,
    (from, to): (f64, f64),
    value: impl Fn(Figures, Figures) -> f64,
    runs: &[Run],
) {
    let across = |share: f64| {
        let first = SHARES[0].ln();
        left + WIDTH * (share.ln() - first) / (SHARES[SHARES.len() - 1].ln() - first)
    };
    let down = |value: f64| top + HEIGHT * (1.0 - (value.clamp(from, to) - from) / (to - from));
    let _ = writeln!(
        svg,
        "<rect x=\"{left}\" y=\"{top}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#bbbbbb\"/>\
         <text x=\"{}\" y=\"{}\" fill=\"#333333\">{title}</text>",
        left + 6.0,
        top + 14.0
    );
    for step in 0..=4 {
        let at = from + (to - from) * f64::from(step) / 4.0;
        let digits = usize::from(to < 10.0);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{at:.digits$}</text>\
             <line x1=\"{left}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\" stroke=\"#eeeeee\"/>",
            left - 4.0,
            down(at) + 4.0,
            left + WIDTH,
            y = down(at)
        );
    }
    for share in SHARES {
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{:.0} %</text>",
            across(share),
            top + HEIGHT + 15.0,
            share * 100.0
        );
    }
    for (at, (_, figures)) in subjects().iter().take(COLOURS.len()).enumerate() {
        let points = SHARES.iter().enumerate().map(|(size, share)| {
            let of =
                runs.iter().map(|run| value(figures(&run.sizes[size], run), run.sizes[size].policies[0]));
            let middle = median(&of.collect::<Vec<_>>())[0];
            format!("{:.1},{:.1}", across(*share), down(middle))
        });
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\" stroke-dasharray=\"{}\"/>",
            points.collect::<Vec<_>>().join(" "),
            COLOURS[at],
            DASHES[at]
        );
    }
}
