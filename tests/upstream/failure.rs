//! Upstreams that are down, slow, silent or busy.

use std::time::Duration;

use clawhub_edge::upstream::{Error, Stage};
use tokio::time::Instant;

use super::origin::{Fault, Origin, SilentHost, synthetic_bytes};
use super::{Edge, REPOSITORY};

async fn origin() -> Origin {
    let origin = Origin::start().await;
    origin.add_image(REPOSITORY, "latest", vec![]);
    origin
}

#[tokio::test]
async fn a_refused_connection_fails_well_within_two_seconds() {
    let origin = origin().await;
    origin.vanish().await;
    let edge = Edge::of(&[origin.url(), origin.url()]);
    let began = Instant::now();
    let error = edge.manifest("latest").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.is_retryable());
    assert!(error.to_string().contains("x.example") && error.to_string().contains(&origin.url()), "{error}");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    origin.come_back().await;
    edge.manifest("latest").await.unwrap();
}

#[tokio::test]
async fn a_black_hole_costs_one_connect_deadline_and_then_nothing() {
    let host = SilentHost::start().await;
    let edge = Edge::of(&[host.url()]);
    let began = Instant::now();
    let error = edge.manifest("latest").await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { stage: Stage::Connect, .. }), "{error}");
    let first = began.elapsed();
    assert!(first >= Duration::from_millis(290) && first < Duration::from_millis(600), "{first:?}");

    let began = Instant::now();
    for _ in 0..100 {
        let error = edge.manifest("latest").await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { stage: Stage::Connect, .. }), "{error}");
    }
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_endpoint_that_never_answers_is_left_alone_until_a_probe_succeeds() {
    let origin = origin().await;
    origin.black_hole(true);
    let edge = Edge::of(&[origin.url()]);
    let error = edge.manifest("latest").await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { stage: Stage::Headers, .. }), "{error}");
    origin.black_hole(false);
    assert!(edge.manifest("latest").await.is_err(), "the pause lasts a second");
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    edge.manifest("latest").await.unwrap();
}

#[tokio::test]
async fn behind_a_silent_endpoint_the_next_one_answers() {
    let (host, second) = (SilentHost::start().await, origin().await);
    let edge = Edge::of(&[host.url(), second.url()]);
    edge.manifest("latest").await.unwrap();
    let began = Instant::now();
    edge.manifest("latest").await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_will_not_is_not() {
    for (status, expected) in [(500, 3), (502, 3), (503, 3), (408, 3), (400, 1), (404, 1), (405, 1), (451, 1)]
    {
        let origin = origin().await;
        origin.fault(Fault::on("GET", "/manifests/").respond(status, &[], ""));
        let error = Edge::of(&[origin.url()]).manifest("latest").await.unwrap_err();
        assert_eq!(origin.count("GET", "/manifests/"), expected, "{status}: {error}");
        assert_eq!(error.is_retryable(), expected > 1, "{status}");
    }
    let origin = origin().await;
    origin.fault(Fault::on("GET", "/manifests/").times(2).reset_unanswered());
    Edge::of(&[origin.url()]).manifest("latest").await.unwrap();
}

#[tokio::test]
async fn unknown_is_said_only_if_every_endpoint_says_so() {
    let (has_not, also_not, has) = (Origin::start().await, Origin::start().await, origin().await);
    let (gone, denies) = (origin().await, origin().await);
    gone.vanish().await;
    denies.require_basic("somebody", "else");
    let cases = [
        (vec![&has_not, &also_not], "not_found"),
        (vec![&has_not, &has], "ok"),
        (vec![&gone, &has], "ok"),
        (vec![&denies, &has], "ok"),
        (vec![&has_not, &gone], "unreachable"),
        (vec![&gone, &has_not], "unreachable"),
        (vec![&has_not, &denies], "unauthorized"),
    ];
    for (origins, expected) in cases {
        let urls: Vec<_> = origins.iter().map(|origin| origin.url()).collect();
        let result = Edge::of(&urls).manifest("latest").await;
        assert_eq!(result.as_ref().err().map_or("ok", Error::kind), expected, "{urls:?}: {result:?}");
    }
}

#[tokio::test]
async fn a_rate_limit_is_kept_for_manifests_and_leaves_blobs_alone() {
    let origin = origin().await;
    let digest = origin.add_synthetic_blob(REPOSITORY, 1000, 3);
    origin.fault(Fault::on("*", "/manifests/").times(1).rate_limit(1));
    let edge = Edge::of(&[origin.url()]);
    let error = edge.manifest("latest").await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(1)), "{error}");
    let again = edge.head("latest").await.unwrap_err();
    assert!(
        matches!(again, Error::RateLimited { retry_after: Some(wait), .. } if wait <= Duration::from_secs(1))
    );
    assert_eq!(origin.count("*", "/manifests/"), 1, "it is not asked before the time is over");
    assert_eq!(edge.fetch(&digest, 0).await.unwrap(), synthetic_bytes(1000, 3));
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    edge.manifest("latest").await.unwrap();
}
