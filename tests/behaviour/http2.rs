//! HTTP/2 towards clients, with prior knowledge (h2c) where the test is not about TLS.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test that calls them")]

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use hyper::{Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::support::edge::{Edge, until};
use crate::support::http;
use crate::support::origin::{Fault, Gate, Origin, sha256};
use crate::{MIB, blob, len, manifest, reached};

/// Longer than every deadline that a test sets.
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection, and the task that drives it; its result is how the connection ended.
struct Client {
    sender: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, window: u32) -> Self {
        let handshake = h2::client::Builder::new()
            .initial_window_size(window)
            .initial_connection_window_size(64 << 20)
            .max_concurrent_reset_streams(1000)
            .handshake(stream)
            .await;
        let (sender, connection) = handshake.expect("the edge speaks HTTP/2");
        Self { sender, driver: tokio::spawn(connection) }
    }

    async fn open(addr: SocketAddr) -> Self {
        Self::over(TcpStream::connect(addr).await.unwrap(), 1 << 20).await
    }

    async fn ask(&mut self, path: &str) -> ResponseFuture {
        let ready = timeout(PATIENCE, self.sender.clone().ready()).await.expect("a stream is free in time");
        self.sender = ready.expect("the connection stands");
        let request = Request::get(format!("http://edge.test{path}")).body(()).unwrap();
        self.sender.send_request(request, true).expect("a request").0
    }

    async fn get(&mut self, path: &str) -> Response<RecvStream> {
        timeout(PATIENCE, self.ask(path).await).await.expect("an answer in time").expect("an answer")
    }
}

/// The whole body, with the window given back as it is read.
async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = timeout(PATIENCE, body.data()).await.expect("data in time") {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// One GET over a stream of any kind.
pub(crate) async fn get<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    path: &str,
) -> Vec<u8> {
    get_within(stream, path, 1 << 20).await
}

/// The same, with the edge at most so many bytes ahead of what was read.
pub(crate) async fn get_within<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    path: &str,
    window: u32,
) -> Vec<u8> {
    let mut client = Client::over(stream, window).await;
    let response = client.get(path).await;
    assert_eq!(response.status(), StatusCode::OK);
    read(&mut response.into_body()).await.expect("a whole body")
}

#[tokio::test]
async fn one_connection_carries_a_whole_pull_at_once() {
    let origin = Origin::start().await;
    let digests: Vec<_> = (0..8).map(|seed| origin.add_synthetic_blob("app", 2 * MIB, seed)).collect();
    let image = origin.add_image_of("app", "v1", &digests);
    let edge = Edge::start(&origin).await;
    let mut client = Client::open(edge.addr()).await;
    for _ in 0..2 {
        let head = client.get(&manifest("app", "v1")).await;
        assert_eq!(head.headers()["docker-content-digest"], image.manifest_digest.as_str());
        assert_eq!(sha256(&read(&mut head.into_body()).await.unwrap()), image.manifest_digest);
        let mut streams = Vec::new();
        for digest in &digests {
            streams.push((digest, client.ask(&blob("app", digest)).await));
        }
        for (digest, response) in streams {
            let response = response.await.unwrap();
            assert_eq!(response.headers()["content-length"], (2 * MIB).to_string().as_str());
            assert_eq!(sha256(&read(&mut response.into_body()).await.unwrap()), *digest);
        }
    }
    until("it is logged", async || edge.log().contains("protocol=HTTP/2.0")).await;
    assert_eq!(edge.metric("clawhub_edge_http_connections").await, 2, "one, and that of the metrics");
}

#[tokio::test]
async fn an_upstream_is_named_by_the_authority_as_by_host() {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "v1", vec![Bytes::from_static(b"layer")]);
    let edge = Edge::builder()
        .routing("builtin = false\ndefault_upstream = \"\"")
        .upstream("other.test", &origin.url(), "aliases = [\"edge.test\"]")
        .start()
        .await;
    let answer = Client::open(edge.addr()).await.get(&manifest("app", "v1")).await;
    assert_eq!(answer.headers()["docker-content-digest"], image.manifest_digest.as_str());
}

#[tokio::test]
async fn a_stream_whose_client_opens_no_window_is_reset_and_the_others_go_on() {
    let origin = Origin::start().await;
    let stuck = origin.add_synthetic_blob("app", 4 * MIB, 1);
    // So small that hyper has handed all of it to h2 when the client stops.
    let tail = origin.add_synthetic_blob("app", 300 << 10, 2);
    let moving = origin.add_synthetic_blob("app", 4 * MIB, 3);
    let edge = Edge::with(&origin, "[limits]\nwrite_timeout = \"500ms\"").await;
    let mut client = Client::over(TcpStream::connect(edge.addr()).await.unwrap(), 65_535).await;
    let began = Instant::now();
    let mut stalled = Vec::new();
    for digest in [&stuck, &tail] {
        stalled.push(client.get(&blob("app", digest)).await.into_body());
    }
    let mut others = 0;
    for body in &mut stalled {
        let error = loop {
            // The window that was there at first is used up, and none is given back.
            match timeout(Duration::from_millis(50), body.data()).await {
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => break error,
                Ok(None) => panic!("an answer without its end"),
                Err(_) => {
                    assert!(began.elapsed() < PATIENCE, "it is never reset");
                    let response = client.get(&blob("app", &moving)).await;
                    assert_eq!(sha256(&read(&mut response.into_body()).await.unwrap()), moving);
                    others += 1;
                }
            }
        };
        assert_eq!((error.is_reset(), error.reason()), (true, Some(Reason::CANCEL)), "{error}");
    }
    assert!(others > 0 && began.elapsed() >= Duration::from_millis(500));
}

#[tokio::test]
async fn a_body_that_cannot_be_completed_is_reset() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", 2 * MIB, 4);
    origin.fault(Fault::on("GET", &digest).corrupt_at(MIB));
    let edge = Edge::start(&origin).await;
    let mut client = Client::open(edge.addr()).await;
    let mut body = client.get(&blob("app", &digest)).await.into_body();
    let error = read(&mut body).await.expect_err("a wrong byte never ends as a success");
    assert!(error.is_reset(), "{error}");
    assert_eq!(client.get("/v2/").await.status(), StatusCode::OK, "the connection goes on");
}

#[tokio::test]
async fn a_stop_sends_goaway_and_lets_streams_finish() {
    const SIZE: u64 = 4 * MIB;
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, 5);
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(SIZE / 2, &gate));
    let mut edge = Edge::start(&origin).await;
    let mut client = Client::open(edge.addr()).await;
    let mut body = client.get(&blob("app", &digest)).await.into_body();
    reached(&gate).await;
    edge.terminate();
    until("no one is let in", async || TcpStream::connect(edge.addr()).await.is_err()).await;
    until("the connection takes no further request", async || match client.sender.clone().ready().await {
        Ok(mut sender) => {
            let request = Request::get("http://edge.test/v2/").body(()).unwrap();
            match sender.send_request(request, true) {
                Ok((response, _)) => response.await.is_err(),
                Err(_) => true,
            }
        }
        Err(_) => true,
    })
    .await;
    gate.open();
    assert_eq!(sha256(&read(&mut body).await.unwrap()), digest);
    drop((client.sender, body));
    assert!(edge.ended().await.success());
    timeout(PATIENCE, client.driver).await.unwrap().unwrap().expect("an orderly end");
}

#[tokio::test]
async fn an_idle_connection_and_one_that_says_nothing_are_closed() {
    let origin = Origin::start().await;
    let edge = Edge::with(&origin, "[limits]\nheader_timeout = \"300ms\"").await;
    let mut idle = Client::open(edge.addr()).await;
    let response = idle.get("/v2/").await;
    read(&mut response.into_body()).await.unwrap();
    timeout(PATIENCE, idle.driver).await.expect("it is closed").unwrap().expect("in an orderly way");
    for begin in [&b"PRI * HTTP/2.0\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut stream = TcpStream::connect(edge.addr()).await.unwrap();
        stream.write_all(begin).await.unwrap();
        let mut rest = Vec::new();
        let closed = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "{begin:?} holds its seat");
    }
}

#[tokio::test]
async fn a_client_that_only_takes_back_its_requests_is_sent_away() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", MIB, 6);
    origin.fault(Fault::on("GET", &digest).gate_headers(&Gate::new()));
    let edge = Edge::start(&origin).await;
    let mut client = Client::open(edge.addr()).await;
    let mut asked = 0;
    while !client.driver.is_finished() {
        assert!(asked < 20_000, "nobody minds");
        let Ok(ready) = client.sender.clone().ready().await else { break };
        client.sender = ready;
        let request = Request::get(format!("http://edge.test{}", blob("app", &digest))).body(()).unwrap();
        let Ok((response, _)) = client.sender.send_request(request, true) else { break };
        // Dropping the response resets the stream, once its HEADERS are out.
        tokio::task::yield_now().await;
        drop(response);
        asked += 1;
    }
    assert!(asked > 20, "{asked}");
    assert_eq!(http::get(edge.addr(), "/v2/", &[]).await.status, 200, "others are served");
}

#[tokio::test]
async fn streams_take_seats_like_connections() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", MIB, 7);
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(MIB / 2, &gate));
    let edge = Edge::with(&origin, "[limits]\nmax_connections = 2\nheader_timeout = \"500ms\"").await;
    let mut client = Client::open(edge.addr()).await;
    // The first sits on the connection's seat, the second on the other one.
    let mut first = client.get(&blob("app", &digest)).await.into_body();
    let mut second = client.get(&blob("app", &digest)).await.into_body();
    let third = client.get(&blob("app", &digest)).await;
    assert_eq!(third.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(third.headers().contains_key("retry-after"));
    gate.open();
    for body in [&mut first, &mut second] {
        assert_eq!(read(body).await.unwrap().len(), len(MIB));
    }
    until("the seat is free again", async || client.get("/v2/").await.status() == StatusCode::OK).await;
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused_and_a_write_is_too() {
    let origin = Origin::start().await;
    let edge = Edge::start(&origin).await;
    let mut client = Client::open(edge.addr()).await;
    let long = Request::get("http://edge.test/v2/").header("x-long", "x".repeat(40 << 10)).body(()).unwrap();
    let (response, _) = client.sender.send_request(long, true).unwrap();
    let refused = timeout(PATIENCE, response).await.unwrap();
    assert!(refused.is_err() || refused.is_ok_and(|answer| answer.status() == 431));
    let mut client = Client::open(edge.addr()).await;
    let write = Request::post("http://edge.test/v2/app/blobs/uploads/").body(()).unwrap();
    let (response, _) = client.sender.send_request(write, true).unwrap();
    assert_eq!(timeout(PATIENCE, response).await.unwrap().unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(client.get("/v2/").await.status(), StatusCode::OK, "the connection goes on");
}
