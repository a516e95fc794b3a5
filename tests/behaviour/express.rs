//! Hot manifests on HTTP/1.1 are answered below hyper, and nobody can tell.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test that calls them")]

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::support::edge::{Edge, UPSTREAM, until};
use crate::support::http;
use crate::support::origin::{Image, OCI_MANIFEST, Origin, sha256};
use crate::support::tls::{Authority, connect};
use crate::{MIB, blob, len, manifest, pull};

/// What an ordinary head does not have.
const UNUSUAL: &str = "X-Unusual: yes\r\n";

/// An edge that has an image, and its manifest in memory.
async fn hot(toml: &str) -> (Origin, Edge, Image) {
    let origin = Origin::start().await;
    let layer = origin.add_synthetic_blob("app", 3 * MIB, 7);
    let image = origin.add_image_of("app", "1", &[layer]);
    let edge = Edge::with(&origin, toml).await;
    pull(&edge, "app", "1", &image).await;
    (origin, edge, image)
}

fn request(method: &str, path: &str, headers: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: edge\r\nUser-Agent: test/1\r\n{headers}\r\n")
}

/// One answer: its head, and as many bytes of a body as it promises.
async fn answer<S: AsyncRead + Unpin>(stream: &mut S, has_body: bool) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; if has_body { length.parse().unwrap() } else { 0 }];
    stream.read_exact(&mut body).await.unwrap();
    (head, body)
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    method: &str,
    path: &str,
    headers: &str,
) -> (String, Vec<u8>) {
    stream.write_all(request(method, path, headers).as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    answer(stream, method == "GET").await
}

/// Everything of a head but what is another in every answer.
fn lasting(head: &str) -> Vec<&str> {
    let changing = ["date: ", "x-request-id: ", "age: "];
    let mut lines: Vec<&str> = head.lines().collect();
    lines.retain(|line| !changing.iter().any(|name| line.starts_with(name)));
    lines.sort_unstable();
    lines
}

async fn is_the_same_for_everybody<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, image: &Image) {
    let paths = [
        manifest("app", "1"),
        manifest("app", &image.manifest_digest),
        manifest(&format!("{UPSTREAM}/app"), "1"),
        format!("{}?ns={UPSTREAM}", manifest("app", "1")),
    ];
    for method in ["GET", "HEAD"] {
        for path in &paths {
            // In turns on one connection: what goes through hyper leaves the lane as it was.
            let (usual, usual_body) = ask(stream, method, path, "Accept: */*\r\n").await;
            let (unusual, unusual_body) = ask(stream, method, path, UNUSUAL).await;
            assert_eq!(lasting(&usual), lasting(&unusual), "{method} {path}");
            for header in ["date: ", "x-request-id: ", "age: "] {
                let width = |head: &str| head.lines().find(|line| line.starts_with(header)).unwrap().len();
                assert_eq!(width(&usual), width(&unusual), "{header} of {method} {path}");
            }
            assert_eq!(usual_body, unusual_body);
            if method == "GET" {
                assert_eq!(usual_body, image.manifest);
            }
            let (_, layer) = ask(stream, "GET", &blob("app", &image.layer_digests[0]), "").await;
            assert_eq!(sha256(&layer), image.layer_digests[0]);
        }
    }
}

#[tokio::test]
async fn an_ordinary_request_is_answered_like_any_other() {
    let (_origin, edge, image) = hot("").await;
    let mut stream = TcpStream::connect(edge.addr()).await.unwrap();
    is_the_same_for_everybody(&mut stream, &image).await;
}

#[tokio::test]
async fn it_is_logged_and_counted_like_any_other() {
    let (_origin, edge, image) = hot("").await;
    let mut stream = TcpStream::connect(edge.addr()).await.unwrap();
    let series = "clawhub_edge_http_requests_total{kind=\"manifest\",status=\"200\"}";
    let before = edge.metric(series).await;
    let expected = format!(
        "protocol=HTTP/1.1 method=GET path=\"{}\" ns=\"{UPSTREAM}\" status=200 sent_bytes={} head_ms=0",
        manifest("app", "1"),
        image.manifest.len(),
    );
    for (headers, lines) in [("", 1), (UNUSUAL, 2)] {
        ask(&mut stream, "GET", &format!("{}?ns={UPSTREAM}", manifest("app", "1")), headers).await;
        until("the request is logged", async || {
            let is_expected = |line: &&str| {
                line.contains(&expected)
                    && line.contains("cache=\"clawhub-edge; hit; ttl=")
                    && line.ends_with("outcome=\"complete\" user_agent=\"test/1\"")
            };
            edge.log().lines().filter(is_expected).count() == lines
        })
        .await;
    }
    assert_eq!(edge.metric(series).await, before + 2);
}

#[tokio::test]
async fn it_is_so_over_tls_too() {
    let (origin, authority) = (Origin::start().await, Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let layer = origin.add_synthetic_blob("app", MIB, 7);
    let image = origin.add_image_of("app", "1", &[layer]);
    let keys = authority.certify(&["edge.test"]).write(directory.path(), "edge");
    let edge = Edge::builder().upstream(UPSTREAM, &origin.url(), "").listen(&keys).start().await;
    let mut config = authority.client(None);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut stream = connect(edge.addr(), "edge.test", &Arc::new(config)).await.unwrap();
    ask(&mut stream, "GET", &manifest("app", "1"), "").await;
    is_the_same_for_everybody(&mut stream, &image).await;
    until("it is logged", async || edge.log().contains("tls=\"TLSv1.3\"")).await;
}

#[tokio::test]
async fn a_body_is_never_read_as_a_request() {
    let (_origin, edge, image) = hot("").await;
    let hidden = request("GET", &manifest("app", &image.manifest_digest), "");
    let bodies = [
        (format!("Content-Length: {}\r\n", hidden.len()), hidden.clone()),
        ("Transfer-Encoding: chunked\r\n".to_owned(), format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len())),
    ];
    for (framing, body) in bodies {
        for path in [manifest("app", "1"), blob("app", &image.layer_digests[0])] {
            for headers in [framing.clone(), format!("{UNUSUAL}{framing}")] {
                // The head first, and its answer read, so that the body arrives by itself.
                let mut stream = TcpStream::connect(edge.addr()).await.unwrap();
                let (head, _) = ask(&mut stream, "GET", &path, &headers).await;
                assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                // The edge may have closed the connection.
                let _ = stream.write_all(body.as_bytes()).await;
                let mut rest = Vec::new();
                let _ = timeout(Duration::from_millis(200), stream.read_to_end(&mut rest)).await;
                let rest = String::from_utf8_lossy(&rest);
                assert!(!rest.contains(" 200 OK"), "{path} {headers}: {rest}");
            }
        }
    }
}

#[tokio::test]
async fn what_comes_at_once_or_in_pieces_is_answered_in_its_order() {
    let (_origin, edge, image) = hot("").await;
    let asked = [
        (manifest("app", "1"), "", &image.manifest_digest),
        (blob("app", &image.layer_digests[0]), "", &image.layer_digests[0]),
        (manifest("app", &image.manifest_digest), "", &image.manifest_digest),
        (manifest("app", "1"), UNUSUAL, &image.manifest_digest),
        (blob("app", &image.config_digest), "", &image.config_digest),
        (manifest("app", "1"), "", &image.manifest_digest),
    ];
    let requests: String = asked.iter().map(|(path, headers, _)| request("GET", path, headers)).collect();
    // In pieces of every length; the whole at last.
    for piece in [1, 7, 64, 150, 400, requests.len()] {
        let stream = TcpStream::connect(edge.addr()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let writing = async {
            for part in requests.as_bytes().chunks(piece) {
                writer.write_all(part).await.unwrap();
                if requests.len() / piece < 200 {
                    sleep(Duration::from_millis(3)).await;
                }
            }
        };
        let reading = async {
            for (path, _, digest) in &asked {
                let (head, body) = answer(&mut reader, true).await;
                assert!(sha256(&body) == **digest, "{path} in pieces of {piece}: {head}");
            }
        };
        tokio::join!(writing, reading);
    }
}

/// An edge that has a manifest of this size in memory, and its digest.
async fn hot_and_large(size: u64, toml: &str) -> (Origin, Edge, String) {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "1", vec!["a layer".into()]);
    let mut document: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    document["annotations"] = serde_json::json!({ "long": "x".repeat(len(size)) });
    let digest = origin.add_manifest("app", Some("large"), OCI_MANIFEST, document.to_string());
    let edge = Edge::builder()
        .upstream(UPSTREAM, &origin.url(), "")
        .env("CLAWHUB_EDGE_STORE_MEMORY", "256MiB")
        .env("CLAWHUB_EDGE_STORE_MEMORY_MAX_OBJECT", "4MiB")
        .toml(toml)
        .start()
        .await;
    for _ in 0..2 {
        let got = http::get(edge.addr(), &manifest("app", &digest), &[]).await;
        assert_eq!(sha256(&got.body), digest);
    }
    (origin, edge, digest)
}

/// A client whose kernel takes little.
async fn narrow(edge: &Edge) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    socket.connect(edge.addr()).await.unwrap()
}

#[tokio::test]
async fn a_slow_reader_gets_all_of_it() {
    let (_origin, edge, digest) = hot_and_large(3 * MIB, "").await;
    let mut stream = narrow(&edge).await;
    let path = manifest("app", &digest);
    // The second asks while most of the first waits at the edge.
    stream.write_all(request("GET", &path, "").as_bytes()).await.unwrap();
    sleep(Duration::from_millis(300)).await;
    stream.write_all(request("GET", &path, "").as_bytes()).await.unwrap();
    let mut size = 0;
    for _ in 0..2 {
        let (_, body) = answer(&mut stream, true).await;
        assert_eq!(sha256(&body), digest);
        size = body.len();
    }
    let (sent, outcome) = (format!("sent_bytes={size} "), "outcome=\"complete\" user_agent=\"test/1\"");
    until("both are complete", async || {
        let log = edge.log();
        log.lines().filter(|line| line.ends_with(outcome) && line.contains(&sent)).count() == 2
    })
    .await;
}

#[tokio::test]
async fn who_reads_nothing_is_cut_off_and_logged() {
    let (_origin, edge, digest) = hot_and_large(3 * MIB, "[limits]\nwrite_timeout = \"300ms\"").await;
    let mut stream = narrow(&edge).await;
    stream.write_all(request("GET", &manifest("app", &digest), "").as_bytes()).await.unwrap();
    until("it is logged", async || edge.log().contains("outcome=\"client left\"")).await;
    until("its connection is gone", async || edge.metric("clawhub_edge_http_connections").await <= 1).await;
}

#[tokio::test]
async fn a_stop_closes_the_connection_behind_its_last_answer() {
    let (_origin, mut edge, image) = hot("").await;
    let mut stream = TcpStream::connect(edge.addr()).await.unwrap();
    let (_, body) = ask(&mut stream, "GET", &manifest("app", "1"), "").await;
    assert_eq!(body, image.manifest);
    edge.terminate();
    let mut rest = Vec::new();
    timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, b"");
    assert!(edge.ended().await.success());
}

#[tokio::test]
async fn a_stop_waits_for_the_rest_of_a_head_no_longer_than_that_may_take() {
    let (_origin, mut edge, image) = hot("[limits]\nheader_timeout = \"1s\"\ndrain_timeout = \"5m\"").await;
    let mut stream = TcpStream::connect(edge.addr()).await.unwrap();
    let (_, body) = ask(&mut stream, "GET", &manifest("app", "1"), "").await;
    assert_eq!(body, image.manifest);
    stream.write_all(b"GET /v2/ HTTP/1.1\r\n").await.unwrap();
    sleep(Duration::from_millis(100)).await;
    edge.terminate();
    timeout(Duration::from_mins(1), edge.ended()).await.unwrap();
}

#[tokio::test]
async fn the_listener_of_the_metrics_has_no_manifests() {
    let (_origin, edge, _image) = hot("[metrics]\naddress = \"127.0.0.1:0\"").await;
    let introduction = "metrics have a listener of their own listen=http://";
    until("it is introduced", async || edge.log().contains(introduction)).await;
    let log = edge.log();
    let (_, address) = log.split_once(introduction).unwrap();
    let (address, _) = address.split_once('\n').unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    for (path, status) in
        [(manifest("app", "1"), "404"), ("/livez".into(), "200"), (manifest("app", "1"), "404")]
    {
        let (head, _) = ask(&mut stream, "GET", &path, "").await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
    }
}

#[tokio::test]
async fn a_head_is_no_longer_than_any_other_may_be() {
    let (_origin, edge, _image) = hot("[limits]\nmax_header_size = \"8KiB\"").await;
    let path = manifest("app", "1");
    for (length, status) in [(7000, "200"), (9000, "431")] {
        let mut stream = TcpStream::connect(edge.addr()).await.unwrap();
        let accept = format!("Accept: {}\r\n", "x".repeat(length));
        let (head, _) = ask(&mut stream, "HEAD", &path, &accept).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{length}: {head}");
    }
}
