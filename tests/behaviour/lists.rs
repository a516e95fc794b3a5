//! Lists of tags and of repositories, under the names that the client used.

use serde_json::{Value, json};

use crate::assert_error;
use crate::support::edge::{Edge, UPSTREAM};
use crate::support::http;
use crate::support::origin::{Fault, Origin};

async fn origin_with_tags() -> Origin {
    let origin = Origin::start().await;
    let image = origin.add_image("library/app", "a", vec!["layer".into()]);
    for tag in ["b", "c", "d", "e"] {
        origin.move_tag("library/app", tag, &image.manifest_digest);
    }
    origin
}

/// Follows the links from page to page; each must stay on `path`.
async fn follow(edge: &Edge, path: &str, first: &str) -> (Vec<Value>, usize) {
    let mut next = Some(first.to_owned());
    let (mut tags, mut pages) = (Vec::new(), 0);
    while let Some(target) = next {
        let got = http::get(edge.addr(), &target, &[]).await;
        assert_eq!(got.status, 200, "{target}: {}", got.text());
        assert_eq!(got.header("Content-Type"), Some("application/json"));
        let document = got.json();
        let name = path.strip_prefix("/v2/").and_then(|path| path.strip_suffix("/tags/list"));
        assert_eq!(document["name"].as_str(), name);
        tags.extend(document["tags"].as_array().expect("tags").iter().cloned());
        pages += 1;
        next = got.header("Link").map(|link| {
            let (target, relation) =
                link.strip_prefix('<').and_then(|link| link.split_once('>')).expect("a link");
            assert_eq!(relation.replace(' ', ""), ";rel=\"next\"");
            assert_eq!(target.split('?').next(), Some(path), "a link to the client's own path");
            target.to_owned()
        });
    }
    (tags, pages)
}

#[tokio::test]
async fn pages_of_tags_are_linked_under_the_clients_own_path() {
    let origin = origin_with_tags().await;
    let other = Origin::start().await;
    let edge = Edge::builder()
        .upstream("other.test", &origin.url(), "")
        .upstream(UPSTREAM, &other.url(), "")
        .start()
        .await;
    let all = json!(["a", "b", "c", "d", "e"]);
    for (path, query) in
        [("/v2/other.test/library/app/tags/list", ""), ("/v2/library/app/tags/list", "ns=other.test")]
    {
        for (n, expected) in [(2, 3), (1, 5), (5, 1), (100, 1)] {
            let first = format!("{path}?n={n}&{query}");
            let (tags, pages) = follow(&edge, path, first.trim_end_matches('&')).await;
            assert_eq!((Value::from(tags), pages), (all.clone(), expected), "{first}");
        }
        let (tags, _) = follow(&edge, path, &format!("{path}?{query}")).await;
        assert_eq!(Value::from(tags), all);
        let (tags, _) = follow(&edge, path, &format!("{path}?n=2&last=c&{query}")).await;
        assert_eq!(Value::from(tags), json!(["d", "e"]));
    }
    assert_eq!(other.connections_accepted(), 0, "a link that loses its upstream");
}

#[tokio::test]
async fn a_list_of_tags_outlives_its_origin() {
    let origin = origin_with_tags().await;
    let mut edge = Edge::start(&origin).await;
    let path = "/v2/library/app/tags/list?n=3";
    let fresh = http::get(edge.addr(), path, &[]).await;
    origin.fault(Fault::on("GET", "/tags/list").respond(500, &[], ""));
    for vanished in [false, true] {
        if vanished {
            origin.vanish().await;
            edge.restart().await;
        }
        let stale = http::get(edge.addr(), path, &[]).await;
        assert_eq!((stale.status, stale.json()), (200, fresh.json()));
        assert_eq!(stale.header("Link"), fresh.header("Link"));
        assert!(stale.header("Cache-Status").is_some_and(|status| status.contains("stale")));
    }
    let unknown = http::get(edge.addr(), "/v2/library/app/tags/list?n=4", &[]).await;
    assert_error(&unknown, 502, "UNAVAILABLE");
}

#[tokio::test]
async fn a_new_tag_is_in_the_next_list() {
    let origin = origin_with_tags().await;
    let edge = Edge::start(&origin).await;
    let path = "/v2/library/app/tags/list";
    let count = async || http::get(edge.addr(), path, &[]).await.json()["tags"].as_array().unwrap().len();
    assert_eq!(count().await, 5);
    origin.add_image("library/app", "f", vec!["new".into()]);
    assert_eq!(count().await, 6);
}

#[tokio::test]
async fn the_tags_of_an_unknown_repository_are_unknown() {
    let origin = origin_with_tags().await;
    let edge = Edge::start(&origin).await;
    let got = http::get(edge.addr(), "/v2/library/none/tags/list", &[]).await;
    assert_error(&got, 404, "NAME_UNKNOWN");
}

#[tokio::test]
async fn two_thousand_tags_are_one_list() {
    let origin = origin_with_tags().await;
    let digest = origin.add_image("library/many", "t", vec!["layer".into()]).manifest_digest;
    for number in 0..2000 {
        origin.move_tag("library/many", &format!("t{number:04}"), &digest);
    }
    let edge = Edge::start(&origin).await;
    let path = "/v2/library/many/tags/list";
    let (tags, pages) = follow(&edge, path, path).await;
    assert_eq!((tags.len(), pages), (2001, 1));
    let (paged, pages) = follow(&edge, path, &format!("{path}?n=100")).await;
    assert_eq!((paged.len(), pages), (2001, 21));
    assert!(paged == tags);
}

#[tokio::test]
async fn the_catalogue_is_that_of_one_upstream_and_outlives_it() {
    let (origin, other) = (Origin::start().await, Origin::start().await);
    for name in ["a", "b/c", "d"] {
        origin.add_image(name, "1", vec![]);
    }
    other.add_image("e", "1", vec![]);
    let edge = Edge::builder().upstream("origin.test", &origin.url(), "").upstream(
        "other.test",
        &other.url(),
        "aliases = [\"alias.test\"]",
    );
    let mut edge = edge.start().await;
    for vanished in [false, true] {
        if vanished {
            origin.vanish().await;
            edge.restart().await;
        }
        let page = http::get(edge.addr(), "/v2/_catalog?n=2", &[]).await;
        assert_eq!((page.status, page.json()), (200, json!({ "repositories": ["a", "b/c"] })));
        assert_eq!(page.header("Link"), Some("</v2/_catalog?n=2&last=b/c>; rel=\"next\""));
        let page = http::get(edge.addr(), "/v2/_catalog?n=2&last=b/c", &[]).await;
        assert_eq!((page.json(), page.header("Link")), (json!({ "repositories": ["d"] }), None));
    }
    for (path, headers) in
        [("/v2/_catalog?ns=other.test", vec![]), ("/v2/_catalog", vec![("Host", "alias.test")])]
    {
        let named = http::get(edge.addr(), path, &headers).await;
        assert_eq!(named.json(), json!({ "repositories": ["e"] }), "{path}");
    }
    other.fault(Fault::on("GET", "/_catalog").respond(404, &[], ""));
    assert_error(&http::get(edge.addr(), "/v2/_catalog?n=9&ns=other.test", &[]).await, 404, "UNSUPPORTED");
    let unknown = http::get(edge.addr(), "/v2/_catalog?ns=unknown.test", &[]).await;
    assert_error(&unknown, 404, "NAME_UNKNOWN");
}
