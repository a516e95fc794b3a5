//! Manifests, tags and referrers: what is asked, and what is believed.

use clawhub_edge::oci::{MANIFEST_ACCEPT, Page, Via};
use clawhub_edge::upstream::Purpose;
use serde_json::json;

use super::origin::{BearerConfig, Fault, OCI_INDEX, OCI_MANIFEST, Origin};
use super::{Edge, REPOSITORY, parsed};

#[tokio::test]
async fn a_manifest_comes_with_its_type_and_digest() {
    let origin = Origin::start().await;
    let image = origin.add_image(REPOSITORY, "latest", vec![]);
    let edge = Edge::of(&[origin.url()]);
    let manifest = edge.manifest("latest").await.unwrap();
    assert_eq!(manifest.body, image.manifest);
    assert_eq!(manifest.content_type.as_deref(), Some(OCI_MANIFEST));
    assert_eq!(manifest.digest, Some(parsed(&image.manifest_digest)));
    assert_eq!(edge.manifest(&image.manifest_digest).await.unwrap().body, image.manifest);
    let head = edge.head("latest").await.unwrap();
    assert_eq!(head.digest, manifest.digest);
    assert_eq!(head.size, Some(image.manifest.len() as u64));
    assert_eq!(head.media_type.as_deref(), Some(OCI_MANIFEST));
    for request in origin.requests() {
        assert_eq!(request.header("accept"), Some(MANIFEST_ACCEPT), "the whole set, always");
    }
}

#[tokio::test]
async fn a_manifest_that_is_not_what_it_claims_is_never_returned() {
    let other = format!("sha256:{}", "0".repeat(64));
    let large = vec![b' '; (4 << 20) + 1];
    let page = [("Content-Type", "text/html")];
    for by_digest in [false, true] {
        let cases: [(&str, Fault, &str); 6] = [
            ("a flipped byte", Fault::on("GET", "/manifests/").corrupt_at(3), "corrupt"),
            ("cut short", Fault::on("GET", "/manifests/").truncate_to(20), "corrupt"),
            ("another digest", Fault::on("GET", "/manifests/").wrong_digest_header(&other), "corrupt"),
            ("a page", Fault::on("GET", "/manifests/").respond(200, &page, "<html>"), "not_a_registry"),
            ("too large", Fault::on("GET", "/manifests/").respond(200, &[], large.clone()), "not_a_registry"),
            ("broken off", Fault::on("GET", "/manifests/").cut_at(20), "unreachable"),
        ];
        for (name, fault, kind) in cases {
            let (origin, honest) = (Origin::start().await, Origin::start().await);
            let image = origin.add_image(REPOSITORY, "latest", vec![]);
            honest.add_image(REPOSITORY, "latest", vec![]);
            origin.fault(fault);
            let reference = if by_digest { image.manifest_digest.as_str() } else { "latest" };
            let error = Edge::of(&[origin.url()]).manifest(reference).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{name}: {error}");
            let both = Edge::of(&[origin.url(), honest.url()]);
            assert_eq!(both.manifest(reference).await.unwrap().body, image.manifest, "{name}");
        }
    }
}

#[tokio::test]
async fn a_manifest_asked_for_by_digest_needs_no_header_to_be_checked() {
    let origin = Origin::start().await;
    let image = origin.add_image(REPOSITORY, "latest", vec![]);
    origin.fault(Fault::on("GET", "/manifests/").corrupt_at(3).drop_digest_header());
    let edge = Edge::of(&[origin.url()]);
    assert_eq!(edge.manifest(&image.manifest_digest).await.unwrap_err().kind(), "corrupt");
}

#[tokio::test]
async fn where_head_is_refused_get_answers() {
    let origin = Origin::start().await;
    let image = origin.add_image(REPOSITORY, "latest", vec![]);
    origin.fault(Fault::on("HEAD", "/manifests/").respond(405, &[], ""));
    let head = Edge::of(&[origin.url()]).head("latest").await.unwrap();
    assert_eq!(head.digest, Some(parsed(&image.manifest_digest)));
}

#[tokio::test]
async fn an_endpoint_behind_a_proxy_project_is_asked_by_its_own_names() {
    let origin = Origin::start().await;
    origin.add_image("proxy/app", "latest", vec![]);
    let edge = Edge::with(&format!(
        "url = \"{}\"\nprefix = \"proxy\"\nrewrite = [{{ match = \"^library/(.*)$\", replace = \"$1\" }}]",
        origin.url()
    ));
    edge.manifest("latest").await.unwrap();
    assert_eq!(origin.count("GET", "/v2/proxy/app/manifests/latest"), 1);
}

#[tokio::test]
async fn tags_come_page_by_page() {
    let origin = Origin::start().await;
    let image = origin.add_image(REPOSITORY, "a", vec![]);
    for tag in ["b", "c", "d", "e"] {
        origin.move_tag(REPOSITORY, tag, &image.manifest_digest);
    }
    let edge = Edge::of(&[origin.url()]);
    let (mut page, mut pages) = (Some(Page { n: Some(2), last: None }), Vec::new());
    while let Some(wanted) = page {
        let answer = edge.client.tags(&edge.route(), &wanted, Purpose::Pull).await.unwrap();
        pages.push(answer.tags.join(" "));
        page = answer.next;
    }
    assert_eq!(pages, ["a b", "c d", "e"]);
    let unknown = "library/other".parse().unwrap();
    let error = edge.client.tags(&edge.route_to(unknown), &Page::default(), Purpose::Pull).await.unwrap_err();
    assert_eq!(error.kind(), "not_found");
}

#[tokio::test]
async fn referrers_come_whole_whatever_their_pages_and_a_missing_api_is_told_apart() {
    let origin = Origin::start().await;
    let image = origin.add_image(REPOSITORY, "latest", vec![]);
    let digest = parsed(&image.manifest_digest);
    let edge = Edge::of(&[origin.url()]);
    let missing = edge.client.referrers(&edge.route(), &digest).await.unwrap_err();
    assert_eq!(missing.kind(), "not_found");
    let page = |kinds: &[&str]| {
        let entry = |kind| json!({ "mediaType": "a/b", "digest": digest, "size": 1, "artifactType": kind });
        let manifests: Vec<_> = kinds.iter().map(entry).collect();
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests }).to_string()
    };
    let link = format!("</v2/{REPOSITORY}/referrers/{digest}?token=x%2Fy>; rel=\"next\"");
    let headers = |link| vec![("Content-Type", OCI_INDEX), ("Link", link)];
    origin.fault(Fault::on("GET", "/referrers/").times(1).respond(200, &headers(&link), page(&["a", "b"])));
    // The second page leads back to itself.
    origin.fault(Fault::on("GET", "token=x%2Fy").respond(200, &headers(&link), page(&["c"])));
    let found = edge.client.referrers(&edge.route(), &digest).await.unwrap();
    let kinds: Vec<_> = found.iter().map(|entry| entry.artifact_type.as_deref().unwrap()).collect();
    assert_eq!(kinds, ["a", "b", "c"]);
    for (what, kind, on_page, status, content_type, body) in [
        ("a page of a portal", "not_a_registry", 0, 200, "text/html", "<html>".to_owned()),
        ("an entry that cannot be read", "corrupt", 0, 200, OCI_INDEX, page(&["a"]).replace("sha256", "x")),
        ("a lost cursor", "unreachable", 1, 404, "text/plain", String::new()),
        ("a portal behind the first page", "unreachable", 1, 200, "text/html", "<html>".to_owned()),
    ] {
        origin.clear_faults();
        let target = if on_page == 0 { "/referrers/" } else { "token=" };
        origin.fault(Fault::on("GET", target).respond(status, &[("Content-Type", content_type)], body));
        origin.fault(Fault::on("GET", "/referrers/").respond(200, &headers(&link), page(&["a"])));
        let error = edge.client.referrers(&edge.route(), &digest).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
    }
}

#[tokio::test]
async fn the_catalogue_is_asked_for_with_its_own_scope_beside_those_of_repositories() {
    let origin = Origin::start().await;
    for name in ["alpine", "library/app", "team/a", "team/b", "zoo"] {
        origin.add_image(name, "latest", vec![]);
    }
    origin.require_bearer(BearerConfig::default());
    let edge = Edge::of(&[origin.url()]);
    let (mut page, mut pages) = (Some(Page { n: Some(2), last: None }), Vec::new());
    while let Some(wanted) = page {
        let answer = edge.client.catalog(&edge.upstream, &Via::default(), None, &wanted).await.unwrap();
        pages.push(answer.repositories.join(" "));
        page = answer.next;
    }
    assert_eq!(pages, ["alpine library/app", "team/a team/b", "zoo"]);
    edge.manifest("latest").await.unwrap();
    edge.client.catalog(&edge.upstream, &Via::default(), None, &Page::default()).await.unwrap();
    assert_eq!(origin.count("GET", "/token"), 2, "one for the catalogue, one for the repository");
    assert_eq!(origin.count("GET", "scope=registry:catalog:%2A"), 1);
}

#[tokio::test]
async fn behind_a_prefix_the_catalogue_holds_only_what_is_there_by_the_names_of_this_edge() {
    let origin = Origin::start().await;
    for name in ["alpine", "team/a", "team/b", "team/c", "teamwork", "zoo"] {
        origin.add_image(name, "latest", vec![]);
    }
    let edge = Edge::with(&format!("url = \"{}\"\nprefix = \"team\"", origin.url()));
    let (mut page, mut names) = (Some(Page { n: Some(2), last: None }), Vec::new());
    while let Some(wanted) = page {
        let answer = edge.client.catalog(&edge.upstream, &Via::default(), None, &wanted).await.unwrap();
        names.extend(answer.repositories);
        page = answer.next;
    }
    assert_eq!(names, ["a", "b", "c"]);
}

#[tokio::test]
async fn an_upstream_without_a_catalogue_is_told_from_one_that_refuses_it() {
    for (status, expected) in [(404, "not_found"), (405, "refused"), (403, "forbidden"), (503, "unreachable")]
    {
        let origin = Origin::start().await;
        origin.fault(Fault::on("GET", "/v2/_catalog").respond(status, &[], ""));
        let edge = Edge::of(&[origin.url()]);
        let error =
            edge.client.catalog(&edge.upstream, &Via::default(), None, &Page::default()).await.unwrap_err();
        assert_eq!(error.kind(), expected, "{status}");
    }
}
