//! A disk that takes nothing more costs the cache, and no pull.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::edge::{Builder, Edge, UPSTREAM, has_namespaces, until};
use crate::support::http::{self, Transfer};
use crate::support::origin::{Fault, Gate, Origin, sha256, synthetic_bytes};
use crate::{
    MIB, assert_body, attempt, blob, is_cached_again, is_success, len, pull_blob, reached, readiness,
};

/// More than fits on the file system of [`small`].
const LARGE: u64 = 40 * MIB + 4711;
const SEED: u64 = 91;

fn on(origin: &Origin, options: &str) -> Builder {
    let builder = Edge::builder().upstream(UPSTREAM, &origin.url(), "").file_system(options);
    builder.toml("[store.disk]\ncapacity = \"100%\"\nreserve = \"0\"")
}

/// An edge on a file system of 16 MiB, and a blob that does not fit there.
async fn small(toml: &str) -> (Origin, String, Edge) {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", LARGE, SEED);
    let edge = on(&origin, "size=16m").toml(toml).start().await;
    (origin, digest, edge)
}

async fn passed(edge: &Edge, reason: &str) -> u64 {
    edge.metric(&format!("clawhub_edge_fills_passed_through_total{{reason=\"{reason}\"}}")).await
}

/// The rest of a transfer, of which `first` was read before.
async fn digest_of(mut transfer: Transfer, first: Vec<u8>) -> (bool, String) {
    let mut bytes = first;
    bytes.append(&mut transfer.read_to_end().await);
    (transfer.complete(), sha256(&bytes))
}

/// An edge on a file system of twice the size of a blob, of which 5 MiB come before the gate opens.
async fn halted(size: u64) -> (Origin, String, Edge, Gate) {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", size, SEED);
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(5 * MIB, &gate));
    let edge = on(&origin, &format!("size={}", 2 * size)).start().await;
    (origin, digest, edge, gate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_up_on_the_way_is_noticed_by_nobody() {
    // More than what the file system sets aside for it at once.
    const SIZE: u64 = 40 * MIB;
    if !has_namespaces() {
        return;
    }
    let (origin, digest, edge, gate) = halted(SIZE).await;
    let path = blob("app", &digest);
    let mut quick = http::open(edge.addr(), &path, &[]).await;
    let mut slow = http::open(edge.addr(), &path, &[]).await;
    let (first, little) = (quick.read(len(4 * MIB)).await, slow.read(1000).await);
    let filler = edge.fill_disk();
    gate.open();
    let quick = tokio::spawn(digest_of(quick, first));
    let slow = tokio::spawn(async move {
        let mut bytes = little;
        while !slow.complete() {
            let part = slow.read(100_000).await;
            if part.is_empty() {
                break;
            }
            bytes.extend(part);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        (slow.complete(), sha256(&bytes))
    });
    assert_eq!(quick.await.unwrap(), (true, digest.clone()));
    assert_eq!(slow.await.unwrap(), (true, digest.clone()));
    assert_eq!((origin.bytes_sent(&digest), origin.count("GET", &digest)), (SIZE, 1), "1.00 times");
    assert_eq!(passed(&edge, "disk").await + passed(&edge, "no_room").await, 1);
    assert!(!edge.has_blob(&digest));
    until("nothing is left of it", async || edge.partials().is_empty()).await;
    // The disk comes back.
    fs::remove_file(filler).unwrap();
    is_cached_again(&edge, &digest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fill_has_its_space_although_others_fill_the_disk() {
    if !has_namespaces() {
        return;
    }
    let (_origin, digest, edge, gate) = halted(20 * MIB).await;
    let mut client = http::open(edge.addr(), &blob("app", &digest), &[]).await;
    let first = client.read(len(4 * MIB)).await;
    edge.fill_disk();
    gate.open();
    assert_eq!(digest_of(client, first).await, (true, digest.clone()));
    until("it is cached", async || edge.has_blob(&digest)).await;
    assert_eq!(passed(&edge, "disk").await + passed(&edge, "no_room").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_blob_that_does_not_fit_share_one_fetch_and_who_is_late_has_his_own() {
    if !has_namespaces() {
        return;
    }
    let (origin, digest, edge) = small("").await;
    let start = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(MIB, &start));
    let (addr, path) = (edge.addr(), blob("app", &digest));
    let mut opened = Vec::new();
    for _ in 0..8 {
        let transfer = http::open(addr, &path, &[]).await;
        assert_eq!(transfer.status, 200);
        assert_eq!(transfer.header("Content-Length"), Some(LARGE.to_string().as_str()));
        opened.push(transfer);
    }
    start.open();
    let mut clients = JoinSet::new();
    // The last one stays in the middle until a late one has come.
    let mut holding = opened.pop().unwrap();
    for transfer in opened {
        clients.spawn(digest_of(transfer, Vec::new()));
    }
    let held = holding.read(len(8 * MIB)).await;
    let mut late = http::open(addr, &path, &[]).await;
    assert_eq!(late.status, 200);
    clients.spawn(digest_of(holding, held));
    while let Some(client) = clients.join_next().await {
        assert_eq!(client.unwrap(), (true, digest.clone()));
    }
    assert_eq!(late.digest().await.0, digest);
    assert!(late.complete());
    assert_eq!(origin.count("GET", &digest), 2, "one for eight, one for the late one");
    assert_eq!(origin.bytes_sent(&digest), 2 * LARGE);
    assert_eq!(edge.metric("clawhub_edge_refetches_total").await, 1);
    assert_eq!(passed(&edge, "no_room").await, 1);
    assert!(edge.rss_anon() < 64 * MIB, "{} bytes", edge.rss_anon());
    assert!(edge.partials().is_empty() && edge.blobs().is_empty());
    until("the flight has ended", async || edge.metric("clawhub_edge_flights").await == 0).await;
}

#[tokio::test]
async fn ranges_of_a_blob_that_does_not_fit_are_fetched_for_themselves() {
    if !has_namespaces() {
        return;
    }
    let (origin, digest, edge) = small("").await;
    let (bytes, path) = (synthetic_bytes(LARGE, SEED), blob("app", &digest));
    let inner = http::get(edge.addr(), &path, &[("Range", "bytes=20000000-29999999")]).await;
    assert_body(&inner, 206, &bytes[20_000_000..30_000_000]);
    assert_eq!(origin.bytes_sent(&digest), 10_000_000, "and nothing else");
    let tail = http::get(edge.addr(), &path, &[("Range", "bytes=-5000000")]).await;
    assert_body(&tail, 206, &bytes[len(LARGE) - 5_000_000..]);
    assert_eq!(origin.bytes_sent(&digest), 10_000_000 + LARGE, "all of it proves the end");
    let several = http::get(edge.addr(), &path, &[("Range", "bytes=9-19,50-59,-10")]).await;
    assert_eq!((several.status, several.complete), (206, true));
}

#[tokio::test]
async fn ranges_that_are_verified_first_are_held_in_memory_or_refused() {
    if !has_namespaces() {
        return;
    }
    let (origin, digest, edge) = small("[fill]\nunverified_ranges = false").await;
    let (bytes, path) = (synthetic_bytes(LARGE, SEED), blob("app", &digest));
    let part = http::get(edge.addr(), &path, &[("Range", "bytes=1000-999999")]).await;
    assert_body(&part, 206, &bytes[1000..1_000_000]);
    let large = http::get(edge.addr(), &path, &[("Range", "bytes=1000-9999999")]).await;
    assert_eq!(large.status, 503, "{}", large.text());
    origin.fault(Fault::on("GET", &digest).corrupt_at(LARGE - 1));
    let wrong = attempt(edge.addr(), &path, &[("Range", "bytes=1000-999999")]).await;
    assert!(!wrong.as_ref().is_some_and(is_success), "{wrong:?}");
}

#[tokio::test]
async fn a_wrong_byte_that_passes_through_is_never_a_success() {
    if !has_namespaces() {
        return;
    }
    let (origin, digest, edge) = small("").await;
    let path = blob("app", &digest);
    for offset in [0, LARGE / 2, LARGE - 1] {
        origin.clear_faults();
        origin.fault(Fault::on("GET", &digest).corrupt_at(offset));
        for headers in [vec![], vec![("Range", "bytes=100-")]] {
            let got = attempt(edge.addr(), &path, &headers).await;
            assert!(!got.as_ref().is_some_and(is_success), "byte {offset}, {headers:?}");
        }
    }
    origin.clear_faults();
    // Without a size, too.
    origin.fault(Fault::on("GET", &digest).chunked().corrupt_at(LARGE / 2));
    let got = attempt(edge.addr(), &path, &[]).await;
    assert!(!got.as_ref().is_some_and(is_success));
    origin.clear_faults();
    pull_blob(edge.addr(), "app", &digest).await;
}

#[tokio::test]
async fn a_passage_without_a_size_and_with_a_broken_transfer_is_whole() {
    if !has_namespaces() {
        return;
    }
    let (origin, digest, edge) = small("").await;
    origin.fault(Fault::on("GET", &digest).times(1).reset_at(30 * MIB));
    pull_blob(edge.addr(), "app", &digest).await;
    assert_eq!(origin.bytes_sent(&digest), LARGE, "it was resumed");
    origin.fault(Fault::on("*", &digest).chunked());
    pull_blob(edge.addr(), "app", &digest).await;
    assert!(!edge.has_blob(&digest));
}

/// GET as HTTP/1.0 speaks it: the head, and everything up to the end of the connection.
async fn get_as_of_old(addr: SocketAddr, path: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut answer).await;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    let body = answer.split_off(end);
    (String::from_utf8(answer).unwrap().to_lowercase(), body)
}

#[tokio::test]
async fn a_client_of_http_1_0_can_tell_whether_what_passed_through_is_whole() {
    if !has_namespaces() {
        return;
    }
    let (origin, digest, edge) = small("").await;
    let path = blob("app", &digest);
    let length = format!("content-length: {LARGE}\r\n");
    for fault in [Fault::on("*", "nothing"), Fault::on("*", &digest).chunked()] {
        origin.clear_faults();
        origin.fault(fault);
        let (head, body) = get_as_of_old(edge.addr(), &path).await;
        assert!(head.contains(" 200 ok\r\n") && head.contains(&length), "{head}");
        assert_eq!((body.len() as u64, sha256(&body)), (LARGE, digest.clone()));
    }
    origin.clear_faults();
    origin.fault(Fault::on("GET", &digest).corrupt_at(LARGE / 2));
    let (head, body) = get_as_of_old(edge.addr(), &path).await;
    assert!(
        !head.contains(" 200 ok\r\n") || (head.contains(&length) && (body.len() as u64) < LARGE),
        "{head}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stands_still_while_others_wait_is_broken_off_and_can_come_back_for_the_rest() {
    if !has_namespaces() {
        return;
    }
    let (origin, digest, edge) = small("").await;
    let start = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(MIB, &start));
    let path = blob("app", &digest);
    let mut still = http::open(edge.addr(), &path, &[]).await;
    let quick = http::open(edge.addr(), &path, &[]).await;
    start.open();
    // The patience of the edge is what this takes.
    assert_eq!(digest_of(quick, Vec::new()).await, (true, digest.clone()));
    let bytes = still.read_to_end().await;
    assert!(!still.complete() && (bytes.len() as u64) < LARGE, "{} bytes", bytes.len());
    let rest = format!("bytes={}-", bytes.len());
    let rest = http::get(edge.addr(), &path, &[("Range", &rest)]).await;
    assert_eq!((rest.status, rest.complete), (206, true));
    assert_eq!(sha256(&[bytes, rest.body].concat()), digest);
}

#[tokio::test]
async fn cache_status_does_not_say_stored_of_what_is_not_kept() {
    if !has_namespaces() {
        return;
    }
    let (origin, digest, edge) = small("").await;
    let fits = origin.add_synthetic_blob("app", MIB, SEED);
    for (digest, of_head, of_get) in [
        (digest, "clawhub-edge; fwd=uri-miss", "clawhub-edge; fwd=uri-miss"),
        (fits, "clawhub-edge; fwd=uri-miss", "clawhub-edge; fwd=uri-miss; stored"),
    ] {
        let path = blob("app", &digest);
        let head = http::head(edge.addr(), &path, &[]).await;
        assert_eq!(head.header("Cache-Status"), Some(of_head));
        let got = http::get(edge.addr(), &path, &[]).await;
        assert_eq!((got.complete, got.header("Cache-Status")), (true, Some(of_get)));
    }
}

#[tokio::test]
async fn a_passage_without_clients_ends_at_once() {
    if !has_namespaces() {
        return;
    }
    let (origin, digest, edge) = small("[fill]\nabandon_grace = \"1m\"").await;
    let mut only = http::open(edge.addr(), &blob("app", &digest), &[]).await;
    only.read(len(MIB)).await;
    drop(only);
    until("the edge has let go of the origin", async || origin.connections_open() == 0).await;
    until("the flight has ended", async || edge.metric("clawhub_edge_flights").await == 0).await;
    assert!(origin.bytes_sent(&digest) < LARGE);
}

#[tokio::test]
async fn a_directory_that_is_deleted_under_the_edge_fails_no_pull() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", 3 * MIB, SEED);
    let gate = Gate::new();
    let edge = Edge::start(&origin).await;
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(2 * MIB, &gate));
    let (addr, path) = (edge.addr(), blob("app", &digest));
    let flying = tokio::spawn(async move { digest_of(http::open(addr, &path, &[]).await, Vec::new()).await });
    reached(&gate).await;
    until("the directory is gone", async || fs::remove_dir_all(edge.cache()).is_ok()).await;
    gate.open();
    assert_eq!(flying.await.unwrap(), (true, digest.clone()));
    pull_blob(edge.addr(), "app", &digest).await;
    is_cached_again(&edge, &digest).await;
}

#[tokio::test]
async fn a_directory_that_becomes_read_only_fails_no_pull() {
    if !has_namespaces() {
        return;
    }
    let origin = Origin::start().await;
    let image = origin.add_image("app", "1", vec!["layer".into()]);
    let digest = origin.add_synthetic_blob("app", 3 * MIB, SEED);
    let edge = on(&origin, "size=40m").start().await;
    // A file system with open files cannot be made read-only; one that is mounted over it is from the start.
    edge.run_inside("mount -t tmpfs -o ro none \"$1/partial\"").await;
    pull_blob(edge.addr(), "app", &digest).await;
    crate::pull(&edge, "app", "1", &image).await;
    assert_eq!(passed(&edge, "disk").await, 3, "the blob, the config and the layer");
    assert!(edge.blobs().is_empty());
    let degraded = readiness(&edge).await;
    assert!(degraded.starts_with("degraded: ") && degraded.contains("Read-only file system"), "{degraded}");
    assert!(edge.metrics().await.lines().any(|line| is_health(line, 0)));
    edge.run_inside("umount \"$1/partial\"").await;
    is_cached_again(&edge, &digest).await;
    assert_eq!(readiness(&edge).await, "ok\n");
    assert!(edge.metrics().await.lines().any(|line| is_health(line, 1)));
}

/// Whether this line of the metrics says that a disk is healthy, or not.
fn is_health(line: &str, value: u8) -> bool {
    line.starts_with("clawhub_edge_store_disk_healthy{") && line.ends_with(&format!("}} {value}"))
}

#[tokio::test]
async fn a_file_system_without_inodes_fails_no_pull() {
    if !has_namespaces() {
        return;
    }
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", 3 * MIB, SEED);
    let edge = on(&origin, "size=40m,nr_inodes=800").start().await;
    let spare = edge.cache().join("spare");
    fs::create_dir(&spare).unwrap();
    let mut count = 0;
    while fs::write(spare.join(count.to_string()), b"").is_ok() {
        count += 1;
    }
    pull_blob(edge.addr(), "app", &digest).await;
    assert!(!edge.has_blob(&digest));
    fs::remove_dir_all(spare).unwrap();
    is_cached_again(&edge, &digest).await;
}

#[tokio::test]
async fn a_blob_that_cannot_be_moved_to_its_place_is_whole_for_those_who_follow() {
    if !has_namespaces() {
        return;
    }
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", 3 * MIB, SEED);
    let edge = on(&origin, "size=40m").start().await;
    // Another file system: nothing can be moved there.
    edge.run_inside("mount -t tmpfs none \"$1/blobs\"").await;
    pull_blob(edge.addr(), "app", &digest).await;
    assert_eq!(passed(&edge, "disk").await, 1);
    assert!(!edge.has_blob(&digest));
    edge.run_inside("umount \"$1/blobs\"").await;
    is_cached_again(&edge, &digest).await;
}

#[tokio::test]
async fn what_is_known_of_an_image_is_written_down_again_once_the_disk_takes_it() {
    if !has_namespaces() {
        return;
    }
    let origin = Origin::start().await;
    let during = origin.add_image("app", "during", vec!["a layer".into()]);
    let after = origin.add_image("app", "after", vec!["another layer".into()]);
    let mut edge = on(&origin, "size=40m").start().await;
    let filler = edge.fill_disk();
    crate::pull(&edge, "app", "during", &during).await;
    fs::remove_file(filler).unwrap();
    until("the disk is in use again", async || readiness(&edge).await == "ok\n").await;
    crate::pull(&edge, "app", "after", &after).await;
    edge.restart().await;
    origin.vanish().await;
    crate::pull(&edge, "app", "after", &after).await;
}
