//! The main job: what was pulled once is there, however it is named.

use bytes::Bytes;

use crate::support::edge::{Edge, UPSTREAM, until};
use crate::support::http::{self, Connection};
use crate::support::origin::{Fault, OCI_MANIFEST, Origin, sha256};
use crate::{MIB, assert_body, assert_error, blob, manifest, pull, pull_blob};

/// An image of a large, a small and an empty layer.
fn add_image(origin: &Origin, repository: &str) -> crate::support::origin::Image {
    let layers = [
        origin.add_synthetic_blob(repository, 5 * MIB + 17, 1),
        origin.add_blob(repository, "a small layer"),
        origin.add_blob(repository, Bytes::new()),
    ];
    origin.add_image_of(repository, "1", &layers)
}

#[tokio::test]
async fn a_pulled_image_outlives_its_origin_and_a_restart() {
    let origin = Origin::start().await;
    let image = add_image(&origin, "library/app");
    let mut edge = Edge::start(&origin).await;
    pull(&edge, "library/app", "1", &image).await;
    origin.vanish().await;
    pull(&edge, "library/app", "1", &image).await;
    assert!(edge.stop().await.success());
    edge.restart().await;
    pull(&edge, "library/app", "1", &image).await;

    assert_eq!(origin.count("HEAD", ""), 1, "of the tag: {:#?}", origin.requests());
    assert_eq!(origin.count("GET", "/manifests/"), 1);
    assert_eq!(origin.count("GET", "/blobs/"), 4);
    for digest in image.layer_digests.iter().chain([&image.config_digest]) {
        assert_eq!(origin.count("GET", digest), 1, "{digest}");
    }
}

#[tokio::test]
async fn a_killed_edge_keeps_what_it_had_sealed() {
    let origin = Origin::start().await;
    let image = add_image(&origin, "app");
    let mut edge = Edge::start(&origin).await;
    pull(&edge, "app", "1", &image).await;
    edge.kill().await;
    edge.restart().await;
    pull(&edge, "app", "1", &image).await;
    assert_eq!(origin.count("GET", "/blobs/"), 4, "{:#?}", origin.requests());
    assert_eq!(origin.count("GET", "/manifests/"), 1);
}

#[tokio::test]
async fn only_the_platform_that_was_asked_for_is_fetched() {
    let origin = Origin::start().await;
    let amd64 = origin.add_image("app", "amd64", vec!["amd64 layer".into()]);
    let arm64 = origin.add_image("app", "arm64", vec!["arm64 layer".into()]);
    let index = origin.add_index("app", "1", &[(&amd64, "linux/amd64"), (&arm64, "linux/arm64/v8")]);
    let edge = Edge::start(&origin).await;
    let got = http::get(edge.addr(), &manifest("app", "1"), &[]).await;
    assert_eq!(got.header("Docker-Content-Digest"), Some(index.as_str()));
    pull(&edge, "app", "amd64", &amd64).await;
    assert_eq!(origin.count("*", &arm64.manifest_digest), 0);
    assert_eq!(origin.count("*", &arm64.layer_digests[0]), 0);
}

#[tokio::test]
async fn a_request_names_its_upstream_by_ns_host_alias_prefix_or_not_at_all() {
    let (one, other) = (Origin::start().await, Origin::start().await);
    let of_one = one.add_blob("app", "of one");
    let of_other = other.add_blob("app", "of the other");
    let edge = Edge::builder()
        .upstream(UPSTREAM, &one.url(), "")
        .upstream("other.test", &other.url(), "aliases = [\"mirror.test\"]")
        .start()
        .await;
    let plain = blob("app", &of_other);
    let by_prefix = blob("other.test/app", &of_other);
    for (path, host, namespace) in [
        (format!("{plain}?ns=other.test"), None, Some("other.test")),
        (format!("{plain}?ns=OTHER.test"), None, Some("OTHER.test")),
        (format!("{plain}?ns=mirror.test"), None, Some("mirror.test")),
        (format!("{by_prefix}?ns=other.test"), None, Some("other.test")),
        (format!("{plain}?ns=other.test"), Some(UPSTREAM), Some("other.test")),
        (plain.clone(), Some("mirror.test"), None),
        (plain.clone(), Some("mirror.test:5050"), None),
        (by_prefix.clone(), None, None),
    ] {
        let host = host.map(|host| ("Host", host));
        let got = http::get(edge.addr(), &path, host.as_slice()).await;
        assert_body(&got, 200, b"of the other");
        assert_eq!(got.header("OCI-Namespace"), namespace, "{path}");
    }
    let by_default = http::get(edge.addr(), &blob("app", &of_one), &[]).await;
    assert_body(&by_default, 200, b"of one");
    assert_eq!(one.count("*", &of_other), 0);
    assert_eq!(other.count("GET", ""), 1, "{:#?}", other.requests());
}

#[tokio::test]
async fn short_names_of_docker_hub_are_in_its_library() {
    let origin = Origin::start().await;
    let image = origin.add_image("library/nginx", "1.27", vec!["layer".into()]);
    let edge = Edge::builder()
        .routing("builtin = false\ndefault_upstream = \"docker.io\"")
        .upstream("docker.io", &origin.url(), "")
        .start()
        .await;
    for path in [
        "/v2/nginx/manifests/1.27",
        "/v2/library/nginx/manifests/1.27",
        "/v2/nginx/manifests/1.27?ns=docker.io",
        "/v2/library/nginx/manifests/1.27?ns=docker.io",
        "/v2/docker.io/nginx/manifests/1.27",
        "/v2/docker.io/library/nginx/manifests/1.27?ns=docker.io",
    ] {
        let got = http::get(edge.addr(), path, &[]).await;
        assert_body(&got, 200, &image.manifest);
    }
    assert_eq!(origin.count("GET", "/v2/library/nginx/manifests/1.27"), 1, "one repository");
    assert_eq!(origin.requests().len(), 1, "{:#?}", origin.requests());
}

#[tokio::test]
async fn an_unknown_namespace_is_refused_and_never_dialled() {
    let (origin, stranger) = (Origin::start().await, Origin::start().await);
    let digest = stranger.add_blob("app", "bait");
    origin.add_blob("app", "bait");
    let edge = Edge::start(&origin).await;
    let port = stranger.addr().port();
    for ns in [stranger.addr().to_string(), format!("localhost:{port}"), "elsewhere.test".to_owned()] {
        for path in [blob("app", &digest), manifest("app", "1"), "/v2/app/tags/list".to_owned()] {
            let got = http::get(edge.addr(), &format!("{path}?ns={ns}"), &[]).await;
            assert_error(&got, 404, "NAME_UNKNOWN");
        }
    }
    assert_eq!(stranger.connections_accepted(), 0);
    assert_eq!(origin.connections_accepted(), 0, "nor the default upstream");
}

#[tokio::test]
async fn an_edge_without_default_upstream_refuses_what_names_none() {
    let origin = Origin::start().await;
    let digest = origin.add_blob("app", "here");
    let edge = Edge::builder()
        .routing("builtin = false\ndefault_upstream = \"\"")
        .upstream(UPSTREAM, &origin.url(), "")
        .start()
        .await;
    let nameless = http::get(edge.addr(), &blob("app", &digest), &[]).await;
    assert_error(&nameless, 404, "NAME_UNKNOWN");
    let named = http::get(edge.addr(), &blob("origin.test/app", &digest), &[]).await;
    assert_body(&named, 200, b"here");
}

#[tokio::test]
async fn a_head_of_something_uncached_fetches_no_body() {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "1", vec!["layer".into()]);
    let large = origin.add_synthetic_blob("app", 3 * MIB, 2);
    let edge = Edge::start(&origin).await;
    let size = image.manifest.len().to_string();
    for reference in ["1", &image.manifest_digest] {
        let head = http::head(edge.addr(), &manifest("app", reference), &[]).await;
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.header("Content-Length"), Some(size.as_str()));
        assert_eq!(head.header("Content-Type"), Some(OCI_MANIFEST));
        assert_eq!(head.header("Docker-Content-Digest"), Some(image.manifest_digest.as_str()));
    }
    let head = http::head(edge.addr(), &blob("app", &large), &[]).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("Content-Length"), Some((3 * MIB).to_string().as_str()));
    assert_eq!(head.header("Docker-Content-Digest"), Some(large.as_str()));
    assert_eq!(head.header("Accept-Ranges"), Some("bytes"));
    let absent = sha256(b"absent");
    for path in [blob("app", &absent), manifest("app", &absent), manifest("app", "absent")] {
        assert_eq!(http::head(edge.addr(), &path, &[]).await.status, 404, "{path}");
    }
    assert_eq!(origin.count("GET", ""), 0, "{:#?}", origin.requests());
    assert!(edge.blobs().is_empty());
}

#[tokio::test]
async fn a_client_that_has_it_already_gets_304() {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "1", vec!["layer".into()]);
    let edge = Edge::start(&origin).await;
    let layer = &image.layer_digests[0];
    let (of_manifest, of_layer) = (format!("\"{}\"", image.manifest_digest), format!("\"{layer}\""));
    // The second round finds everything in the cache.
    for _ in 0..2 {
        for (path, etag) in [
            (manifest("app", "1"), &of_manifest),
            (manifest("app", &image.manifest_digest), &of_manifest),
            (blob("app", layer), &of_layer),
        ] {
            for condition in [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}"), "*".to_owned()] {
                let got = http::get(edge.addr(), &path, &[("If-None-Match", &condition)]).await;
                assert_eq!((got.status, got.body.len()), (304, 0), "{path} {condition}");
                assert_eq!(got.header("ETag"), Some(etag.as_str()));
                assert_eq!(got.header("Docker-Content-Digest"), Some(etag.trim_matches('"')));
                assert!(got.header("Cache-Status").is_some());
            }
            let other = http::get(edge.addr(), &path, &[("If-None-Match", "\"sha256:other\"")]).await;
            assert!(other.status == 200 && other.complete && !other.body.is_empty());
        }
    }
}

#[tokio::test]
async fn every_answer_has_the_headers_that_clients_rely_on() {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "1", vec!["some layer".into()]);
    let edge = Edge::start(&origin).await;
    let layer = &image.layer_digests[0];
    let (by_tag, by_digest) = (manifest("app", "1"), manifest("app", &image.manifest_digest));
    let manifest_size = image.manifest.len().to_string();
    // First round: a miss; second: a hit.
    for round in ["fwd=uri-miss", "; hit"] {
        for (path, digest, content_type, size) in [
            (&by_tag, &image.manifest_digest, OCI_MANIFEST, manifest_size.as_str()),
            (&by_digest, &image.manifest_digest, OCI_MANIFEST, manifest_size.as_str()),
            (&blob("app", layer), layer, "application/octet-stream", "10"),
        ] {
            for method in ["GET", "HEAD"] {
                let path = format!("{path}?ns={UPSTREAM}");
                let got = http::request(method, edge.addr(), &path, &[("X-Request-Id", "mine-7")], b"").await;
                let header = |name| got.header(name).unwrap_or_else(|| panic!("{method} {path}: no {name}"));
                assert_eq!(got.status, 200);
                assert_eq!(header("Docker-Distribution-Api-Version"), "registry/2.0");
                assert_eq!(header("Docker-Content-Digest"), digest);
                assert_eq!(header("ETag"), format!("\"{digest}\""));
                assert_eq!(header("Content-Type"), content_type);
                assert_eq!(header("Content-Length"), size);
                assert_eq!(header("OCI-Namespace"), UPSTREAM);
                assert_eq!(header("X-Request-Id"), "mine-7");
                header("Age").parse::<u64>().expect("seconds");
                assert!(header("Cache-Status").starts_with("clawhub-edge;"));
                if path.contains("/blobs/") {
                    assert_eq!(header("Accept-Ranges"), "bytes");
                }
                let is_first = method == "GET" && *path != format!("{by_digest}?ns={UPSTREAM}");
                if is_first {
                    assert!(header("Cache-Status").contains(round), "{path}: {:?}", header("Cache-Status"));
                }
            }
        }
    }
    let long = "x".repeat(129);
    for bad in [long.as_str(), "two words"] {
        let got = http::get(edge.addr(), "/v2/", &[("X-Request-Id", bad)]).await;
        assert!(got.header("X-Request-Id").is_some_and(|id| id != bad && !id.is_empty()));
    }
}

#[tokio::test]
async fn the_ping_answers_without_asking_anybody() {
    let origin = Origin::start().await;
    let edge = Edge::start(&origin).await;
    let got = http::get(edge.addr(), "/v2/", &[]).await;
    assert_body(&got, 200, b"{}");
    assert_eq!(got.header("Docker-Distribution-Api-Version"), Some("registry/2.0"));
    assert_eq!(http::head(edge.addr(), "/v2/", &[]).await.status, 200);
    assert_eq!(origin.connections_accepted(), 0);
}

#[tokio::test]
async fn writes_are_refused_and_never_reach_the_origin() {
    let origin = Origin::start().await;
    let digest = origin.add_blob("app", "blob");
    let edge = Edge::start(&origin).await;
    for (method, path) in [
        ("POST", "/v2/app/blobs/uploads/".to_owned()),
        ("POST", format!("/v2/app/blobs/uploads/?mount={digest}&from=other")),
        ("PATCH", "/v2/app/blobs/uploads/1234".to_owned()),
        ("PUT", format!("/v2/app/blobs/uploads/1234?digest={digest}")),
        ("PUT", manifest("app", "1")),
        ("DELETE", manifest("app", "1")),
        ("DELETE", blob("app", &digest)),
        ("DELETE", format!("{}?ns=origin.test", blob("app", &digest))),
    ] {
        let body: &[u8] = if method == "DELETE" { b"" } else { b"some body" };
        let got = http::request(method, edge.addr(), &path, &[], body).await;
        assert_error(&got, 405, "UNSUPPORTED");
        assert!(got.header("Allow").is_some_and(|allow| allow.contains("GET")));
    }
    assert_eq!(origin.connections_accepted(), 0);
}

#[tokio::test]
async fn requests_that_mean_nothing_get_an_error_document() {
    let origin = Origin::start().await;
    let edge = Edge::start(&origin).await;
    let digest = sha256(b"x");
    for (path, status, code) in [
        (manifest("App", "1"), 400, "NAME_INVALID"),
        (blob("app", "sha256:abc"), 400, "DIGEST_INVALID"),
        (blob("app", "md5:abcdef"), 400, "DIGEST_INVALID"),
        (blob("../../etc", &digest), 400, "NAME_INVALID"),
        ("/v2/app/tags/list?n=many".to_owned(), 400, "PAGINATION_NUMBER_INVALID"),
    ] {
        let got = http::get(edge.addr(), &path, &[]).await;
        assert_error(&got, status, code);
    }
    for path in ["/", "/v1/", "/v2/app", "/v3/app/manifests/1"] {
        let got = http::get(edge.addr(), path, &[]).await;
        assert_eq!(got.status, 404, "{path}");
        assert!(got.json()["errors"][0]["code"].is_string());
    }
    assert_eq!(origin.connections_accepted(), 0);
}

#[tokio::test]
async fn answers_are_identity_and_the_upstream_is_asked_for_every_manifest_type() {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "1", vec!["layer".into()]);
    let edge = Edge::start(&origin).await;
    let narrow = [
        ("Accept", "application/vnd.docker.distribution.manifest.v2+json"),
        ("Accept-Encoding", "zstd, gzip, deflate"),
    ];
    let got = http::get(edge.addr(), &manifest("app", "1"), &narrow).await;
    assert_body(&got, 200, &image.manifest);
    let got = http::get(edge.addr(), &blob("app", &image.layer_digests[0]), &narrow).await;
    assert_body(&got, 200, b"layer");
    assert_eq!(got.header("Content-Encoding"), None);
    for request in origin.requests() {
        let encoding = request.header("Accept-Encoding").unwrap_or("identity");
        assert_eq!(encoding, "identity", "{request:?}");
        if request.path.contains("/manifests/") {
            let accept = request.header("Accept").expect("an Accept");
            for media_type in [
                "application/vnd.oci.image.index.v1+json",
                OCI_MANIFEST,
                "application/vnd.docker.distribution.manifest.list.v2+json",
                "application/vnd.docker.distribution.manifest.v2+json",
            ] {
                assert!(accept.contains(media_type), "{accept}");
            }
        }
    }
}

#[tokio::test]
async fn one_connection_carries_request_after_request() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", MIB, 3);
    let edge = Edge::start(&origin).await;
    let mut connection = Connection::open(edge.addr()).await.unwrap();
    for path in ["/v2/".to_owned(), blob("app", &digest), manifest("app", "absent"), blob("app", &digest)] {
        let mut transfer = connection.get(&path, &[]).await.unwrap();
        assert!(transfer.drain().await.complete, "{path}");
        connection = transfer.into_connection().expect("a whole body");
    }
}

#[tokio::test]
async fn a_sha512_blob_pulls_like_any_other() {
    const BODY: &str = "a blob";
    // `printf 'a blob' | sha512sum`
    const DIGEST: &str = "sha512:aac66980c9216f9efe407338be3cde85d069392ffc36054272bafd0236c86646e2e9fc3547856e39f5b16fb1a175baeaaddcff28b28fefbdd299aa5586755593";
    let origin = Origin::start().await;
    let headers = [("Content-Type", "application/octet-stream")];
    origin.fault(Fault::on("GET", DIGEST).times(1).respond(200, &headers, "a blub"));
    origin.fault(Fault::on("GET", DIGEST).times(1).respond(200, &headers, BODY));
    let edge = Edge::start(&origin).await;
    let wrong = http::get(edge.addr(), &blob("app", DIGEST), &[]).await;
    assert_error(&wrong, 502, "UNAVAILABLE");
    for _ in 0..2 {
        let right = http::get(edge.addr(), &blob("app", DIGEST), &[]).await;
        assert_body(&right, 200, BODY.as_bytes());
    }
}

#[tokio::test]
async fn a_chained_edge_pulls_through_another() {
    let origin = Origin::start().await;
    let image = add_image(&origin, "app");
    let inner = Edge::start(&origin).await;
    let outer = Edge::builder().upstream(UPSTREAM, &format!("http://{}", inner.addr()), "").start().await;
    pull(&outer, "app", "1", &image).await;
    origin.vanish().await;
    pull(&outer, "app", "1", &image).await;
    pull(&inner, "app", "1", &image).await;
    assert_eq!(origin.count("GET", "/blobs/"), 4);
}

#[tokio::test]
async fn an_endpoint_with_a_prefix_or_a_rewrite_is_asked_for_its_own_names() {
    let origin = Origin::start().await;
    let digest = origin.add_blob("proxy/library/app", "behind a prefix");
    let rewritten = origin.add_blob("mirror/app", "rewritten");
    let edge = Edge::builder()
        .upstream("prefixed.test", &origin.url(), "prefix = \"proxy\"")
        .upstream(
            UPSTREAM,
            &origin.url(),
            "rewrite = [{ match = \"^library/(.*)$\", replace = \"mirror/$1\" }]",
        )
        .start()
        .await;
    let path = blob("prefixed.test/library/app", &digest);
    assert_body(&http::get(edge.addr(), &path, &[]).await, 200, b"behind a prefix");
    let path = blob("library/app", &rewritten);
    assert_body(&http::get(edge.addr(), &path, &[]).await, 200, b"rewritten");
}

#[tokio::test]
async fn what_is_sealed_becomes_durable_and_read_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", MIB, 4);
    let edge = Edge::start(&origin).await;
    pull_blob(edge.addr(), "app", &digest).await;
    let mode = || edge.blob_path(&digest).metadata().unwrap().permissions().mode() & 0o777;
    until("the blob is synced", async || mode() == 0o400).await;
    assert!(edge.partials().is_empty(), "{:?}", edge.partials());
}
