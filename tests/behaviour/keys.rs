//! Keys: who has one pulls what it names, for as long as it is good, and nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::io::Write as _;
use std::process::Stdio;

use crate::support::edge::{Edge, UPSTREAM, until};
use crate::support::http::{self, Response};
use crate::support::origin::{Image, Origin};
use crate::{assert_body, assert_error, blob, manifest};

/// An edge in front of an origin with an image in each of two repositories, for both of which it needs its own login.
async fn only_with_keys(toml: &str) -> (Origin, Edge, [Image; 2]) {
    let origin = Origin::start().await;
    let images = ["team-a/app", "team-b/app"].map(|name| {
        let image = origin.add_image(name, "1", vec![format!("a layer of {name}").into()]);
        origin.move_tag(name, "v2", &image.manifest_digest);
        image
    });
    origin.require_basic("edge", "the edges sesame");
    let keys = "username = \"edge\"\npassword = \"the edges sesame\"";
    let toml = format!("[auth]\nanonymous = false\n{toml}");
    let edge = Edge::builder().upstream(UPSTREAM, &origin.url(), keys).toml(&toml).start().await;
    (origin, edge, images)
}

/// What `clawhub-edge keys` prints.
async fn keys(edge: &Edge, arguments: &[&str]) -> Result<Value, String> {
    let arguments: Vec<_> = ["keys"].iter().chain(arguments).chain(&["--json"]).copied().collect();
    let output = edge.prepared().run(&arguments).await;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(serde_json::from_slice(&output.stdout).unwrap()) } else { Err(words) }
}

/// A key for team-a with further arguments: its id and its secret.
async fn create(edge: &Edge, further: &[&str]) -> (String, String) {
    let arguments: Vec<_> = ["create", "--name", "test", "--scope", "origin.test/team-a/*"]
        .iter()
        .chain(further)
        .copied()
        .collect();
    let key = keys(edge, &arguments).await.unwrap();
    (key["id"].as_str().unwrap().to_owned(), key["secret"].as_str().unwrap().to_owned())
}

fn basic(secret: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("anybody:{secret}")))
}

async fn get(edge: &Edge, path: &str, authorization: &str) -> Response {
    http::get(edge.addr(), path, &[("Authorization", authorization)]).await
}

/// A token for the scope, as `Authorization`.
async fn token(edge: &Edge, authorization: &str, scope: &str) -> Result<String, Response> {
    let path = format!("/token/{UPSTREAM}?service=clawhub-edge&scope={scope}");
    let got = get(edge, &path, authorization).await;
    if got.status == 200 { Ok(format!("Bearer {}", got.json()["token"].as_str().unwrap())) } else { Err(got) }
}

fn paths(repository: &str, image: &Image) -> Vec<String> {
    let mut paths = vec![
        manifest(repository, "1"),
        manifest(repository, &image.manifest_digest),
        format!("/v2/{repository}/tags/list"),
        format!("/v2/{repository}/referrers/{}", image.manifest_digest),
        blob(repository, &image.config_digest),
    ];
    paths.extend(image.layer_digests.iter().map(|digest| blob(repository, digest)));
    paths
}

#[tokio::test]
async fn a_key_pulls_what_it_names_and_nothing_else() {
    let (origin, edge, [a, b]) = only_with_keys("").await;
    let (id, secret) = create(&edge, &[]).await;
    let (_, other) = {
        let key = keys(&edge, &["create", "--name", "other", "--scope", "origin.test/**"]).await.unwrap();
        (key["id"].clone(), key["secret"].as_str().unwrap().to_owned())
    };
    let bearer = token(&edge, &basic(&secret), "repository:team-a/app:pull,push").await.unwrap();
    for authorization in [basic(&secret), bearer.clone()] {
        for path in paths("team-a/app", &a) {
            assert_eq!(get(&edge, &path, &authorization).await.status, 200, "{path}");
        }
    }
    // Somebody else's pulls make it hot.
    for path in paths("team-b/app", &b) {
        assert_eq!(get(&edge, &path, &basic(&other)).await.status, 200, "{path}");
    }
    let narrowed = token(&edge, &basic(&secret), "repository:team-b/app:pull").await.unwrap();
    for path in paths("team-b/app", &b) {
        for method in ["GET", "HEAD"] {
            let by = async |headers: &[(&str, &str)]| {
                http::request(method, edge.addr(), &path, headers, b"").await
            };
            let got = by(&[("Authorization", &basic(&secret)), ("Range", "bytes=0-0")]).await;
            assert_eq!(got.status, 403, "{path}");
            assert_eq!(by(&[("Authorization", &bearer)]).await.status, 401, "{path}");
            assert_eq!(by(&[("Authorization", &narrowed)]).await.status, 401, "{path}");
            let got = by(&[]).await;
            assert_eq!(got.status, 401, "{path}");
            assert!(got.header("WWW-Authenticate").unwrap().contains("/token/origin.test"));
        }
    }
    assert_error(&get(&edge, &manifest("team-b/app", "1"), &basic(&secret)).await, 403, "DENIED");
    // What is in it of a repository that it names does not show what that repository does not have.
    let got = get(&edge, &blob("team-a/app", &b.layer_digests[0]), &basic(&secret)).await;
    assert_error(&got, 404, "BLOB_UNKNOWN");
    let catalog = get(&edge, "/v2/_catalog", &basic(&secret)).await;
    assert_eq!(catalog.json()["repositories"], serde_json::json!(["team-a/app"]));
    // Nor does a link name what is hidden, page by page.
    let page = get(&edge, "/v2/_catalog?n=1", &basic(&secret)).await;
    assert_eq!(page.json()["repositories"], serde_json::json!(["team-a/app"]));
    assert!(!page.header("Link").unwrap_or_default().contains("team-b"), "{:?}", page.header("Link"));
    let after = get(&edge, "/v2/_catalog?n=1&last=team-a/app", &basic(&secret)).await;
    assert_eq!(after.json()["repositories"], serde_json::json!([]));
    assert_eq!(after.header("Link"), None);
    assert_eq!(http::get(edge.addr(), "/v2/_catalog", &[]).await.status, 401);
    assert_eq!(http::get(edge.addr(), "/v2/", &[]).await.status, 401);
    assert_eq!(get(&edge, "/v2/", &basic(&secret)).await.status, 200);
    // What is no secret of a key.
    for wrong in ["hunter2", "clawhub_", &secret[..secret.len() - 1], &format!("{secret}x")] {
        let got = get(&edge, &manifest("team-a/app", "1"), &basic(wrong)).await;
        assert_error(&got, 401, "UNAUTHORIZED");
        assert_eq!(token(&edge, &basic(wrong), "repository:team-a/app:pull").await.unwrap_err().status, 401);
        assert_eq!(get(&edge, "/v2/", &basic(wrong)).await.status, 401);
    }
    // It is counted, and nowhere written down.
    until("its uses are counted", async || {
        keys(&edge, &["show", &id]).await.unwrap()["uses"].as_u64() >= Some(10)
    })
    .await;
    let random = &secret[secret.len() - 40..];
    let state = edge.prepared().path(".local/state/clawhub-edge");
    for file in std::fs::read_dir(state).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(random.len()).any(|window| window == random.as_bytes()));
    }
    assert!(!edge.log().contains(random) && !edge.log().contains(&basic(&secret)));
    // Every request is one event, with who it was and why he was refused.
    let log = edge.log();
    let event = |parts: &[&str]| log.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    let who = format!("who=\"key:{id}\"");
    assert!(event(&["/v2/team-a/app/manifests/1", "status=200", &who]), "{log}");
    assert!(event(&["/v2/team-b/app/manifests/1", "status=403", &who, "reason=\"key_of_another_scope\""]));
    assert!(event(&["/v2/team-b/app/manifests/1", "status=401", "reason=\"unauthenticated\""]));
    assert!(event(&["/token/origin.test", "status=401", "reason=\"key_unknown\""]));
    // Nothing but the edge's own login goes upstream.
    let own = format!("Basic {}", STANDARD.encode("edge:the edges sesame"));
    let foreign = |request: &crate::support::origin::Logged| {
        request.header("Authorization").is_some_and(|value| value != own)
    };
    assert!(!origin.requests().iter().any(foreign));
}

#[tokio::test]
async fn a_revoked_key_ends_with_the_next_request_and_its_tokens_with_it() {
    let (_origin, edge, [a, _]) = only_with_keys("").await;
    let (id, secret) = create(&edge, &[]).await;
    let bearer = token(&edge, &basic(&secret), "repository:team-a/app:pull").await.unwrap();
    let path = manifest("team-a/app", &a.manifest_digest);
    for authorization in [&basic(&secret), &bearer] {
        assert_body(&get(&edge, &path, authorization).await, 200, &a.manifest);
    }
    let revoked = keys(&edge, &["revoke", &id]).await.unwrap();
    assert!(revoked["revoked_at"].is_string());
    for authorization in [&basic(&secret), &bearer] {
        assert_error(&get(&edge, &path, authorization).await, 401, "UNAUTHORIZED");
        assert_eq!(get(&edge, "/v2/", authorization).await.status, 401);
    }
    assert_eq!(token(&edge, &basic(&secret), "repository:team-a/app:pull").await.unwrap_err().status, 401);
    assert!(edge.metric("clawhub_edge_auth_keys_refused_total{reason=\"revoked\"}").await >= 3);
    assert!(keys(&edge, &["rotate", &id]).await.unwrap_err().contains("revoked"));
    assert!(keys(&edge, &["revoke", "aaaaaaaaaaaa"]).await.unwrap_err().contains("no key"));
}

#[tokio::test]
async fn a_key_is_good_in_its_time_and_from_its_networks() {
    let (_origin, edge, [a, _]) = only_with_keys("").await;
    let path = manifest("team-a/app", &a.manifest_digest);
    let status = async |further: &[&str]| {
        let (_, secret) = create(&edge, further).await;
        let got = get(&edge, &path, &basic(&secret)).await;
        let issued = token(&edge, &basic(&secret), "repository:team-a/app:pull").await;
        assert_eq!(issued.is_ok(), got.status == 200, "{further:?}");
        (got.status, got.text())
    };
    for further in [
        &["--network", "127.0.0.0/8"][..],
        &["--network", "10.0.0.0/8", "--network", "127.0.0.1"],
        &["--expires", "never"],
        &["--not-before", "2020-01-31T00:00:00Z", "--expires", "never"],
    ] {
        assert_eq!(status(further).await.0, 200, "{further:?}");
    }
    let (refused, words) = status(&["--network", "10.0.0.0/8"]).await;
    assert!(refused == 403 && words.contains("network"), "{words}");
    let (refused, words) = status(&["--not-before", "2090-01-31T00:00:00Z"]).await;
    assert!(refused == 401 && words.contains("not valid yet"), "{words}");
    let (refused, words) = status(&["--not-before", "2020-01-31T00:00:00Z", "--expires", "1h"]).await;
    assert!(refused == 401 && words.contains("expired"), "{words}");

    // One that ends while it is in use, with a token that would last longer.
    let (_, secret) = create(&edge, &["--expires", "3s"]).await;
    let bearer = token(&edge, &basic(&secret), "repository:team-a/app:pull").await.unwrap();
    assert_eq!(get(&edge, &path, &bearer).await.status, 200);
    until("it ends", async || get(&edge, &path, &bearer).await.status == 401).await;
    assert_eq!(get(&edge, &path, &basic(&secret)).await.status, 401);
}

#[tokio::test]
async fn a_node_with_another_secret_is_told_so() {
    let (_origin, mut edge, _) = only_with_keys("").await;
    create(&edge, &[]).await;
    edge.stop().await;
    std::fs::write(edge.prepared().path(".local/state/clawhub-edge/secret"), [7; 32]).unwrap();
    for arguments in [&["keys", "list"][..], &["serve"]] {
        let output = edge.prepared().run(arguments).await;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && words.contains("another secret"), "{arguments:?}: {words}");
    }
}

#[tokio::test]
async fn of_two_secrets_both_work_for_the_overlap() {
    let (_origin, edge, [a, _]) = only_with_keys("").await;
    let path = manifest("team-a/app", &a.manifest_digest);
    let (id, old) = create(&edge, &[]).await;
    let bearer = token(&edge, &basic(&old), "repository:team-a/app:pull").await.unwrap();
    let status = async |secret: &str| get(&edge, &path, &basic(secret)).await.status;
    let rotate = async |overlap: &str| {
        let key = keys(&edge, &["rotate", &id, "--overlap", overlap]).await.unwrap();
        key["secret"].as_str().unwrap().to_owned()
    };
    let new = rotate("1h").await;
    assert_ne!(new, old);
    assert_eq!((status(&old).await, status(&new).await), (200, 200));
    let newest = rotate("0").await;
    assert_eq!((status(&old).await, status(&new).await, status(&newest).await), (401, 401, 200));
    assert_eq!(get(&edge, &path, &bearer).await.status, 200, "the key itself lives");
}

#[tokio::test]
async fn a_secret_comes_from_a_store_of_secrets_and_goes_into_a_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_origin, edge, [a, _]) = only_with_keys("").await;
    let path = manifest("team-a/app", &a.manifest_digest);
    let common = ["create", "--name", "given", "--scope", "origin.test/team-a/*"];
    let made = edge.prepared().run(&["keys", "secret"]).await;
    let secret = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let file = edge.prepared().path("secret-of-a-key");
    std::fs::write(&file, &secret).unwrap();
    let arguments = [&common[..], &["--secret-file", file.to_str().unwrap()]].concat();
    let key = keys(&edge, &arguments).await.unwrap();
    assert!(key.get("secret").is_none(), "its owner has it");
    assert_eq!(get(&edge, &path, &basic(&secret)).await.status, 200);
    assert!(keys(&edge, &arguments).await.unwrap_err().contains("already"));

    let mut command = edge.prepared().command(&[&["keys"], &common[..], &["--secret-file", "-"]].concat());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let other = edge.prepared().run(&["keys", "secret"]).await;
    let mut stdin = child.stdin.take().unwrap().into_owned_fd().map(std::fs::File::from).unwrap();
    stdin.write_all(&other.stdout).unwrap();
    drop(stdin);
    assert!(child.wait().await.unwrap().success());
    let other = String::from_utf8(other.stdout).unwrap();
    assert_eq!(get(&edge, &path, &basic(other.trim())).await.status, 200);

    let written = edge.prepared().path("written-secret");
    let arguments = [&common[..], &["--secret-output", written.to_str().unwrap()]].concat();
    assert!(keys(&edge, &arguments).await.unwrap().get("secret").is_none());
    assert_eq!(std::fs::metadata(&written).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = std::fs::read_to_string(&written).unwrap();
    assert_eq!(get(&edge, &path, &basic(secret.trim())).await.status, 200);

    std::fs::write(&file, "hunter2").unwrap();
    let error =
        keys(&edge, &[&common[..], &["--secret-file", file.to_str().unwrap()]].concat()).await.unwrap_err();
    assert!(error.contains("clawhub_") && !error.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn tags_that_a_key_does_not_name_are_neither_shown_nor_resolved() {
    let (_origin, edge, [a, _]) = only_with_keys("").await;
    let key = keys(&edge, &["create", "--name", "v", "--scope", "origin.test/team-a/*:v*"]).await.unwrap();
    let authorization = basic(key["secret"].as_str().unwrap());
    let tags = get(&edge, "/v2/team-a/app/tags/list", &authorization).await.json();
    assert_eq!(tags["tags"], serde_json::json!(["v2"]));
    assert_body(&get(&edge, &manifest("team-a/app", "v2"), &authorization).await, 200, &a.manifest);
    assert_error(&get(&edge, &manifest("team-a/app", "1"), &authorization).await, 403, "DENIED");
    let by_digest = get(&edge, &manifest("team-a/app", &a.manifest_digest), &authorization).await;
    assert_body(&by_digest, 200, &a.manifest);
}

#[tokio::test]
async fn what_is_declared_public_needs_no_key() {
    let (_origin, edge, [a, b]) = only_with_keys("public = [\"origin.test/team-a/*\"]").await;
    for path in paths("team-a/app", &a) {
        assert_eq!(http::get(edge.addr(), &path, &[]).await.status, 200, "{path}");
        // Whatever comes along: a client may have a login for something else.
        assert_eq!(get(&edge, &path, &basic("hunter2")).await.status, 200, "{path}");
    }
    for path in paths("team-b/app", &b) {
        assert_eq!(http::get(edge.addr(), &path, &[]).await.status, 401, "{path}");
    }
    let anybodys =
        http::get(edge.addr(), "/token/origin.test?scope=repository:team-a/app:pull", &[]).await.json();
    let bearer = format!("Bearer {}", anybodys["token"].as_str().unwrap());
    assert_eq!(get(&edge, "/v2/", &bearer).await.status, 200);
    assert_eq!(get(&edge, &manifest("team-b/app", "1"), &bearer).await.status, 401);
}

#[tokio::test]
async fn a_key_refreshes_its_tokens_until_it_is_revoked() {
    let (_origin, edge, [a, _]) = only_with_keys("").await;
    let (id, secret) = create(&edge, &[]).await;
    let path =
        format!("/token/{UPSTREAM}?service=clawhub-edge&offline_token=true&scope=repository:team-a/app:pull");
    let refresh =
        get(&edge, &path, &basic(&secret)).await.json()["refresh_token"].as_str().unwrap().to_owned();
    let again = async || {
        let form =
            format!("grant_type=refresh_token&scope=repository:team-a/app:pull&refresh_token={refresh}");
        http::request("POST", edge.addr(), &format!("/token/{UPSTREAM}"), &[], form.as_bytes()).await
    };
    let bearer = format!("Bearer {}", again().await.json()["access_token"].as_str().unwrap());
    assert_body(&get(&edge, &manifest("team-a/app", "1"), &bearer).await, 200, &a.manifest);
    keys(&edge, &["revoke", &id]).await.unwrap();
    assert_eq!(again().await.status, 401);
}

#[tokio::test]
async fn the_operator_fills_the_cache_without_a_key() {
    let (origin, mut edge, [a, _]) = only_with_keys("").await;
    edge.stop().await;
    let output = edge.prepared().run(&["pull", "origin.test/team-a/app:1", "--all-platforms"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(origin.count("GET", &a.layer_digests[0]), 1);
}
