//! Transfers that break upstream, or with the edge itself, go on at the byte.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::edge::{Edge, UPSTREAM, until};
use crate::support::http;
use crate::support::origin::{Fault, Gate, Origin, synthetic_bytes};
use crate::{MIB, assert_body, assert_error, attempt, blob, is_success, len, pull_blob, reached};

const SIZE: u64 = 16 * MIB;
const HALF: u64 = SIZE / 2;

/// One pull through a first transfer with this fault; the client must not notice, and nothing is sent twice.
async fn unnoticed(fault: impl FnOnce(Fault) -> Fault) -> Origin {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, 41);
    origin.fault(fault(Fault::on("GET", &digest).times(1)));
    let edge = Edge::with(&origin, "[fetch]\nstall_window = \"300ms\"").await;
    pull_blob(edge.addr(), "app", &digest).await;
    assert!(edge.has_blob(&digest));
    let sent = origin.bytes_sent(&digest);
    assert!(sent <= SIZE + SIZE / 100, "{sent} of {SIZE} bytes");
    assert_eq!(origin.requests()[1].range, Some(format!("bytes={HALF}-")));
    assert_eq!(origin.count("GET", &digest), 2);
    origin
}

#[tokio::test]
async fn a_reset_in_mid_transfer_goes_unnoticed() {
    unnoticed(|fault| fault.reset_at(HALF)).await;
}

#[tokio::test]
async fn a_cut_in_mid_transfer_goes_unnoticed() {
    unnoticed(|fault| fault.cut_at(HALF)).await;
}

#[tokio::test]
async fn a_stall_in_mid_transfer_goes_unnoticed() {
    unnoticed(|fault| fault.stall_at(HALF)).await;
}

#[tokio::test]
async fn a_transfer_without_length_is_resumed_too() {
    unnoticed(|fault| fault.chunked().reset_at(HALF)).await;
}

#[tokio::test]
async fn a_blob_without_length_is_pulled_and_has_one_afterwards() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, 42);
    origin.fault(Fault::on("GET", &digest).chunked());
    let edge = Edge::start(&origin).await;
    pull_blob(edge.addr(), "app", &digest).await;
    let head = http::head(edge.addr(), &blob("app", &digest), &[]).await;
    assert_eq!(head.header("Content-Length"), Some(SIZE.to_string().as_str()));
    let range = http::get(edge.addr(), &blob("app", &digest), &[("Range", "bytes=-5")]).await;
    assert_eq!((range.status, range.body.len()), (206, 5));
    assert_eq!(origin.count("GET", &digest), 1);
}

#[tokio::test]
async fn a_range_of_a_cold_blob_without_length_is_answered() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, 42);
    origin.fault(Fault::on("GET", &digest).chunked());
    let edge = Edge::start(&origin).await;
    let range = http::get(edge.addr(), &blob("app", &digest), &[("Range", "bytes=100-199")]).await;
    assert_eq!((range.status, range.body.len()), (206, 100));
    assert_eq!(range.header("Content-Range"), Some(format!("bytes 100-199/{SIZE}").as_str()));
}

#[tokio::test]
async fn an_origin_that_breaks_every_transfer_is_outlasted() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, 43);
    origin.fault(Fault::on("GET", &digest).reset_at(MIB));
    let edge = Edge::start(&origin).await;
    pull_blob(edge.addr(), "app", &digest).await;
    assert_eq!(origin.bytes_sent(&digest), SIZE);
    assert_eq!(origin.count("GET", &digest), 16);
}

#[tokio::test]
async fn an_origin_that_vanishes_in_mid_transfer_is_waited_for() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, 44);
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(HALF, &gate));
    let edge = Edge::start(&origin).await;
    let addr = edge.addr();
    let client = tokio::spawn({
        let digest = digest.clone();
        async move { pull_blob(addr, "app", &digest).await }
    });
    reached(&gate).await;
    until("the edge has what was sent", async || edge.metric("clawhub_edge_fill_bytes_total").await >= HALF)
        .await;
    origin.vanish().await;
    until("the edge has tried in vain", async || edge.log().contains("could not be resumed yet")).await;
    origin.come_back().await;
    client.await.unwrap();
    assert_eq!(origin.bytes_sent(&digest), SIZE);
}

#[tokio::test]
async fn an_origin_that_ignores_ranges_is_resumed_all_the_same() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, 45);
    origin.fault(Fault::on("GET", &digest).times(1).reset_at(HALF));
    origin.fault(Fault::on("GET", &digest).ignore_range());
    let edge = Edge::start(&origin).await;
    pull_blob(edge.addr(), "app", &digest).await;
    assert_eq!(origin.bytes_sent(&digest), HALF + SIZE, "read over, but never given twice");
}

#[tokio::test]
async fn the_next_endpoint_takes_over_in_mid_blob() {
    let (one, other) = (Origin::start().await, Origin::start().await);
    let digest = one.add_synthetic_blob("app", SIZE, 46);
    other.add_synthetic_blob("app", SIZE, 46);
    one.fault(Fault::on("GET", &digest).times(1).reset_at(HALF));
    one.fault(Fault::on("*", "").reset_unanswered());
    let edge = Edge::builder().endpoints(UPSTREAM, &[&one.url(), &other.url()]).start().await;
    pull_blob(edge.addr(), "app", &digest).await;
    assert_eq!((one.bytes_sent(&digest), other.bytes_sent(&digest)), (HALF, SIZE - HALF));
    assert_eq!(other.requests()[0].range, Some(format!("bytes={HALF}-")));
}

#[tokio::test]
async fn a_blob_that_is_another_one_after_the_break_is_no_success() {
    let origin = Origin::start().await;
    let edge = Edge::with(&origin, "[fetch]\ngive_up_after = \"2s\"").await;
    let bends: [fn(Fault) -> Fault; 4] = [
        |fault| fault.extend_by(1),
        |fault| fault.truncate_to(HALF / 2),
        |fault| fault.corrupt_at(HALF + 1),
        |fault| fault.header("Content-Range", "bytes 5-9/10"),
    ];
    for (seed, bend) in (50..).zip(bends) {
        let digest = origin.add_synthetic_blob("app", SIZE, seed);
        origin.fault(Fault::on("GET", &digest).times(1).reset_at(HALF));
        origin.fault(bend(Fault::on("GET", &digest)));
        let got = attempt(edge.addr(), &blob("app", &digest), &[]).await;
        assert!(got.is_none_or(|got| !is_success(&got)), "a success");
        assert!(!edge.has_blob(&digest));
        origin.clear_faults();
        pull_blob(edge.addr(), "app", &digest).await;
    }
}

/// What of a transfer may be lost with the process: 2 % of the 600 MB of the requirement. It is a number of bytes and
/// not a share, because an edge writes its journal every so often, however large the blob is.
const LOST: u64 = 12_000_000;

/// Breaks the edge when half of a blob has come at 100 MB/s; returns how much more than the blob the origin sent.
async fn surplus_after(toml: &str, end: impl AsyncFnOnce(&mut Edge)) -> u64 {
    const SIZE: u64 = 128 * MIB;
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, 47);
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(SIZE / 2, &gate));
    origin.limit_rate(Some(100_000_000));
    let mut edge = Edge::with(&origin, toml).await;
    let mut client = http::open(edge.addr(), &blob("app", &digest), &[]).await;
    assert_eq!(client.read(len(SIZE / 2)).await.len(), len(SIZE / 2));
    end(&mut edge).await;
    assert!(!client.drain().await.complete);
    origin.limit_rate(None);
    edge.restart().await;
    pull_blob(edge.addr(), "app", &digest).await;
    origin.bytes_sent(&digest) - SIZE
}

#[tokio::test]
async fn a_killed_edge_resumes_near_the_byte() {
    let surplus = surplus_after("", async |edge| edge.kill().await).await;
    assert!(surplus <= LOST, "{surplus} bytes were sent twice");
}

#[tokio::test]
async fn a_stopped_edge_resumes_near_the_byte() {
    let toml = "[limits]\ndrain_timeout = \"300ms\"";
    let surplus = surplus_after(toml, async |edge| {
        edge.stop().await;
    });
    let surplus = surplus.await;
    assert!(surplus <= LOST, "{surplus} bytes were sent twice");
}

#[tokio::test]
async fn a_fill_that_nobody_waits_for_does_not_hold_up_the_stop() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, 48);
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(HALF, &gate));
    let mut edge = Edge::start(&origin).await;
    let mut client = http::open(edge.addr(), &blob("app", &digest), &[]).await;
    client.read(len(HALF)).await;
    drop(client);
    until("the edge has seen it leave", async || edge.log().contains("client left")).await;
    let began = Instant::now();
    assert!(edge.stop().await.success());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    edge.restart().await;
    pull_blob(edge.addr(), "app", &digest).await;
    assert_eq!(origin.bytes_sent(&digest), SIZE, "an orderly stop loses nothing");
}

#[tokio::test]
async fn what_came_beyond_the_end_of_a_blob_does_not_keep_it_from_ever_being_whole() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, 48);
    // Too long, and broken beyond the true end; after that the origin is mended.
    origin.fault(Fault::on("GET", &digest).times(1).extend_by(MIB).reset_at(SIZE + MIB / 2));
    let edge = Edge::start(&origin).await;
    let broken = attempt(edge.addr(), &blob("app", &digest), &[]).await;
    assert!(!broken.is_some_and(|answer| is_success(&answer)));
    pull_blob(edge.addr(), "app", &digest).await;
}

#[tokio::test]
async fn what_one_upstream_sends_never_reaches_the_clients_of_another() {
    let (hostile, origin) = (Origin::start().await, Origin::start().await);
    let digest = origin.add_synthetic_blob("app", SIZE, 49);
    assert_eq!(hostile.add_synthetic_blob("app", SIZE, 49), digest);
    let gate = Gate::new();
    hostile.fault(Fault::on("GET", &digest).corrupt_at(10).gate_at(HALF, &gate));
    let edge = Edge::builder()
        .upstream(UPSTREAM, &origin.url(), "")
        .upstream("hostile.test", &hostile.url(), "")
        .start()
        .await;
    let (addr, path) = (edge.addr(), format!("/v2/hostile.test/app/blobs/{digest}"));
    let victim_of_its_own = tokio::spawn(async move { attempt(addr, &path, &[]).await });
    reached(&gate).await;
    pull_blob(edge.addr(), "app", &digest).await;
    gate.open();
    let answer = victim_of_its_own.await.unwrap();
    assert!(!answer.is_some_and(|answer| is_success(&answer)), "its bytes are wrong");
    pull_blob(edge.addr(), "app", &digest).await;
    assert_eq!(origin.count("GET", &digest), 1);
}

#[tokio::test]
async fn a_range_that_is_here_is_answered_without_the_upstream_and_nothing_else_is() {
    let origin = Origin::start().await;
    let (size, seed) = (4 * MIB, 51);
    let digest = origin.add_synthetic_blob("app", size, seed);
    let bytes = synthetic_bytes(size, seed);
    let mut edge = Edge::start(&origin).await;
    let path = blob("app", &digest);
    let first = http::get(edge.addr(), &path, &[("Range", "bytes=1000000-1999999")]).await;
    assert_body(&first, 206, &bytes[1_000_000..2_000_000]);
    until("the fill has ended", async || edge.metric("clawhub_edge_flights").await == 0).await;
    origin.vanish().await;
    for round in 0..2 {
        let inner = http::get(edge.addr(), &path, &[("Range", "bytes=1200000-1899999")]).await;
        assert_body(&inner, 206, &bytes[1_200_000..1_900_000]);
        for range in ["bytes=1200000-2100000", "bytes=0-9", "bytes=-10", "bytes=1200000-"] {
            // Refused, or broken off where what is here ends.
            let absent = attempt(edge.addr(), &path, &[("Range", range)]).await;
            assert!(!absent.is_some_and(|answer| is_success(&answer)), "{range}");
        }
        let whole = attempt(edge.addr(), &path, &[]).await;
        assert!(!whole.is_some_and(|answer| is_success(&answer)));
        let elsewhere = blob("other", &digest);
        let unproven = http::get(edge.addr(), &elsewhere, &[("Range", "bytes=1200000-1899999")]).await;
        assert_error(&unproven, 502, "UNAVAILABLE");
        if round == 0 {
            edge.restart().await;
        }
    }
    origin.come_back().await;
    pull_blob(edge.addr(), "app", &digest).await;
}
