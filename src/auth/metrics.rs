//! What is counted of decisions.

use prometheus::IntCounterVec;

use crate::routing::UpstreamName;
use crate::telemetry::{self, counters};

/// The counters of who was admitted.
#[derive(Debug)]
pub struct Metrics {
    verdicts: IntCounterVec,
    refusals: IntCounterVec,
}

impl Metrics {
    /// Registers the counters.
    pub fn register(metrics: &telemetry::Metrics) -> Self {
        Self {
            verdicts: counters(
                metrics,
                "auth_verdicts_total",
                "What came of asking an upstream about a caller's right: granted, denied, unknown, unavailable, or the \
                 grace that took its place.",
                &["upstream", "verdict"],
            ),
            refusals: counters(
                metrics,
                "auth_keys_refused_total",
                "Keys that did not do, by why.",
                &["reason"],
            ),
        }
    }

    pub(super) fn refused(&self, reason: &str) {
        self.refusals.with_label_values(&[reason]).inc();
    }

    pub(super) fn count(&self, upstream: &UpstreamName, verdict: &str) {
        self.verdicts.with_label_values(&[upstream.as_str(), verdict]).inc();
    }
}
