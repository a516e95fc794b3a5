//! Tags: asked for as seldom as possible, and answered when nobody can be asked.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::edge::{Edge, UPSTREAM, until};
use crate::support::http::{self, Response};
use crate::support::origin::{Fault, Gate, Image, OCI_MANIFEST, Origin};
use crate::{assert_body, assert_error, blob, manifest, pull_blob, reached};

/// An origin with the images `1` and `2` in `app`, and the tag `latest` on the first.
async fn origin() -> (Origin, Image, Image) {
    let origin = Origin::start().await;
    let one = origin.add_image("app", "1", vec!["layer of one".into()]);
    let two = origin.add_image("app", "2", vec!["layer of two".into()]);
    origin.move_tag("app", "latest", &one.manifest_digest);
    (origin, one, two)
}

async fn latest(edge: &Edge) -> Response {
    http::get(edge.addr(), &manifest("app", "latest"), &[]).await
}

async fn head_of_latest(edge: &Edge) -> Response {
    http::head(edge.addr(), &manifest("app", "latest"), &[]).await
}

#[track_caller]
fn assert_stale(answer: &Response, image: &Image) {
    assert_body(answer, 200, &image.manifest);
    let status = answer.header("Cache-Status").expect("a Cache-Status");
    assert!(status.contains("detail=stale"), "{status}");
}

#[tokio::test]
async fn a_fresh_tag_asks_nobody() {
    let (origin, one, two) = origin().await;
    let mut edge = Edge::start(&origin).await;
    assert_body(&latest(&edge).await, 200, &one.manifest);
    origin.move_tag("app", "latest", &two.manifest_digest);
    for restart in [false, true] {
        if restart {
            edge.restart().await;
        }
        for _ in 0..3 {
            let got = latest(&edge).await;
            assert_body(&got, 200, &one.manifest);
            let status = got.header("Cache-Status").unwrap();
            let ttl = status.rsplit("ttl=").next().and_then(|ttl| ttl.parse::<u64>().ok());
            assert!(ttl.is_some_and(|ttl| ttl <= 300), "{status}");
            let head = head_of_latest(&edge).await;
            assert_eq!(head.header("Docker-Content-Digest"), Some(one.manifest_digest.as_str()));
        }
    }
    assert_eq!(origin.requests().len(), 1, "{:#?}", origin.requests());
}

#[tokio::test]
async fn an_expired_tag_costs_one_head_for_all_who_ask() {
    let (origin, one, two) = origin().await;
    let edge = Edge::with(&origin, "[tags]\nttl = \"2s\"\nrevalidate_timeout = \"1m\"").await;
    assert_body(&latest(&edge).await, 200, &one.manifest);
    origin.move_tag("app", "latest", &two.manifest_digest);
    origin.clear_log();
    let gate = Gate::new();
    origin.fault(Fault::on("HEAD", "latest").gate_headers(&gate));
    let (addr, path) = (edge.addr(), manifest("app", "latest"));
    let mut askers = JoinSet::new();
    // Fresh until one of them makes the edge ask.
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < Duration::from_secs(20), "the tag never expires");
        let path = path.clone();
        askers.spawn(async move { http::get(addr, &path, &[]).await });
        tokio::select! {
            () = gate.reached() => break,
            Some(fresh) = askers.join_next() => assert_body(&fresh.unwrap(), 200, &one.manifest),
        }
    }
    for number in 0..15 {
        let path = path.clone();
        let method = if number % 2 == 0 { "GET" } else { "HEAD" };
        askers.spawn(async move { http::request(method, addr, &path, &[], b"").await });
    }
    until("all have asked", async || edge.metric("clawhub_edge_http_connections").await >= 17).await;
    gate.open();
    for got in askers.join_all().await {
        assert_eq!(got.status, 200);
        assert_eq!(got.header("Docker-Content-Digest"), Some(two.manifest_digest.as_str()));
    }
    assert_eq!(origin.count("HEAD", "latest"), 1, "{:#?}", origin.requests());
    assert_eq!(origin.count("GET", "latest"), 0);
    assert_eq!(origin.count("GET", &two.manifest_digest), 1);
}

#[tokio::test]
async fn a_tag_that_has_not_moved_costs_no_body() {
    let (origin, one, _) = origin().await;
    let edge = Edge::with(&origin, "[tags]\nttl = \"0\"").await;
    for _ in 0..4 {
        assert_body(&latest(&edge).await, 200, &one.manifest);
    }
    assert_eq!((origin.count("GET", ""), origin.count("HEAD", "")), (1, 3));
}

#[tokio::test]
async fn a_moved_tag_is_noticed_when_its_time_is_over() {
    let (origin, one, two) = origin().await;
    let edge = Edge::with(&origin, "[tags]\nttl = \"1s\"").await;
    assert_body(&latest(&edge).await, 200, &one.manifest);
    origin.move_tag("app", "latest", &two.manifest_digest);
    assert_body(&latest(&edge).await, 200, &one.manifest);
    until("the tag has expired", async || latest(&edge).await.body == two.manifest).await;
    assert_eq!(origin.count("HEAD", "latest"), 1, "nobody was asked before");
}

#[tokio::test]
async fn an_immutable_tag_is_never_asked_for_again() {
    let (origin, one, two) = origin().await;
    origin.move_tag("app", "v1", &one.manifest_digest);
    let toml = "[tags]\nttl = \"0\"\n[[tags.rules]]\nmatch = \"origin.test/**:v*\"\nttl = \"forever\"";
    let mut edge = Edge::with(&origin, toml).await;
    let path = manifest("app", "v1");
    assert_body(&http::get(edge.addr(), &path, &[]).await, 200, &one.manifest);
    origin.move_tag("app", "v1", &two.manifest_digest);
    assert_body(&http::get(edge.addr(), &path, &[]).await, 200, &one.manifest);
    edge.restart().await;
    assert_body(&http::get(edge.addr(), &path, &[]).await, 200, &one.manifest);
    assert_eq!(origin.requests().len(), 1);
    // The rule is about that tag alone.
    assert_body(&latest(&edge).await, 200, &one.manifest);
    latest(&edge).await;
    assert_eq!(origin.count("HEAD", "latest"), 1);
}

#[tokio::test]
async fn a_stale_tag_may_be_answered_while_it_is_asked_for() {
    let (origin, one, two) = origin().await;
    let toml = "[tags]\nttl = \"0\"\nstale_while_revalidate = \"1h\"";
    let edge = Edge::with(&origin, toml).await;
    latest(&edge).await;
    origin.move_tag("app", "latest", &two.manifest_digest);
    let gate = Gate::new();
    origin.fault(Fault::on("HEAD", "latest").gate_headers(&gate));
    // The upstream's answer cannot be what these waited for.
    for _ in 0..3 {
        assert_stale(&latest(&edge).await, &one);
    }
    reached(&gate).await;
    assert_eq!(gate.arrivals(), 1, "one question at a time");
    gate.open();
    until("the tag is asked for behind the scenes", async || latest(&edge).await.body == two.manifest).await;
}

/// Everything that keeps an upstream from answering for a tag.
fn outages() -> Vec<(&'static str, Fault)> {
    let on = || Fault::on("*", "latest");
    let page = [("Content-Type", "text/html")];
    vec![
        ("500", on().respond(500, &[], "")),
        ("502", on().respond(502, &page, "<html>bad gateway</html>")),
        ("503", on().respond(503, &[("Retry-After", "60")], "")),
        ("reset", on().reset_unanswered()),
        ("a captive portal", on().respond(200, &page, "<html>log in</html>")),
        ("429", on().rate_limit(60)),
    ]
}

#[tokio::test]
async fn a_stale_tag_is_answered_when_the_upstream_cannot_answer_for_it() {
    let (origin, one, two) = origin().await;
    let edge = Edge::with(&origin, "[tags]\nttl = \"0\"").await;
    assert_body(&latest(&edge).await, 200, &one.manifest);
    origin.move_tag("app", "latest", &two.manifest_digest);
    for (what, fault) in outages() {
        origin.fault(fault);
        let got = latest(&edge).await;
        assert_eq!(got.status, 200, "{what}: {}", got.text());
        assert_stale(&got, &one);
        let head = head_of_latest(&edge).await;
        assert_eq!(head.header("Docker-Content-Digest"), Some(one.manifest_digest.as_str()), "{what}");
        origin.clear_faults();
    }
    origin.vanish().await;
    assert_stale(&latest(&edge).await, &one);
}

#[tokio::test]
async fn a_stale_tag_outlives_a_credential_but_not_the_permission_of_everybody() {
    for status in [401, 403] {
        let (origin, one, _) = origin().await;
        let keys = "username = \"u\"\npassword = \"p\"";
        let known =
            Edge::builder().upstream(UPSTREAM, &origin.url(), keys).toml("[tags]\nttl = \"0\"").start().await;
        let anonymous = Edge::with(&origin, "[tags]\nttl = \"0\"").await;
        for edge in [&known, &anonymous] {
            assert_body(&latest(edge).await, 200, &one.manifest);
        }
        origin.fault(Fault::on("*", "latest").respond(status, &[], ""));
        assert_stale(&latest(&known).await, &one);
        assert_error(&latest(&anonymous).await, 403, "DENIED");
    }
}

#[tokio::test]
async fn a_stale_tag_waits_no_longer_than_allowed_for_a_black_hole() {
    let (origin, one, _) = origin().await;
    let toml = "[tags]\nttl = \"0\"\nrevalidate_timeout = \"300ms\"";
    let edge = Edge::with(&origin, toml).await;
    latest(&edge).await;
    origin.black_hole(true);
    for _ in 0..3 {
        let began = Instant::now();
        assert_stale(&latest(&edge).await, &one);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
    origin.black_hole(false);
    until("the upstream is asked again", async || {
        let got = latest(&edge).await;
        got.header("Cache-Status").is_some_and(|status| status.contains("fwd=stale"))
    })
    .await;
}

#[tokio::test]
async fn stale_tags_can_be_refused() {
    let (origin, _, _) = origin().await;
    let edge = Edge::with(&origin, "[tags]\nttl = \"0\"\nstale_if_error = \"0s\"").await;
    assert_eq!(latest(&edge).await.status, 200);
    origin.vanish().await;
    assert_error(&latest(&edge).await, 502, "UNAVAILABLE");
}

#[tokio::test]
async fn a_removed_tag_is_gone_and_not_stale() {
    let (origin, one, _) = origin().await;
    let edge = Edge::with(&origin, "[tags]\nttl = \"0\"").await;
    assert_eq!(latest(&edge).await.status, 200);
    origin.remove_tag("app", "latest");
    assert_error(&latest(&edge).await, 404, "MANIFEST_UNKNOWN");
    // It stays gone when the upstream is, and the digest is still there.
    origin.vanish().await;
    until("the negative answer is forgotten", async || latest(&edge).await.status != 404).await;
    assert_error(&latest(&edge).await, 502, "UNAVAILABLE");
    let by_digest = http::get(edge.addr(), &manifest("app", &one.manifest_digest), &[]).await;
    assert_body(&by_digest, 200, &one.manifest);
}

#[tokio::test]
async fn a_tag_whose_manifest_was_replaced_upstream_is_found_again() {
    let (origin, one, two) = origin().await;
    let edge = Edge::start(&origin).await;
    // Only the record is here; the body was never fetched, and is deleted before it could be.
    assert_eq!(
        head_of_latest(&edge).await.header("Docker-Content-Digest"),
        Some(one.manifest_digest.as_str())
    );
    origin.remove_manifest("app", &one.manifest_digest);
    origin.move_tag("app", "latest", &two.manifest_digest);
    assert_body(&latest(&edge).await, 200, &two.manifest);
}

#[tokio::test]
async fn a_push_is_seen_seconds_after_a_pull_found_nothing() {
    let origin = Origin::start().await;
    origin.add_blob("app", "makes the repository known");
    let edge = Edge::start(&origin).await;
    assert_error(&latest(&edge).await, 404, "MANIFEST_UNKNOWN");
    assert_eq!(head_of_latest(&edge).await.status, 404);
    let image = origin.add_image("app", "latest", vec!["pushed".into()]);
    let began = Instant::now();
    until("the push is seen", async || head_of_latest(&edge).await.status == 200).await;
    assert_body(&latest(&edge).await, 200, &image.manifest);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");

    let late = crate::support::origin::sha256(b"late");
    let missing = http::get(edge.addr(), &blob("app", &late), &[]).await;
    assert_error(&missing, 404, "BLOB_UNKNOWN");
    assert_eq!(origin.add_blob("app", "late"), late);
    until("the blob is seen", async || http::head(edge.addr(), &blob("app", &late), &[]).await.status == 200)
        .await;
    pull_blob(edge.addr(), "app", &late).await;
}

#[tokio::test]
async fn what_does_not_exist_is_not_asked_for_a_hundred_times() {
    let origin = Origin::start().await;
    origin.add_blob("app", "makes the repository known");
    let edge = Edge::with(&origin, "[tags]\nnegative_ttl = \"1h\"").await;
    let absent = crate::support::origin::sha256(b"absent");
    for path in [manifest("app", "absent"), manifest("app", &absent), blob("app", &absent)] {
        origin.clear_log();
        for _ in 0..10 {
            assert_eq!(http::get(edge.addr(), &path, &[]).await.status, 404);
            assert_eq!(http::head(edge.addr(), &path, &[]).await.status, 404);
        }
        let asked = origin.requests().len();
        assert!(asked <= 2, "{path}: {asked} requests");
    }
}

#[tokio::test]
async fn an_upstream_whose_head_says_little_is_asked_with_get() {
    for fault in [
        Fault::on("HEAD", "/manifests/").drop_digest_header(),
        Fault::on("HEAD", "/manifests/").respond(405, &[], ""),
    ] {
        let (origin, one, two) = origin().await;
        origin.fault(fault);
        let edge = Edge::with(&origin, "[tags]\nttl = \"0\"").await;
        for image in [&one, &two] {
            origin.move_tag("app", "latest", &image.manifest_digest);
            let head = head_of_latest(&edge).await;
            assert_eq!(head.header("Docker-Content-Digest"), Some(image.manifest_digest.as_str()));
            assert_eq!(head.header("Content-Type"), Some(OCI_MANIFEST));
            assert_body(&latest(&edge).await, 200, &image.manifest);
        }
    }
}

#[tokio::test]
async fn what_was_answered_during_the_drain_is_remembered() {
    let (origin, one, _) = origin().await;
    let gate = Gate::new();
    origin.fault(Fault::on("GET", "latest").times(1).gate_headers(&gate));
    let mut edge = Edge::start(&origin).await;
    let (addr, path) = (edge.addr(), manifest("app", "latest"));
    let client = tokio::spawn(async move { http::get(addr, &path, &[]).await });
    reached(&gate).await;
    edge.terminate();
    until("the drain has begun", async || edge.log().contains("draining")).await;
    gate.open();
    assert_body(&client.await.unwrap(), 200, &one.manifest);
    assert!(edge.ended().await.success());
    origin.vanish().await;
    edge.restart().await;
    assert_body(&latest(&edge).await, 200, &one.manifest);
}

#[tokio::test]
async fn tags_of_one_upstream_say_nothing_about_another() {
    let (origin, one, _) = origin().await;
    let other = Origin::start().await;
    let foreign = other.add_image("app", "latest", vec!["foreign".into()]);
    let edge = Edge::builder()
        .upstream(UPSTREAM, &origin.url(), "")
        .upstream("other.test", &other.url(), "")
        .start()
        .await;
    for _ in 0..2 {
        assert_body(&latest(&edge).await, 200, &one.manifest);
        let path = format!("{}?ns=other.test", manifest("app", "latest"));
        assert_body(&http::get(edge.addr(), &path, &[]).await, 200, &foreign.manifest);
    }
}
