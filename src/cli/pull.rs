//! `clawhub-edge pull IMAGE`: an image into the cache, with progress bars.
//!
//! The image is pulled through an edge as any client would: through the one that runs on this
//! machine if it owns the cache, else through one of our own on a free loopback port.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Args;
use futures_util::{TryStreamExt, stream};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, header};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::time::Instant;

use super::dial::Way;
use super::say;
use crate::app::App;
use crate::config::Config;
use crate::frontend::{ListenAddress, ListenConfig, PassedSockets};
use crate::oci::{
    Descriptor, Digest, ErrorDocument, Hasher, ImageReference, MAX_MANIFEST_SIZE, Manifest, Platform,
    Reference,
};
use crate::store;
use crate::telemetry::Log;

/// Blobs pulled at once, as containerd does.
const CONCURRENT_BLOBS: usize = 3;
/// How often a broken transfer is begun again; what has arrived is in the cache by then.
const ATTEMPTS: u32 = 3;
/// How deep indexes may nest, and how many manifests one image may have: real ones have two levels and a few
/// dozen platforms.
const DEEPEST: usize = 16;
const MOST: usize = 10_000;

/// What to pull.
#[derive(Debug, Args)]
pub(super) struct PullArguments {
    /// Image, as in nginx, quay.io/prometheus/busybox:latest or name@sha256:…
    image: ImageReference,
    /// Platform to pull, as in linux/arm64 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", conflicts_with = "all_platforms")]
    platform: Option<Platform>,
    /// Pull every platform
    #[arg(long)]
    all_platforms: bool,
    /// Print the result as JSON, without progress bars
    #[arg(long)]
    json: bool,
}

/// What was pulled.
#[derive(Debug, Serialize)]
struct Summary {
    image: String,
    digest: Digest,
    manifests: usize,
    blobs: usize,
    bytes: u64,
    seconds: f64,
}

impl PullArguments {
    pub(super) async fn run(&self, config: Config, log: &Log) -> Result<()> {
        let started = Instant::now();
        let (way, own) = edge(config, log).await?;
        let puller = ImagePuller {
            way,
            image: &self.image,
            bars: MultiProgress::with_draw_target(if self.json {
                ProgressDrawTarget::hidden()
            } else {
                ProgressDrawTarget::stderr()
            }),
        };
        let pulled = puller.pull(self.wanted()?.as_ref()).await;
        if let Some((app, _private)) = own {
            app.stop().await;
        }
        let (digest, manifests, blobs) = pulled?;
        let summary = Summary {
            image: self.image.to_string(),
            digest,
            manifests,
            blobs: blobs.len(),
            bytes: blobs.iter().map(|blob| blob.size).sum(),
            seconds: started.elapsed().as_secs_f64(),
        };
        if self.json {
            say(&serde_json::to_string(&summary)?);
        } else {
            let (bytes, count) = (indicatif::HumanBytes(summary.bytes), summary.blobs);
            say(&format!("{}@{} is cached: {count} blobs, {bytes}", summary.image, summary.digest));
        }
        Ok(())
    }

    /// The platform to choose from an index; `None` for all of them.
    fn wanted(&self) -> Result<Option<Platform>> {
        if self.all_platforms {
            return Ok(None);
        }
        let platform = self.platform.clone().map_or_else(|| this_platform().parse(), Ok);
        Ok(Some(platform.context("this machine's platform has no OCI name; use --platform")?))
    }
}

/// A directory that only this user enters, gone when it is dropped.
struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    fn new() -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = std::env::temp_dir().join(format!("clawhub-edge-{:016x}", fastrand::u64(..)));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        // What is left behind is empty, and nobody's.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The way to an edge that serves the configured cache, and that edge if it is our own.
async fn edge(mut config: Config, log: &Log) -> Result<(Way, Option<(App, PrivateDirectory)>)> {
    // Nobody else comes in there, and so nobody is asked for a key.
    let private = PrivateDirectory::new().context("making a directory for a socket")?;
    let own = ListenConfig::plain(ListenAddress::Unix(private.0.join("edge.sock")));
    config.auth.anonymous = Some(true);
    config.auth.public.clear();
    let configured = std::mem::replace(&mut config.frontend.listen, vec![own]);
    config.frontend.metrics_address = None;
    match App::start(config, PassedSockets::default(), log).await {
        Ok(app) => {
            let endpoint = app.endpoints().first().context("no listener")?;
            Ok((Way::to(&[ListenConfig::plain(endpoint.address.clone())])?, Some((app, private))))
        }
        Err(error) if matches!(error.downcast_ref(), Some(store::Error::Owned { .. })) => {
            Ok((Way::to(&configured).context("the cache belongs to an edge that is running")?, None))
        }
        Err(error) => Err(error),
    }
}

fn this_platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    };
    format!("linux/{architecture}")
}

struct ImagePuller<'a> {
    way: Way,
    image: &'a ImageReference,
    bars: MultiProgress,
}

impl ImagePuller<'_> {
    /// Pulls everything that the platform needs. Returns the digest that the reference stands for,
    /// how many manifests there were, and the blobs.
    async fn pull(&self, wanted: Option<&Platform>) -> Result<(Digest, usize, Vec<Descriptor>)> {
        let (digest, manifest) = self.manifest(&self.image.reference).await?;
        let mut manifests = vec![(manifest, 0)];
        let mut blobs: Vec<Descriptor> = Vec::new();
        // Indexes may nest, and name the same manifest many times over: each is visited once. Their digests
        // make a circle impossible, and the bounds make what is nearly one harmless.
        let mut seen = HashSet::from([digest]);
        while let Some((manifest, depth)) = manifests.pop() {
            let is_index = matches!(manifest, Manifest::Index(_));
            let children: Vec<_> =
                manifest.children().filter(|child| !is_index || chosen(child, wanted)).collect();
            ensure!(!children.is_empty(), "{} has nothing for {}", self.image, shown(wanted));
            for child in children {
                if child.is_manifest() {
                    if seen.insert(child.digest) {
                        ensure!(depth < DEEPEST, "{} nests indexes deeper than {DEEPEST}", self.image);
                        ensure!(seen.len() <= MOST, "{} has more than {MOST} manifests", self.image);
                        let manifest = self.manifest(&Reference::Digest(child.digest)).await?.1;
                        manifests.push((manifest, depth + 1));
                    }
                } else if !child.is_nondistributable() && blobs.iter().all(|blob| blob.digest != child.digest)
                {
                    blobs.push(child.clone());
                }
            }
        }
        stream::iter(blobs.iter().map(Ok))
            .try_for_each_concurrent(CONCURRENT_BLOBS, |blob| self.blob(blob))
            .await?;
        Ok((digest, seen.len(), blobs))
    }

    async fn manifest(&self, reference: &Reference) -> Result<(Digest, Manifest)> {
        let response = self.get(&format!("manifests/{reference}")).await?;
        let content_type = text(&response, header::CONTENT_TYPE.as_str());
        let digest: Digest = text(&response, "docker-content-digest")
            .context("the edge names no digest")?
            .parse()
            .context("the edge's digest")?;
        let body = http_body_util::Limited::new(response.into_body(), MAX_MANIFEST_SIZE).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("reading the manifest: {error}"))?.to_bytes();
        let verified = digest.verify(body)?;
        Ok((digest, Manifest::parse(verified.bytes(), content_type.as_deref())?))
    }

    async fn blob(&self, blob: &Descriptor) -> Result<()> {
        let bar = self.bars.add(ProgressBar::new(blob.size).with_style(style()?));
        bar.set_prefix(blob.digest.hex().chars().take(12).collect::<String>());
        let mut attempt = 1;
        loop {
            match self.read(blob, &bar).await {
                Ok(()) => break,
                Err(error) if attempt == ATTEMPTS => {
                    return Err(error.context(format!("pulling {}", blob.digest)));
                }
                Err(_) => {
                    tokio::time::sleep(Duration::from_secs(attempt.into())).await;
                    attempt += 1;
                }
            }
        }
        bar.finish();
        Ok(())
    }

    async fn read(&self, blob: &Descriptor, bar: &ProgressBar) -> Result<()> {
        let mut body = self.get(&format!("blobs/{}", blob.digest)).await?.into_body();
        let mut hasher = Hasher::new(blob.digest.algorithm());
        bar.set_position(0);
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                hasher.update(&data);
                bar.inc(data.len() as u64);
            }
        }
        let actual = hasher.finish();
        ensure!(actual == blob.digest, "the edge sent {actual}");
        Ok(())
    }

    async fn get(&self, path: &str) -> Result<Response<Incoming>> {
        let ImageReference { registry, repository, .. } = self.image;
        let request = Request::get(format!("/v2/{repository}/{path}?ns={registry}"))
            .header(header::HOST, "localhost")
            .body(Empty::<Bytes>::new())?;
        let response =
            self.way.ask(request).await.with_context(|| format!("asking the edge at {}", self.way))?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), MAX_MANIFEST_SIZE).collect().await;
        let body = body.map_or_else(|_| Bytes::new(), http_body_util::Collected::to_bytes);
        match ErrorDocument::parse(&body) {
            Some(document) => bail!("{}: {}", self.image, document.summary()),
            None => bail!("{}: the edge answers {status}", self.image),
        }
    }
}

/// Whether a child of an index is wanted. Attestations ride along under the platform `unknown`.
fn chosen(child: &Descriptor, wanted: Option<&Platform>) -> bool {
    match (wanted, &child.platform) {
        (Some(wanted), Some(platform)) => platform.matches(wanted),
        _ => true,
    }
}

fn shown(wanted: Option<&Platform>) -> String {
    wanted.map_or_else(|| "any platform".to_owned(), ToString::to_string)
}

fn text(response: &Response<Incoming>, name: &str) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}

fn style() -> Result<ProgressStyle> {
    Ok(ProgressStyle::with_template(
        "{prefix} {wide_bar} {bytes:>10}/{total_bytes:<10} {bytes_per_sec:>12} {eta:>4}",
    )?)
}
