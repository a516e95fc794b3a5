//! The metrics of one process and their exposition.

use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// What a room hands its metrics to. The names it passes lack the common prefix `clawhub_edge_`.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
}

/// Bucket bounds of a histogram of seconds.
#[derive(Debug, Clone, Copy)]
pub enum Buckets {
    /// 0.5 ms to 30 s: from a memory hit to a slow upstream's first byte.
    Latency,
    /// 10 ms to 1 h: whole transfers.
    Transfer,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        // Cannot fail: a prefix without labels is always valid.
        let registry = Registry::new_custom(Some("clawhub_edge".to_owned()), None).unwrap_or_default();
        Self { registry }
    }

    /// The registry itself, for rooms that bring their own collectors.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Everything, in the Prometheus text exposition format 0.0.4.
    pub fn expose(&self) -> String {
        let mut text = Vec::new();
        let encoder = TextEncoder::new();
        if let Err(error) = encoder.encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be encoded");
        }
        String::from_utf8(text).unwrap_or_default()
    }

    /// The present sum of a counter or gauge over all its labels, or over the series with the label
    /// `(name, value)`; 0 while there is none.
    pub fn sum(&self, name: &str, label: Option<(&str, &str)>) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name().strip_prefix("clawhub_edge_") == Some(name));
        let series = family.into_iter().flat_map(prometheus::proto::MetricFamily::get_metric);
        let has = |(name, value): (&str, &str), metric: &prometheus::proto::Metric| {
            metric.get_label().iter().any(|label| label.name() == name && label.value() == value)
        };
        series
            .filter(|metric| label.is_none_or(|label| has(label, metric)))
            .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
            // Not `sum`: that of nothing is -0.
            .fold(0.0, |sum, value| sum + value)
    }

    pub(super) fn register<C: Collector + Clone + 'static>(&self, collector: C) -> C {
        self.registry
            .register(Box::new(collector.clone()))
            .expect("every metric is registered once, under a valid name, by the room that owns it");
        collector
    }
}

/// A counter without labels.
///
/// # Panics
/// When the name is taken or malformed: names are constants, checked by the first start.
pub fn counter(metrics: &Metrics, name: &str, help: &str) -> IntCounter {
    metrics.register(IntCounter::new(name, help).expect("a constant, valid name"))
}

/// Counters by label.
///
/// # Panics
/// As [`counter`].
pub fn counters(metrics: &Metrics, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    metrics.register(IntCounterVec::new(Opts::new(name, help), labels).expect("a constant, valid name"))
}

/// A gauge without labels.
///
/// # Panics
/// As [`counter`].
pub fn gauge(metrics: &Metrics, name: &str, help: &str) -> IntGauge {
    metrics.register(IntGauge::new(name, help).expect("a constant, valid name"))
}

/// Gauges by label.
///
/// # Panics
/// As [`counter`].
pub fn gauges(metrics: &Metrics, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    metrics.register(IntGaugeVec::new(Opts::new(name, help), labels).expect("a constant, valid name"))
}

/// A histogram of seconds.
///
/// # Panics
/// As [`counter`].
pub fn histogram(metrics: &Metrics, name: &str, help: &str, buckets: Buckets) -> Histogram {
    let bounds = match buckets {
        Buckets::Latency => {
            vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
        }
        Buckets::Transfer => vec![0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0],
    };
    let opts = HistogramOpts::new(name, help).buckets(bounds);
    metrics.register(Histogram::with_opts(opts).expect("a constant, valid name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_over_all_labels_or_one() {
        let metrics = Metrics::new();
        let things = counters(&metrics, "things_total", "Things.", &["kind"]);
        things.with_label_values(&["a"]).inc_by(2);
        things.with_label_values(&["b"]).inc();
        gauge(&metrics, "level", "Level.").set(7);
        let sums = [
            metrics.sum("things_total", None),
            metrics.sum("things_total", Some(("kind", "a"))),
            metrics.sum("level", None),
            metrics.sum("nothing", None),
        ];
        assert_eq!(sums.map(|sum| sum.to_string()), ["3", "2", "7", "0"]);
    }

    #[test]
    fn names_carry_the_prefix_and_help() {
        let metrics = Metrics::new();
        counter(&metrics, "things_total", "Things.").inc();
        let text = metrics.expose();
        assert!(text.contains("# HELP clawhub_edge_things_total Things."), "{text}");
        assert!(text.contains("clawhub_edge_things_total 1"), "{text}");
    }
}
