//! Blobs: resumed at the exact byte, and never anything but the blob.

use std::time::Duration;

use clawhub_edge::oci::ByteRange;
use clawhub_edge::upstream::{FetchConfig, Purpose};
use tokio::time::{Instant, timeout};

use super::origin::{Fault, Gate, Origin, synthetic_bytes};
use super::{Edge, REPOSITORY, quick, rest};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 3 * MIB + 17;

async fn origin() -> (Origin, String) {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob(REPOSITORY, SIZE, 1);
    (origin, digest)
}

fn blob() -> Vec<u8> {
    synthetic_bytes(SIZE, 1)
}

type Bend<'a> = &'a dyn Fn(Fault) -> Fault;

/// The first bytes of the ranges that were asked for, in order; a request without one counts as 0.
fn asked(origin: &Origin, digest: &str) -> Vec<u64> {
    let first = |range: String| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
    let requests = origin.requests().into_iter().filter(|request| request.path.contains(digest));
    requests.map(|request| request.range.map_or(0, first)).collect()
}

#[tokio::test]
async fn a_blob_arrives_whole_and_its_size_is_known_at_once() {
    let (origin, digest) = origin().await;
    let edge = Edge::of(&[origin.url()]);
    let mut download = edge.download(&digest, 0).await.unwrap();
    assert_eq!(download.size(), Some(SIZE));
    assert!(rest(&mut download).await.unwrap() == blob());
    assert_eq!(download.next().await.unwrap(), None, "the end stays the end");
    assert_eq!(edge.counted("upstream_received_bytes_total", "x.example"), SIZE);
    let request = &origin.requests()[0];
    assert_eq!(request.header("accept-encoding"), Some("identity"));
    assert!(request.header("user-agent").unwrap().starts_with("clawhub-edge/"));
}

#[tokio::test]
async fn a_broken_transfer_is_resumed_at_the_exact_byte() {
    type Break = fn(Fault, u64) -> Fault;
    let breaks: [(&str, Break); 3] =
        [("cut", Fault::cut_at), ("reset", Fault::reset_at), ("stall", Fault::stall_at)];
    for (name, fault) in breaks {
        let (origin, digest) = origin().await;
        origin.fault(fault(Fault::on("GET", &digest).times(1), MIB + 5));
        origin.fault(fault(Fault::on("GET", &digest).times(1), MIB));
        let edge = Edge::of(&[origin.url()]);
        assert!(edge.fetch(&digest, 0).await.unwrap() == blob(), "{name}");
        assert_eq!(asked(&origin, &digest), [0, MIB + 5, 2 * MIB + 5], "{name}");
        assert_eq!(edge.counted("upstream_resumes_total", ""), 2, "{name}");
    }
}

#[tokio::test]
async fn a_download_can_begin_in_the_middle() {
    let (origin, digest) = origin().await;
    let edge = Edge::of(&[origin.url()]);
    let mut download = edge.download(&digest, MIB).await.unwrap();
    assert_eq!((download.size(), download.offset()), (Some(SIZE), MIB));
    assert!(rest(&mut download).await.unwrap() == blob()[1 << 20..]);
    assert_eq!(edge.fetch(&digest, SIZE).await.unwrap(), b"", "nothing is left after the last byte");
    assert_eq!(edge.fetch(&digest, SIZE + 1).await.unwrap_err().kind(), "corrupt");
}

#[tokio::test]
async fn where_ranges_are_ignored_no_byte_comes_twice() {
    let (origin, digest) = origin().await;
    origin.fault(Fault::on("GET", &digest).times(1).cut_at(MIB + 1));
    origin.fault(Fault::on("GET", &digest).ignore_range());
    let edge = Edge::of(&[origin.url()]);
    assert!(edge.fetch(&digest, 0).await.unwrap() == blob());
    assert!(edge.fetch(&digest, 7).await.unwrap() == blob()[7..]);
}

#[tokio::test]
async fn a_blob_of_unknown_length_ends_with_its_last_chunk_and_no_sooner() {
    let (origin, digest) = origin().await;
    origin.fault(Fault::on("GET", &digest).times(1).chunked().cut_at(MIB));
    origin.fault(Fault::on("GET", &digest).chunked());
    let edge = Edge::of(&[origin.url()]);
    let mut download = edge.download(&digest, 0).await.unwrap();
    assert_eq!(download.size(), None);
    assert!(rest(&mut download).await.unwrap() == blob());
    assert_eq!(download.size(), Some(SIZE));
    assert_eq!(asked(&origin, &digest), [0, MIB]);
}

#[tokio::test]
async fn a_download_survives_an_origin_that_vanishes_for_a_while() {
    let (origin, digest) = origin().await;
    let half = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(MIB, &half));
    let edge = Edge::of(&[origin.url()]);
    let mut download = edge.download(&digest, 0).await.unwrap();
    let reading = tokio::spawn(async move { rest(&mut download).await });
    half.reached().await;
    origin.vanish().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    origin.come_back().await;
    assert!(reading.await.unwrap().unwrap() == blob());
    assert!(origin.bytes_sent(&digest) <= SIZE + MIB / 2, "{}", origin.bytes_sent(&digest));
}

#[tokio::test]
async fn without_any_new_byte_a_download_gives_up_with_the_last_error() {
    let (origin, digest) = origin().await;
    origin.fault(Fault::on("GET", &digest).times(1).cut_at(MIB));
    origin.fault(Fault::on("GET", &digest).respond(503, &[], "overloaded"));
    let edge = Edge::of(&[origin.url()]);
    let mut download = edge.download(&digest, 0).await.unwrap();
    let began = Instant::now();
    let error = rest(&mut download).await.unwrap_err();
    assert_eq!(error.kind(), "unreachable", "{error}");
    assert!(error.to_string().contains("503"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(download.next().await.unwrap_err().kind(), "unreachable", "the error stays");
    assert!(origin.count("GET", &digest) < 40, "retries keep their distance");
}

#[tokio::test]
async fn an_answer_that_a_resumed_download_has_no_time_for_is_not_held_against_the_endpoint() {
    let (origin, digest) = origin().await;
    origin.fault(Fault::on("GET", &digest).times(1).reset_at(MIB));
    origin.fault(Fault::on("GET", &digest).times(1).delay_headers(Duration::from_millis(500)));
    let text = format!("[upstreams.\"x.example\"]\nurl = \"{}\"\n", origin.url());
    let edge = Edge::configured(&text, FetchConfig { give_up_after: Duration::from_millis(200), ..quick() });
    let mut download = edge.download(&digest, 0).await.unwrap();
    let began = Instant::now();
    let error = rest(&mut download).await.unwrap_err();
    assert!(error.to_string().contains(&format!("broke at byte {MIB}")), "{error}");
    assert!(began.elapsed() < Duration::from_millis(450), "{:?}", began.elapsed());
    assert!(edge.fetch(&digest, 0).await.unwrap() == blob());
}

#[tokio::test]
async fn a_broken_transfer_goes_on_at_the_next_endpoint() {
    let ((first, digest), (second, _)) = (origin().await, origin().await);
    first.fault(Fault::on("GET", &digest).times(1).reset_at(MIB));
    first.fault(Fault::on("GET", &digest).respond(502, &[], ""));
    let edge = Edge::of(&[first.url(), second.url()]);
    assert!(edge.fetch(&digest, 0).await.unwrap() == blob());
    assert_eq!(asked(&second, &digest), [MIB]);
}

#[tokio::test]
async fn what_is_no_blob_is_refused_by_its_head_and_the_next_endpoint_asked() {
    let other = format!("sha256:{}", "0".repeat(64));
    let html =
        |fault: Fault| fault.respond(200, &[("Content-Type", "text/html")], "<html>please log in</html>");
    let json = |fault: Fault| fault.respond(200, &[("Content-Type", "application/json")], "{\"errors\":[]}");
    let cases: [(&str, Bend<'_>, &str); 4] = [
        ("a page", &html, "not_a_registry"),
        ("an error document", &json, "not_a_registry"),
        ("another digest", &|fault| fault.wrong_digest_header(&other), "corrupt"),
        ("an encoding", &|fault| fault.header("Content-Encoding", "gzip"), "not_a_registry"),
    ];
    for (name, fault, kind) in cases {
        let ((first, digest), (second, _)) = (origin().await, origin().await);
        first.fault(fault(Fault::on("*", &digest)));
        let alone = Edge::of(&[first.url()]);
        let error = alone.fetch(&digest, 0).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert_eq!(first.count("GET", &digest), 1, "{name}: asking again does not help");
        let head = alone.client.head_blob(&alone.route(), &super::parsed(&digest), Purpose::Pull).await;
        assert_eq!(head.unwrap_err().kind(), kind, "{name}");
        let edge = Edge::of(&[first.url(), second.url()]);
        assert!(edge.fetch(&digest, 0).await.unwrap() == blob(), "{name}");
    }
}

#[tokio::test]
async fn a_source_that_contradicts_what_came_before_is_not_asked_again() {
    type Lie = fn(Fault) -> Fault;
    let lies: [(&str, Lie); 4] = [
        ("a shorter blob", |fault| fault.truncate_to(2 * MIB)),
        ("a longer blob", |fault| fault.extend_by(9)),
        ("a longer blob without a length", |fault| fault.extend_by(9).chunked().ignore_range()),
        ("another range", |fault| fault.header("Content-Range", &format!("bytes 0-{}/{SIZE}", SIZE - 1))),
    ];
    for (name, lie) in lies {
        let ((first, digest), (second, _)) = (origin().await, origin().await);
        first.fault(Fault::on("GET", &digest).times(1).reset_at(MIB));
        first.fault(lie(Fault::on("GET", &digest)));
        let edge = Edge::of(&[first.url(), second.url()]);
        assert!(edge.fetch(&digest, 0).await.unwrap() == blob(), "{name}");
        assert_eq!(first.count("GET", &digest), 2, "{name}");

        first.clear_faults();
        first.fault(Fault::on("GET", &digest).times(1).reset_at(MIB));
        first.fault(lie(Fault::on("GET", &digest)));
        let alone = Edge::of(&[first.url()]);
        assert_eq!(alone.fetch(&digest, 0).await.unwrap_err().kind(), "corrupt", "{name}");
    }
}

#[tokio::test]
async fn a_cancelled_wait_loses_no_byte() {
    let (origin, digest) = origin().await;
    origin.fault(Fault::on("GET", &digest).times(1).throttle(4 * MIB).reset_at(MIB));
    origin.fault(
        Fault::on("GET", &digest).times(1).delay_headers(Duration::from_millis(100)).throttle(8 * MIB),
    );
    let edge = Edge::of(&[origin.url()]);
    let mut download = edge.download(&digest, 0).await.unwrap();
    let (mut bytes, mut cancelled) = (Vec::new(), 0);
    loop {
        match timeout(Duration::from_micros(300), download.next()).await {
            Ok(Ok(Some(frame))) => bytes.extend_from_slice(&frame),
            Ok(Ok(None)) => break,
            Ok(Err(error)) => panic!("{error}"),
            Err(_) => cancelled += 1,
        }
    }
    assert!(bytes == blob());
    assert!(cancelled > 10, "{cancelled}");
}

#[tokio::test]
async fn a_slow_reader_is_no_stall() {
    let (origin, digest) = origin().await;
    let edge = Edge::of(&[origin.url()]);
    let mut download = edge.download(&digest, 0).await.unwrap();
    let first = download.next().await.unwrap().unwrap().len();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(rest(&mut download).await.unwrap().len() + first, blob().len());
    assert_eq!(origin.count("GET", &digest), 1);
}

#[tokio::test]
async fn downloads_from_one_endpoint_wait_for_their_turn() {
    let (origin, digest) = origin().await;
    let text = format!("[upstreams.\"x.example\"]\nurl = \"{}\"\n", origin.url());
    let fetch =
        FetchConfig { max_downloads_per_endpoint: 1, give_up_after: Duration::from_millis(300), ..quick() };
    let edge = Edge::configured(&text, fetch);
    let first = edge.download(&digest, 0).await.unwrap();
    let error = edge.download(&digest, 0).await.unwrap_err();
    assert!(error.to_string().contains("too many downloads"), "{error}");
    drop(first);
    assert!(edge.download(&digest, 0).await.is_ok());
}

#[tokio::test]
async fn a_part_is_asked_for_as_a_part_and_ends_where_it_was_to_end() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob(REPOSITORY, 1000, 9);
    let edge = Edge::of(&[origin.url()]);
    let part = async |start, end| {
        let digest = super::parsed(&digest);
        let mut download =
            edge.client.download(&edge.route(), &digest, ByteRange::new(start, end), None).await.unwrap();
        (download.size(), download.ignores_range(), rest(&mut download).await.unwrap())
    };
    let bytes = synthetic_bytes(1000, 9);
    assert_eq!(part(100, 200).await, (Some(1000), false, bytes[100..200].to_vec()));
    assert_eq!(part(900, 5000).await, (Some(1000), false, bytes[900..].to_vec()), "the end is clamped");
    origin.fault(Fault::on("GET", &digest).ignore_range());
    assert_eq!(part(100, 200).await, (Some(1000), true, bytes[100..200].to_vec()), "from a whole answer");
}

#[tokio::test]
async fn a_registry_that_closes_every_connection_and_names_no_length_gives_everything() {
    let (origin, digest) = origin().await;
    origin.add_image(REPOSITORY, "latest", vec![]);
    origin.fault(Fault::on("GET", &digest).times(1).close_after().chunked().reset_at(MIB));
    origin.fault(Fault::on("*", "").close_after().chunked());
    let edge = Edge::of(&[origin.url()]);
    edge.manifest("latest").await.unwrap();
    edge.head("latest").await.unwrap();
    assert!(edge.fetch(&digest, 0).await.unwrap() == blob());
    assert_eq!(asked(&origin, &digest), [0, MIB]);
    assert_eq!(origin.connections_accepted(), origin.count("*", ""), "one request each");
}

/// Redirects to `storage` with a signature.
fn signed(storage: &Origin, digest: &str, signature: &str) -> Fault {
    let location = format!("{}/v2/{REPOSITORY}/blobs/{digest}?signature={signature}", storage.url());
    Fault::on("GET", digest).respond(307, &[("Location", &location)], "")
}

#[tokio::test]
async fn a_signature_that_expires_in_the_middle_is_asked_for_anew() {
    let ((origin, digest), (storage, _)) = (origin().await, origin().await);
    origin.require_basic("robot", "word");
    origin.fault(signed(&storage, &digest, "old").times(1));
    origin.fault(signed(&storage, &digest, "late").times(1));
    origin.fault(signed(&storage, &digest, "new"));
    storage.fault(Fault::on("GET", "signature=old").times(1).reset_at(MIB));
    storage.fault(Fault::on("GET", "signature=old").respond(403, &[], "<Error>Request has expired</Error>"));
    storage.fault(Fault::on("GET", "signature=late").respond(403, &[], "<Error>Request has expired</Error>"));
    let lines = format!("url = \"{}\"\nusername = \"robot\"\npassword = \"word\"", origin.url());
    let edge = Edge::with(&lines);
    assert!(edge.fetch(&digest, 0).await.unwrap() == blob());
    assert_eq!(asked(&storage, &digest), [0, MIB, MIB], "with the range, at every storage");
    assert_eq!(storage.bytes_sent("signature=new"), SIZE - MIB);
    assert_eq!(storage.count("GET", "signature=old"), 1, "an old signature is never tried again");
    let given = origin.requests().into_iter().filter(|request| request.status == 307);
    assert!(given.into_iter().all(|request| request.header("authorization").is_some()));
    for request in storage.requests() {
        for header in ["authorization", "via", "cookie", "proxy-authorization"] {
            assert_eq!(request.header(header), None, "{request:?}");
        }
    }
}

#[tokio::test]
async fn a_chain_of_redirects_keeps_the_range_and_drops_the_credential_for_good() {
    let ((origin, digest), (middle, _), (storage, _)) = (origin().await, origin().await, origin().await);
    origin.require_basic("robot", "word");
    let back = format!("{}/v2/{REPOSITORY}/blobs/{digest}?back=1", origin.url());
    // Away and home again: whoever has led away could lead anywhere, so nothing goes along.
    origin.fault(Fault::on("GET", "back=1").before_auth().redirect_to(&storage.url()));
    origin.fault(Fault::on("GET", &digest).redirect_to(&middle.url()));
    middle.fault(Fault::on("GET", &digest).respond(302, &[("Location", &back)], ""));
    let lines = format!("url = \"{}\"\nusername = \"robot\"\npassword = \"word\"", origin.url());
    assert!(Edge::with(&lines).fetch(&digest, MIB).await.unwrap() == blob()[1 << 20..]);
    assert_eq!(asked(&storage, &digest), [MIB]);
    let home = origin.requests().into_iter().find(|request| request.query.contains("back=1")).unwrap();
    assert_eq!(home.header("authorization"), None);
    assert_eq!(home.range.as_deref(), Some(format!("bytes={MIB}-").as_str()));
    for request in storage.requests().iter().chain(&middle.requests()) {
        assert_eq!((request.header("authorization"), request.header("via")), (None, None), "{request:?}");
    }
}

#[tokio::test]
async fn a_pool_that_is_replaced_leaves_the_transfers_on_it_alone() {
    let (origin, digest) = origin().await;
    origin.add_image(REPOSITORY, "latest", vec![]);
    let half = Gate::new();
    origin.fault(Fault::on("GET", &digest).gate_at(MIB, &half));
    let fetch = FetchConfig { connection_max_age: Duration::from_millis(20), ..quick() };
    let edge = Edge::configured(&format!("[upstreams.\"x.example\"]\nurl = \"{}\"\n", origin.url()), fetch);
    let mut download = edge.download(&digest, 0).await.unwrap();
    let received = tokio::spawn(async move { rest(&mut download).await });
    half.reached().await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(30)).await;
        edge.manifest("latest").await.unwrap();
    }
    assert_eq!(origin.connections_accepted(), 4, "each from a new pool");
    half.open();
    assert!(received.await.unwrap().unwrap() == blob());
    assert_eq!(origin.count("GET", &digest), 1);
}
