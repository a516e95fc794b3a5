//! The way to an upstream through a forward proxy, as the environment and the configuration say it.

use crate::support::edge::{Edge, UPSTREAM};
use crate::support::origin::{ForwardProxy, Origin};
use crate::{pull, pull_blob};

#[tokio::test]
async fn the_proxies_of_the_environment_are_used_and_their_password_is_in_no_log() {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "1", vec!["through a proxy".into()]);
    let proxy = ForwardProxy::start(origin.addr(), Some("Basic bWU6cHJveHktd29yZA=="));
    let url = format!("http://me:proxy-word@{}", proxy.addr());
    let mut edge =
        Edge::builder().upstream(UPSTREAM, "http://registry.test", "").env("http_proxy", &url).start().await;
    pull(&edge, "app", "1", &image).await;
    assert!(proxy.heads().iter().all(|head| head.contains("http://registry.test/v2/app/")));
    let metrics = edge.metrics().await;
    edge.stop().await;
    for text in [edge.log(), metrics] {
        for secret in ["proxy-word", "bWU6cHJveHktd29yZA"] {
            let line = text.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "holds {secret}");
        }
    }
}

#[tokio::test]
async fn what_needs_no_proxy_gets_none() {
    let origin = Origin::start().await;
    let digest = origin.add_blob("app", "straight");
    let proxy = ForwardProxy::start(origin.addr(), None);
    let url = format!("http://{}", proxy.addr());
    let settings = ["", "[fetch]\nproxy_loopback = true\nno_proxy = [\"127.0.0.0/8\"]"];
    for toml in settings {
        let edge = Edge::builder().upstream(UPSTREAM, &origin.url(), "").env("ALL_PROXY", &url).toml(toml);
        pull_blob(edge.start().await.addr(), "app", &digest).await;
    }
    assert!(proxy.heads().is_empty());
}
