use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::oci::{Algorithm, Repository, Tag};
use crate::runtime::{ManualClock, Timestamp};

const LARGE: u64 = 1 << 30;
const UPSTREAM: &str = "origin.test";

struct Fixture {
    directory: tempfile::TempDir,
    capacity: u64,
    store: Store,
}

fn open(directory: &Path) -> Result<Store, Error> {
    open_with(directory, LARGE)
}

fn open_with(directory: &Path, capacity: u64) -> Result<Store, Error> {
    let config = StoreConfig {
        disks: vec![DiskConfig::new(
            directory.to_owned(),
            Amount::Bytes(crate::runtime::Bytes::new(capacity)),
        )],
        memory: crate::runtime::Bytes::mib(1),
        memory_max_object: crate::runtime::Bytes::kib(1),
    };
    let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1)));
    Store::open(&config, clock, Metrics::register(&telemetry::Metrics::new()))
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    Fixture { directory, capacity: LARGE, store }
}

impl Fixture {
    /// Ends as an orderly stop does, and opens the directory again.
    async fn reopen(self) -> Self {
        self.store.close().await;
        self.reopen_after_kill()
    }

    /// Opens the directory again as after a `kill -9`: nothing was said to the store.
    fn reopen_after_kill(self) -> Self {
        let Self { directory, capacity, store } = self;
        drop(store);
        // Background tasks hold clones until the runtime drops them; the lock file goes with them.
        fs::remove_file(directory.path().join("LOCK")).unwrap();
        let store = open_with(directory.path(), capacity).unwrap();
        Self { directory, capacity, store }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.store.0.disks[0].layout.blob(digest)
    }
}

fn sample(len: usize) -> (Bytes, Digest) {
    let bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    (bytes.into(), digest)
}

async fn fill(store: &Store, digest: Digest, bytes: &Bytes) -> Partial {
    let mut partial = store.partial(digest, UPSTREAM).await.unwrap();
    let start = usize::try_from(partial.position()).unwrap();
    for frame in bytes.slice(start..).chunks(1000) {
        partial.write_all(Bytes::copy_from_slice(frame)).await.unwrap();
    }
    partial
}

async fn content(store: &Store, digest: &Digest) -> Option<Bytes> {
    Some(store.get(digest).await?.into_bytes().await.unwrap())
}

#[tokio::test]
async fn a_sealed_blob_is_there_after_a_restart_and_its_file_is_private() {
    let fixture = fixture();
    let (bytes, digest) = sample(5000);
    fill(&fixture.store, digest, &bytes).await.seal().await.unwrap();
    assert_eq!(content(&fixture.store, &digest).await.unwrap(), bytes);
    let fixture = fixture.reopen().await;
    assert_eq!(content(&fixture.store, &digest).await.unwrap(), bytes);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&fixture.path(&digest)), 0o400, "durable after an orderly stop");
    assert_eq!(mode(&fixture.store.0.disks[0].layout.blobs()), 0o700);
    assert_eq!(mode(&fixture.directory.path().join("metadata.redb")), 0o600);
}

#[tokio::test]
async fn wrong_bytes_are_never_sealed_and_leave_nothing_behind() {
    let fixture = fixture();
    let (bytes, _) = sample(5000);
    let (_, other) = sample(4999);
    let error = fill(&fixture.store, other, &bytes).await.seal().await.unwrap_err();
    assert!(matches!(error, SealError::Mismatch(_)), "{error}");
    assert!(content(&fixture.store, &other).await.is_none());
    assert_eq!(fs::read_dir(fixture.store.0.disks[0].layout.partials()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_parked_fill_goes_on_where_it_stopped_also_in_the_next_process() {
    let fixture = fixture();
    let (bytes, digest) = sample(10_000);
    let mut partial = fixture.store.partial(digest, UPSTREAM).await.unwrap();
    partial.expect_size(10_000).await.unwrap();
    partial.write_all(bytes.slice(..6000)).await.unwrap();
    partial.park().await;
    let fixture = fixture.reopen().await;
    let partial = fixture.store.partial(digest, UPSTREAM).await.unwrap();
    assert_eq!((partial.position(), partial.size()), (6000, Some(10_000)));
    drop(partial);
    fill(&fixture.store, digest, &bytes).await.seal().await.unwrap();
    assert_eq!(content(&fixture.store, &digest).await.unwrap(), bytes);
}

#[tokio::test]
async fn bytes_that_a_client_may_still_have_outlive_a_kill_and_the_next_fill() {
    let fixture = fixture();
    let (bytes, digest) = sample((1 << 20) + 9000);
    let partial = fill(&fixture.store, digest, &bytes.slice(..(1 << 20) + 5000)).await;
    let file = partial.file();
    drop(partial);
    let mut partial = fixture.store.partial(digest, UPSTREAM).await.unwrap();
    let position = partial.position();
    assert!((1..(1 << 20) + 5000).contains(&position), "the last checkpoint claims less: {position}");
    assert_eq!(file.read(position, 1000).await.unwrap(), bytes[usize::try_from(position).unwrap()..][..1000]);
    // What an earlier fill had too much of is gone in the end.
    let place = fixture.store.0.disks[0].layout.partial(&digest, UPSTREAM);
    File::options().write(true).open(place).unwrap().set_len(2 << 20).unwrap();
    partial.write_all(bytes.slice(usize::try_from(position).unwrap()..)).await.unwrap();
    partial.seal().await.unwrap();
    let fixture = fixture.reopen().await;
    assert_eq!(content(&fixture.store, &digest).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_fill_of_an_earlier_boot_hashes_what_the_file_holds() {
    let fixture = fixture();
    let (bytes, digest) = sample(10_000);
    let mut partial = fixture.store.partial(digest, UPSTREAM).await.unwrap();
    partial.write_all(bytes.slice(..6000)).await.unwrap();
    partial.park().await;
    let journal = fixture.store.0.disks[0].layout.journal(&digest, UPSTREAM);
    let (mut journal, checkpoint) = super::journal::Journal::open(journal).unwrap();
    let mut checkpoint = checkpoint.unwrap();
    checkpoint.boot_id = "another boot".to_owned();
    checkpoint.state = "AAAA".to_owned();
    journal.save(checkpoint).unwrap();
    fill(&fixture.store, digest, &bytes).await.seal().await.unwrap();
    assert_eq!(content(&fixture.store, &digest).await.unwrap(), bytes);
}

#[tokio::test]
async fn what_a_power_loss_took_is_found_before_it_is_served() {
    let fixture = fixture();
    let ((good, good_digest), (bad, bad_digest)) = (sample(5000), sample(6000));
    fill(&fixture.store, good_digest, &good).await.seal().await.unwrap();
    fill(&fixture.store, bad_digest, &bad).await.seal().await.unwrap();
    fixture.store.close().await;
    for digest in [&good_digest, &bad_digest] {
        fs::set_permissions(fixture.path(digest), fs::Permissions::from_mode(0o600)).unwrap();
    }
    fs::write(fixture.path(&bad_digest), vec![0; 6000]).unwrap();
    fs::write(fixture.store.0.disks[0].layout.boot(), "another boot").unwrap();
    let fixture = fixture.reopen_after_kill();
    assert!(content(&fixture.store, &bad_digest).await.is_none());
    assert_eq!(content(&fixture.store, &good_digest).await.unwrap(), good);
    assert!(fs::read_dir(fixture.store.0.disks[0].layout.quarantine()).unwrap().count() == 1);
}

#[tokio::test]
async fn what_is_put_aside_is_charged_with_what_it_takes() {
    let fixture = small();
    let (bytes, digest) = noise(1, 1 << 20);
    try_fill(&fixture.store, digest, &bytes).await.unwrap();
    let before = fixture.store.0.disks[0].used();
    fixture.store.close().await;
    fs::write(fixture.path(&digest), &bytes[..256 << 10]).unwrap();
    fs::write(fixture.store.0.disks[0].layout.boot(), "another boot").unwrap();
    let fixture = fixture.reopen_after_kill();
    assert!(content(&fixture.store, &digest).await.is_none());
    let after = fixture.store.0.disks[0].used();
    assert!(before - after >= 700 << 10, "{before} bytes were charged, now {after}");
}

#[tokio::test]
async fn odd_files_go_to_quarantine_and_never_stop_a_start() {
    let fixture = fixture();
    let (bytes, digest) = sample(5000);
    fill(&fixture.store, digest, &bytes).await.seal().await.unwrap();
    let layout = fixture.store.0.disks[0].layout.clone();
    fs::write(layout.blobs().join("stray"), "x").unwrap();
    fs::write(layout.blob(&digest).with_file_name("README"), "x").unwrap();
    fs::write(layout.partials().join("sha256-zz.data"), "x").unwrap();
    let (_, torn) = sample(7);
    fs::write(layout.partial(&torn, UPSTREAM), "x").unwrap();
    fs::write(layout.journal(&torn, UPSTREAM), "torn").unwrap();
    let fixture = fixture.reopen().await;
    assert_eq!(content(&fixture.store, &digest).await.unwrap(), bytes);
    // The walk over the blobs is behind the start.
    until(async || fs::read_dir(layout.quarantine()).unwrap().count() == 5).await;
    assert_eq!(fs::read_dir(layout.partials()).unwrap().count(), 0);
}

#[tokio::test]
async fn damaged_metadata_is_set_aside_and_the_blobs_stay() {
    let fixture = fixture();
    let (bytes, digest) = sample(5000);
    fill(&fixture.store, digest, &bytes).await.seal().await.unwrap();
    fixture.store.close().await;
    let Fixture { directory, store, .. } = fixture;
    drop(store);
    fs::write(directory.path().join("metadata.redb"), "not a database").unwrap();
    let store = open(directory.path()).unwrap();
    assert_eq!(content(&store, &digest).await.unwrap(), bytes);
}

#[tokio::test]
async fn tags_and_visibility_survive_a_restart_and_stay_apart() {
    let fixture = fixture();
    let (_, digest) = sample(1);
    let (team, other): (Repository, Repository) = ("team/app".parse().unwrap(), "other/app".parse().unwrap());
    let tag: Tag = "v1".parse().unwrap();
    let record = TagRecord { digest, size: Some(1), media_type: None, checked_at: Timestamp::from_millis(5) };
    let metadata = fixture.store.metadata();
    metadata.set_tag("docker.io", &team, &tag, record.clone(), Timestamp::from_millis(9));
    let older = TagRecord { checked_at: Timestamp::from_millis(4), ..record.clone() };
    metadata.set_tag("docker.io", &team, &tag, older, Timestamp::from_millis(9));
    metadata.set_visible("docker.io", Scope::Repository(&team), &digest, Timestamp::from_millis(5));
    let fixture = fixture.reopen().await;
    let metadata = fixture.store.metadata();
    assert_eq!(metadata.tag("docker.io", &team, &tag).await.as_deref(), Some(&record));
    assert_eq!(metadata.tag("quay.io", &team, &tag).await, None);
    assert!(metadata.is_visible("docker.io", Scope::Repository(&team), &digest).await);
    assert!(!metadata.is_visible("docker.io", Scope::Repository(&other), &digest).await);
    assert!(!metadata.is_visible("docker.io", Scope::Upstream, &digest).await);
    assert!(!metadata.is_visible("quay.io", Scope::Repository(&team), &digest).await);
    metadata.remove_tag("docker.io", &team, &tag);
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.store.metadata().tag("docker.io", &team, &tag).await, None);
}

#[tokio::test]
async fn a_directory_has_one_owner() {
    let fixture = fixture();
    let error = open(fixture.directory.path()).unwrap_err().to_string();
    assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
}

#[tokio::test]
async fn small_objects_are_served_from_memory_and_kept_on_disk() {
    let fixture = fixture();
    let (bytes, digest) = sample(500);
    fixture.store.put(digest.verify(bytes.clone()).unwrap(), Duration::from_millis(5)).await.unwrap();
    assert!(matches!(fixture.store.get(&digest).await, Some(Content::Memory(_))));
    let fixture = fixture.reopen().await;
    assert_eq!(content(&fixture.store, &digest).await.unwrap(), bytes);
    assert!(matches!(fixture.store.get(&digest).await, Some(Content::Memory(_))));
}

#[tokio::test]
async fn a_small_object_never_touches_the_file_of_a_fill_under_way() {
    let fixture = fixture();
    let (bytes, digest) = sample(500);
    let mut hostile = fixture.store.partial(digest, UPSTREAM).await.unwrap();
    fixture.store.put(digest.verify(bytes.clone()).unwrap(), Duration::from_millis(5)).await.unwrap();
    hostile.write_all(Bytes::from(vec![0; 500])).await.unwrap();
    assert!(hostile.seal().await.is_err());
    let fixture = fixture.reopen().await;
    assert_eq!(content(&fixture.store, &digest).await.unwrap(), bytes);
}

#[tokio::test]
async fn what_one_upstream_has_sent_is_not_resumed_from_another() {
    let fixture = fixture();
    let (bytes, digest) = sample(10_000);
    let mut hostile = fixture.store.partial(digest, "hostile.test").await.unwrap();
    hostile.write_all(Bytes::from(vec![0; 6000])).await.unwrap();
    hostile.park().await;
    fill(&fixture.store, digest, &bytes).await.seal().await.unwrap();
    assert_eq!(content(&fixture.store, &digest).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_bad_file_does_not_take_its_successor_with_it() {
    let fixture = fixture();
    let (bytes, digest) = sample(5000);
    let bad = fill(&fixture.store, digest, &bytes).await.seal().await.unwrap();
    fixture.store.distrust(&bad).await;
    assert!(content(&fixture.store, &digest).await.is_none());
    fill(&fixture.store, digest, &bytes).await.seal().await.unwrap();
    fixture.store.distrust(&bad).await;
    assert_eq!(content(&fixture.store, &digest).await.unwrap(), bytes);
}

fn noise(seed: u64, len: usize) -> (Bytes, Digest) {
    let mut random = fastrand::Rng::with_seed(seed);
    let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    (bytes.into(), digest)
}

/// What the file system says the directory takes.
fn taken(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let own = fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * 512);
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| taken(&entry.path())).sum::<u64>()
}

async fn try_fill(store: &Store, digest: Digest, bytes: &Bytes) -> Result<Arc<Blob>, Error> {
    let mut partial = store.partial(digest, UPSTREAM).await?;
    if let Err(refusal) = partial.expect_size(bytes.len() as u64).await {
        partial.discard().await;
        return Err(refusal);
    }
    partial.write_all(bytes.slice(usize::try_from(partial.position()).unwrap()..)).await?;
    match partial.seal().await {
        Ok(blob) => Ok(blob),
        Err(SealError::Store(error)) => Err(error),
        Err(SealError::Mismatch(mismatch)) => panic!("{mismatch}"),
    }
}

#[tokio::test]
async fn space_is_set_aside_ahead_of_a_fill_and_given_back_when_it_is_parked() {
    const SIZE: usize = 40 << 20;
    const FRONT: u64 = 3 << 20;
    let fixture = fixture();
    let disk = &fixture.store.0.disks[0];
    let (bytes, digest) = noise(0, SIZE);
    let path = disk.layout.partial(&digest, UPSTREAM);
    let mut partial = fixture.store.partial(digest, UPSTREAM).await.unwrap();
    partial.expect_size(SIZE as u64).await.unwrap();
    for piece in 0..3 {
        partial.write_all(bytes.slice(piece << 20..(piece + 1) << 20)).await.unwrap();
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), FRONT);
    assert!(taken(&path) >= 32 << 20, "{} bytes", taken(&path));
    // Promised and not there yet is only what lies behind it.
    assert!(disk.ledger.unwritten() < 9 << 20, "{} bytes", disk.ledger.unwritten());
    partial.park().await;
    assert!(taken(&path) < FRONT + (64 << 10), "{} bytes", taken(&path));
    assert!(disk.ledger.used() < FRONT + (64 << 10), "{} bytes", disk.ledger.used());
    let blob = try_fill(&fixture.store, digest, &bytes).await.unwrap();
    let taken = taken(&fixture.path(&digest));
    assert!(taken <= SIZE as u64 + (64 << 10), "{taken} bytes");
    assert_eq!(blob.read(FRONT - 5, 10).await.unwrap(), bytes.slice((3 << 20) - 5..(3 << 20) + 5));
}

const SMALL: u64 = 40 << 20;

fn small() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let store = open_with(directory.path(), SMALL).unwrap();
    Fixture { directory, capacity: SMALL, store }
}

#[tokio::test]
async fn the_budget_holds_whatever_is_filled_and_what_is_open_stays() {
    let fixture = small();
    let (bytes, digest) = noise(0, 3 << 20);
    let open = try_fill(&fixture.store, digest, &bytes).await.unwrap();
    for seed in 1..40 {
        let (bytes, digest) = noise(seed, 3 << 20);
        try_fill(&fixture.store, digest, &bytes).await.unwrap();
        assert!(taken(fixture.directory.path()) <= SMALL, "{}", taken(fixture.directory.path()));
    }
    assert_eq!(open.read(0, 10).await.unwrap(), bytes.slice(..10));
    assert!(fixture.path(&digest).exists(), "an open blob is not evicted");
    assert!(fixture.store.0.metrics.evictions.get() > 20);
    let blobs = fixture.store.0.disks[0].total();
    assert!(blobs.1 > SMALL / 2, "{blobs:?}");
}

#[tokio::test]
async fn a_blob_that_can_never_fit_is_refused_before_it_is_written() {
    let fixture = small();
    let (bytes, digest) = noise(0, 3 << 20);
    try_fill(&fixture.store, digest, &bytes).await.unwrap();
    let mut partial = fixture.store.partial(sample(1).1, UPSTREAM).await.unwrap();
    let refusal = partial.expect_size(SMALL).await.unwrap_err();
    assert!(matches!(refusal, Error::NoRoom { .. }), "{refusal}");
    partial.discard().await;
    assert!(fixture.store.contains(&digest).await, "nothing was evicted for it");
}

#[tokio::test]
async fn fills_at_once_share_the_budget() {
    let fixture = small();
    let fills = (0..64).map(|seed| {
        let store = fixture.store.clone();
        tokio::spawn(async move {
            let (bytes, digest) = noise(seed, 2 << 20);
            (digest, try_fill(&store, digest, &bytes).await.map(drop))
        })
    });
    let fills: Vec<_> = fills.collect();
    let mut most = 0;
    for fill in fills {
        most = most.max(taken(fixture.directory.path()));
        let (digest, outcome) = fill.await.unwrap();
        match outcome {
            Ok(()) | Err(Error::NoRoom { .. }) => {}
            Err(error) => panic!("{digest}: {error}"),
        }
    }
    assert!(most <= SMALL, "{most}");
    let disk = &fixture.store.0.disks[0];
    assert!(disk.total().0 >= 10);
}

#[tokio::test]
async fn what_was_used_is_known_after_a_restart_and_charged_as_before() {
    let fixture = small();
    for seed in 0..5 {
        let (bytes, digest) = noise(seed, 1 << 20);
        try_fill(&fixture.store, digest, &bytes).await.unwrap();
    }
    let (_, digest) = noise(3, 1 << 20);
    fixture.store.blob(&digest).await.unwrap();
    let before = fixture.store.0.disks[0].used();
    let fixture = fixture.reopen().await;
    assert!(fixture.store.contains(&digest).await);
    assert_eq!(fixture.store.0.disks[0].used(), before);
}

#[tokio::test]
async fn a_blob_whose_record_was_lost_is_there_and_verified() {
    let fixture = small();
    let ((good, digest), (bad, lost)) = (noise(1, 100_000), noise(2, 100_000));
    try_fill(&fixture.store, digest, &good).await.unwrap();
    try_fill(&fixture.store, lost, &bad).await.unwrap();
    fixture.store.close().await;
    fs::remove_file(fixture.directory.path().join("catalogue.redb")).unwrap();
    fs::set_permissions(fixture.path(&lost), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(fixture.path(&lost), vec![0; 100_000]).unwrap();
    let fixture = fixture.reopen_after_kill();
    assert_eq!(content(&fixture.store, &digest).await.unwrap(), good);
    assert!(content(&fixture.store, &lost).await.is_none());
}

#[tokio::test]
async fn a_kept_image_is_not_evicted_also_after_a_restart() {
    let fixture = small();
    let (bytes, kept) = noise(1, 3 << 20);
    try_fill(&fixture.store, kept, &bytes).await.unwrap();
    fixture.store.keep_image("image", &HashSet::from([kept]));
    let mut fixture = fixture.reopen().await;
    for round in 0..2 {
        for seed in 10..30 {
            let (bytes, digest) = noise(round * 100 + seed, 3 << 20);
            try_fill(&fixture.store, digest, &bytes).await.unwrap();
        }
        assert!(fixture.store.contains(&kept).await);
        fixture = fixture.reopen().await;
    }
    fixture.store.keep_image("image", &HashSet::new());
    assert!(fixture.store.kept_by(&kept).is_empty());
}

#[tokio::test]
async fn a_disk_that_lacks_room_leaves_a_blob_to_another() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = |directory: &tempfile::TempDir, capacity| {
        DiskConfig::new(directory.path().to_owned(), Amount::Bytes(crate::runtime::Bytes::mib(capacity)))
    };
    let config = StoreConfig {
        disks: vec![disk(&first, 8), disk(&second, 64)],
        memory: crate::runtime::Bytes::mib(1),
        memory_max_object: crate::runtime::Bytes::kib(1),
    };
    let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1)));
    let store = Store::open(&config, clock, Metrics::register(&telemetry::Metrics::new())).unwrap();
    for seed in 0..4 {
        let (bytes, digest) = noise(seed, 12 << 20);
        try_fill(&store, digest, &bytes).await.unwrap();
        assert_eq!(content(&store, &digest).await.unwrap(), bytes);
    }
    let (bytes, digest) = noise(9, 1 << 20);
    try_fill(&store, digest, &bytes).await.unwrap();
    assert_eq!(store.0.disks.iter().map(|disk| disk.total().0).sum::<usize>(), 5);
}

/// Deletes the directory, which the store then finds out.
async fn delete_directory(fixture: &Fixture) {
    // The catalogue may be written into the directory while it is being removed.
    while fixture.directory.path().exists() {
        let _ = fs::remove_dir_all(fixture.directory.path());
    }
    let (_, other) = noise(2, 1);
    assert!(fixture.store.partial(other, UPSTREAM).await.is_err());
    assert_eq!(fixture.store.degraded().len(), 1);
}

async fn until(condition: impl AsyncFn() -> bool) {
    for _ in 0..100 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it did not come about in 10 s");
}

#[tokio::test]
async fn a_directory_that_is_deleted_is_made_again_and_used_again() {
    let fixture = small();
    let (bytes, digest) = noise(1, 1 << 20);
    try_fill(&fixture.store, digest, &bytes).await.unwrap();
    delete_directory(&fixture).await;
    until(async || fixture.store.degraded().is_empty()).await;
    until(async || !fixture.store.contains(&digest).await).await;
    try_fill(&fixture.store, digest, &bytes).await.unwrap();
    assert_eq!(content(&fixture.store, &digest).await.unwrap(), bytes);
}

#[tokio::test]
async fn what_came_without_a_directory_is_written_later_and_what_is_kept_is_noted_again() {
    let fixture = small();
    let (bytes, manifest) = sample(500);
    fixture.store.keep_image("image", &HashSet::from([manifest]));
    delete_directory(&fixture).await;
    let put = fixture.store.put(manifest.verify(bytes.clone()).unwrap(), Duration::from_millis(5)).await;
    assert!(put.is_err());
    until(async || fixture.store.degraded().is_empty()).await;
    assert!(!fixture.store.contains(&manifest).await);
    assert_eq!(content(&fixture.store, &manifest).await.unwrap(), bytes);
    until(async || fixture.store.contains(&manifest).await).await;
    let fixture = fixture.reopen().await;
    assert_eq!(content(&fixture.store, &manifest).await.unwrap(), bytes);
    assert_eq!(fixture.store.kept_by(&manifest), ["image"]);
}
