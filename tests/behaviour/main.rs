//! What the edge promises to those who pull through it, shown with the real binary in front of an origin that fails
//! on demand.
//!
//! Each test has an origin, an edge and a cache of its own. None of them waits for time to pass where a gate, a log
//! or a counter says that something has happened.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test that calls them")]

mod budget;
mod callers;
mod client_config;
mod command;
mod credentials;
mod disk_errors;
mod express;
mod failures;
mod fills;
mod http2;
mod integrity;
mod keys;
mod listeners;
mod lists;
mod passage;
mod process;
mod proxies;
mod proxy_protocol;
mod pulls;
mod ranges;
mod referrers;
mod resume;
mod rights;
mod service_manager;
mod soak;
mod sparse;
#[path = "../support/mod.rs"]
mod support;
mod tags;
mod tls;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::timeout;

use support::edge::{Edge, until};
use support::http::{self, Response};
use support::origin::{Gate, Image, sha256};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The path of a blob.
fn blob(repository: &str, digest: &str) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

/// The path of a manifest, by tag or digest.
fn manifest(repository: &str, reference: &str) -> String {
    format!("/v2/{repository}/manifests/{reference}")
}

/// A length as the memory has it.
fn len(size: u64) -> usize {
    usize::try_from(size).expect("what a test reads fits into memory")
}

/// Pulls an image as containerd does: HEAD of the tag, manifest and blobs by digest, everything compared.
async fn pull(edge: &Edge, repository: &str, tag: &str, image: &Image) {
    let head = http::head(edge.addr(), &manifest(repository, tag), &[]).await;
    assert_eq!(head.status, 200, "HEAD {repository}:{tag}");
    let digest = head.header("Docker-Content-Digest").expect("a resolved tag").to_owned();
    assert_eq!(digest, image.manifest_digest);
    let got = http::get(edge.addr(), &manifest(repository, &digest), &[]).await;
    assert_eq!((got.status, got.complete), (200, true), "{}", got.text());
    assert_eq!(sha256(&got.body), digest);
    for digest in [&image.config_digest].into_iter().chain(&image.layer_digests) {
        pull_blob(edge.addr(), repository, digest).await;
    }
}

/// Pulls one blob and compares its digest.
async fn pull_blob(edge: SocketAddr, repository: &str, digest: &str) {
    let mut transfer = http::open(edge, &blob(repository, digest), &[]).await;
    assert_eq!(transfer.status, 200, "{repository} {digest}");
    let (actual, drained) = transfer.digest().await;
    assert!(drained.complete, "broken after {} bytes", drained.bytes);
    assert_eq!(actual, digest);
}

/// What the edge says of itself.
async fn readiness(edge: &Edge) -> String {
    let answer = http::get(edge.addr(), "/readyz", &[]).await;
    assert_eq!(answer.status, 200, "it still answers pulls");
    answer.text()
}

/// Pulls a blob until the edge keeps it.
async fn is_cached_again(edge: &Edge, digest: &str) {
    until("it is cached again", async || {
        pull_blob(edge.addr(), "app", digest).await;
        edge.has_blob(digest)
    })
    .await;
}

/// Waits for a transfer to arrive at the gate; an edge that never asks fails the test.
async fn reached(gate: &Gate) {
    timeout(Duration::from_secs(20), gate.reached()).await.expect("the edge asks the origin");
}

/// The answer is an error document with this status and code, and has the headers that every answer has.
#[track_caller]
fn assert_error(answer: &Response, status: u16, code: &str) {
    let text = answer.text();
    assert_eq!(answer.status, status, "{text}");
    assert_eq!(answer.header("Content-Type"), Some("application/json"), "{text}");
    assert_eq!(answer.header("Docker-Distribution-Api-Version"), Some("registry/2.0"));
    assert!(answer.header("X-Request-Id").is_some_and(|id| !id.is_empty()));
    assert!(answer.complete, "a broken error document");
    let document = answer.json();
    assert_eq!(document["errors"][0]["code"], code, "{text}");
    assert!(document["errors"][0]["message"].as_str().is_some_and(|message| !message.is_empty()), "{text}");
}

/// A whole answer with exactly these bytes.
#[track_caller]
fn assert_body(answer: &Response, status: u16, body: &[u8]) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert!(answer.complete, "broken after {} bytes", answer.body.len());
    assert!(answer.body == body, "{} bytes that are not the {} expected", answer.body.len(), body.len());
}

/// A GET that may also be broken before its head is out.
async fn attempt(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Option<Response> {
    http::try_request("GET", addr, path, headers, b"").await.ok()
}

/// Whether a client would take this for what it asked for.
fn is_success(answer: &Response) -> bool {
    (200..300).contains(&answer.status) && answer.complete
}
