//! A disk that answers with EIO costs the cache, and no pull.

use crate::support::edge::{Edge, UPSTREAM, has_faulty_disks, until};
use crate::support::http;
use crate::support::origin::{Fault, Gate, Origin, sha256, synthetic_bytes};
use crate::{MIB, assert_body, blob, is_cached_again, len, pull_blob, reached, readiness};

const SIZE: u64 = 3 * MIB + 123;

async fn edge(origin: &Origin) -> Edge {
    let builder = Edge::builder().upstream(UPSTREAM, &origin.url(), "");
    builder.faulty_disk().start().await
}

async fn recovers(edge: &Edge, digest: &str) {
    is_cached_again(edge, digest).await;
    // An error of a write that was under way is told late, and is looked into by the next probe.
    until("all is well", async || readiness(edge).await == "ok\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_in_the_middle_of_a_blob_fails_no_pull() {
    if !has_faulty_disks() {
        return;
    }
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, 71);
    let image = origin.add_image("app", "1", vec!["a layer".into()]);
    let edge = edge(&origin).await;
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(2 * MIB, &gate));
    let mut flying = http::open(edge.addr(), &blob("app", &digest), &[]).await;
    let mut bytes = flying.read(len(MIB)).await;
    reached(&gate).await;
    edge.fail_disk("write");
    gate.open();
    bytes.append(&mut flying.read_to_end().await);
    assert_eq!((flying.complete(), sha256(&bytes)), (true, digest.clone()));
    assert_eq!(origin.bytes_sent(&digest), SIZE, "nothing was fetched twice");
    let degraded = readiness(&edge).await;
    assert!(degraded.starts_with("degraded: ") && degraded.contains("Input/output error"), "{degraded}");
    crate::pull(&edge, "app", "1", &image).await;
    pull_blob(edge.addr(), "app", &digest).await;
    assert!(edge.blobs().is_empty());
    edge.fail_disk("");
    recovers(&edge, &digest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_any_more_is_fetched_again() {
    if !has_faulty_disks() {
        return;
    }
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, 72);
    let small = origin.add_blob("app", "a small blob");
    let mut edge = edge(&origin).await;
    for digest in [&digest, &small] {
        pull_blob(edge.addr(), "app", digest).await;
        assert!(edge.has_blob(digest));
    }
    // From now on they are read from the disk.
    edge.restart().await;
    edge.fail_disk("read");
    let part = http::get(edge.addr(), &blob("app", &digest), &[("Range", "bytes=2000000-2999999")]).await;
    assert_body(&part, 206, &synthetic_bytes(SIZE, 72)[2_000_000..3_000_000]);
    for digest in [&digest, &small] {
        pull_blob(edge.addr(), "app", digest).await;
    }
    edge.fail_disk("");
    recovers(&edge, &digest).await;
    origin.vanish().await;
    pull_blob(edge.addr(), "app", &digest).await;
}
