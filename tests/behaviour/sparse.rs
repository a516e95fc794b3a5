//! Only what is wanted is fetched, out of order where it must be, and nothing twice.

use crate::support::edge::{Edge, until};
use crate::support::http;
use crate::support::origin::{Fault, Gate, Origin, synthetic_bytes};
use crate::{MIB, assert_body, blob, len, pull_blob, reached};

const SIZE: u64 = 96 * MIB + 4711;
const SEED: u64 = 71;

async fn origin() -> (Origin, String, Vec<u8>) {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, SEED);
    (origin, digest, synthetic_bytes(SIZE, SEED))
}

/// The parts of a `multipart/byteranges` body: their `Content-Range` and their bytes.
fn parts(content_type: &str, body: &[u8]) -> Vec<(String, Vec<u8>)> {
    let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").expect("a multipart answer");
    let delimiter = format!("\r\n--{boundary}");
    let find = |haystack: &[u8], needle: &[u8]| {
        haystack.windows(needle.len()).position(|window| window == needle).expect("a whole part")
    };
    let mut rest = body.strip_prefix(&delimiter.as_bytes()[2..]).expect("the first delimiter");
    let mut parts = Vec::new();
    while let Some(part) = rest.strip_prefix(b"\r\n") {
        let head_end = find(part, b"\r\n\r\n");
        let head = String::from_utf8(part[..head_end].to_vec()).expect("a head in ASCII");
        let content = &part[head_end + 4..];
        let end = find(content, delimiter.as_bytes());
        let range = head.lines().find_map(|line| line.strip_prefix("Content-Range: ")).expect("its range");
        parts.push((range.to_owned(), content[..end].to_vec()));
        rest = &content[end + delimiter.len()..];
    }
    assert_eq!(rest, b"--\r\n", "the last delimiter");
    parts
}

#[tokio::test]
async fn eight_clients_at_eight_offsets_of_a_cold_blob_fetch_it_once() {
    let (origin, digest, bytes) = origin().await;
    let edge = Edge::start(&origin).await;
    let (addr, path) = (edge.addr(), blob("app", &digest));
    let share = SIZE / 8;
    let clients: Vec<_> = (0..8)
        .map(|index| {
            let (path, start) = (path.clone(), index * share);
            tokio::spawn(async move {
                let range = format!("bytes={start}-");
                let mut transfer = http::open(addr, &path, &[("Range", &range)]).await;
                assert_eq!(transfer.status, 206);
                // As containerd does: the own part, and then the connection is dropped.
                (start, transfer.read(len(share)).await)
            })
        })
        .collect();
    for client in clients {
        let (start, part) = client.await.unwrap();
        assert!(part == bytes[len(start)..len(start + share)], "wrong bytes at {start}");
    }
    pull_blob(addr, "app", &digest).await;
    let sent = origin.bytes_sent(&digest);
    assert!(sent * 100 <= SIZE * 102, "{sent} bytes for a blob of {SIZE}");
}

#[tokio::test]
async fn several_ranges_of_a_cold_blob_cost_those_ranges_and_come_in_the_order_asked_for() {
    let (origin, digest, bytes) = origin().await;
    let edge = Edge::start(&origin).await;
    let range = "bytes=50000000-50000999,10-19,99000000-99999999,20-29";
    for round in ["cold", "again"] {
        let got = http::get(edge.addr(), &blob("app", &digest), &[("Range", range)]).await;
        assert_eq!((got.status, got.complete), (206, true), "{round}");
        assert_eq!(got.header("Content-Length"), Some(got.body.len().to_string().as_str()));
        let parts = parts(got.header("Content-Type").unwrap(), &got.body);
        let expected = [(50_000_000, 50_000_999), (10, 19), (99_000_000, 99_999_999), (20, 29)];
        assert_eq!(parts.len(), expected.len());
        for ((range, part), (first, last)) in parts.into_iter().zip(expected) {
            assert_eq!(range, format!("bytes {first}-{last}/{SIZE}"));
            assert!(part == bytes[first..=last], "wrong bytes at {first}");
        }
    }
    assert_eq!(origin.bytes_sent(&digest), 1000 + 10 + 1_000_000 + 10, "and nothing else");
    pull_blob(edge.addr(), "app", &digest).await;
    assert_eq!(origin.bytes_sent(&digest), SIZE, "what is here is not fetched again");
    let got = http::get(edge.addr(), &blob("app", &digest), &[("Range", "bytes=0-1,5-6")]).await;
    assert_eq!(parts(got.header("Content-Type").unwrap(), &got.body).len(), 2, "also of a sealed blob");
}

#[tokio::test]
async fn what_was_fetched_ahead_is_resumed_by_the_next_process() {
    for killed in [true, false] {
        let (origin, digest, bytes) = origin().await;
        let mut edge = Edge::start(&origin).await;
        let path = blob("app", &digest);
        let range = format!("bytes={}-{}", 40 * MIB, 60 * MIB - 1);
        let got = http::get(edge.addr(), &path, &[("Range", &range)]).await;
        assert_body(&got, 206, &bytes[len(40 * MIB)..len(60 * MIB)]);
        if killed {
            edge.kill().await;
        } else {
            edge.stop().await;
        }
        edge.restart().await;
        pull_blob(edge.addr(), "app", &digest).await;
        let twice = origin.bytes_sent(&digest) - SIZE;
        assert!(twice <= 2 * MIB && (killed || twice == 0), "{twice} bytes came twice");
    }
}

#[tokio::test]
async fn a_range_far_ahead_of_a_held_fill_does_not_wait_for_it() {
    let (origin, digest, bytes) = origin().await;
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(MIB, &gate));
    let edge = Edge::start(&origin).await;
    let path = blob("app", &digest);
    let mut whole = http::open(edge.addr(), &path, &[]).await;
    reached(&gate).await;
    let range = format!("bytes={}-{}", 80 * MIB, 81 * MIB - 1);
    let got = http::get(edge.addr(), &path, &[("Range", &range)]).await;
    assert_body(&got, 206, &bytes[len(80 * MIB)..len(81 * MIB)]);
    gate.open();
    assert_eq!(whole.digest().await.0, digest);
}

#[tokio::test]
async fn an_upstream_that_ignores_ranges_is_asked_once_more_and_then_in_order() {
    let (origin, digest, bytes) = origin().await;
    origin.fault(Fault::on("GET", &digest).ignore_range());
    let edge = Edge::start(&origin).await;
    let path = blob("app", &digest);
    let range = format!("bytes={}-{}", 80 * MIB, 81 * MIB - 1);
    let got = http::get(edge.addr(), &path, &[("Range", &range)]).await;
    assert_body(&got, 206, &bytes[len(80 * MIB)..len(81 * MIB)]);
    pull_blob(edge.addr(), "app", &digest).await;
    assert!(origin.count("GET", &digest) <= 3);
}

#[tokio::test]
async fn wrong_bytes_ahead_of_the_front_are_found_before_the_blob_ends() {
    let (origin, digest, _) = origin().await;
    origin.fault(Fault::on("GET", &digest).times(1).corrupt_at(80_000_010));
    let edge = Edge::start(&origin).await;
    let path = blob("app", &digest);
    // An inner range cannot be verified when it is answered …
    http::get(edge.addr(), &path, &[("Range", "bytes=80000000-80999999")]).await;
    // … but what was wrong in it never becomes part of a whole blob.
    let mut whole = http::open(edge.addr(), &path, &[]).await;
    assert!(!whole.drain().await.complete);
    assert!(!edge.has_blob(&digest) && edge.partials().is_empty());
    pull_blob(edge.addr(), "app", &digest).await;
}

#[tokio::test]
async fn what_a_reader_may_have_is_never_written_again() {
    let (origin, digest, bytes) = origin().await;
    let edge = Edge::start(&origin).await;
    let path = blob("app", &digest);
    // A slow reader of a range keeps the flight, and with it a wrong byte in the file of it.
    origin.fault(Fault::on("GET", &digest).times(1).corrupt_at(45 * MIB));
    let range = format!("bytes={}-{}", 40 * MIB, 50 * MIB - 1);
    let mut slow = http::open(edge.addr(), &path, &[("Range", &range)]).await;
    slow.read(1000).await;
    until("it has arrived", async || origin.bytes_sent(&digest) == 10 * MIB).await;
    // From now on the upstream sends whole blobs only, and right ones.
    origin.fault(Fault::on("GET", &digest).ignore_range());
    let far = http::get(edge.addr(), &path, &[("Range", "bytes=90000000-90000999")]).await;
    assert_body(&far, 206, &bytes[90_000_000..90_001_000]);
    let whole = http::get(edge.addr(), &path, &[]).await;
    assert!(!whole.complete || whole.body == bytes, "a wrong byte in a whole answer");
    drop(slow);
    until("the flight has ended", async || edge.metric("clawhub_edge_flights").await == 0).await;
    origin.clear_faults();
    assert!(http::get(edge.addr(), &path, &[]).await.body == bytes, "a wrong byte in the cache");
}

#[tokio::test]
async fn ranges_one_after_the_other_of_an_upstream_that_ignores_them_cost_the_blob_a_few_times_at_most() {
    let (origin, digest, bytes) = origin().await;
    origin.fault(Fault::on("GET", &digest).ignore_range());
    let edge = Edge::start(&origin).await;
    let path = blob("app", &digest);
    for index in 0..48 {
        let (first, last) = (index * 2 * MIB, (index + 1) * 2 * MIB - 1);
        let range = format!("bytes={first}-{last}");
        let got = http::get(edge.addr(), &path, &[("Range", &range)]).await;
        assert_body(&got, 206, &bytes[len(first)..=len(last)]);
    }
    let sent = origin.bytes_sent(&digest);
    assert!(sent <= 3 * SIZE, "{sent} bytes for a blob of {SIZE}");
}

#[tokio::test]
async fn a_part_that_fails_for_a_while_comes_all_the_same() {
    let (origin, digest, bytes) = origin().await;
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(MIB, &gate));
    let edge = Edge::start(&origin).await;
    let path = blob("app", &digest);
    let whole = http::open(edge.addr(), &path, &[]).await;
    reached(&gate).await;
    origin.fault(Fault::on("GET", &digest).times(2).rate_limit(0));
    let got = http::get(edge.addr(), &path, &[("Range", "bytes=80000000-80000999")]).await;
    assert_body(&got, 206, &bytes[80_000_000..80_001_000]);
    gate.open();
    drop(whole);
}

#[tokio::test]
async fn a_range_that_joins_an_unanswered_fill_does_not_depend_on_who_began_it() {
    let (origin, digest, bytes) = origin().await;
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_headers(&gate));
    let edge = Edge::start(&origin).await;
    let path = blob("app", &digest);
    let (addr, began) = (edge.addr(), path.clone());
    let began = tokio::spawn(async move { http::open(addr, &began, &[]).await });
    reached(&gate).await;
    let joined = {
        let path = path.clone();
        tokio::spawn(async move { http::get(addr, &path, &[("Range", "bytes=80000000-80000999")]).await })
    };
    until("it asks for the size", async || origin.count("HEAD", &digest) > 0).await;
    began.abort();
    gate.open();
    assert_body(&joined.await.unwrap(), 206, &bytes[80_000_000..80_001_000]);
}

#[tokio::test]
async fn the_rest_of_a_blob_is_not_fetched_once_only_parts_are_wanted() {
    let (origin, digest, _) = origin().await;
    origin.limit_rate(Some(20 * MIB));
    let edge = Edge::start(&origin).await;
    let path = blob("app", &digest);
    let mut slow = http::open(edge.addr(), &path, &[("Range", "bytes=9-20000000")]).await;
    slow.read(1000).await;
    let whole = http::open(edge.addr(), &path, &[]).await;
    drop(whole);
    until("the range is there", async || origin.bytes_sent(&digest) >= 20_000_000 - 9).await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let sent = origin.bytes_sent(&digest);
    assert!(sent < 30 * MIB, "{sent} bytes, of which nobody wants a third");
    drop(slow);
}

#[tokio::test]
async fn a_blob_that_was_only_wanted_in_parts_is_not_finished() {
    let (origin, digest, _) = origin().await;
    let edge = Edge::with(&origin, "[fill]\nabandon_grace = \"50ms\"\nfinish_after = \"1%\"").await;
    let range = format!("bytes=100-{}", 50 * MIB);
    http::get(edge.addr(), &blob("app", &digest), &[("Range", &range)]).await;
    until("the flight has ended", async || edge.metric("clawhub_edge_flights").await == 0).await;
    assert_eq!(origin.bytes_sent(&digest), 50 * MIB - 99);
    assert!(!edge.has_blob(&digest));
}

#[tokio::test]
async fn a_client_that_reads_ranges_slowly_does_not_hold_up_other_fills() {
    let (origin, digest, _) = origin().await;
    let other = origin.add_synthetic_blob("app", MIB, SEED + 1);
    let edge = Edge::with(&origin, "[fill]\nmax_concurrent = 1").await;
    let mut slow = http::open(edge.addr(), &blob("app", &digest), &[("Range", "bytes=9-20000000")]).await;
    slow.read(1000).await;
    pull_blob(edge.addr(), "app", &other).await;
}
