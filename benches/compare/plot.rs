//! Bars with whiskers as plain SVG.

use std::fmt::Write as _;

use crate::stats::Spread;

const COLOURS: [&str; 4] = ["#d9480f", "#1971c2", "#2f9e44", "#868e96"];
const WIDTH: f64 = 920.0;
const PANEL: f64 = 280.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 60.0;
const BAR_SPACE: f64 = 170.0;

/// One diagram: groups of bars, one bar per series.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) groups: Vec<String>,
    /// A name and one value per group; a group without one has no bar.
    pub(crate) series: Vec<(&'static str, Vec<Option<Spread>>)>,
}

/// Draws the panels below each other.
pub(crate) fn draw(panels: &[Panel]) -> String {
    let height = PANEL * panels.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (at, panel) in panels.iter().enumerate() {
        let _ = writeln!(svg, "<g transform=\"translate(0 {})\">", PANEL * at as f64);
        panel.draw(&mut svg);
        svg += "</g>\n";
    }
    svg + "</svg>\n"
}

impl Panel {
    fn draw(&self, svg: &mut String) {
        let values = self.series.iter().flat_map(|(_, values)| values.iter().flatten());
        let most = values.map(|spread| spread.most).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        let step = nice_step(most / 4.0);
        let top = (most / step).ceil() * step;
        let y = |value: f64| TOP + BAR_SPACE * (1.0 - value / top);
        let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"20\" font-weight=\"bold\">{}</text>", self.title);
        for (at, (name, _)) in self.series.iter().enumerate() {
            let x = LEFT + 160.0 * at as f64;
            let colour = COLOURS[at % COLOURS.len()];
            let _ = writeln!(svg, "<rect x=\"{x}\" y=\"32\" width=\"12\" height=\"12\" fill=\"{colour}\"/>");
            let _ = writeln!(svg, "<text x=\"{}\" y=\"42\">{name}</text>", x + 18.0);
        }
        for line in 0..=((top / step).round() as usize) {
            let value = step * line as f64;
            let at = y(value);
            let _ = writeln!(svg, "<path d=\"M{LEFT} {at:.1}H{}\" stroke=\"#dee2e6\"/>", WIDTH - 20.0);
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                at + 4.0,
                number(value)
            );
        }
        let group_width = (WIDTH - 20.0 - LEFT) / self.groups.len().max(1) as f64;
        let bar = group_width * 0.8 / self.series.len().max(1) as f64;
        for (group, label) in self.groups.iter().enumerate() {
            let start = LEFT + group_width * (group as f64 + 0.1);
            for (at, (_, values)) in self.series.iter().enumerate() {
                let Some(Some(spread)) = values.get(group) else { continue };
                let (x, colour) = (start + bar * at as f64, COLOURS[at % COLOURS.len()]);
                let (from, middle) = (y(spread.median), x + bar * 0.45);
                let height = TOP + BAR_SPACE - from;
                let width = bar * 0.9;
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{from:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
                );
                let (low, high) = (y(spread.least), y(spread.most));
                let _ = writeln!(svg, "<path d=\"M{middle:.1} {low:.1}V{high:.1}\" stroke=\"black\"/>");
            }
            let (x, below) = (start + group_width * 0.4, TOP + BAR_SPACE + 18.0);
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{below}\" text-anchor=\"middle\">{label}</text>");
        }
    }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= least)
        .unwrap_or(least)
}

fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
