//! One fetch for all, whoever comes, goes or dawdles.

use tokio::task::JoinSet;

use crate::support::edge::{Edge, until};
use crate::support::http;
use crate::support::origin::{Fault, Gate, Origin, sha256, synthetic_bytes};
use crate::{MIB, assert_body, blob, len, manifest, pull_blob, reached};

/// An origin with one large blob of repository `app`, whose first transfer is held at `gate_at` bytes.
async fn held(size: u64, gate_at: u64) -> (Origin, String, Gate) {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", size, 11);
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(gate_at, &gate));
    (origin, digest, gate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_clients_cost_one_fetch_and_have_their_first_byte_early() {
    const SIZE: u64 = 48 * MIB;
    let (origin, digest, gate) = held(SIZE, 7 * MIB).await;
    let edge = Edge::start(&origin).await;
    let (addr, path) = (edge.addr(), blob("app", &digest));
    let mut clients = JoinSet::new();
    for _ in 0..16 {
        let path = path.clone();
        clients.spawn(async move {
            let mut transfer = http::open(addr, &path, &[]).await;
            assert_eq!(transfer.status, 200);
            assert_eq!(transfer.header("Content-Length"), Some(SIZE.to_string().as_str()));
            let first = transfer.next().await;
            (transfer, first)
        });
    }
    let started: Vec<_> = clients.join_all().await;
    assert!(origin.bytes_sent(&digest) <= 7 * MIB, "all have a byte before 8 MiB were sent");
    gate.open();
    let mut clients = JoinSet::new();
    for (mut transfer, first) in started {
        clients.spawn(async move {
            let mut bytes = first.to_vec();
            bytes.append(&mut transfer.read_to_end().await);
            (transfer.complete(), sha256(&bytes))
        });
    }
    while let Some(client) = clients.join_next().await {
        assert_eq!(client.unwrap(), (true, digest.clone()));
    }
    assert_eq!(origin.bytes_sent(&digest), SIZE, "1.00 times");
    assert_eq!(origin.count("*", &digest), 1);
    assert!(edge.rss_anon() < 100 * MIB, "{} bytes", edge.rss_anon());
}

#[tokio::test]
async fn others_finish_when_the_first_client_leaves() {
    const SIZE: u64 = 20 * MIB;
    let (origin, digest, gate) = held(SIZE, 6 * MIB).await;
    let edge = Edge::start(&origin).await;
    let path = blob("app", &digest);
    let mut first = http::open(edge.addr(), &path, &[]).await;
    assert_eq!(first.read(len(6 * MIB)).await.len(), len(6 * MIB));
    let mut second = http::open(edge.addr(), &path, &[]).await;
    assert!(!second.next().await.is_empty());
    drop(first);
    let mut third = http::open(edge.addr(), &path, &[]).await;
    gate.open();
    assert_eq!(third.digest().await.0, digest);
    assert!(third.complete());
    second.drain().await;
    assert_eq!((second.complete(), second.bytes_read()), (true, SIZE));
    assert_eq!(origin.bytes_sent(&digest), SIZE);
}

#[tokio::test]
async fn ranges_join_the_running_fill_at_any_offset() {
    const SIZE: u64 = 24 * MIB;
    let (origin, digest, gate) = held(SIZE, 12 * MIB).await;
    let bytes = synthetic_bytes(SIZE, 11);
    let edge = Edge::start(&origin).await;
    let path = blob("app", &digest);
    let mut whole = http::open(edge.addr(), &path, &[]).await;
    // What has arrived is answered while the origin holds the rest back.
    let inner = http::get(edge.addr(), &path, &[("Range", "bytes=3000000-3999999")]).await;
    assert_body(&inner, 206, &bytes[3_000_000..4_000_000]);
    let tail = format!("bytes={}-", 10 * MIB);
    let mut tail = http::open(edge.addr(), &path, &[("Range", &tail)]).await;
    assert_eq!(tail.status, 206);
    assert_eq!(tail.read(1000).await, &bytes[len(10 * MIB)..][..1000]);
    // What has not, and is far ahead, is fetched beside it.
    let ahead = format!("bytes={}-{}", 20 * MIB, 21 * MIB - 1);
    let ahead = http::get(edge.addr(), &path, &[("Range", &ahead)]).await;
    assert_body(&ahead, 206, &bytes[len(20 * MIB)..len(21 * MIB)]);
    gate.open();
    assert!(tail.read_to_end().await == bytes[len(10 * MIB) + 1000..]);
    assert!(tail.complete());
    assert_eq!(whole.digest().await.0, digest);
    // The transfer that ends before that range has a few socket buffers on its way.
    let twice = origin.bytes_sent(&digest) - SIZE;
    assert!(twice <= 4 * MIB, "{twice} bytes came twice");
}

#[tokio::test]
async fn a_fill_without_clients_is_finished_once_enough_has_arrived() {
    const SIZE: u64 = 8 * MIB;
    let (origin, digest, gate) = held(SIZE, SIZE / 2).await;
    // The rest takes ten times the grace: the fill is judged on its way.
    let edge = Edge::with(&origin, "[fill]\nabandon_grace = \"50ms\"").await;
    let mut only = http::open(edge.addr(), &blob("app", &digest), &[]).await;
    only.read(len(SIZE / 2)).await;
    drop(only);
    origin.limit_rate(Some(SIZE));
    gate.open();
    until("the fill has ended", async || edge.has_blob(&digest)).await;
    origin.vanish().await;
    pull_blob(edge.addr(), "app", &digest).await;
    assert_eq!(origin.bytes_sent(&digest), SIZE);
}

/// All clients leave after `share` of the blob, and the gate never opens: the edge must let go of the origin, keep
/// what has arrived, and go on from there with the next pull.
async fn abandoned(share: u64, toml: &str) {
    const SIZE: u64 = 8 * MIB;
    let arrived = SIZE / 100 * share;
    let (origin, digest, gate) = held(SIZE, arrived).await;
    let edge = Edge::with(&origin, toml).await;
    let mut only = http::open(edge.addr(), &blob("app", &digest), &[]).await;
    only.read(len(arrived)).await;
    drop(only);
    until("the edge has let go of the origin", async || origin.connections_open() == 0).await;
    assert!(!edge.has_blob(&digest));
    until("the partial is kept", async || edge.partials().iter().any(|(_, length)| *length == arrived)).await;
    until("the flight has ended", async || edge.metric("clawhub_edge_flights").await == 0).await;
    gate.open();
    pull_blob(edge.addr(), "app", &digest).await;
    assert_eq!(origin.bytes_sent(&digest), SIZE, "nothing is fetched twice");
    let resumed = origin.requests().pop().expect("there were requests");
    assert_eq!(resumed.range, Some(format!("bytes={arrived}-")));
}

#[tokio::test]
async fn a_fill_without_clients_that_has_hardly_begun_stops_and_is_kept() {
    abandoned(10, "[fill]\nabandon_grace = \"50ms\"").await;
}

#[tokio::test]
async fn on_abandon_cancel_stops_however_much_has_arrived() {
    abandoned(90, "[fill]\nabandon_grace = \"50ms\"\non_abandon = \"cancel\"").await;
}

#[tokio::test]
async fn a_client_that_comes_back_within_the_grace_finds_its_flight() {
    const SIZE: u64 = 4 * MIB;
    let (origin, digest, gate) = held(SIZE, MIB).await;
    let edge = Edge::with(&origin, "[fill]\nabandon_grace = \"1m\"\non_abandon = \"cancel\"").await;
    let mut first = http::open(edge.addr(), &blob("app", &digest), &[]).await;
    first.read(len(MIB)).await;
    drop(first);
    until("the edge has seen it leave", async || edge.log().contains("client left")).await;
    let mut back = http::open(edge.addr(), &blob("app", &digest), &[]).await;
    assert!(back.header("Cache-Status").is_some_and(|status| status.contains("collapsed")));
    gate.open();
    assert_eq!(back.digest().await.0, digest);
    assert_eq!(origin.count("GET", &digest), 1);
    assert_eq!(origin.bytes_sent(&digest), SIZE);
}

#[tokio::test]
async fn clients_that_read_nothing_slow_nobody_and_cost_no_memory() {
    const SIZE: u64 = 64 * MIB;
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, 12);
    let edge = Edge::start(&origin).await;
    let mut dawdlers = Vec::new();
    for _ in 0..8 {
        dawdlers.push(http::open(edge.addr(), &blob("app", &digest), &[]).await);
    }
    pull_blob(edge.addr(), "app", &digest).await;
    assert!(edge.rss_anon() < 64 * MIB, "{} bytes for 8 clients", edge.rss_anon());
    // Their transfers are alive, and end well now that the blob is sealed.
    let mut last = dawdlers.pop().unwrap();
    assert_eq!(last.digest().await.0, digest);
    assert!(last.complete());
    assert_eq!(origin.bytes_sent(&digest), SIZE);
}

#[tokio::test]
async fn more_fills_than_allowed_wait_for_their_turn() {
    let origin = Origin::start().await;
    let digests: Vec<_> = (20..26).map(|seed| origin.add_synthetic_blob("app", MIB, seed)).collect();
    let first = Gate::new();
    origin.fault(Fault::on("GET", "/blobs/").times(1).gate_at(MIB / 2, &first));
    let edge = Edge::with(&origin, "[fill]\nmax_concurrent = 1").await;
    let addr = edge.addr();
    let mut clients = JoinSet::new();
    for digest in digests.clone() {
        clients.spawn(async move { pull_blob(addr, "app", &digest).await });
    }
    until("all fills are there", async || edge.metric("clawhub_edge_flights").await == 6).await;
    reached(&first).await;
    assert_eq!(origin.count("GET", "/blobs/"), 1);
    first.open();
    clients.join_all().await;
    assert_eq!(origin.bytes_sent("/blobs/"), 6 * MIB);
}

#[tokio::test]
async fn sixteen_clients_cost_one_manifest() {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "1", vec!["layer".into()]);
    let gate = Gate::new();
    origin.fault(Fault::on("GET", "/manifests/").gate_headers(&gate));
    let edge = Edge::start(&origin).await;
    for reference in ["1", &image.manifest_digest] {
        let (addr, path) = (edge.addr(), manifest("app", reference));
        let mut clients = JoinSet::new();
        for _ in 0..16 {
            let path = path.clone();
            clients.spawn(async move { http::get(addr, &path, &[]).await });
        }
        until("all have asked", async || {
            reference != "1" || edge.metric("clawhub_edge_http_connections").await >= 17
        })
        .await;
        gate.open();
        for got in clients.join_all().await {
            assert_body(&got, 200, &image.manifest);
        }
    }
    assert_eq!(origin.count("*", "/manifests/"), 1, "{:#?}", origin.requests());
}

#[tokio::test]
async fn a_failed_fill_breaks_everybody_who_follows_it() {
    const SIZE: u64 = 4 * MIB;
    let (origin, digest, gate) = held(SIZE, 2 * MIB).await;
    let edge = Edge::with(&origin, "[fetch]\ngive_up_after = \"300ms\"\nbackoff = \"20ms\"").await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = http::open(edge.addr(), &blob("app", &digest), &[]).await;
        assert!(!client.next().await.is_empty());
        clients.push(client);
    }
    until("the edge has what was sent", async || {
        edge.metric("clawhub_edge_fill_bytes_total").await >= 2 * MIB
    })
    .await;
    origin.vanish().await;
    gate.open();
    for mut client in clients {
        let drained = client.drain().await;
        assert!(!drained.complete);
        assert!(client.bytes_read() <= 2 * MIB, "no more than what came");
    }
    // What has arrived is not lost.
    origin.come_back().await;
    pull_blob(edge.addr(), "app", &digest).await;
    assert_eq!(origin.bytes_sent(&digest), SIZE);
}
