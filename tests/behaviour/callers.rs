//! Where an upstream judges its callers, each sees what it lets him see, and nothing of what others have pulled.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::time::sleep;

use crate::support::edge::{Builder, Edge, UPSTREAM, until};
use crate::support::http::{self, Response};
use crate::support::origin::{
    BearerConfig, Fault, Gate, Image, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Origin, sha256,
};
use crate::{MIB, assert_body, assert_error, blob, manifest, reached};

const ALICE: (&str, &str) = ("alice", "alices sesame");
const BOB: (&str, &str) = ("bob", "bobs sesame");
const CAROL: (&str, &str) = ("carol", "carols sesame");

fn basic((user, password): (&str, &str)) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn bearer(origin: &Origin, users: &[(&str, &str)]) {
    let users = users.iter().map(|&(user, password)| (user.to_owned(), password.to_owned())).collect();
    origin.require_bearer(BearerConfig { users, ..BearerConfig::default() });
}

/// Alice and Bob have an account, and only Alice reads `team-a`.
fn two_users(origin: &Origin, is_bearer: bool) {
    if is_bearer {
        bearer(origin, &[ALICE, BOB]);
    } else {
        origin.require_basic_of(&[ALICE, BOB]);
    }
    origin.restrict("team-a/", &["alice"]);
}

fn judging(origin: &Origin, auth: &str) -> Builder {
    Edge::builder()
        .upstream(UPSTREAM, &origin.url(), "access = \"caller\"")
        .toml(&format!("[tags]\nnegative_ttl = \"0s\"\n[auth]\n{auth}"))
}

async fn get(edge: &Edge, path: &str, who: (&str, &str)) -> Response {
    http::get(edge.addr(), path, &[("Authorization", &basic(who))]).await
}

/// As containerd does, with everything compared.
async fn pull(edge: &Edge, repository: &str, tag: &str, image: &Image, who: (&str, &str)) {
    let authorization = basic(who);
    let head =
        http::head(edge.addr(), &manifest(repository, tag), &[("Authorization", &authorization)]).await;
    assert_eq!(head.status, 200, "{}", who.0);
    assert_eq!(head.header("Docker-Content-Digest"), Some(image.manifest_digest.as_str()));
    let got = get(edge, &manifest(repository, &image.manifest_digest), who).await;
    assert_eq!(got.status, 200, "{}", got.text());
    for digest in [&image.config_digest].into_iter().chain(&image.layer_digests) {
        let got = get(edge, &blob(repository, digest), who).await;
        assert_eq!((got.status, got.complete), (200, true), "{}", got.text());
        assert_eq!(&sha256(&got.body), digest);
    }
}

/// Every way to ask for something of an image.
fn paths(repository: &str, tag: &str, image: &Image) -> Vec<String> {
    let mut paths = vec![
        manifest(repository, tag),
        manifest(repository, &image.manifest_digest),
        format!("/v2/{repository}/tags/list"),
        format!("/v2/{repository}/referrers/{}", image.manifest_digest),
    ];
    paths.extend(
        [&image.config_digest].into_iter().chain(&image.layer_digests).map(|digest| blob(repository, digest)),
    );
    paths
}

/// Nothing of an image is shown to him, however he asks; he is told so with one of these statuses.
async fn assert_hidden(edge: &Edge, paths: &[String], who: Option<(&str, &str)>, statuses: &[u16]) {
    let authorization = who.map(basic);
    for path in paths {
        for (method, further) in [
            ("GET", None),
            ("HEAD", None),
            ("GET", Some(("Range", "bytes=0-3"))),
            ("GET", Some(("If-None-Match", "*"))),
        ] {
            let mut headers: Vec<_> = further.into_iter().collect();
            headers.extend(authorization.as_deref().map(|value| ("Authorization", value)));
            let got = http::request(method, edge.addr(), path, &headers, b"").await;
            assert!(
                statuses.contains(&got.status),
                "{method} {path} by {who:?}: {} {}",
                got.status,
                got.text()
            );
            assert_eq!(got.header("Docker-Content-Digest"), None);
            let challenge = got.header("WWW-Authenticate");
            assert_eq!(challenge.is_some(), got.status == 401, "{challenge:?}");
        }
    }
}

#[tokio::test]
async fn what_one_may_pull_is_hidden_from_another_hot_and_cold() {
    for is_bearer in [false, true] {
        let origin = Origin::start().await;
        let image = origin.add_image("team-a/app", "1", vec!["a private layer".into()]);
        let other = origin.add_image("team-b/app", "1", vec!["for everybody with an account".into()]);
        two_users(&origin, is_bearer);
        let edge = judging(&origin, "denial_ttl = \"0s\"").start().await;
        let paths = paths("team-a/app", "1", &image);
        let refusal = if is_bearer { 401 } else { 403 };
        assert_hidden(&edge, &paths, Some(BOB), &[refusal]).await;
        for _ in 0..2 {
            pull(&edge, "team-a/app", "1", &image, ALICE).await;
            assert_hidden(&edge, &paths, Some(BOB), &[refusal]).await;
            for who in [None, Some(CAROL), Some(("alice", "bobs sesame")), Some(("Alice", ALICE.1))] {
                assert_hidden(&edge, &paths, who, &[401]).await;
            }
        }
        pull(&edge, "team-b/app", "1", &other, BOB).await;
        pull(&edge, "team-b/app", "1", &other, ALICE).await;
        assert_eq!(origin.count("GET", &other.layer_digests[0]), 1, "the bytes are shared");
        // The catalogue is what the upstream shows to each.
        let got = get(&edge, "/v2/_catalog", ALICE).await;
        assert_eq!(got.status, 200, "{}", got.text());
        assert!(http::get(edge.addr(), "/v2/_catalog", &[]).await.status == 200 || !is_bearer);
        assert!(!edge.log().contains("sesame"), "a password is in the log");
        assert!(!edge.log().contains(&STANDARD.encode("alice:alices sesame")));
    }
}

#[tokio::test]
async fn what_is_in_flight_for_one_is_hidden_from_another() {
    const SIZE: u64 = 4 * MIB;
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("team-a/app", SIZE, 2);
    let small = origin.add_blob("team-a/app", "what proves her right");
    two_users(&origin, true);
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(SIZE / 2, &gate));
    let edge = judging(&origin, "denial_ttl = \"0s\"").start().await;
    assert_eq!(get(&edge, &blob("team-a/app", &small), ALICE).await.status, 200);
    let path = blob("team-a/app", &digest);
    let mut alice = http::open(edge.addr(), &path, &[("Authorization", &basic(ALICE))]).await;
    assert_eq!(alice.read(1000).await.len(), 1000);
    reached(&gate).await;
    assert_hidden(&edge, std::slice::from_ref(&path), Some(BOB), &[401]).await;
    assert_hidden(&edge, &[path], None, &[401]).await;
    gate.open();
    assert!(alice.drain().await.complete);
}

#[tokio::test]
async fn a_manifest_that_names_a_foreign_digest_grants_nothing() {
    let origin = Origin::start().await;
    let image = origin.add_image("team-a/app", "1", vec!["a private layer".into()]);
    let secret = &image.layer_digests[0];
    let config = origin.add_blob("team-b/app", "{}");
    let forged = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": { "mediaType": OCI_CONFIG, "digest": config, "size": 2 },
        "layers": [{ "mediaType": OCI_LAYER, "digest": secret, "size": "a private layer".len() }],
    });
    origin.add_manifest("team-b/app", Some("1"), OCI_MANIFEST, forged.to_string());
    two_users(&origin, true);
    let edge = judging(&origin, "").start().await;
    pull(&edge, "team-a/app", "1", &image, ALICE).await;
    assert_eq!(get(&edge, &manifest("team-b/app", "1"), BOB).await.status, 200);
    until("the edge has asked", async || origin.count("HEAD", &format!("team-b/app/blobs/{secret}")) >= 1)
        .await;
    for who in [BOB, ALICE] {
        assert_error(&get(&edge, &blob("team-b/app", secret), who).await, 404, "BLOB_UNKNOWN");
    }
}

#[tokio::test]
async fn what_the_upstream_gives_to_everybody_needs_no_login() {
    let origin = Origin::start().await;
    let public = origin.add_image("public/app", "1", vec!["for everybody".into()]);
    let private = origin.add_image("team-a/app", "1", vec!["a private layer".into()]);
    two_users(&origin, true);
    let edge = judging(&origin, "").start().await;
    for _ in 0..2 {
        for path in paths("public/app", "1", &public) {
            assert_eq!(http::get(edge.addr(), &path, &[]).await.status, 200, "{path}");
        }
    }
    // A hot manifest is answered below hyper, to those who may.
    let hot = manifest("public/app", &public.manifest_digest);
    assert_body(&http::get(edge.addr(), &hot, &[]).await, 200, &public.manifest);
    pull(&edge, "team-a/app", "1", &private, ALICE).await;
    assert_hidden(&edge, &paths("team-a/app", "1", &private), None, &[401]).await;
    // Podman's way to say that it has no login.
    let empty = basic(("", ""));
    assert_eq!(http::get(edge.addr(), &hot, &[("Authorization", &empty)]).await.status, 200);
}

#[tokio::test]
async fn a_verdict_is_asked_for_once_and_again_when_it_is_old() {
    let origin = Origin::start().await;
    let image = origin.add_image("team-a/app", "1", vec!["a private layer".into()]);
    two_users(&origin, true);
    let edge = judging(&origin, "verdict_ttl = \"2s\"\ndenial_ttl = \"1h\"").start().await;
    pull(&edge, "team-a/app", "1", &image, ALICE).await;
    let tokens = origin.count("GET", "/token");
    origin.clear_log();
    pull(&edge, "team-a/app", "1", &image, ALICE).await;
    assert_eq!(origin.requests().len(), 0, "{:#?}", origin.requests());
    assert!(tokens <= 2, "{tokens}");
    // A denial is remembered too.
    for _ in 0..5 {
        assert_eq!(get(&edge, &manifest("team-a/app", "1"), BOB).await.status, 401);
    }
    let asked = origin.requests().len();
    assert!((1..=4).contains(&asked), "{:#?}", origin.requests());

    // Her right is taken away, and a token that was issued before is still good upstream.
    origin.unrestrict("team-a/");
    origin.restrict("team-a/", &["nobody"]);
    until("her access ends", async || {
        let got = get(&edge, &manifest("team-a/app", "1"), ALICE).await;
        assert!([200, 401].contains(&got.status), "{}", got.text());
        got.status == 401
    })
    .await;
    assert_hidden(&edge, &paths("team-a/app", "1", &image), Some(ALICE), &[401]).await;
}

#[tokio::test]
async fn while_the_upstream_is_down_its_last_word_counts_also_after_a_restart() {
    let origin = Origin::start().await;
    let image = origin.add_image("team-a/app", "1", vec!["a private layer".into()]);
    two_users(&origin, true);
    let mut edge = judging(&origin, "verdict_ttl = \"1s\"\ngrace = \"1h\"").start().await;
    pull(&edge, "team-a/app", "1", &image, ALICE).await;
    assert_eq!(get(&edge, &manifest("team-a/app", "1"), BOB).await.status, 401);
    sleep(Duration::from_millis(1100)).await;
    origin.vanish().await;
    for is_restarted in [false, true] {
        if is_restarted {
            edge.restart().await;
        }
        pull(&edge, "team-a/app", "1", &image, ALICE).await;
        assert!(edge.log().contains("within the grace"));
        assert!(
            edge.metric("clawhub_edge_auth_verdicts_total{upstream=\"origin.test\",verdict=\"grace\"}").await
                >= 1
        );
        // Nobody else has one.
        for who in [Some(BOB), Some(CAROL), None] {
            assert_hidden(&edge, &paths("team-a/app", "1", &image)[..1], who, &[401, 502]).await;
        }
    }
    origin.come_back().await;
    // Its no counts again, and what was granted before does not.
    origin.require_basic(BOB.0, BOB.1);
    until("the upstream has its say again", async || {
        let got = get(&edge, &manifest("team-a/app", "1"), ALICE).await;
        assert!([200, 401].contains(&got.status), "{}", got.text());
        got.status == 401
    })
    .await;
    origin.vanish().await;
    edge.restart().await;
    assert_hidden(&edge, &paths("team-a/app", "1", &image)[..2], Some(ALICE), &[502]).await;
}

#[tokio::test]
async fn the_grace_ends() {
    let origin = Origin::start().await;
    let image = origin.add_image("team-a/app", "1", vec!["a private layer".into()]);
    two_users(&origin, false);
    let edge = judging(&origin, "verdict_ttl = \"1s\"\ngrace = \"2s\"").start().await;
    pull(&edge, "team-a/app", "1", &image, ALICE).await;
    origin.vanish().await;
    sleep(Duration::from_millis(2100)).await;
    assert_hidden(&edge, &paths("team-a/app", "1", &image), Some(ALICE), &[502]).await;
}

#[tokio::test]
async fn the_edges_own_credential_fetches_and_proves_nothing() {
    let origin = Origin::start().await;
    let image = origin.add_image("team-a/app", "1", vec!["a private layer".into()]);
    bearer(&origin, &[ALICE, BOB, CAROL]);
    origin.restrict("team-a/", &["alice", "carol"]);
    let keys = format!("access = \"caller\"\nusername = \"{}\"\npassword = \"{}\"", CAROL.0, CAROL.1);
    let edge = Edge::builder().upstream(UPSTREAM, &origin.url(), &keys).start().await;
    let paths = paths("team-a/app", "1", &image);
    assert_hidden(&edge, &paths, None, &[401]).await;
    assert_hidden(&edge, &paths, Some(BOB), &[401]).await;
    pull(&edge, "team-a/app", "1", &image, ALICE).await;
    assert_hidden(&edge, &paths, Some(BOB), &[401]).await;
}

#[tokio::test]
async fn a_request_that_cannot_be_read_as_one_login_is_refused() {
    let origin = Origin::start().await;
    let image = origin.add_image("public/app", "1", vec!["for everybody".into()]);
    let edge = judging(&origin, "").start().await;
    let path = manifest("public/app", &image.manifest_digest);
    assert_eq!(http::get(edge.addr(), &path, &[]).await.status, 200);
    let (alice, bob) = (basic(ALICE), basic(BOB));
    for headers in [
        &[("Authorization", "Bearer abc")][..],
        &[("Authorization", "Bearer a.b.c")],
        &[("Authorization", "Basic ???")],
        &[("Authorization", "")],
        &[("Authorization", &alice), ("Authorization", &bob)],
    ] {
        let got = http::get(edge.addr(), &path, headers).await;
        assert_error(&got, 401, "UNAUTHORIZED");
        assert!(got.header("WWW-Authenticate").is_some());
    }
    // Clients that ask only at the base learn there how to say who they are.
    let ping = http::get(edge.addr(), "/v2/", &[]).await;
    assert_error(&ping, 401, "UNAUTHORIZED");
    assert!(ping.header("WWW-Authenticate").is_some());
    assert_eq!(http::get(edge.addr(), "/v2/", &[("Authorization", &alice)]).await.status, 200);
}

/// The parameters of the one challenge of an answer.
fn challenge(answer: &Response) -> std::collections::HashMap<String, String> {
    let text =
        answer.header("WWW-Authenticate").expect("a challenge").strip_prefix("Bearer ").expect("for a token");
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap();
        (name.to_owned(), value.trim_matches('"').to_owned())
    };
    text.split(',').map(pair).collect()
}

/// What a client does with a challenge: the token, and everything else that the token service says.
async fn token(edge: &Edge, challenged: &Response, who: Option<(&str, &str)>) -> serde_json::Value {
    let challenge = challenge(challenged);
    let realm =
        challenge["realm"].strip_prefix(&format!("http://{}", edge.addr())).expect("this edge").to_owned();
    let scope = challenge.get("scope").map(|scope| format!("&scope={scope}")).unwrap_or_default();
    let path = format!("{realm}?service={}{scope}", challenge["service"]);
    let authorization = who.map(basic);
    let headers: Vec<_> =
        authorization.as_deref().map(|value| ("Authorization", value)).into_iter().collect();
    let got = http::get(edge.addr(), &path, &headers).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(got.header("Cache-Control"), Some("no-store"));
    got.json()
}

fn bearer_of(reply: &serde_json::Value) -> String {
    format!("Bearer {}", reply["token"].as_str().unwrap())
}

/// A token as JSON: its header and its claims.
fn decoded(token: &str) -> [serde_json::Value; 2] {
    let parts: Vec<_> = token.split('.').collect();
    [parts[0], parts[1]].map(|part| {
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    })
}

#[tokio::test]
async fn a_token_stands_for_a_login_and_names_one_repository() {
    let origin = Origin::start().await;
    let image = origin.add_image("team-a/app", "1", vec!["a private layer".into()]);
    let public = origin.add_image("public/app", "1", vec!["for everybody".into()]);
    two_users(&origin, true);
    let edge = judging(&origin, "").start().await;
    let path = manifest("team-a/app", "1");
    let challenged = http::get(edge.addr(), &path, &[]).await;
    assert_error(&challenged, 401, "UNAUTHORIZED");
    assert_eq!(challenge(&challenged)["realm"], format!("http://{}/token/origin.test", edge.addr()));
    assert_eq!(challenge(&challenged)["scope"], "repository:team-a/app:pull");
    let alices = token(&edge, &challenged, Some(ALICE)).await;
    assert_eq!(alices["expires_in"], 300);
    assert_eq!(alices["token"], alices["access_token"]);
    let issued: Result<jiff::Timestamp, _> = alices["issued_at"].as_str().unwrap().parse();
    assert!(issued.is_ok());
    let text = alices["token"].as_str().unwrap();
    let [header, claims] = decoded(text);
    assert_eq!(header["alg"], "EdDSA");
    let access = json!([{ "type": "repository", "name": "origin.test/team-a/app", "actions": ["pull"] }]);
    assert_eq!(claims["access"], access);
    assert!(!claims.to_string().contains("alice") && !claims.to_string().contains("sesame"), "{claims}");
    let jwks = http::get(edge.addr(), "/.well-known/jwks.json", &[]).await.json();
    assert!(
        jwks["keys"].as_array().unwrap().iter().any(|key| key["kid"] == header["kid"] && key["use"] == "sig")
    );
    assert!(jwks.to_string().find("\"d\"").is_none(), "a private key is shown");

    let with =
        async |path: &str, token: &str| http::get(edge.addr(), path, &[("Authorization", token)]).await;
    for path in paths("team-a/app", "1", &image) {
        let got = with(&path, &bearer_of(&alices)).await;
        assert_eq!(got.status, 200, "{path}: {}", got.text());
        // By the name of the upstream too.
        let prefixed = path.replace("/v2/", "/v2/origin.test/");
        assert_eq!(with(&prefixed, &bearer_of(&alices)).await.status, 200, "{prefixed}");
    }
    // It is for this repository, whoever may pull from others.
    for path in paths("public/app", "1", &public) {
        let got = with(&path, &bearer_of(&alices)).await;
        assert_error(&got, 401, "UNAUTHORIZED");
        assert_eq!(challenge(&got)["error"], "insufficient_scope");
    }
    // Bob's says who he is, and the upstream what that is worth.
    let bobs = token(&edge, &challenged, Some(BOB)).await;
    assert_eq!(with(&path, &bearer_of(&bobs)).await.status, 401);
    let nobodys = token(&edge, &challenged, None).await;
    assert_eq!(with(&path, &bearer_of(&nobodys)).await.status, 401);
    let challenged = http::get(edge.addr(), "/v2/", &[]).await;
    assert_eq!(challenge(&challenged).get("scope"), None);
    assert_eq!(http::get(edge.addr(), "/v2/", &[("Authorization", &bearer_of(&nobodys))]).await.status, 200);
    // What everybody may see, anybody's token may.
    let public = http::get(
        edge.addr(),
        "/token?service=clawhub-edge&scope=repository:public/app:pull,push&scope=repository:team-a/app:push",
        &[],
    );
    let public = public.await.json();
    let [_, claims] = decoded(public["token"].as_str().unwrap());
    let access = json!([{ "type": "repository", "name": "origin.test/public/app", "actions": ["pull"] }]);
    assert_eq!(claims["access"], access, "pull is the only right there is");
    assert_eq!(with(&manifest("public/app", "1"), &bearer_of(&public)).await.status, 200);
    for secret in ["sesame", text, &basic(ALICE)] {
        assert!(!edge.log().contains(secret), "a secret is in the log");
    }
}

#[tokio::test]
async fn a_token_by_post_stands_for_a_password_or_an_identity_token() {
    let origin = Origin::start().await;
    let image = origin.add_image("team-a/app", "1", vec!["a private layer".into()]);
    origin.require_bearer(BearerConfig {
        users: vec![(ALICE.0.to_owned(), ALICE.1.to_owned())],
        identity_tokens: vec![("alice".to_owned(), "alices-identity".to_owned())],
        ..BearerConfig::default()
    });
    origin.restrict("team-a/", &["alice"]);
    let edge = judging(&origin, "").start().await;
    let post = async |form: &str, headers: &[(&str, &str)]| {
        let mut all = vec![("Content-Type", "application/x-www-form-urlencoded")];
        all.extend(headers);
        http::request("POST", edge.addr(), "/token/origin.test", &all, form.as_bytes()).await
    };
    let common = "service=clawhub-edge&scope=repository%3Ateam-a%2Fapp%3Apull&client_id=test";
    for grant in [
        "grant_type=password&username=alice&password=alices+sesame",
        "grant_type=refresh_token&refresh_token=alices-identity",
    ] {
        let got = post(&format!("{grant}&{common}"), &[]).await;
        assert_eq!(got.status, 200, "{}", got.text());
        let authorization = bearer_of(&got.json());
        for path in paths("team-a/app", "1", &image) {
            let got = http::get(edge.addr(), &path, &[("Authorization", &authorization)]).await;
            assert_eq!(got.status, 200, "{path} {}", got.text());
        }
    }
    for (form, headers, error) in [
        ("", &[][..], "invalid_request"),
        ("grant_type=password&username=alice", &[], "invalid_request"),
        ("grant_type=refresh_token", &[], "invalid_request"),
        ("grant_type=client_credentials", &[], "unsupported_grant_type"),
        (
            "grant_type=refresh_token&refresh_token=x",
            &[("Authorization", "Basic YWxpY2U6YTpi")],
            "invalid_request",
        ),
        (&"x".repeat(100 << 10), &[], "invalid_request"),
    ] {
        let got = post(form, headers).await;
        assert_eq!(got.status, 400, "{}", got.text());
        assert_eq!(got.json()["error"], error);
    }
    for (method, path, status) in [
        ("PUT", "/token", 405),
        ("DELETE", "/token/origin.test", 405),
        ("POST", "/.well-known/jwks.json", 405),
        ("GET", "/token/unknown.test", 404),
        ("GET", "/tokens", 404),
    ] {
        let got = http::request(method, edge.addr(), path, &[], b"").await;
        assert_eq!(got.status, status, "{method} {path}");
    }
}

#[tokio::test]
async fn a_token_is_good_as_it_was_issued_and_after_a_restart() {
    let origin = Origin::start().await;
    let image = origin.add_image("team-a/app", "1", vec!["a private layer".into()]);
    two_users(&origin, true);
    let mut edge = judging(&origin, "").start().await;
    let path = manifest("team-a/app", &image.manifest_digest);
    let challenged = http::get(edge.addr(), &path, &[]).await;
    let authorization = bearer_of(&token(&edge, &challenged, Some(ALICE)).await);
    let stranger = judging(&origin, "").start().await;
    let challenged = http::get(stranger.addr(), &path, &[]).await;
    let foreign = bearer_of(&token(&stranger, &challenged, Some(ALICE)).await);
    let token = authorization.strip_prefix("Bearer ").unwrap();
    let [mut header, mut claims] = decoded(token);
    let encoded = |value: &serde_json::Value| {
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
    };
    let parts: Vec<&str> = token.split('.').collect();
    let with_claims =
        |claims: &serde_json::Value| format!("Bearer {}.{}.{}", parts[0], encoded(claims), parts[2]);
    let mut bad = vec![
        foreign,
        format!("Bearer {}.{}.", parts[0], parts[1]),
        format!("Bearer {}", parts[..2].join(".")),
    ];
    // Confused algorithms: none at all, and one whose key everybody knows.
    for algorithm in ["none", "None", "HS256", "RS256", "ES256"] {
        header["alg"] = algorithm.into();
        bad.push(format!("Bearer {}.{}.{}", encoded(&header), parts[1], parts[2]));
        bad.push(format!("Bearer {}.{}.", encoded(&header), parts[1]));
    }
    for (name, value) in [
        ("exp", json!(4_000_000_000_u64)),
        ("aud", json!("somebody-else")),
        ("iss", json!("somebody-else")),
        (
            "access",
            json!([{ "type": "repository", "name": "origin.test/team-b/app", "actions": ["pull", "push"] }]),
        ),
    ] {
        let before = std::mem::replace(&mut claims[name], value);
        bad.push(with_claims(&claims));
        claims[name] = before;
    }
    for at in [0, parts[0].len() + 3, token.len() / 2, token.len() - 2] {
        let mut changed = token.to_owned().into_bytes();
        changed[at] = if changed[at] == b'x' { b'y' } else { b'x' };
        bad.push(format!("Bearer {}", String::from_utf8(changed).unwrap()));
    }
    for is_restarted in [false, true] {
        if is_restarted {
            edge.restart().await;
        }
        let got = http::get(edge.addr(), &path, &[("Authorization", &authorization)]).await;
        assert_eq!(got.status, 200, "{}", got.text());
        for authorization in &bad {
            let got = http::get(edge.addr(), &path, &[("Authorization", authorization)]).await;
            assert_error(&got, 401, "UNAUTHORIZED");
            assert_eq!(challenge(&got)["error"], "invalid_token", "{authorization}");
        }
    }
}
