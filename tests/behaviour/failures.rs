//! Upstreams that fail: the right answer, fast, and never "not found" for what could not be asked.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::support::edge::{Edge, UPSTREAM, until};
use crate::support::http::{self, Response};
use crate::support::origin::{Fault, Origin, SilentHost, sha256};
use crate::{assert_body, assert_error, blob, manifest};

/// Everything that can be asked for and is not there.
fn unknowns() -> [(&'static str, String); 8] {
    let digest = sha256(b"unknown");
    [
        ("GET", manifest("app", "unknown")),
        ("HEAD", manifest("app", "unknown")),
        ("GET", manifest("app", &digest)),
        ("HEAD", manifest("app", &digest)),
        ("GET", blob("app", &digest)),
        ("HEAD", blob("app", &digest)),
        ("GET", "/v2/app/tags/list".to_owned()),
        ("GET", format!("/v2/app/referrers/{digest}")),
    ]
}

/// Asks; the answer and how long it took.
async fn timed(edge: &Edge, method: &str, path: &str) -> (Response, Duration) {
    let began = Instant::now();
    let got = http::request(method, edge.addr(), path, &[], b"").await;
    (got, began.elapsed())
}

/// Every unknown thing, asked for at once, is answered with this.
async fn assert_all(edge: &Edge, what: &str, status: u16, code: &str, limit: Duration) {
    let asked = unknowns().map(|(method, path)| async move {
        let (got, took) = timed(edge, method, &path).await;
        assert_eq!(got.status, status, "{what}: {method} {path}: {}", got.text());
        if method == "GET" {
            assert_error(&got, status, code);
        }
        assert!(took < limit, "{what}: {method} {path} took {took:?}");
    });
    join_all(asked).await;
}

#[tokio::test]
async fn what_the_upstream_does_not_have_is_404_with_the_right_code() {
    let origin = Origin::start().await;
    let edge = Edge::start(&origin).await;
    let digest = sha256(b"unknown");
    for (repository, of_manifest, of_blob) in
        [("none", "NAME_UNKNOWN", "NAME_UNKNOWN"), ("app", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN")]
    {
        origin.add_blob("app", "makes the repository known");
        for (path, code) in [
            (manifest(repository, "1"), of_manifest),
            (manifest(repository, &digest), of_manifest),
            (blob(repository, &digest), of_blob),
        ] {
            assert_error(&http::get(edge.addr(), &path, &[]).await, 404, code);
        }
    }
    // A registry without words about it.
    origin.fault(Fault::on("*", "").respond(404, &[("Content-Type", "text/plain")], "404 page not found"));
    for (path, code) in [
        (manifest("silent", "1"), "MANIFEST_UNKNOWN"),
        (blob("silent", &digest), "BLOB_UNKNOWN"),
        ("/v2/silent/tags/list".to_owned(), "NAME_UNKNOWN"),
    ] {
        assert_error(&http::get(edge.addr(), &path, &[]).await, 404, code);
    }
}

#[tokio::test]
async fn an_absent_manifest_does_not_hide_the_blob_of_that_digest() {
    let origin = Origin::start().await;
    let digest = origin.add_blob("app", "a layer");
    let edge = Edge::start(&origin).await;
    let as_manifest = http::get(edge.addr(), &manifest("app", &digest), &[]).await;
    assert_error(&as_manifest, 404, "MANIFEST_UNKNOWN");
    let got = http::get(edge.addr(), &blob("app", &digest), &[]).await;
    assert_body(&got, 200, b"a layer");
}

#[tokio::test]
async fn a_refused_connection_is_502_within_two_seconds() {
    let origin = Origin::start().await;
    origin.vanish().await;
    let edge = Edge::start(&origin).await;
    assert_all(&edge, "refused", 502, "UNAVAILABLE", Duration::from_secs(2)).await;
}

#[tokio::test]
async fn errors_of_the_upstream_are_502_within_two_seconds() {
    let limit = Duration::from_secs(2);
    let page = [("Content-Type", "text/html")];
    let teapot = r#"{"errors":[{"code":"TEAPOT","message":"short and stout"}]}"#;
    for (what, fault) in [
        ("500", Fault::on("*", "").respond(500, &[], "")),
        ("502", Fault::on("*", "").respond(502, &page, "<html>")),
        ("503", Fault::on("*", "").respond(503, &[("Retry-After", "120")], "")),
        ("504", Fault::on("*", "").respond(504, &[], "")),
        ("reset", Fault::on("*", "").reset_unanswered()),
        ("a page", Fault::on("*", "").respond(200, &page, "<html>log in</html>")),
        ("418", Fault::on("*", "").respond(418, &[], teapot)),
        ("a redirect to nowhere", Fault::on("*", "").respond(307, &[], "")),
        ("a redirect in a circle", Fault::on("*", "").respond(302, &[("Location", "/v2/")], "")),
    ] {
        let origin = Origin::start().await;
        origin.fault(fault);
        let edge = Edge::start(&origin).await;
        assert_all(&edge, what, 502, "UNAVAILABLE", limit).await;
    }
}

#[tokio::test]
async fn a_short_outage_is_retried_and_not_seen() {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "1", vec!["layer".into()]);
    let edge = Edge::start(&origin).await;
    for (fault, path, body) in [
        (
            Fault::on("GET", "/manifests/").times(2).respond(503, &[], ""),
            manifest("app", "1"),
            &image.manifest[..],
        ),
        (
            Fault::on("GET", "/blobs/").times(2).reset_unanswered(),
            blob("app", &image.layer_digests[0]),
            b"layer",
        ),
    ] {
        origin.fault(fault);
        assert_body(&http::get(edge.addr(), &path, &[]).await, 200, body);
    }
}

#[tokio::test]
async fn what_is_refused_for_good_is_not_asked_again() {
    let origin = Origin::start().await;
    let edge = Edge::start(&origin).await;
    for status in [400, 403, 404, 410, 418] {
        origin.clear_log();
        origin.clear_faults();
        origin.fault(Fault::on("*", "").respond(status, &[], ""));
        let got = http::get(edge.addr(), &manifest("app", &format!("t{status}")), &[]).await;
        assert!(got.status >= 400);
        assert_eq!(origin.requests().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_rate_limit_is_503_with_the_upstreams_retry_after() {
    let origin = Origin::start().await;
    let cached = origin.add_image("app", "cached", vec!["layer".into()]);
    let edge = Edge::start(&origin).await;
    http::get(edge.addr(), &manifest("app", "cached"), &[]).await;
    origin.fault(Fault::on("*", "").rate_limit(77));
    origin.clear_log();
    for (method, path) in unknowns() {
        let got = http::request(method, edge.addr(), &path, &[], b"").await;
        assert_eq!(got.status, 503, "{method} {path}");
        if method == "GET" {
            assert_error(&got, 503, "TOOMANYREQUESTS");
        }
        let wait: u64 = got.header("Retry-After").expect("a time to come back").parse().unwrap();
        assert!((70..=77).contains(&wait), "{method} {path}: {wait}");
    }
    let asked = origin.count("*", "/manifests/");
    assert_eq!(asked, 1, "who names a time is not asked before it");
    let hit = http::get(edge.addr(), &manifest("app", "cached"), &[]).await;
    assert_body(&hit, 200, &cached.manifest);
}

#[tokio::test]
async fn a_black_hole_costs_one_deadline_and_then_milliseconds() {
    let silent = SilentHost::start().await;
    let edge = Edge::builder()
        .upstream(UPSTREAM, &silent.url(), "")
        .toml("[fetch]\nconnect_timeout = \"700ms\"")
        .start()
        .await;
    let (got, took) = timed(&edge, "GET", &manifest("app", "1")).await;
    assert_error(&got, 504, "UNAVAILABLE");
    assert!(took >= Duration::from_millis(600) && took < Duration::from_secs(3), "{took:?}");
    let mut quickest = took;
    for _ in 0..5 {
        let (got, took) = timed(&edge, "GET", &blob("app", &sha256(b"x"))).await;
        assert_error(&got, 504, "UNAVAILABLE");
        quickest = quickest.min(took);
    }
    assert!(quickest < Duration::from_millis(100), "{quickest:?}");
}

#[tokio::test]
async fn an_upstream_that_accepts_and_says_nothing_is_504_at_the_header_deadline() {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "1", vec!["layer".into()]);
    let edge = Edge::with(&origin, "[fetch]\nheader_timeout = \"500ms\"").await;
    origin.black_hole(true);
    let (got, took) = timed(&edge, "GET", &manifest("app", "1")).await;
    assert_error(&got, 504, "UNAVAILABLE");
    assert!(took >= Duration::from_millis(450) && took < Duration::from_secs(3), "{took:?}");
    origin.black_hole(false);
    // The breaker lets a probe through soon.
    until("the upstream is asked again", async || {
        http::get(edge.addr(), &manifest("app", "1"), &[]).await.body == image.manifest
    })
    .await;
}

#[tokio::test]
async fn what_is_cached_never_waits_for_a_black_hole() {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "1", vec!["layer".into()]);
    let edge = Edge::start(&origin).await;
    crate::pull(&edge, "app", "1", &image).await;
    origin.black_hole(true);
    let began = Instant::now();
    crate::pull(&edge, "app", "1", &image).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn one_dead_upstream_does_not_hold_up_another() {
    let (origin, silent) = (Origin::start().await, SilentHost::start().await);
    let image = origin.add_image("app", "1", vec!["layer".into()]);
    let edge = Edge::builder()
        .upstream(UPSTREAM, &origin.url(), "")
        .upstream("dead.test", &silent.url(), "")
        .start()
        .await;
    let (addr, path) = (edge.addr(), manifest("dead.test/app", "1"));
    let waiting: Vec<_> = (0..32)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move { http::get(addr, &path, &[]).await })
        })
        .collect();
    until("they wait", async || edge.metric("clawhub_edge_http_connections").await >= 33).await;
    let began = Instant::now();
    crate::pull(&edge, "app", "1", &image).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    for client in waiting {
        client.abort();
    }
}

#[tokio::test]
async fn the_next_endpoint_answers_when_the_first_cannot() {
    let (origin, silent) = (Origin::start().await, SilentHost::start().await);
    let image = origin.add_image("app", "1", vec!["layer".into()]);
    let refused = Origin::start().await;
    refused.vanish().await;
    let broken = Origin::start().await;
    broken.fault(Fault::on("*", "").respond(500, &[], ""));
    let empty = Origin::start().await;
    for first in [refused.url(), silent.url(), broken.url(), empty.url()] {
        let edge = Edge::builder()
            .endpoints(UPSTREAM, &[&first, &origin.url()])
            .toml("[fetch]\nconnect_timeout = \"500ms\"")
            .start()
            .await;
        crate::pull(&edge, "app", "1", &image).await;
    }
}

#[tokio::test]
async fn absent_here_and_unreachable_there_is_not_absent() {
    let (empty, refused) = (Origin::start().await, Origin::start().await);
    refused.vanish().await;
    for endpoints in [[empty.url(), refused.url()], [refused.url(), empty.url()]] {
        let edge = Edge::builder().endpoints(UPSTREAM, &[&endpoints[0], &endpoints[1]]).start().await;
        assert_all(&edge, "one of two", 502, "UNAVAILABLE", Duration::from_secs(3)).await;
    }
}

#[tokio::test]
async fn a_refusal_of_anonymous_callers_is_denied_and_one_of_our_credential_is_502() {
    let (origin, edges) = (Origin::start().await, [false, true]);
    let digest = origin.add_blob("app", "private");
    for with_credential in edges {
        let keys = if with_credential { "username = \"me\"\npassword = \"wrong\"" } else { "" };
        let edge = Edge::builder().upstream(UPSTREAM, &origin.url(), keys).start().await;
        let forbidden = Fault::on("*", "").respond(403, &[], "");
        for fault in [None, Some(forbidden)] {
            origin.clear_faults();
            origin.require_basic("me", "right");
            if let Some(fault) = fault {
                origin.require_nothing();
                origin.fault(fault);
            }
            for path in [blob("app", &digest), manifest("app", "1")] {
                let got = http::get(edge.addr(), &path, &[]).await;
                if with_credential {
                    assert_error(&got, 502, "UNAVAILABLE");
                } else {
                    assert_error(&got, 403, "DENIED");
                }
            }
        }
        assert!(edge.blobs().is_empty());
    }
}

#[tokio::test]
async fn the_operator_finds_the_cause_of_a_failure_in_the_log() {
    let origin = Origin::start().await;
    origin.vanish().await;
    let edge = Edge::start(&origin).await;
    let got = http::get(edge.addr(), &manifest("app", "1"), &[("X-Request-Id", "look-here")]).await;
    assert_eq!(got.status, 502);
    assert!(!got.text().contains("127.0.0.1"), "no internals for clients: {}", got.text());
    until("the access log has it", async || edge.log().contains("look-here")).await;
    let log = edge.log();
    assert!(log.contains(&origin.url()) && log.to_lowercase().contains("refused"));
}

#[tokio::test]
async fn near_the_end_of_a_quota_tags_are_answered_stale_before_the_upstream_refuses() {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "1", vec!["a layer".into()]);
    origin.add_image("app", "2", vec!["another layer".into()]);
    let edge = Edge::with(&origin, "[tags]\nttl = \"0\"").await;
    let told = Fault::on("*", "/manifests/").header("ratelimit-limit", "100;w=21600");
    origin.fault(told.header("ratelimit-remaining", "8;w=21600"));
    crate::pull(&edge, "app", "1", &image).await;
    origin.clear_log();
    for _ in 0..5 {
        let got = http::get(edge.addr(), &manifest("app", "1"), &[]).await;
        assert_body(&got, 200, &image.manifest);
    }
    assert_eq!(origin.count("*", ""), 0, "answered from the cache, without a request");
    assert_eq!(http::get(edge.addr(), &manifest("app", "2"), &[]).await.status, 200, "a pull goes on");
    let refused =
        r#"clawhub_edge_upstream_quota_refusals_total{purpose="revalidation",upstream="origin.test"}"#;
    assert_eq!(edge.metric(refused).await, 5);
}
