//! The byte budget: what is evicted for it, and what is not.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::support::edge::Edge;
use crate::support::http;
use crate::support::origin::{Origin, synthetic_bytes};
use crate::{MIB, blob, pull, pull_blob};

/// What a directory takes, as the file system accounts it. A file that is moved meanwhile counts once.
pub(crate) fn taken(directory: &Path) -> u64 {
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
