//! Whatever may happen to a cache for years, in a few seconds: random pulls, kills and disk faults.
//!
//! `CLAWHUB_SOAK=20m` lets it run for as long, `CLAWHUB_SEED` repeats an episode. Each has its own file system in
//! memory, where also a deleted file takes its space until it is closed. In half of them nothing happens to the edge
//! and its upstream, only to the disk, and no pull may fail.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::statvfs;
use tokio::sync::{Mutex, RwLock};
use tokio::time::{Instant, sleep};

use crate::support::edge::{Edge, UPSTREAM, has_namespaces, until};
use crate::support::http::{self, Response};
use crate::support::origin::{Fault, Image, Origin, synthetic_bytes};
use crate::{KIB, MIB, attempt, blob, len, manifest, readiness};

/// How long a smaller budget may take to be reached.
const SHRINKING: Duration = Duration::from_secs(10);
/// By how much what is charged may differ from what is taken: small files of the cache's own.
const SMALL_CHANGE: u64 = 64 * KIB;
/// What a file is charged with beside its blocks.
const FILE_OVERHEAD: u64 = 256;

/// A blob that can be pulled.
struct Layer {
    digest: String,
    size: u64,
    seed: u64,
}

/// What may be taken now: less from `since` on, when a restart has set a smaller budget.
struct Budget {
    before: u64,
    now: u64,
    since: Instant,
}

impl Budget {
    fn of(&self, time: Instant) -> u64 {
        if time < self.since { self.before.max(self.now) } else { self.now }
    }
}

/// What a random run works on.
struct World {
    origin: Origin,
    edge: RwLock<Edge>,
    layers: Vec<Layer>,
    /// A rule keeps it.
    kept: Image,
    /// Nothing happens but to the disk.
    is_strict: bool,
    begin: Instant,
    cache: PathBuf,
    budget: std::sync::Mutex<Budget>,
    /// Held while files of the test's own come and go on the file system.
    strangers: Mutex<()>,
    /// How often blobs were lost for which the edge is not to blame.
    losses: AtomicU64,
    /// Files that the edge has open were deleted or replaced, so that what is taken cannot be told from outside.
    is_obscure: AtomicBool,
    /// Files were changed behind the edge's back, so that it charges too much until it notices.
    is_tampered: AtomicBool,
    is_over: AtomicBool,
    pulled: AtomicU64,
}

impl World {
    async fn new(random: &mut fastrand::Rng) -> Self {
        let origin = Origin::start().await;
        let layers = (0..60).map(|seed| {
            let size = match random.u8(0..10) {
                0..5 => random.u64(1..64 * KIB),
                5..9 => random.u64(64 * KIB..2 * MIB),
                _ => random.u64(2 * MIB..6 * MIB),
            };
            Layer { digest: origin.add_synthetic_blob("app", size, seed), size, seed }
        });
        let layers = layers.collect();
        let pinned = (0..3).map(|seed| synthetic_bytes(300 * KIB, 100 + seed).into()).collect();
        let kept = origin.add_image("app", "kept", pinned);
        let (capacity, size) = (random.u64(16..64) * MIB, random.u64(24..80) * MIB);
        let toml = format!(
            "[store.disk]\ncapacity = \"{capacity}\"\n[[tags.rules]]\nmatch = \"**:kept\"\nkeep = true"
        );
        let edge = Edge::builder().upstream(UPSTREAM, &origin.url(), "").toml(&toml);
        let edge = edge.file_system(&format!("size={size},nr_inodes=1000")).start().await;
        Self {
            cache: edge.cache(),
            edge: RwLock::new(edge),
            origin,
            layers,
            kept,
            is_strict: random.bool(),
            begin: Instant::now(),
            budget: std::sync::Mutex::new(Budget { before: capacity, now: capacity, since: Instant::now() }),
            strangers: Mutex::default(),
            losses: AtomicU64::new(0),
            is_obscure: AtomicBool::new(false),
            is_tampered: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            pulled: AtomicU64::new(0),
        }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn budget(&self) -> u64 {
        self.budget.lock().unwrap().of(Instant::now())
    }

    /// The same for everybody, for a moment.
    fn layer_of_the_moment(&self) -> &Layer {
        let moment = self.begin.elapsed().as_millis() / 400;
        &self.layers[usize::try_from(moment).unwrap() % self.layers.len()]
    }

    /// Pulls at random, whole or in part, fast or slowly; several clients often the same. Whatever ends as a success is
    /// right.
    async fn client(&self, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut expected = HashMap::new();
        while !self.is_over() {
            let layer = match random.u8(0..4) {
                0 => self.layer_of_the_moment(),
                _ => random.choice(&self.layers).unwrap(),
            };
            let size = layer.size;
            let bytes = expected.entry(layer.seed).or_insert_with(|| synthetic_bytes(size, layer.seed));
            let (start, end) = if random.u8(0..3) > 0 {
                (0, size)
            } else {
                let start = random.u64(0..size);
                (start, random.u64(start..size) + 1)
            };
            let range = format!("bytes={start}-{}", end - 1);
            let headers: &[_] = if end - start == size { &[] } else { &[("Range", range.as_str())] };
            let path = blob("app", &layer.digest);
            let addr = self.edge.read().await.addr();
            let answer = match random.u8(0..8) {
                0 => slowly(addr, &path, headers, random.u64(1..60)).await,
                _ => attempt(addr, &path, headers).await,
            };
            let what = format!("{path} {range} of {size}");
            assert!(answer.is_some() || !self.is_strict, "{what}: no answer");
            let Some(answer) = answer else { continue };
            if answer.complete && matches!(answer.status, 200 | 206) {
                let wanted = if answer.status == 200 { &bytes[..] } else { &bytes[len(start)..len(end)] };
                assert!(answer.body == wanted, "{what}: wrong bytes");
                self.pulled.fetch_add(1, Ordering::Relaxed);
            } else {
                // Without its upstream an edge may have to say so; nothing else is an answer.
                let is_excused = !self.is_strict && matches!(answer.status, 200 | 206 | 502..=504);
                assert!(
                    is_excused,
                    "{what}: {}, {} bytes {}",
                    answer.status,
                    answer.body.len(),
                    if answer.status < 300 { String::new() } else { answer.text() }
                );
            }
        }
    }

    /// Pulls the image that is kept, again and again.
    async fn keep(&self) {
        while !self.is_over() {
            let addr = self.edge.read().await.addr();
            attempt(addr, &manifest("app", "kept"), &[]).await;
            for digest in self.kept.layer_digests.iter().chain([&self.kept.config_digest]) {
                attempt(addr, &blob("app", digest), &[]).await;
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// What the edge takes, deleted files that are open included.
    fn taken(&self) -> u64 {
        if self.is_obscure.load(Ordering::Relaxed) {
            return crate::budget::taken(&self.cache);
        }
        let stats = statvfs(&self.cache).unwrap();
        (stats.f_blocks - stats.f_bfree) * stats.f_frsize
    }

    /// Looks at the file system all the time.
    async fn watch(&self) {
        let mut present = HashSet::new();
        let mut losses = 0;
        while !self.is_over() {
            {
                let _alone = self.strangers.lock().await;
                let budget = self.budget();
                let taken = tokio::task::block_in_place(|| self.taken());
                assert!(taken <= budget, "{taken} of {budget} bytes");
                let losses_now = self.losses.load(Ordering::Relaxed);
                if losses != losses_now {
                    present.clear();
                    losses = losses_now;
                }
                for digest in &self.kept.layer_digests {
                    if self.file(digest).exists() {
                        present.insert(digest);
                    } else {
                        assert!(!present.contains(digest), "{digest} was to be kept");
                    }
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whatever may happen, one thing after the other.
    async fn havoc(&self, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        while !self.is_over() {
            sleep(Duration::from_millis(random.u64(100..1200))).await;
            let duration = Duration::from_millis(random.u64(10..2500));
            match random.u8(0..if self.is_strict { 5 } else { 10 }) {
                0 => self.fill_disk(&mut random, duration).await,
                1 => self.use_inodes_up(duration).await,
                2 => self.make_read_only(duration).await,
                3 => self.delete_everything().await,
                4 => self.break_a_transfer(&mut random),
                5 | 6 => self.restart(&mut random, true).await,
                7 => self.restart(&mut random, false).await,
                8 => self.truncate(&mut random).await,
                _ => {
                    self.origin.vanish().await;
                    sleep(duration / 8).await;
                    self.origin.come_back().await;
                }
            }
        }
    }

    async fn fill_disk(&self, random: &mut fastrand::Rng, duration: Duration) {
        let _alone = self.strangers.lock().await;
        let filler = {
            let edge = self.edge.read().await;
            tokio::task::block_in_place(|| edge.fill_disk())
        };
        sleep(duration).await;
        if !self.is_strict && random.bool() {
            self.restart(random, true).await;
        }
        fs::remove_file(filler).unwrap();
    }

    async fn use_inodes_up(&self, duration: Duration) {
        let _alone = self.strangers.lock().await;
        let spare = self.cache.join("spare");
        fs::create_dir(&spare).unwrap();
        let mut count = 0;
        while fs::write(spare.join(count.to_string()), b"").is_ok() {
            count += 1;
        }
        sleep(duration).await;
        fs::remove_dir_all(spare).unwrap();
    }

    async fn make_read_only(&self, duration: Duration) {
        let edge = self.edge.read().await;
        // Everything may have been deleted a moment ago.
        edge.run_inside("mkdir -p \"$1/partial\" && mount -t tmpfs -o ro none \"$1/partial\"").await;
        sleep(duration).await;
        edge.run_inside("umount -l \"$1/partial\"").await;
    }

    async fn delete_everything(&self) {
        self.is_obscure.store(true, Ordering::Relaxed);
        self.is_tampered.store(true, Ordering::Relaxed);
        self.losses.fetch_add(1, Ordering::Relaxed);
        let _alone = self.strangers.lock().await;
        for entry in fs::read_dir(&self.cache).into_iter().flatten().flatten() {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
        self.losses.fetch_add(1, Ordering::Relaxed);
    }

    fn break_a_transfer(&self, random: &mut fastrand::Rng) {
        self.origin.clear_faults();
        let layer = random.choice(&self.layers).unwrap();
        let fault = Fault::on("GET", &layer.digest).times(1);
        let at = random.u64(0..layer.size);
        self.origin.fault(if random.bool() { fault.cut_at(at) } else { fault.reset_at(at) });
    }

    /// By a signal that leaves no time or by one that does, sometimes with another budget.
    async fn restart(&self, random: &mut fastrand::Rng, kills: bool) {
        let mut edge = self.edge.write().await;
        if kills {
            // What was kept in the last second may not be written down.
            self.losses.fetch_add(1, Ordering::Relaxed);
            edge.kill().await;
        } else {
            edge.stop().await;
        }
        if random.bool() {
            let now = random.u64(16..64) * MIB;
            edge.set_env("CLAWHUB_EDGE_STORE_DISK_CAPACITY", &now.to_string());
            let mut budget = self.budget.lock().unwrap();
            *budget = Budget { before: budget.of(Instant::now()), now, since: Instant::now() + SHRINKING };
        }
        edge.restart().await;
        self.is_obscure.store(false, Ordering::Relaxed);
        self.is_tampered.store(false, Ordering::Relaxed);
        self.losses.fetch_add(u64::from(kills), Ordering::Relaxed);
    }

    /// Cuts a file off behind the edge's back.
    async fn truncate(&self, random: &mut fastrand::Rng) {
        let files = self.edge.read().await.blobs();
        let Some(digest) = random.choice(&files) else { return };
        if self.layers.iter().any(|layer| layer.digest.ends_with(digest)) {
            self.is_obscure.store(true, Ordering::Relaxed);
            self.is_tampered.store(true, Ordering::Relaxed);
            truncate(&self.file(digest));
        }
    }

    fn file(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
        self.cache.join("blobs/sha256").join(&hex[..2]).join(hex)
    }

    /// Once it is quiet, the disk is in use again, and what is charged is what is taken.
    async fn settle(&self) {
        let edge = self.edge.read().await;
        until("the disk is in use again", async || readiness(&edge).await == "ok\n").await;
        until("nothing flies", async || edge.metric("clawhub_edge_flights").await == 0).await;
        if self.is_tampered.load(Ordering::Relaxed) {
            return;
        }
        let directory = edge.prepared().path("cache");
        let series = format!("clawhub_edge_store_used_bytes{{directory=\"{}\"}}", directory.display());
        let limit = Instant::now() + Duration::from_secs(15);
        loop {
            let stats = statvfs(&self.cache).unwrap();
            let total = stats.f_blocks * stats.f_frsize;
            let files = edge.blobs().len() + edge.partials().len();
            let fixed = (260 * 4096).min(total / 64) + FILE_OVERHEAD * files as u64;
            let (charged, taken) = (edge.metric(&series).await.saturating_sub(fixed), self.taken());
            if charged.abs_diff(taken) <= SMALL_CHANGE {
                return;
            }
            if Instant::now() > limit {
                let log = keep_log(&edge);
                panic!("{charged} bytes are charged, {taken} are taken; the log is {}", log.display());
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Puts the log of an edge that has failed where it stays.
fn keep_log(edge: &Edge) -> PathBuf {
    let log = std::env::temp_dir().join(format!("clawhub-soak-{}.log", std::process::id()));
    fs::write(&log, edge.log()).unwrap();
    log
}

/// A GET whose bytes are taken in small parts with pauses, at most a few seconds in all.
async fn slowly(
    addr: std::net::SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    parts: u64,
) -> Option<Response> {
    let mut transfer = http::try_open(addr, path, headers).await.ok()?;
    let mut body = Vec::new();
    for _ in 0..parts {
        body.append(&mut transfer.read(40_000).await);
        sleep(Duration::from_millis(30)).await;
    }
    let mut answer = transfer.collect().await.ok()?;
    body.append(&mut answer.body);
    Some(Response { body, ..answer })
}

/// Puts half of a file in its place. Not cut off as it is: its pages may be on their way to a client.
fn truncate(file: &Path) {
    // It may have been evicted meanwhile.
    let Ok(bytes) = fs::read(file) else { return };
    let half = file.with_extension("half");
    if fs::write(&half, &bytes[..bytes.len() / 2]).is_ok() {
        let _ = fs::rename(half, file);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_pulls_kills_and_disk_faults_never_break_the_budget_or_a_byte() {
    const EPISODE: Duration = Duration::from_secs(20);
    if !has_namespaces() {
        return;
    }
    let soak = std::env::var("CLAWHUB_SOAK").ok();
    let soak = soak.map_or(Duration::from_secs(8), |text| humantime::parse_duration(&text).unwrap());
    let seed = std::env::var("CLAWHUB_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut random = fastrand::Rng::with_seed(seed.unwrap_or_else(|| fastrand::u64(..)));
    let end = Instant::now() + soak;
    while Instant::now() < end {
        let seed = random.get_seed();
        let world = Arc::new(World::new(&mut random).await);
        eprintln!("CLAWHUB_SEED={seed} strict: {}", world.is_strict);
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..8 {
            let (world, seed) = (Arc::clone(&world), random.u64(..));
            tasks.spawn(async move { world.client(seed.wrapping_add(client)).await });
        }
        let [watching, wrecking, keeping, over] = std::array::from_fn(|_| Arc::clone(&world));
        let wrecking_seed = random.u64(..);
        tasks.spawn(async move { watching.watch().await });
        tasks.spawn(async move { wrecking.havoc(wrecking_seed).await });
        tasks.spawn(async move { keeping.keep().await });
        let episode = EPISODE.min(end.saturating_duration_since(Instant::now()));
        tasks.spawn(async move {
            sleep(episode).await;
            over.is_over.store(true, Ordering::Relaxed);
        });
        while let Some(ended) = tasks.join_next().await {
            if let Err(failure) = ended {
                let log = keep_log(&*world.edge.read().await);
                panic!("{failure}; the log of the edge is {}", log.display());
            }
        }
        world.settle().await;
        assert!(world.pulled.load(Ordering::Relaxed) > 0, "nothing was pulled");
    }
}
