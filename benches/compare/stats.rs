//! Medians, spreads, and what a paired comparison says.

/// Median, minimum and maximum.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(&least), Some(&most)) = (values.first(), values.last()) else {
            return Self { median: f64::NAN, least: f64::NAN, most: f64::NAN };
        };
        Self { median: middle(&values), least, most }
    }

    /// `median (minimum–maximum)` with so many decimals.
    pub(crate) fn show(&self, decimals: usize) -> String {
        let Self { median, least, most } = self;
        format!("{median:.decimals$} ({least:.decimals$}–{most:.decimals$})")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::json!([self.median, self.least, self.most])
    }
}

/// The median of paired ratios and its 95 % interval.
#[derive(Clone, Copy)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Ratio {
    /// Of values that were measured in the same rounds. The interval is a percentile bootstrap of the median with a
    /// fixed seed; of few rounds it is nearly their minimum and maximum.
    pub(crate) fn paired(ours: &[f64], theirs: &[f64]) -> Self {
        const RESAMPLES: usize = 10_000;
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        if ratios.is_empty() {
            return Self { median: f64::NAN, low: f64::NAN, high: f64::NAN };
        }
        let mut random = fastrand::Rng::with_seed(95);
        let mut medians: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let mut drawn: Vec<f64> =
                    ratios.iter().map(|_| ratios[random.usize(..ratios.len())]).collect();
                drawn.sort_by(f64::total_cmp);
                middle(&drawn)
            })
            .collect();
        medians.sort_by(f64::total_cmp);
        let mut sorted = ratios;
        sorted.sort_by(f64::total_cmp);
        Self { median: middle(&sorted), low: quantile(&medians, 0.025), high: quantile(&medians, 0.975) }
    }

    pub(crate) fn show(&self) -> String {
        self.show_to(2)
    }

    /// `median [low–high]` with so many decimals.
    pub(crate) fn show_to(&self, decimals: usize) -> String {
        let Self { median, low, high } = self;
        format!("{median:.decimals$} [{low:.decimals$}–{high:.decimals$}]")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::json!([self.median, self.low, self.high])
    }
}

fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) }
}

/// A quantile of sorted values, by the nearest rank.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}
