//! What pulling counts.

use std::sync::{Arc, OnceLock};

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use super::{Error, Served};
use crate::store::{self, Blob};
use crate::telemetry::{self, counter, counters, gauge};

/// The counters of pulling.
#[derive(Debug)]
pub struct Metrics {
    answers: IntCounterVec,
    // Found once: a look-up by labels hashes them and takes a lock that all workers share.
    manifest_hits: OnceLock<IntCounter>,
    blob_hits: OnceLock<IntCounter>,
    fills: IntCounterVec,
    passages: IntCounterVec,
    pub(super) refetches: IntCounter,
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
            manifest_hits: OnceLock::new(),
            blob_hits: OnceLock::new(),
            fills: counters(metrics, "fills_total", "Fills that ended, by outcome.", &["outcome"]),
            passages: counters(
                metrics,
                "fills_passed_through_total",
                "Fills whose bytes no disk took, by why: they were passed through memory.",
                &["reason"],
            ),
            refetches: counter(
                metrics,
                "refetches_total",
                "Fetches for one client alone, of what had passed through before it came.",
            ),
            filled_bytes: counter(metrics, "fill_bytes_total", "Bytes that fills received."),
            flights: gauge(metrics, "flights", "Fills under way or waiting for their turn."),
        }
    }

    pub(super) fn count_answer(&self, kind: &str, served: Served) {
        let find = |served| self.answers.with_label_values(&[kind, served]);
        let served = match served {
            // The usual answers.
            Served::Hit if kind == "manifest" => {
                return self.manifest_hits.get_or_init(|| find("hit")).inc();
            }
            Served::Hit if kind == "blob" => return self.blob_hits.get_or_init(|| find("hit")).inc(),
            Served::Hit => "hit",
            Served::Revalidated => "revalidated",
            Served::Stale => "stale",
            Served::Miss | Served::Forwarded => "miss",
            Served::Collapsed => "collapsed",
        };
        find(served).inc();
    }

    pub(super) fn count_passage(&self, error: &store::Error) {
        let reason = match error {
            store::Error::NoRoom { .. } => "no_room",
            store::Error::Owned { .. }
            | store::Error::Layout { .. }
            | store::Error::Disk { .. }
            | store::Error::Metadata { .. } => "disk",
        };
        self.passages.with_label_values(&[reason]).inc();
    }

    pub(super) fn count_fill(&self, outcome: &Result<Option<Arc<Blob>>, Error>) {
        let outcome = match outcome {
            Ok(Some(_)) => "sealed",
            Ok(None) => "passed",
            Err(Error::Unknown(_)) => "unknown",
            Err(Error::Corrupt(_)) => "corrupt",
            Err(Error::Abandoned) => "abandoned",
            Err(Error::Store(_)) => "disk",
            Err(_) => "failed",
        };
        self.fills.with_label_values(&[outcome]).inc();
    }
}
