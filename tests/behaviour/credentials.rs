//! Upstream credentials: used where they belong, renewed when they are spent, and shown to nobody.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::task::JoinSet;

use crate::support::edge::{Builder, Edge, UPSTREAM, until};
use crate::support::http;
use crate::support::origin::{BearerConfig, Fault, Logged, Origin, sha256};
use crate::{assert_body, assert_error, blob, manifest, pull, pull_blob};

const USER: &str = "robot";
/// Odd enough to be found by a search, and to be spoilt by a wrong encoding.
const PASSWORD: &str = "hunter2/+ÜNIQUE=päss";
const BODY: &str = "a private layer";

fn login() -> String {
    format!("username = \"{USER}\"\npassword = \"{PASSWORD}\"")
}

fn basic() -> String {
    STANDARD.encode(format!("{USER}:{PASSWORD}"))
}

fn bearer(origin: &Origin) -> BearerConfig {
    let config = BearerConfig {
        users: vec![(USER.to_owned(), PASSWORD.to_owned())],
        anonymous_allowed: false,
        ..BearerConfig::default()
    };
    origin.require_bearer(config.clone());
    config
}

/// Whether the password or a token is in a request, in any header or in its target.
fn carries_secret(request: &Logged) -> bool {
    request.header("Authorization").is_some() || request.target().contains(&basic())
}

fn tokens(origin: &Origin) -> Vec<String> {
    let bearer =
        |request: &Logged| request.header("Authorization")?.strip_prefix("Bearer ").map(str::to_owned);
    origin.requests().iter().filter_map(bearer).collect()
}

fn with_login(origin: &Origin) -> Builder {
    Edge::builder().upstream(UPSTREAM, &origin.url(), &login())
}

#[tokio::test]
async fn basic_and_bearer_upstreams_are_pulled_from() {
    for is_bearer in [false, true] {
        let origin = Origin::start().await;
        let image = origin.add_image("app", "1", vec![BODY.into()]);
        if is_bearer {
            bearer(&origin);
        } else {
            origin.require_basic(USER, PASSWORD);
        }
        let mut edge = with_login(&origin).start().await;
        pull(&edge, "app", "1", &image).await;
        assert_eq!(origin.count("GET", "/token"), usize::from(is_bearer));
        let refused = origin.requests().iter().filter(|request| request.status == 401).count();
        assert_eq!(refused, 1, "one challenge: {:#?}", origin.requests());
        origin.vanish().await;
        edge.restart().await;
        pull(&edge, "app", "1", &image).await;
    }
}

#[tokio::test]
async fn a_password_may_come_from_anywhere_that_is_documented() {
    let origin = Origin::start().await;
    let digest = origin.add_blob("app", BODY);
    bearer(&origin);
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let password_file = write("password", &format!("{PASSWORD}\n"));
    let auths = serde_json::json!({ "auths": { origin.addr().to_string(): { "auth": basic() } } });
    let docker_config = write("config.json", &auths.to_string());
    let url = origin.url();
    let builders = [
        Edge::builder().upstream(UPSTREAM, &url, &login()),
        Edge::builder().upstream(
            UPSTREAM,
            &url,
            &format!("username = \"{USER}\"\npassword_file = {password_file:?}"),
        ),
        Edge::builder()
            .upstream(UPSTREAM, &url, &format!("username = \"{USER}\""))
            .env("CLAWHUB_EDGE_UPSTREAMS_ORIGIN_TEST_PASSWORD", PASSWORD),
        Edge::builder()
            .upstream(UPSTREAM, &url, "")
            .toml(&format!("[fetch]\ndocker_config = {docker_config:?}")),
    ];
    for builder in builders {
        let edge = builder.start().await;
        let got = http::get(edge.addr(), &blob("app", &digest), &[]).await;
        assert_body(&got, 200, BODY.as_bytes());
    }
}

#[tokio::test]
async fn a_rotated_password_file_is_read_again() {
    let origin = Origin::start().await;
    let digests = [origin.add_blob("app", "one"), origin.add_blob("app", "two")];
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "old").unwrap();
    origin.require_basic(USER, "old");
    let keys = format!("username = \"{USER}\"\npassword_file = {file:?}");
    let edge = Edge::builder().upstream(UPSTREAM, &origin.url(), &keys).start().await;
    pull_blob(edge.addr(), "app", &digests[0]).await;
    origin.require_basic(USER, "new");
    std::fs::write(&file, "new").unwrap();
    pull_blob(edge.addr(), "app", &digests[1]).await;
}

#[tokio::test]
async fn one_token_serves_many_requests() {
    let origin = Origin::start().await;
    let digests: Vec<_> = (0..8).map(|number| origin.add_blob("app", format!("layer {number}"))).collect();
    bearer(&origin);
    let edge = with_login(&origin).start().await;
    // Cold and all at once: the first challenge of each is answered with the same token.
    let (addr, mut clients) = (edge.addr(), JoinSet::new());
    for digest in digests {
        clients.spawn(async move { pull_blob(addr, "app", &digest).await });
    }
    clients.join_all().await;
    let more = origin.add_blob("app", "one more");
    pull_blob(edge.addr(), "app", &more).await;
    assert_eq!(origin.count("GET", "/token"), 1, "{:#?}", origin.requests());
    let other = origin.add_blob("other", "another repository");
    pull_blob(edge.addr(), "other", &other).await;
    assert_eq!(origin.count("GET", "/token"), 2, "a token is for one repository");
}

#[tokio::test]
async fn a_spent_or_revoked_token_is_renewed_with_one_retry() {
    let origin = Origin::start().await;
    let config = bearer(&origin);
    let edge = with_login(&origin).start().await;
    let pull_another = async |text: &str| {
        let digest = origin.add_blob("app", text.to_owned());
        pull_blob(edge.addr(), "app", &digest).await;
    };
    pull_another("first").await;
    origin.revoke_tokens();
    origin.clear_log();
    pull_another("after the revocation").await;
    assert_eq!(origin.count("GET", "/token"), 1);
    assert_eq!(origin.count("GET", "/blobs/"), 2, "the refused one and one retry");

    // Tokens that live for a second are renewed before they are refused.
    origin.require_bearer(BearerConfig { expires_in: Duration::from_secs(1), ..config });
    origin.revoke_tokens();
    pull_another("short-lived").await;
    let spent = tokens(&origin).pop();
    crate::support::edge::until("another token is used", async || {
        pull_another(&format!("{}", fastrand::u64(..))).await;
        tokens(&origin).pop() != spent
    })
    .await;
}

#[tokio::test]
async fn a_credential_that_is_refused_is_not_tried_for_ever() {
    let origin = Origin::start().await;
    let digest = origin.add_blob("app", BODY);
    bearer(&origin);
    origin.restrict("app", &["somebody-else"]);
    let edge = with_login(&origin).start().await;
    let got = http::get(edge.addr(), &blob("app", &digest), &[]).await;
    assert_error(&got, 502, "UNAVAILABLE");
    assert!(origin.requests().len() <= 5, "{:#?}", origin.requests());
    until("the operator is told what is wrong", async || edge.log().contains("credential")).await;
}

#[tokio::test]
async fn anonymous_tokens_are_fetched_where_there_is_no_credential() {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "1", vec![BODY.into()]);
    origin.require_bearer(BearerConfig::default());
    let edge = Edge::start(&origin).await;
    pull(&edge, "app", "1", &image).await;
    assert_eq!(origin.count("GET", "/token"), 1);
}

#[tokio::test]
async fn a_redirect_to_another_host_is_followed_without_the_credential() {
    for is_bearer in [false, true] {
        let (origin, storage) = (Origin::start().await, Origin::start().await);
        let digest = origin.add_synthetic_blob("app", 3 << 20, 9);
        storage.add_synthetic_blob("app", 3 << 20, 9);
        if is_bearer {
            bearer(&origin);
        } else {
            origin.require_basic(USER, PASSWORD);
        }
        origin.fault(Fault::on("GET", "/blobs/").redirect_to(&storage.url()));
        storage.fault(Fault::on("GET", "").times(1).reset_at(1 << 20));
        let edge = with_login(&origin).start().await;
        pull_blob(edge.addr(), "app", &digest).await;
        let given = origin
            .requests()
            .into_iter()
            .find(|request| request.status == 200 && request.path.contains("/blobs/"));
        assert!(given.is_none(), "{given:#?}");
        assert_eq!(storage.bytes_sent(&digest), 3 << 20, "resumed through a new redirect");
        for request in storage.requests() {
            assert!(!carries_secret(&request), "{request:#?}");
        }
    }
}

#[tokio::test]
async fn a_redirect_back_to_the_own_host_keeps_the_credential() {
    let origin = Origin::start().await;
    let digest = origin.add_blob("app", BODY);
    origin.require_basic(USER, PASSWORD);
    origin.fault(Fault::on("GET", "/blobs/").times(1).redirect_to(&origin.url()));
    let edge = with_login(&origin).start().await;
    let got = http::get(edge.addr(), &blob("app", &digest), &[]).await;
    assert_body(&got, 200, BODY.as_bytes());
}

#[tokio::test]
async fn a_hostile_realm_gets_nothing() {
    let (origin, thief) = (Origin::start().await, Origin::start().await);
    let digest = origin.add_blob("app", BODY);
    let config = bearer(&origin);
    // The same machine, but by another name than the endpoint's: no realm that anybody has allowed.
    let realm = format!("http://localhost:{}/token", thief.addr().port());
    thief.require_bearer(config.clone());
    origin.require_bearer(BearerConfig { realm: Some(realm), ..config });
    let edge = with_login(&origin).start().await;
    let got = http::get(edge.addr(), &blob("app", &digest), &[]).await;
    assert_error(&got, 502, "UNAVAILABLE");
    assert_eq!(thief.connections_accepted(), 0);
    until("the operator is told what to set", async || edge.log().contains("realms")).await;
}

#[tokio::test]
async fn a_realm_that_the_operator_allows_is_asked() {
    let (origin, tokens) = (Origin::start().await, Origin::start().await);
    let digest = origin.add_blob("app", BODY);
    let config = bearer(&origin);
    let realm = format!("http://localhost:{}", tokens.addr().port());
    tokens.require_bearer(config.clone());
    origin.require_bearer(BearerConfig { realm: Some(format!("{realm}/token")), ..config });
    let keys = format!("{}\nrealms = [\"{realm}\"]", login());
    let edge = Edge::builder().upstream(UPSTREAM, &origin.url(), &keys).start().await;
    // Its tokens mean nothing to the origin, which has its own; that they were asked for is the point.
    let got = http::get(edge.addr(), &blob("app", &digest), &[]).await;
    assert_error(&got, 502, "UNAVAILABLE");
    assert!(tokens.count("GET", "/token?") >= 1);
    let sent = format!("Basic {}", basic());
    assert_eq!(tokens.requests()[0].header("Authorization"), Some(sent.as_str()));
}

#[tokio::test]
async fn a_credential_is_for_its_own_upstream() {
    let (origin, other) = (Origin::start().await, Origin::start().await);
    let digest = origin.add_blob("app", BODY);
    let foreign = other.add_blob("app", "of the other");
    bearer(&origin);
    let edge = with_login(&origin).upstream("other.test", &other.url(), "").start().await;
    pull_blob(edge.addr(), "app", &digest).await;
    let path = format!("{}?ns=other.test", blob("app", &foreign));
    assert_eq!(http::get(edge.addr(), &path, &[]).await.status, 200);
    // Even where the other one asks for it.
    other.require_basic(USER, PASSWORD);
    let missing = format!("{}?ns=other.test", manifest("app", "1"));
    assert_error(&http::get(edge.addr(), &missing, &[]).await, 403, "DENIED");
    other.require_bearer(BearerConfig {
        realm: Some(format!("{}/token", origin.url())),
        ..BearerConfig::default()
    });
    http::get(edge.addr(), &missing, &[]).await;
    for request in other.requests() {
        let authorization = request.header("Authorization").unwrap_or_default();
        assert!(!authorization.contains(&basic()), "{request:#?}");
        assert!(tokens(&origin).iter().all(|token| !authorization.contains(token)), "{request:#?}");
    }
}

#[tokio::test]
async fn a_clients_own_credential_goes_nowhere() {
    let origin = Origin::start().await;
    let digest = origin.add_blob("app", BODY);
    let mut edge = Edge::start(&origin).await;
    let theirs = format!("Basic {}", basic());
    let headers = [("Authorization", theirs.as_str()), ("Cookie", "session=theirs")];
    let got = http::get(edge.addr(), &blob("app", &digest), &headers).await;
    assert_eq!(got.status, 200);
    for request in origin.requests() {
        assert!(request.header("Authorization").is_none() && request.header("Cookie").is_none());
    }
    edge.stop().await;
    assert!(!edge.log().contains(&basic()) && !edge.log().contains(PASSWORD));
}

#[tokio::test]
async fn no_secret_is_in_any_log_line_metric_or_answer() {
    let (origin, basic_origin) = (Origin::start().await, Origin::start().await);
    let digest = origin.add_blob("app", BODY);
    bearer(&origin);
    basic_origin.require_basic(USER, PASSWORD);
    let behind_basic = basic_origin.add_blob("app", "behind basic");
    let signed = Origin::start().await;
    let redirected = origin.add_blob("app", "redirected");
    signed.add_blob("app", "redirected");
    let query = "X-Amz-Signature=s1gn4ture";
    let location = format!("{}{}?{query}", signed.url(), blob("app", &redirected));
    origin.fault(Fault::on("GET", &redirected).respond(307, &[("Location", &location)], ""));
    let mut edge = with_login(&origin).upstream("basic.test", &basic_origin.url(), &login()).start().await;
    pull_blob(edge.addr(), "app", &digest).await;
    pull_blob(edge.addr(), "basic.test/app", &behind_basic).await;
    pull_blob(edge.addr(), "app", &redirected).await;
    assert!(signed.count("GET", query) >= 1, "the signature was used");
    // And everything that goes wrong with them.
    let mut answers = Vec::new();
    origin.revoke_tokens();
    answers.push(http::get(edge.addr(), &manifest("app", "none"), &[]).await.text());
    origin.restrict("app", &["somebody-else"]);
    origin.revoke_tokens();
    let missing = sha256(b"missing");
    answers.push(http::get(edge.addr(), &blob("app", &missing), &[]).await.text());
    origin.fault(Fault::on("GET", "/token").respond(200, &[], format!("{{\"token\": \"{PASSWORD}")));
    origin.revoke_tokens();
    answers.push(http::get(edge.addr(), &blob("app2", &missing), &[]).await.text());
    origin.vanish().await;
    answers.push(http::get(edge.addr(), &blob("app3", &missing), &[]).await.text());
    basic_origin.require_basic(USER, "changed");
    answers.push(http::get(edge.addr(), &blob("basic.test/app", &missing), &[]).await.text());
    answers.push(edge.metrics().await);
    edge.stop().await;
    answers.push(edge.log());
    let issued = tokens(&origin);
    assert!(!issued.is_empty());
    let mut secrets: Vec<String> = issued;
    secrets.extend([PASSWORD.to_owned(), basic(), "s1gn4ture".to_owned()]);
    secrets.push(STANDARD.encode(PASSWORD));
    for secret in secrets {
        for text in &answers {
            let line = text.lines().find(|line| line.contains(&secret));
            assert_eq!(line, None, "holds {secret}");
        }
    }
    until("the log is as talkative as it can be", async || edge.log().contains("TRACE")).await;
}

#[tokio::test]
async fn a_token_service_that_is_down_is_no_404() {
    let origin = Origin::start().await;
    bearer(&origin);
    let edge = with_login(&origin).start().await;
    for fault in [
        Fault::on("GET", "/token").respond(500, &[], ""),
        Fault::on("GET", "/token").respond(200, &[], "<html>"),
        Fault::on("GET", "/token").respond(200, &[], "{}"),
        Fault::on("GET", "/token").reset_unanswered(),
    ] {
        origin.clear_faults();
        origin.fault(fault);
        let got = http::get(edge.addr(), &manifest("app", "1"), &[]).await;
        assert_error(&got, 502, "UNAVAILABLE");
    }
    origin.clear_faults();
    let image = origin.add_image("app", "1", vec![BODY.into()]);
    pull(&edge, "app", "1", &image).await;
}

#[tokio::test]
async fn a_missing_credential_helper_is_found_before_the_start() {
    let keys = "credential_helper = \"nonexistent\"";
    let edge = Edge::builder().upstream(UPSTREAM, "http://127.0.0.1:1", keys).prepare();
    let output = edge.run(&["check-config"]).await;
    assert!(!output.status.success());
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("docker-credential-nonexistent"), "{words}");
}

#[tokio::test]
async fn a_helpers_secret_is_sent_where_it_belongs_and_its_words_are_logged_without_it() {
    let origin = Origin::start().await;
    let digest = origin.add_blob("app", BODY);
    bearer(&origin);
    let folder = tempfile::tempdir().expect("there is room for temporary files");
    let answer = format!(r#"{{"Username":"{USER}","Secret":"{PASSWORD}"}}"#);
    let words = format!("echo 'secret is {PASSWORD}' >&2; env | grep CLAWHUB >&2; echo '{answer}'");
    std::fs::write(folder.path().join("script"), words).expect("there is room for a script");
    let program = folder.path().join("docker-credential-test");
    let scripted =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/docker-credential-scripted");
    std::os::unix::fs::symlink(scripted, &program).expect("a link can be made");
    let keys = format!("credential_helper = \"{}\"", program.display());
    let mut edge = Edge::builder()
        .upstream(UPSTREAM, &origin.url(), &keys)
        .env("PATH", "/usr/bin:/bin")
        .env("CLAWHUB_EDGE_TAGS_TTL", "7m")
        .start()
        .await;
    pull_blob(edge.addr(), "app", &digest).await;
    edge.stop().await;
    let log = edge.log();
    assert!(log.contains("a credential helper says: secret is [redacted]"), "{log}");
    assert!(
        !log.contains(PASSWORD) && !log.contains(&basic()) && !log.contains("CLAWHUB_EDGE_TAGS"),
        "{log}"
    );
}
