//! What pulling counts.

use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use super::{Error, Served};
use crate::store::Blob;
use crate::telemetry::{self, counter, counters, gauge};

/// The counters of pulling.
#[derive(Debug)]
pub struct Metrics {
    answers: IntCounterVec,
    fills: IntCounterVec,
    pub(super) filled_bytes: IntCounter,
    pub(super) flights: IntGauge,
}

impl Metrics {
    /// Registers the counters.
    pub fn register(metrics: &telemetry::Metrics) -> Self {
        Self {
            answers: counters(
                metrics,
                "pull_answers_total",
                "Answers by what was asked for and how the answer came about.",
                &["kind", "served"],
            ),
            fills: counters(metrics, "fills_total", "Fills that ended, by outcome.", &["outcome"]),
            filled_bytes: counter(metrics, "fill_bytes_total", "Bytes that fills received."),
            flights: gauge(metrics, "flights", "Fills under way or waiting for their turn."),
        }
    }

    pub(super) fn count_answer(&self, kind: &str, served: Served) {
        let served = match served {
            Served::Hit => "hit",
            Served::Revalidated => "revalidated",
            Served::Stale => "stale",
            Served::Miss => "miss",
            Served::Collapsed => "collapsed",
        };
        self.answers.with_label_values(&[kind, served]).inc();
    }

    pub(super) fn count_fill(&self, outcome: &Result<Arc<Blob>, Error>) {
        let outcome = match outcome {
            Ok(_) => "sealed",
            Err(Error::Unknown(_)) => "unknown",
            Err(Error::Corrupt(_)) => "corrupt",
            Err(Error::Abandoned) => "abandoned",
            Err(Error::Store(_)) => "disk",
            Err(_) => "failed",
        };
        self.fills.with_label_values(&[outcome]).inc();
    }
}
