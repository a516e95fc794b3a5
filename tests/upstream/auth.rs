//! Credentials: to whom they go, and to whom they do not.

use std::time::Duration;

use clawhub_edge::upstream::{Blame, Error, Purpose, Whose};

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
            tokio::spawn(
                async move { client.manifest(&route, &"latest".parse().unwrap(), Purpose::Pull).await },
            )
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
    assert!(matches!(error, Error::Unauthorized { whose: Whose::Edge, .. }), "{error}");
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
        let head = edge.client.head_blob(&edge.route(), &super::parsed(&digest), Purpose::Pull).await;
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

/// As `robot` by an identity token in Docker's file.
fn by_identity_token(origin: &Origin, folder: &std::path::Path, token: &str) -> Edge {
    let path = folder.join("config.json");
    let host = origin.url().replace("http://", "");
    let entry = format!(r#"{{"auths":{{"{host}":{{"auth":"cm9ib3Q6","identitytoken":"{token}"}}}}}}"#);
    std::fs::write(&path, entry).unwrap();
    let (file, url) = (path.display(), origin.url());
    let text = format!("[fetch]\ndocker_config = \"{file}\"\n[upstreams.\"x.example\"]\nurl = \"{url}\"\n");
    Edge::configured(&text, super::quick())
}

fn with_identity_tokens(rotates: bool) -> BearerConfig {
    let identity_tokens = vec![("robot".to_owned(), "first-refresh".to_owned())];
    BearerConfig { identity_tokens, rotates, ..bearer() }
}

/// What was posted to the token service, as the values of `name`.
fn posted(origin: &Origin, name: &str) -> Vec<String> {
    let field = |body: String| {
        let value = body.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().to_owned()
    };
    let requests = origin.requests().into_iter();
    requests.filter(|request| request.method == "POST").map(|request| field(request.body)).collect()
}

#[tokio::test]
async fn an_identity_token_is_posted_and_goes_nowhere_else() {
    let (origin, digest) = guarded().await;
    let storage = Origin::start().await;
    storage.add_synthetic_blob(REPOSITORY, 1000, 3);
    origin.require_bearer(with_identity_tokens(false));
    origin.fault(Fault::on("GET", &digest).redirect_to(&storage.url()));
    let folder = tempfile::tempdir().unwrap();
    let edge = by_identity_token(&origin, folder.path(), "first-refresh");
    edge.manifest("latest").await.unwrap();
    edge.fetch(&digest, 0).await.unwrap();
    assert_eq!(posted(&origin, "refresh_token"), ["first-refresh"]);
    assert_eq!(posted(&origin, "grant_type"), ["refresh_token"]);
    assert_eq!(posted(&origin, "client_id"), ["clawhub-edge"]);
    assert_eq!(posted(&origin, "scope"), [format!("repository:{REPOSITORY}:pull")]);
    assert_eq!(origin.count("GET", "/token"), 0);
    for request in origin.requests().iter().chain(&storage.requests()) {
        let elsewhere = format!("{} {:?}", request.target(), request.headers);
        assert!(!elsewhere.contains("first-refresh"), "{elsewhere}");
    }
    assert_eq!(authorized(&storage), 0);
}

#[tokio::test]
async fn a_rotated_refresh_token_is_kept_and_the_configured_one_is_the_last_resort() {
    let (origin, _) = guarded().await;
    origin.require_bearer(with_identity_tokens(true));
    let folder = tempfile::tempdir().unwrap();
    let edge = by_identity_token(&origin, folder.path(), "first-refresh");
    for _ in 0..3 {
        edge.manifest("latest").await.unwrap();
        origin.revoke_tokens();
    }
    let sent = posted(&origin, "refresh_token");
    assert_eq!((sent.len(), sent[0].as_str()), (3, "first-refresh"));
    assert!(sent[1] != sent[0] && sent[2] != sent[1], "{sent:?}");
    // The service has forgotten everything since, as one does that was set up anew.
    origin.require_bearer(with_identity_tokens(true));
    origin.revoke_tokens();
    edge.manifest("latest").await.unwrap();
    assert_eq!(posted(&origin, "refresh_token").last().unwrap(), "first-refresh");
    origin.require_bearer(BearerConfig { identity_tokens: Vec::new(), ..with_identity_tokens(true) });
    origin.revoke_tokens();
    let error = edge.manifest("latest").await.unwrap_err();
    assert!(error.to_string().contains("invalid_grant"), "{error}");
    assert_eq!(error.blame(), Blame::Edge);
}

#[tokio::test]
async fn a_service_that_takes_passwords_by_post_only_is_remembered() {
    let (origin, _) = guarded().await;
    origin.require_bearer(BearerConfig { post_only: true, ..bearer() });
    let edge = as_robot(&origin);
    edge.manifest("latest").await.unwrap();
    origin.revoke_tokens();
    edge.manifest("latest").await.unwrap();
    assert_eq!((origin.count("GET", "/token"), origin.count("POST", "/token")), (1, 2));
    assert_eq!(posted(&origin, "password"), [SECRET, SECRET]);
    assert_eq!(posted(&origin, "grant_type"), ["password", "password"]);
}

#[tokio::test]
async fn no_redirect_of_a_token_request_is_followed() {
    let thief = Origin::start().await;
    let folder = tempfile::tempdir().unwrap();
    for rotates in [false, true] {
        let (origin, _) = guarded().await;
        origin.require_bearer(with_identity_tokens(rotates));
        origin.fault(Fault::on("*", "/token").redirect_to(&thief.url()));
        let edges = [as_robot(&origin), by_identity_token(&origin, folder.path(), "first-refresh")];
        for edge in edges {
            assert_eq!(edge.manifest("latest").await.unwrap_err().kind(), "not_a_registry");
        }
    }
    assert_eq!(thief.connections_accepted(), 0);
}

#[tokio::test]
async fn a_hostile_realm_gets_no_refresh_token() {
    let thief = Origin::start().await;
    let (origin, _) = guarded().await;
    let realm = thief.url().replace("127.0.0.1", "localhost") + "/token";
    origin.require_bearer(BearerConfig { realm: Some(realm), ..with_identity_tokens(false) });
    let folder = tempfile::tempdir().unwrap();
    let edge = by_identity_token(&origin, folder.path(), "first-refresh");
    assert_eq!(edge.manifest("latest").await.unwrap_err().kind(), "realm_refused");
    assert_eq!(thief.connections_accepted(), 0);
}

#[tokio::test]
async fn a_rotated_refresh_token_is_not_sent_to_another_token_service() {
    let (origin, _) = guarded().await;
    let other = Origin::start().await;
    origin.require_bearer(with_identity_tokens(true));
    other.require_bearer(with_identity_tokens(true));
    let folder = tempfile::tempdir().unwrap();
    let edge = by_identity_token(&origin, folder.path(), "first-refresh");
    edge.manifest("latest").await.unwrap();
    let realm = Some(format!("{}/token", other.url()));
    origin.require_bearer(BearerConfig { realm, ..with_identity_tokens(true) });
    origin.revoke_tokens();
    edge.manifest("latest").await.unwrap_err();
    assert!(!posted(&other, "refresh_token").is_empty());
    assert!(
        posted(&other, "refresh_token")
            .iter()
            .all(|sent| sent == "first-refresh" || other_gave(&other, sent))
    );
}

/// Whether the service itself has given this refresh token, by exchanging the configured one.
fn other_gave(service: &Origin, sent: &str) -> bool {
    posted(service, "refresh_token").first().is_some_and(|first| first == "first-refresh") && sent.len() == 40
}

#[tokio::test]
async fn a_helpers_answer_is_used_until_it_is_refused_and_many_share_one_asking() {
    let (origin, _) = guarded().await;
    let folder = tempfile::tempdir().unwrap();
    let answer = |password: &str| {
        format!(r#"echo run >> runs; sleep 0.1; echo '{{"Username":"robot","Secret":"{password}"}}'"#)
    };
    let lines = super::helper(folder.path(), &answer(SECRET));
    let runs = || std::fs::read_to_string(folder.path().join("runs")).unwrap().lines().count();
    let edge = Edge::with(&format!("url = \"{}\"\n{lines}", origin.url()));
    let repositories: Vec<_> = (0..8).map(|n| format!("library/app{n}")).collect();
    for repository in &repositories {
        origin.add_image(repository, "latest", vec![]);
    }
    let pulls = repositories.iter().map(|repository| {
        let route = edge.route_to(repository.parse().unwrap());
        let client = &edge.client;
        async move { client.manifest(&route, &"latest".parse().unwrap(), Purpose::Pull).await.unwrap() }
    });
    futures_util::future::join_all(pulls).await;
    assert_eq!(runs(), 1);

    // A cloud's password expires, and its helper knows the next one.
    origin.require_bearer(BearerConfig { users: vec![("robot".to_owned(), "next".to_owned())], ..bearer() });
    origin.revoke_tokens();
    std::fs::write(folder.path().join("script"), answer("next")).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    edge.manifest("latest").await.unwrap();
    assert_eq!(runs(), 2);

    // A password that stays wrong does not start a program for every request.
    origin.require_bearer(BearerConfig { users: Vec::new(), ..bearer() });
    origin.revoke_tokens();
    for _ in 0..10 {
        assert_eq!(edge.manifest("latest").await.unwrap_err().blame(), Blame::Edge);
    }
    assert!(runs() <= 3, "{} runs", runs());
}

#[tokio::test]
async fn a_helper_that_fails_is_the_operators_business_and_named() {
    let (origin, _) = guarded().await;
    let folder = tempfile::tempdir().unwrap();
    let lines = super::helper(folder.path(), "echo 'the account is locked'; exit 1");
    let error =
        Edge::with(&format!("url = \"{}\"\n{lines}", origin.url())).manifest("latest").await.unwrap_err();
    assert_eq!(error.blame(), Blame::Edge);
    for part in ["docker-credential-test", "the account is locked"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}
