//! One measurement of one subject, and the rounds in which they are made.

use std::time::Duration;

use crate::load::{Load, Moved};
use crate::stats::{Ratio, Spread, quantile};
use crate::subject::{Kind, Subject};
use crate::support::clock::{now, pause};
use crate::support::usage::{self, Usage};

pub(crate) const GIB: f64 = (1u64 << 30) as f64;
pub(crate) const MIB: f64 = (1u64 << 20) as f64;

/// What one load of one subject took.
#[derive(Clone, Default)]
pub(crate) struct Sample {
    /// CPU-seconds of the server.
    pub(crate) server: f64,
    /// CPU-seconds of the machine, less those of an idle one.
    pub(crate) machine: f64,
    /// CPU-seconds of the client.
    pub(crate) client: f64,
    pub(crate) seconds: f64,
    pub(crate) bytes: f64,
    pub(crate) requests: f64,
    /// p50, p99 and p99.9 in microseconds.
    pub(crate) first_byte: [f64; 3],
    pub(crate) latency: [f64; 3],
    /// Highest resident memory and anonymous memory at the end, in bytes.
    pub(crate) peak: f64,
    pub(crate) anonymous: f64,
}

impl Sample {
    /// What was moved and what it took, but for the memory.
    pub(crate) fn of(moved: &Moved, used: &Usage, idle: f64) -> Self {
        Self {
            server: used.process,
            machine: used.machine - idle * moved.seconds,
            client: moved.client,
            seconds: moved.seconds,
            bytes: moved.bytes as f64,
            requests: moved.requests as f64,
            first_byte: quantiles(&moved.first_byte),
            latency: quantiles(&moved.latency),
            ..Self::default()
        }
    }
}

/// p50, p99 and p99.9 of sorted values.
pub(crate) fn quantiles(sorted: &[f64]) -> [f64; 3] {
    [0.5, 0.99, 0.999].map(|share| quantile(sorted, share))
}

/// The share of one core that an idle machine may use; more is somebody else's work, which spoils every figure.
const QUIET: f64 = 0.03;
/// How many seconds are waited for a quiet one.
const PATIENCE: usize = 30;

/// CPU-seconds per second of the machine when nothing is asked of it, round by round.
#[derive(Default)]
pub(crate) struct Idle {
    rounds: Vec<f64>,
}

impl Idle {
    /// Measures for a second; a machine that others use is waited for, and used as it is after half a minute.
    pub(crate) fn measure(&mut self) -> f64 {
        let second = || {
            let (before, started) = (usage::machine_seconds(), now());
            pause(Duration::from_secs(1));
            (usage::machine_seconds() - before) / started.elapsed().as_secs_f64()
        };
        let mut idle = second();
        for _ in 0..PATIENCE {
            if idle <= QUIET {
                break;
            }
            idle = second();
        }
        self.rounds.push(idle);
        idle
    }

    /// How far the figures can be trusted.
    pub(crate) fn note(&self) -> String {
        let Spread { median, most, .. } = Spread::of(self.rounds.iter().copied());
        let spoilt = if most > QUIET {
            ": **others were using the machine, so these figures are unreliable**"
        } else {
            ""
        };
        format!(
            "Before each round the idle machine used {:.1} % of a core (at most {:.1} %){spoilt}.",
            median * 100.0,
            most * 100.0
        )
    }
}

/// Puts the load on the subject.
pub(crate) fn measure(subject: &Subject, load: &Load<'_>, idle: f64) -> Sample {
    measured(subject, || load.run(), idle)
}

/// What a load of the subject takes.
pub(crate) fn measured(subject: &Subject, load: impl FnOnce() -> Moved, idle: f64) -> Sample {
    subject.forget_peak();
    let before = subject.usage();
    let moved = load();
    let used = subject.usage().since(&before);
    Sample {
        peak: subject.peak() as f64,
        anonymous: subject.rss_anon() as f64,
        ..Sample::of(&moved, &used, idle)
    }
}

/// The samples of one cell, one per round, of each subject.
pub(crate) struct Cell<K = Kind, S = Sample> {
    pub(crate) name: String,
    pub(crate) rows: Vec<(K, Vec<S>)>,
}

impl<K: Copy + PartialEq, S> Cell<K, S> {
    pub(crate) fn new(name: String, subjects: &[K]) -> Self {
        Self { name, rows: subjects.iter().map(|subject| (*subject, Vec::new())).collect() }
    }

    pub(crate) fn push(&mut self, subject: K, sample: S) {
        if let Some((_, samples)) = self.rows.iter_mut().find(|(of, _)| *of == subject) {
            samples.push(sample);
        }
    }

    /// The values of a subject, in the order of the rounds.
    pub(crate) fn values(&self, subject: K, value: impl Fn(&S) -> f64) -> Vec<f64> {
        self.rows
            .iter()
            .find(|(of, _)| *of == subject)
            .map_or_else(Vec::new, |(_, samples)| samples.iter().map(value).collect())
    }

    pub(crate) fn spread(&self, subject: K, value: impl Fn(&S) -> f64) -> Spread {
        Spread::of(self.values(subject, value))
    }
}

impl Cell {
    /// The edge's figure over that of the best of these peers in the same round; best is least, or most if `more`.
    pub(crate) fn ratio(&self, peers: &[Kind], more: bool, value: impl Fn(&Sample) -> f64 + Copy) -> Ratio {
        let ours = self.values(Kind::Edge, value);
        let theirs: Vec<Vec<f64>> = peers.iter().map(|kind| self.values(*kind, value)).collect();
        let best = |round: usize| {
            let values = theirs.iter().filter_map(|values| values.get(round).copied());
            if more { values.fold(f64::MIN, f64::max) } else { values.fold(f64::MAX, f64::min) }
        };
        let best: Vec<f64> = (0..ours.len()).map(best).collect();
        Ratio::paired(&ours, &best)
    }
}

/// The subjects in the order of this round: each is first, second, … equally often.
pub(crate) fn order<T>(subjects: &[T], round: usize) -> impl Iterator<Item = &T> {
    let start = round % subjects.len().max(1);
    subjects[start..].iter().chain(&subjects[..start])
}
