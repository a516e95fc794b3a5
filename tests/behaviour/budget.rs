//! The byte budget, and whatever may happen to a cache for years, in a few seconds.
//!
//! `CLAWHUB_SOAK=20m` lets the random test run for as long, `CLAWHUB_SEED` repeats one.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::RwLock;
use tokio::time::{Instant, sleep};

use crate::support::edge::Edge;
use crate::support::http;
use crate::support::origin::{Origin, synthetic_bytes};
use crate::{KIB, MIB, attempt, blob, len, pull, pull_blob};

/// What a directory takes, as the file system accounts it. A file that is moved meanwhile counts once.
fn taken(directory: &Path) -> u64 {
    let mut files = HashMap::new();
    look(directory, &mut files);
    files.values().sum()
}

fn look(path: &Path, files: &mut HashMap<u64, u64>) {
    // What is gone takes nothing.
    let Ok(metadata) = fs::symlink_metadata(path) else { return };
    files.insert(metadata.ino(), metadata.blocks() * 512);
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        look(&entry.path(), files);
    }
}

async fn edge(origin: &Origin, capacity: u64, further: &str) -> Edge {
    Edge::with(origin, &format!("[store.disk]\ncapacity = \"{capacity}\"\n{further}")).await
}

#[tokio::test]
async fn a_cache_that_is_full_goes_on_caching_within_its_budget() {
    const CAPACITY: u64 = 24 * MIB;
    let origin = Origin::start().await;
    let edge = edge(&origin, CAPACITY, "").await;
    for seed in 0..30 {
        let digest = origin.add_synthetic_blob("app", 2 * MIB, seed);
        pull_blob(edge.addr(), "app", &digest).await;
        assert!(taken(&edge.cache()) <= CAPACITY);
        assert!(edge.has_blob(&digest));
    }
    assert!(edge.metric("clawhub_edge_store_evictions_total").await >= 15);
    assert!(edge.metric("clawhub_edge_store_bytes").await >= CAPACITY / 2);
}

#[tokio::test]
async fn what_is_being_read_is_not_evicted() {
    const CAPACITY: u64 = 24 * MIB;
    let origin = Origin::start().await;
    let edge = edge(&origin, CAPACITY, "").await;
    let digest = origin.add_synthetic_blob("app", 6 * MIB, 1000);
    pull_blob(edge.addr(), "app", &digest).await;
    let mut reader = http::open(edge.addr(), &blob("app", &digest), &[]).await;
    reader.read(1000).await;
    for seed in 0..20 {
        let other = origin.add_synthetic_blob("app", 2 * MIB, seed);
        pull_blob(edge.addr(), "app", &other).await;
        assert!(taken(&edge.cache()) <= CAPACITY);
    }
    assert!(edge.has_blob(&digest));
    let rest = reader.read_to_end().await;
    assert!(reader.complete() && rest == synthetic_bytes(6 * MIB, 1000)[1000..]);
}

#[tokio::test]
async fn an_image_that_is_kept_outlives_everything_else() {
    const CAPACITY: u64 = 24 * MIB;
    let origin = Origin::start().await;
    let edge = edge(&origin, CAPACITY, "[[tags.rules]]\nmatch = \"**:kept\"\nkeep = true").await;
    let layers = (0..3).map(|seed| synthetic_bytes(MIB, 100 + seed).into()).collect();
    let image = origin.add_image("app", "kept", layers);
    let by_tag = http::get(edge.addr(), &crate::manifest("app", "kept"), &[]).await;
    assert_eq!(by_tag.status, 200);
    pull(&edge, "app", "kept", &image).await;
    for seed in 0..40 {
        let digest = origin.add_synthetic_blob("app", 2 * MIB, seed);
        pull_blob(edge.addr(), "app", &digest).await;
    }
    origin.vanish().await;
    pull(&edge, "app", "kept", &image).await;
}

/// What a random run works on.
struct World {
    origin: Origin,
    edge: RwLock<Edge>,
    /// By digest, size and seed.
    blobs: Vec<(String, u64, u64)>,
    capacity: u64,
    cache: PathBuf,
    is_over: AtomicBool,
    pulled: AtomicU64,
}

impl World {
    async fn new(random: &mut fastrand::Rng) -> Self {
        let origin = Origin::start().await;
        let capacity = random.u64(16..64) * MIB;
        let blobs = (0..60).map(|seed| {
            let size = match random.u8(0..10) {
                0..5 => random.u64(1..64 * KIB),
                5..9 => random.u64(64 * KIB..2 * MIB),
                _ => random.u64(2 * MIB..6 * MIB),
            };
            (origin.add_synthetic_blob("app", size, seed), size, seed)
        });
        let blobs = blobs.collect();
        let edge = edge(&origin, capacity, "").await;
        let cache = edge.cache();
        let (is_over, pulled) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { origin, edge: RwLock::new(edge), blobs, capacity, cache, is_over, pulled }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Pulls at random, whole or in part. Whatever ends as a success is right.
    async fn client(&self, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut expected = HashMap::new();
        while !self.is_over() {
            let (digest, size, seed) = random.choice(&self.blobs).unwrap();
            let bytes = expected.entry(*seed).or_insert_with(|| synthetic_bytes(*size, *seed));
            let addr = self.edge.read().await.addr();
            let (start, end) = if random.u8(0..3) > 0 {
                (0, *size)
            } else {
                let start = random.u64(0..*size);
                (start, random.u64(start..*size) + 1)
            };
            let range = format!("bytes={start}-{}", end - 1);
            let headers: &[_] = if end - start == *size { &[] } else { &[("Range", range.as_str())] };
            let Some(answer) = attempt(addr, &blob("app", digest), headers).await else { continue };
            if answer.complete && matches!(answer.status, 200 | 206) {
                let wanted = if answer.status == 200 { &bytes[..] } else { &bytes[len(start)..len(end)] };
                assert!(answer.body == wanted, "{digest} {range}: wrong bytes");
                self.pulled.fetch_add(1, Ordering::Relaxed);
            } else if !matches!(answer.status, 200 | 206 | 502..=504) {
                // Without its upstream an edge may have to say so; nothing else is an answer.
                panic!("{digest} {range}: {} {}", answer.status, answer.text());
            }
        }
    }

    /// Looks at the directory all the time.
    async fn watch(&self) {
        while !self.is_over() {
            let cache = self.cache.clone();
            let taken = tokio::task::spawn_blocking(move || taken(&cache)).await.unwrap();
            assert!(taken <= self.capacity, "{taken} of {} bytes", self.capacity);
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills, and damages files.
    async fn havoc(&self, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        while !self.is_over() {
            sleep(Duration::from_millis(random.u64(300..2000))).await;
            match random.u8(0..4) {
                0 => {
                    let mut edge = self.edge.write().await;
                    edge.kill().await;
                    edge.restart().await;
                }
                1 => {
                    let mut edge = self.edge.write().await;
                    edge.stop().await;
                    edge.restart().await;
                }
                2 => {
                    // A file that is cut off behind the edge's back.
                    let files = self.edge.read().await.blobs();
                    if let Some(file) = random.choice(&files).and_then(|digest| self.file(digest)) {
                        truncate(&file);
                    }
                }
                _ => {
                    // The upstream goes away for a while.
                    self.origin.vanish().await;
                    sleep(Duration::from_millis(random.u64(10..300))).await;
                    self.origin.come_back().await;
                }
            }
        }
    }

    fn file(&self, digest: &str) -> Option<PathBuf> {
        let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
        let path = self.cache.join("blobs/sha256").join(hex.get(..2)?).join(hex);
        path.exists().then_some(path)
    }
}

fn truncate(file: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    // It may have been evicted meanwhile.
    let Ok(metadata) = fs::metadata(file) else { return };
    let writable = fs::set_permissions(file, fs::Permissions::from_mode(0o600));
    if writable.is_ok()
        && let Ok(file) = fs::File::options().write(true).open(file)
    {
        let _ = file.set_len(metadata.len() / 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_pulls_kills_and_damage_never_break_the_budget_or_a_byte() {
    const EPISODE: Duration = Duration::from_secs(20);
    let soak = std::env::var("CLAWHUB_SOAK").ok();
    let soak = soak.map_or(Duration::from_secs(8), |text| humantime::parse_duration(&text).unwrap());
    let seed = std::env::var("CLAWHUB_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut random = fastrand::Rng::with_seed(seed.unwrap_or_else(|| fastrand::u64(..)));
    let end = Instant::now() + soak;
    while Instant::now() < end {
        let seed = random.get_seed();
        eprintln!("CLAWHUB_SEED={seed}");
        let world = Arc::new(World::new(&mut random).await);
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..6 {
            let (world, seed) = (Arc::clone(&world), random.u64(..));
            tasks.spawn(async move { world.client(seed.wrapping_add(client)).await });
        }
        let (watching, wrecking, seed) = (Arc::clone(&world), Arc::clone(&world), random.u64(..));
        tasks.spawn(async move { watching.watch().await });
        tasks.spawn(async move { wrecking.havoc(seed).await });
        let episode = EPISODE.min(end.saturating_duration_since(Instant::now()));
        let over = Arc::clone(&world);
        tasks.spawn(async move {
            sleep(episode).await;
            over.is_over.store(true, Ordering::Relaxed);
        });
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        assert!(world.pulled.load(Ordering::Relaxed) > 0, "nothing was pulled");
    }
}
