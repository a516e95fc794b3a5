//! A wrong byte never ends as a success, and never stays.

use serde_json::json;

use crate::support::edge::{Edge, until};
use crate::support::http;
use crate::support::origin::{Fault, Gate, OCI_INDEX, OCI_MANIFEST, Origin, sha256};
use crate::{KIB, MIB, assert_body, assert_error, attempt, blob, is_success, manifest, pull_blob};

const HTML: &str = "<!DOCTYPE html><html><body>Please log in to the hotel's network</body></html>";

/// Breaks every transfer of a blob in one way. Gets the blob's size.
type Bend = fn(Fault, u64) -> Fault;

/// The same for a manifest.
type ManifestBend = fn(Fault) -> Fault;

const BLOB_BENDS: [(&str, Bend); 17] = [
    ("first byte wrong", |fault, _| fault.corrupt_at(0)),
    ("middle wrong", |fault, size| fault.corrupt_at(size / 2)),
    ("last byte wrong", |fault, size| fault.corrupt_at(size - 1)),
    ("nothing", |fault, _| fault.truncate_to(0)),
    ("half", |fault, size| fault.truncate_to(size / 2)),
    ("all but one byte", |fault, size| fault.truncate_to(size - 1)),
    ("one byte too many", |fault, _| fault.extend_by(1)),
    ("much too long", |fault, _| fault.extend_by(200 * KIB)),
    ("wrong and without length", |fault, size| fault.corrupt_at(size / 2).chunked()),
    ("too short and without length", |fault, size| fault.truncate_to(size / 2).chunked()),
    ("nothing and without length", |fault, _| fault.truncate_to(0).chunked()),
    ("too long and without length", |fault, _| fault.extend_by(100 * KIB).chunked()),
    ("another digest claimed", |fault, _| {
        fault.wrong_digest_header("sha256:4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a")
    }),
    ("a page", |fault, _| fault.respond(200, &[("Content-Type", "text/html; charset=utf-8")], HTML)),
    ("a page that says it is none", |fault, _| {
        fault.respond(200, &[("Content-Type", "application/octet-stream")], HTML)
    }),
    ("a page of no type", |fault, _| fault.respond(200, &[], HTML)),
    ("encoded", |fault, _| fault.header("Content-Encoding", "gzip")),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wrong_blob_ever_ends_as_a_success_or_stays() {
    let origin = Origin::start().await;
    let edge = Edge::start(&origin).await;
    let mut failures = Vec::new();
    for (seed, (what, bend)) in (500..).zip(BLOB_BENDS) {
        for size in [10 * KIB, MIB + 5] {
            let digest = origin.add_synthetic_blob("app", size, seed);
            let path = blob("app", &digest);
            origin.fault(bend(Fault::on("GET", &digest), size));
            // Everybody at once, whoever starts the fetch, and then each alone.
            let suffix = [("Range", "bytes=-1")];
            let open = [("Range", "bytes=1-")];
            let addr = edge.addr();
            let (whole, tail, rest) = tokio::join!(
                attempt(addr, &path, &[]),
                attempt(addr, &path, &suffix),
                attempt(addr, &path, &open),
            );
            let alone = [attempt(addr, &path, &[]).await, attempt(addr, &path, &suffix).await];
            for got in [whole, tail, rest].into_iter().chain(alone).flatten() {
                if is_success(&got) {
                    let (status, bytes) = (got.status, got.body.len());
                    failures.push(format!("{what}, {size} bytes: {status} with {bytes} bytes"));
                }
                if got.status >= 300 {
                    assert!(got.json()["errors"].is_array());
                }
            }
            if edge.has_blob(&digest) {
                failures.push(format!("{what}, {size} bytes: in the cache"));
            }
            // A 416 may be out before the fetch behind it has failed, and nobody shall join that one.
            until("the flight has ended", async || edge.metric("clawhub_edge_flights").await == 0).await;
            origin.clear_faults();
            let repaired = http::get(addr, &path, &[]).await;
            if !is_success(&repaired) || sha256(&repaired.body) != digest {
                failures.push(format!("{what}, {size} bytes: wrong after the repair"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert_eq!(edge.blobs().len(), 2 * BLOB_BENDS.len(), "the right ones only");
}

#[tokio::test]
async fn the_first_bytes_of_a_wrong_large_blob_are_no_reason_to_end_well() {
    // A client in the middle of a large blob has seen most of it before the digest can be known.
    let origin = Origin::start().await;
    let size = 8 * MIB;
    let digest = origin.add_synthetic_blob("app", size, 61);
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).corrupt_at(size - 1).gate_at(size / 2, &gate));
    let edge = Edge::start(&origin).await;
    let mut client = http::open(edge.addr(), &blob("app", &digest), &[]).await;
    assert_eq!((client.status, client.read(1000).await.len()), (200, 1000));
    gate.open();
    let drained = client.drain().await;
    assert!(!drained.complete && drained.bytes < size, "{drained:?}");
    assert!(edge.blobs().is_empty() && edge.partials().is_empty());
    pull_blob(edge.addr(), "app", &digest).await;
}

#[tokio::test]
async fn no_wrong_manifest_ever_ends_as_a_success_or_stays() {
    let bends: [(&str, ManifestBend); 11] = [
        ("another manifest", |fault| {
            fault.respond(
                200,
                &[("Content-Type", OCI_INDEX)],
                r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
            )
        }),
        ("a wrong byte", |fault| fault.corrupt_at(20)),
        ("a wrong last byte", |fault| fault.corrupt_at(350)),
        ("nothing", |fault| fault.truncate_to(0)),
        ("too short", |fault| fault.truncate_to(300)),
        ("too long", |fault| fault.extend_by(1)),
        ("another digest claimed", |fault| {
            fault.wrong_digest_header(
                "sha256:4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a",
            )
        }),
        ("a page", |fault| fault.respond(200, &[("Content-Type", "text/html")], HTML)),
        ("a page that says it is a manifest", |fault| {
            fault.respond(200, &[("Content-Type", OCI_MANIFEST)], HTML)
        }),
        ("another type", |fault| fault.content_type(OCI_INDEX)),
        ("too large", |fault| fault.respond(200, &[("Content-Type", OCI_MANIFEST)], vec![b' '; 5 << 20])),
    ];
    let origin = Origin::start().await;
    let edge = Edge::start(&origin).await;
    for (number, (what, bend)) in bends.into_iter().enumerate() {
        for by_digest in [true, false] {
            let repository = format!("app{number}-{by_digest}");
            let image = origin.add_image(&repository, "1", vec![repository.clone().into()]);
            let reference = if by_digest { &image.manifest_digest } else { "1" };
            let path = manifest(&repository, reference);
            origin.fault(bend(Fault::on("GET", &repository)));
            let got = http::get(edge.addr(), &path, &[]).await;
            // By tag, a registry that names no digest may send any valid manifest: that is what the tag is then.
            if by_digest || what != "another manifest" {
                assert_eq!(got.status, 502, "{what}, by digest: {by_digest}: {}", got.text());
                assert!(edge.blobs().is_empty(), "{what}: {:?}", edge.blobs());
            }
            assert!(!edge.has_blob(&image.manifest_digest), "{what}");
            origin.clear_faults();
            if by_digest || what != "another manifest" {
                let got = http::get(edge.addr(), &path, &[]).await;
                assert_body(&got, 200, &image.manifest);
                std::fs::remove_file(edge.blob_path(&image.manifest_digest)).unwrap();
            } else {
                std::fs::remove_file(edge.blob_path(&sha256(&got.body))).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn manifests_of_schema_1_are_refused_with_a_clear_error() {
    let origin = Origin::start().await;
    let body = json!({
        "schemaVersion": 1, "name": "app", "tag": "1", "architecture": "amd64",
        "fsLayers": [{ "blobSum": sha256(b"layer") }], "history": [{ "v1Compatibility": "{}" }],
    });
    let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let digest = origin.add_manifest("app", Some("1"), media_type, body.to_string());
    let edge = Edge::start(&origin).await;
    for reference in ["1", &digest] {
        let got = http::get(edge.addr(), &manifest("app", reference), &[]).await;
        assert_error(&got, 502, "MANIFEST_INVALID");
        assert!(got.text().contains("schema"), "{}", got.text());
    }
    assert!(edge.blobs().is_empty());
}

#[tokio::test]
async fn a_manifest_under_a_type_that_says_nothing_is_served_as_what_it_is() {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "1", vec!["layer".into()]);
    origin.fault(Fault::on("*", "/manifests/").content_type("text/plain"));
    let edge = Edge::start(&origin).await;
    let got = http::get(edge.addr(), &manifest("app", "1"), &[]).await;
    assert_body(&got, 200, &image.manifest);
    assert_eq!(got.header("Content-Type"), Some(OCI_MANIFEST));
}

#[tokio::test]
async fn a_blob_larger_than_allowed_is_refused() {
    let origin = Origin::start().await;
    let edge = Edge::with(&origin, "[fill]\nmax_blob_size = \"1MiB\"").await;
    for (seed, fault) in
        [(71, Fault::on("GET", "/blobs/").times(1)), (72, Fault::on("GET", "/blobs/").times(1).chunked())]
    {
        let digest = origin.add_synthetic_blob("app", 2 * MIB, seed);
        origin.fault(fault);
        let got = attempt(edge.addr(), &blob("app", &digest), &[]).await;
        assert!(got.is_none_or(|got| !is_success(&got)));
        assert!(!edge.has_blob(&digest) && edge.partials().is_empty());
    }
    let fits = origin.add_synthetic_blob("app", MIB, 73);
    pull_blob(edge.addr(), "app", &fits).await;
}

/// The new size of a file of this size.
type Damage = fn(u64) -> u64;

/// What a disk may do to a sealed file behind the edge's back.
const DAMAGES: [(&str, Damage); 3] =
    [("emptied", |_| 0), ("cut short", |size| size - 1), ("longer", |size| size + 1)];

#[tokio::test]
async fn a_file_that_changed_its_size_while_the_edge_was_down_is_fetched_again() {
    let origin = Origin::start().await;
    let mut edge = Edge::start(&origin).await;
    for (seed, (what, damage)) in (81..).zip(DAMAGES) {
        for size in [10 * KIB, MIB] {
            let digest = origin.add_synthetic_blob("app", size, seed);
            pull_blob(edge.addr(), "app", &digest).await;
            edge.stop().await;
            let file = std::fs::File::options().write(true).open(edge.blob_path(&digest));
            file.unwrap().set_len(damage(size)).unwrap();
            edge.restart().await;
            let got = attempt(edge.addr(), &blob("app", &digest), &[]).await;
            let bytes = got.as_ref().map_or(0, |got| got.body.len());
            assert!(
                got.is_none_or(|got| !is_success(&got) || sha256(&got.body) == digest),
                "{what}: a success of {bytes} bytes instead of {size}",
            );
            pull_blob(edge.addr(), "app", &digest).await;
            assert_eq!(origin.count("GET", &digest), 2, "{what}, {size} bytes");
        }
    }
}

#[tokio::test]
async fn a_file_that_changed_its_size_under_the_edge_is_fetched_again() {
    let origin = Origin::start().await;
    for (seed, (what, damage)) in (91..).zip(DAMAGES) {
        let digest = origin.add_synthetic_blob("app", MIB, seed);
        let edge = Edge::start(&origin).await;
        pull_blob(edge.addr(), "app", &digest).await;
        until("the blob is synced", async || edge.log().contains("sealed")).await;
        let file = std::fs::File::options().write(true).open(edge.blob_path(&digest));
        file.unwrap().set_len(damage(MIB)).unwrap();
        let got = attempt(edge.addr(), &blob("app", &digest), &[]).await;
        assert!(got.is_none_or(|got| !is_success(&got) || sha256(&got.body) == digest), "{what}");
        // Noticed by now: whoever comes next gets the right bytes.
        pull_blob(edge.addr(), "app", &digest).await;
    }
}

#[tokio::test]
async fn a_file_that_is_gone_is_fetched_again() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", MIB, 95);
    let mut edge = Edge::start(&origin).await;
    pull_blob(edge.addr(), "app", &digest).await;
    std::fs::remove_file(edge.blob_path(&digest)).unwrap();
    edge.restart().await;
    pull_blob(edge.addr(), "app", &digest).await;
    assert!(edge.has_blob(&digest));
}

#[tokio::test]
async fn strange_files_in_the_cache_are_put_aside_and_never_fatal() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", MIB, 96);
    let mut edge = Edge::start(&origin).await;
    pull_blob(edge.addr(), "app", &digest).await;
    edge.stop().await;
    let cache = edge.prepared().path("cache");
    let hex = "ab".repeat(32);
    let strange = [
        cache.join("blobs/notes.txt"),
        cache.join("blobs/sha256/lost"),
        cache.join(format!("partial/sha256-{hex}.data")),
        cache.join(format!("partial/sha256-{hex}.journal")),
        cache.join("partial/what.ever"),
    ];
    for path in &strange {
        std::fs::write(path, "strange").unwrap();
    }
    std::fs::write(cache.join("metadata.redb"), "no database").unwrap();
    edge.restart().await;
    pull_blob(edge.addr(), "app", &digest).await;
    assert_eq!(origin.count("GET", &digest), 1, "only its right is proven anew");
    let missing = http::get(edge.addr(), &blob("app", &format!("sha256:{hex}")), &[]).await;
    assert_error(&missing, 404, "BLOB_UNKNOWN");
}
