//! Credentials: to whom they go, and to whom they do not.

use std::time::Duration;

use clawhub_edge::upstream::{Blame, Error};

use super::origin::{BearerConfig, Fault, Origin, synthetic_bytes};
use super::{Edge, REPOSITORY};

const SECRET: &str = "open-sesame";

/// An origin that gives tokens to `robot` only.
async fn guarded() -> (Origin, String) {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob(REPOSITORY, 1000, 3);
    origin.add_image(REPOSITORY, "latest", vec![]);
    origin.require_bearer(bearer());
    (origin, digest)
}

fn bearer() -> BearerConfig {
    let users = vec![("robot".to_owned(), SECRET.to_owned())];
    BearerConfig { users, anonymous_allowed: false, ..BearerConfig::default() }
}

fn as_robot(origin: &Origin) -> Edge {
    Edge::with(&format!("url = \"{}\"\nusername = \"robot\"\npassword = \"{SECRET}\"", origin.url()))
}

/// Requests that carried an `Authorization`.
fn authorized(origin: &Origin) -> usize {
    origin.requests().iter().filter(|request| request.header("authorization").is_some()).count()
}

#[tokio::test]
async fn a_challenge_is_answered_once_and_its_token_then_sent_straight_away() {
    let (origin, digest) = guarded().await;
    let edge = as_robot(&origin);
    edge.manifest("latest").await.unwrap();
    edge.head("latest").await.unwrap();
    assert_eq!(edge.fetch(&digest, 0).await.unwrap(), synthetic_bytes(1000, 3));
    assert_eq!(origin.count("GET", "/token"), 1);
    assert_eq!(origin.count("*", "/v2/"), 4, "one challenge, then three answers");
    assert_eq!(edge.counted("upstream_token_exchanges_total", "ok"), 1);
}

#[tokio::test]
async fn many_at_once_share_one_token() {
    let (origin, _) = guarded().await;
    origin.fault(Fault::on("GET", "/token").delay_headers(Duration::from_millis(50)));
    let edge = as_robot(&origin);
    let requests: Vec<_> = (0..20)
        .map(|_| {
            let (client, route) = (edge.client.clone(), edge.route());
            tokio::spawn(async move { client.manifest(&route, &"latest".parse().unwrap()).await })
        })
        .collect();
    for request in requests {
        request.await.unwrap().unwrap();
    }
    assert_eq!(origin.count("GET", "/token"), 1);
}

#[tokio::test]
async fn a_revoked_token_is_renewed_once() {
    let (origin, _) = guarded().await;
    let edge = as_robot(&origin);
    edge.manifest("latest").await.unwrap();
    origin.revoke_tokens();
    edge.manifest("latest").await.unwrap();
    assert_eq!(origin.count("GET", "/token"), 2);
}

#[tokio::test]
async fn an_expired_token_is_renewed_before_it_is_sent() {
    let (origin, _) = guarded().await;
    let edge = as_robot(&origin);
    edge.manifest("latest").await.unwrap();
    edge.clock.advance(Duration::from_secs(269));
    edge.manifest("latest").await.unwrap();
    assert_eq!(origin.count("GET", "/token"), 1);
    edge.clock.advance(Duration::from_secs(2));
    origin.clear_log();
    edge.manifest("latest").await.unwrap();
    assert_eq!((origin.count("GET", "/token"), origin.count("GET", "/v2/")), (1, 1), "no 401 in between");
}

#[tokio::test]
async fn a_refused_credential_is_the_operators_business_and_tried_once() {
    let (origin, _) = guarded().await;
    let edge = Edge::with(&format!("url = \"{}\"\nusername = \"robot\"\npassword = \"wrong\"", origin.url()));
    let error = edge.manifest("latest").await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { has_credential: true, .. }), "{error}");
    assert_eq!(error.blame(), Blame::Edge);
    assert!(!error.is_retryable());
    assert_eq!(origin.count("GET", "/token"), 1);
    assert!(!format!("{error} {error:?}").contains("wrong"));

    let anonymous = Edge::of(&[origin.url()]);
    assert_eq!(anonymous.manifest("latest").await.unwrap_err().blame(), Blame::Request);
}

#[tokio::test]
async fn basic_credentials_wait_for_their_challenge() {
    let (origin, digest) = guarded().await;
    origin.require_basic("robot", SECRET);
    let edge = as_robot(&origin);
    edge.fetch(&digest, 0).await.unwrap();
    edge.manifest("latest").await.unwrap();
    let sent: Vec<_> =
        origin.requests().iter().map(|request| request.header("authorization").is_some()).collect();
    assert_eq!(sent, [false, true, true]);

    let wrong =
        Edge::with(&format!("url = \"{}\"\nusername = \"robot\"\npassword = \"wrong\"", origin.url()));
    origin.clear_log();
    assert_eq!(wrong.manifest("latest").await.unwrap_err().kind(), "unauthorized");
    assert_eq!(origin.count("*", ""), 2);
}

#[tokio::test]
async fn a_hostile_realm_gets_no_request_at_all() {
    let thief = Origin::start().await;
    let (origin, _) = guarded().await;
    // Another host by name, although it is the same machine.
    let realm = thief.url().replace("127.0.0.1", "localhost") + "/token?steal=1";
    origin.require_bearer(BearerConfig { realm: Some(realm), ..bearer() });
    let error = as_robot(&origin).manifest("latest").await.unwrap_err();
    assert!(matches!(&error, Error::RealmRefused { realm, .. } if realm.contains("localhost")), "{error}");
    assert_eq!(error.blame(), Blame::Edge);
    assert!(error.to_string().contains("`realms`") && !error.to_string().contains("steal"), "{error}");
    assert_eq!(thief.connections_accepted(), 0);

    let realm = thief.url().replace("127.0.0.1", "localhost");
    let allowing = Edge::with(&format!(
        "url = \"{}\"\nrealms = [\"{realm}\"]\nusername = \"robot\"\npassword = \"{SECRET}\"",
        origin.url()
    ));
    assert!(allowing.manifest("latest").await.is_err(), "its tokens are worth nothing here");
    assert_eq!(authorized(&thief), 1, "a configured one gets the credential");
}

#[tokio::test]
async fn a_redirect_to_another_site_drops_the_authorization() {
    let (origin, digest) = guarded().await;
    let storage = Origin::start().await;
    storage.add_synthetic_blob(REPOSITORY, 1000, 3);
    origin.fault(Fault::on("*", &digest).redirect_to(&storage.url()));
    for scheme in ["bearer", "basic"] {
        if scheme == "basic" {
            origin.require_basic("robot", SECRET);
        }
        let edge = as_robot(&origin);
        assert_eq!(edge.fetch(&digest, 0).await.unwrap(), synthetic_bytes(1000, 3));
        let head = edge.client.head_blob(&edge.route(), &super::parsed(&digest)).await;
        assert_eq!(head.unwrap().size, Some(1000));
    }
    assert_eq!(storage.count("GET", "redirected=1"), 2);
    assert_eq!(authorized(&storage), 0);
    assert!(authorized(&origin) > 0);
}

#[tokio::test]
async fn a_redirect_on_the_same_site_keeps_the_authorization() {
    let (origin, digest) = guarded().await;
    origin.fault(Fault::on("GET", &digest).times(1).redirect_to(&origin.url()));
    let edge = as_robot(&origin);
    assert_eq!(edge.fetch(&digest, 0).await.unwrap(), synthetic_bytes(1000, 3));
}

#[tokio::test]
async fn redirects_have_an_end() {
    let (origin, digest) = guarded().await;
    origin.require_nothing();
    origin.fault(Fault::on("GET", &digest).redirect_to(&origin.url()));
    let error = Edge::of(&[origin.url()]).fetch(&digest, 0).await.unwrap_err();
    assert_eq!(error.kind(), "not_a_registry", "{error}");
    assert!(!error.to_string().contains("redirected=1"), "{error}");
    assert_eq!(origin.count("GET", &digest), 6);
}

#[tokio::test]
async fn each_endpoint_has_its_own_credential() {
    let (first, _) = guarded().await;
    let (second, _) = guarded().await;
    second.require_basic("other", "word");
    first.fault(Fault::on("GET", "/manifests/").respond(404, &[], ""));
    let edge = Edge::with(&format!(
        "[[upstreams.\"x.example\".endpoints]]\nurl = \"{}\"\nusername = \"robot\"\npassword = \"{SECRET}\"\n\
         [[upstreams.\"x.example\".endpoints]]\nurl = \"{}\"\nusername = \"other\"\npassword = \"word\"\n",
        first.url(),
        second.url()
    ));
    edge.manifest("latest").await.unwrap();
    edge.manifest("latest").await.unwrap();
    let second_saw = second.requests();
    let tokens = second_saw.iter().filter_map(|request| request.header("authorization"));
    assert!(tokens.into_iter().all(|sent| sent == "Basic b3RoZXI6d29yZA=="));
}

#[tokio::test]
async fn a_token_service_that_is_down_is_no_missing_right() {
    let (origin, _) = guarded().await;
    origin.fault(Fault::on("GET", "/token").respond(503, &[], ""));
    let edge = as_robot(&origin);
    let error = edge.manifest("latest").await.unwrap_err();
    assert_eq!(error.kind(), "unreachable", "{error}");
    origin.clear_faults();
    edge.manifest("latest").await.unwrap();
}
