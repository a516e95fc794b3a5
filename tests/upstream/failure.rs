//! Upstreams that are down, slow, silent or busy.

use std::time::Duration;

use clawhub_edge::upstream::{Error, Purpose, Stage};
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

#[tokio::test]
async fn a_dead_primary_costs_nothing_while_the_mirror_serves_and_is_the_primary_again_when_it_is_well() {
    for kind in ["refused", "503"] {
        let (primary, mirror) = (origin().await, origin().await);
        if kind == "refused" {
            primary.vanish().await;
        } else {
            primary.fault(Fault::on("*", "").respond(503, &[], ""));
        }
        let edge = Edge::of(&[primary.url(), mirror.url()]);
        let up = || edge.counted("upstream_endpoint_up", &primary.url());
        assert_eq!(up(), 1);
        for _ in 0..20 {
            edge.manifest("latest").await.unwrap();
        }
        assert_eq!((up(), mirror.count("GET", "/manifests/")), (0, 20), "{kind}");
        assert!(primary.count("*", "") <= 5, "{kind}: left alone after a few");
        // What the mirror does not have is known at once, and not called "not found".
        let began = Instant::now();
        assert_eq!(edge.manifest("absent").await.unwrap_err().kind(), "unreachable");
        assert!(began.elapsed() < Duration::from_millis(20), "{kind}: {:?}", began.elapsed());

        primary.clear_faults();
        primary.come_back().await;
        primary.clear_log();
        let limit = Instant::now() + Duration::from_secs(4);
        while up() == 0 {
            assert!(Instant::now() < limit, "{kind}: the primary is not noticed");
            tokio::time::sleep(Duration::from_millis(50)).await;
            edge.manifest("latest").await.unwrap();
        }
        mirror.clear_log();
        edge.manifest("latest").await.unwrap();
        assert_eq!(mirror.count("*", ""), 0, "{kind}: the order is the operator's");
    }
}

#[tokio::test]
async fn storage_that_fails_behind_a_redirect_does_not_close_its_registry() {
    let (primary, mirror, storage) = (origin().await, origin().await, Origin::start().await);
    let digest = primary.add_synthetic_blob(REPOSITORY, 1000, 3);
    mirror.add_synthetic_blob(REPOSITORY, 1000, 3);
    primary.fault(Fault::on("GET", &digest).redirect_to(&storage.url()));
    storage.vanish().await;
    let edge = Edge::of(&[primary.url(), mirror.url()]);
    for _ in 0..10 {
        assert_eq!(edge.fetch(&digest, 0).await.unwrap(), synthetic_bytes(1000, 3));
    }
    assert_eq!(edge.counted("upstream_endpoint_up", &primary.url()), 1);
}

#[tokio::test]
async fn a_quota_that_runs_out_is_kept_for_pulls_and_the_rest_goes_without_a_request() {
    let origin = origin().await;
    let tell = |remaining: &str| {
        origin.clear_faults();
        let fault = Fault::on("*", "/manifests/").header("ratelimit-limit", "100;w=21600");
        origin.fault(fault.header("ratelimit-remaining", remaining));
    };
    tell("9;w=21600");
    let edge = Edge::of(&[origin.url()]);
    let (route, latest) = (edge.route(), "latest".parse().unwrap());
    edge.manifest("latest").await.unwrap();
    assert_eq!(edge.counted("upstream_quota_remaining", "x.example"), 9);
    assert_eq!(edge.counted("upstream_quota_limit", "x.example"), 100);
    origin.clear_log();
    for purpose in [Purpose::Revalidation, Purpose::Background] {
        let error = edge.client.head_manifest(&route, &latest, purpose).await.unwrap_err();
        assert!(matches!(error, Error::RateLimited { retry_after: Some(_), .. }), "{error}");
        assert_eq!(edge.counted("upstream_quota_refusals_total", purpose.as_str()), 1);
    }
    assert_eq!(origin.count("*", ""), 0, "no request");
    edge.manifest("latest").await.unwrap();

    // This registry counts no HEAD, as its answers show: nobody needs to go without one.
    for _ in 0..2 {
        edge.head("latest").await.unwrap();
    }
    edge.client.head_manifest(&route, &latest, Purpose::Background).await.unwrap();
    tell("0;w=21600");
    edge.manifest("latest").await.unwrap();
    edge.client.head_manifest(&route, &latest, Purpose::Background).await.unwrap();
}

#[tokio::test]
async fn an_endpoint_whose_quota_is_short_leaves_revalidations_to_the_next() {
    let (first, second) = (origin().await, origin().await);
    let fault = Fault::on("*", "/manifests/").header("x-ratelimit-limit", "100");
    first.fault(fault.header("x-ratelimit-remaining", "3"));
    let edge = Edge::of(&[first.url(), second.url()]);
    edge.manifest("latest").await.unwrap();
    let (route, latest) = (edge.route(), "latest".parse().unwrap());
    edge.client.head_manifest(&route, &latest, Purpose::Revalidation).await.unwrap();
    assert_eq!(second.count("HEAD", "/manifests/"), 1);
}
