//! The process: how it starts, how it stops, and what it lets clients do to it.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::support::edge::{Edge, UPSTREAM, binary, until};
use crate::support::http::{self, Connection};
use crate::support::origin::{Fault, Gate, Origin};
use crate::{MIB, blob, len, pull_blob};

/// Reads until the edge closes; panics if it does not.
async fn read_to_close(stream: &mut TcpStream, within: Duration) -> Vec<u8> {
    let mut bytes = Vec::new();
    let closed = timeout(within, stream.read_to_end(&mut bytes)).await;
    // A reset closes as well as anything.
    let _ = closed.expect("the edge closes the connection");
    bytes
}

#[tokio::test]
async fn a_stop_lets_transfers_finish_and_accepts_no_more() {
    const SIZE: u64 = 8 * MIB;
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", SIZE, 1);
    let gate = Gate::new();
    origin.fault(Fault::on("GET", &digest).times(1).gate_at(SIZE / 2, &gate));
    let mut edge = Edge::start(&origin).await;
    let idle = Connection::open(edge.addr()).await.unwrap();
    let mut client = http::open(edge.addr(), &blob("app", &digest), &[]).await;
    client.read(len(SIZE / 4)).await;
    edge.terminate();
    until("no one is let in", async || TcpStream::connect(edge.addr()).await.is_err()).await;
    gate.open();
    let drained = client.drain().await;
    assert!(drained.complete, "{drained:?}");
    let began = Instant::now();
    assert!(edge.ended().await.success());
    assert!(began.elapsed() < Duration::from_secs(5), "nothing is left to wait for");
    assert!(edge.has_blob(&digest));
    drop(idle);
}

#[tokio::test]
async fn who_has_just_been_let_in_is_answered_although_the_edge_stops() {
    let origin = Origin::start().await;
    let mut edge = Edge::start(&origin).await;
    let addr = edge.addr();
    let mut early = TcpStream::connect(addr).await.unwrap();
    until("it is let in", async || edge.metric("clawhub_edge_http_connections").await >= 2).await;
    edge.terminate();
    until("no one else is", async || TcpStream::connect(addr).await.is_err()).await;
    early.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let answer = read_to_close(&mut early, Duration::from_secs(5)).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert!(edge.ended().await.success());
}

#[tokio::test]
async fn an_idle_edge_stops_at_once_and_a_transfer_only_up_to_the_limit() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", MIB, 2);
    origin.fault(Fault::on("GET", &digest).stall_at(MIB / 2));
    for with_transfer in [false, true] {
        let mut edge = Edge::with(&origin, "[limits]\ndrain_timeout = \"500ms\"").await;
        let _idle = Connection::open(edge.addr()).await.unwrap();
        let mut client = None;
        if with_transfer {
            client = Some(http::open(edge.addr(), &blob("app", &digest), &[]).await);
        }
        let began = Instant::now();
        assert!(edge.stop().await.success());
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        if let Some(mut client) = client {
            assert!(!client.drain().await.complete);
        }
    }
}

#[tokio::test]
async fn a_client_that_accepts_nothing_is_cut_off() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", 64 * MIB, 3);
    let edge = Edge::with(&origin, "[limits]\nwrite_timeout = \"300ms\"").await;
    let mut dawdler = http::open(edge.addr(), &blob("app", &digest), &[]).await;
    until("it is cut off", async || {
        // The metrics' own connection is the one that is left.
        edge.metric("clawhub_edge_http_connections").await <= 1
    })
    .await;
    assert!(!dawdler.drain().await.complete);
    // Whoever reads slowly, but reads, is not.
    pull_blob(edge.addr(), "app", &digest).await;
}

#[tokio::test]
async fn the_deadline_on_a_request_does_not_run_while_an_answer_is_on_its_way() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", MIB, 4);
    let edge = Edge::with(&origin, "[limits]\nheader_timeout = \"300ms\"").await;
    pull_blob(edge.addr(), "app", &digest).await;
    // Small windows: most of the answer waits at the edge, all of it handed over to be written.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 << 10).unwrap();
    let mut client = socket.connect(edge.addr()).await.unwrap();
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", blob("app", &digest));
    client.write_all(request.as_bytes()).await.unwrap();
    let (began, mut received) = (Instant::now(), 0);
    let mut buffer = vec![0; 64 << 10];
    while received < MIB {
        sleep(Duration::from_millis(30)).await;
        let read = client.read(&mut buffer).await.unwrap();
        assert!(read > 0, "cut off after {received} bytes and {:?}", began.elapsed());
        received += read as u64;
    }
    assert!(began.elapsed() > Duration::from_millis(900), "it took too little time to show anything");
}

#[tokio::test]
async fn connections_that_send_no_request_are_cut_off() {
    let origin = Origin::start().await;
    let edge = Edge::with(&origin, "[limits]\nheader_timeout = \"300ms\"").await;
    let limit = Duration::from_secs(10);
    let mut silent = TcpStream::connect(edge.addr()).await.unwrap();
    let mut slow = TcpStream::connect(edge.addr()).await.unwrap();
    slow.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow:").await.unwrap();
    let kept = Connection::open(edge.addr()).await.unwrap();
    let mut transfer = kept.get("/v2/", &[]).await.unwrap();
    transfer.drain().await;
    let kept = transfer.into_connection().unwrap();
    read_to_close(&mut silent, limit).await;
    let answer = read_to_close(&mut slow, limit).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    until("idle connections are closed too", async || {
        edge.metric("clawhub_edge_http_connections").await <= 1
    })
    .await;
    drop(kept);
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let origin = Origin::start().await;
    let edge = Edge::start(&origin).await;
    let long = "x".repeat(64 << 10);
    let got = http::try_request("GET", edge.addr(), "/v2/", &[("X-Long", &long)], b"").await;
    assert!(got.is_err() || got.is_ok_and(|got| got.status == 431));
    let token = "t".repeat(7 << 10);
    let got = http::get(edge.addr(), "/v2/", &[("Authorization", &token)]).await;
    assert_eq!(got.status, 200, "long tokens are ordinary");
}

#[tokio::test]
async fn a_client_that_tries_tls_first_learns_at_once_that_there_is_none() {
    let origin = Origin::start().await;
    let edge = Edge::start(&origin).await;
    let mut stream = TcpStream::connect(edge.addr()).await.unwrap();
    // The beginning of a ClientHello, as much as may come in one segment.
    stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await.unwrap();
    let began = Instant::now();
    read_to_close(&mut stream, Duration::from_secs(10)).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn more_connections_than_allowed_wait_for_a_seat() {
    let origin = Origin::start().await;
    let edge = Edge::with(&origin, "[limits]\nmax_connections = 2").await;
    let (one, two) =
        (Connection::open(edge.addr()).await.unwrap(), Connection::open(edge.addr()).await.unwrap());
    // Both have a seat once both are answered.
    let mut seated = Vec::new();
    for connection in [one, two] {
        let mut transfer = connection.get("/v2/", &[]).await.unwrap();
        transfer.drain().await;
        seated.push(transfer.into_connection().unwrap());
    }
    let addr = edge.addr();
    let mut third = tokio::spawn(async move { http::get(addr, "/v2/", &[]).await });
    let early = timeout(Duration::from_millis(300), &mut third).await;
    assert!(early.is_err(), "a third was let in: {early:?}");
    seated.pop();
    assert_eq!(third.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_listener_without_connections_takes_no_seat_from_another() {
    let origin = Origin::start().await;
    let prepared = Edge::builder()
        .upstream(UPSTREAM, &origin.url(), "")
        .toml("[limits]\nmax_connections = 2\n[metrics]\naddress = \"127.0.0.1:0\"");
    let edge = prepared.start().await;
    let kept = Connection::open(edge.addr()).await.unwrap();
    let mut transfer = kept.get("/v2/", &[]).await.unwrap();
    transfer.drain().await;
    let _kept = transfer.into_connection().unwrap();
    // One of two seats is taken.
    let addr = edge.addr();
    let second = timeout(Duration::from_secs(5), http::get(addr, "/v2/", &[])).await;
    assert!(second.is_ok_and(|got| got.status == 200));
}

#[tokio::test]
async fn health_and_metrics_are_there() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", MIB, 5);
    let edge = Edge::start(&origin).await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(http::get(edge.addr(), path, &[]).await.status, 200);
        assert_eq!(http::head(edge.addr(), path, &[]).await.status, 200);
    }
    for _ in 0..3 {
        pull_blob(edge.addr(), "app", &digest).await;
    }
    let got = http::get(edge.addr(), "/metrics", &[]).await;
    assert!(got.header("Content-Type").is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4")));
    for (series, value) in [
        (r#"clawhub_edge_pull_answers_total{kind="blob",served="miss"}"#, 1),
        (r#"clawhub_edge_pull_answers_total{kind="blob",served="hit"}"#, 2),
        (r#"clawhub_edge_fills_total{outcome="sealed"}"#, 1),
        ("clawhub_edge_fill_bytes_total", MIB),
        ("clawhub_edge_http_sent_bytes_total", 3 * MIB),
        ("clawhub_edge_store_bytes", MIB),
        ("clawhub_edge_store_blobs", 1),
        ("clawhub_edge_flights", 0),
    ] {
        assert_eq!(edge.metric(series).await, value, "{series}");
    }
}

#[tokio::test]
async fn metrics_can_have_a_listener_of_their_own() {
    let origin = Origin::start().await;
    let edge = Edge::with(&origin, "[metrics]\naddress = \"127.0.0.1:0\"").await;
    assert_eq!(http::get(edge.addr(), "/metrics", &[]).await.status, 404);
    assert_eq!(http::get(edge.addr(), "/livez", &[]).await.status, 200);
}

#[tokio::test]
async fn a_second_process_on_the_same_cache_is_refused() {
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", MIB, 6);
    let edge = Edge::start(&origin).await;
    let began = Instant::now();
    let second = edge.prepared().run(&["serve"]).await;
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success());
    assert!(message.contains("in use by process"), "{message}");
    assert!(message.contains("cache"), "{message}");
    assert!(began.elapsed() < Duration::from_secs(10));
    pull_blob(edge.addr(), "app", &digest).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let origin = Origin::start().await;
    let prepared = Edge::builder().upstream(UPSTREAM, &origin.url(), "").prepare();
    let taken = origin.addr().to_string();
    let output = prepared.run(&["--listen", &taken, "serve"]).await;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains(&taken));
}

#[tokio::test]
async fn without_any_configuration_it_starts_and_says_how_to_pull() {
    let home = tempfile::tempdir().unwrap();
    let mut command = binary(home.path());
    command.args(["--listen", "127.0.0.1:0"]);
    command.stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = tokio::io::BufReader::new(child.stdout.take().unwrap());
    let mut lines = Vec::new();
    for _ in 0..3 {
        let mut line = String::new();
        let read = tokio::io::AsyncBufReadExt::read_line(&mut stdout, &mut line);
        timeout(Duration::from_secs(20), read).await.unwrap().unwrap();
        lines.push(line);
    }
    assert!(lines[0].contains("listens on http://127.0.0.1:"), "{lines:?}");
    assert!(lines[1].contains(home.path().to_str().unwrap()), "{lines:?}");
    assert!(lines[2].contains("docker.io"), "{lines:?}");
    child.kill().await.unwrap();
}

#[tokio::test]
async fn the_cache_is_nobody_elses_business() {
    use std::os::unix::fs::PermissionsExt as _;
    let origin = Origin::start().await;
    let digest = origin.add_synthetic_blob("app", MIB, 7);
    let edge = Edge::start(&origin).await;
    pull_blob(edge.addr(), "app", &digest).await;
    let mut open = vec![edge.prepared().path("cache")];
    let mut seen = 0;
    while let Some(path) = open.pop() {
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
        seen += 1;
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert!(seen > 5);
}

#[tokio::test]
async fn the_log_can_be_json() {
    let origin = Origin::start().await;
    let prepared = Edge::builder().upstream(UPSTREAM, &origin.url(), "").prepare();
    let mut command = prepared.command(&["--log-format", "json", "--log-level", "info"]);
    command.stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stderr = tokio::io::BufReader::new(child.stderr.take().unwrap());
    loop {
        let mut line = String::new();
        let read = tokio::io::AsyncBufReadExt::read_line(&mut stderr, &mut line);
        timeout(Duration::from_secs(20), read).await.unwrap().unwrap();
        let event: serde_json::Value = serde_json::from_str(&line).expect("JSON on every line");
        if event["listen"].is_string() {
            break;
        }
    }
    child.kill().await.unwrap();
}
