//! Where an edge can listen.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test that calls them")]

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener as StdUnixListener;

use rustix::io::{FdFlags, fcntl_setfd};
use tokio::net::{TcpStream, UnixStream};

use crate::support::edge::{Builder, Edge, UPSTREAM, until};
use crate::support::origin::{Origin, sha256};
use crate::support::tls::{body, get};
use crate::{blob, http2, pull};

fn edge(origin: &Origin) -> Builder {
    Edge::builder().upstream(UPSTREAM, &origin.url(), "")
}

/// The environment in which systemd would hand over this socket.
fn handing_over(builder: Builder, socket: &impl std::os::fd::AsFd, name: &str) -> Builder {
    fcntl_setfd(socket, FdFlags::empty()).unwrap();
    let descriptor = socket.as_fd().as_raw_fd().to_string();
    // Only systemd itself can put it at 3.
    builder.env("LISTEN_FDS", "1").env("LISTEN_FDS_FIRST_FD", &descriptor).env("LISTEN_FDNAMES", name)
}

#[tokio::test]
async fn a_unix_socket_is_served_with_its_permissions_and_goes_with_the_process() {
    let origin = Origin::start().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("edge.sock");
    // What a killed predecessor left.
    drop(StdUnixListener::bind(&path).unwrap());
    let listen = format!("address = \"unix:{}\"\nmode = \"0600\"", path.display());
    let mut edge = edge(&origin).only_listen(&listen).start().await;
    assert_eq!(edge.endpoints(), [format!("unix:{}", path.display())]);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let answer = get(UnixStream::connect(&path).await.unwrap(), "/v2/").await.unwrap();
    assert_eq!(body(&answer), b"{}");
    let digest = origin.add_synthetic_blob("app", 100_000, 1);
    let pulled = http2::get(UnixStream::connect(&path).await.unwrap(), &blob("app", &digest)).await;
    assert_eq!(sha256(&pulled), digest);
    until("it is logged", async || edge.log().contains("client=unix")).await;

    let second = edge.prepared().run(&["serve"]).await;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("another process"), "{said}");
    assert!(edge.stop().await.success());
    assert!(!path.exists());
}

#[tokio::test]
async fn the_pull_command_reaches_a_running_edge_over_its_unix_socket() {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "v1", vec![vec![7; 5000].into()]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("edge.sock");
    let edge = edge(&origin).only_listen(&format!("address = \"unix:{}\"", path.display())).start().await;
    let output = edge.prepared().run(&["pull", "--json", &format!("{UPSTREAM}/app:v1")]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains(&image.manifest_digest));
}

#[tokio::test]
async fn the_unspecified_address_of_ipv6_takes_both_families() {
    let origin = Origin::start().await;
    let edge = edge(&origin).only_listen("address = \"[::]:0\"").start().await;
    let port = edge.addr().port();
    for (host, client) in [("127.0.0.1", "127.0.0.1:"), ("::1", "[::1]:")] {
        let answer = get(TcpStream::connect((host, port)).await.unwrap(), "/v2/").await.unwrap();
        assert_eq!(body(&answer), b"{}");
        until("it is logged", async || edge.log().contains(&format!("client={client}"))).await;
    }
}

#[tokio::test]
async fn a_socket_of_systemd_is_taken_by_name_by_address_or_without_configuration() {
    let origin = Origin::start().await;
    let image = origin.add_image("app", "v1", vec![vec![7; 5000].into()]);
    for way in ["name", "address", "nothing"] {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let builder = handing_over(edge(&origin), &socket, "edge.socket");
        let edge = match way {
            "name" => builder.only_listen("address = \"systemd:edge.socket\""),
            "address" => builder.only_listen(&format!("address = \"{address}\"")),
            _ => builder.without_listen(),
        };
        let mut edge = edge.start().await;
        assert_eq!(edge.endpoints(), [format!("http://{address}")], "{way}");
        pull(&edge, "app", "v1", &image).await;
        assert!(edge.stop().await.success());
        // It outlives the process, and so does its queue.
        TcpStream::connect(address).await.unwrap();
        drop(socket);
    }
}

#[tokio::test]
async fn a_unix_socket_of_systemd_is_left_where_it_is() {
    let origin = Origin::start().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("edge.sock");
    let socket = StdUnixListener::bind(&path).unwrap();
    let builder =
        handing_over(edge(&origin), &socket, "edge.socket").only_listen("address = \"systemd:edge.socket\"");
    let mut edge = builder.start().await;
    let answer = get(UnixStream::connect(&path).await.unwrap(), "/v2/").await.unwrap();
    assert_eq!(body(&answer), b"{}");
    assert!(edge.stop().await.success());
    assert!(path.exists());
}

#[tokio::test]
async fn a_socket_that_nobody_claims_and_a_name_that_was_not_passed_are_errors() {
    let origin = Origin::start().await;
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let unclaimed = handing_over(edge(&origin), &socket, "web").only_listen("address = \"127.0.0.1:0\"");
    let missing = edge(&origin).only_listen("address = \"systemd:web\"");
    for (builder, complaint) in [(unclaimed, "address = \"systemd:web\""), (missing, "FileDescriptorName=")] {
        let output = builder.prepare().run(&["serve"]).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(complaint), "{said}");
    }
}

#[tokio::test]
async fn an_open_socket_of_systemd_is_refused_where_an_open_listener_would_be() {
    let credential = "username = \"me\"\npassword = \"p\"";
    for (address, is_good) in [("0.0.0.0:0", false), ("127.0.0.1:0", true)] {
        let socket = std::net::TcpListener::bind(address).unwrap();
        let builder = Edge::builder().upstream(UPSTREAM, "https://x.test", credential);
        let builder = handing_over(builder, &socket, "web").only_listen("address = \"systemd:web\"");
        if is_good {
            builder.start().await;
            continue;
        }
        let output = builder.prepare().run(&["serve"]).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("auth.anonymous"), "{said}");
    }
}
