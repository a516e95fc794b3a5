//! What the registry client counts.

use std::time::Duration;

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::routing::UpstreamName;

use super::budget::Purpose;
use super::error::{Error, Place};

/// Bounds of the time to a response's head, in seconds: a neighbour answers in milliseconds, a token exchange
/// and a redirect over an ocean take seconds.
const HEAD_SECONDS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0];

/// Counters of the registry client. Labels are configured upstreams and closed sets; cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: IntCounterVec,
    head_seconds: HistogramVec,
    received: IntCounterVec,
    token_exchanges: IntCounterVec,
    resumes: IntCounterVec,
    endpoint_up: IntGaugeVec,
    quota_limit: IntGaugeVec,
    quota_remaining: IntGaugeVec,
    quota_refusals: IntCounterVec,
}

impl Metrics {
    /// Creates and registers them, under names that the registry gives its own prefix to.
    ///
    /// # Errors
    /// When the registry has metrics of these names already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let gauges = |name: &str, help: &str| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), &["upstream", "endpoint"])?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let options = HistogramOpts::new(
            "upstream_response_head_seconds",
            "Time from a request to the head of its response, tokens and redirects included.",
        );
        let head_seconds = HistogramVec::new(options.buckets(HEAD_SECONDS.to_vec()), &["upstream", "kind"])?;
        registry.register(Box::new(head_seconds.clone()))?;
        Ok(Self {
            requests: counters(
                "upstream_requests_total",
                "Requests to endpoints of an upstream, by what was asked for and how it went.",
                &["upstream", "kind", "outcome"],
            )?,
            head_seconds,
            received: counters(
                "upstream_received_bytes_total",
                "Body bytes received from an upstream.",
                &["upstream"],
            )?,
            token_exchanges: counters(
                "upstream_token_exchanges_total",
                "Requests to token services, by how they went.",
                &["upstream", "outcome"],
            )?,
            resumes: counters(
                "upstream_resumes_total",
                "Blob transfers that broke and were taken up again.",
                &["upstream"],
            )?,
            endpoint_up: gauges(
                "upstream_endpoint_up",
                "1 while an endpoint is asked, 0 while it is left alone because it failed.",
            )?,
            quota_limit: gauges("upstream_quota_limit", "Requests of a window, as the endpoint said last.")?,
            quota_remaining: gauges(
                "upstream_quota_remaining",
                "Requests that are left, as the endpoint said last.",
            )?,
            quota_refusals: counters(
                "upstream_quota_refusals_total",
                "Requests that were not sent because of the endpoint's quota, by what they were for.",
                &["upstream", "purpose"],
            )?,
        })
    }

    pub(super) fn answered<T>(
        &self,
        upstream: &UpstreamName,
        kind: Kind,
        elapsed: Duration,
        result: &Result<T, Error>,
    ) {
        let outcome = outcome(result);
        self.requests.with_label_values(&[upstream.as_str(), kind.as_str(), outcome]).inc();
        if result.is_ok() {
            let labels = [upstream.as_str(), kind.as_str()];
            self.head_seconds.with_label_values(&labels).observe(elapsed.as_secs_f64());
        }
    }

    pub(super) fn token_exchanged<T>(&self, upstream: &UpstreamName, result: &Result<T, Error>) {
        self.token_exchanges.with_label_values(&[upstream.as_str(), outcome(result)]).inc();
    }

    /// Looked up once per transfer, so that a frame costs one addition.
    pub(super) fn received(&self, upstream: &UpstreamName) -> IntCounter {
        self.received.with_label_values(&[upstream.as_str()])
    }

    pub(super) fn resumed(&self, upstream: &UpstreamName) {
        self.resumes.with_label_values(&[upstream.as_str()]).inc();
    }

    pub(super) fn endpoint_up(&self, place: &Place) -> IntGauge {
        of_place(&self.endpoint_up, place)
    }

    pub(super) fn quota_limit(&self, place: &Place) -> IntGauge {
        of_place(&self.quota_limit, place)
    }

    pub(super) fn quota_remaining(&self, place: &Place) -> IntGauge {
        of_place(&self.quota_remaining, place)
    }

    pub(super) fn quota_refused(&self, upstream: &UpstreamName, purpose: Purpose) {
        self.quota_refusals.with_label_values(&[upstream.as_str(), purpose.as_str()]).inc();
    }
}

fn of_place(gauges: &IntGaugeVec, place: &Place) -> IntGauge {
    gauges.with_label_values(&[place.upstream.as_str(), place.endpoint.to_string().as_str()])
}

fn outcome<T>(result: &Result<T, Error>) -> &'static str {
    result.as_ref().err().map_or("ok", Error::kind)
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    ManifestHead,
    Manifest,
    BlobHead,
    Blob,
    Tags,
    Referrers,
    Catalog,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::ManifestHead => "manifest_head",
            Self::Manifest => "manifest",
            Self::BlobHead => "blob_head",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Catalog => "catalog",
        }
    }
}
