//! The load client over TLS: rustls on one thread, HTTP/1.1 or HTTP/2.
//!
//! It decrypts what it receives, so on this machine it costs as much as the server: what is compared is the server's
//! own CPU time.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::load::{Moved, parse_head, request};
use crate::support::clock::now;
use crate::support::{content, usage};

const NAME: &str = "edge.test";
/// Windows that never stop a server.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;
const PIECE: usize = 256 << 10;

/// A certificate of its own, and the client that trusts nothing else.
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    roots: RootCertStore,
}

impl Identity {
    pub(crate) fn new(directory: &Path) -> Self {
        // ECDSA on P-256: rcgen's default, and what both servers sign fast with.
        let pair = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![NAME.to_owned()]).expect("a name");
        let signed = params.self_signed(&pair).expect("a certificate");
        let (certificate, key) = (directory.join("tls.crt"), directory.join("tls.key"));
        std::fs::write(&certificate, signed.pem()).expect("room for a certificate");
        std::fs::write(&key, pair.serialize_pem()).expect("room for a key");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(signed.pem().as_bytes()).expect("PEM")).expect("a root");
        Self { certificate, key, roots }
    }

    /// TLS 1.3 with `TLS_AES_128_GCM_SHA256` alone, so that all servers use it.
    fn connector(&self, version: Version) -> TlsConnector {
        let suite = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
        let provider = CryptoProvider { cipher_suites: vec![suite], ..aws_lc_rs::default_provider() };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the suite is of TLS 1.3")
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![version.alpn().to_vec()];
        TlsConnector::from(Arc::new(config))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

impl Version {
    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

/// What is asked for over TLS.
pub(crate) struct SecureLoad<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) identity: &'a Identity,
    pub(crate) path: &'a str,
    pub(crate) version: Version,
    pub(crate) connections: usize,
    /// At once on each connection; 1 for HTTP/1.1.
    pub(crate) streams: usize,
    pub(crate) requests: usize,
}

impl SecureLoad<'_> {
    /// Runs to its end. Panics on anything but complete answers of status 200.
    pub(crate) fn run(&self) -> Moved {
        let runtime = runtime();
        runtime.block_on(async {
            let mut connections = Vec::new();
            for _ in 0..self.connections {
                connections.push(connect(self.address, &self.identity.connector(self.version)).await);
            }
            let own = std::process::id();
            let (before, started) = (usage::process_seconds(own), now());
            let left = Arc::new(AtomicUsize::new(self.requests));
            let mut tasks = JoinSet::new();
            for connection in connections {
                match self.version {
                    Version::Http1 => {
                        let asked = request(self.address, self.path);
                        tasks.spawn(http1(connection, asked, Arc::clone(&left)));
                    }
                    Version::Http2 => {
                        let sender = open(connection).await;
                        for _ in 0..self.streams {
                            let (sender, left) = (sender.clone(), Arc::clone(&left));
                            tasks.spawn(http2(sender, self.path.to_owned(), left));
                        }
                    }
                }
            }
            let mut moved = Moved::default();
            while let Some(part) = tasks.join_next().await {
                moved.add(part.expect("a task of ours"));
            }
            moved.seconds = started.elapsed().as_secs_f64();
            moved.client = usage::process_seconds(own) - before;
            moved.sort();
            moved
        })
    }
}

/// Pulls once and compares the digest of the whole body. Panics unless it is right.
pub(crate) fn verify(address: SocketAddr, identity: &Identity, version: Version, path: &str, digest: &str) {
    let mut hasher = Sha256::new();
    runtime().block_on(async {
        let mut stream = connect(address, &identity.connector(version)).await;
        match version {
            Version::Http1 => {
                send(&mut stream, &request(address, path)).await;
                let mut buffer = vec![0; PIECE];
                let hash = |bytes: &[u8]| hasher.update(bytes);
                read_answer(&mut stream, &mut buffer, now(), hash).await.expect("a whole answer");
            }
            Version::Http2 => {
                let mut sender = open(stream).await;
                get(&mut sender, path, |bytes| hasher.update(bytes)).await.expect("a whole answer");
            }
        }
    });
    assert_eq!(content::hex(&hasher.finalize()), digest, "{path}: the bytes are right");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn connect(address: SocketAddr, connector: &TlsConnector) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(address).await.expect("the server listens");
    stream.set_nodelay(true).expect("a TCP socket");
    let name = ServerName::try_from(NAME).expect("a name");
    connector.connect(name, stream).await.expect("a handshake")
}

/// Takes one of the requests that are left.
fn take(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

async fn http1(mut stream: TlsStream<TcpStream>, asked: Vec<u8>, left: Arc<AtomicUsize>) -> Moved {
    let mut moved = Moved::default();
    let mut buffer = vec![0; PIECE];
    while take(&left) {
        let started = now();
        send(&mut stream, &asked).await;
        let answer = read_answer(&mut stream, &mut buffer, started, |_| {}).await.expect("a whole answer");
        moved.count(started, answer.0, answer.1);
    }
    moved
}

async fn send(stream: &mut TlsStream<TcpStream>, asked: &[u8]) {
    stream.write_all(asked).await.expect("the request is sent");
    // What is written may stay in the TLS session when the task has had its turn, and no read sends it.
    stream.flush().await.expect("the request is sent");
}

/// Reads one answer; when its first byte came, and how long the body was.
async fn read_answer(
    stream: &mut TlsStream<TcpStream>,
    buffer: &mut [u8],
    started: Instant,
    mut body: impl FnMut(&[u8]),
) -> io::Result<(f64, u64)> {
    let mut head = Vec::new();
    let mut first_byte = 0.0;
    let (end, length) = loop {
        let read = stream.read(buffer).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if head.is_empty() {
            first_byte = started.elapsed().as_secs_f64() * 1e6;
        }
        head.extend_from_slice(&buffer[..read]);
        if let Some(found) = parse_head(&head) {
            break found;
        }
    };
    body(&head[end..]);
    let mut left = length - (head.len() - end) as u64;
    while left > 0 {
        let read = stream.read(buffer).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        body(&buffer[..read]);
        left -= read as u64;
    }
    Ok((first_byte, length))
}

async fn open(stream: TlsStream<TcpStream>) -> h2::client::SendRequest<Bytes> {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    let (sender, connection) = builder.handshake(stream).await.expect("a connection");
    // Its end shows in the streams.
    tokio::spawn(connection);
    sender
}

async fn http2(mut sender: h2::client::SendRequest<Bytes>, path: String, left: Arc<AtomicUsize>) -> Moved {
    let mut moved = Moved::default();
    while take(&left) {
        let started = now();
        let answer = get(&mut sender, &path, |_| {}).await.expect("a whole answer");
        moved.count(started, answer.0, answer.1);
    }
    moved
}

/// One GET; when its head came, and how long the body was.
async fn get(
    sender: &mut h2::client::SendRequest<Bytes>,
    path: &str,
    mut body: impl FnMut(&[u8]),
) -> Result<(f64, u64), h2::Error> {
    let started = now();
    let asked = hyper::Request::get(format!("https://{NAME}{path}")).body(()).expect("a request");
    let mut ready = sender.clone().ready().await?;
    let (answer, _) = ready.send_request(asked, true)?;
    let answer = answer.await?;
    let first_byte = started.elapsed().as_secs_f64() * 1e6;
    assert_eq!(answer.status(), 200, "{path}");
    let announced =
        answer.headers().get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
    let mut stream = answer.into_body();
    let mut length = 0;
    while let Some(piece) = stream.data().await {
        let piece = piece?;
        body(&piece);
        length += piece.len() as u64;
        stream.flow_control().release_capacity(piece.len())?;
    }
    assert_eq!(Some(length), announced, "{path}: the body is whole");
    Ok((first_byte, length))
}
