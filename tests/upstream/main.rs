//! The registry client against an origin that misbehaves on demand.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test that calls them")]

#[path = "../support"]
mod support {
    pub(crate) mod origin;
}

mod asking;
mod auth;
mod download;
mod failure;
mod http2;
mod proxy;
mod tls;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clawhub_edge::oci::{ByteRange, Digest, Reference, Repository, Via};
use clawhub_edge::routing::{Route, Routes, RoutingConfig, Upstream};
use clawhub_edge::runtime::{Bytes as Size, ManualClock, Settings, Timestamp};
use clawhub_edge::upstream::{Client, Download, Error, FetchConfig, Metrics, Purpose};

use support::origin;

const REPOSITORY: &str = "library/app";

/// A client whose only upstream is `x.example`.
struct Edge {
    client: Client,
    upstream: Arc<Upstream>,
    clock: Arc<ManualClock>,
    metrics: prometheus::Registry,
}

impl Edge {
    /// With these endpoints, one after the other.
    fn of(urls: &[String]) -> Self {
        let mut text = String::from("[upstreams.\"x.example\"]\n");
        for url in urls {
            writeln!(text, "[[upstreams.\"x.example\".endpoints]]\nurl = \"{url}\"").unwrap();
        }
        Self::configured(&text, quick())
    }

    /// With these lines in its table.
    fn with(lines: &str) -> Self {
        Self::configured(&format!("[upstreams.\"x.example\"]\n{lines}\n"), quick())
    }

    fn configured(text: &str, fetch: FetchConfig) -> Self {
        let text = format!("[routing]\nbuiltin = false\n{text}");
        let settings =
            Settings::new(Some((Path::new("edge.toml"), &text)), [], std::collections::BTreeMap::new());
        let config = RoutingConfig::read(&settings.root());
        settings.finish().unwrap();
        let routes = Routes::new(config);
        let upstream = Arc::clone(&routes.upstreams()[0]);
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_700_000_000_000)));
        let registry = prometheus::Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let client = Client::new(fetch, &routes, clock.clone(), metrics).unwrap();
        Self { client, upstream, clock, metrics: registry }
    }

    /// To the repository of these tests.
    fn route(&self) -> Route {
        self.route_to(repository())
    }

    fn route_to(&self, repository: Repository) -> Route {
        Route { upstream: Arc::clone(&self.upstream), repository, via: Via::default(), caller: None }
    }

    async fn download(&self, digest: &str, from: u64) -> Result<Download, Error> {
        self.client.download(&self.route(), &parsed(digest), ByteRange::new(from, u64::MAX), None).await
    }

    /// A whole blob, or the error it ends with.
    async fn fetch(&self, digest: &str, from: u64) -> Result<Vec<u8>, Error> {
        rest(&mut self.download(digest, from).await?).await
    }

    async fn manifest(&self, reference: &str) -> Result<clawhub_edge::upstream::FetchedManifest, Error> {
        self.client.manifest(&self.route(), &reference.parse::<Reference>().unwrap(), Purpose::Pull).await
    }

    async fn head(&self, reference: &str) -> Result<clawhub_edge::upstream::ManifestHead, Error> {
        self.client
            .head_manifest(&self.route(), &reference.parse::<Reference>().unwrap(), Purpose::Pull)
            .await
    }

    /// The sum of a counter's or gauge's values whose labels contain `label`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counters of integers that a test can count to"
    )]
    fn counted(&self, name: &str, label: &str) -> u64 {
        let families = self.metrics.gather();
        let family = families.iter().find(|family| family.name() == name);
        let metrics = family.map(prometheus::proto::MetricFamily::get_metric).unwrap_or_default();
        metrics
            .iter()
            .filter(|metric| label.is_empty() || metric.get_label().iter().any(|pair| pair.value() == label))
            .map(|metric| (metric.get_counter().get_value() + metric.get_gauge().get_value()) as u64)
            .sum()
    }
}

/// Deadlines that a test can wait for.
fn quick() -> FetchConfig {
    FetchConfig {
        connect_timeout: Duration::from_millis(300),
        header_timeout: Duration::from_millis(600),
        minimum_speed: Size::kib(1),
        stall_window: Duration::from_millis(300),
        backoff: Duration::from_millis(20),
        backoff_cap: Duration::from_millis(200),
        give_up_after: Duration::from_secs(2),
        ..FetchConfig::default()
    }
}

async fn rest(download: &mut Download) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(frame) = download.next().await? {
        bytes.extend_from_slice(&frame);
    }
    Ok(bytes)
}

fn repository() -> Repository {
    REPOSITORY.parse().unwrap()
}

fn parsed(digest: &str) -> Digest {
    digest.parse().unwrap()
}

/// A credential helper that runs `script`, and the lines that configure it.
fn helper(folder: &Path, script: &str) -> String {
    std::fs::write(folder.join("script"), script).unwrap();
    let program = folder.join("docker-credential-test");
    let scripted = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/docker-credential-scripted");
    // A link: what a process still has open for writing cannot be run.
    std::os::unix::fs::symlink(scripted, &program).unwrap();
    format!("credential_helper = \"{}\"\n", program.display())
}
