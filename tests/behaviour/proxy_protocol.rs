//! Behind load balancers and proxies.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test that calls them")]

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::edge::{Edge, UPSTREAM, until};
use crate::support::http;
use crate::support::origin::Origin;
use crate::support::tls::{Authority, body, get};

const BEHIND_LOOPBACK: &str = "proxy_protocol = \"required\"\ntrusted_proxies = [\"127.0.0.0/8\"]";
const V1: &[u8] = b"PROXY TCP4 203.0.113.7 10.0.0.1 56252 80\r\n";
const V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13\xcb\0\x71\x08\x0a\0\0\x01\xdb\xbc\0\x50\x03\0\x04\x01\x02\x03\x04";
const V2_LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

async fn edge(origin: &Origin, listen: &str) -> Edge {
    Edge::builder().upstream(UPSTREAM, &origin.url(), "").listen(listen).start().await
}

/// A connection that begins with these bytes.
async fn beginning(edge: &Edge, begin: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(edge.addr()).await.unwrap();
    stream.write_all(begin).await.unwrap();
    stream
}

#[tokio::test]
async fn the_client_is_the_one_that_the_header_names() {
    let origin = Origin::start().await;
    let edge = edge(&origin, BEHIND_LOOPBACK).await;
    for (header, client) in [(V1, "203.0.113.7:56252"), (V2, "203.0.113.8:56252"), (V2_LOCAL, "127.0.0.1:")] {
        let stream = beginning(&edge, header).await;
        assert_eq!(body(&get(stream, "/v2/").await.unwrap()), b"{}");
        until("it is logged", async || edge.log().contains(&format!("client={client}"))).await;
    }
    // In pieces, and with HTTP/2 behind it.
    let mut stream = beginning(&edge, &V2[..20]).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    stream.write_all(&V2[20..]).await.unwrap();
    assert_eq!(crate::http2::get(stream, "/v2/").await, b"{}");
}

#[tokio::test]
async fn the_header_comes_before_tls() {
    let (origin, authority) = (Origin::start().await, Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let keys = authority.certify(&["edge.test"]).write(directory.path(), "edge");
    let edge = edge(&origin, &format!("{keys}\n{BEHIND_LOOPBACK}")).await;
    let stream = beginning(&edge, V1).await;
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(authority.client(None)));
    let stream = connector.connect("edge.test".try_into().unwrap(), stream).await.unwrap();
    assert_eq!(body(&get(stream, "/v2/").await.unwrap()), b"{}");
    until("it is logged", async || edge.log().contains("client=203.0.113.7:56252")).await;
}

#[tokio::test]
async fn connections_without_a_good_header_or_from_elsewhere_are_closed() {
    let origin = Origin::start().await;
    let required = edge(&origin, BEHIND_LOOPBACK).await;
    let elsewhere = edge(&origin, "proxy_protocol = \"required\"\ntrusted_proxies = [\"10.0.0.0/8\"]").await;
    for (edge, begin, reason) in [
        (&required, &b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"[..], "no PROXY header"),
        (&required, b"PROXY TCP4 nonsense\r\n", "another form"),
        (&required, b"\x16\x03\x01\x02\x00\x01", "no PROXY header"),
        (&elsewhere, V1, "trusted proxy"),
    ] {
        let mut answer = Vec::new();
        let mut stream = beginning(edge, begin).await;
        // A reset closes as well as anything.
        let _ =
            timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.expect("it is closed");
        assert_eq!(answer, b"", "{begin:?}");
        until("the reason is in the log", async || edge.log().contains(reason)).await;
    }
}

#[tokio::test]
async fn a_forwarded_address_is_believed_from_trusted_proxies_only() {
    let origin = Origin::start().await;
    let trusting = edge(&origin, "trusted_proxies = [\"127.0.0.1\"]").await;
    let plain = edge(&origin, "").await;
    let forged = [("X-Forwarded-For", "1.2.3.4, 198.51.100.7, 127.0.0.1")];
    for (edge, client) in [(&trusting, "client=198.51.100.7"), (&plain, "client=127.0.0.1:")] {
        assert_eq!(http::get(edge.addr(), "/v2/", &forged).await.status, 200);
        until("it is logged", async || edge.log().contains(client)).await;
        assert!(!edge.log().contains("client=1.2.3.4"));
    }
}
