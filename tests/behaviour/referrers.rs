//! Signatures, attestations and SBOMs: found as from the upstream itself, also when it is down.

use serde_json::{Value, json};

use crate::support::edge::Edge;
use crate::support::http::{self, Response};
use crate::support::origin::{Fault, Image, OCI_INDEX, OCI_MANIFEST, Origin};
use crate::{assert_error, manifest};

fn entry(image: &Image, artifact_type: &str) -> Value {
    let (digest, size) = (&image.manifest_digest, image.manifest.len());
    json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": size, "artifactType": artifact_type })
}

/// An image and two artifacts that refer to it: its signature and its SBOM.
fn signed(origin: &Origin) -> (Image, Vec<Value>) {
    let image = origin.add_image("app", "1", vec!["layer".into()]);
    let signature = origin.add_image("app", "sig", vec!["signature".into()]);
    let sbom = origin.add_image("app", "sbom", vec!["sbom".into()]);
    (image, vec![entry(&signature, "text/sig"), entry(&sbom, "text/sbom")])
}

/// Lists them by the tag that stands in for a referrers API.
fn tag_referrers(origin: &Origin, subject: &Image, entries: &[Value]) {
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
    let tag = subject.manifest_digest.replace(':', "-");
    origin.add_manifest("app", Some(&tag), OCI_INDEX, index.to_string());
}

async fn referrers(edge: &Edge, subject: &Image, query: &str) -> Response {
    http::get(edge.addr(), &format!("/v2/app/referrers/{}{query}", subject.manifest_digest), &[]).await
}

#[track_caller]
fn assert_lists(answer: &Response, entries: &[Value]) {
    assert_eq!((answer.status, answer.header("Content-Type")), (200, Some(OCI_INDEX)), "{}", answer.text());
    assert_eq!(answer.json()["manifests"], json!(entries));
    assert_eq!(answer.json()["schemaVersion"], 2);
}

#[tokio::test]
async fn they_are_listed_by_the_api_or_by_the_tag_in_its_place_and_filtered_here() {
    for has_api in [true, false] {
        let origin = Origin::start().await;
        let (image, entries) = signed(&origin);
        if has_api {
            origin.add_referrers("app", &image.manifest_digest, entries.clone());
        } else {
            tag_referrers(&origin, &image, &entries);
        }
        let edge = Edge::start(&origin).await;
        let all = referrers(&edge, &image, "").await;
        assert_lists(&all, &entries);
        assert_eq!(all.header("OCI-Filters-Applied"), None);
        let filtered = referrers(&edge, &image, "?artifactType=text%2Fsbom").await;
        assert_lists(&filtered, &entries[1..]);
        assert_eq!(filtered.header("OCI-Filters-Applied"), Some("artifactType"));
        assert_lists(&referrers(&edge, &image, "?artifactType=none").await, &[]);
        assert_eq!(origin.count("GET", "/referrers/"), 1, "asked once within the tag's TTL");
        assert!(origin.count("GET", "/manifests/sha256-") <= 1);
    }
}

#[tokio::test]
async fn what_nothing_refers_to_has_an_empty_list() {
    let origin = Origin::start().await;
    let (image, _) = signed(&origin);
    let edge = Edge::start(&origin).await;
    assert_lists(&referrers(&edge, &image, "").await, &[]);
}

#[tokio::test]
async fn pages_are_linked_under_the_clients_own_names() {
    let origin = Origin::start().await;
    let (image, entries) = signed(&origin);
    tag_referrers(&origin, &image, &entries);
    let edge = Edge::start(&origin).await;
    let digest = &image.manifest_digest;
    let first = format!("/v2/app/referrers/{digest}?n=1&ns=origin.test");
    let page = http::get(edge.addr(), &first, &[]).await;
    assert_lists(&page, &entries[..1]);
    let link = page.header("Link").expect("another page").to_owned();
    let next = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).unwrap();
    assert!(next.contains("ns=origin.test"), "{next}");
    let page = http::get(edge.addr(), next, &[]).await;
    assert_lists(&page, &entries[1..]);
    assert_eq!(page.header("Link"), None);
}

#[tokio::test]
async fn a_list_outlives_its_origin_and_one_that_is_not_known_is_no_empty_one() {
    let origin = Origin::start().await;
    let (image, entries) = signed(&origin);
    let other = origin.add_image("app", "2", vec!["other".into()]);
    tag_referrers(&origin, &image, &entries);
    let mut edge = Edge::with(&origin, "[tags]\nttl = \"0\"").await;
    assert_lists(&referrers(&edge, &image, "").await, &entries);
    origin.fault(Fault::on("*", "/v2/").respond(503, &[], ""));
    for vanished in [false, true] {
        if vanished {
            origin.vanish().await;
            edge.restart().await;
        }
        let stale = referrers(&edge, &image, "").await;
        assert_lists(&stale, &entries);
        assert!(stale.header("Cache-Status").is_some_and(|status| status.contains("stale")));
        assert_error(&referrers(&edge, &other, "").await, 502, "UNAVAILABLE");
    }
}

#[tokio::test]
async fn a_new_signature_is_seen_once_the_ttl_is_over() {
    let origin = Origin::start().await;
    let (image, entries) = signed(&origin);
    let edge = Edge::with(&origin, "[tags]\nttl = \"0\"").await;
    assert_lists(&referrers(&edge, &image, "").await, &[]);
    tag_referrers(&origin, &image, &entries);
    crate::support::edge::until("it is seen", async || {
        referrers(&edge, &image, "").await.json()["manifests"] == json!(entries)
    })
    .await;
}

#[tokio::test]
async fn a_circle_of_edges_is_noticed_by_the_first_that_sees_itself() {
    let origin = Origin::start().await;
    let edge = Edge::with(&origin, "").await;
    let path = manifest("app", "1");
    origin.add_image("app", "1", vec![]);
    let via = http::get(edge.addr(), &path, &[("Via", "1.1 other-edge")]).await;
    assert_eq!(via.status, 200);
    let looped =
        Edge::builder().routing("default_upstream = \"origin.test\"\nbuiltin = false\nnode_id = \"here\"");
    let looped = looped.upstream("origin.test", &origin.url(), "").start().await;
    let got = http::get(looped.addr(), &path, &[("Via", "1.1 there, 1.1 here")]).await;
    assert_error(&got, 508, "UNAVAILABLE");
    assert_eq!(http::get(looped.addr(), &path, &[("Via", "1.1 there")]).await.status, 200);
}
