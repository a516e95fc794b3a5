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
    two_users(&origin, true);
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(SIZE / 2, &gate));
    let edge = judging(&origin, "denial_ttl = \"0s\"").start().await;
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
