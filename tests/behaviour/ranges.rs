//! Parts of blobs, whether the blob is there, on its way or still upstream.

use std::time::Duration;

use tokio::time::timeout;

use crate::support::edge::Edge;
use crate::support::http::{self, Response};
use crate::support::origin::{Fault, Gate, Origin, synthetic_bytes};
use crate::{MIB, assert_body, assert_error, attempt, blob, is_success, len, pull_blob, reached};

const SIZE: u64 = MIB + 123;
const SEED: u64 = 31;

/// A range of a blob of [`SIZE`] bytes, and the first and last byte of the right answer.
const SATISFIABLE: [(&str, u64, u64); 9] = [
    ("bytes=0-0", 0, 0),
    ("bytes=100-4999", 100, 4999),
    ("bytes=0-", 0, SIZE - 1),
    ("bytes=1000000-", 1_000_000, SIZE - 1),
    ("bytes=-1", SIZE - 1, SIZE - 1),
    ("bytes=-70000", SIZE - 70_000, SIZE - 1),
    ("bytes=-99999999", 0, SIZE - 1),
    ("bytes=1000000-99999999", 1_000_000, SIZE - 1),
    ("bytes=0-18446744073709551615", 0, SIZE - 1),
];

const UNSATISFIABLE: [&str; 3] = ["bytes=1048699-", "bytes=99999999-99999999", "bytes=-0"];

/// What RFC 9110 says to ignore.
const MEANINGLESS: [&str; 5] = ["bytes=", "bytes=a-b", "bytes=9-3", "lines=0-1", "0-10"];

async fn ranged(edge: &Edge, path: &str, range: &str) -> Response {
    http::get(edge.addr(), path, &[("Range", range)]).await
}

#[track_caller]
fn assert_part(answer: &Response, first: u64, last: u64, digest: &str, bytes: &[u8]) {
    assert_body(answer, 206, &bytes[len(first)..=len(last)]);
    let expected = format!("bytes {first}-{last}/{}", bytes.len());
    assert_eq!(answer.header("Content-Range"), Some(expected.as_str()));
    assert_eq!(answer.header("Content-Length"), Some((last - first + 1).to_string().as_str()));
    assert_eq!(answer.header("Docker-Content-Digest"), Some(digest));
    assert_eq!(answer.header("ETag"), Some(format!("\"{digest}\"").as_str()));
    assert_eq!(answer.header("Accept-Ranges"), Some("bytes"));
    assert!(answer.header("Cache-Status").is_some());
}

#[track_caller]
fn assert_unsatisfiable(answer: &Response, size: u64) {
    assert_eq!(answer.status, 416, "{}", answer.text());
    assert_eq!(answer.header("Content-Range"), Some(format!("bytes */{size}").as_str()));
    assert_eq!(answer.header("Docker-Distribution-Api-Version"), Some("registry/2.0"));
}

#[tokio::test]
async fn ranges_of_a_cached_blob() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, SEED);
    let bytes = synthetic_bytes(SIZE, SEED);
    let edge = Edge::start(&origin).await;
    let path = blob("app", &digest);
    pull_blob(edge.addr(), "app", &digest).await;
    origin.vanish().await;
    for (range, first, last) in SATISFIABLE {
        assert_part(&ranged(&edge, &path, range).await, first, last, &digest, &bytes);
    }
    for range in UNSATISFIABLE {
        assert_unsatisfiable(&ranged(&edge, &path, range).await, SIZE);
    }
    for range in MEANINGLESS {
        assert_body(&ranged(&edge, &path, range).await, 200, &bytes);
    }
    let head = http::head(edge.addr(), &path, &[("Range", "bytes=0-9")]).await;
    assert_eq!((head.status, head.header("Content-Length")), (200, Some(SIZE.to_string().as_str())));
}

#[tokio::test]
async fn ranges_of_a_small_and_of_an_empty_cached_blob() {
    let origin = Origin::start().await;
    let small = origin.add_blob("app", "0123456789");
    let empty = origin.add_blob("app", "");
    let edge = Edge::start(&origin).await;
    // The first round is cold, the second comes from memory.
    for _ in 0..2 {
        let part = ranged(&edge, &blob("app", &small), "bytes=3-5").await;
        assert_part(&part, 3, 5, &small, b"0123456789");
        let suffix = ranged(&edge, &blob("app", &small), "bytes=-4").await;
        assert_part(&suffix, 6, 9, &small, b"0123456789");
        assert_unsatisfiable(&ranged(&edge, &blob("app", &small), "bytes=10-").await, 10);
        assert_unsatisfiable(&ranged(&edge, &blob("app", &empty), "bytes=0-").await, 0);
        assert_body(&http::get(edge.addr(), &blob("app", &empty), &[]).await, 200, b"");
    }
}

#[tokio::test]
async fn ranges_of_a_cold_blob_fetch_it_once() {
    let origin = Origin::start().await;
    let edge = Edge::start(&origin).await;
    for (seed, (range, first, last)) in (100..).zip(SATISFIABLE) {
        let digest = origin.add_synthetic_blob("app", SIZE, seed);
        let (path, bytes) = (blob("app", &digest), synthetic_bytes(SIZE, seed));
        assert_part(&ranged(&edge, &path, range).await, first, last, &digest, &bytes);
        pull_blob(edge.addr(), "app", &digest).await;
        assert_eq!(origin.bytes_sent(&digest), SIZE, "{range}");
    }
    for (seed, range) in (200..).zip(UNSATISFIABLE) {
        let digest = origin.add_synthetic_blob("app", SIZE, seed);
        assert_unsatisfiable(&ranged(&edge, &blob("app", &digest), range).await, SIZE);
    }
    for (seed, range) in (300..).zip(MEANINGLESS) {
        let digest = origin.add_synthetic_blob("app", SIZE, seed);
        let answer = ranged(&edge, &blob("app", &digest), range).await;
        assert_body(&answer, 200, &synthetic_bytes(SIZE, seed));
    }
}

#[tokio::test]
async fn ranges_of_a_blob_in_flight() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, SEED);
    let bytes = synthetic_bytes(SIZE, SEED);
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(SIZE / 2, &gate));
    let edge = Edge::start(&origin).await;
    let path = blob("app", &digest);
    let mut whole = http::open(edge.addr(), &path, &[]).await;
    let half = SIZE / 2;
    for (range, first, last) in SATISFIABLE {
        if last < half {
            assert_part(&ranged(&edge, &path, range).await, first, last, &digest, &bytes);
        }
    }
    for range in UNSATISFIABLE {
        assert_unsatisfiable(&ranged(&edge, &path, range).await, SIZE);
    }
    // These reach beyond what has arrived.
    let addr = edge.addr();
    let waiting: Vec<_> = SATISFIABLE
        .into_iter()
        .filter(|(_, _, last)| *last >= half)
        .map(|(range, first, last)| {
            let path = path.clone();
            let answer = tokio::spawn(async move { http::get(addr, &path, &[("Range", range)]).await });
            (answer, first, last)
        })
        .collect();
    assert_eq!(whole.read(len(half)).await, &bytes[..len(half)]);
    gate.open();
    for (answer, first, last) in waiting {
        assert_part(&answer.await.unwrap(), first, last, &digest, &bytes);
    }
    assert!(whole.drain().await.complete);
    assert_eq!(origin.bytes_sent(&digest), SIZE);
}

#[tokio::test]
async fn if_range_decides_between_part_and_whole() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, SEED);
    let bytes = synthetic_bytes(SIZE, SEED);
    let edge = Edge::start(&origin).await;
    let etag = format!("\"{digest}\"");
    let weak = format!("W/{etag}");
    for (condition, is_part) in [
        (etag.as_str(), true),
        ("\"sha256:other\"", false),
        (weak.as_str(), false),
        ("Sun, 06 Nov 1994 08:49:37 GMT", false),
    ] {
        let headers = [("Range", "bytes=10-19"), ("If-Range", condition)];
        let got = http::get(edge.addr(), &blob("app", &digest), &headers).await;
        if is_part {
            assert_part(&got, 10, 19, &digest, &bytes);
        } else {
            assert_body(&got, 200, &bytes);
        }
    }
}

#[tokio::test]
async fn several_ranges_are_answered() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, SEED);
    let bytes = synthetic_bytes(SIZE, SEED);
    let edge = Edge::start(&origin).await;
    for _ in 0..2 {
        let got = ranged(&edge, &blob("app", &digest), "bytes=0-9,1000-1009").await;
        match got.header("Content-Type") {
            Some(multipart) if multipart.starts_with("multipart/byteranges") => {
                assert_eq!((got.status, got.complete), (206, true));
                let holds = |part: &[u8]| got.body.windows(part.len()).any(|window| window == part);
                assert!(holds(&bytes[..10]) && holds(&bytes[1000..1010]));
            }
            _ => assert_body(&got, 200, &bytes),
        }
    }
}

/// The answer to a range is not there before the gate opens, and right afterwards.
async fn waits_for(gate: &Gate, edge: &Edge, path: &str, range: &'static str) -> Response {
    let (addr, path) = (edge.addr(), path.to_owned());
    let mut answer = tokio::spawn(async move { http::get(addr, &path, &[("Range", range)]).await });
    // Nothing announces that nothing happens; too short a wait only makes the test milder.
    let early = timeout(Duration::from_millis(300), &mut answer).await;
    assert!(early.is_err(), "{range} was answered early: {early:?}");
    gate.open();
    answer.await.expect("the client does not panic")
}

#[tokio::test]
async fn the_end_of_a_blob_in_flight_waits_for_its_digest() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, SEED);
    let bytes = synthetic_bytes(SIZE, SEED);
    let gate = Gate::new();
    // Everything but the last byte has arrived, the wanted ones among it.
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(SIZE - 1, &gate));
    let edge = Edge::start(&origin).await;
    let path = blob("app", &digest);
    let mut whole = http::open(edge.addr(), &path, &[]).await;
    assert_eq!(whole.read(len(MIB / 2)).await.len(), len(MIB / 2));
    reached(&gate).await;
    let inner = ranged(&edge, &path, "bytes=1048690-1048697").await;
    assert_part(&inner, SIZE - 9, SIZE - 2, &digest, &bytes);
    let answer = waits_for(&gate, &edge, &path, "bytes=1048690-1048698").await;
    assert_part(&answer, SIZE - 9, SIZE - 1, &digest, &bytes);
}

#[tokio::test]
async fn unverified_ranges_can_be_switched_off() {
    for (unverified, toml) in [(true, ""), (false, "[fill]\nunverified_ranges = false")] {
        let origin = Origin::start().await;
        let digest = origin.add_synthetic_blob("app", SIZE, SEED);
        let bytes = synthetic_bytes(SIZE, SEED);
        let gate = Gate::new();
        origin.fault(Fault::on("GET", &digest).times(1).gate_at(SIZE / 2, &gate));
        let edge = Edge::with(&origin, toml).await;
        let path = blob("app", &digest);
        let answer = if unverified {
            ranged(&edge, &path, "bytes=100-199").await
        } else {
            waits_for(&gate, &edge, &path, "bytes=100-199").await
        };
        assert_part(&answer, 100, 199, &digest, &bytes);
        gate.open();

        let corrupt = origin.add_synthetic_blob("app", SIZE, SEED + 1);
        origin.fault(Fault::on("GET", &corrupt).times(1).corrupt_at(SIZE - 1));
        let headers = [("Range", "bytes=100-199")];
        let answer = attempt(edge.addr(), &blob("app", &corrupt), &headers).await;
        assert!(
            unverified || answer.is_none_or(|answer| !is_success(&answer)),
            "an inner range of wrong bytes"
        );
    }
}

#[tokio::test]
async fn a_range_too_far_ahead_is_told_to_come_back() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, SEED);
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_headers(&gate));
    let edge = Edge::with(&origin, "[fill]\nwait_timeout = \"200ms\"").await;
    let path = blob("app", &digest);
    let late = ranged(&edge, &path, "bytes=900000-900009").await;
    assert_error(&late, 503, "UNAVAILABLE");
    assert!(late.header("Retry-After").is_some());
    gate.open();
    pull_blob(edge.addr(), "app", &digest).await;
}
