//! Forward proxies.

use super::origin::{Fault, ForwardProxy, Origin, synthetic_bytes};
use super::{Edge, REPOSITORY, quick};
use clawhub_edge::runtime::Settings;
use clawhub_edge::upstream::FetchConfig;
use std::collections::BTreeMap;
use std::path::Path;

const PROXY_LOGIN: &str = "Basic bWU6cHJveHktd29yZA==";

/// `registry.test` resolves nowhere: only a proxy leads there.
pub(super) fn edge(upstream: &str, proxy: &str) -> Edge {
    let text = format!("[fetch]\nproxy = \"{proxy}\"\nproxy_loopback = true\n");
    let settings = Settings::new(Some((Path::new("edge.toml"), &text)), [], BTreeMap::new());
    let proxy = FetchConfig::read(&settings.root().section("fetch")).proxy;
    Edge::configured(&format!("[upstreams.\"x.example\"]\n{upstream}\n"), FetchConfig { proxy, ..quick() })
}

#[tokio::test]
async fn plain_http_is_sent_to_the_proxy_whose_password_ends_there() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob(REPOSITORY, 100_000, 3);
    origin.add_image(REPOSITORY, "latest", vec![]);
    origin.require_basic("robot", "word");
    let proxy = ForwardProxy::start(origin.addr(), Some(PROXY_LOGIN));
    let upstream = "url = \"http://registry.test\"\nusername = \"robot\"\npassword = \"word\"";
    let edge = edge(upstream, &format!("http://me:proxy-word@{}", proxy.addr()));
    edge.manifest("latest").await.unwrap();
    assert_eq!(edge.fetch(&digest, 0).await.unwrap(), synthetic_bytes(100_000, 3));
    let heads = proxy.heads();
    assert!(heads.iter().all(|head| head.contains(" http://registry.test/v2/")), "{heads:?}");
    for request in origin.requests() {
        assert_eq!(request.header("host"), Some("registry.test"));
        assert!(!format!("{:?}", request.headers).contains("bWU6cHJveHktd29yZA"), "{request:?}");
    }
}

#[tokio::test]
async fn a_broken_transfer_is_resumed_through_the_proxy() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob(REPOSITORY, 300_000, 3);
    origin.fault(Fault::on("GET", &digest).times(1).reset_at(100_000));
    let proxy = ForwardProxy::start(origin.addr(), None);
    let edge = edge("url = \"http://registry.test\"", &format!("http://{}", proxy.addr()));
    assert_eq!(edge.fetch(&digest, 0).await.unwrap(), synthetic_bytes(300_000, 3));
}

#[tokio::test]
async fn a_proxy_that_refuses_or_is_gone_is_named_without_its_password() {
    let origin = Origin::start().await;
    let proxy = ForwardProxy::start(origin.addr(), Some(PROXY_LOGIN));
    let address = proxy.addr();
    let urls = ["http", "https"].map(|scheme| format!("url = \"{scheme}://registry.test\""));
    for upstream in &urls {
        let edge = edge(upstream, &format!("http://me:wrong-word@{address}"));
        let error = edge.manifest("latest").await.unwrap_err();
        assert!(error.to_string().contains("proxy") && !error.to_string().contains("wrong-word"), "{error}");
    }
    assert_eq!(origin.connections_accepted(), 0);
    drop(proxy);
    for upstream in &urls {
        let edge = edge(upstream, &format!("http://me:wrong-word@{address}"));
        let error = edge.manifest("latest").await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && !error.contains("wrong-word"), "{error}");
    }
}
