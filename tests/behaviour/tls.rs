//! TLS towards clients.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test that calls them")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustls::{HandshakeKind, version};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::http2;
use crate::support::edge::{Builder, Edge, UPSTREAM, until};
use crate::support::http;
use crate::support::origin::{Origin, sha256};
use crate::support::tls::{Authority, Pair, body, connect, get, keys};
use crate::{MIB, blob};

const NAME: &str = "edge.test";

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn edge(origin: &Origin, listen: &str) -> Builder {
    Edge::builder().upstream(UPSTREAM, &origin.url(), "").listen(listen)
}

#[tokio::test]
async fn a_pull_works_over_both_versions_of_tls_and_of_http() {
    let (origin, authority, directory) = (Origin::start().await, Authority::new(), directory());
    let digest = origin.add_synthetic_blob("app", 3 * MIB, 1);
    let keys = authority.certify(&[NAME]).write(directory.path(), "edge");
    let edge = edge(&origin, &keys).start().await;
    for (tls, shown) in [(&version::TLS12, "TLSv1.2"), (&version::TLS13, "TLSv1.3")] {
        for protocol in [&b"http/1.1"[..], b"h2"] {
            let mut config = authority.client_of(&[tls], None);
            config.alpn_protocols = vec![protocol.to_vec()];
            let stream = connect(edge.addr(), NAME, &Arc::new(config)).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
            let pulled = if protocol == b"h2" {
                http2::get(stream, &blob("app", &digest)).await
            } else {
                body(&get(stream, &blob("app", &digest)).await.unwrap()).to_vec()
            };
            assert_eq!(sha256(&pulled), digest);
            until("the access log says how", async || edge.log().contains(&format!("tls=\"{shown}\""))).await;
        }
    }
}

/// Frames are sent in batches of 64 KiB. A client that opens its window only when it has read everything, whose blobs end
/// at any place of a frame or of a batch, must never wait for what the server still gathers.
#[tokio::test]
async fn frames_that_wait_for_more_leave_when_no_more_comes() {
    const FRAME: u32 = 16 << 10;
    let (origin, authority, directory) = (Origin::start().await, Authority::new(), directory());
    let keys = authority.certify(&[NAME]).write(directory.path(), "edge");
    let edge = edge(&origin, &keys).start().await;
    let mut config = authority.client(None);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let config = Arc::new(config);
    let frame = u64::from(FRAME);
    for (seed, size) in
        [1, frame - 1, frame, frame + 1, 4 * frame, 5 * frame, 20 * frame + 9].into_iter().enumerate()
    {
        let digest = origin.add_synthetic_blob("app", size, seed as u64);
        // A miss, and hits with windows of a part of a frame, of one, and of a batch and a bit.
        for window in [1 << 20, 5000, FRAME, 5 * FRAME, 1 << 20] {
            let stream = connect(edge.addr(), NAME, &config).await.unwrap();
            let pulled = http2::get_within(stream, &blob("app", &digest), window).await;
            assert_eq!(sha256(&pulled), digest, "{size} bytes, a window of {window}");
        }
    }
}

#[tokio::test]
async fn the_certificate_is_chosen_by_name() {
    let (origin, authority, directory) = (Origin::start().await, Authority::new(), directory());
    let default = authority.certify(&["default.test"]);
    let exact = authority.certify(&["a.edge.test"]);
    let wildcard = authority.certify(&["*.edge.test"]);
    let listen = format!(
        "{}\n[[listen.certificates]]\n{}\n[[listen.certificates]]\n{}",
        default.write(directory.path(), "default"),
        wildcard.write(directory.path(), "wildcard"),
        exact.write(directory.path(), "exact"),
    );
    let edge = edge(&origin, &listen).start().await;
    let client = Arc::new(authority.client(None));
    for (name, pair) in [("default.test", &default), ("a.edge.test", &exact), ("b.edge.test", &wildcard)] {
        let stream = connect(edge.addr(), name, &client).await.unwrap();
        assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], pair.der(), "{name}");
    }
    // By address there is no name to choose by: the default is shown, and this client does not take it.
    assert!(connect(edge.addr(), "127.0.0.1", &client).await.is_err());
}

/// As Kubernetes mounts a Secret: `..data` is swapped, and the files are links through it.
fn swap(directory: &Path, generation: usize, pair: &Pair) {
    let data = directory.join(format!("..{generation}"));
    fs::create_dir(&data).unwrap();
    fs::write(data.join("tls.crt"), &pair.certificate).unwrap();
    fs::write(data.join("tls.key"), &pair.key).unwrap();
    let link = directory.join("..data_tmp");
    symlink(&data, &link).unwrap();
    fs::rename(&link, directory.join("..data")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rotations_under_load_drop_no_connection() {
    let (origin, authority, directory) = (Origin::start().await, Authority::new(), directory());
    let digest = origin.add_synthetic_blob("app", MIB, 2);
    let pairs: Vec<_> = (0..6).map(|_| authority.certify(&[NAME])).collect();
    swap(directory.path(), 0, &pairs[0]);
    for file in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(file), directory.path().join(file)).unwrap();
    }
    let (certificate, key) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
    let edge = edge(&origin, &keys(&certificate, &key)).start().await;
    let (done, pulls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = Vec::new();
    for number in 0..4 {
        let mut config = authority.client(None);
        config.alpn_protocols = vec![if number % 2 == 0 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let (config, addr, path, digest) =
            (Arc::new(config), edge.addr(), blob("app", &digest), digest.clone());
        let (done, pulls) = (Arc::clone(&done), Arc::clone(&pulls));
        clients.push(tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let stream = connect(addr, NAME, &config).await.unwrap();
                let pulled = if number % 2 == 0 {
                    http2::get(stream, &path).await
                } else {
                    body(&get(stream, &path).await.unwrap()).to_vec()
                };
                assert_eq!(sha256(&pulled), digest);
                pulls.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let client = Arc::new(authority.client(None));
    // One that stands through all of them.
    let mut standing = connect(edge.addr(), NAME, &client).await.unwrap();
    for (generation, pair) in pairs.iter().enumerate().skip(1) {
        swap(directory.path(), generation, pair);
        // The last one is found without being told.
        if generation < pairs.len() - 1 {
            edge.hang_up();
        }
        until("the new certificate is shown", async || {
            let stream = connect(edge.addr(), NAME, &client).await.unwrap();
            stream.get_ref().1.peer_certificates().unwrap()[0] == pair.der()
        })
        .await;
        standing.write_all(b"GET /v2/ HTTP/1.1\r\nHost: edge\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        standing.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        let mut rest = [0; 4096];
        let _ = standing.read(&mut rest).await.unwrap();
    }
    let before = pulls.load(Ordering::Relaxed);
    until("pulls go on", async || pulls.load(Ordering::Relaxed) > before + 4).await;
    done.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn a_pair_that_does_not_fit_leaves_the_old_one_in_use_and_is_reported_once() {
    let (origin, authority, directory) = (Origin::start().await, Authority::new(), directory());
    let old = authority.certify(&[NAME]);
    let keys = old.write(directory.path(), "edge");
    let edge = edge(&origin, &keys).toml("[[listen]]\naddress = \"127.0.0.1:0\"").start().await;
    let plain =
        edge.endpoints().iter().find_map(|endpoint| endpoint.strip_prefix("http://")?.parse().ok()).unwrap();
    let metric = async |series: &str| {
        let text = http::get(plain, "/metrics", &[]).await.text();
        let value =
            text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).map(str::to_owned);
        value.unwrap_or_default()
    };
    let new = authority.certify(&[NAME]);
    let failed = "clawhub_edge_tls_reloads_total{outcome=\"failed\"}";
    // The certificate is there before its key, as with a renewal that is read half-way.
    fs::write(directory.path().join("edge.crt"), &new.certificate).unwrap();
    edge.hang_up();
    until("the misfit is noticed", async || metric(failed).await == "1").await;
    for _ in 0..3 {
        edge.hang_up();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let client = Arc::new(authority.client(None));
    let shown = async || {
        let stream = connect(edge.addr(), NAME, &client).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    assert_eq!(shown().await, old.der());
    until("it is logged", async || edge.log().contains("cannot be used")).await;
    assert_eq!((metric(failed).await.as_str(), edge.log().matches("cannot be used").count()), ("1", 1));
    fs::write(directory.path().join("edge.key"), &new.key).unwrap();
    edge.hang_up();
    until("the pair is whole", async || shown().await == new.der()).await;
    let expiry = format!(
        "clawhub_edge_tls_certificate_expiry_timestamp_seconds{{certificate=\"{}\"}}",
        directory.path().join("edge.crt").display()
    );
    assert!(metric(&expiry).await.parse::<i64>().unwrap() > 1_800_000_000);
}

#[tokio::test]
async fn a_required_client_certificate_is_required_and_named_in_the_log() {
    let (origin, authority, directory) = (Origin::start().await, Authority::new(), directory());
    let listen = format!(
        "{}\nclient_ca_file = {}",
        authority.certify(&[NAME]).write(directory.path(), "edge"),
        authority.write(directory.path(), "ca.pem")
    );
    let edge = edge(&origin, &listen).start().await;
    let answer = async |identity: Option<&Pair>| {
        let stream = connect(edge.addr(), NAME, &Arc::new(authority.client(identity))).await?;
        get(stream, "/v2/").await
    };
    let known = authority.certify(&["node-7.cluster.test"]);
    assert_eq!(body(&answer(Some(&known)).await.unwrap()), b"{}");
    assert!(answer(None).await.is_err());
    assert!(answer(Some(&Authority::new().certify(&["stranger.test"]))).await.is_err());
    until("it is logged", async || edge.log().contains("client_certificate=\"node-7.cluster.test\"")).await;
}

#[tokio::test]
async fn an_optional_client_certificate_is_verified_if_it_is_shown_and_a_changed_ca_counts() {
    let (origin, authority, directory) = (Origin::start().await, Authority::new(), directory());
    let listen = format!(
        "{}\nclient_ca_file = {}\nclient_certificates = \"optional\"",
        authority.certify(&[NAME]).write(directory.path(), "edge"),
        authority.write(directory.path(), "ca.pem")
    );
    let edge = edge(&origin, &listen).start().await;
    let other = Authority::new();
    let (own, strange) = (authority.certify(&["own.test"]), other.certify(&["strange.test"]));
    // One client per identity, each of which would resume its sessions.
    let clients = [None, Some(&own), Some(&strange)].map(|identity| Arc::new(authority.client(identity)));
    let admitted = async || {
        let mut admitted = Vec::new();
        for client in &clients {
            let answer = async { get(connect(edge.addr(), NAME, client).await?, "/v2/").await };
            admitted.push(answer.await.is_ok());
        }
        admitted
    };
    assert_eq!(admitted().await, [true, true, false]);
    other.write(directory.path(), "ca.pem");
    edge.hang_up();
    // A session that the old authority vouched for is not resumed either.
    until("the new authority decides", async || admitted().await == [true, false, true]).await;
}

#[tokio::test]
async fn sessions_are_resumed() {
    let (origin, authority, directory) = (Origin::start().await, Authority::new(), directory());
    let edge = edge(&origin, &authority.certify(&[NAME]).write(directory.path(), "edge")).start().await;
    for tls in [&version::TLS12, &version::TLS13] {
        let client = Arc::new(authority.client_of(&[tls], None));
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let mut stream = connect(edge.addr(), NAME, &client).await.unwrap();
            kinds.push(stream.get_ref().1.handshake_kind().unwrap());
            // The tickets of TLS 1.3 come with the first bytes.
            get(&mut stream, "/v2/").await.unwrap();
        }
        assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed], "{tls:?}");
    }
}

#[tokio::test]
async fn a_handshake_that_does_not_come_to_its_end_is_cut_off() {
    let (origin, authority, directory) = (Origin::start().await, Authority::new(), directory());
    let keys = authority.certify(&[NAME]).write(directory.path(), "edge");
    let edge =
        edge(&origin, &keys).toml("[limits]\nheader_timeout = \"300ms\"\nmax_connections = 1").start().await;
    for begin in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(edge.addr()).await.unwrap();
        stream.write_all(begin).await.unwrap();
        let closed = timeout(Duration::from_secs(5), stream.read(&mut [0; 64])).await;
        assert!(closed.is_ok(), "{begin:?} holds its seat");
    }
    let stream = connect(edge.addr(), NAME, &Arc::new(authority.client(None))).await.unwrap();
    assert_eq!(body(&get(stream, "/v2/").await.unwrap()), b"{}");
}

#[tokio::test]
async fn plain_http_on_a_port_with_tls_is_told_so() {
    let (origin, authority, directory) = (Origin::start().await, Authority::new(), directory());
    let edge = edge(&origin, &authority.certify(&[NAME]).write(directory.path(), "edge")).start().await;
    let answer = get(TcpStream::connect(edge.addr()).await.unwrap(), "/v2/").await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("https://"), "{answer}");
}

#[tokio::test]
async fn a_check_finds_what_is_wrong_with_certificates() {
    let (origin, authority, directory) = (Origin::start().await, Authority::new(), directory());
    let path = directory.path();
    let one = authority.certify(&[NAME]);
    let other = authority.certify(&[NAME]);
    one.write(path, "one");
    other.write(path, "other");
    fs::write(path.join("junk.pem"), "no certificate at all").unwrap();
    let pair = |certificate: &str, key: &str| keys(&path.join(certificate), &path.join(key));
    for (listen, complaint) in [
        (pair("one.crt", "other.key"), "is not the key of"),
        (pair("absent.crt", "one.key"), "absent.crt"),
        (pair("one.crt", "absent.key"), "absent.key"),
        (pair("junk.pem", "one.key"), "junk.pem"),
        (pair("one.crt", "junk.pem"), "junk.pem"),
        ("certificate = \"/one.crt\"".to_owned(), "key: is missing"),
        (format!("{}\nclient_ca_file = \"/absent.pem\"", pair("one.crt", "one.key")), "/absent.pem"),
        (format!("{}\nclient_certificates = \"optional\"", pair("one.crt", "one.key")), "client_ca_file"),
        (format!("client_ca_file = {}", authority.write(path, "ca.pem")), "needs certificate and key"),
    ] {
        let output = edge(&origin, &listen).prepare().run(&["check-config"]).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(complaint), "{listen}\n{said}");
    }
    let ended = authority.certify_in_the_past(&[NAME]).write(path, "ended");
    let output = edge(&origin, &ended).prepare().run(&["check-config"]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("ended on 2001-01-01"), "{said}");
}

#[tokio::test]
async fn a_required_client_certificate_is_authentication_enough_for_an_open_listener() {
    let (authority, directory) = (Authority::new(), directory());
    let keys = authority.certify(&[NAME]).write(directory.path(), "edge");
    let credential = "username = \"me\"\npassword = \"p\"";
    let required = format!("{keys}\nclient_ca_file = {}", authority.write(directory.path(), "ca.pem"));
    for (keys, is_good) in [
        (required.clone(), true),
        (keys, false),
        (format!("{required}\nclient_certificates = \"optional\""), false),
    ] {
        let listen = format!("[[listen]]\naddress = \"0.0.0.0:0\"\n{keys}");
        let builder = Edge::builder().upstream(UPSTREAM, "https://x.test", credential).toml(&listen);
        assert_eq!(builder.prepare().run(&["check-config"]).await.status.success(), is_good, "{listen}");
    }
}

#[tokio::test]
async fn the_pull_command_reaches_a_running_edge_over_tls() {
    let (origin, authority, directory) = (Origin::start().await, Authority::new(), directory());
    let image = origin.add_image("app", "v1", vec![vec![7; 5000].into()]);
    // A port that is known beforehand: the command reads it from the configuration.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let keys = authority.certify(&[NAME]).write(directory.path(), "edge");
    let listen = format!("address = \"127.0.0.1:{port}\"\n{keys}");
    let edge = Edge::builder().upstream(UPSTREAM, &origin.url(), "").only_listen(&listen).start().await;
    let output = edge.prepared().run(&["pull", "--json", &format!("{UPSTREAM}/app:v1")]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains(&image.manifest_digest));
}
