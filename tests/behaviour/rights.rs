//! Bytes are shared, the right to see them is not.

use serde_json::json;

use crate::support::edge::{Edge, UPSTREAM, until};
use crate::support::http;
use crate::support::origin::{Fault, Gate, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Origin, sha256};
use crate::{MIB, assert_body, assert_error, blob, len, manifest, pull_blob, reached};

/// Every way to ask for a digest through a repository that does not have it.
async fn assert_hidden(edge: &Edge, repository: &str, digest: &str) {
    for path in [blob(repository, digest), manifest(repository, digest)] {
        for (method, headers) in [
            ("GET", &[][..]),
            ("HEAD", &[]),
            ("GET", &[("Range", "bytes=0-9")]),
            ("GET", &[("Range", "bytes=-1")]),
        ] {
            let got = http::request(method, edge.addr(), &path, headers, b"").await;
            assert_eq!(got.status, 404, "{method} {path} {headers:?}");
            assert_eq!(got.header("Docker-Content-Digest"), None);
        }
        // A 304 would tell that it is here.
        let condition = format!("\"{digest}\"");
        let got = http::get(edge.addr(), &path, &[("If-None-Match", &condition)]).await;
        assert_eq!(got.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_repository_cannot_read_anothers_digest_by_naming_it() {
    let origin = Origin::start().await;
    let image = origin.add_image("victim/app", "1", vec!["a secret layer".into()]);
    let large = origin.add_synthetic_blob("victim/app", MIB, 1);
    origin.add_blob("attacker/app", "makes the repository known");
    let edge = Edge::with(&origin, "[tags]\nnegative_ttl = \"0s\"").await;
    crate::pull(&edge, "victim/app", "1", &image).await;
    pull_blob(edge.addr(), "victim/app", &large).await;
    for digest in [&image.manifest_digest, &image.config_digest, &image.layer_digests[0], &large] {
        assert_hidden(&edge, "attacker/app", digest).await;
        // Nor by another name of the upstream, nor by the victim's name with something behind it.
        assert_hidden(&edge, "origin.test/attacker/app", digest).await;
        assert_hidden(&edge, "victim/app/more", digest).await;
    }
    // While the upstream cannot be asked, nobody can say: that is no 404 and no content either.
    origin.vanish().await;
    let got = http::get(edge.addr(), &blob("attacker/app", &image.layer_digests[0]), &[]).await;
    assert_error(&got, 502, "UNAVAILABLE");
    crate::pull(&edge, "victim/app", "1", &image).await;
}

#[tokio::test]
async fn a_repository_cannot_read_anothers_digest_in_flight() {
    const SIZE: u64 = 4 * MIB;
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("victim/app", SIZE, 2);
    origin.add_blob("attacker/app", "makes the repository known");
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(SIZE / 2, &gate));
    let edge = Edge::with(&origin, "[tags]\nnegative_ttl = \"0s\"").await;
    let mut victim = http::open(edge.addr(), &blob("victim/app", &digest), &[]).await;
    assert_eq!(victim.read(1000).await.len(), 1000);
    assert_hidden(&edge, "attacker/app", &digest).await;
    gate.open();
    assert!(victim.drain().await.complete);
    assert_hidden(&edge, "attacker/app", &digest).await;
}

#[tokio::test]
async fn a_manifest_that_names_a_foreign_digest_grants_nothing() {
    let origin = Origin::start().await;
    let image = origin.add_image("victim/app", "1", vec!["a secret layer".into()]);
    let secret = &image.layer_digests[0];
    let config = origin.add_blob("attacker/app", "{}");
    let descriptor = |media_type: &str, digest: &str, size: usize| json!({ "mediaType": media_type, "digest": digest, "size": size });
    let forged = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, &config, 2),
        "layers": [descriptor(OCI_LAYER, secret, "a secret layer".len())],
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor(OCI_MANIFEST, &image.manifest_digest, image.manifest.len())],
    });
    origin.add_manifest("attacker/app", Some("1"), OCI_MANIFEST, forged.to_string());
    let index_type = "application/vnd.oci.image.index.v1+json";
    origin.add_manifest("attacker/app", Some("2"), index_type, index.to_string());
    let edge = Edge::with(&origin, "[tags]\nnegative_ttl = \"0s\"").await;
    crate::pull(&edge, "victim/app", "1", &image).await;
    for tag in ["1", "2"] {
        let got = http::get(edge.addr(), &manifest("attacker/app", tag), &[]).await;
        assert_eq!(got.status, 200);
    }
    // The edge asks for what the manifests name; the upstream's no must be all that comes of it.
    until("the edge has asked", async || origin.count("HEAD", &format!("attacker/app/blobs/{secret}")) >= 1)
        .await;
    assert_hidden(&edge, "attacker/app", secret).await;
    assert_hidden(&edge, "attacker/app", &image.manifest_digest).await;
    origin.vanish().await;
    let got = http::get(edge.addr(), &blob("attacker/app", secret), &[]).await;
    assert_eq!(got.status, 502);
}

#[tokio::test]
async fn a_shared_layer_is_proven_by_one_head_and_not_fetched_twice() {
    let origin = Origin::start().await;
    let shared = origin.add_synthetic_blob("base/app", 2 * MIB, 3);
    origin.add_synthetic_blob("team/app", 2 * MIB, 3);
    let edge = Edge::start(&origin).await;
    pull_blob(edge.addr(), "base/app", &shared).await;
    for _ in 0..3 {
        pull_blob(edge.addr(), "team/app", &shared).await;
    }
    assert_eq!(origin.count("GET", &shared), 1);
    assert_eq!(origin.count("HEAD", &blob("team/app", &shared)), 1);
    assert_eq!(origin.count("HEAD", &shared), 1);
}

#[tokio::test]
async fn two_repositories_that_both_may_share_one_flight() {
    const SIZE: u64 = 4 * MIB;
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("one", SIZE, 4);
    origin.add_synthetic_blob("two", SIZE, 4);
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(SIZE / 2, &gate));
    let edge = Edge::start(&origin).await;
    let mut one = http::open(edge.addr(), &blob("one", &digest), &[]).await;
    let mut two = http::open(edge.addr(), &blob("two", &digest), &[]).await;
    assert_eq!((one.status, two.status), (200, 200));
    assert_eq!(two.read(len(SIZE / 4)).await.len(), len(SIZE / 4));
    gate.open();
    assert!(one.drain().await.complete && two.drain().await.complete);
    assert_eq!(origin.bytes_sent(&digest), SIZE);
    assert_eq!((origin.count("GET", &digest), origin.count("HEAD", &digest)), (1, 1));
}

#[tokio::test]
async fn a_flight_that_its_upstream_refuses_is_no_refusal_for_others() {
    // The attacker's flight comes first and is refused: the victim's own pull must not suffer.
    let origin = Origin::start().await;
    let digest = origin.add_blob("victim/app", "bytes");
    origin.add_blob("attacker/app", "makes the repository known");
    let gate = Gate::new();
    origin.fault(Fault::on("GET", "attacker").gate_headers(&gate));
    let edge = Edge::start(&origin).await;
    let (addr, path) = (edge.addr(), blob("attacker/app", &digest));
    let attacker = tokio::spawn(async move { http::get(addr, &path, &[]).await });
    reached(&gate).await;
    let path = blob("victim/app", &digest);
    let victim = tokio::spawn(async move { http::get(addr, &path, &[]).await });
    until("the victim's right is asked for", async || origin.count("*", "victim/app") >= 1).await;
    gate.open();
    assert_error(&attacker.await.unwrap(), 404, "BLOB_UNKNOWN");
    assert_body(&victim.await.unwrap(), 200, b"bytes");
}

#[tokio::test]
async fn a_proven_repository_pulls_while_the_upstream_is_gone() {
    let origin = Origin::start().await;
    let layers = vec!["shared layer".into()];
    let base = origin.add_image("base", "1", layers.clone());
    let team = origin.add_image("team", "1", layers);
    let mut edge = Edge::start(&origin).await;
    crate::pull(&edge, "base", "1", &base).await;
    // Only the manifest: the edge proves the layers that it has behind the client's back.
    http::get(edge.addr(), &manifest("team", "1"), &[]).await;
    until("the layers are proven", async || origin.count("HEAD", "team/blobs/") >= 2).await;
    until("and noted", async || {
        edge.log().contains("shared layer") || {
            let head = http::head(edge.addr(), &blob("team", &team.layer_digests[0]), &[]).await;
            head.header("Cache-Status").is_some_and(|status| status.contains("hit"))
        }
    })
    .await;
    origin.vanish().await;
    edge.restart().await;
    crate::pull(&edge, "team", "1", &team).await;
}

#[tokio::test]
async fn an_upstream_declared_open_shares_the_right_among_its_own_repositories_only() {
    let (open, other) = (Origin::start().await, Origin::start().await);
    let digest = open.add_blob("one", "public");
    let edge = Edge::builder()
        .upstream(UPSTREAM, &open.url(), "access = \"open\"")
        .upstream("other.test", &other.url(), "")
        .start()
        .await;
    pull_blob(edge.addr(), "one", &digest).await;
    let got = http::get(edge.addr(), &blob("two", &digest), &[]).await;
    assert_body(&got, 200, b"public");
    assert_eq!(open.requests().len(), 1, "nothing needs confirming");
    let got = http::get(edge.addr(), &blob("other.test/one", &digest), &[]).await;
    assert_eq!(got.status, 404);
}

#[tokio::test]
async fn a_blob_is_no_manifest_and_a_manifest_no_layer() {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "1", vec!["layer".into()]);
    let edge = Edge::start(&origin).await;
    crate::pull(&edge, "app", "1", &image).await;
    let path = manifest("app", &image.layer_digests[0]);
    assert_eq!(http::get(edge.addr(), &path, &[]).await.status, 404);
    assert_eq!(sha256(b"layer"), image.layer_digests[0]);
}
